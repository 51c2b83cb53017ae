"""The U-Net in ONNX Runtime, whose convolutions on a CPU are faster than MindSpore's (see benchmarks/README.md)."""

import glob
import hashlib
import os
import shutil
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import mindspore as ms
import numpy as np
from mindspore import Tensor

from palette_ms.errors import UserError
from palette_ms.unet.layers import use_device_kernels

# Every size of pictures takes a file, and a session in memory, as large as the weights.
MAX_FILES, MAX_SESSIONS = 8, 2


class OnnxCell:
    """The network of a Cell, or a part of it, called as the Cell is; a sampler calls it step by step.

    It is exported once for every height and width, a picture at a time: MindSpore's exporter writes fixed sizes, and so
    batches of any number share a file. Files are kept beside the checkpoint, or where that folder cannot be written in
    the user's cache folder, or else in the temporary one; of a checkpoint the last `MAX_FILES`. The pictures of a batch
    are computed side by side, the processor's cores divided among them.

    Args:
        cell: the Cell, for sampling (`set_train(False)`), float32. All its inputs and outputs begin with N.
        checkpoint: path of the file that it was loaded from.
        identity: a text that tells weights, config and part of the network from others.

    Inputs: Tensors, as the Cell's; those left out at the end may be None. Output: as the Cell's, float32.

    Raises:
        UserError: the network cannot be exported, or its file be written anywhere.
    """

    def __init__(self, cell, checkpoint, identity):
        self.cell = cell
        self.checkpoint = checkpoint = Path(checkpoint)
        self.identity = identity
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        self.folders = [checkpoint.absolute().parent, cache / "palette_ms", Path(gettempdir()) / "palette_ms"]
        self.name = f"{checkpoint.stem}.{_digest(cell, identity)}"
        self.sessions = OrderedDict()

    def part(self, cell, name):
        """Another Cell of the same weights."""
        return OnnxCell(cell, self.checkpoint, f"{self.identity} {name}")

    def __call__(self, *inputs):
        inputs = [np.ascontiguousarray(tensor.asnumpy()) for tensor in inputs if tensor is not None]
        batch = len(inputs[0])
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(batch, cores)
        session = self._session(inputs, cores // workers if workers > 1 else 0)
        names = [node.name for node in session.get_inputs()]
        pictures = [{name: array[i:i + 1] for name, array in zip(names, inputs)} for i in range(batch)]
        if workers == 1:
            outputs = [session.run(None, picture) for picture in pictures]
        else:
            with ThreadPoolExecutor(workers) as pool:
                outputs = list(pool.map(lambda picture: session.run(None, picture), pictures))
        outputs = [Tensor(np.concatenate(arrays)) for arrays in zip(*outputs)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _session(self, inputs, threads):
        """Of ONNX Runtime, for these inputs' size, that computes a picture by so many threads (0: its choice)."""
        key = *(array.shape[1:] for array in inputs), threads
        if key not in self.sessions:
            self.sessions[key] = self._open(inputs, threads)
            if len(self.sessions) > MAX_SESSIONS:
                self.sessions.popitem(last=False)
        self.sessions.move_to_end(key)
        return self.sessions[key]

    def _open(self, inputs, threads):
        import onnxruntime

        height, width = max(array.shape[2:] for array in inputs if array.ndim == 4)  # the picture's
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        for folder in self.folders:
            path = folder / f"{self.name}.{height}x{width}.onnx"
            try:
                if not path.exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    self._export(path, inputs)
                    self._forget(folder)
            except OSError:
                continue
            with suppress(OSError):  # in a folder that others wrote and this user only reads
                path.touch()
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        raise UserError(f"the network's ONNX file can be written in none of {', '.join(map(str, self.folders))}; "
                        "--runtime mindspore does without")

    def _export(self, path, inputs):
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            # Opened first: a folder that cannot be written is told before the export. That goes to a folder of its own,
            # since MindSpore takes no spaces in names and writes files that cannot be written again.
            with open(part, "wb") as file, TemporaryDirectory() as scratch:
                exported = Path(scratch) / "unet.onnx"
                try:
                    export(self.cell, [Tensor(array[:1]) for array in inputs], exported)
                except UserError as error:
                    raise UserError(f"{error}; --runtime mindspore does without") from None
                with open(exported, "rb") as source:
                    shutil.copyfileobj(source, file)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _forget(self, folder):
        """Remove all of this checkpoint's files but those used last, those of its earlier weights too."""
        pattern = f"{glob.escape(self.checkpoint.stem)}.{'[0-9a-f]' * 16}.*x*.onnx"
        files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in files[:-MAX_FILES]:
            path.unlink(missing_ok=True)


def export(cell, inputs, path):
    """Write a Cell as a file of another program.

    Args:
        cell: for sampling (`set_train(False)`), float32.
        inputs: Tensors of the sizes that the file is to take.
        path: ends in .onnx or .mindir; without spaces.

    Raises:
        UserError: MindSpore cannot export it.
    """
    kind = path.suffix[1:].upper()
    use_device_kernels(cell, False)
    try:
        ms.export(cell, *inputs, file_name=str(path), file_format=kind)
    except RuntimeError as error:
        raise UserError(f"MindSpore {ms.__version__} cannot export this network to {kind}: "
                        f"{str(error).splitlines()[0]}") from None
    finally:
        use_device_kernels(cell, True)


def _digest(cell, identity):
    """Of the network, and the code and the MindSpore that make a graph of it: that of this folder, and where the Cells
    in it are from, such as a preconditioning."""
    digest = hashlib.sha256(f"{identity} {ms.__version__}".encode())
    modules = {type(part).__module__ for _, part in cell.cells_and_names()}
    sources = {Path(sys.modules[name].__file__) for name in modules}
    for source in sorted(sources.union(Path(__file__).parent.glob("*.py"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
