"""The U-Net as an ONNX graph, written node by node from its plan: any batch, height and width.

It says what `palette_ms.unet.unet.UNet` says, whose lines it follows; the tests hold it to that Cell. The graph itself
is some kilobytes: weights are named in it, and whoever runs it brings them (see `palette_ms.unet.runtimes`).
"""

import math

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from palette_ms.unet.plan import attention_width, heads, plan, resamples_by_blocks, text_width

OPSET = 17
_IR_VERSION = 8  # the oldest that has this opset: runtimes of 2022 and later read it
_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64,
          np.dtype(np.int32): TensorProto.INT32}


class Value:
    """A tensor of a `Graph`, to be written with as with an array."""

    def __init__(self, graph, name, dtype=np.float32):
        self.graph, self.name, self.dtype = graph, name, dtype

    def __add__(self, other):
        return self.graph.op("Add", self, other)

    def __sub__(self, other):
        return self.graph.op("Sub", self, other)

    def __mul__(self, other):
        return self.graph.op("Mul", self, other)

    def __truediv__(self, other):
        return self.graph.op("Div", self, other)

    def __radd__(self, other):
        return self.graph.op("Add", other, self, dtype=self.dtype)

    def __rsub__(self, other):
        return self.graph.op("Sub", other, self, dtype=self.dtype)

    def __rmul__(self, other):
        return self.graph.op("Mul", other, self, dtype=self.dtype)

    def __pow__(self, exponent):
        return self.graph.op("Pow", self, exponent)

    def reshape(self, *shape):
        """As ONNX's Reshape: −1 is what is left, 0 the same axis of this one; or `side`s."""
        if any(isinstance(side, Value) for side in shape):
            sides = [side if isinstance(side, Value) else np.int64([side]) for side in shape]
            return self.graph.op("Reshape", self, self.graph.op("Concat", *sides, axis=0, dtype=np.int64))
        return self.graph.op("Reshape", self, np.int64(shape))

    def transpose(self, *axes):
        return self.graph.op("Transpose", self, perm=axes)

    def side(self, axis):
        """The length of an axis, int64 (1,)."""
        return self.graph.op("Slice", self.graph.op("Shape", self, dtype=np.int64),
                             *(np.int64([place]) for place in (axis, axis + 1, 0)), dtype=np.int64)


class Graph:
    """What is written so far.

    Attributes:
        weights: shapes of the weights that it takes, by the names of the Cell's parameters.
        input_names: of its inputs, in order.
    """

    def __init__(self):
        self.weights, self.input_names = {}, []
        self._nodes, self._inputs, self._constants = [], [], {}

    def input(self, name, shape, dtype=np.float32):
        """An input; axes that are free have a name in place of a number."""
        self.input_names.append(name)
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], shape))
        return Value(self, name, dtype)

    def weight(self, name, *shape):
        self.weights[name] = shape
        return Value(self, name)

    def op(self, kind, *inputs, dtype=None, outputs=1, **attributes):
        """A node. Inputs that are numbers become constants of the others' type."""
        first = next((one for one in inputs if isinstance(one, Value)), None)
        dtype = dtype or (first.dtype if first else np.float32)
        names = [one.name if isinstance(one, Value) else self._constant(one, dtype) for one in inputs]
        made = [f"{kind}_{len(self._nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, names, made, **attributes))
        values = [Value(self, name, dtype) for name in made]
        return values[0] if outputs == 1 else values

    def _constant(self, value, dtype):
        array = np.asarray(value, getattr(value, "dtype", dtype))
        key = array.tobytes(), array.dtype.str, array.shape
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"constant_{len(self._constants)}")
        return self._constants[key].name

    def concat(self, values):
        return self.op("Concat", *values, axis=1)

    def channels(self, value, start, stop):
        """Those from `start` on and before `stop`, of axis 1."""
        return self.op("Slice", value, *(np.int64([place]) for place in (start, stop, 1)))

    def sqrt(self, value):
        return self.op("Sqrt", value)

    def acos(self, value):
        return self.op("Acos", value)

    def model(self, outputs, weights="external"):
        """The `onnx.ModelProto`.

        Args:
            outputs: {name: (`Value`, shape)}.
            weights: how it has them. "external": as initializers whose values lie outside and are given to whoever
                opens it; "inputs": as further inputs; or arrays by name, which are put into it.
        """
        ends = [helper.make_node("Identity", [value.name], [name]) for name, (value, _) in outputs.items()]
        told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, (_, shape) in outputs.items()]
        inputs, constants = list(self._inputs), list(self._constants.values())
        if weights == "inputs":
            inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                       for name, shape in self.weights.items()]
        elif weights == "external":
            constants += [_outside(name, shape) for name, shape in self.weights.items()]
        else:
            constants += [numpy_helper.from_array(np.ascontiguousarray(weights[name], np.float32), name)
                          for name in self.weights]
        graph = helper.make_graph(self._nodes + ends, "unet", inputs, told, constants)
        return helper.make_model(graph, producer_name="palette_ms", ir_version=_IR_VERSION,
                                 opset_imports=[helper.make_opsetid("", OPSET)])


def _outside(name, shape):
    """An initializer without its values."""
    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights")
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="length", value=str(4 * math.prod(shape)))
    return tensor


def waves(told, base_channels):
    """The sines and cosines of a `TimeEmbedding`, float32 (N, base_channels), of what tells the noise, (N,)."""
    angles = np.float32(told)[:, None] * _frequencies(base_channels)
    return np.pad(np.concatenate((np.cos(angles), np.sin(angles)), 1), ((0, 0), (0, base_channels % 2)))


def _frequencies(base_channels):
    half = base_channels // 2
    return np.exp(-math.log(10000.0) * np.arange(half) / half).astype(np.float32)[None]


def write(config, around=None, part=None, takes_waves=False):
    """The graph of a network.

    Inputs: x (N, in_channels, H, W), gamma (N,), and where the network takes them label (N,), int32, text
    (N, text_length, text_channels) and source_noise (N,); the part "finest" takes deep (N, C, h, w) before them.
    Outputs: output (N, out_channels, H, W), of the part "whole" deep too.

    Args:
        config: `ModelConfig`.
        around: what stands around the network, see `palette_ms.diffusion.preconditioning.around_network`; None:
            nothing.
        part: None, "whole" or "finest", see `palette_ms.unet.unet.UNet.answer`.
        takes_waves: in place of gamma it takes its `waves`, (N, base_channels), and in place of source_noise those of
            1000 times that, as source_waves.

    Returns: (`Graph`, outputs as of `Graph.model`).

    Raises:
        ValueError: heads that do not divide the channels.
    """
    graph = Graph()
    deep = None
    if part == "finest":
        down, middle, up = plan(config)
        coarser = [step for step in (*middle, *up[:_finest_up(config)])] or [down[-1]]
        deep = graph.input("deep", ("N", coarser[-1].c_out, "h", "w"))
    x = graph.input("x", ("N", config.in_channels, "H", "W"))
    gamma = graph.input("waves", ("N", config.base_channels)) if takes_waves else graph.input("gamma", ("N",))
    label = graph.input("label", ("N",), np.int32) if config.num_classes else None
    text = source_noise = None
    if config.text_channels is not None:
        text = graph.input("text", ("N", config.text_length, config.text_channels))
    if config.source_noise:
        source_noise = graph.input(*(("source_waves", ("N", config.base_channels)) if takes_waves else
                                     ("source_noise", ("N",))))

    def answer(x, told):
        return _Network(graph, config, takes_waves).answer(x, told, label, deep, text, source_noise)

    output, deep = around(graph, answer, x, gamma) if around else answer(x, gamma)
    outputs = {"output": (output, ("N", config.out_channels, "H", "W"))}
    if part == "whole":
        outputs["deep"] = deep, ("N", None, "h", "w")
    return graph, outputs


def _finest(config):
    """How many steps of the way down stand at full size."""
    return sum(step.kind == "stage" and step.level == 0 for step in plan(config)[0])


def _finest_up(config):
    """Where the steps of the way up begin that stand there."""
    return sum(step.level > 0 for step in plan(config)[2])


def shapes(config):
    """Those of a network's weights, by the names of the Cell's parameters."""
    return write(config)[0].weights


class _Network:
    """The network's blocks, as `palette_ms.unet.unet`, `blocks` and `layers` have them; names are those of the Cell's
    parameters."""

    def __init__(self, graph, config, takes_waves):
        self.graph, self.config, self.takes_waves = graph, config, takes_waves
        self.op = graph.op
        self.time_channels = 4 * config.base_channels

    def answer(self, x, told, label, deep, text, source_noise):
        config = self.config
        down, middle, up = plan(config)
        finest, finest_up = _finest(config), _finest_up(config)
        emb = self.embedding(told, label)
        if source_noise is not None:
            emb = emb + self.waves("source_embedding", source_noise if self.takes_waves else 1000 * source_noise)
        if text is not None:
            emb = emb + self.text(text)
        emb = self.swish(emb)  # every block begins with it
        patch = config.patch_size**2
        h = self.conv("conv_in", self.to_patches(x), config.in_channels * patch, down[0].c_in)
        skips = [] if config.kind == "efficient" else [h]

        def descend(h, start, stop):
            for i, step in enumerate(down[start:stop], start):
                h = self.step(f"down.{i}", step, h, emb)
                if step.keeps:
                    skips.append(h)
            return h

        def ascend(h, start, stop):
            for i, step in enumerate(up[start:stop], start):
                if step.joins:
                    skip = skips.pop()
                    h = self.graph.concat((h, skip * math.sqrt(0.5) if config.kind == "efficient" else skip))
                h = self.step(f"up.{i}", step, h, emb)
            return h

        h = descend(h, 0, finest)
        if deep is None:
            h = descend(h, finest, len(down))
            if middle:
                h = self.step("middle1", middle[0], h, emb)
                h = self.residual("middle2", h, emb, middle[1].c_in, middle[1].c_out, dilation=middle[1].dilation)
            deep = ascend(h, 0, finest_up)
        h = ascend(deep, finest_up, len(up))
        channels = up[-1].c_out
        h = self.swish(self.norm("norm_out", h, channels))
        h = self.conv("conv_out", h, channels, config.out_channels * patch)
        if patch > 1:
            h = self.op("DepthToSpace", h, blocksize=config.patch_size, mode="CRD")
        return h, deep

    def embedding(self, told, label):
        emb = self.waves("time_embedding", told)
        if self.config.num_classes:
            table = self.graph.weight("label_embedding", self.config.num_classes, self.time_channels)
            emb = emb + self.op("Gather", table, label, axis=0)
        return emb

    def waves(self, name, told):
        """A `TimeEmbedding`."""
        base, emb = self.config.base_channels, told
        if not self.takes_waves:
            angles = told.reshape(-1, 1) * _frequencies(base)
            emb = self.graph.concat((self.op("Cos", angles), self.op("Sin", angles)))
            if base % 2:
                emb = self.op("Pad", emb, np.int64([0, 0, 0, 1]))
        emb = self.swish(self.dense(f"{name}.dense1", emb, base, self.time_channels))
        return self.dense(f"{name}.dense2", emb, self.time_channels, self.time_channels)

    def text(self, text):
        """What is made of a text once: `self.tokens` (N, 1 + L, W) and `self.hidden` (N, 1, 1, 1 + L), 1 for padding,
        are kept; what is added to the time embedding is returned."""
        config, width = self.config, text_width(self.config)
        name, first = "text_embedding", np.int64([0, 1, 0, 0, 0, 0])
        sizes = self.op("ReduceSum", self.op("Abs", text), np.int64([2]), keepdims=1)
        hidden = self.op("Cast", self.op("Equal", sizes, 0.0), to=TensorProto.FLOAT, dtype=np.float32)
        hidden = self.op("Pad", hidden, first)  # (N, 1 + L, 1)
        if config.text_blocks:
            text = self.dense3(f"{name}.dense", text, config.text_channels, width)
            text = text + self.graph.weight(f"{name}.positions", 1, config.text_length, width)
        null = self.op("Expand", self.graph.weight(f"{name}.null", 1, 1, width),
                       self.op("Concat", text.side(0), np.int64([1, 1]), axis=0, dtype=np.int64))
        tokens = self.graph.concat((null, text))
        self.hidden = hidden.reshape(0, 1, 1, -1)
        for i in range(config.text_blocks):
            tokens = self.transformer(f"{name}.blocks.{i}", tokens, width)
        self.tokens, shown = tokens, 1.0 - hidden
        mean = self.op("ReduceSum", self.layer_norm(f"{name}.norm", tokens, width) * shown, np.int64([1]), keepdims=0)
        mean = mean / self.op("ReduceSum", shown, np.int64([1]), keepdims=0)
        emb = self.swish(self.dense(f"{name}.dense1", mean, width, self.time_channels))
        return self.dense(f"{name}.dense2", emb, self.time_channels, self.time_channels)

    def transformer(self, name, x, width):
        count = heads(width, self.config.num_heads, self.config.num_head_channels)
        y = self.dense3(f"{name}.qkv", self.layer_norm(f"{name}.norm1", x, width), width, 3 * width)
        q, k, v = self.op("Split", y.reshape(0, 0, 3 * count, width // count).transpose(0, 2, 3, 1), axis=1, outputs=3)
        y = self.attend(q, k, v, width // count, self.hidden).reshape(0, width, -1).transpose(0, 2, 1)
        x = x + self.dense3(f"{name}.proj", y, width, width)
        y = self.dense3(f"{name}.dense1", self.layer_norm(f"{name}.norm2", x, width), width, 4 * width)
        y = 0.5 * y * (1.0 + self.op("Tanh", math.sqrt(2 / math.pi) * (y + 0.044715 * y**3.0)))
        return x + self.dense3(f"{name}.dense2", y, 4 * width, width)

    def reading(self, name, x, channels):
        """A `CrossAttention`."""
        config, width = self.config, text_width(self.config)
        count = heads(channels, config.num_heads, config.num_head_channels)
        q = self.conv(f"{name}.q", self.norm(f"{name}.norm", x, channels), channels, channels, kernel=1)
        kv = self.dense3(f"{name}.kv", self.layer_norm(f"{name}.norm_text", self.tokens, width), width, 2 * channels)
        kv = kv.reshape(0, 0, 2 * count, channels // count).transpose(0, 2, 3, 1)
        k, v = self.op("Split", kv, axis=1, outputs=2)
        y = self.attend(q.reshape(0, count, channels // count, -1), k, v, channels // count, self.hidden)
        y = y.reshape(-1, channels, x.side(2), x.side(3))
        return x + self.conv(f"{name}.proj", y, channels, channels, kernel=1)

    def attend(self, q, k, v, size, hidden=None):
        """(N, heads, size, L) of q, k and v → as q; hidden: 1 for keys that none attends to."""
        weights = self.op("MatMul", (q * (1 / math.sqrt(size))).transpose(0, 1, 3, 2), k)
        if hidden is not None:
            weights = weights - 1e30 * hidden
        return self.op("MatMul", v, self.op("Softmax", weights, axis=-1).transpose(0, 1, 3, 2))

    def layer_norm(self, name, x, channels):
        return self.op("LayerNormalization", x, self.graph.weight(f"{name}.weight", channels),
                       self.graph.weight(f"{name}.bias", channels), axis=-1, epsilon=1e-5)

    def dense3(self, name, x, c_in, c_out):
        """A dense layer over the last of three axes."""
        weight = self.graph.weight(f"{name}.weight", c_out, c_in).transpose(1, 0)
        return self.op("MatMul", x, weight) + self.graph.weight(f"{name}.bias", c_out)

    def to_patches(self, x):
        p = self.config.patch_size
        if p == 1:
            return x
        # A channel at a time, since SpaceToDepth puts a patch's pixels before the channels.
        patches = self.op("SpaceToDepth", x.reshape(-1, 1, 0, 0), blocksize=p)
        return patches.reshape(-1, self.config.in_channels * p * p, 0, 0)

    def step(self, name, step, h, emb):
        if step.kind == "resampling":
            return self.resampling(name, step, h, emb)
        h = self.residual(f"{name}.residual", h, emb, step.c_in, step.c_out, dilation=step.dilation)
        if step.attends:
            h = self.attention(f"{name}.attention", h, step.c_out)
        if step.reads:
            h = self.reading(f"{name}.reading", h, step.c_out)
        return self.resampling(f"{name}.resample", step, h, emb) if step.resample else h

    def resampling(self, name, step, h, emb):
        if resamples_by_blocks(self.config):
            return self.residual(name, h, emb, step.c_out, step.c_out, step.resample)
        c_in = step.c_in if step.kind == "resampling" else step.c_out
        if step.resample == "up":
            return self.conv(f"{name}.conv", self.resampled(h, "up"), c_in, step.c_out)
        return self.conv(f"{name}.conv", h, c_in, step.c_out, stride=2)

    def residual(self, name, x, emb, c_in, c_out, resample=None, dilation=1):
        h = self.resampled(self.swish(self.norm(f"{name}.norm1", x, c_in)), resample)
        h = self.conv(f"{name}.conv1", h, c_in, c_out, dilation=dilation)
        conditions = 2 * c_out if self.config.scale_shift else c_out
        emb = self.dense(f"{name}.time", emb, self.time_channels, conditions)
        if self.config.scale_shift:
            scale, shift = (self.graph.channels(emb, start, start + c_out) for start in (0, c_out))
            h = self.norm(f"{name}.norm2", h, c_out, scale, shift)
        else:
            h = self.norm(f"{name}.norm2", h + emb.reshape(-1, c_out, 1, 1), c_out)
        h = self.conv(f"{name}.conv2", self.swish(h), c_out, c_out, dilation=dilation)
        x = self.resampled(x, resample)
        is_same = c_in == c_out and self.config.kind == "unet"
        return h + (x if is_same else self.conv(f"{name}.skip", x, c_in, c_out, kernel=1))

    def attention(self, name, x, channels):
        config, inner = self.config, attention_width(self.config, channels)
        count = heads(inner, config.num_heads, config.num_head_channels)
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm", x, channels), channels, 3 * inner, kernel=1)
        height, width = x.side(2), x.side(3)
        if config.attention == "local":
            blocks = _Blocks(self.graph, height, width, config)
            qkv = self.op("Gather", qkv.reshape(0, 3 * inner, -1).transpose(0, 2, 1), blocks.shown, axis=1)
            qkv = qkv.reshape(-1, blocks.positions, 3 * count, inner // count).transpose(0, 2, 3, 1)
        else:
            qkv = qkv.reshape(0, 3 * count, inner // count, -1)
        q, k, v = self.op("Split", qkv, axis=1, outputs=3)
        hidden = None
        if config.attention == "local":
            batch = self.op("Concat", x.side(0), np.int64([1, 1, 1]), axis=0, dtype=np.int64)
            hidden = self.op("Tile", blocks.outside, batch)
        y = self.attend(q, k, v, inner // count, hidden)
        if config.attention == "local":
            y = y.transpose(0, 3, 1, 2).reshape(-1, blocks.count * blocks.positions, inner)
            y = self.op("Gather", y, blocks.found, axis=1).transpose(0, 2, 1)
        y = y.reshape(-1, inner, height, width)
        return x + self.conv(f"{name}.proj", y, inner, channels, kernel=1)

    def norm(self, name, x, channels, scale=None, shift=None):
        groups = math.gcd(self.config.norm_groups, channels)
        weight = self.graph.weight(f"{name}.weight", channels).reshape(1, channels, 1, 1)
        bias = self.graph.weight(f"{name}.bias", channels).reshape(1, channels, 1, 1)
        if scale is not None:
            gain = 1 + scale.reshape(-1, channels, 1, 1)
            weight, bias = weight * gain, bias * gain + shift.reshape(-1, channels, 1, 1)
        y = self.op("InstanceNormalization", x.reshape(0, groups, -1, 0), np.ones(groups, np.float32),
                    np.zeros(groups, np.float32), epsilon=1e-5)
        return y.reshape(0, channels, -1, 0) * weight + bias

    def swish(self, x):
        return x * self.op("Sigmoid", x)

    def dense(self, name, x, c_in, c_out):
        return self.op("Gemm", x, self.graph.weight(f"{name}.weight", c_out, c_in),
                       self.graph.weight(f"{name}.bias", c_out), transB=1)

    def conv(self, name, x, c_in, c_out, kernel=3, stride=1, dilation=1):
        return self.op("Conv", x, self.graph.weight(f"{name}.weight", c_out, c_in, kernel, kernel),
                       self.graph.weight(f"{name}.bias", c_out), kernel_shape=[kernel] * 2, strides=[stride] * 2,
                       dilations=[dilation] * 2, pads=[dilation * (kernel // 2)] * 4)

    def resampled(self, x, way):
        if way == "up":
            return self.op("Resize", x, Value(self.graph, ""), np.float32([1, 1, 2, 2]), mode="nearest",
                           coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        return self.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]) if way == "down" else x


class _Blocks:
    """How maps are cut into blocks that are padded to the largest one's size, as `palette_ms.unet.layers` has it.

    Attributes:
        count, positions: number of blocks, and of the positions of each, int64 (1,).
        shown: the position of the map that each of the blocks' shows, (count · positions,).
        outside: 1 where a block's position is padding, else 0, float32 (count, 1, 1, positions).
        found: where each position of the map is found among the blocks', (H · W,).
    """

    def __init__(self, graph, height, width, config):
        rows, columns = (_Cut(graph, side, config.attention_blocks, config.attention_block_size)
                         for side in (height, width))
        self.count, self.positions = rows.count * columns.count, rows.block * columns.block

        def over(row, column):
            """Vectors of the rows' and the columns' blocks, ready to be combined."""
            return (row.reshape(rows.count, 1, rows.block, 1), column.reshape(1, columns.count, 1, columns.block))

        row, column = over(rows.shown, columns.shown)
        self.shown = (row * width + column).reshape(-1)
        self.outside = graph.op("Max", *over(rows.outside, columns.outside)).reshape(self.count, 1, 1, self.positions)
        row = rows.index * columns.count * self.positions + rows.place * columns.block
        self.found = (row.reshape(-1, 1) + (columns.index * self.positions + columns.place).reshape(1, -1)).reshape(-1)


class _Cut:
    """One axis of `_Blocks`.

    Attributes:
        count, block: number of blocks, and their size, int64 (1,).
        shown, outside: as of `_Blocks`, (count, block).
        index, place: of each position of the axis, the block that it is in, and where in that it is.
    """

    def __init__(self, graph, side, count, size):
        op = graph.op

        def up_to(length):
            return op("Range", np.int64(0), op("Squeeze", length), np.int64(1), dtype=np.int64)

        every = up_to(side)
        if size:
            self.count, self.block = (side + (size - 1)) / size, op("Min", side, np.int64([size]))
            starts = up_to(self.count) * size
            ends = op("Min", starts + size, side)
            self.index = every / size
            self.place = every - self.index * size
        else:
            self.count = op("Min", side, np.int64([count]))
            self.block = (side + self.count - 1) / self.count
            starts = up_to(self.count) * side / self.count
            ends = (up_to(self.count) + 1) * side / self.count
            self.index = ((every + 1) * self.count - 1) / side  # the last block that begins there or before
            self.place = every - self.index * side / self.count
        ends = ends.reshape(-1, 1)
        positions = starts.reshape(-1, 1) + up_to(self.block).reshape(1, -1)
        self.shown = op("Min", positions, ends - 1)
        self.outside = op("Cast", op("GreaterOrEqual", positions, ends), to=TensorProto.FLOAT, dtype=np.float32)
