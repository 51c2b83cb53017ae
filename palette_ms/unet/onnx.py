"""The U-Net in ONNX Runtime, whose convolutions on a CPU are faster than MindSpore's (see benchmarks/README.md)."""

import hashlib
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import mindspore as ms
import numpy as np
from mindspore import Tensor

from palette_ms.errors import UserError


class OnnxUNet:
    """The network of a Cell, called as the Cell is; a sampler calls it step by step.

    It is exported once for every height and width, a picture at a time: MindSpore's exporter writes fixed sizes, and so
    batches of any number share a file. Files are kept beside the checkpoint, or where that folder cannot be written in
    the user's cache folder, or else in the temporary one. Their names tell a digest of weights and network.

    Args:
        unet: the Cell, for sampling (`set_train(False)`), float32.
        checkpoint: path of the file that it was loaded from.
        description: what else makes the network what it is, a text: its config.

    Inputs: x (N, C, H, W), time (N,); label (N,) for a network with labels. Output: Tensor (N, C', H, W), float32.

    Raises:
        UserError: the network cannot be exported, or its file be written anywhere.
    """

    def __init__(self, unet, checkpoint, description):
        self.unet = unet
        checkpoint = Path(checkpoint)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        self.folders = [checkpoint.absolute().parent, cache / "palette_ms", Path(gettempdir()) / "palette_ms"]
        self.name = f"{checkpoint.stem}.{_digest(unet, description)}"
        self.sessions = {}

    def __call__(self, x, time, label=None):
        inputs = [np.ascontiguousarray(tensor.asnumpy()) for tensor in (x, time, label) if tensor is not None]
        size = inputs[0].shape[1:]
        if size not in self.sessions:
            self.sessions[size] = self._open(inputs)
        session = self.sessions[size]
        names = [node.name for node in session.get_inputs()]
        outputs = [session.run(None, {name: array[i:i + 1] for name, array in zip(names, inputs)})[0]
                   for i in range(len(inputs[0]))]
        return Tensor(np.concatenate(outputs))

    def _open(self, inputs):
        import onnxruntime

        height, width = inputs[0].shape[2:]
        for folder in self.folders:
            path = folder / f"{self.name}.{height}x{width}.onnx"
            try:
                if not path.exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    self._export(path, inputs)
            except OSError:
                continue
            return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        raise UserError(f"the network's ONNX file can be written in none of {', '.join(map(str, self.folders))}; "
                        "--runtime mindspore does without")

    def _export(self, path, inputs):
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            # Opened first: a folder that cannot be written is told before the export. That goes to a folder of its own,
            # since MindSpore takes no spaces in names and writes files that cannot be written again.
            with open(part, "wb") as file, TemporaryDirectory() as scratch:
                exported = Path(scratch) / "unet.onnx"
                self.unet.use_cpu_kernels(False)
                try:
                    ms.export(self.unet, *(Tensor(array[:1]) for array in inputs), file_name=str(exported),
                              file_format="ONNX")
                except RuntimeError as error:
                    raise UserError(f"MindSpore {ms.__version__} cannot export this network to ONNX: "
                                    f"{str(error).splitlines()[0]}; --runtime mindspore does without") from None
                finally:
                    self.unet.use_cpu_kernels(True)
                with open(exported, "rb") as source:
                    shutil.copyfileobj(source, file)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _digest(unet, description):
    """Of the weights, the config, and the code and the MindSpore that make a graph of them."""
    digest = hashlib.sha256(f"{description} {ms.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for name, parameter in unet.parameters_and_names():
        digest.update(name.encode())
        digest.update(parameter.asnumpy())
    return digest.hexdigest()[:16]
