"""What a U-Net costs, block by block: counted from its plan, so that nothing is built."""

from typing import NamedTuple, Optional

from palette_ms.unet.plan import attention_width, block_shape, heads, multiple, plan, resamples_by_blocks, text_width

_FLOAT32 = 4


class Cost(NamedTuple):
    """Of one block; all but the parameters for one picture.

    Attributes:
        name: what it is and where, a text.
        level: that it belongs to; 0 is the finest.
        parameters: their number.
        operations: multiplications and additions of convolutions, dense layers and attention in a forward pass.
        kept: bytes that its forward pass leaves for the backward pass.
        passed: bytes of it that are left where the block is recomputed, its input above all; None: it never is.
        largest: bytes of its largest tensor.
    """

    name: str
    level: int
    parameters: int
    operations: int
    kept: int
    passed: Optional[int] = None
    largest: int = 0


def costs(model, size, value_bytes=4):
    """A `Cost` for each block of a `UNet`, in the order of the forward pass.

    What is kept are the inputs of every operator whose derivative needs them, as `unet.layers` and `unet.blocks` write
    them down: normalisation and softmax in float32, the rest at the precision. A compiler that fuses operators keeps
    less, as does Ascend's fused attention, which never holds the weights.

    Args:
        model: `ModelConfig`.
        size: height and width of the pictures.
        value_bytes: of a value at the training's precision, 4 or 2.
    """
    counting = _Counting(model, value_bytes)
    down, middle, up = plan(model)
    side = size // model.patch_size
    patch = model.patch_size**2
    found = [counting.embedding(), *counting.text(),
             counting.convolution("first convolution", 0, model.in_channels * patch, down[0].c_in, side, side)]
    for step in (*down, *middle, *up):
        here = side >> step.level
        if step.kind == "stage":
            found.append(counting.residual(step.level, step.c_in, step.c_out, here, here))
        if step.attends:
            found.append(counting.attention(step.level, step.c_out, here))
        if step.reads:
            found.append(counting.reading(step.level, step.c_out, here))
        if step.resample:
            there = here * 2 if step.resample == "up" else here // 2
            if resamples_by_blocks(model):
                found.append(counting.residual(step.level, step.c_out, step.c_out, here, there))
            else:
                found.append(counting.convolution("resampling", step.level,
                                                  step.c_in if step.kind == "resampling" else step.c_out, step.c_out,
                                                  max(here, there), there))
    found.append(counting.output(up[-1].c_out, model.out_channels * patch, side))
    return found


def activations(found, recomputed=0):
    """(bytes that the forward pass leaves for the backward pass, bytes that the largest block needs at work besides),
    of one picture.

    At work on a block the backward pass holds gradients of what the forward pass made there, taken as as many bytes as
    the block keeps; where the block is recomputed, what is recomputed comes on top.

    Args:
        found: what `costs` returned.
        recomputed: the blocks of so many levels, from the finest, are computed again in the backward pass.
    """
    kept = work = 0
    for cost in found:
        again = cost.passed is not None and cost.level < recomputed
        kept += cost.passed if again else cost.kept
        work = max(work, cost.kept * (2 if again else 1))
    return kept, work


def attention_bytes(model, height, width):
    """Bytes of the largest attention layer's weights for one picture: heads · queries · keys · 4, padding included.

    They are float32 at the softmax in any precision. Ascend's fused operator never holds them.

    Args:
        model: `ModelConfig`.
        height, width: of the picture, up to the next that the network divides.

    Returns: int; 0 for a network without attention.
    """
    largest = 0
    height, width = (-(-side // multiple(model)) * multiple(model) // model.patch_size for side in (height, width))
    down, middle, _ = plan(model)
    for step in (*down, *middle):
        if step.attends:
            count, positions = block_shape(height >> step.level, width >> step.level, model.attention_blocks,
                                           model.attention_block_size)
            number = heads(attention_width(model, step.c_out), model.num_heads, model.num_head_channels)
            largest = max(largest, 4 * count * number * positions**2)
    return largest


class _Counting:
    def __init__(self, model, value_bytes):
        self.model = model
        self.bytes = value_bytes
        self.time_channels = 4 * model.base_channels

    def normalised(self, values):
        """Normalisation and Swish: centred and normalised values in float32, then x and its sigmoid."""
        return (2 * _FLOAT32 + 2 * self.bytes) * values

    def embedding(self):
        base, time = self.model.base_channels, self.time_channels
        weights = base * time + time * time
        count = 2 if self.model.source_noise else 1
        return Cost("time embedding", 0, count * (weights + 2 * time) + (self.model.num_classes or 0) * time,
                    2 * count * weights, count * (base + 3 * time) * self.bytes)

    def text(self):
        """A `Cost` for what is made of a text before the first level, and for each transformer block."""
        model, time = self.model, self.time_channels
        if model.text_channels is None:
            return []
        width, length = text_width(model), model.text_length + 1
        pooling = width * time + time * time
        parameters, operations = width + 2 * width + pooling + 2 * time, 2 * pooling
        kept = _FLOAT32 * (model.text_length * model.text_channels + 3 * length * width)
        if model.text_blocks:
            dense = model.text_channels * width
            parameters += dense + width + model.text_length * width
            operations += 2 * dense * model.text_length
        found = [Cost("text embedding", 0, parameters, operations, kept, largest=_FLOAT32 * length * width)]
        count = heads(width, model.num_heads, model.num_head_channels) if model.text_blocks else 1
        weights = count * length**2
        # Two normalisations; queries, keys and values; the softmax; the perceptron's wider layer before and after GELU.
        block = Cost(f"transformer block, {length} tokens of {width}", 0, 12 * width * width + 13 * width,
                     2 * 12 * width * width * length + 4 * width * length**2,
                     (4 * _FLOAT32 + 14 * self.bytes) * width * length + (_FLOAT32 + self.bytes) * weights,
                     largest=_FLOAT32 * max(weights, 4 * width * length))
        return found + [block] * model.text_blocks

    def reading(self, level, channels, side):
        model, width, length = self.model, text_width(self.model), self.model.text_length + 1
        values, count = channels * side**2, heads(channels, model.num_heads, model.num_head_channels)
        weights = count * side**2 * length
        maps, dense = 2 * channels * channels, 2 * width * channels
        kept = ((2 * _FLOAT32 + 3 * self.bytes) * values + (2 * _FLOAT32 * width + 2 * self.bytes * channels) * length
                + (_FLOAT32 + self.bytes) * weights)
        return Cost(f"attention to the text, {count} heads, {side}×{side} positions", level,
                    maps + 2 * channels + dense + 2 * channels + 2 * channels + 2 * width,
                    2 * (maps * side**2 + dense * length) + 4 * channels * side**2 * length, kept,
                    self.bytes * values, _FLOAT32 * max(weights, values))

    def convolution(self, name, level, c_in, c_out, side_in, side_out):
        weights, kept = 9 * c_in * c_out, self.bytes * c_in * side_in**2
        return Cost(f"{name}, {c_in} to {c_out} channels, {side_out}×{side_out}", level, weights + c_out,
                    2 * weights * side_out**2, kept, largest=self.bytes * max(c_in * side_in**2, c_out * side_out**2))

    def residual(self, level, c_in, c_out, side_in, side_out):
        before, after = c_in * side_in**2, c_out * side_out**2
        resampled = c_in * side_out**2
        first, second = 9 * c_in * c_out, 9 * c_out * c_out
        skip = c_in * c_out if c_in != c_out or self.model.kind == "efficient" else 0
        conditions = c_out * (2 if self.model.scale_shift else 1)
        dense = self.time_channels * conditions
        kept = (self.normalised(before) + self.normalised(after)
                + self.bytes * (resampled + after + (after if self.model.dropout else 0)
                                + (resampled if skip else 0)))
        return Cost(f"residual block, {c_in} to {c_out} channels, {side_out}×{side_out}", level,
                    first + second + skip + dense + conditions + 2 * c_in + (4 + bool(skip)) * c_out,
                    2 * ((first + second + skip) * side_out**2 + dense), kept, self.bytes * before,
                    _FLOAT32 * max(before, after))

    def attention(self, level, channels, side):
        model, values, width = self.model, channels * side**2, attention_width(self.model, channels)
        number = heads(width, model.num_heads, model.num_head_channels)
        wide = width * side**2
        count, positions = block_shape(side, side, model.attention_blocks, model.attention_block_size)
        weights = count * number * positions**2
        # Of the normalisation no Swish; queries, keys and values; the weights as softmax gives them and as they are
        # multiplied; the input of the last convolution.
        kept = (2 * _FLOAT32 + self.bytes) * values + 4 * self.bytes * wide + (_FLOAT32 + self.bytes) * weights
        return Cost(f"attention, {number} heads, {side}×{side} positions", level,
                    4 * channels * width + 3 * width + 3 * channels,
                    2 * 4 * channels * width * side**2 + 4 * width * count * positions**2,
                    kept, self.bytes * values, _FLOAT32 * max(weights, values))

    def output(self, c_in, c_out, side):
        values, weights = c_in * side**2, 9 * c_in * c_out
        return Cost(f"last convolution, {c_in} to {c_out} channels, {side}×{side}", 0, 2 * c_in + weights + c_out,
                    2 * weights * side**2, self.normalised(values) + self.bytes * values, largest=_FLOAT32 * values)
