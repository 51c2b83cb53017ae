"""Which blocks a U-Net consists of, in numbers: it is built from them, and its parameters, operations and memory are
counted from them without building it."""

from typing import NamedTuple, Optional

import numpy as np

from palette_ms.unet.config import ATTENTIONS


class Step(NamedTuple):
    """One step of a path: a stage (residual block, attention where it stands, resampling where the level ends), or
    resampling alone.

    Attributes:
        kind: "stage" or "resampling".
        level: of the input; a level's maps have half the height and width of those of the level before.
        c_in, c_out: channels.
        attends: attention follows the residual block.
        dilation: of the residual block.
        resample: "down", "up" or None.
        reads: the text is looked at after the residual block and self-attention.
        keeps: of the way down: what comes out is joined to the way up.
        joins: of the way up: what was kept last is joined to what comes in.
    """

    kind: str
    level: int
    c_in: int
    c_out: int
    attends: bool = False
    dilation: int = 1
    resample: Optional[str] = None
    reads: bool = False
    keeps: bool = False
    joins: bool = False


def plan(model):
    """The steps of a `UNet` with a `ModelConfig`: (way down, middle, way up).

    On the way up a step's `c_in` counts the skip connection that is concatenated to its input. What the first
    convolution makes is kept in front of all, if not in an efficient network.
    """
    if model.kind == "efficient":
        return _efficient(model)
    attends = model.attention in ("global", "local")

    def is_attended(level):
        return 2**level in model.attention_resolutions

    takes_text = model.text_channels is not None
    readers = model.attention_resolutions if model.text_resolutions is None else model.text_resolutions

    def residual_blocks(level):
        return blocks_of_level(model, level) * (2 if is_attended(level) and not attends else 1)

    def stage(level, c_in, c_out, index, resample=None, **joint):
        """The block of that index in its level."""
        is_dilated = is_attended(level) and model.attention == "dilated"
        dilation = 2 ** (index % (2 * blocks_of_level(model, level))) if is_dilated else 1
        return Step("stage", level, c_in, c_out, attends and is_attended(level), dilation, resample,
                    takes_text and 2**level in readers, **joint)

    channels = int(model.base_channels * model.channel_mults[0])
    last = len(model.channel_mults) - 1
    down, skips = [], [channels]
    for level, mult in enumerate(model.channel_mults):
        for i in range(residual_blocks(level)):
            c_in, channels = channels, int(model.base_channels * mult)
            down.append(stage(level, c_in, channels, i, keeps=True))
            skips.append(channels)
        if level != last:
            down.append(Step("resampling", level, channels, channels, resample="down", keeps=True))
            skips.append(channels)

    middle = [Step("stage", last, channels, channels, attends, reads=takes_text),
              Step("stage", last, channels, channels, dilation=2 if model.attention == "dilated" else 1)]

    up = []
    for level, mult in reversed(list(enumerate(model.channel_mults))):
        for i in range(residual_blocks(level) + 1):
            c_in, channels = channels + skips.pop(), int(model.base_channels * mult)
            ends_level = level != 0 and i == residual_blocks(level)
            up.append(stage(level, c_in, channels, i, "up" if ends_level else None, joins=True))
    return down, middle, up


def _efficient(model):
    """`plan` of an efficient network."""
    attends = model.attention in ("global", "local")
    readers = model.attention_resolutions if model.text_resolutions is None else model.text_resolutions
    widths = [int(model.base_channels * mult) for mult in model.channel_mults]

    def stages(level, c_in, **joint):
        count = blocks_of_level(model, level)
        for i in range(count):
            ends = i == count - 1
            yield Step("stage", level, c_in, widths[level],
                       ends and attends and 2**level in model.attention_resolutions,
                       reads=ends and model.text_channels is not None and 2**level in readers, **joint)

    down, up = [], []
    for level, width in enumerate(widths):
        if level:
            down.append(Step("resampling", level - 1, widths[level - 1], width, resample="down"))
        down += stages(level, width, keeps=True)
    for level, width in reversed(list(enumerate(widths))):
        up += stages(level, 2 * width, joins=True)
        if level:
            up.append(Step("resampling", level, width, widths[level - 1], resample="up"))
    return down, [], up


def blocks_of_level(model, level):
    """How many residual blocks the way down has there, but for more in place of attention."""
    return model.num_res_blocks if model.res_blocks is None else model.res_blocks[level]


def attention_width(model, channels):
    """Of all heads of self-attention together, over maps of so many channels."""
    return 2 * channels if model.kind == "efficient" else channels


def resamples_by_blocks(model):
    """Whether residual blocks change the size of maps, rather than convolutions."""
    return model.resblock_updown and model.kind == "unet"


def multiple(model):
    """What height and width of a picture must be multiples of, for a network with a `ModelConfig`."""
    return model.patch_size * 2 ** (len(model.channel_mults) - 1)


def heads(channels, num_heads=1, num_head_channels=None):
    """How many heads an attention over so many channels has, see `ModelConfig`.

    Raises:
        ValueError: the channels cannot be divided among them.
    """
    if num_head_channels:
        num_heads = channels // num_head_channels
    if num_heads < 1 or channels % num_heads or (num_head_channels and channels % num_head_channels):
        wanted = f"heads of {num_head_channels} channels" if num_head_channels else f"{num_heads} heads"
        raise ValueError(f"attention over {channels} channels cannot be divided into {wanted}")
    return num_heads


def check(model):
    """Raises ValueError unless a network can be as a `ModelConfig` says: local attention is said in just one way,
    blocks are for no other attention, and the heads divide the channels."""
    ways = [way for way in (model.attention_blocks, model.attention_block_size) if way is not None]
    is_local = model.attention == "local"
    if model.attention not in ATTENTIONS or len(ways) != is_local or min(ways, default=1) < 1:
        raise ValueError(f"attention is one of {', '.join(ATTENTIONS)}; local alone takes, and needs, either "
                         "attention_blocks or attention_block_size, at least 1")
    if model.text_channels is not None:
        if min(model.text_channels, model.text_length, text_width(model)) < 1 or model.text_blocks < 0:
            raise ValueError("text_channels, text_length and text_width must be above 0, and text_blocks not below")
        if not model.text_blocks and model.text_width is not None:
            raise ValueError("text_width is that of text_blocks, and there are none")
        if model.text_blocks:
            heads(text_width(model), model.num_heads, model.num_head_channels)
    blocks = model.res_blocks
    if blocks is not None and (len(blocks) != len(model.channel_mults) or min(blocks) < (model.kind == "unet")
                               or not sum(blocks)):
        raise ValueError("res_blocks is a number for each level, at least 1; of an efficient network at least 0, and "
                         "not 0 for all")
    if model.kind == "efficient" and model.attention == "dilated":
        raise ValueError("attention: dilated is not for an efficient network")
    down, middle, up = plan(model)
    for step in (*down, *middle, *up):
        if step.attends:
            heads(attention_width(model, step.c_out), model.num_heads, model.num_head_channels)
        if step.reads:
            heads(step.c_out, model.num_heads, model.num_head_channels)


def text_width(model):
    """Of the tokens as the network's positions look at them."""
    return model.text_width or model.text_channels


def block_edges(length, count, size):
    """Where the blocks begin that an axis is cut into, and where the last one ends.

    Args:
        length: positions of the axis.
        count: number of blocks, which differ by at most one position; a shorter axis is cut into single positions.
        size: positions of a block, if not `count`; the last block has what is left.
    """
    if size:
        return [*range(0, length, size), length]
    count = min(count, length)
    return [i * length // count for i in range(count + 1)]


def block_shape(height, width, blocks, block_size):
    """What attention is within, in a map of that size: (number of blocks, positions of each, with padding).

    Args:
        blocks, block_size: of `AttentionBlock`; where both are None, the map is the only block.
    """
    if blocks is None and block_size is None:
        return 1, height * width
    rows, columns = (np.diff(block_edges(side, blocks, block_size)) for side in (height, width))
    return len(rows) * len(columns), int(rows.max() * columns.max())
