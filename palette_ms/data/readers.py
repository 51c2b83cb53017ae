"""Files → arrays of their own depth and channels, and back. A kind of file is added here: a `Kind` in `KINDS`."""

import io
import logging
import math
import re
import struct
import zipfile
from contextlib import suppress
from typing import Callable, NamedTuple, Tuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from palette_ms.data.exif import orientation_of, upright
from palette_ms.data.images import SUFFIXES, check_regular, opened, pixels_alone
from palette_ms.errors import UserError

_LARGEST = 2**32  # bytes of a decoded file: a header may claim any size, and a few kB unpack to what no memory holds
_SIXTEEN_BITS = b"\x10"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Of files with a tag that is not as it should be, these tell in lines of their own. What cannot be read is an error.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
cv2.setLogLevel(0)


class Kind(NamedTuple):
    """A kind of file."""

    begins: Tuple[bytes, ...]  # what the first bytes of such a file are
    suffix: str  # which results are written with
    suffixes: Tuple[str, ...]  # which folders and archives are searched for, beside those of pictures
    read: Callable  # encoded bytes → array (H, W), (H, W, C) or (C, H, W); may raise anything
    write: Callable  # (file open for writing, array (H, W) or (H, W, C))


def read_file(path, offset=0, size=-1):
    """The bytes of a file, or some of them. Raises UserError: it cannot be read."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        raise UserError(f"no such picture: {path}") from None
    except (OSError, ValueError) as error:  # of a name that none can be, such as one with a null byte, a ValueError
        raise UserError(f"cannot read picture {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None


def kind_of(data):
    """The `Kind` of a file by its content, encoded bytes; what no other claims is left to Pillow."""
    return next(kind for kind in KINDS if data.startswith(kind.begins))


def read_array(data, name):
    """The values that a file holds.

    Args:
        data: encoded bytes.
        name: what errors call the file.

    Returns: as `plain` does.

    Raises:
        UserError: not a readable file (truncated, empty, of an unknown kind, packed in a way that needs `imagecodecs`,
            larger than 4 GiB, Python objects), or what it holds is not an array of numbers.
    """
    try:
        array = kind_of(data).read(data)
    except UnidentifiedImageError:
        raise UserError(f"cannot read picture {name}: empty, or of an unknown format") from None
    # Each library tells damage by many kinds of error: OSError, SyntaxError, struct.error, zlib.error, MemoryError …
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        hint = ": pip install imagecodecs" if isinstance(error, ImportError) or "imagecodecs" in text else ""
        raise UserError(f"cannot read picture {name}: {text}{hint}") from None
    return plain(array, name)


def plain(array, name):
    """An array of numbers as the rest of the program takes it: native byte order; of floats, at most 32 bits.

    Raises:
        UserError: other values than numbers, less than two dimensions, or an empty one.
    """
    if array.dtype.kind not in "buif":
        raise UserError(f"{name} holds {array.dtype}, not real numbers")
    if array.ndim < 2 or not array.size:
        raise UserError(f"{name} is of the shape {array.shape}, not a picture (H, W), (H, W, C) or (C, H, W)")
    wanted = np.dtype(np.float32) if array.dtype.kind == "f" and array.dtype.itemsize > 4 else array.dtype
    with np.errstate(over="ignore"):  # it is infinite then, and refused as such
        return array.astype(wanted.newbyteorder("="), copy=False)


def turned(array, data):
    """An array (H, W) or (H, W, C) of a PNG or TIFF as its EXIF orientation says; data: the encoded bytes."""
    orientation = 1
    if data.startswith(_TIFF) or any(chunk in data for chunk in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")):
        with suppress(Exception), Image.open(io.BytesIO(data)) as image:  # what is damaged says nothing
            orientation = orientation_of(image)
    return upright(array, orientation) if array.ndim == 2 or array.ndim == 3 and array.shape[2] <= 4 else array


def from_pillow(image):
    """A PIL image's own values (H, W) or (H, W, C); a palette is looked up, and the EXIF rotation applied."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    return np.asarray(image)


def _read_pillow(data):
    with opened(data) as image:
        return from_pillow(image)


def _read_png(whole):
    if whole[24:25] != _SIXTEEN_BITS:
        return _read_pillow(whole)
    # Pillow makes 8 bits of most kinds of 16. OpenCV does not, but tells damage on stderr, so that is looked for first.
    data = pixels_alone(whole)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("damaged")
    # OpenCV gives BGR and BGRA, and for gray with alpha BGRA too.
    channels = {0: 0, 2: [2, 1, 0], 4: [0, 3], 6: [2, 1, 0, 3]}[data[25]]
    return turned(values if values.ndim == 2 else values[..., channels], whole)


def _read_tiff(data):
    from tifffile import PHOTOMETRIC, TiffFile  # slow to import

    # OME's description may name further files.
    with TiffFile(io.BytesIO(data), is_ome=False) as file:
        pages = file.series[0]
        _check_size(pages.nbytes)
        photometric = file.pages[0].photometric
        if photometric == PHOTOMETRIC.PALETTE:
            return _read_pillow(data)
        array, axes = pages.asarray(), pages.axes
    # Not of one bit: tifffile writes arrays of bool as if 0 were white, and means that they be read as they are.
    if photometric == PHOTOMETRIC.MINISWHITE and array.dtype.kind == "u":
        array = np.invert(array)
    return turned(np.moveaxis(array, axes.index("S"), -1) if "S" in axes else array, data)


def _read_npy(data):
    # As numpy.lib.format says. NumPy's own reader parses the header by Python's ast, which in Python 3.11 fails now and
    # then where another thread does so too, and it is the compiler's that may be hit.
    size = struct.Struct("<H" if data[6] == 1 else "<I")
    begin = 8 + size.size
    end = begin + size.unpack_from(data, 8)[0]
    header = data[begin:end].decode("latin-1")
    found = re.fullmatch(
        r"\s*\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\),? *\}\s*", header)
    if not found:
        raise ValueError(f"it holds no plain array: {header.strip()[:100]}")
    dtype, shape = np.dtype(found[1]), tuple(map(int, re.findall(r"\d+", found[3])))
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpacked")
    _check_size(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype, math.prod(shape), end).reshape(shape, order="F" if found[2] == "True" else "C")


def _read_npz(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename.removesuffix(".npy") for member in members)
            raise ValueError(f"it holds {len(members)} arrays, and one is needed: {names}")
        _check_size(members[0].file_size)
        return _read_npy(archive.read(members[0]))


def _check_size(number):
    if number > _LARGEST:
        raise ValueError(f"it claims to hold {number / 2**30:.1f} GiB, more than {_LARGEST / 2**30:g}")


def _write_png(file, array):
    if array.dtype != np.uint16:
        Image.fromarray(array).save(file, "PNG")
    else:
        bgr = array if array.ndim == 2 else array[..., [2, 1, 0, 3][:array.shape[2]]]
        file.write(cv2.imencode(".png", bgr)[1].tobytes())


def _write_tiff(file, array):
    import tifffile

    several = {"planarconfig": "contig"} if array.ndim == 3 else {}
    color = array.ndim == 3 and array.shape[2] == 3 and array.dtype in (np.uint8, np.uint16)
    tifffile.imwrite(file, array, photometric="rgb" if color else "minisblack", metadata=None, **several)


KINDS = (
    Kind((b"\x89PNG\r\n\x1a\n",), ".png", (), _read_png, _write_png),
    Kind(_TIFF, ".tif", (), _read_tiff, _write_tiff),
    Kind((b"\x93NUMPY",), ".npy", (".npy",), _read_npy, np.save),
    Kind((b"PK\x03\x04",), ".npz", (".npz",), _read_npz, np.savez_compressed),
    Kind((b"",), ".png", (), _read_pillow, _write_png),  # JPEG and whatever else Pillow reads
)
ARRAY_SUFFIXES = SUFFIXES + tuple(suffix for kind in KINDS for suffix in kind.suffixes)
WRITERS = {kind.suffix: kind.write for kind in KINDS}


def can_write(suffix, dtype, channels):
    """Whether files of a suffix can hold an array of a dtype (its name) and so many channels."""
    if suffix == ".png":
        return channels in {"bool": (1,), "uint8": (1, 2, 3, 4), "uint16": (1, 3, 4)}.get(dtype, ())
    return suffix != ".tif" or dtype != "bool" or channels == 1
