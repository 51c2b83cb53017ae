"""The U-Net in another program than MindSpore: OpenVINO or ONNX Runtime, which on a CPU are faster (see
benchmarks/README.md) and start at once.

Both take the graph of `palette_ms.unet.onnx` and, from memory, the weights as they were read and checked: nothing is
written, a network has no largest size, and a checkpoint that is moved or replaced meanwhile does no harm. (ONNX can
also point at the tensors in the safetensors file. But for a graph that is in no file, ONNX Runtime 1.32 and OpenVINO
2026.4 refuse paths outside of the folder they run in, and what was read is what the checksum was found to hold for.)
A network is opened once and takes any batch, height and width.
"""

import numpy as np

from palette_ms.errors import UserError
from palette_ms.runtime import max_memory, openvino, processors, whole_processor
from palette_ms.unet.cost import attention_bytes
from palette_ms.unet.onnx import waves, write

# A picture's tensors at work, as so many maps of the network's first width, float32: as measured for 256 × 256 pixels
# of the 62.6 M network.
_MAPS = {("openvino", "float32"): 65, ("openvino", "bfloat16"): 30, ("onnx", "float32"): 20}
_LEAST_ROOM = 2**28


class OnnxRuntime:
    """A graph in ONNX Runtime, float32.

    Args:
        graph, outputs: from `palette_ms.unet.onnx.write`.
        weights: float32 arrays by name.
        precision: "float32".
    """

    def __init__(self, graph, outputs, weights, precision="float32"):
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # errors alone
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = processors()  # left to itself, it counts and binds processors that are not ours
        options.inter_op_num_threads = 1
        self._weights = {name: weights[name] for name in graph.weights}  # which the session uses where they lie
        options.add_external_initializers(list(self._weights), [
            onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()])
        self._session = onnxruntime.InferenceSession(graph.model(outputs).SerializeToString(), options,
                                                     providers=["CPUExecutionProvider"])

    def __call__(self, inputs):
        """Arrays by name → list of arrays."""
        return self._session.run(None, inputs)


class OpenVino:
    """A graph in OpenVINO. Arguments as of `OnnxRuntime`, with "bfloat16" too."""

    def __init__(self, graph, outputs, weights, precision="float32"):
        ov = openvino()
        with whole_processor():
            core = ov.Core()
        model = core.read_model(graph.model(outputs, weights="inputs").SerializeToString())
        # The constants use them where they lie; OpenVINO takes none that may not be written.
        self._weights = {name: np.require(weights[name], np.float32, ["C", "W"]) for name in graph.weights}
        for parameter in list(model.get_parameters()):
            name = parameter.output(0).get_any_name()
            if name in self._weights:
                constant = ov.op.Constant(ov.Tensor(self._weights[name], shared_memory=True))
                for target in parameter.output(0).get_target_inputs():
                    target.replace_source_output(constant.output(0))
                model.remove_parameter(parameter)
        model.validate_nodes_and_infer_types()
        with whole_processor():
            compiled = core.compile_model(model, "CPU", {
                "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
                "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": processors()})
        self._request = compiled.create_infer_request()

    def __call__(self, inputs):
        """Arrays by name → list of arrays."""
        with whole_processor():  # kernels are made for a size when it first comes
            return [np.array(array) for array in self._request.infer(inputs).to_tuple()]


PROGRAMS = {"openvino": OpenVino, "onnx": OnnxRuntime}


class Arrays:
    """What stands around a network computes with, of arrays; `palette_ms.unet.onnx.Graph` has the same for graphs."""

    sqrt, acos = np.sqrt, np.arccos

    @staticmethod
    def channels(x, start, stop):
        return x[:, start:stop]

    @staticmethod
    def concat(arrays):
        return np.concatenate(arrays, 1)


class Network:
    """The network of a checkpoint, called as its Cell is, but with arrays.

    What stands around it, and the sinusoids of the noise level, are computed here in float32 whatever the precision:
    in bfloat16 the network would be told steps of 0 to 1000 in fours, and a source of 8 bits would lose the last one.

    Args:
        model: `ModelConfig`.
        weights: float32 arrays by the names of the Cell's parameters.
        runtime: "openvino" or "onnx".
        precision: "float32", or of OpenVINO "bfloat16".
        around: what stands around the network, see `palette_ms.diffusion.preconditioning.around_network`.
        part: None, "whole" or "finest", see `palette_ms.unet.onnx.write`.

    Inputs: x (N, C, H, W), gamma (N,), and what the network takes of label, dropout, text and source_noise, as of
        `palette_ms.unet.unet.UNet`; the part "finest" takes deep before them.
    Output: an array; of the part "whole" (output, deep).

    Raises:
        UserError: the program cannot take the network or run it, such as for want of memory.
    """

    def __init__(self, model, weights, runtime, precision="float32", around=None, part=None):
        self.model, self.weights, self.runtime, self.precision = model, weights, runtime, precision
        self.around, self._part = around, part
        self._program = self._names = None

    def part(self, name):
        """A part of the same network."""
        return Network(self.model, self.weights, self.runtime, self.precision, self.around, name)

    def memory(self, height, width):
        """Bytes that a picture of a size takes besides the weights, about."""
        maps = 4 * _MAPS[self.runtime, self.precision] * self.model.base_channels * max(self.model.channel_mults[0], 1)
        return int(maps * height * width / self.model.patch_size**2 + 3 * attention_bytes(self.model, height, width))

    def batch(self, height, width):
        """How many pictures of a size are computed together, as far as an eighth of the memory allows; at least 1."""
        return max(1, max(max_memory() // 8, _LEAST_ROOM) // max(self.memory(height, width), 1))

    def __call__(self, *inputs):
        inputs = [array for array in inputs if array is not None]
        first = self._part == "finest"
        deep, (x, gamma, *further) = inputs[:first], inputs[first:]
        if self.model.source_noise:
            further[-1] = waves(1000 * further[-1], self.model.base_channels)

        def answer(x, told):
            made = self._run((*deep, x, waves(told, self.model.base_channels), *further))
            return made if self._part == "whole" else (made[0], None)

        output, deep = self.around(Arrays, answer, x, gamma) if self.around else answer(x, gamma)
        return (output, deep) if self._part == "whole" else output

    def _run(self, inputs):
        if self._program is None:
            self._open()
        inputs = [np.ascontiguousarray(array) for array in inputs]
        height, width = inputs[self._names.index("x")].shape[2:]
        size = self.batch(height, width)
        made = []
        for i in range(0, len(inputs[0]), size):
            try:
                made.append(self._program({name: array[i:i + size] for name, array in zip(self._names, inputs)}))
            except Exception as error:  # their kinds of error have no common base
                raise UserError(f"{self.runtime} cannot run the network for {width}×{height} pixels ({_first(error)}): "
                                "smaller tiles take less memory (--tile, --max-memory)") from None
        return made[0] if len(made) == 1 else [np.concatenate(arrays) for arrays in zip(*made)]

    def _open(self):
        graph, outputs = write(self.model, part=self._part, takes_waves=True)
        self._names = graph.input_names
        try:
            self._program = PROGRAMS[self.runtime](graph, outputs, self.weights, self.precision)
        except Exception as error:
            raise UserError(f"{self.runtime} cannot take the network ({_first(error)}); --runtime mindspore does "
                            "without") from None


def _first(error):
    return " ".join(str(error).split())[:200]
