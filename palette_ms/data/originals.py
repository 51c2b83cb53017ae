"""A user's photo with all that it is besides RGB of 8 bits, and results that are like it.

The model is shown sRGB of 8 bits. Known pixels, depth, transparency, colour profile and what else a file says come from
the `Original`.
"""

import io
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Optional

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from palette_ms.data.exif import carried, of_texts, orientation_of, upright, write_tiff
from palette_ms.data.images import LUMA, PROFILE, from_srgb, open_picture, to_srgb, to_uint8
from palette_ms.data.readers import kind_of, read_array, turned
from palette_ms.errors import UserError

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_WHITES = (1023, 4095, 16383, 65535)  # of 10, 12, 14 and 16 bits


@dataclass
class Original:
    """A photo as it lies in its file, upright.

    Attributes:
        rgb: uint8 (H, W, 3), in sRGB: what the model is shown.
        values: uint8 or uint16 (H, W, 1 or 3), gray or RGB, in the file's own colour space.
        white: what white is among `values`.
        alpha: (H, W), of the dtype of `values`, whose largest value is opaque; or None.
        profile: the ICC profile by which `values` were converted to sRGB, and results are converted back; or None.
        info: what results are saved with: "icc_profile", "exif", "xmp", "dpi", "text".
    """

    rgb: np.ndarray
    values: np.ndarray
    white: int = 255
    alpha: Optional[np.ndarray] = None
    profile: Optional[bytes] = None
    info: dict = field(default_factory=dict)

    @property
    def is_gray(self):
        return self.values.shape[2] == 1

    @property
    def is_deep(self):
        return self.values.dtype == np.uint16

    def resized(self, height, width, filter=Image.BICUBIC):
        """It at another size, by one of Pillow's filters."""
        def resize(array):
            channels = [Image.fromarray(channel if channel.dtype == np.uint8 else channel.astype(np.float32))
                        for channel in np.moveaxis(array, -1, 0)]
            made = np.stack([np.asarray(channel.resize((width, height), filter)) for channel in channels], -1)
            return made if array.dtype == np.uint8 else made.round().clip(0, 65535).astype(array.dtype)

        rgb = np.asarray(Image.fromarray(self.rgb).resize((width, height), filter))
        alpha = None if self.alpha is None else resize(self.alpha[..., None])[..., 0]
        return replace(self, rgb=rgb, values=resize(self.values), alpha=alpha)

    def values_of(self, y, gray):
        """A result, float (3, H, W) in about [−1, 1], as the original's values are: (H, W, 1 if gray else 3)."""
        if self.is_deep:
            values = ((y.transpose(1, 2, 0) + 1) / 2).clip(0, 1).astype(np.float64)
            values = values @ LUMA[:, None] if gray else values
            return (values * self.white).round().astype(np.uint16)
        mode, image = "L" if gray else "RGB", Image.fromarray(to_uint8(y))
        if self.profile and gray == self.is_gray:
            return _channels_last(np.array(from_srgb(image, self.profile, mode)))
        return _channels_last(np.array(image.convert(mode)))

    def image(self, values, alpha):
        """What a user gets: a PIL image, with `info`. Where Pillow has no mode for 16 bits, the image has 8, and its
        attribute `deep` all of them, uint16 (H, W, C)."""
        parts = values if alpha is None else np.concatenate((values, alpha[..., None]), 2)
        deep = None
        if self.is_deep and parts.shape[2] == 1:
            image = Image.fromarray(parts[..., 0])
        else:
            if self.is_deep:
                deep, parts = parts, _eight_bits(values, self.white)
                if alpha is not None:
                    parts = np.concatenate((parts, _eight_bits(alpha, 65535)[..., None]), 2)
            image = Image.fromarray(parts.squeeze(2) if parts.shape[2] == 1 else parts)
        image.info.update(self.info)
        if values.shape[2] != self.values.shape[2]:
            image.info.pop("icc_profile", None)  # which is of gray or of RGB; the values are sRGB's now
        image.deep = deep
        return image


def read_original(source, name=None, show=print):
    """Read a photo whole.

    Args:
        source: a path, an open file, a PIL image, or an array, uint8 or uint16 (H, W), (H, W, 3) or (H, W, 4).
        name: what errors call it.
        show: told in a line what is assumed of it.

    Returns: `Original`.

    Raises:
        UserError: see `palette_ms.data.images.load_image`.
    """
    if isinstance(source, np.ndarray):
        if not source.size:
            raise UserError(f"the picture is empty: its shape is {source.shape}")
        if source.dtype not in (np.uint8, np.uint16) or source.ndim not in (2, 3) or source.ndim == 3 and (
                source.shape[2] not in (1, 3, 4)):
            raise UserError("a picture as an array must be uint8 or uint16 (H, W), (H, W, 3) or (H, W, 4), "
                            f"not {source.dtype} {source.shape}")
        return _original(_channels_last(source), {}, None, name or "the picture", show)
    if isinstance(source, Image.Image):
        return _from_pillow(source, None, name or "the picture", show)
    name = name or source
    with open_picture(source, name) as (image, data):
        return _from_pillow(image, data, name, show)


def _from_pillow(image, data, name, show):
    info = _about(image)
    values = _deep_values(image, data, name)
    profile = image.info.get("icc_profile")
    if values is None:
        if image.mode == "F":
            raise UserError(f"cannot read {name}: floating-point values without a known range: save it with 8 "
                            "or 16 bits")
        has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
        gray, orientation = image.mode in ("1", "L", "LA", "La"), _still_to_turn(image)
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            # Results are RGB, which such a profile says nothing of.
            image, profile = to_srgb(image), None
            info.pop("icc_profile", None)
        mode = ("LA" if gray else "RGBA") if has_alpha else ("L" if gray else "RGB")
        values = upright(_channels_last(np.asarray(image.convert(mode))), orientation)
    return _original(values, info, profile, name, show)


def _original(values, info, profile, name, show):
    """`Original` of upright values (H, W, 1 to 4) as they are stored."""
    alpha = None
    if values.shape[2] in (2, 4):
        alpha, values = values[..., -1], values[..., :-1]
    white = 255
    if values.dtype == np.uint16:
        most = int(values.max(initial=0))
        white = next(white for white in _WHITES if most <= white)
        if white < 65535 and most > 255:
            show(f"{name}: no value is above {most}: taken for {white.bit_length()} bits in 16")
        else:
            white = 65535
    rgb = _eight_bits(values, white)
    rgb = np.repeat(rgb, 3, 2) if rgb.shape[2] == 1 else rgb
    used = None
    if profile and values.dtype == np.uint8:
        flat = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        flat.info[PROFILE] = profile
        converted = np.asarray(to_srgb(flat))
        if not np.array_equal(converted, rgb):
            rgb, used = converted, profile
    return Original(np.ascontiguousarray(rgb), values, white, alpha, used, info)


def _deep_values(image, data, name):
    """Upright uint16 (H, W, C) of a picture with 16 bits, which Pillow cuts down to 8 in most modes; else None."""
    if image.mode in _DEEP_MODES:
        values = upright(np.asarray(image), _still_to_turn(image))
        if image.mode == "I" and (values.max(initial=0) <= 255 or values.max() > 65535 or values.min() < 0):
            values = values.clip(0, 65535)
            if values.max(initial=0) <= 255:  # 8-bit values in wider integers
                return values.astype(np.uint8)[..., None]
        return values.astype(np.uint16)[..., None]
    if data is None or kind_of(data).suffix not in (".png", ".tif"):
        return None
    if kind_of(data).suffix == ".png" and data[24:25] != b"\x10":
        return None
    try:
        values = read_array(data, name)
    except UserError:  # such as a TIFF packed in a way that takes a package more; OpenCV knows the usual ones
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None:
            return None
        values = values if values.ndim == 2 else values[..., [2, 1, 0, 3][:values.shape[2]]]
        values = turned(values, data)
    if values.ndim == 4:  # pages, of which the first is taken
        values = turned(values[0], data)
    if values.dtype != np.uint16 or values.ndim not in (2, 3):
        return None
    values = _channels_last(values)
    return values if values.shape[2] <= 4 else None


def _still_to_turn(image):
    """The orientation of an image's pixels once they are loaded, by which Pillow turns a TIFF."""
    image.load()
    with suppress(Exception):  # of EXIF that is damaged, and says nothing
        return orientation_of(image)
    return 1


def _about(image):
    """What results are saved with. What is damaged is left out: the pixels are sound."""
    info = {}
    for key in ("icc_profile", "xmp"):
        if image.info.get(key):
            info[key] = image.info[key]
    with suppress(Exception):
        dpi = tuple(map(float, image.info["dpi"]))
        if len(dpi) == 2 and all(0 < number < 2**16 for number in dpi):  # a damaged one may be NaN
            info["dpi"] = dpi
    try:
        exif = carried(image)
        if exif:
            info["exif"] = exif
    except Exception:  # a library's parser on bytes that may be anything
        info.pop("exif", None)
    if isinstance(info.get("xmp"), bytes):
        info["xmp"] = re.sub(rb'(tiff:Orientation(?:="|>))\d', rb"\g<1>1", info["xmp"])
    else:
        info.pop("xmp", None)
    text = {key: str(value) for key, value in getattr(image, "text", {}).items() if key != "XML:com.adobe.xmp"}
    if image.format in ("JPEG", "MPO") and image.info.get("comment"):
        text["Comment"] = image.info["comment"].decode("utf-8", "replace")
    if text:
        info["text"] = text
    return info


def _eight_bits(values, white):
    return values if values.dtype == np.uint8 else (values.astype(np.float64) * (255 / white)).round().clip(
        0, 255).astype(np.uint8)


def _channels_last(array):
    return array[..., None] if array.ndim == 2 else array


# Files of results

FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif"}
_OF_PILLOW = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tiff", "AVIF": "avif"}


def same_format(format):
    """The key of `FORMATS` that is nearest to a format by Pillow's name; png for those that are not written."""
    return _OF_PILLOW.get(format, "png")


_JPEG_HOLDS = {"exif": 65533, "xmp": 65504}  # bytes of a segment


def write_picture(image, file, format, quality=None, show=print):
    """Write what `Original.image` made, with its metadata.

    Args:
        file: open for writing, binary.
        format: a key of `FORMATS`. jpg and webp and avif have 8 bits, jpg no transparency: white stands behind it.
        quality: from 1 to 100, of jpg, webp and avif; None: 95.
        show: told in a line what a format cannot hold.
    """
    info, deep = image.info, getattr(image, "deep", None)
    about = {key: info[key] for key in ("icc_profile", "exif", "dpi") if info.get(key)}
    if deep is None and image.mode.startswith("I"):
        deep = np.asarray(image)
    if format == "png":
        text = PngImagePlugin.PngInfo()
        for key, value in info.get("text", {}).items():
            text.add_itxt(key, value)
        if "xmp" in info:
            text.add_itxt("XML:com.adobe.xmp", info["xmp"].decode("utf-8", "replace"))
        if deep is None:
            image.save(file, "PNG", pnginfo=text, **about)
        else:
            file.write(_deep_png(deep, text, about))
        return
    texts = dict(info.get("text", {}))
    comment = texts.pop("Comment", "").encode()[:_JPEG_HOLDS["exif"]] if format == "jpg" else b""
    exif = about.get("exif") or of_texts(texts)
    if exif:
        about["exif"] = exif
    if texts:
        show(f"text is left out, which a PNG alone holds: {', '.join(sorted(texts))}")
    if format == "tiff":
        values = np.asarray(image) if deep is None else _four_if_two(deep)
        write_tiff(_channels_last(values), file, xmp=info.get("xmp"), **about)
    else:
        quality = 95 if quality is None else quality
        if image.mode.startswith("I"):
            image = Image.fromarray(_eight_bits(np.asarray(image), 65535))
        if "xmp" in info:
            about["xmp"] = info["xmp"]
        if format == "jpg":
            for key, most in _JPEG_HOLDS.items():
                if len(about.get(key, b"")) > most:
                    show(f"{key.upper()} of {len(about.pop(key))} bytes is left out of a JPEG, which holds {most}")
            if image.mode in ("LA", "RGBA"):
                over = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(over, image.convert("RGBA")).convert(image.mode[:-1])
            image.save(file, "JPEG", quality=quality, subsampling=0, comment=comment, **about)
        else:
            about.pop("dpi", None)
            image.save(file, format.upper(), quality=quality, **about)


def _four_if_two(values):
    """Gray with alpha as RGB with alpha: of 16 bits OpenCV does not write the one, nor Pillow read it in a TIFF."""
    return values[..., [0, 0, 0, 1]] if values.ndim == 3 and values.shape[2] == 2 else values


def _deep_png(values, text, about):
    """A PNG of 16 bits, which Pillow does not write: pixels by OpenCV, what stands before them by Pillow."""
    values = values.squeeze(2) if values.ndim == 3 and values.shape[2] == 1 else values
    values = _four_if_two(values)
    swapped = values if values.ndim == 2 else np.ascontiguousarray(values[..., [2, 1, 0, 3][:values.shape[2]]])
    pixels = cv2.imencode(".png", swapped)[1].tobytes()
    other = io.BytesIO()
    Image.new("L" if values.ndim == 2 else "RGB", (1, 1)).save(other, "PNG", pnginfo=text, **about)
    end_of_header = 8 + 25  # signature, IHDR
    said = other.getvalue()[end_of_header:]
    return pixels[:end_of_header] + said[:said.index(b"IDAT") - 4] + pixels[end_of_header:]
