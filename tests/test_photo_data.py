"""The script that makes the training photos out of Debian packages, on small packages made here."""

import csv
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from running import imported

from palette_ms.errors import UserError

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2010 Somebody
License: GPL-3+

Files: src/activities/zoo/resource/*
       src/activities/farm/resource/cow.jpg
Copyright: 2011 Ann
           2012 Bob
License: CC-BY-SA-3.0

Files: src/activities/zoo/resource/gnu.jpg
Copyright: 2013 Cleo
License: CC0-1.0

License: CC0-1.0
 To the extent possible under law, ...
"""


@pytest.fixture(scope="module")
def script(repository):
    return imported(repository / "scripts" / "photo_data.py")


def resource_file(folders, compressed=(), version=1):
    """A Qt resource file as `rcc` writes it: nodes breadth first, names with a hash, data with their lengths.

    Args:
        folders: {name: folders or bytes}.
        compressed: names of files to be compressed.
    """
    nodes, names, data = [], b"", b""
    level = [("", folders, True)]
    first = 1  # of the next folder's children
    while level:
        deeper = []
        for name, content, is_root in level:
            place = 0 if is_root else len(names)
            if not is_root:
                names += struct.pack(">HI", len(name), 0xABCDEF) + name.encode("utf-16-be")
            if isinstance(content, dict):
                nodes.append(struct.pack(">IHII", place, 2, len(content), first))
                first += len(content)
                deeper += [(child, inner, False) for child, inner in content.items()]
            else:
                flag = name in compressed
                stored = struct.pack(">I", len(content)) + zlib.compress(content) if flag else content
                nodes.append(struct.pack(">IHHHI", place, int(flag), 0, 1, len(data)))
                data += struct.pack(">I", len(stored)) + stored
        level = deeper
    tree = b"".join(node + b"\0" * (8 if version > 1 else 0) for node in nodes)
    at = 20 if version < 3 else 24
    flags = b"" if version < 3 else b"\0" * 4
    places = struct.pack(">4I", version, at, at + len(tree), at + len(tree) + len(data))
    return b"qres" + places + flags + tree + data + names


def photo(width, height, seed=0, form="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_resource_file_gives_its_files(script, version):
    blob = resource_file({"a": {"b": {"x.png": b"12345", "ü.txt": b"t" * 1000}}, "c.bin": b""}, {"ü.txt"}, version)
    assert {str(path): content for path, content in script.members(blob)} == {
        "a/b/x.png": b"12345", "a/b/ü.txt": b"t" * 1000, "c.bin": b""}


@pytest.mark.parametrize("blob", [b"", b"PK\3\4 not of Qt at all", resource_file({"a.bin": b"abc"})[:40]])
def test_another_file_or_one_cut_off_is_a_mistake_told_in_a_line(script, blob):
    with pytest.raises(UserError):
        list(script.members(blob))


def test_licences_are_those_of_the_last_paragraph_on_a_file(script):
    of = script.licences(COPYRIGHT)
    assert of("src/activities/farm/resource/cow.jpg") == ("CC-BY-SA-3.0", "2011 Ann; 2012 Bob")
    assert of("src/activities/zoo/resource/deep/ape.png") == ("CC-BY-SA-3.0", "2011 Ann; 2012 Bob")
    assert of("src/activities/zoo/resource/gnu.webp") == ("CC0-1.0", "2013 Cleo")  # encoded anew
    assert of("src/other.jpg")[0] == "GPL-3+"
    assert script.licences("no such form")("a.jpg") == ("not told", "")


@pytest.fixture
def packages(tmp_path):
    """Three unpacked packages: photos in resource files, a photo and a gradient as files, none."""
    games = tmp_path / "packages" / "gcompris-qt-data"
    for name, content in {"zoo": {"gnu.png": photo(240, 220), "small.png": photo(90, 90, 1), "note.txt": b"x" * 20000},
                          "details": {"castle.png": photo(900, 700, 2)}}.items():
        file = games / "usr/share/gcompris-qt/rcc" / f"{name}.rcc"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(resource_file({"gcompris": {"src": {"activities": {name: {"resource": content}}}}}))
    mate = tmp_path / "packages" / "mate-backgrounds" / "usr/share/backgrounds/mate/nature"
    mate.mkdir(parents=True)
    (mate / "Dune.png").write_bytes(photo(300, 300, 3))
    gradient = np.linspace(0, 255, 300).astype(np.uint8)[:, None, None]
    Image.fromarray(gradient.repeat(300, 1).repeat(3, 2)).save(mate / "Gradient.png", compress_level=0)
    for name in ("gcompris-qt-data", "mate-backgrounds", "lomiri-wallpapers-16.04", "lxqt-themes"):
        folder = tmp_path / "packages" / name / "usr/share/doc" / name
        folder.mkdir(parents=True)
        (folder / "copyright").write_text(COPYRIGHT)
    return tmp_path / "packages"


def call(repository, *args):
    return subprocess.run([sys.executable, repository / "scripts" / "photo_data.py", *args], capture_output=True,
                          text=True)


def test_photos_and_their_table_are_written(repository, packages, tmp_path):
    done = call(repository, packages, tmp_path / "out", "--table", tmp_path / "table.csv")
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    castle = "details__gcompris_src_activities_details_resource_castle.png"
    gnu = "zoo__gcompris_src_activities_zoo_resource_gnu.png"
    assert written == {f"held_out/{castle}", f"train/{gnu}", "train/mate-backgrounds_Dune.png"}
    assert Image.open(tmp_path / "out" / "held_out" / castle).size == (823, 640)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = {row["photo"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {castle, gnu, "mate-backgrounds_Dune.png"}
    assert rows[gnu]["set"] == "train"
    assert (rows[gnu]["licence"], rows[gnu]["copyright"]) == ("CC0-1.0", "2013 Cleo")
    assert (rows[castle]["set"], rows[castle]["licence"]) == ("held_out", "GPL-3+")
    assert rows["mate-backgrounds_Dune.png"]["place"] == "nature/Dune.png"


def test_a_missing_package_is_named(repository, packages, tmp_path):
    (packages / "lxqt-themes").rename(tmp_path / "elsewhere")
    done = call(repository, packages, tmp_path / "out")
    assert done.returncode == 2 and "lxqt-themes" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_photos_held_out_are_not_among_those_to_train_on(repository):
    with open(repository / "docs" / "photo_data.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["set"] == "held_out" for row in rows) >= 20
    train, held_out = ({row["place"].rsplit("/", 1)[-1] for row in rows if row["set"] == part}
                       for part in ("train", "held_out"))
    assert not train & held_out
    # Nor any of the photos in scikit-image's wheel, which the quickstart's sheet shows.
    shown = ("astronaut", "chelsea", "coffee", "motorcycle", "stereo")
    assert not any(name in row["photo"].lower() for row in rows for name in shown)
    assert all(row["licence"] not in ("", "not told") for row in rows)
