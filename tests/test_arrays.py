"""Files of any channels and depth: read as they are, found ranges, written back, trained on."""

import csv
import dataclasses
import io
import shutil
import struct
import tarfile
import zipfile
import zlib
from importlib.util import find_spec

import mindspore as ms
import numpy as np
import pytest
import tifffile
from PIL import Image

from palette_ms import runtime
from palette_ms.checkpoint import Checkpoint
from palette_ms.config import config_from_dict
from palette_ms.data import scan
from palette_ms.data.forms import Arrays, FileKind, Photo, Ranges, forms
from palette_ms.data.loader import TrainingBatches, crop
from palette_ms.data.readers import ARRAY_SUFFIXES
from palette_ms.data.scan import find_ranges
from palette_ms.data.sources import Row, decode, open_source
from palette_ms.errors import UserError
from palette_ms.pack import pack
from palette_ms.split import split
from palette_ms.training import loop

HEIGHT, WIDTH = 12, 9


def values(channels, dtype=np.uint16, height=HEIGHT, width=WIDTH):
    """(H, W, C), over the whole range of whole numbers."""
    rng, shape = np.random.default_rng(channels), (height, width, channels)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    if dtype is bool:
        return rng.random(shape) < 0.5
    info = np.iinfo(dtype)
    array = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    array[0, 0], array[0, 1] = info.min, info.max
    return array


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(*arrays):
    file = io.BytesIO()
    np.savez_compressed(file, *arrays)
    return file.getvalue()


def png(array, color):
    """A 16-bit PNG of a colour type, as the format's specification has it."""
    height, width, channels = array.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def pillow(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(data, channels=None, name="a.x"):
    return Arrays(channels).read(io.BytesIO(data), name)


# Reading

CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
PLANAR = {"photometric": "minisblack", "planarconfig": "separate"}


def first(array):
    return array.transpose(2, 0, 1)


@pytest.mark.parametrize("channels, dtype, encode", [
    (1, np.uint8, lambda a: tiff(a[..., 0])),
    (1, np.uint16, lambda a: tiff(a[..., 0])),
    (1, np.int16, lambda a: tiff(a[..., 0], byteorder=">")),
    (1, np.uint32, lambda a: tiff(a[..., 0], bigtiff=True)),
    (1, np.float32, lambda a: tiff(a[..., 0], tile=(16, 16), compression="zlib")),
    (1, bool, lambda a: tiff(a[..., 0])),
    (1, np.uint16, lambda a: tiff(np.invert(a[..., 0]), photometric="miniswhite")),
    (3, np.uint16, lambda a: tiff(a, photometric="rgb")),
    (3, np.uint16, lambda a: tiff(a, imagej=True)),
    (4, np.uint16, lambda a: tiff(a, **CONTIGUOUS)),
    (13, np.uint16, lambda a: tiff(a, **CONTIGUOUS, rowsperstrip=3)),
    (13, np.uint16, lambda a: tiff(first(a), **PLANAR)),
    (5, np.float32, lambda a: tiff(first(a))),  # pages
    (5, np.float32, lambda a: tiff(first(a), metadata=None)),
    (5, np.uint16, lambda a: tiff(first(a), imagej=True)),
    (2, np.uint16, lambda a: tiff(first(a), ome=True, metadata={"axes": "CYX"})),
    (4, np.uint16, lambda a: tiff(a)),
    (13, np.uint16, lambda a: tiff(a, metadata=None)),  # rows as pages, where no one said that there are channels
    (HEIGHT, np.uint16, lambda a: tiff(first(a), **PLANAR)),  # (C, H, W) and (H, W, C) would both fit
    (1, np.uint16, lambda a: png(a, 0)),
    (3, np.uint16, lambda a: png(a, 2)),
    (2, np.uint16, lambda a: png(a, 4)),
    (4, np.uint16, lambda a: png(a, 6)),
    (1, np.uint8, lambda a: pillow(Image.fromarray(a[..., 0]), "PNG")),
    (2, np.uint8, lambda a: pillow(Image.fromarray(a, "LA"), "PNG")),
    (4, np.uint8, lambda a: pillow(Image.fromarray(a), "PNG")),
    (3, np.uint8, lambda a: pillow(Image.fromarray(a), "BMP")),
    (1, bool, lambda a: pillow(Image.fromarray(a[..., 0]), "PNG")),
    (1, np.int32, lambda a: npy(a[..., 0])),
    (7, np.float32, npy),
    (7, np.float32, lambda a: npy(first(a))),
    (7, np.float16, lambda a: npy(np.asfortranarray(a))),
    (2, np.int64, lambda a: npy(a[None, None])),
    (3, np.uint16, lambda a: npy(a.astype(">u2"))),
    (3, bool, npy),
    (3, np.uint16, npz),
    (1, np.float32, lambda a: npz(a[..., 0])),
])
def test_files_hold_their_own_values(channels, dtype, encode):
    array = values(channels, dtype)
    found = read(encode(array), channels)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == dtype and found.dtype.isnative
    if channels < HEIGHT:
        np.testing.assert_array_equal(read(encode(array)), array)


def test_doubles_become_floats_and_jpegs_are_what_pillow_says():
    array = np.random.default_rng(0).normal(size=(5, 6))
    np.testing.assert_array_equal(read(npy(array))[..., 0], array.astype(np.float32))
    data = pillow(Image.fromarray(values(1, np.uint8)[..., 0]), "JPEG")
    np.testing.assert_array_equal(read(data)[..., 0], np.asarray(Image.open(io.BytesIO(data))))
    palette = Image.fromarray(values(3, np.uint8)).quantize(16)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read(pillow(palette, kind), 3), np.asarray(palette.convert("RGB")))


def test_arrays_images_and_paths_are_taken_too(tmp_path):
    array = values(2)
    (tmp_path / "a.jpg").write_bytes(npy(array))  # told by its content
    for source in (array, first(array), tmp_path / "a.jpg", str(tmp_path / "a.jpg")):
        np.testing.assert_array_equal(Arrays(2).read(source), array)
    gray = values(1, np.uint8)
    np.testing.assert_array_equal(Arrays(1).read(Image.fromarray(gray[..., 0])), gray)


def lying_npy(shape):
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text + b"\n" + bytes(800)


REFUSED = {
    "empty.tif": (b"", "empty, or of an unknown format"),
    "page.npy": (b"<html>not found</html>", "empty, or of an unknown format"),
    "object.npy": (npy(np.array([[{}, 1]]), allow_pickle=True), "holds Python objects"),
    "pickle.npy": (b"\x80\x04]\x94.", "empty, or of an unknown format"),
    "complex.npy": (npy(np.zeros((3, 3), complex)), "holds complex128, not real numbers"),
    "text.npy": (npy(np.array([["a", "b"]])), "holds <U1, not real numbers"),
    "scalar.npy": (npy(np.float32(3)), r"is of the shape \(\), not a picture"),
    "line.npy": (npy(np.zeros(3)), r"is of the shape \(3,\), not a picture"),
    "nothing.npy": (npy(np.zeros((0, 5))), r"is of the shape \(0, 5\), not a picture"),
    "terabytes.npy": (lying_npy((10**6, 10**6)), "cannot read .*(allocate|it claims to hold 7450.6 GiB)"),
    "gigabytes.npy": (lying_npy((10**4, 10**4)), "cannot read"),
    "cut.npy": (npy(np.zeros((9, 9)))[:200], "cannot read"),
    "two.npz": (npz(np.zeros((2, 2)), np.ones((2, 2))), "holds 2 arrays, and one is needed: arr_0, arr_1"),
    "none.npz": (npz(), "holds 0 arrays|unknown format"),
    "object.npz": (npz(np.array([[{}, 1]])), "holds Python objects"),
    "cut.npz": (npz(values(3))[:300], "cannot read"),
    "cut.tif": (tiff(values(1, np.uint16, 64, 64))[:5000], "cannot read"),
    "header.tif": (tiff(values(1))[:20], "cannot read"),
    "cut.png": (png(values(3, np.uint16, 64, 64), 2)[:3000], "cannot read"),
    "header.png": (png(values(3), 2)[:28], "cannot read"),
    "stack.tif": (tiff(np.zeros((2, 3, 6, 5), np.uint16), imagej=True), "is a stack of the shape 2×3×6×5: save each"),
    "nan.npy": (npy(np.array([[1, np.nan]])), "holds values that are NaN or infinite"),
    "infinite.tif": (tiff(np.array([[1, np.inf]], np.float32)), "holds values that are NaN or infinite"),
    "huge.npy": (npy(np.array([[1, 1e300]])), "holds values that are NaN or infinite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path, name, capfd):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        Arrays().read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_unpacks_to_more_than_memory_holds_is_refused(monkeypatch):
    data = npz(np.zeros((1000, 1000)))
    assert len(data) < 20_000
    monkeypatch.setattr("palette_ms.data.readers._LARGEST", 2**20)
    with pytest.raises(UserError, match="a.x: it claims to hold 0.0 GiB, more than"):
        read(data)
    with pytest.raises(UserError, match="more than"):
        read(tiff(np.zeros((1000, 1000)), compression="zlib"))


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="it is installed")
def test_a_compression_that_needs_imagecodecs_says_so():
    data = pillow(Image.fromarray(values(1)[..., 0]), "TIFF", compression="tiff_lzw")
    with pytest.raises(UserError, match="a.x: .*LZW.*pip install imagecodecs"):
        read(data)
    array = values(1)
    for compression in ("zlib", "lzma"):
        np.testing.assert_array_equal(read(tiff(array[..., 0], compression=compression)), array)


def test_missing_files_folders_and_other_channels_are_told(tmp_path):
    for path, message in ((tmp_path / "none.tif", "no such picture"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=message):
            Arrays().read(path)
    with pytest.raises(UserError, match="a.x has 4 channels, where 1 is needed"):
        read(tiff(values(4), **CONTIGUOUS), 1)
    with pytest.raises(UserError, match="the picture has 1 channel, where 3 are needed"):
        Arrays(3).read(values(1)[..., 0])
    with pytest.raises(UserError, match="a.x has 7 channels, where 3 are needed"):
        read(npy(first(values(7))), 3)


# To [−1, 1] and back


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, bool])
def test_whole_numbers_survive_the_way_there_and_back(dtype):
    array = values(3, dtype)
    limits = (0, 1) if dtype is bool else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    form = Arrays(3, (limits,), FileKind(".tif", np.dtype(dtype).name))
    y = form.to_float(array)
    assert y.dtype == np.float32 and y.shape == (3, HEIGHT, WIDTH) and (y.min(), y.max()) == (-1, 1)
    back = form.from_float(y)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == dtype


def test_each_channel_has_its_range():
    form = Arrays(2, ((0, 10), (-4, -2)), FileKind(".npy", "float32"))
    array = np.array([[[0, -4], [5, -3]], [[10, -2], [20, -2.5]]], np.float32)
    np.testing.assert_allclose(form.to_float(array), [[[-1, 0], [1, 1]], [[-1, 0], [1, 0.5]]], atol=1e-6)
    assert form.outside(array) == 1
    np.testing.assert_allclose(form.from_float(np.float32([[[-1, 0]], [[2, -9]]])), [[[0, -2], [5, -4]]], atol=1e-6)


def test_a_flat_channel_stays_what_it_is():
    form = Arrays(1, ((7, 7),), FileKind(".npy", "uint16"))
    y = form.to_float(np.full((2, 2, 1), 7, np.uint16))
    assert (y == -1).all()
    assert (form.from_float(y + 0.3) == 7).all()


def test_results_are_rounded_and_do_not_wrap_around():
    form = Arrays(1, ((-0.5, 255.5),), FileKind(".tif", "uint8"))
    made = form.from_float(np.float32([[[-1.5, -1, 0, 0.999, 1, 1.5]]]))
    np.testing.assert_array_equal(made[0, :, 0], [0, 0, 128, 255, 255, 255])


def test_without_a_range_the_user_is_told_what_gives_one():
    with pytest.raises(UserError, match="data.ranges is not known: a training finds it"):
        Arrays(1).to_float(values(1))
    with pytest.raises(UserError, match="data.result is not known"):
        Arrays(1, ((0, 1),)).from_float(np.zeros((1, 2, 2)))


@pytest.mark.parametrize("suffix, dtype, channels", [
    (".png", "bool", 1), (".png", "uint8", 1), (".png", "uint8", 2), (".png", "uint8", 3), (".png", "uint8", 4),
    (".png", "uint16", 1), (".png", "uint16", 3), (".png", "uint16", 4),
    *((".tif", dtype, channels) for channels in (1, 2, 3, 4, 13)
      for dtype in ("uint8", "uint16", "int16", "uint32", "int64", "float16", "float32")), (".tif", "bool", 1),
    (".npy", "float32", 5), (".npy", "bool", 2), (".npz", "int32", 1)])
def test_results_come_back_from_their_files(tmp_path, suffix, dtype, channels):
    array = values(channels, bool if dtype == "bool" else np.dtype(dtype).type)
    form = Arrays(channels, ((0, 1),), FileKind(suffix, dtype))
    path = form.save(form.image(array), form.path(tmp_path / "new" / "a.b"))
    assert path == tmp_path / "new" / f"a.b{suffix}" and [path] == list((tmp_path / "new").iterdir())
    found = form.read(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == dtype
    shape = (HEIGHT, WIDTH, channels) if channels > 1 else (HEIGHT, WIDTH)
    if suffix == ".tif":  # for other programs
        assert tifffile.imread(path).shape == shape and len(tifffile.TiffFile(path).pages) == 1
    if suffix == ".npy":
        assert np.load(path).shape == shape
    if suffix == ".png" and (dtype, channels) != ("uint16", 4):
        assert np.asarray(Image.open(path)).shape == shape


def test_a_failed_write_leaves_nothing(tmp_path):
    form = Arrays(5, ((0, 1),), FileKind(".png", "uint8"))
    with pytest.raises(Exception):  # noqa: B017
        form.save(values(5, np.uint8), form.path(tmp_path / "a"))
    assert not list(tmp_path.iterdir())


def test_arrays_are_resized_channel_by_channel():
    array = values(5, np.int16)
    made = Arrays(5).resize(array, 20, 7, Image.LANCZOS)
    assert made.shape == (20, 7, 5) and made.dtype == np.float32
    for k in range(5):
        one = Image.fromarray(array[..., k].astype(np.float32)).resize((7, 20), Image.LANCZOS)
        np.testing.assert_array_equal(made[..., k], np.asarray(one))


def test_any_channels_can_be_looked_at():
    y = np.linspace(-1, 1, 5 * 4, dtype=np.float32).reshape(5, 2, 2)
    for channels, shown in ((1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])):
        picture = Arrays(channels).to_show(y[:channels])
        np.testing.assert_array_equal(picture, Photo().from_float(y[shown]))


@pytest.mark.parametrize("white", [True, 1, 255, 65535, 0.25])
def test_a_mask_is_white_where_it_is_above_half(white):
    mask = values(1, bool)[..., 0]
    dtype = bool if white is True else np.float32 if white == 0.25 else np.uint16
    for array in (mask * np.array(white, dtype), np.repeat((mask * np.array(white, dtype))[..., None], 3, 2)):
        np.testing.assert_array_equal(Arrays(4).read_mask(array), mask)
    with pytest.raises(UserError, match="no white pixel"):
        Arrays().read_mask(np.zeros((3, 3), np.uint8))


# Sources of arrays


def config(path, channels, tasks=("paired",), training=None, **data):
    return config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": []},
        "diffusion": {"prediction": "v", "noise_levels": "cosine", "test_schedule": {"num_steps": 8}},
        "tasks": [{"name": name} for name in tasks],
        "data": {"path": str(path), "image_size": 16, "min_scale": 0.5, "workers": 2, "cache_mb": 0,
                 "channels": dict(zip(("source", "target"), channels)), **data},
        "training": {"batch_size": 2, "seed": 4, **(training or {})}}, "test")


def found(config):
    """The config with what the scan finds."""
    return dataclasses.replace(config, data=scanned(config.data))


def scanned(data):
    return find_ranges(data, open_source(data.path, forms(data)[1].suffixes), print)


def assert_same(batch, other):
    for a, b in zip(batch, other):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """Two channels of int16 as TIFF and .npy."""
    root, rng = tmp_path_factory.mktemp("singles"), np.random.default_rng(0)
    (root / "sub").mkdir()
    for k in range(5):
        array = rng.integers(-1000, 3000, (30 + k, 25, 2)).astype(np.int16)
        if k % 2:
            np.save(root / "sub" / f"{k}.npy", first(array))
        else:
            (root / f"{k}.tif").write_bytes(tiff(array, **CONTIGUOUS))
    return root


def test_every_kind_of_source_gives_the_same_arrays(singles, tmp_path):
    form = Arrays(2)
    wanted = [form.read(path) for path, in open_source(singles, form.suffixes).rows]
    names = [path.relative_to(singles).as_posix() for path, in open_source(singles, form.suffixes).rows]
    assert len(wanted) == 5
    (tmp_path / "a.txt").write_text("\n".join(str(singles / name) for name in names))
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("target",), *((singles / name,) for name in names)])
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(singles / name, name)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(singles, ".")
    pack(singles, tmp_path / "a.mindrecord", arrays=True)
    base = found(config(singles, (2, 2), ["inpainting", "denoising"]))
    for kind in ("txt", "csv", "zip", "tar", "mindrecord"):
        source = open_source(tmp_path / f"a.{kind}", form.suffixes)
        for i, array in enumerate(wanted):
            np.testing.assert_array_equal(decode(source.read(i), (form, form)).target, array)
    moved = dataclasses.replace(base, data=dataclasses.replace(base.data, path=str(tmp_path / "a.mindrecord")))
    assert_same(TrainingBatches(base).batch(3), TrainingBatches(moved).batch(3))
    assert len(open_source(singles)) == 3  # to a model of photos, .npy files are no pictures


def test_arrays_are_split_by_what_they_show(tmp_path):
    for k, array in enumerate(np.kron(np.random.default_rng(0).normal(0, 1e4, (20, 16, 16, 1)), np.ones((4, 4, 3)))):
        (tmp_path / f"{k:02}.npy").write_bytes(npy(array))
        (tmp_path / f"{k:02}_copy.tif").write_bytes(tiff(first(array[:, ::-1]).astype(np.float32), **PLANAR))
    lists = split(tmp_path, tmp_path / "lists", 0.4, arrays=True)
    sides = [{path.name[:2] for path, in open_source(path).rows} for path in lists]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 20
    assert sum(len(open_source(path)) for path in lists) == 40


# Pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Four channels of uint16 → three floats, which are the first three halved; made only where a mask is white."""
    root, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    rows = []
    for k in range(6):
        source = rng.integers(0, 4096, (40, 30 + k, 4)).astype(np.uint16)
        mask = np.zeros(source.shape[:2], np.uint8)
        mask[10:30, 5:20] = 255
        target = np.where(mask[..., None] > 0, source[..., :3] / 2, -100).astype(np.float32)
        (root / f"s{k}.tif").write_bytes(tiff(first(source), **PLANAR))
        (root / f"t{k}.npy").write_bytes(npy(first(target)))
        Image.fromarray(mask).save(root / f"m{k}.png")
        rows.append((f"t{k}.npy", f"m{k}.png", f"s{k}.tif"))
    with open(root / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("target", "mask", "source"), *rows])
    return root / "pairs.csv"


def test_source_target_and_mask_stay_in_line(pairs):
    wanted = found(config(pairs, (4, 3), min_scale=0.5, image_size=32, training={"batch_size": 30}))
    batch = TrainingBatches(wanted).batch(0)  # of pictures 30 to 35 pixels wide: enlarged a little, or cut
    assert (batch.cond.shape, batch.y_0.shape, batch.mask.shape) == ((30, 4, 32, 32), (30, 3, 32, 32), (30, 1, 32, 32))
    source, target = forms(wanted.data)
    cut = 0
    for cond, y_0, mask in zip(batch.cond, batch.y_0, batch.mask):
        hole = mask[0] > 0
        before, after = dataclasses.replace(source, kind=target.kind).from_float(cond), target.from_float(y_0)
        assert hole.any() and not hole.all()
        # Enlarging mixes some pixels of both sides of the hole's edge.
        right = [(np.abs(after - before[..., :3] / 2) < 0.01).all(2), (np.abs(after + 100) < 0.01).all(2)]
        if right[0][hole].all() and right[1][~hole].all():
            cut += 1
    assert cut >= 5  # those with 32 or more
    assert set(np.unique(batch.mask)) == {0, 1}


def test_a_mask_counts_every_pixel_that_it_touches():
    mask = np.zeros((64, 64, 1), bool)
    mask[17, 40] = True
    made = crop(Row(np.zeros((64, 64, 3), np.uint8), None, mask), (Photo(), Photo()), 16, 1.0, False,
                np.random.default_rng(0)).mask
    np.testing.assert_array_equal(np.argwhere(made), [[0, 4, 10]])


def test_packed_and_split_pairs_keep_their_masks(pairs, tmp_path):
    pack(pairs, tmp_path / "a.mindrecord", arrays=True)
    base = found(config(pairs, (4, 3)))
    for path in (tmp_path / "a.mindrecord", split(pairs, tmp_path, 0.5, arrays=True)[0]):
        source = open_source(path)
        assert source.columns == ("source", "target", "mask")
        assert [name.rpartition("/")[2][0] for name, _ in open_source(pairs).read(0)] == ["s", "t", "m"]
    moved = dataclasses.replace(base, data=dataclasses.replace(base.data, path=str(tmp_path / "a.mindrecord")))
    assert_same(TrainingBatches(base).batch(1), TrainingBatches(moved).batch(1))


def table(root, *rows, columns=("source", "target")):
    with open(root / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return root / "a.csv"


def test_arrays_and_masks_of_another_size_are_refused_and_both_named(tmp_path):
    for name, array in (("a.npy", values(4)), ("b.npy", values(3, height=20)), ("m.npy", values(1, bool, width=4))):
        np.save(tmp_path / name, array)
    with pytest.raises(UserError, match=r"a.npy is 9×12, \S*b.npy 9×20 \(width × height\): they must be the same"):
        found(config(table(tmp_path, ("a.npy", "b.npy")), (4, 3)))
    path = table(tmp_path, ("a.npy", "a.npy", "m.npy"), columns=("source", "target", "mask"))
    with pytest.raises(UserError, match=r"m.npy is 4×12, \S*a.npy 9×12"):
        found(config(path, (4, 4)))
    path = table(tmp_path, ("a.npy", "m.npy"), columns=("target", "mask"))
    with pytest.raises(UserError, match="column mask and no column source"):
        open_source(path)


# What the scan finds


def test_ranges_and_the_kind_of_results_are_found(pairs, capsys):
    data = found(config(pairs, (4, 3))).data
    arrays = [[np.asarray(read(encoded)) for _, encoded in open_source(pairs).read(i)[:2]] for i in range(6)]
    for side, limits in enumerate((data.ranges.source, data.ranges.target)):
        ends = [(min(a[side][..., k].min() for a in arrays), max(a[side][..., k].max() for a in arrays))
                for k in range((4, 3)[side])]
        assert limits == tuple(ends)
    assert data.result == FileKind(".npy", "float32")
    assert "data.ranges.target: -100 to " in capsys.readouterr().out


def test_ranks_share_the_work_and_find_the_same(pairs, singles, monkeypatch, capsys):
    for path, channels, tasks in ((pairs, (4, 3), ["paired"]), (singles, (2, 2), ["denoising"])):
        wanted = config(path, channels, tasks, ranges={"target": [-50, 50]})
        whole = scanned(wanted.data)
        told = capsys.readouterr().out
        look, parts = scan._look, {}
        monkeypatch.setattr(runtime, "ranks", lambda: 4)
        monkeypatch.setattr(runtime, "share", lambda value, parts=parts: list(parts.values()))
        for rank in range(4):
            numbers = range(rank, 6 if path == pairs else 5, 4)
            form = forms(wanted.data)
            parts[rank] = look(open_source(path, form[1].suffixes), form, numbers)
        assert scanned(wanted.data) == whole
        assert capsys.readouterr().out == told and "files hold values outside data.ranges.target" in told
        monkeypatch.undo()


def test_what_ranks_share_comes_back_exactly():
    value = {"a": [0.1, 2**53, -1e300], "b": None, "c": "ü"}
    assert runtime.share(value) == [value]


def test_eight_bits_have_their_whole_range_and_sources_that_of_their_target(tmp_path):
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(tmp_path / "a.png")
    data = found(config(tmp_path, (1, 1), ["denoising"])).data
    assert data.ranges.target == data.ranges.source == ((0, 255),) and data.result == FileKind(".png", "uint8")
    (tmp_path / "a.png").unlink()
    np.save(tmp_path / "a.npy", values(1, bool))
    data = found(config(tmp_path, (1, 1), ["denoising"])).data
    assert data.ranges.target == ((0, 1),) and data.result == FileKind(".npy", "bool")
    (tmp_path / "a.npy").unlink()
    (tmp_path / "a.png").write_bytes(png(values(2), 4))
    assert found(config(tmp_path, (2, 2), ["denoising"])).data.result == FileKind(".tif", "uint16")
    (tmp_path / "a.png").write_bytes(tiff(first(values(2, bool))))  # pages
    assert found(config(tmp_path, (2, 2), ["denoising"])).data.result == FileKind(".npy", "bool")


def test_given_ranges_stay_and_values_outside_are_counted_once(singles, capsys):
    config_given = config(singles, (2, 2), ["denoising"], ranges={"target": [[-1000, 3000], [0, 10]]},
                          result={"suffix": ".npy", "dtype": "float32"})
    data = found(config_given).data
    assert data.ranges.target == data.ranges.source == ((-1000, 3000), (0, 10))
    assert data.result == config_given.data.result
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (f"warning: 5 of 5 files hold values outside data.ranges.target, which are clipped; the first: "
                        f"{singles}/0.tif")


def test_files_of_other_channels_end_it_and_two_are_named(tmp_path):
    for k in range(9):
        np.save(tmp_path / f"{k}.npy", values(4 if k == 5 else 3))
    with pytest.raises(UserError, match=r"/5.npy has 4 channels, where 3 are needed by data.channels.target; "
                                        r"\S*/0.npy has 3$"):
        found(config(tmp_path, (3, 3), ["denoising"], ranges={}))
    with pytest.raises(UserError, match=r"/0.npy has 3 channels, where 4 are needed by data.channels.target; "
                                        r"\S*/5.npy has 4$"):
        found(config(tmp_path, (4, 4), ["denoising"]))
    with pytest.raises(UserError, match=r"/0.npy has 3 channels, where 2 are needed by data.channels.target; "
                                        r"\S*/5.npy has 4$"):
        found(config(tmp_path, (2, 2), ["denoising"]))
    (tmp_path / "5.npy").unlink()
    with pytest.raises(UserError, match=r"/0.npy has 3 channels, where 2 are needed by data.channels.target$"):
        found(config(tmp_path, (2, 2), ["denoising"]))


def test_nan_ends_it_and_damage_is_left_out(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="none of the 1 pictures of .* can be read; the first: .*a.npy"):
        found(config(tmp_path, (1, 1), ["denoising"]))
    np.save(tmp_path / "b.npy", values(1, np.float32, 20, 20))
    wanted = found(config(tmp_path, (1, 1), ["denoising"]))
    batches = TrainingBatches(wanted)
    assert np.isfinite(batches.batch(0).y_0).all()
    assert "1 of 2 pictures cannot be read and are left out; the first: " in batches.pictures.complaint()
    np.save(tmp_path / "c.npy", np.array([[1, np.nan]]))
    with pytest.raises(UserError, match="c.npy holds values that are NaN or infinite"):
        found(config(tmp_path, (1, 1), ["denoising"]))


def test_what_does_not_go_together_is_told_before_all_files_are_read(pairs, monkeypatch):
    monkeypatch.setattr(loop, "find_ranges", lambda *_: 1 / 0)
    with pytest.raises(UserError, match="holds pairs: they need the task paired"):
        loop.with_ranges(config(pairs, (3, 3), ["denoising"], ranges={}), None, print)


def test_photos_are_not_scanned(tmp_path):
    wanted = config(tmp_path / "none", (3, 3), ["inpainting"])
    assert loop.with_ranges(wanted, None, print) is wanted.data
    assert all(isinstance(form, Photo) for form in forms(wanted.data))
    assert isinstance(forms(config(tmp_path, (3, 3), ["inpainting"], ranges={}).data)[0], Arrays)


# Training


def run(config, resume=None):
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    return loop.train(config, resume)


def test_a_training_on_arrays_carries_its_ranges_and_goes_on_exactly(pairs, tmp_path, monkeypatch):
    def steps(number, folder):
        return config(pairs, (4, 3), training={"steps": number, "output": str(tmp_path / folder), "save_every": 2,
                                               "sample_every": 2 * (folder == "whole"), "sample_steps": 2,
                                               "learning_rate": 1e-3,
                                               "log_every": 2, "warmup_steps": 1})

    whole = Checkpoint(run(steps(4, "whole")))
    assert whole.config.data.ranges == found(steps(4, "whole")).data.ranges
    assert whole.config.data.result == FileKind(".npy", "float32")
    assert (whole.config.model.in_channels, whole.config.model.out_channels) == (7, 3)
    sheet = np.asarray(Image.open(tmp_path / "whole" / "samples" / "step_0000004.png"))
    assert sheet.shape == (6 * 18 - 2, 3 * 18 - 2, 3)
    (tmp_path / "part").mkdir()  # as if it had been stopped there
    shutil.copy(tmp_path / "whole" / "state_0000002.safetensors", tmp_path / "part")
    monkeypatch.setattr(loop, "find_ranges", lambda *_: 1 / 0)
    part = Checkpoint(run(steps(4, "part"), "auto"))
    assert part.config.data.ranges == whole.config.data.ranges
    for group in ("weights", "ema"):
        for name, array in whole.tensors(group).items():
            np.testing.assert_array_equal(part.tensors(group)[name], array)
    shutil.rmtree(tmp_path / "whole")
    with pytest.raises(UserError, match=r"state_0000004.safetensors has data.channels 4 → 3, this config 3 → 3"):
        run(config(pairs, (3, 3), training={"output": str(tmp_path / "part")}), "auto")


def test_deeper_photos_are_told_of_once(tmp_path):
    for name, array, told in (("a", np.zeros((8, 8), np.uint16), True), ("b", np.zeros((8, 8, 3), np.uint8), False)):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "x.tif", array, photometric="rgb" if array.ndim == 3 else "minisblack")
        warning = loop.depth_warning(open_source(tmp_path / name))
        assert bool(warning) == told and (not told or "holds uint16" in warning and "data.ranges={}" in warning)


def test_a_first_picture_that_is_missing_is_no_matter_of_depth(tmp_path):
    (tmp_path / "list.txt").write_text("none.png\n")
    assert loop.depth_warning(open_source(tmp_path / "list.txt")) is None


def test_results_are_deep_enough_for_what_is_found(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), 200, np.uint8))
    tifffile.imwrite(tmp_path / "b.tif", np.full((8, 8), 4000, np.uint16))
    one = {"source": 1, "target": 1}
    raw = {"tasks": [{"name": "denoising"}], "data": {"path": str(tmp_path), "channels": one, "image_size": 8}}
    data = config_from_dict(raw, "x").data
    found = find_ranges(data, open_source(tmp_path, ARRAY_SUFFIXES), lambda text: None)
    assert found.result == FileKind(".tif", "uint16") and found.ranges.source == found.ranges.target == ((0, 4000),)
    raw["data"]["result"] = {"suffix": ".png", "dtype": "uint8"}
    with pytest.raises(UserError, match="uint8 cannot hold the targets' values, 0 to 4000"):
        find_ranges(config_from_dict(raw, "x").data, open_source(tmp_path, ARRAY_SUFFIXES), lambda text: None)
    raw["data"]["ranges"] = {"source": [0, 50]}  # of tasks that make their sources, one is both
    raw["data"].pop("result")
    found = find_ranges(config_from_dict(raw, "x").data, open_source(tmp_path, ARRAY_SUFFIXES), lambda text: None)
    assert found.ranges.source == found.ranges.target == ((0, 50),)


def test_fractions_are_written_as_such_and_resuming_with_the_same_ranges_says_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 1], [1, 0]], np.uint16))
    np.save(tmp_path / "b.npy", np.array([[0, 0.5], [1, 0]], np.float32))
    raw = {"tasks": [{"name": "denoising"}],
           "data": {"path": str(tmp_path), "channels": {"source": 1, "target": 1}, "image_size": 8,
                    "ranges": {"source": [0, 1]}, "result": {"suffix": ".tif"}}}
    given = config_from_dict(raw, "x")
    found = find_ranges(given.data, open_source(tmp_path, ARRAY_SUFFIXES), lambda text: None)
    assert found.result == FileKind(".tif", "float32")
    said = []
    state = type("State", (), {"config": dataclasses.replace(given, data=found), "path": "state"})
    assert loop.with_ranges(given, state, said.append) == found and not said
    other = dataclasses.replace(given.data, ranges=Ranges(((0, 2),)))
    loop.with_ranges(dataclasses.replace(given, data=other), state, said.append)
    assert len(said) == 1 and "data.ranges stays" in said[0]


@pytest.mark.parametrize("form", [Photo(), Arrays(1)])
def test_masks_mean_the_same_to_photos_and_arrays(form, tmp_path):
    hole = np.zeros((6, 8), bool)
    hole[2:4, 3:6] = True
    strokes = np.zeros((6, 8, 4), np.uint8)
    strokes[hole] = 255  # white on transparent black
    files = {"zero_one.png": hole.astype(np.uint8), "white.png": 255 * hole.astype(np.uint8), "strokes.png": strokes,
             "deep.png": 4095 * hole.astype(np.uint16)}
    for name, array in files.items():
        Image.fromarray(array).save(tmp_path / name)
        np.testing.assert_array_equal(form.read_mask(tmp_path / name), hole)
    np.save(tmp_path / "hole.npy", hole)
    for mask in (tmp_path / "hole.npy", hole, hole[..., None], hole.astype(float), hole.astype(np.int64)):
        np.testing.assert_array_equal(form.read_mask(mask), hole)


def test_pairs_whose_mask_is_empty_are_left_out_and_counted(tmp_path):
    for name in ("s", "t", "m"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("source,target,mask\ns.png,t.png,m.png\n")
    with pytest.raises(UserError, match="none of the 1 pictures can be read.*m.png has no white pixel"):
        TrainingBatches(config_from_dict({"tasks": [{"name": "paired"}],
                                          "data": {"path": str(tmp_path / "t.csv"), "image_size": 8}}, "x")).sample(0)
