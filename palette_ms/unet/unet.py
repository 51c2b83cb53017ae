"""The U-Net (Dhariwal & Nichol 2021, section 3) with the source image concatenated to the noisy one."""

import math

from mindspore import Parameter, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal, initializer

from palette_ms.unet.blocks import AttentionBlock, ResidualBlock
from palette_ms.unet.layers import DownsampleConv, GroupNorm, Swish, TimeEmbedding, UpsampleConv, conv

# Of y₀ − source where pixels are to be made, in [−1, 1]: over 400 crops of the quickstart's photos its root mean square
# was 0.24 for smoothly filled holes and 0.23 for gray pictures. Only the order of magnitude matters.
SOURCE_STD = 0.2


class Stage(nn.Cell):
    """One step of a path: a residual block, attention where the level has it, resampling where the level ends."""

    def __init__(self, residual, attention=None, resample=None):
        super().__init__()
        self.residual = residual
        self.attention = attention or nn.Identity()
        self.resamples = resample is not None
        self.resample = resample or nn.Identity()

    def construct(self, x, emb):
        x = self.attention(self.residual(x, emb))
        return self.resample(x, emb) if self.resamples else x


class UNet(nn.Cell):
    """The denoiser of Palette (Saharia et al. 2022, section 3).

    Args:
        in_channels: channels of source ‖ noisy image.
        out_channels: channels of the prediction.
        base_channels: width of the first level.
        channel_mults: width of each level over `base_channels` (need not be whole); a level halves the size of the
            one before.
        num_res_blocks: residual blocks of a level on the way down; the way up has one more.
        attention_resolutions: downsampling factors (1, 2, 4, …) at whose levels attention stands, down and up.
            The middle always has it.
        num_heads: attention heads; not used where `num_head_channels` is given.
        num_head_channels: channels of a head.
        dropout: in the residual blocks.
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

    Inputs: x (N, in_channels, H, W), H and W divisible by `multiple`; gamma (N,), the noise level in (0, 1], or the
        step t where the network was trained with that (Dhariwal & Nichol); label (N,), int32 in [0, num_classes), for
        a class-conditional network.
    Output: (N, out_channels, H, W), float32.

    Raises:
        ValueError: a width that the heads do not divide, or a size that `multiple` does not divide.
    """

    def __init__(self, in_channels=6, out_channels=3, base_channels=64, channel_mults=(1, 2, 4, 8), num_res_blocks=2,
                 attention_resolutions=(16,), num_heads=1, num_head_channels=None, dropout=0.0, scale_shift=True,
                 resblock_updown=True, norm_groups=32, patch_size=1, num_classes=None, noise_input="value",
                 from_source=False):
        super().__init__()
        self.out_channels = out_channels
        self.from_source = from_source
        self.embeds_angle = noise_input == "angle"
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.multiple = patch_size * 2 ** (len(channel_mults) - 1)
        time_channels = 4 * base_channels

        def residual(c_in, c_out, resample=None):
            return ResidualBlock(c_in, c_out, time_channels, dropout, scale_shift, resample, norm_groups)

        def attention(channels):
            return AttentionBlock(channels, num_heads, num_head_channels, norm_groups)

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
            for _ in range(num_res_blocks):
                c_in, channels = channels, int(base_channels * mult)
                attends = 2**level in attention_resolutions
                path.append(Stage(residual(c_in, channels), attention(channels) if attends else None))
                skip_channels.append(channels)
            if level != last:
                path.append(down(channels))
                skip_channels.append(channels)
        self.down = nn.CellList(path)

        self.middle1 = Stage(residual(channels, channels), attention(channels))
        self.middle2 = residual(channels, channels)

        path = []
        for level, mult in reversed(list(enumerate(channel_mults))):
            for i in range(num_res_blocks + 1):
                c_in, channels = channels + skip_channels.pop(), int(base_channels * mult)
                attends = 2**level in attention_resolutions
                ends_level = level != 0 and i == num_res_blocks
                path.append(Stage(residual(c_in, channels), attention(channels) if attends else None,
                                  up(channels) if ends_level else None))
        self.up = nn.CellList(path)

        self.norm_out = GroupNorm(channels, norm_groups)
        self.act = Swish()
        self.conv_out = conv(channels, out_channels * patch_size**2, 3, zero=True)

    def use_precision(self, dtype):
        """Compute convolutions, dense layers and attention in `dtype` (a MindSpore type).

        The weights, the normalisations' statistics, the softmax and the output stay float32.
        """
        for _, cell in self.cells_and_names():
            if isinstance(cell, (nn.Conv2d, nn.Dense)):
                cell.to_float(dtype)
        return self

    def construct(self, x, gamma, label=None):
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
            h = cell(h, emb)
            skips = skips + (h,)
        h = self.middle2(self.middle1(h, emb), emb)
        for i, cell in enumerate(self.up):
            h = cell(ops.concat((h, skips[-1 - i]), 1), emb)
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
