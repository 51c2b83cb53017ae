"""Writes the photos that the model of whole photos is trained on, and those that it is scored on.

    for name in gcompris-qt-data mate-backgrounds lomiri-wallpapers-16.04 lxqt-themes; do
        apt-get download $name && dpkg -x ${name}_*.deb packages/$name
    done
    python scripts/photo_data.py packages OUTPUT [--table docs/photo_data.csv]

From Debian packages, unpacked to packages/NAME, to OUTPUT/train and OUTPUT/held_out. Of gcompris-qt-data, which keeps
its pictures in Qt's resource files (.rcc), those of details.rcc are held out; drawings are told from photos by being
small, having alpha or a palette, in the others by their lack of fine detail. Photos have at most 640 pixels on the
shorter side. --table writes for each its set, package, place in the package's source, licence and copyright as the
package's copyright file has them.
"""

import argparse
import csv
import io
import re
import struct
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from quickstart_data import save

from palette_ms import errors
from palette_ms.data.files import replacing
from palette_ms.errors import UserError

SHORTER_SIDE = 640  # in pixels
RESOURCES, HELD_OUT = "gcompris-qt-data", "details"
# Package: where its photos lie, and what that is called in the package's source.
FOLDERS = {
    "mate-backgrounds": ("usr/share/backgrounds/mate", ""),
    "lomiri-wallpapers-16.04": ("usr/share/backgrounds", "16.04"),
    "lxqt-themes": ("usr/share/lxqt", ""),
}
LEAST_DETAIL = 3  # of `detail`


def members(blob):
    """(path, bytes) of each file in a Qt resource file: a tree of nodes, the files' data and their names, big-endian.

    Raises:
        UserError: it is none, or cut off.
    """
    if blob[:4] != b"qres":
        raise UserError("not a Qt resource file")
    try:
        version, tree, data, names = struct.unpack_from(">4I", blob, 4)
        yield from _walk(blob, 14 if version == 1 else 22, tree, data, names, 0, PurePosixPath())
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"a damaged Qt resource file: {error}") from None


def _walk(blob, size, tree, data, names, index, path):
    """A node has the place of its name, flags (1: zlib's data, 2: a folder), and the number of its children and the
    first of them, or in the same eight bytes its language and the place of its data."""
    place, flags, count, first = struct.unpack_from(">IHII", blob, tree + index * size)
    if index:  # the root has no name; others have its length, a hash, and UTF-16
        start = names + place
        length, = struct.unpack_from(">H", blob, start)
        path /= blob[start + 6:start + 6 + 2 * length].decode("utf-16-be")
    if flags & 2:
        for child in range(first, first + count):
            yield from _walk(blob, size, tree, data, names, child, path)
    else:
        length, = struct.unpack_from(">I", blob, data + first)
        content = blob[data + first + 4:data + first + 4 + length]
        yield path, zlib.decompress(content[4:]) if flags & 1 else content  # before zlib's data stands their length


def detail(image):
    """Median of the absolute Laplacian at 128×128, in grey levels: drawings and gradients have next to none."""
    gray = np.asarray(image.convert("L").resize((128, 128)), float)
    inner = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    return np.median(abs(inner))


def licences(text):
    """What Debian's machine-readable copyright file says (copyright-format 1.0): a function from a path in the source
    to (licence, copyright). Of several paragraphs on a file the last one holds; where only that on all files does, the
    holders are not listed."""
    rules = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*((?:.*)(?:\n[ \t].*)*)", paragraph, re.M))
        if "Files" in fields and "License" in fields:
            holders = "; ".join(line.strip() for line in fields.get("Copyright", "").splitlines())
            for pattern in fields["Files"].split():
                shape = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")  # "*" takes "/" as well
                rules.append((re.compile(shape, re.S), fields["License"].splitlines()[0],
                              "not noted singly: the package's" if pattern == "*" else holders))

    def of(path):
        # Pictures that were encoded anew since are still noted by their earlier names.
        names = path, *(str(PurePosixPath(path).with_suffix(suffix)) for suffix in (".jpg", ".jpeg", ".png"))
        return next(((licence, holders) for shape, licence, holders in reversed(rules)
                     if any(map(shape.fullmatch, names))), ("not told", ""))

    return of


def resource_photos(package):
    """(name, set, place in the source, PIL image) of the photos in gcompris-qt-data."""
    for file in sorted(package.glob("usr/share/gcompris-qt/rcc/*.rcc")):
        for path, content in members(file.read_bytes()):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and len(content) > 15_000:
                image = Image.open(io.BytesIO(content))
                if image.mode == "RGB" and min(image.size) >= 200:
                    name = f"{file.stem}__{'_'.join(path.with_suffix('').parts)}"
                    yield name, "held_out" if file.stem == HELD_OUT else "train", "/".join(path.parts[1:]), image


def plain_photos(package):
    """The same of a package whose photos are plain files."""
    folder, source = FOLDERS[package.name]
    for path in sorted((package / folder).rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file() and path.stat().st_size > 100_000:
            image = Image.open(path)
            if detail(image) > LEAST_DETAIL:
                place = PurePosixPath(source, path.relative_to(package / folder).as_posix())
                yield f"{package.name}_{path.stem}", "train", str(place), image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # backgrounds are large
    rows, packages = [], [args.packages / name for name in (RESOURCES, *FOLDERS)]
    for package in packages:
        if not package.is_dir():
            raise UserError(f"no such package: {package}; apt-get download {package.name}, then dpkg -x it to there")
    for package in packages:
        name = package.name
        notes = licences((package / "usr/share/doc" / name / "copyright").read_text(encoding="utf-8"))
        for photo, part, place, image in resource_photos(package) if name == RESOURCES else plain_photos(package):
            save(image, args.output / part / f"{photo}.png", SHORTER_SIDE)
            rows.append((part, f"{photo}.png", name, place, *notes(place)))
    if args.table:
        with replacing(args.table) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerows([("set", "photo", "package", "place", "licence", "copyright"), *sorted(rows)])
    print(", ".join(f"{part}: {sum(row[0] == part for row in rows)}" for part in ("train", "held_out")))


if __name__ == "__main__":
    errors.run(main)
