"""Residual and attention blocks (Dhariwal & Nichol 2021, section 3)."""

from typing import Optional

from mindspore import nn, ops

from palette_ms.unet.layers import (
    DotProductAttention,
    Downsample,
    Dropout,
    GroupNorm,
    Swish,
    Upsample,
    conv,
    merge_blocks,
    split_blocks,
)
from palette_ms.unet.plan import heads


class ResidualBlock(nn.Cell):
    """norm–Swish–conv, the time embedding, norm–Swish–dropout–conv, added to the input.

    Args:
        in_channels: C of the input.
        out_channels: C' of the output; where it differs from C the skip is a 1×1 convolution.
        time_channels: E, width of the time embedding.
        dropout: probability of a zero before the last convolution, see `layers.Dropout`.
        scale_shift: the embedding scales and shifts the second norm's output (AdaGN) rather than being added
            before it.
        resample: None, "up" or "down": both branches are doubled (nearest) or halved (average) in size.
        norm_groups: groups of the normalisations.
        dilation: of both 3×3 convolutions.
        conv_skip: the skip is a 1×1 convolution even where C' is C.

    Inputs: x (N, C, H, W), emb (N, E), numbers (N, K) for the dropout or None; text is not used.
    Output: (N, C', H', W').

    Examples:
        >>> block = ResidualBlock(4, 8, time_channels=16, resample="down", norm_groups=4)
        >>> block(ops.ones((1, 4, 6, 6)), ops.ones((1, 16))).shape
        (1, 8, 3, 3)
    """

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, dropout: float = 0.0,
                 scale_shift: bool = True, resample: Optional[str] = None, norm_groups: int = 32,
                 dilation: int = 1, conv_skip: bool = False) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = GroupNorm(in_channels, norm_groups)
        self.act = Swish()
        self.resample = {None: nn.Identity, "up": Upsample, "down": Downsample}[resample]()
        self.conv1 = conv(in_channels, out_channels, 3, dilation=dilation)
        self.time = nn.Dense(time_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = GroupNorm(out_channels, norm_groups)
        self.dropout = Dropout(out_channels, dropout)
        self.conv2 = conv(out_channels, out_channels, 3, zero=True, dilation=dilation)
        has_conv = conv_skip or in_channels != out_channels
        self.skip = conv(in_channels, out_channels, 1) if has_conv else nn.Identity()

    def construct(self, x, emb, numbers=None, text=None):
        h = self.conv1(self.resample(self.act(self.norm1(x))))
        emb = self.time(self.act(emb))
        if self.scale_shift:
            scale, shift = ops.chunk(emb, 2, 1)
            h = self.norm2(h, scale, shift)
        else:
            h = self.norm2(h + emb.reshape((emb.shape[0], -1, 1, 1)))
        h = self.conv2(self.dropout(self.act(h), numbers))
        return self.skip(self.resample(x)) + h


class AttentionBlock(nn.Cell):
    """Multi-head self-attention, added to the input: over all positions, or within non-overlapping blocks of them.

    Blocks that differ in size are padded for the computation: padded positions are neither attended to nor in the
    output. The normalisation sees the whole map in any case.

    Args:
        channels: C.
        num_heads: number of heads; not used where `num_head_channels` is given.
        num_head_channels: channels of a head; must divide C.
        norm_groups: groups of the normalisation.
        blocks: local: cut maps of any size into blocks × blocks, whose sides differ by at most one position.
        block_size: local, if not `blocks`: cut maps into blocks of block_size × block_size positions, from the upper
            left corner; the last ones have what is left.
        width: of all heads together, which they must divide; None: C.

    Inputs: x (N, C, H, W). Output: as x.

    Raises:
        ValueError: C cannot be divided among the heads.

    Examples:
        >>> attention = AttentionBlock(8, num_head_channels=4, norm_groups=4)
        >>> attention.num_heads
        2
        >>> x = ops.ones((1, 8, 2, 2))
        >>> bool((attention(x) == x).all())  # as it begins, it adds nothing
        True
    """

    def __init__(self, channels: int, num_heads: int = 1, num_head_channels: Optional[int] = None,
                 norm_groups: int = 32, blocks: Optional[int] = None, block_size: Optional[int] = None,
                 width: Optional[int] = None) -> None:
        super().__init__()
        self.width = width or channels
        self.num_heads = heads(self.width, num_heads, num_head_channels)
        self.blocks = blocks
        self.block_size = block_size
        self.is_local = blocks is not None or block_size is not None
        self.norm = GroupNorm(channels, norm_groups)
        self.qkv = conv(channels, 3 * self.width, 1)
        self.attend = DotProductAttention()
        self.proj = conv(self.width, channels, 1, zero=True)

    def construct(self, x):
        c, height, width = self.width, x.shape[2], x.shape[3]
        qkv, outside = self.qkv(self.norm(x)), None
        if self.is_local:
            qkv, outside = split_blocks(qkv, self.blocks, self.block_size)
        maps, _, h, w = qkv.shape
        qkv = qkv.reshape((maps, 3, self.num_heads, c // self.num_heads, h * w))
        y = self.attend(qkv[:, 0], qkv[:, 1], qkv[:, 2], outside).reshape((maps, c, h, w))
        if self.is_local:
            y = merge_blocks(y, height, width, self.blocks, self.block_size)
        return x + self.proj(y)
