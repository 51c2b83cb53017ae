"""Picture files and arrays of any kind → RGB, and back."""

import errno
import io
import os
import stat
import threading
import warnings
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from palette_ms.data.files import find, is_others, replacing, tell_left_out
from palette_ms.errors import UserError

# Above it, a file that claims to be a picture is taken for one that means harm.
_MEGAPIXELS = os.environ.get("PALETTE_MS_MEGAPIXELS", "")
MOST_PIXELS = 1_000_000 * (int(_MEGAPIXELS) if _MEGAPIXELS.isdecimal() else 400)
_LIMIT = threading.Lock()
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as libjpeg and Pillow
# Of damaged EXIF Pillow tells in lines of its own code. What cannot be read is an error, or left out.
warnings.filterwarnings("ignore", module=r"PIL\.")
_ROWS = 256  # converted at once, so that a large picture's floats are not held several times
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff",
            ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tga", ".pcx",
            ".sgi", ".ico", ".psd", ".qoi", ".dds")


def load_image(source, name=None, enough=None):
    """Any picture as uint8 RGB (H, W, 3).

    The EXIF rotation and the ICC profile (to sRGB) are applied; 16-bit values are scaled to 8; gray is repeated; alpha
    is laid over white; of an animation the first frame is taken.

    Args:
        source: a path, an open file, a PIL image, or an array, uint8 (H, W), (H, W, 3) or (H, W, 4).
        name: what errors call an open file.
        enough: pixels of the shorter side, or None: all there are. Of a JPEG in a file that has at least twice as many,
            libjpeg decodes a half, a quarter or an eighth of each side, the least that is still enough, and takes that
            much less time and memory; other formats are not made smaller.

    Raises:
        UserError: no such file, not a readable picture (truncated, empty, of an unknown format), or an array of
            another type or shape.
    """
    if isinstance(source, np.ndarray):
        return np.asarray(_to_rgb(_from_array(source)))
    if isinstance(source, Image.Image):
        return np.asarray(_to_rgb(source))
    with open_picture(source, name) as (image, _):
        if enough:
            image.draft(None, (enough, enough))
        return np.asarray(_to_rgb(image))


@contextmanager
def open_picture(source, name=None):
    """A picture file opened by Pillow, and its encoded bytes; what goes wrong with it is a UserError with its name.

    Args:
        source: a path or an open file.
        name: what errors call it.
    """
    if not hasattr(source, "read") and not isinstance(source, (str, PathLike)):
        raise UserError(f"a picture must be a path, an array or a PIL image, not {type(source).__name__}")
    name, image = name or source, None
    try:
        if hasattr(source, "read"):
            data = source.read()
        else:
            check_regular(source)
            with open(source, "rb") as file:
                data = file.read()
        with opened(data) as image:
            yield image, data
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such picture: {name}") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder, not a picture") from None
    except UnidentifiedImageError:
        hint = "of floating-point values or another kind that is no photo's: save it with 8 or 16 bits" if (
            data.startswith(_TIFF)) else "empty, or of an unknown format"
        raise UserError(f"cannot read picture {name}: {hint}") from None
    # Pillow's decoders raise many kinds of error on damaged files: OSError, SyntaxError, ValueError, struct.error …
    except Exception as error:
        text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        if isinstance(error, OSError) and "truncated" in text:
            text += _share_whole(image)
        raise UserError(f"cannot read picture {name}: {text}") from None


def opened(data):
    """Encoded bytes, opened by Pillow, whose limits are not ours: `MOST_PIXELS` may be raised, and texts too large for
    it, or damaged, are no reason to refuse a PNG. May raise anything."""
    try:
        image = _open(data)
        if data.startswith(_PNG):
            image.load()  # some texts stand behind the pixels
        return image
    except (ValueError, SyntaxError, OSError):
        if not data.startswith(_PNG):
            raise
    with suppress(ValueError, SyntaxError, OSError):
        image = _open(pixels_alone(data, _TEXTS))
        image.load()
        return image
    return _open(pixels_alone(data))


def _open(data):
    with _LIMIT:  # Pillow's is the whole process's
        most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = most
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width * image.height / 1e6:.0f} megapixels, more than the "
                         f"{MOST_PIXELS / 1e6:.0f} that are taken; PALETTE_MS_MEGAPIXELS=N in the environment allows "
                         "more")
    return image


_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def pixels_alone(data, without=(*_TEXTS, b"iCCP")):
    """A PNG without the chunks that hold texts and a profile: large or damaged ones, which Pillow refuses, say nothing
    against the pixels."""
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place:place + 4], "big")
        if data[place + 4:place + 8] not in without:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _share_whole(image):
    """What to add to the message on a file that is cut off: how much of a picture Pillow has decoded."""
    try:
        rows = np.asarray(image.im if isinstance(image.im, Image.Image) else image._new(image.im))
    except Exception:  # nothing at all
        return ""
    whole = np.flatnonzero(rows.reshape(len(rows), -1).any(1))
    count = whole[-1] + 1 if len(whole) else 0
    return (f"; about {count} of its {len(rows)} rows are whole: a program that opens it can save these as a picture "
            "of its own")


def _from_array(array):
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UserError(f"a picture as an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), "
                        f"not {array.dtype} {array.shape}")
    return Image.fromarray(array)


PROFILE = "icc_profile"  # what Pillow calls it


def to_srgb(image):
    """A PIL image as RGB in sRGB, by its ICC profile; without one, or with one that is damaged or of other channels,
    as it stands."""
    profile = image.info.get(PROFILE)
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), _INTENT, "RGB")
    return image.convert("RGB")


def from_srgb(image, profile, mode):
    """RGB in sRGB as the image of an ICC profile, in the mode "L" or "RGB"."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), own, _INTENT, mode)


_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC


def _to_rgb(image):
    image.load()  # raises where it is damaged; a second time Pillow gives what it has decoded, without a word
    with suppress(Exception):  # EXIF that is damaged says nothing, and the pixels are sound
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError("floating-point values without a known range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts 16-bit values off at 255. "I" may hold 8-bit values in wider integers.
        values = np.asarray(image).astype(np.float64)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        profile, image = image.info.get(PROFILE), image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        image.info[PROFILE] = profile
    return to_srgb(image)


def to_float(image):
    """uint8 (H, W, 3) → float32 (3, H, W) in [−1, 1]."""
    y = np.array(image.transpose(2, 0, 1), np.float32, order="C")
    y /= 127.5
    y -= 1
    return y


def by_rows(function, *arrays):
    """A function of pixels, on some rows of large pictures (…, H, W) at once, since what it makes on its way takes a
    few times their memory. Returns what it makes of all, float32 (…, H, W)."""
    made = None
    for top in range(0, arrays[0].shape[-2], _ROWS):
        part = function(*(array[..., top:top + _ROWS, :] for array in arrays))
        if made is None:
            made = np.empty((*part.shape[:-2], *arrays[0].shape[-2:]), np.float32)
        made[..., top:top + _ROWS, :] = part
    return made


def to_uint8(y):
    """float (3, H, W) in about [−1, 1] → uint8 (H, W, 3), rounded and clipped."""
    made = np.empty((*y.shape[1:], len(y)), np.uint8)
    for top in range(0, y.shape[1], _ROWS):
        made[top:top + _ROWS] = ((y[:, top:top + _ROWS].transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255)
    return made


def check_regular(path):
    """Raises OSError of a pipe, at whose other end nobody may be, and of a device, which may have no end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")


def further_frames(source):
    """How many frames or pages a picture file, a path or an open file, has besides the first."""
    try:
        with Image.open(source) as image:
            # Of MPO, which cameras write, the further ones are the same picture for other screens.
            return 0 if image.format == "MPO" else getattr(image, "n_frames", 1) - 1
    except Exception:  # of a damaged one is told elsewhere
        return 0


def is_picture(path, suffixes=SUFFIXES):
    """Whether a `PurePath` in a folder or archive is that of a picture, by its suffix, and not hidden or another
    program's, see `palette_ms.data.files.is_others`."""
    return path.suffix.lower() in suffixes and not any(is_others(part) for part in path.parts if part != "..")


def list_images(folder, suffixes=SUFFIXES, leave_out=()):
    """All picture files below a folder, sorted by name; what was left out is told in a line on stderr.

    Args:
        folder, suffixes, leave_out: see `palette_ms.data.files.find`.

    Raises:
        UserError: no such folder, or none in it.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no such folder: {folder}, or no right to look into it")
    files, left_out = find(folder, suffixes, leave_out)
    tell_left_out(folder, left_out)
    if not files:
        raise no_pictures(folder, suffixes)
    return files


def no_pictures(place, suffixes):
    """The UserError of a folder or archive without any."""
    others = "" if ".npy" in suffixes else "; .npy and .npz count where data.channels, or --arrays, is given"
    return UserError(f"no pictures in {place} (looked for {', '.join(suffixes)}, in subfolders too{others})")


def grid(rows, gap=2):
    """Pictures side by side.

    Args:
        rows: list of lists of uint8 (H, W, 3) arrays of one size; a None leaves its place white.
        gap: white pixels between.

    Returns: PIL image.
    """
    height, width = next(cell for row in rows for cell in row if cell is not None).shape[:2]
    columns = max(map(len, rows))
    sheet = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell is not None:
                top, left = i * (height + gap), j * (width + gap)
                sheet[top:top + height, left:left + width] = cell
    return Image.fromarray(sheet)


def save_atomically(image, path):
    """Write a PIL image as PNG to a temporary name, then rename it."""
    with replacing(path) as temporary:
        image.save(temporary, "PNG")



def resize(pictures, height, width):
    """float32 (N, C, H, W) → (N, C, height, width): made smaller by the mean over an area, larger by cubics."""
    filter = cv2.INTER_AREA if height < pictures.shape[2] else cv2.INTER_CUBIC
    return np.stack([[cv2.resize(np.ascontiguousarray(channel), (width, height), interpolation=filter)
                      for channel in picture] for picture in pictures]).astype(np.float32)
