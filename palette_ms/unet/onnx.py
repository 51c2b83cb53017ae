"""The U-Net in ONNX Runtime, whose convolutions on a CPU are faster than MindSpore's (see benchmarks/README.md)."""

import glob
import hashlib
import os
import re
import shutil
import stat
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from palette_ms.errors import UserError
from palette_ms.runtime import processors
from palette_ms.unet.layers import use_device_kernels

# Every size of pictures takes a file, and a session in memory, as large as the weights.
MAX_FILES, MAX_SESSIONS = 8, 2
_NAME_BYTES = 100  # of a checkpoint's name in those of its files: a file system takes 255 in all
_SEAL = b"r\x4a\x0a\x06sha256\x12\x40"  # begins ModelProto.metadata_props {key: "sha256", value: 64 digits}


class _Once(nn.Cell):
    """A Cell around another. MindSpore keeps the graph of a Cell and a size, and its ONNX exporter changes it: a second
    export of both fails (2.10: "i: 5 out of range")."""

    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell

    def construct(self, *inputs):
        return self.cell(*inputs)


class NotExported(UserError):
    """MindSpore cannot write a Cell as a file."""


class OnnxCell:
    """The network of a Cell, or a part of it, called as the Cell is; a sampler calls it step by step.

    It is exported once for every height and width, a picture at a time: MindSpore's exporter writes fixed sizes, and so
    batches of any number share a file. Files are kept where no other user can put one (see `_folders`); of a checkpoint
    the last `MAX_FILES`. Each ends in a checksum of itself and of what it was made from, which is looked at before it
    is run: one that was damaged, or made from other weights, is made anew. The pictures of a batch are computed side by
    side, the processors that this process may use divided among them.

    Args:
        cell: the Cell, for sampling (`set_train(False)`), float32. All its inputs and outputs begin with N.
        checkpoint: path of the file that it was loaded from.
        identity: a text that tells weights, config and part of the network from others.
        trained, multiple: side of the training pictures, and what the network divides. Larger sizes are rounded up to
            few, and what is added reflects the picture and is cut off again: to multiples of half the training size,
            at most 64, from 1024 pixels on to an eighth of the next smaller power of two. An export takes seconds;
            normalisations, whose statistics are of the whole map, move a little. None: sizes stay as they are.
        required: False: sizes that cannot be exported are left to the Cell, and a line says so.

    Inputs: Tensors, as the Cell's; those left out at the end may be None. Output: as the Cell's, float32.

    Raises:
        UserError: the network cannot be exported, or ONNX Runtime cannot run it, such as for want of memory.
    """

    def __init__(self, cell, checkpoint, identity, trained=None, multiple=1, required=True):
        self.cell = cell
        self.required = required
        self.left_to_cell = set()  # shapes of inputs
        self.trained, self.multiple = trained, multiple
        self.checkpoint = checkpoint = Path(checkpoint)
        self.identity = identity
        self.stem = os.fsdecode(os.fsencode(checkpoint.stem)[:_NAME_BYTES])
        self.digest = _digest(cell, identity)
        self.name = f"{self.stem}.{self.digest[:16]}"
        self.sessions = OrderedDict()
        self._own = None

    def part(self, cell, name):
        """Another Cell of the same weights."""
        return OnnxCell(cell, self.checkpoint, f"{self.identity} {name}", required=self.required)

    def __call__(self, *tensors):
        shapes = tuple(tensor.shape for tensor in tensors if tensor is not None)
        if shapes not in self.left_to_cell:
            try:
                return self._run(tensors)
            except NotExported as error:
                if self.required:
                    raise
                tqdm.write(f"warning: {error}; MindSpore runs it in place of ONNX Runtime", file=sys.stderr)
                self.left_to_cell.add(shapes)
        return self.cell(*tensors)

    def _run(self, inputs):
        inputs = [np.ascontiguousarray(tensor.asnumpy()) for tensor in inputs if tensor is not None]
        batch, (height, width) = len(inputs[0]), inputs[0].shape[2:]
        if self.trained:
            added = (0, self._rounded(height) - height), (0, self._rounded(width) - width)
            inputs = [np.pad(array, ((0, 0), (0, 0), *added), "symmetric") if array.ndim == 4 else array
                      for array in inputs]
        workers = min(batch, processors())
        session = self._session(inputs, processors() // workers)
        names = [node.name for node in session.get_inputs()]
        pictures = [{name: array[i:i + 1] for name, array in zip(names, inputs)} for i in range(batch)]
        try:
            if workers == 1:
                outputs = [session.run(None, picture) for picture in pictures]
            else:
                with ThreadPoolExecutor(workers) as pool:
                    outputs = list(pool.map(lambda picture: session.run(None, picture), pictures))
        except Exception as error:  # its kinds of error have no common base
            raise _failed(error, inputs) from None
        outputs = [np.concatenate(arrays) for arrays in zip(*outputs)]
        if self.trained:
            outputs = [np.ascontiguousarray(array[..., :height, :width]) for array in outputs]
        outputs = [Tensor(array) for array in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _rounded(self, side):
        """The side at which a picture's is computed."""
        if side <= self.trained:
            return side
        step = max(min(self.trained // 2, 64), 2 ** (side.bit_length() - 1) // 8)
        step = -(-step // self.multiple) * self.multiple
        return -(-side // step) * step

    def _session(self, inputs, threads):
        """Of ONNX Runtime, for these inputs' size, that computes a picture by so many threads."""
        key = *(array.shape[1:] for array in inputs), threads
        if key not in self.sessions:
            self.sessions[key] = self._open(inputs, threads)
            if len(self.sessions) > MAX_SESSIONS:
                self.sessions.popitem(last=False)
        self.sessions.move_to_end(key)
        return self.sessions[key]

    def _open(self, inputs, threads):
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        onnxruntime.set_default_logger_severity(3)  # errors alone
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # left to itself, it counts and binds processors that are not ours
        options.inter_op_num_threads = 1
        path = self._file(inputs)
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its kinds of error have no common base
            raise _failed(error, inputs) from None

    def _file(self, inputs):
        """The path of a file for these inputs' size, whole and of these weights: found, or made."""
        height, width = max(array.shape[2:] for array in inputs if array.ndim == 4)  # the picture's
        for folder in self._folders():
            path = folder / f"{self.name}.{height}x{width}.onnx"
            try:
                if not self._is_whole(path):
                    self._export(path, inputs)
                    self._forget(folder)
            except OSError:
                continue
            with suppress(OSError):  # in a folder that this user only reads
                path.touch()
            return path
        raise UserError("the network's ONNX file can be written in no folder, not even a temporary one; --runtime "
                        "mindspore does without")

    def _folders(self):
        """Where files may lie: beside the checkpoint, in the user's cache folder, in the temporary one or, for this
        process alone, a new one. Only folders of this user's that nobody else may write to, since a file says what is
        computed, and others could put theirs there."""
        beside = self.checkpoint.absolute().parent
        if _is_mine(beside):
            yield beside
        user = os.getuid()
        for base, name in ((os.environ.get("XDG_CACHE_HOME"), "palette_ms"),
                           (os.path.expanduser("~/.cache"), "palette_ms"), (gettempdir(), f"palette_ms-{user}")):
            if not base or not os.path.isabs(base):  # without a home, ~ stays as it is
                continue
            folder = Path(base) / name
            with suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if _is_mine(folder):
                    yield folder
        with suppress(OSError):
            self._own = self._own or TemporaryDirectory(prefix="palette_ms-")
            yield Path(self._own.name)

    def _is_whole(self, path):
        """Whether there is a file that ends in the checksum that it must have; of another one a line is said."""
        if not path.exists():
            return False
        _, seal = self._sealed(path)
        with open(path, "rb") as file:
            file.seek(-min(len(seal), os.fstat(file.fileno()).st_size), os.SEEK_END)
            whole = file.read() == seal
        if not whole:
            tqdm.write(f"made anew: {path} is damaged or of other weights", file=sys.stderr)
        return whole

    def _sealed(self, path):
        """(bytes before the seal, the seal that a file must end in)."""
        digest = hashlib.sha256(self.digest.encode())
        length = left = max(0, path.stat().st_size - len(_SEAL) - 64)
        with open(path, "rb") as file:
            while block := file.read(min(left, 2**20)):
                digest.update(block)
                left -= len(block)
        return length, _SEAL + digest.hexdigest().encode()

    def _export(self, path, inputs):
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            # Opened first: a folder that cannot be written is told before the export, which takes seconds.
            with open(part, "wb") as file, scratch_folder() as scratch:
                tqdm.write(f"preparing the network for {path.stem.rpartition('.')[2]} pixels, once for each size",
                           file=sys.stderr)
                exported = Path(scratch) / "unet.onnx"
                export(_Once(self.cell).set_train(False), [Tensor(array[:1]) for array in inputs], exported)
                with open(exported, "rb") as source:
                    shutil.copyfileobj(source, file)
                file.write(bytes(len(_SEAL) + 64))  # the seal's place
                file.flush()
                length, seal = self._sealed(part)
                file.seek(length)
                file.write(seal)
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _forget(self, folder):
        """Remove all of this checkpoint's files but those used last, those of its earlier weights too."""
        pattern = f"{glob.escape(self.stem)}.{'[0-9a-f]' * 16}.*x*.onnx"
        files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in files[:-MAX_FILES]:
            path.unlink(missing_ok=True)


def _is_mine(folder):
    """Whether a folder, no link to one, is this user's and nobody else may write to it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _failed(error, inputs):
    """The UserError for what ONNX Runtime says."""
    height, width = max(array.shape[2:] for array in inputs if array.ndim == 4)
    return UserError(f"ONNX Runtime cannot run the network for {width}×{height} pixels "
                     f"({' '.join(str(error).split())[:200]}): smaller tiles take less memory (--tile, --max-memory), "
                     "and --runtime mindspore does without it")


def scratch_folder():
    """A new temporary folder whose path MindSpore writes files to: it takes no spaces and few other characters."""
    folders = [folder for folder in (gettempdir(), "/tmp", "/var/tmp", "/dev/shm")
               if re.fullmatch(r"[\w./-]+", folder, re.A) and os.access(folder, os.W_OK | os.X_OK)]
    return TemporaryDirectory(dir=folders[0] if folders else None)


def export(cell, inputs, path):
    """Write a Cell as a file of another program.

    Args:
        cell: for sampling (`set_train(False)`), float32.
        inputs: Tensors of the sizes that the file is to take.
        path: ends in .onnx or .mindir; without spaces.

    Raises:
        NotExported: MindSpore cannot export it.
    """
    kind = path.suffix[1:].upper()
    use_device_kernels(cell, False)
    try:
        ms.export(cell, *inputs, file_name=str(path), file_format=kind)
    except (RuntimeError, ValueError, TypeError) as error:
        raise NotExported(f"MindSpore {ms.__version__} cannot export this network to {kind}: "
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
    return digest.hexdigest()
