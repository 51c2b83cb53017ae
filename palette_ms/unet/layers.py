"""The U-Net's smallest parts: activation, noise-level embedding, normalisation, attention, convolution, resampling."""

import math
from typing import Optional

import numpy as np
from mindspore import Parameter, Tensor, constexpr, mint, nn, ops
from mindspore import dtype as mstype

from palette_ms import runtime
from palette_ms.unet.plan import block_edges

# Numbers that decide over dropout are whole and below this: the largest prime with a square below 2²⁴, so that products
# are exact in float32.
DROPOUT_MODULUS = 4093


class Swish(nn.Cell):
    """x · sigmoid(x), any shape (Ramachandran et al. 2017, arXiv 1710.05941).

    Examples:
        >>> Swish()(Tensor([0.0, 50.0])).asnumpy().tolist()
        [0.0, 50.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_npu = runtime.device() == "Ascend"

    def construct(self, x):
        return ops.silu(x) if self.on_npu else x * ops.sigmoid(x)


class TimeEmbedding(nn.Cell):
    """Sinusoidal embedding of the noise level, then a two-layer perceptron.

    Palette tells the network γ rather than t (section 2.2). The sinusoids are those of the Transformer
    (cosines first, wavelengths from 2π to 2π·max_period, as in guided-diffusion), taken of γ itself.

    Args:
        channels: width of the sinusoidal embedding.
        time_channels: width of the output; 4 · channels by default.
        max_period: the longest wavelength over 2π.

    Inputs: gamma (N,), or any other number that tells the noise, such as the step t. Output: (N, time_channels).

    Examples:
        >>> TimeEmbedding(8)(Tensor([0.5, 1.0])).shape
        (2, 32)
    """

    def __init__(self, channels: int, time_channels: Optional[int] = None, max_period: float = 10000.0) -> None:
        super().__init__()
        time_channels = time_channels or 4 * channels
        half = channels // 2
        self.odd = channels % 2 == 1
        frequencies = np.exp(-math.log(max_period) * np.arange(half) / half)
        self.frequencies = Tensor(frequencies[None].astype(np.float32))
        self.dense1 = nn.Dense(channels, time_channels)
        self.act = Swish()
        self.dense2 = nn.Dense(time_channels, time_channels)

    def construct(self, gamma):
        angles = ops.cast(gamma, self.frequencies.dtype).reshape((-1, 1)) * self.frequencies
        embedding = ops.concat((ops.cos(angles), ops.sin(angles)), 1)
        if self.odd:
            embedding = ops.concat((embedding, ops.zeros_like(embedding[:, :1])), 1)
        return self.dense2(self.act(self.dense1(embedding)))


class GroupNorm(nn.Cell):
    """Group normalisation (Wu & He 2018) with an optional scale and shift from outside.

    Statistics are float32 whatever the input's type, and the output has the input's type. `scale` and `shift`
    of the scale-shift conditioning (Dhariwal & Nichol 2021, eq. 6: AdaGN) are folded into the affine map, so
    that they cost nothing per pixel.

    Args:
        channels: C.
        groups: number of groups; the greatest common divisor with C where it does not divide it. Groups of one
            channel lose each channel's mean, that is, the picture's colour and what a time embedding adds: narrow
            networks want fewer groups than the usual 32.
        eps: added to the variance.

    Inputs: x (N, C, H, W); scale and shift (N, C) or None: y = norm(x) · (1 + scale) + shift. Output: as x.
    """

    def __init__(self, channels, groups=32, eps=1e-5):
        super().__init__()
        self.groups = math.gcd(groups, channels)
        self.eps = eps
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.on_cpu, self.on_npu = runtime.device() == "CPU", runtime.device() == "Ascend"
        # As oneDNN has it: with a channel for every group of every picture. Of the moving averages nothing is used.
        self.batch_norm = ops.BatchNorm(is_training=True, epsilon=eps, momentum=0.0)
        # The affine map alone: mean 0 and variance 1 are given. An operator that broadcasts holds 16 bytes for every
        # value of its output on a CPU, for as long as the graph lives: four times the value itself (MindSpore 2.10).
        self.fixed_norm = ops.BatchNorm(is_training=False, epsilon=1e-12)

    def normalised(self, x):
        """(N · groups, values of a group) → the same with mean 0 and variance 1 in each row."""
        if self.on_cpu:
            rows, zeros = x.shape[0], ops.zeros((x.shape[0],), x.dtype)
            y = self.batch_norm(x.reshape((1, rows, -1, 1)), ops.ones_like(zeros), zeros, zeros, zeros)[0]
            return y.reshape(x.shape)
        x = x - ops.mean(x, 1, keep_dims=True)
        return x / ops.sqrt(ops.mean(x * x, 1, keep_dims=True) + self.eps)

    def construct(self, x, scale=None, shift=None):
        n, c, h, w = x.shape
        if self.on_npu and scale is None:
            y = ops.group_norm(ops.cast(x, self.weight.dtype), self.groups, self.weight, self.bias, self.eps)
            return ops.cast(y, x.dtype)
        rows = ops.cast(x, self.weight.dtype).reshape((n * self.groups, -1))
        weight, bias = self.weight.reshape((1, c)), self.bias.reshape((1, c))
        if scale is not None:
            gain = 1 + ops.cast(scale, weight.dtype)
            weight = weight * gain
            bias = bias * gain + ops.cast(shift, weight.dtype)
        if self.on_npu:  # a picture for all of them, so that each has an affine map of its own
            y = ops.group_norm(rows.reshape((1, n * c, h, w)), n * self.groups, weight.reshape((-1,)),
                               bias.reshape((-1,)), self.eps)
            return ops.cast(y.reshape((n, c, h, w)), x.dtype)
        y = self.normalised(rows)
        if self.on_cpu:
            zeros = ops.zeros((n * c,), y.dtype)
            weight = ops.broadcast_to(weight, (n, c)).reshape((-1,))
            bias = ops.broadcast_to(bias, (n, c)).reshape((-1,))
            y = self.fixed_norm(y.reshape((1, n * c, h * w, 1)), weight, bias, zeros, ops.ones_like(zeros))[0]
            y = y.reshape((n, c, h, w))
        else:
            y = y.reshape((n, c, h, w)) * weight.reshape((-1, c, 1, 1)) + bias.reshape((-1, c, 1, 1))
        return ops.cast(y, x.dtype)


class Dropout(nn.Cell):
    """Each value becomes 0 with probability p, the others are divided by 1 − p (Srivastava et al. 2014), as numbers
    from outside decide: MindSpore's own dropout draws from a state that can be neither saved nor, on Ascend, seeded.

    Value i of a map of channel c becomes 0 where (a_c b_i + s_c) mod `DROPOUT_MODULUS` is in the lowest share p of its
    range. With a_c ≠ 0, b_i and s_c drawn uniformly, any two values, of one layer or of two, are independent of each
    other but for terms of 1/`DROPOUT_MODULUS`. That takes far fewer random numbers than one for each value.

    Args:
        channels: C.
        p: in [0, 1).

    Inputs: x (N, C, H, W); numbers (N, K), float32, whole, from 1 to `DROPOUT_MODULUS` − 1: 2 C of them from `start`
        on are the layer's own a and s, the last H · W are b, which all layers share; or None: nothing is dropped.
    Output: as x.
    """

    def __init__(self, channels, p):
        super().__init__()
        self.channels = channels
        self.p = p
        self.start = 0

    def construct(self, x, numbers=None):
        if self.p == 0 or numbers is None:
            return x
        n, c, h, w = x.shape
        a = numbers[:, self.start:self.start + c].reshape((n, c, 1, 1))
        s = numbers[:, self.start + c:self.start + 2 * c].reshape((n, c, 1, 1))
        b = numbers[:, -h * w:].reshape((n, 1, h, w))
        drawn = (a * b + s) * (1 / DROPOUT_MODULUS)
        kept = ops.cast(drawn - ops.floor(drawn) >= self.p, x.dtype)
        return x * (kept * (1 / (1 - self.p)))


class DotProductAttention(nn.Cell):
    """softmax(qᵀk / √D) applied to v, head by head (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    Plain operations with a float32 softmax; or, on Ascend in float16 and bfloat16, MindSpore's fused operator
    `mindspore.ops.flash_attention_score`, which gives the same but for rounding and never holds the matrix of weights.
    `fused` is the one place that decides. The fused operator has not been run: no card was at hand, and the tests put
    a stand-in of its documented form in its place.

    Inputs: q (N, heads, D, L); k, v (N, heads, D, K); outside (N, K), True for keys that none attends to, or None.
    Output: as q.
    """

    def __init__(self):
        super().__init__()
        self.has_operator = runtime.has_fused_attention()
        self.softmax = nn.Softmax(axis=-1)

    def fused(self, q):
        """Whether the fused operator takes such queries: its documented types, sizes of a head and of a batch."""
        n, _, d, _ = q.shape
        is_half = q.dtype == mstype.float16 or q.dtype == mstype.bfloat16
        return self.has_operator and is_half and d % 16 == 0 and d <= 512 and n <= 2000

    def construct(self, q, k, v, outside=None):
        n, heads, d, queries = q.shape
        length = k.shape[3]
        scale = 1 / math.sqrt(d)
        if self.fused(q):
            mask = None
            if outside is not None:
                mask = ops.broadcast_to(outside.reshape((n, 1, 1, length)), (n, 1, queries, length))
            y = ops.flash_attention_score(q.swapaxes(-1, -2), k.swapaxes(-1, -2), v.swapaxes(-1, -2), heads,
                                          attn_mask=mask, scalar_value=scale, input_layout="BNSD")
            return y.swapaxes(-1, -2)
        weights = ops.cast(ops.matmul((q * scale).swapaxes(-1, -2), k), mstype.float32)
        if outside is not None:
            weights = weights - 1e30 * ops.cast(outside.reshape((n, 1, 1, length)), mstype.float32)  # exponential: 0
        return ops.matmul(v, ops.cast(self.softmax(weights), v.dtype).swapaxes(-1, -2))


@constexpr
def _cut(length, count, size):
    """How an axis is cut into blocks that are padded to the largest one's size.

    Returns: number of blocks, their size, the position of the axis that each of theirs shows, which of them is padding,
        and where each position of the axis is found again.
    """
    edges = np.array(block_edges(length, count, size))
    block = np.diff(edges).max()
    ends = edges[1:, None]
    positions = edges[:-1, None] + np.arange(block)
    shown, outside = np.minimum(positions, ends - 1).ravel(), (positions >= ends).ravel()
    return (len(ends), int(block), Tensor(shown.astype(np.int32)), Tensor(outside),
            Tensor(np.flatnonzero(~outside).astype(np.int32)))


def split_blocks(x, count, size):
    """Cut maps (N, C, H, W) into blocks, row after row of them (`block_edges` along both axes).

    Returns: (N · blocks, C, h, w), and which positions are padding, (N · blocks, h · w) or None where blocks are equal.
    """
    n, c, height, width = x.shape
    rows, h, shown_rows, outside_rows, _ = _cut(height, count, size)
    columns, w, shown_columns, outside_columns, _ = _cut(width, count, size)
    outside = None
    if rows * h != height or columns * w != width:
        x = ops.gather(ops.gather(x, shown_rows, 2), shown_columns, 3)
        outside = ops.logical_or(outside_rows.reshape((rows, 1, h, 1)), outside_columns.reshape((1, columns, 1, w)))
        outside = ops.tile(outside.reshape((rows * columns, h * w)), (n, 1))
    x = x.reshape((n, c, rows, h, columns, w)).transpose((0, 2, 4, 1, 3, 5))
    return x.reshape((n * rows * columns, c, h, w)), outside


def merge_blocks(x, height, width, count, size):
    """The reverse of `split_blocks`, without its padding: (N, C, height, width)."""
    rows, h, _, _, found_rows = _cut(height, count, size)
    columns, w, _, _, found_columns = _cut(width, count, size)
    c = x.shape[1]
    x = x.reshape((-1, rows, columns, c, h, w)).transpose((0, 3, 1, 4, 2, 5)).reshape((-1, c, rows * h, columns * w))
    if rows * h != height or columns * w != width:
        x = ops.gather(ops.gather(x, found_rows, 2), found_columns, 3)
    return x


class Convolution(nn.Conv2d):
    """`nn.Conv2d` with its bias: on an NPU in one kernel."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.on_npu = runtime.device() == "Ascend"
        self.pads = self.dilation[0] * (self.kernel_size[0] // 2)

    def construct(self, x):
        if self.on_npu:
            return mint.nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.pads, self.dilation)
        return super().construct(x)


def conv(in_channels, out_channels, kernel_size, stride=1, zero=False, dilation=1):
    """A convolution with bias that keeps the size (over the stride).

    Args:
        zero: start with weights and bias at zero, so that the branch it ends adds nothing at first.
        dilation: distance of the positions that the kernel sees.
    """
    padding = dilation * (kernel_size // 2)
    layer = Convolution(in_channels, out_channels, kernel_size, stride, "pad", padding, dilation, has_bias=True)
    if zero:
        layer.weight.set_data(ops.zeros_like(layer.weight))
        layer.bias.set_data(ops.zeros_like(layer.bias))
    return layer


class Upsample(nn.Cell):
    """Nearest-neighbour doubling, (N, C, H, W) → (N, C, 2H, 2W)."""

    def __init__(self):
        super().__init__()
        self.on_cpu = runtime.device() == "CPU"

    def construct(self, x):
        n, c, h, w = x.shape
        if self.on_cpu:
            # A row times this matrix of 0 and 1 is two rows of double width.
            return ops.matmul(x.reshape((n * c * h, w)), ops.cast(_doubling(w), x.dtype)).reshape((n, c, 2 * h, 2 * w))
        x = ops.broadcast_to(x.reshape((n, c, h, 1, w, 1)), (n, c, h, 2, w, 2))
        return x.reshape((n, c, 2 * h, 2 * w))


class Downsample(nn.Cell):
    """The mean of 2×2 pixels, (N, C, H, W) → (N, C, H/2, W/2)."""

    def __init__(self):
        super().__init__()
        self.on_cpu = runtime.device() == "CPU"
        self.pool = nn.AvgPool2d(2, 2)

    def construct(self, x):
        n, c, h, w = x.shape
        if self.on_cpu:  # two rows at a time, by a quarter of the transposed matrix of `Upsample`
            matrix = ops.cast(_halving(w), x.dtype)
            return ops.matmul(x.reshape((n * c * h // 2, 2 * w)), matrix).reshape((n, c, h // 2, w // 2))
        if x.dtype == mstype.bfloat16:  # of which AvgPool has no gradient on Ascend
            x = x.reshape((n, c, h // 2, 2, w // 2, 2))
            return (x[:, :, :, 0, :, 0] + x[:, :, :, 0, :, 1] + x[:, :, :, 1, :, 0] + x[:, :, :, 1, :, 1]) * 0.25
        return self.pool(x)


@constexpr
def _doubling(width):
    return Tensor(np.tile(np.repeat(np.eye(width, dtype=np.float32), 2, 1), (1, 2)))


@constexpr
def _halving(width):
    return Tensor(np.tile(np.repeat(np.eye(width // 2, dtype=np.float32) / 4, 2, 0), (2, 1)))


class UpsampleConv(nn.Cell):
    """Doubling, then a 3×3 convolution. The other inputs are not used: all elements of a path are called alike."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.upsample = Upsample()
        self.conv = conv(in_channels, out_channels, 3)

    def construct(self, x, emb, numbers=None, text=None):
        return self.conv(self.upsample(x))


class DownsampleConv(nn.Cell):
    """Halving by a strided 3×3 convolution. The other inputs are not used: all elements of a path are called alike."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = conv(in_channels, out_channels, 3, stride=2)

    def construct(self, x, emb, numbers=None, text=None):
        return self.conv(x)


def use_device_kernels(network, wanted):
    """Compute by the operators that are fast in MindSpore on this device, or by those that every device has (and that
    can be exported). They are chosen by the device when a Cell is made."""
    for _, cell in network.cells_and_names():
        for switch, device in (("on_cpu", "CPU"), ("on_npu", "Ascend")):
            if hasattr(cell, switch):
                setattr(cell, switch, wanted and runtime.device() == device)
