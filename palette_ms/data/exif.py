"""EXIF as it is carried from a photo to its result, and TIFF files that hold it.

Pillow's own way, to read EXIF and write it anew, loses what is not ASCII, such as ©; and beside EXIF it packs no TIFF,
nor has it 16 bits in colour. Adobe's "TIFF 6.0", which EXIF's form is too, is short enough for both.
"""

import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

_PREFIX = b"Exif\0\0"
_SHORT, _LONG, _RATIONAL, _BYTE, _UNDEFINED = 3, 4, 5, 1, 7
# Tags of a TIFF that say how its pixels lie, and other pictures', not what the picture is.
_OF_PIXELS = {*range(254, 260), 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, *range(288, 294), 301, 317,
              *range(320, 326), 330, 332, 333, 334, 336, *range(338, 348), *range(512, 522), *range(529, 533), 559,
              700, 34675, 37724, 42112, 42113, 50838, 50839}
_STRIP = 2**22  # bytes before they are packed


# Keywords of a PNG's texts (PNG, third edition, 11.3.3) that EXIF has a tag for.
_OF_TEXT = {"Description": ExifTags.Base.ImageDescription, "Author": ExifTags.Base.Artist,
            "Copyright": ExifTags.Base.Copyright, "Software": ExifTags.Base.Software}


def orientation_of(image):
    """The EXIF orientation of an opened image, from 1 to 8. May raise anything where it is damaged."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def upright(array, orientation):
    """An array (H, W, …) turned and mirrored as its EXIF orientation says, from 1 to 8."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.flip(array, flips)


def carried(image):
    """The EXIF of an opened image for a result that is upright, or None: there is none.

    Of a TIFF's tags those that are of its pixels alone are left out, of others' EXIF the small picture in it, which
    shows what was before. All else stays as it is, byte for byte but for the orientation. May raise anything where it
    is damaged.
    """
    tags = image.getexif()
    if not len(tags):
        return None
    data = image.info.get("exif")
    if not data:  # a TIFF, whose own tags they are
        own = Image.Exif()
        for tag in set(tags) - _OF_PIXELS:
            value = tags.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else tags[tag]
            # Pillow decodes texts as Latin-1, and would encode them as ASCII.
            own[tag] = value.encode("latin-1", "replace") if isinstance(value, str) else value
        data = own.tobytes() if len(own) else None
    return data and _upright(data)


def of_texts(texts):
    """EXIF that says what some of a PNG's texts do, or None: it has no tag for any of them.

    Args:
        texts: dict from keyword to text; those that are taken are removed.
    """
    own = Image.Exif()
    for keyword in texts.keys() & _OF_TEXT.keys():
        own[_OF_TEXT[keyword]] = texts.pop(keyword).encode()
    return own.tobytes() if len(own) else None


def _upright(data):
    data = bytearray(data.removeprefix(_PREFIX))
    order, place, count = _directory(data)
    for k in range(count):
        entry = place + 2 + 12 * k
        if struct.unpack_from(order + "H", data, entry)[0] == ExifTags.Base.Orientation:
            struct.pack_into(order + "HIHH", data, entry + 2, _SHORT, 1, 1, 0)
    struct.pack_into(order + "I", data, place + 2 + 12 * count, 0)  # no second directory: that of the small picture
    return _PREFIX + bytes(data)


def _directory(data):
    """(byte order for `struct`, place, number of entries) of the first directory."""
    order = {b"II": "<", b"MM": ">"}[bytes(data[:2])]
    place, = struct.unpack_from(order + "I", data, 4)
    return order, place, struct.unpack_from(order + "H", data, place)[0]


def write_tiff(values, file, exif=None, xmp=None, icc_profile=None, dpi=None):
    """Write a TIFF, packed by deflate.

    Args:
        values: uint8 or uint16 (H, W, 1 to 4): gray or RGB, each perhaps with opacity.
        file: open for writing, binary.
        exif: as `carried` gives it; its directory becomes the file's.
        xmp, icc_profile: bytes.
        dpi: (horizontal, vertical).
    """
    height, width, channels = values.shape
    begin = (exif or b"").removeprefix(_PREFIX) or b"II*\0" + bytes(4)
    file.write(begin)  # whole: what its directories say of places in the file holds
    entries, order = {}, "<" if begin.startswith(b"II") else ">"
    if exif:
        _, place, count = _directory(begin)
        entries = {struct.unpack_from(order + "H", begin, entry)[0]: begin[entry:entry + 12]
                   for entry in range(place + 2, place + 2 + 12 * count, 12)}

    def append(data):
        file.write(bytes(file.tell() % 2))  # values begin at even places
        file.write(data)
        return file.tell() - len(data)

    def tell(tag, kind, *numbers):
        data = b"".join(numbers) if kind in (_BYTE, _UNDEFINED) else struct.pack(
            f"{order}{len(numbers)}{'H' if kind == _SHORT else 'I'}", *numbers)
        count = len(data) if kind in (_BYTE, _UNDEFINED) else len(numbers) // (2 if kind == _RATIONAL else 1)
        if len(data) > 4:
            data = struct.pack(order + "I", append(data))
        entries[tag] = struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0")

    rows = max(1, _STRIP // (width * channels * values.itemsize))
    places, sizes = [], []
    for top in range(0, height, rows):
        strip = np.ascontiguousarray(values[top:top + rows], values.dtype.newbyteorder(order))
        packed = zlib.compress(strip.tobytes())
        places.append(append(packed))
        sizes.append(len(packed))
    tell(256, _LONG, width)
    tell(257, _LONG, height)
    tell(258, _SHORT, *[8 * values.itemsize] * channels)
    tell(259, _SHORT, 8)  # deflate
    tell(262, _SHORT, 2 if channels >= 3 else 1)  # RGB, or black is 0
    tell(273, _LONG, *places)
    tell(277, _SHORT, channels)
    tell(278, _LONG, rows)
    tell(279, _LONG, *sizes)
    tell(284, _SHORT, 1)  # channels side by side
    if channels in (2, 4):
        tell(338, _SHORT, 2)  # opacity, which the colours are not multiplied by
    if dpi:
        for tag, number in zip((282, 283), dpi):
            tell(tag, _RATIONAL, min(round(float(number) * 1000), 2**32 - 1), 1000)
        tell(296, _SHORT, 2)  # an inch
    if xmp:
        tell(700, _BYTE, xmp)
    if icc_profile:
        tell(34675, _UNDEFINED, icc_profile)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    place = append(directory)
    file.seek(4)
    file.write(struct.pack(order + "I", place))
