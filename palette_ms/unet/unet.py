"""The U-Net (Dhariwal & Nichol 2021, section 3) with the source image concatenated to the noisy one."""

import math

from mindspore import Parameter, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal, initializer

from palette_ms.unet.blocks import AttentionBlock, ResidualBlock
from palette_ms.unet.layers import DownsampleConv, Dropout, GroupNorm, Swish, TimeEmbedding, UpsampleConv, conv

# Of y₀ − source where pixels are to be made, in [−1, 1]: over 400 crops of the quickstart's photos its root mean square
# was 0.24 for smoothly filled holes and 0.23 for gray pictures. Only the order of magnitude matters.
SOURCE_STD = 0.2

ATTENTIONS = ("global", "local", "none", "dilated")


class Stage(nn.Cell):
    """One step of a path: a residual block, attention where the level has it, resampling where the level ends."""

    def __init__(self, residual, attention=None, resample=None):
        super().__init__()
        self.residual = residual
        self.attention = attention or nn.Identity()
        self.resamples = resample is not None
        self.resample = resample or nn.Identity()

    def construct(self, x, emb, numbers=None):
        x = self.attention(self.residual(x, emb, numbers))
        return self.resample(x, emb, numbers) if self.resamples else x


class UNet(nn.Cell):
    """The denoiser of Palette (Saharia et al. 2022, section 3).

    `attention` is the paper's ablation of self-attention (its table 5). Where attention would stand, at the levels of
    `attention_resolutions` and in the middle, stands:

    - "global": attention of every position to all of them, the paper's choice.
    - "local": attention within non-overlapping blocks. The paper's 4 query blocks are `attention_blocks=2`. It cites
      HaloNet (Vaswani et al. 2021), whose blocks see a rim of their neighbours; here they see nothing but themselves.
    - "none": no attention, and twice the residual blocks. The paper has "2× residual blocks at 32×32, 16×16 and 8×8".
      Our reading: at these levels `num_res_blocks` counts twice, on both ways; the middle keeps its two. At the paper's
      size that is 744 M parameters where its table has 603 M, so the paper doubled less, which it does not specify.
    - "dilated": as "none", and these blocks are dilated. The paper has "increasing dilation rates" that make the
      "receptive fields" grow exponentially. Our reading: 1, 2, 4, … block by block of a level on the way down; the same
      on the way up, whose one block more has 1 again; 1 and 2 in the middle. Both convolutions of a block have its
      rate; resampling blocks have 1. A rate that reaches past a map sees zeros there, as padding does.

    At sizes other than the training size, global attention weighs more or fewer positions than it was trained on; a
    number of blocks stays, and the blocks grow and shrink with the map; a size of blocks stays, and there are more or
    fewer of them; without attention every position sees as far as in training. The normalisations take their
    statistics of the whole map in any case.

    Args:
        in_channels: channels of source ‖ noisy image.
        out_channels: channels of the prediction.
        base_channels: width of the first level.
        channel_mults: width of each level over `base_channels` (need not be whole); a level halves the size of the
            one before.
        num_res_blocks: residual blocks of a level on the way down; the way up has one more.
        attention_resolutions: downsampling factors (1, 2, 4, …) at whose levels attention stands, down and up.
            The middle always has it. Without attention: levels with twice the residual blocks.
        num_heads: attention heads; not used where `num_head_channels` is given.
        num_head_channels: channels of a head.
        dropout: in the residual blocks, where the numbers that decide over it are given: in training.
        scale_shift: time conditioning by scale and shift (AdaGN); otherwise it is added.
        resblock_updown: residual blocks resample; otherwise strided convolutions, and doubling with a convolution.
        norm_groups: groups of the normalisations, see `layers.GroupNorm`.
        patch_size: the network works on blocks of patch_size × patch_size pixels (space to depth), which makes
            it that many times squared cheaper; 1 is the paper's. `attention_resolutions` count from the blocks.
        num_classes: of a class-conditional network, whose class embedding is added to the time embedding, or the tasks
            of a network that restores, which takes the task's embedding in its place; None: neither.
        noise_input: what is embedded of the noise level: "value", γ itself as in the paper, or "angle",
            1000 · (2/π) arccos √γ. The sinusoids hardly tell γ = 0.01 from 0.05, where the gain 1/√γ on y_t that the
            network has to apply differs by a factor of two; the angle spreads these levels out.
        from_source: for x̂₀-prediction: the layers see and say how far y₀ is from the source, in units of `SOURCE_STD`.
            What they see is the mean of that distance given y_t, were it white noise: it fades as y_t says less, so
            that a short training need not learn first how far y_t can be trusted at each noise level (compare the
            preconditioning of Karras et al. 2022, arXiv 2206.00364, section 5). A new network says its source.
        attention: one of `ATTENTIONS`, see above.
        attention_blocks: for local attention: each map is cut into that many blocks along each side, whatever its size;
            they differ by at most one position a side.
        attention_block_size: for local attention, if not `attention_blocks`: positions of a block along each side, at
            every level; the last blocks of a map have what is left.

    Inputs: x (N, in_channels, H, W), H and W divisible by `multiple`; gamma (N,), the noise level in (0, 1], or the
        step t where the network was trained with that (Dhariwal & Nichol); label (N,), int32 in [0, num_classes), for
        a class-conditional network; dropout (N, `dropout_numbers`), see `layers.Dropout`, or None: nothing is dropped.
    Output: (N, out_channels, H, W), float32.

    Raises:
        ValueError: a width that the heads do not divide, a size that `multiple` does not divide, local attention
            without just one way to say the blocks, or blocks for another attention.
    """

    def __init__(self, in_channels=6, out_channels=3, base_channels=64, channel_mults=(1, 2, 4, 8), num_res_blocks=2,
                 attention_resolutions=(16,), num_heads=1, num_head_channels=None, dropout=0.0, scale_shift=True,
                 resblock_updown=True, norm_groups=32, patch_size=1, num_classes=None, noise_input="value",
                 from_source=False, attention="global", attention_blocks=None, attention_block_size=None):
        super().__init__()
        ways = [way for way in (attention_blocks, attention_block_size) if way is not None]
        if attention not in ATTENTIONS or len(ways) != (attention == "local") or min(ways, default=1) < 1:
            raise ValueError(f"attention is one of {', '.join(ATTENTIONS)}; local alone takes, and needs, either "
                             "attention_blocks or attention_block_size, at least 1")
        self.out_channels = out_channels
        self.from_source = from_source
        self.embeds_angle = noise_input == "angle"
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.multiple = patch_size * 2 ** (len(channel_mults) - 1)
        time_channels = 4 * base_channels

        def residual_blocks(level):
            replaces = attention in ("none", "dilated") and 2**level in attention_resolutions
            return 2 * num_res_blocks if replaces else num_res_blocks

        def residual(c_in, c_out, resample=None, dilation=1):
            return ResidualBlock(c_in, c_out, time_channels, dropout, scale_shift, resample, norm_groups, dilation)

        def stage(c_in, c_out, attends, index, resample=None):
            """The block of that index in its level; `attends`: attention stands there, or what replaces it."""
            block = None
            if attends and attention in ("global", "local"):
                block = AttentionBlock(c_out, num_heads, num_head_channels, norm_groups, attention_blocks,
                                       attention_block_size)
            dilation = 2 ** (index % (2 * num_res_blocks)) if attends and attention == "dilated" else 1
            return Stage(residual(c_in, c_out, dilation=dilation), block, resample)

        def down(channels):
            return residual(channels, channels, "down") if resblock_updown else DownsampleConv(channels)

        def up(channels):
            return residual(channels, channels, "up") if resblock_updown else UpsampleConv(channels)

        channels = int(base_channels * channel_mults[0])
        self.time_embedding = TimeEmbedding(base_channels, time_channels)
        if num_classes:
            self.label_embedding = Parameter(initializer(Normal(1.0), (num_classes, time_channels)))
        self.conv_in = conv(in_channels * patch_size**2, channels, 3)
        last = len(channel_mults) - 1

        path, skip_channels = [], [channels]
        for level, mult in enumerate(channel_mults):
            for i in range(residual_blocks(level)):
                c_in, channels = channels, int(base_channels * mult)
                path.append(stage(c_in, channels, 2**level in attention_resolutions, i))
                skip_channels.append(channels)
            if level != last:
                path.append(down(channels))
                skip_channels.append(channels)
        self.down = nn.CellList(path)

        self.middle1 = stage(channels, channels, True, 0)
        self.middle2 = residual(channels, channels, dilation=2 if attention == "dilated" else 1)

        path = []
        for level, mult in reversed(list(enumerate(channel_mults))):
            for i in range(residual_blocks(level) + 1):
                c_in, channels = channels + skip_channels.pop(), int(base_channels * mult)
                ends_level = level != 0 and i == residual_blocks(level)
                path.append(stage(c_in, channels, 2**level in attention_resolutions, i,
                                  up(channels) if ends_level else None))
        self.up = nn.CellList(path)

        self.norm_out = GroupNorm(channels, norm_groups)
        self.act = Swish()
        self.conv_out = conv(channels, out_channels * patch_size**2, 3, zero=True)

        self.dropout_channels = 0  # numbers that the channels of all layers with dropout need
        for _, cell in self.cells_and_names():
            if isinstance(cell, Dropout) and cell.p:
                cell.start = self.dropout_channels
                self.dropout_channels += 2 * cell.channels

    def use_precision(self, dtype):
        """Compute convolutions, dense layers and attention in `dtype` (a MindSpore type).

        The weights, the normalisations' statistics, the softmax and the output stay float32.
        """
        for _, cell in self.cells_and_names():
            if isinstance(cell, (nn.Conv2d, nn.Dense)):
                cell.to_float(dtype)
        return self

    @property
    def num_bytes(self):
        """Of the weights."""
        return sum(parameter.nbytes for parameter in self.get_parameters())

    def use_cpu_kernels(self, wanted):
        """Compute by the operators that are fast in MindSpore on a CPU, or by those that every device has (and that can
        be exported). They are chosen by the device when the network is made."""
        for _, cell in self.cells_and_names():
            if hasattr(cell, "on_cpu"):
                cell.on_cpu = wanted

    def dropout_numbers(self, height, width):
        """How many random numbers a picture of that size takes in training; 0 without dropout."""
        return self.dropout_channels and self.dropout_channels + height * width // self.patch_size**2

    def attention_bytes(self, height, width):
        """Bytes of the largest attention layer's weights for one picture: heads · queries · keys · 4, padding included.

        They are float32 at the softmax in any precision. Ascend's fused operator never holds them.

        Args:
            height, width: of the picture, up to the next that `multiple` divides.

        Returns: int; 0 for a network without attention.
        """
        largest = 0
        height, width = (-(-side // self.multiple) * self.multiple // self.patch_size for side in (height, width))
        for cell in (*self.down, self.middle1):
            if not isinstance(cell, Stage):
                height, width = height // 2, width // 2
            elif isinstance(cell.attention, AttentionBlock):
                largest = max(largest, 4 * math.prod(cell.attention.weights_shape(height, width)))
        return largest

    def construct(self, x, gamma, label=None, dropout=None):
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(f"height and width must be multiples of {self.multiple}, not {x.shape[2:]}")
        noise_input = 2000 / math.pi * ops.acos(ops.sqrt(gamma)) if self.embeds_angle else gamma
        emb = self.time_embedding(noise_input)
        source = x[:, :self.out_channels]
        if self.from_source:
            y_t, level = x[:, self.out_channels:], gamma.reshape((-1, 1, 1, 1))
            trust = ops.sqrt(level) * SOURCE_STD / (level * SOURCE_STD**2 + 1 - level)
            x = ops.concat((source, trust * (y_t - ops.sqrt(level) * source)), 1)
        if self.num_classes:
            emb = emb + ops.gather(self.label_embedding, label, 0)
        h = self.conv_in(self.to_patches(x))
        skips = (h,)
        for cell in self.down:
            h = cell(h, emb, dropout)
            skips = skips + (h,)
        h = self.middle2(self.middle1(h, emb, dropout), emb, dropout)
        for i, cell in enumerate(self.up):
            h = cell(ops.concat((h, skips[-1 - i]), 1), emb, dropout)
        h = self.conv_out(self.act(self.norm_out(h)))
        y = self.from_patches(ops.cast(h, mstype.float32))
        return source + SOURCE_STD * y if self.from_source else y

    def to_patches(self, x):
        p = self.patch_size
        if p == 1:
            return x
        n, c, h, w = x.shape
        x = x.reshape((n, c, h // p, p, w // p, p)).transpose((0, 1, 3, 5, 2, 4))
        return x.reshape((n, c * p * p, h // p, w // p))

    def from_patches(self, x):
        p = self.patch_size
        if p == 1:
            return x
        n, c, h, w = x.shape
        x = x.reshape((n, c // (p * p), p, p, h, w)).transpose((0, 1, 4, 2, 5, 3))
        return x.reshape((n, c // (p * p), h * p, w * p))
