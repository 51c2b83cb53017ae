"""PyTorch's checkpoint files, read and written without PyTorch, and without running what a pickle asks for.

A `.pth` file is a pickle whose tensors point into raw storages beside it: members of a zip archive since PyTorch 1.6,
before that the rest of the file. A pickle names functions to call, and could name any; here only those that describe
tensors are known, as the stand-ins below. What else it names (a date, arguments of a training) is nothing that holds
tensors and is never run: an empty stand-in takes its place, and such values are left out.

A file is never believed about its size: what it claims is compared with its length before memory is asked for.
"""

import collections
import io
import json
import math
import os
import pickle
import pickletools
import stat
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple, Tuple

import numpy as np

from palette_ms.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# NumPy has no bfloat16: its bits are the upper half of a float32's.
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": _BFLOAT16, "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_SAFETENSORS = {
    "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "F16": np.dtype("<f2"), "BF16": _BFLOAT16,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}


def is_torch(path):
    """Whether a file begins as those of PyTorch do: a zip archive, or a pickle of protocol 2 on."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            return file.read(4).startswith((b"PK", b"\x80"))
    except OSError:
        return False


def read_tensors(path):
    """All tensors of a PyTorch checkpoint (`.pth`, `.pt`: zip or older format) or of a `.safetensors` file.

    Of nested dicts (`{"state_dict": {…}}`) the names are joined with dots. Floating-point values come as float32
    (half precision and bfloat16 widened, double rounded), others as they are.

    Args:
        path: the file.

    Returns: dict of arrays by name, possibly views that share memory.

    Raises:
        UserError: no such file, not a checkpoint, cut off, damaged, or a pickle with a network as a whole.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode  # before it is opened, which for a pipe may take for ever
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError(f"{path} is a pipe or a device, not a file")
        with open(path, "rb") as file:
            head = file.read(512)
            if head.lstrip()[:1] == b"<":
                raise UserError(f"{path} is a web page (HTML or XML), not a checkpoint: the download went wrong")
            file.seek(0)
            if path.suffix == ".safetensors":
                return _read_safetensors(file, path)
            content = _read_zip(file, path) if head.startswith(b"PK") else _read_legacy(file, path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    found = list(_named_values(content, set()))
    tensors = {name: value for name, value in found if name and isinstance(value, _Tensor)}
    if not tensors:
        others = sorted({value.asked for _, value in found if isinstance(value, _Inert)})
        raise UserError(f"{path} holds no tensors by name: not a checkpoint of a network"
                        + (f"; its pickle asks for {others[0]}, which no tensor needs; nothing of it was run"
                           if others else ""))
    values = {}  # of each storage, widened once
    return {name: _materialized(value, name, path, values) for name, value in tensors.items()}


def _named_values(content, seen, prefix=""):
    """(name, value) of all that lies in nested dicts, each of which is looked into once: a few that hold each other, or
    themselves, would have any number of names."""
    if not isinstance(content, dict):
        yield prefix, content
    elif id(content) not in seen:
        seen.add(id(content))
        for name, value in content.items():
            yield from _named_values(value, seen, f"{prefix}.{name}" if prefix else str(name))


# What a pickle may name: stand-ins that describe a tensor and do nothing


class _Storage(NamedTuple):
    key: str
    dtype: object
    numel: int
    data: bytes


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: Tuple[int, ...]
    stride: Tuple[int, ...]


class _StorageType(NamedTuple):
    name: str


def _rebuild_tensor(storage, offset, size, stride, *_):
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2: further arguments are about gradients."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or any(
            type(number) is not int or number < 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor with a senseless offset, size or stride")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data, *_):
    return data


def _size(*arguments):
    return tuple(arguments[0]) if arguments else ()


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _size,
    **{("torch", name): _StorageType(name) for name in _STORAGES},
}


class _Inert:
    """Stands for whatever else a pickle names: takes everything that a pickle may do with it, and does nothing.

    Attributes:
        asked: what it stands for.
    """

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass

    add = append


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storage):
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module, name):
        known = (module, name) in _ALLOWED
        # A network as a whole, or tensors of kinds that are not read: what they hold would be lost without a word.
        if not known and (module.startswith(("torch.nn", "torch._utils")) or name.endswith("Storage")):
            raise UserError(f"its pickle asks for {module}.{name}, which no tensor needs; nothing of it was run; save "
                            "the model's state_dict() instead")
        return _ALLOWED[module, name] if known else type("_Inert", (_Inert,), {"asked": f"{module}.{name}"})

    def persistent_load(self, pid):
        kind, storage_type, key, _, numel, *_ = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("a storage with a senseless description")
        return self.storage(str(key), _STORAGES[storage_type.name], numel)


def _unpickle(file, path, storage):
    """One pickle from where the file stands; afterwards it stands behind it."""
    start = file.tell()
    try:
        # The memo is an array as long as the largest index: a huge one, which no real file has, would fill the memory.
        for opcode, argument, position in pickletools.genops(file):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > position - start:
                raise UserError(f"its pickle is damaged (memo index {argument})")
        file.seek(start)
        return _Unpickler(file, storage).load()
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except MemoryError:
        raise UserError(f"{path} is damaged: its pickle claims more than memory holds") from None
    except RecursionError:
        raise UserError(f"{path}: its pickle is nested too deeply") from None
    # A damaged pickle can break the unpickler in many ways: UnpicklingError, EOFError, IndexError, TypeError …
    except Exception as error:
        raise UserError(f"{path} is not a whole PyTorch checkpoint (cut off or damaged?): {error}") from None


def _read_zip(file, path):
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(pickles) != 1:
                raise UserError(f"{path} is a zip archive, but not a PyTorch checkpoint: it has no data.pkl"
                                + (" (TorchScript?)" if any("code/" in name for name in members) else ""))
            root = pickles[0].rsplit("/", 1)[0]
            room = os.fstat(file.fileno()).st_size

            def member(info, where=""):
                # PyTorch compresses nothing, and no two members share their bytes: all fit into the file's.
                nonlocal room
                room -= info.file_size
                if info.compress_type != zipfile.ZIP_STORED or room < 0:
                    raise UserError(f"{where}{info.filename} is compressed, or longer than the file, as PyTorch never "
                                    "writes it")
                return archive.read(info)

            order = members.get(f"{root}/byteorder")
            if order is not None and member(order, f"{path}: ").strip() == b"big":
                raise UserError(f"{path} was written on a big-endian machine, which is not supported")

            def storage(key, dtype, numel):
                info = members.get(f"{root}/data/{key}")
                if info is None:
                    raise UserError(f"storage {key} is missing")
                _check_length(key, dtype, numel, info.file_size)
                if key not in read:
                    read[key] = member(info)
                return _Storage(key, dtype, numel, read[key])

            read = {}
            return _unpickle(io.BytesIO(member(members[pickles[0]], f"{path}: ")), path, storage)
    # All of them are zipfile's: NotImplementedError for a kind of archive that it cannot read, RuntimeError for an
    # encrypted one, ValueError for a name that is no text.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, struct.error, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a whole zip archive (cut off or damaged?): {error}") from None


def _read_legacy(file, path):
    """The format before PyTorch 1.6: pickles of a magic number, a version, the machine and the content; storages."""
    def none(*_):
        raise UserError("a storage where none belongs")

    if file.peek(1)[:1] != b"\x80":
        raise UserError(f"{path} is not a PyTorch checkpoint (neither a zip archive nor a pickle)")
    if _unpickle(file, path, none) != _LEGACY_MAGIC:
        raise UserError(f"{path} is a pickle, but not a PyTorch checkpoint")
    if _unpickle(file, path, none) != _LEGACY_PROTOCOL:
        raise UserError(f"{path} is of a PyTorch format that is not supported")
    machine = _unpickle(file, path, none)
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise UserError(f"{path} was written on a big-endian machine, which is not supported")
    storages = {}

    def storage(key, dtype, numel):
        known = storages.setdefault(key, _Storage(key, dtype, numel, bytearray()))
        if (known.dtype, known.numel) != (dtype, numel):
            raise UserError(f"storage {key} is described in two ways")
        return known

    content = _unpickle(file, path, storage)
    keys = _unpickle(file, path, none)
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages:
            raise UserError(f"{path} is damaged: storage {key} belongs to no tensor")
        _, dtype, numel, data = storages[key]
        header = file.read(8)
        if len(header) < 8:
            raise UserError(f"{path} is cut off: storage {key} is missing")
        length = struct.unpack("<q", header)[0]
        if length != numel:
            raise UserError(f"{path} is damaged: storage {key} has {length} elements, its tensors claim {numel}")
        _check_length(key, dtype, numel, os.fstat(file.fileno()).st_size - file.tell(), path)
        data += file.read(numel * _itemsize(dtype))
    return content


def _itemsize(dtype):
    return 2 if dtype == _BFLOAT16 else dtype.itemsize


def _check_length(key, dtype, numel, length, path=None):
    if length < numel * _itemsize(dtype):
        raise UserError(f"{f'{path}: ' if path else ''}storage {key} has {length} bytes, its tensors claim "
                        f"{numel * _itemsize(dtype)}: the file is cut off or damaged")


def _read_safetensors(file, path):
    try:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length).decode()) if length <= os.fstat(file.fileno()).st_size else None
        header.pop("__metadata__", None)
        data = file.read()
        tensors, claimed = {}, 0
        for name, info in header.items():
            start, end = info["data_offsets"]
            dtype = _SAFETENSORS[info["dtype"]]
            size = math.prod(info["shape"]) * _itemsize(dtype)
            claimed += size
            if not 0 <= start <= end <= len(data) or end - start != size or claimed > len(data):
                raise ValueError(f"{name} lies outside the file")
            tensors[name] = _as_array(data[start:end], dtype).reshape(info["shape"])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a whole safetensors file (cut off or damaged?): {error}") from None
    return tensors


def _as_array(data, dtype, count=-1):
    if dtype == _BFLOAT16:
        return (np.frombuffer(data, "<u2", count).astype(np.uint32) << 16).view(np.float32)
    array = np.frombuffer(data, dtype, count)
    return array.astype(np.float32, copy=False) if dtype.kind == "f" else array


def _materialized(tensor, name, path, values):
    """The tensor as an array: a view of its storage, which may be strided and shared."""
    storage, offset, size, stride = tensor
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if 0 in size:
        return np.zeros(size, np.float32)
    needed = max(last + 1, math.prod(size))
    if needed > storage.numel:
        raise UserError(f"{path} is damaged: {name} needs {needed} elements of storage {storage.key}, which has "
                        f"{storage.numel}")
    key = storage.key, str(storage.dtype), storage.numel
    if key not in values:
        values[key] = _as_array(storage.data, storage.dtype, storage.numel)
    elements = values[key]
    strides = [step * elements.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(elements[offset:], size, strides, writeable=False)


# Writing


def write_pth(path, tensors):
    """A state dict that `torch.load` reads, in the zip format, to a temporary name and then renamed.

    Args:
        path: the file to write.
        tensors: dict of arrays by name; written as float32.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    arrays = {name: np.asarray(array, "<f4", order="C") for name, array in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", _state_dict_pickle(arrays))
            archive.writestr("archive/byteorder", "little")
            for key, array in enumerate(arrays.values()):
                archive.writestr(f"archive/data/{key}", array.tobytes())
            archive.writestr("archive/version", "3\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _state_dict_pickle(arrays):
    """The opcodes (protocol 2) of an OrderedDict of tensors, each with a storage of its own.

    Written out, because pickle writes only functions that it can import, and these are PyTorch's.
    """
    ordered_dict = b"ccollections\nOrderedDict\n)R"

    def text(value):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def whole(value):
        return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)

    def sequence(*items):
        return b"(" + b"".join(items) + b"t"

    items = []
    for key, (name, array) in enumerate(arrays.items()):
        storage = sequence(text("storage"), b"ctorch\nFloatStorage\n", text(str(key)), text("cpu"), whole(array.size))
        size = sequence(*map(whole, array.shape))
        stride = sequence(*(whole(step // array.itemsize) for step in array.strides))
        tensor = sequence(storage + b"Q", whole(0), size, stride, b"\x89", ordered_dict)
        items += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n", tensor, b"R"]
    return b"\x80\x02" + ordered_dict + b"(" + b"".join(items) + b"u."
