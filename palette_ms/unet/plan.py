"""Which blocks a U-Net consists of, in numbers: it is built from them, and its parameters, operations and memory are
counted from them without building it."""

from typing import NamedTuple, Optional


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
    """

    kind: str
    level: int
    c_in: int
    c_out: int
    attends: bool = False
    dilation: int = 1
    resample: Optional[str] = None


def plan(model):
    """The steps of a `UNet` with a `ModelConfig`: (way down, middle, way up).

    On the way up a step's `c_in` counts the skip connection that is concatenated to its input.
    """
    attends = model.attention in ("global", "local")

    def is_attended(level):
        return 2**level in model.attention_resolutions

    def residual_blocks(level):
        return model.num_res_blocks * (2 if is_attended(level) and not attends else 1)

    def stage(level, c_in, c_out, index, resample=None):
        """The block of that index in its level."""
        is_dilated = is_attended(level) and model.attention == "dilated"
        dilation = 2 ** (index % (2 * model.num_res_blocks)) if is_dilated else 1
        return Step("stage", level, c_in, c_out, attends and is_attended(level), dilation, resample)

    channels = int(model.base_channels * model.channel_mults[0])
    last = len(model.channel_mults) - 1
    down, skips = [], [channels]
    for level, mult in enumerate(model.channel_mults):
        for i in range(residual_blocks(level)):
            c_in, channels = channels, int(model.base_channels * mult)
            down.append(stage(level, c_in, channels, i))
            skips.append(channels)
        if level != last:
            down.append(Step("resampling", level, channels, channels, resample="down"))
            skips.append(channels)

    middle = [Step("stage", last, channels, channels, attends),
              Step("stage", last, channels, channels, dilation=2 if model.attention == "dilated" else 1)]

    up = []
    for level, mult in reversed(list(enumerate(model.channel_mults))):
        for i in range(residual_blocks(level) + 1):
            c_in, channels = channels + skips.pop(), int(model.base_channels * mult)
            ends_level = level != 0 and i == residual_blocks(level)
            up.append(stage(level, c_in, channels, i, "up" if ends_level else None))
    return down, middle, up
