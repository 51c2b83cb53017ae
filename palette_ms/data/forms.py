"""What the source and the target of a model are: photos, or arrays of any channels and depth.

Files hold values, the network works on [−1, 1]. A `Form` goes from one to the other and back: `Photo` is 8-bit RGB
whatever the file holds, `Arrays` the file's own values, each channel with its range.
"""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from typing import Literal, Optional, Tuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from palette_ms.data.files import replacing
from palette_ms.data.images import SUFFIXES, load_image, to_float, to_uint8
from palette_ms.data.masks import weights
from palette_ms.data.originals import FORMATS, read_original, write_picture
from palette_ms.data.readers import ARRAY_SUFFIXES, WRITERS, from_pillow, plain, read_array, read_file
from palette_ms.errors import UserError

# What a config says of it, as data.channels, data.ranges and data.result.


@dataclass(frozen=True)
class Channels:
    """How many channels there are."""

    source: int = 3
    target: int = 3


@dataclass(frozen=True)
class Ranges:
    """The least and the greatest value, which become −1 and 1: one [low, high] for all channels, or one a channel.

    None: found in the files when a training starts.
    """

    source: Optional[Tuple[Tuple[float, float], ...]] = None
    target: Optional[Tuple[Tuple[float, float], ...]] = None


@dataclass(frozen=True)
class FileKind:
    """How results are written. None: as the targets of the training."""

    suffix: Optional[Literal[tuple(WRITERS)]] = None
    dtype: Optional[Literal["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16",
                            "float32"]] = None


def forms(data):
    """The `Form`s of source and target, as a `DataConfig` says: photos, unless it names other channels, or ranges."""
    if data.channels == Channels() and data.ranges is None:
        return Photo(), Photo()
    ranges = data.ranges or Ranges()
    return (Arrays(data.channels.source, ranges.source, data.result),
            Arrays(data.channels.target, ranges.target, data.result))


def can_hold(dtype, ranges):
    """Whether a dtype (its name) has all values of some ranges (low, high), but for fractions."""
    least, most = _ends(np.dtype(dtype))
    return all(least <= low and high <= most for low, high in ranges)


def _ends(dtype):
    """The least and the greatest value of a dtype."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    return (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)


def cast(values, dtype):
    """An array in another dtype: to whole numbers it is rounded and clipped."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f" or values.dtype == dtype:
        return values.astype(dtype)
    least, most = _ends(dtype)
    if dtype.itemsize == 8:
        most = np.nextafter(float(most), 0)  # float64 rounds the largest whole number up, out of the dtype
    return values.astype(np.float64).round().clip(least, most).astype(dtype)


class Unfit(UserError):
    """A file that can be read, but is no training picture of this model."""


class OtherChannels(Unfit):
    """A file of another number of channels than its form's.

    Attributes:
        name: what errors call it.
        count: its channels.
    """

    def __init__(self, name, count, wanted):
        super().__init__(f"{name} has {count} channel{'s' * (count != 1)}, where {wanted} "
                         f"{'is' if wanted == 1 else 'are'} needed")
        self.name, self.count = name, count


def _show(line):
    tqdm.write(line, file=sys.stderr)


class Form:
    """What `Photo` and `Arrays` have in common.

    Attributes:
        suffixes: of the files that count in folders and archives, in lower case.
        channels: how many.
    """

    def read_mask(self, source, name=None):
        """How much of each pixel is to be made: see `palette_ms.data.masks.weights`.

        Args:
            source: a path, an open file, a PIL image, or an array (H, W) or (H, W, C), of any type.
            name: what errors call an open file.

        Returns: float32 (H, W), from 0 to 1.

        Raises:
            UserError: see `palette_ms.data.readers.read_array`; or nothing is to be made, or it is no mask.
        """
        if name is None:
            name = source if isinstance(source, (str, PathLike)) else "the mask"
        if isinstance(source, (str, PathLike)) and os.path.isfile(source):
            with suppress(Exception), Image.open(source) as image:  # what cannot be read is told below
                if image.mode in ("CMYK", "YCbCr", "LAB"):  # whose values are not brightness, nor the fourth opacity
                    source = image.convert("RGB")
        return weights(Arrays().read(source, name), name)

    def to_show(self, y):
        """float (C, H, W) in about [−1, 1] → uint8 (H, W, 3) to look at: the first three channels, or the first."""
        return to_uint8(y[:3] if len(y) >= 3 else np.repeat(y[:1], 3, 0))


@dataclass(frozen=True)
class Photo(Form):
    """8-bit RGB, whatever the file holds: see `palette_ms.data.images.load_image`."""

    suffixes = SUFFIXES
    channels = 3
    kind = None

    def read(self, source, name=None, enough=None):
        """uint8 (H, W, 3). Arguments and errors are those of `load_image`."""
        return load_image(source, name, enough)

    def original(self, source):
        """What is kept of a user's picture: see `palette_ms.data.originals.read_original`."""
        return read_original(source, show=_show)

    def shown(self, original):
        """What the model is given of it, as `read` gives it."""
        return original.rgb

    def resized(self, original, height, width, filter=Image.BICUBIC):
        """It at another size, by one of Pillow's filters."""
        return original if original.rgb.shape[:2] == (height, width) else original.resized(height, width, filter)

    def finish(self, y, original, put_back, keeps_gray):
        """What a user gets, a PIL image as `palette_ms.data.originals.Original.image` makes it.

        Args:
            y: float (3, H, W) in about [−1, 1].
            original: of the result's size, but for what `put_back` adds around it.
            put_back: function (result, known), arrays (H, W, C) → the result with what was known, or None: all is made.
            keeps_gray: of a gray picture the result is gray.
        """
        gray = keeps_gray and original.is_gray
        values, alpha = original.values_of(y, gray), original.alpha
        if put_back:
            known = original.values if gray == original.is_gray else np.repeat(original.values, 3, 2)
            values = put_back(values, known)
            if alpha is not None:  # what is made hides what is behind it
                opaque = np.full((*values.shape[:2], 1), np.iinfo(alpha.dtype).max, alpha.dtype)
                alpha = put_back(opaque, alpha[..., None])[..., 0]
        return original.image(values, alpha)

    def outside(self, array):
        """How many values are out of the range: none."""
        return 0

    def to_float(self, array):
        """uint8 (H, W, 3) → float32 (3, H, W) in [−1, 1]."""
        return to_float(array)

    def from_float(self, y):
        """float (3, H, W) in about [−1, 1] → uint8 (H, W, 3), rounded and clipped."""
        return to_uint8(y)

    def resize(self, array, height, width, filter=Image.BICUBIC):
        """uint8 (H, W, 3) → uint8 (height, width, 3) by one of Pillow's filters."""
        # Pillow copies arrays that are not contiguous byte by byte.
        return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize((width, height), filter))

    def image(self, array):
        """uint8 (H, W, 3) → what a user gets: a PIL image."""
        return Image.fromarray(array)

    def save(self, image, path, format="png", quality=None):
        """Write what `image` or `finish` gave to a path, whole or not at all; returns the path.

        format, quality: see `palette_ms.data.originals.write_picture`.
        """
        with replacing(path) as temporary, open(temporary, "wb") as file:
            write_picture(image, file, format, quality, lambda line: _show(f"{path}: {line}"))
        return path

    def path(self, path, format="png"):
        """A path without suffix with that of a format's files."""
        return path.with_name(path.name + FORMATS[format])


@dataclass(frozen=True)
class Arrays(Form):
    """The file's own values, of any depth.

    Args:
        channels: how many; None: as many as a file has.
        ranges: (low, high) of each channel, or one for all, or None: not known.
        kind: `FileKind` of results, or None: not known.
    """

    channels: Optional[int] = None
    ranges: Optional[Tuple[Tuple[float, float], ...]] = None
    kind: Optional[FileKind] = None

    suffixes = ARRAY_SUFFIXES

    def read(self, source, name=None, enough=None):
        """The values of a file, array or PIL image as (H, W, C), in their own dtype (see `readers.plain`).

        Of an array (C, H, W) or a file with as many pages as there are channels, these are put last.

        Args:
            source: a path, an open file, a PIL image, or an array (H, W), (H, W, C) or (C, H, W).
            name: what errors call an open file.
            enough: not used: nothing is made smaller.

        Raises:
            UserError: see `palette_ms.data.readers.read_array`.
            Unfit: another number of channels, or values that are not finite.
        """
        array, name = self._values(source, name)
        count = self.channels or (min(array.shape[0], array.shape[-1]) if array.ndim == 3 else 1)
        if array.ndim == 2:
            array = array[..., None]
        elif array.ndim == 3 and array.shape[2] != count == array.shape[0]:
            array = np.moveaxis(array, 0, 2)
        if array.ndim > 3:
            raise Unfit(f"{name} is a stack of the shape {'×'.join(map(str, array.shape))}: save each picture of it, "
                        "with its channels, as a file of its own")
        if array.shape[2] != count:
            raise OtherChannels(name, min(array.shape[0], array.shape[2]), count)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Unfit(f"{name} holds values that are NaN or infinite: put numbers in their places, or leave it out")
        return array

    def _values(self, source, name):
        """(array as it lies in the source, with no axes of length 1 before the last three; what errors call it)."""
        if isinstance(source, Image.Image):
            source = from_pillow(source)
        if isinstance(source, np.ndarray):
            name = name or "the picture"
            array = plain(source, name)
        elif not isinstance(source, (str, PathLike)) and not hasattr(source, "read"):
            raise UserError(f"a picture must be a path, an array or a PIL image, not {type(source).__name__}")
        else:
            name = name or source
            array = read_array(source.read() if hasattr(source, "read") else read_file(source), name)
        while array.ndim > 3 and array.shape[0] == 1:
            array = array[0]
        return array, name

    def outside(self, array):
        """How many values are out of the range."""
        low, high = self._limits()
        return int(((array < low) | (array > high)).sum())

    def to_float(self, array):
        """(H, W, C) of any dtype → float32 (C, H, W) in [−1, 1]; what is out of the range is clipped."""
        low, high = self._limits()
        y = 2 * ((array - low) / np.where(high > low, high - low, 1)) - 1  # a flat channel is −1
        return np.ascontiguousarray(y.clip(-1, 1).transpose(2, 0, 1), np.float32)

    def from_float(self, y):
        """float (C, H, W) in about [−1, 1] → (H, W, C), in the results' dtype and range, whole numbers rounded."""
        return cast(self.values(y), self._known(self.kind, "data.result").dtype)

    def values(self, y):
        """float (C, H, W) in about [−1, 1] → float64 (H, W, C) in the range, not rounded."""
        low, high = self._limits()
        return (low + (y.astype(np.float64).transpose(1, 2, 0) + 1) / 2 * (high - low)).clip(low, high)

    def resize(self, array, height, width, filter=Image.BICUBIC):
        """(H, W, C) → float32 (height, width, C) by one of Pillow's filters, channel by channel."""
        return np.stack([np.asarray(Image.fromarray(channel).resize((width, height), filter))
                         for channel in np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)], 2)

    def original(self, source):
        """What is kept of a user's picture: its values, as `read` gives them."""
        return self.read(source)

    def shown(self, original):
        """What the model is given of it."""
        return original

    def resized(self, original, height, width, filter=Image.BICUBIC):
        """It at another size, see `resize`."""
        return original if original.shape[:2] == (height, width) else self.resize(original, height, width, filter)

    def finish(self, y, original, put_back, keeps_gray):
        """What a user gets, as `image` makes it. Arguments as of `Photo.finish`."""
        result = self.from_float(y)
        if put_back and result.shape[2] == original.shape[2]:
            # What was known comes back as it was, not as floats that were rounded.
            result = put_back(result, cast(original, result.dtype))
        return self.image(result)

    def image(self, array):
        """(H, W, C) → what a user gets: the array, of one channel (H, W)."""
        return array[..., 0] if array.shape[2] == 1 else array

    def save(self, image, path, format=None, quality=None):
        """Write what `image` gave to a path, whole or not at all; returns the path. Of format and quality the model's
        config decides."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            WRITERS[self._known(self.kind, "data.result").suffix](file, image)
        return path

    def path(self, path, format=None):
        """A path without suffix with that of the results' files."""
        return path.with_name(path.name + self._known(self.kind, "data.result").suffix)

    def _limits(self):
        """(low, high), each float64 (C,) or (1,)."""
        return np.array(self._known(self.ranges, "data.ranges"), np.float64).T

    @staticmethod
    def _known(value, key):
        if value is None:
            raise UserError(f"{key} is not known: a training finds it and writes it into its model's config; for other "
                            "files, give it")
        return value
