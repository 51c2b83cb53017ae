"""Residual and attention blocks (Dhariwal & Nichol 2021, section 3)."""

import math

from mindspore import dtype as mstype
from mindspore import nn, ops

from palette_ms.unet.layers import GroupNorm, Swish, Upsample, conv


class ResidualBlock(nn.Cell):
    """norm–Swish–conv, the time embedding, norm–Swish–dropout–conv, added to the input.

    Args:
        in_channels: C of the input.
        out_channels: C' of the output; where it differs from C the skip is a 1×1 convolution.
        time_channels: E, width of the time embedding.
        dropout: probability of a zero before the last convolution.
        scale_shift: the embedding scales and shifts the second norm's output (AdaGN) rather than being added
            before it.
        resample: None, "up" or "down": both branches are doubled (nearest) or halved (average) in size.
        norm_groups: groups of the normalisations.

    Inputs: x (N, C, H, W), emb (N, E). Output: (N, C', H', W').
    """

    def __init__(self, in_channels, out_channels, time_channels, dropout=0.0, scale_shift=True, resample=None,
                 norm_groups=32):
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = GroupNorm(in_channels, norm_groups)
        self.act = Swish()
        self.resample = {None: nn.Identity, "up": Upsample, "down": lambda: nn.AvgPool2d(2, 2)}[resample]()
        self.conv1 = conv(in_channels, out_channels, 3)
        self.time = nn.Dense(time_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = GroupNorm(out_channels, norm_groups)
        self.dropout = nn.Dropout(p=dropout) if dropout else nn.Identity()
        self.conv2 = conv(out_channels, out_channels, 3, zero=True)
        self.skip = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)

    def construct(self, x, emb):
        h = self.conv1(self.resample(self.act(self.norm1(x))))
        emb = self.time(self.act(emb))
        if self.scale_shift:
            scale, shift = ops.chunk(emb, 2, 1)
            h = self.norm2(h, scale, shift)
        else:
            h = self.norm2(h + emb.reshape((emb.shape[0], -1, 1, 1)))
        h = self.conv2(self.dropout(self.act(h)))
        return self.skip(self.resample(x)) + h


class AttentionBlock(nn.Cell):
    """Global multi-head self-attention over all positions, added to the input. The softmax is float32.

    Args:
        channels: C.
        num_heads: number of heads; not used where `num_head_channels` is given.
        num_head_channels: channels of a head; must divide C.
        norm_groups: groups of the normalisation.

    Inputs: x (N, C, H, W). Output: as x.

    Raises:
        ValueError: C cannot be divided among the heads.
    """

    def __init__(self, channels, num_heads=1, num_head_channels=None, norm_groups=32):
        super().__init__()
        if num_head_channels:
            num_heads = channels // num_head_channels
        if num_heads < 1 or channels % num_heads or (num_head_channels and channels % num_head_channels):
            wanted = f"heads of {num_head_channels} channels" if num_head_channels else f"{num_heads} heads"
            raise ValueError(f"attention over {channels} channels cannot be divided into {wanted}")
        self.num_heads = num_heads
        self.scale = 1 / math.sqrt(channels // num_heads)
        self.norm = GroupNorm(channels, norm_groups)
        self.qkv = conv(channels, 3 * channels, 1)
        self.softmax = nn.Softmax(axis=-1)
        self.proj = conv(channels, channels, 1, zero=True)

    def construct(self, x):
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape((n, 3, self.num_heads, c // self.num_heads, h * w))
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        weights = ops.matmul((q * self.scale).swapaxes(-1, -2), k)
        weights = ops.cast(self.softmax(ops.cast(weights, mstype.float32)), v.dtype)
        y = ops.matmul(v, weights.swapaxes(-1, -2))
        return x + self.proj(y.reshape((n, c, h, w)))
