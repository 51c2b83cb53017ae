"""The U-Net (Dhariwal & Nichol 2021, section 3) with the source image concatenated to the noisy one."""

import dataclasses
import math
from typing import Any, Optional

from mindspore import Parameter, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal, initializer

from palette_ms.unet.blocks import AttentionBlock, ResidualBlock
from palette_ms.unet.config import ModelConfig
from palette_ms.unet.layers import DownsampleConv, Dropout, GroupNorm, Swish, TimeEmbedding, UpsampleConv, conv
from palette_ms.unet.lora import LowRank
from palette_ms.unet.plan import attention_width, check, multiple, plan, resamples_by_blocks, text_width
from palette_ms.unet.text import CrossAttention, TextEmbedding


class Stage(nn.Cell):
    """One step of a path: a residual block, attention where the level has it, a look at the text, resampling where the
    level ends."""

    def __init__(self, residual, attention=None, resample=None, reading=None):
        super().__init__()
        self.residual = residual
        self.attention = attention or nn.Identity()
        self.resamples = resample is not None
        self.resample = resample or nn.Identity()
        self.reads = reading is not None
        self.reading = reading or nn.Identity()

    def construct(self, x, emb, numbers=None, text=None):
        x = self.attention(self.residual(x, emb, numbers))
        if self.reads:
            x = self.reading(x, *text)
        return self.resample(x, emb, numbers) if self.resamples else x


class UNet(nn.Cell):
    """The denoiser of Palette (Saharia et al. 2022, section 3).

    Args:
        config: `ModelConfig`; None: its defaults.
        arguments: fields of it, to be other than the config's.

    Inputs: x (N, in_channels, H, W), H and W divisible by `multiple`; gamma (N,), what tells the noise: its level in
        (0, 1], or what else the network was trained with, such as the step t (Dhariwal & Nichol); label (N,), int32 in
        [0, num_classes), for a class-conditional network; dropout (N, `dropout_numbers`), see `layers.Dropout`, or
        None: nothing is dropped; text (N, text_length, text_channels), for a network that takes one, see
        `palette_ms.unet.text`: tokens of zeros are padding, a text of zeros alone is none; source_noise (N,), in
        [0, 1], for a network that is told how noisy its source is.
    Output: (N, out_channels, H, W), float32.

    Raises:
        ValueError: a width that the heads do not divide, a size that `multiple` does not divide, local attention
            without just one way to say the blocks, or blocks for another attention.

    Examples:
        >>> from mindspore import ops
        >>> unet = UNet(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4,
        ...             attention_resolutions=())
        >>> unet.multiple
        2
        >>> unet(ops.zeros((1, 6, 4, 4)), ops.ones((1,))).shape
        (1, 3, 4, 4)
    """

    def __init__(self, config: Optional[ModelConfig] = None, **arguments: Any) -> None:
        super().__init__()
        config = dataclasses.replace(config or ModelConfig(), **arguments)
        check(config)
        self.out_channels = config.out_channels
        self.num_classes = config.num_classes
        self.patch_size = config.patch_size
        self.multiple = multiple(config)
        time_channels = 4 * config.base_channels

        def residual(c_in, c_out, resample=None, dilation=1):
            return ResidualBlock(c_in, c_out, time_channels, config.dropout, config.scale_shift, resample,
                                 config.norm_groups, dilation, config.kind == "efficient")

        def resampling(c_in, c_out, way):
            if resamples_by_blocks(config):
                return residual(c_in, c_out, way)
            return (UpsampleConv if way == "up" else DownsampleConv)(c_in, c_out)

        def build(step):
            if step.kind == "resampling":
                return resampling(step.c_in, step.c_out, step.resample)
            resample = resampling(step.c_out, step.c_out, step.resample) if step.resample else None
            block = None
            if step.attends:
                block = AttentionBlock(step.c_out, config.num_heads, config.num_head_channels, config.norm_groups,
                                       config.attention_blocks, config.attention_block_size,
                                       attention_width(config, step.c_out))
            reading = None
            if step.reads:
                reading = CrossAttention(step.c_out, text_width(config), config.num_heads, config.num_head_channels,
                                         config.norm_groups)
            return Stage(residual(step.c_in, step.c_out, dilation=step.dilation), block, resample, reading)

        down, middle, up = plan(config)
        self.time_embedding = TimeEmbedding(config.base_channels, time_channels)
        if config.num_classes:
            self.label_embedding = Parameter(initializer(Normal(1.0), (config.num_classes, time_channels)))
        self.takes_text, self.takes_source_noise = config.text_channels is not None, config.source_noise
        if self.takes_text:
            self.text_embedding = TextEmbedding(config, time_channels)
        if self.takes_source_noise:
            self.source_embedding = TimeEmbedding(config.base_channels, time_channels)
        self.conv_in = conv(config.in_channels * config.patch_size**2, down[0].c_in, 3)
        self.down = nn.CellList([build(step) for step in down])
        self.has_middle = len(middle) > 0
        if self.has_middle:
            self.middle1 = build(middle[0])
            self.middle2 = residual(middle[1].c_in, middle[1].c_out, dilation=middle[1].dilation)
        self.up = nn.CellList([build(step) for step in up])
        self.levels = [step.level for step in (*down, *middle, *up)]
        # How many of `down` stand at full size, and where those of `up` begin.
        self.finest = sum(step.kind == "stage" and step.level == 0 for step in down)
        self.finest_up = sum(step.level > 0 for step in up)
        self.keeps, self.joins = [step.keeps for step in down], [step.joins for step in up]
        self.is_efficient = config.kind == "efficient"
        channels = up[-1].c_out
        self.norm_out = GroupNorm(channels, config.norm_groups)
        self.act = Swish()
        self.conv_out = conv(channels, config.out_channels * config.patch_size**2, 3, zero=True)

        self.dropout_channels = 0  # numbers that the channels of all layers with dropout need
        for _, cell in self.cells_and_names():
            if isinstance(cell, Dropout) and cell.p:
                cell.start = self.dropout_channels
                self.dropout_channels += 2 * cell.channels

    def use_precision(self, dtype: Any) -> "UNet":
        """Compute convolutions, dense layers and attention in `dtype` (a MindSpore type).

        The weights, the normalisations' statistics, the softmax and the output stay float32.
        """
        for _, cell in self.cells_and_names():
            if isinstance(cell, (nn.Conv2d, nn.Dense, LowRank)):
                cell.to_float(dtype)
        return self

    def recompute_blocks(self, levels: int) -> "UNet":
        """In training, compute the residual and attention blocks of so many levels, from the finest, again in the
        backward pass rather than keep what they made (Chen et al. 2016, arXiv 1604.06174).

        Once only, before the network is first called.
        """
        middle = (self.middle1, self.middle2) if self.has_middle else ()
        for level, cell in zip(self.levels, (*self.down, *middle, *self.up)):
            if level < levels:
                for _, block in cell.cells_and_names():
                    if isinstance(block, (ResidualBlock, AttentionBlock, CrossAttention)):
                        block.recompute()
        return self

    def dropout_numbers(self, height: int, width: int) -> int:
        """How many random numbers a picture of that size takes in training; 0 without dropout."""
        return self.dropout_channels and self.dropout_channels + height * width // self.patch_size**2

    def construct(self, x, gamma, label=None, dropout=None, text=None, source_noise=None):
        return self.answer(x, gamma, label, dropout, None, text, source_noise)[0]

    def answer(self, x, gamma, label=None, dropout=None, deep=None, text=None, source_noise=None):
        """The output, and what comes up from the coarser levels to the finest one.

        Args:
            x, gamma, label, dropout, text, source_noise: as the inputs.
            deep: what came up for another noise level of the chain, taken in place of the coarser levels' work.

        Returns: (output, deep), deep (N, C, H / patch_size, W / patch_size).
        """
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(f"height and width must be multiples of {self.multiple}, not {x.shape[2:]}")
        emb = self.time_embedding(gamma)
        if self.num_classes:
            emb = emb + ops.gather(self.label_embedding, label, 0)
        if self.takes_source_noise:
            emb = emb + self.source_embedding(1000 * source_noise)
        seen = None
        if self.takes_text:
            tokens, outside, pooled = self.text_embedding(text)
            emb, seen = emb + pooled, (tokens, outside)
        h = self.conv_in(self.to_patches(x))
        skips = () if self.is_efficient else (h,)
        for i in range(self.finest):
            h = self.down[i](h, emb, dropout, seen)
            if self.keeps[i]:
                skips = skips + (h,)
        if deep is None:
            deep = self.coarser_levels(h, emb, dropout, seen)
        h = deep
        for i in range(self.finest_up, len(self.up)):
            if self.joins[i]:
                h, skips = self.join(h, skips[-1]), skips[:-1]
            h = self.up[i](h, emb, dropout, seen)
        h = self.conv_out(self.act(self.norm_out(h)))
        return self.from_patches(ops.cast(h, mstype.float32)), deep

    def coarser_levels(self, h, emb, dropout, seen):
        skips = ()
        for i in range(self.finest, len(self.down)):
            h = self.down[i](h, emb, dropout, seen)
            if self.keeps[i]:
                skips = skips + (h,)
        if self.has_middle:
            h = self.middle2(self.middle1(h, emb, dropout, seen), emb, dropout)
        for i in range(self.finest_up):
            if self.joins[i]:
                h, skips = self.join(h, skips[-1]), skips[:-1]
            h = self.up[i](h, emb, dropout, seen)
        return h

    def join(self, h, skip):
        return ops.concat((h, skip * math.sqrt(0.5) if self.is_efficient else skip), 1)

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
    """The answer of a `UNet`, or of a Cell around it with its `answer`, and its deep features."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def construct(self, x, gamma, label=None, dropout=None, text=None, source_noise=None):
        return self.unet.answer(x, gamma, label, dropout, None, text, source_noise)


class FinestLevel(nn.Cell):
    """The answer of a `UNet`, or of a Cell around it with its `answer`, to given deep features."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def construct(self, deep, x, gamma, label=None, dropout=None, text=None, source_noise=None):
        return self.unet.answer(x, gamma, label, dropout, deep, text, source_noise)[0]
