"""The U-Net (Dhariwal & Nichol 2021, section 3) with the source image concatenated to the noisy one."""

import math

from mindspore import Parameter, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal, initializer

from palette_ms.unet.blocks import AttentionBlock, ResidualBlock
from palette_ms.unet.layers import DownsampleConv, Dropout, GroupNorm, Swish, TimeEmbedding, UpsampleConv, conv
from palette_ms.unet.plan import plan

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

        def residual(c_in, c_out, resample=None, dilation=1):
            return ResidualBlock(c_in, c_out, time_channels, dropout, scale_shift, resample, norm_groups, dilation)

        def resampling(channels, way):
            if resblock_updown:
                return residual(channels, channels, way)
            return UpsampleConv(channels) if way == "up" else DownsampleConv(channels)

        def build(step):
            resample = resampling(step.c_out, step.resample) if step.resample else None
            if step.kind == "resampling":
                return resample
            block = None
            if step.attends:
                block = AttentionBlock(step.c_out, num_heads, num_head_channels, norm_groups, attention_blocks,
                                       attention_block_size)
            return Stage(residual(step.c_in, step.c_out, dilation=step.dilation), block, resample)

        down, middle, up = plan(base_channels, channel_mults, num_res_blocks, attention_resolutions, attention)
        self.time_embedding = TimeEmbedding(base_channels, time_channels)
        if num_classes:
            self.label_embedding = Parameter(initializer(Normal(1.0), (num_classes, time_channels)))
        self.conv_in = conv(in_channels * patch_size**2, down[0].c_in, 3)
        self.down = nn.CellList([build(step) for step in down])
        self.middle1 = build(middle[0])
        self.middle2 = residual(middle[1].c_in, middle[1].c_out, dilation=middle[1].dilation)
        self.up = nn.CellList([build(step) for step in up])
        self.levels = [step.level for step in (*down, *middle, *up)]
        # How many of `down` stand at full size; one more of `up`.
        self.finest = sum(step.kind == "stage" and step.level == 0 for step in down)
        channels = up[-1].c_out
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

    def recompute_blocks(self, levels):
        """In training, compute the residual and attention blocks of so many levels, from the finest, again in the
        backward pass rather than keep what they made (Chen et al. 2016, arXiv 1604.06174).

        Once only, before the network is first called.
        """
        for level, cell in zip(self.levels, (*self.down, self.middle1, self.middle2, *self.up)):
            if level < levels:
                for _, block in cell.cells_and_names():
                    if isinstance(block, (ResidualBlock, AttentionBlock)):
                        block.recompute()
        return self

    @property
    def num_bytes(self):
        """Of the weights."""
        return sum(parameter.nbytes for parameter in self.get_parameters())

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
        return self.answer(x, gamma, label, dropout)[0]

    def answer(self, x, gamma, label=None, dropout=None, deep=None):
        """The output, and what comes up from the coarser levels to the finest one.

        Args:
            x, gamma, label, dropout: as the inputs.
            deep: what came up for another noise level of the chain, taken in place of the coarser levels' work.

        Returns: (output, deep), deep (N, C, H / patch_size, W / patch_size).
        """
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
        for i in range(self.finest):
            h = self.down[i](h, emb, dropout)
            skips = skips + (h,)
        if deep is None:
            deep = self.coarser_levels(h, emb, dropout)
        h = deep
        for i in range(self.finest + 1):
            h = self.up[len(self.up) - self.finest - 1 + i](ops.concat((h, skips[-1 - i]), 1), emb, dropout)
        h = self.conv_out(self.act(self.norm_out(h)))
        y = self.from_patches(ops.cast(h, mstype.float32))
        return (source + SOURCE_STD * y if self.from_source else y), deep

    def coarser_levels(self, h, emb, dropout):
        skips = ()
        for i in range(self.finest, len(self.down)):
            h = self.down[i](h, emb, dropout)
            skips = skips + (h,)
        h = self.middle2(self.middle1(h, emb, dropout), emb, dropout)
        for i in range(len(skips)):
            h = self.up[i](ops.concat((h, skips[-1 - i]), 1), emb, dropout)
        return h

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


class DeepFeatures(nn.Cell):
    """The answer of a `UNet` and its deep features, see `UNet.answer`."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def construct(self, x, gamma, label=None):
        return self.unet.answer(x, gamma, label)


class FinestLevel(nn.Cell):
    """The answer of a `UNet` to given deep features, see `UNet.answer`."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def construct(self, deep, x, gamma, label=None):
        return self.unet.answer(x, gamma, label, deep=deep)[0]
