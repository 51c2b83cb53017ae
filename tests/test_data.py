"""Where pictures come from, how they become batches, how they are packed and split."""

import csv
import dataclasses
import gzip
import io
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image
from skimage import data

from palette_ms.config import config_from_dict
from palette_ms.data import duplicates
from palette_ms.data.forms import Photo
from palette_ms.data.images import load_image
from palette_ms.data.loader import Pictures, TrainingBatches, crop
from palette_ms.data.sources import Row, decode, open_source
from palette_ms.errors import UserError
from palette_ms.pack import pack
from palette_ms.split import choose_sides, split

FORMS = Photo(), Photo()
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")


def photo(name, width=96, height=80):
    return Image.fromarray(getattr(data, name)()).resize((width, height))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven photos, some in folders, among files that are no pictures."""
    root = tmp_path_factory.mktemp("photos")
    for k, name in enumerate(PHOTOS):
        path = root / ("a/b", "a-b", ".")[k % 3] / f"{name}.{('jpg', 'png')[k % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(name).save(path)
    for name in ("notes.md", "a/._astronaut.jpg", "__MACOSX/a/._chelsea.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not a picture")
    return root


@pytest.fixture(scope="module")
def kinds(folder, tmp_path_factory):
    """The same photos as every kind of source."""
    root = tmp_path_factory.mktemp("sources")
    files = [path for path, in open_source(folder).rows]
    shutil.copytree(folder, root / "copied")
    names = [path.relative_to(folder).as_posix() for path in files]
    lines = ["# photos", "", *(f"copied/{name}  \r" for name in names[:3]), *map(str, files[3:])]
    (root / "list.txt").write_bytes("\n".join(lines).encode("utf-8-sig"))
    with open(root / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("label", "target"), *(("x", f"copied/{name}") for name in names)])
    for name, method in (("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(root / name, "w", method) as archive:
            for path in sorted(folder.rglob("*"), reverse=True):
                archive.write(path, path.relative_to(folder))
    with tarfile.open(root / "archive.tar", "w") as archive:
        archive.add(folder, ".")
    pack(folder, root / "packed.mindrecord")
    pack(folder, root / "sharded.mindrecord", shards=3)
    return {**{path.name: path for path in root.iterdir()}, "sharded.mindrecord": root / "sharded.mindrecord"}


def config(path, tasks=None, workers=2, cache_mb=0, batch_size=2, **values):
    return config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": []},
        "tasks": tasks or [{"name": "inpainting"}, {"name": "colorization"}],
        "data": {"path": str(path), "image_size": 16, "min_scale": 0.5, "workers": workers, "cache_mb": cache_mb,
                 **values},
        "training": {"batch_size": batch_size, "seed": 5}}, "test")


def contents(source):
    return [data for i in range(len(source)) for _, data in source.read(i)]


def assert_same(batch, other):
    for a, b in zip(batch, other):
        np.testing.assert_array_equal(a, b)


# Sources


ORDERED = ["list.txt", "table.csv", "stored.zip", "deflated.zip", "archive.tar", "packed.mindrecord"]


@pytest.mark.parametrize("kind", ORDERED)
def test_every_kind_of_source_gives_the_same_batches(folder, kinds, kind):
    assert contents(open_source(kinds[kind])) == contents(open_source(folder))
    assert_same(TrainingBatches(config(kinds[kind])).batch(4), TrainingBatches(config(folder)).batch(4))


def test_mindrecord_in_several_files_holds_the_same_pictures(folder, kinds, tmp_path):
    wanted = sorted(contents(open_source(folder)))
    files = list(kinds["sharded.mindrecord"].parent.glob("sharded.mindrecord*"))
    for path in files:
        shutil.copy(path, tmp_path)
    assert len(files) == 6  # with the .db files
    for path in (kinds["sharded.mindrecord"], tmp_path / "sharded.mindrecord", tmp_path / "sharded.mindrecord1"):
        assert sorted(contents(open_source(path))) == wanted


@pytest.mark.parametrize("kind", ["deflated.zip", "archive.tar", "packed.mindrecord", "sharded.mindrecord"])
def test_threads_read_at_once_without_mixing_rows_up(kinds, kind):
    source = open_source(kinds[kind])
    expected = [source.read(i) for i in range(len(source))]
    numbers = np.random.default_rng(0).integers(0, len(source), 1000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: source.read(int(i)), numbers)) == [expected[i] for i in numbers]


def test_names_tell_the_file_and_its_place(folder, kinds):
    for path, place in ((folder, folder), (kinds["stored.zip"],) * 2, (kinds["archive.tar"],) * 2):
        assert open_source(path).read(0)[0][0] == f"{place}/a/b/astronaut.jpg"
    assert open_source(kinds["packed.mindrecord"]).read(0)[0][0].endswith("packed.mindrecord: a/b/astronaut.jpg")


def tar_with_a_damaged_header(path, good):
    content = bytearray(good.read_bytes())
    with tarfile.open(good) as archive:
        content[archive.getmembers()[4].offset + 10] ^= 255
    path.write_bytes(content)


def encrypted_zip(path, good):
    content = bytearray(good.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the central directory
    while content[entry:entry + 4] == b"PK\x01\x02":
        content[entry + 8] |= 1
        entry += 46 + sum(struct.unpack("<3H", content[entry + 28:entry + 34]))
    path.write_bytes(content)


def foreign_mindrecord(path, good):
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(path))
    writer.add_schema({"image": {"type": "bytes"}, "label": {"type": "int32"}})
    writer.write_raw_data([{"image": b"x", "label": 1}])
    writer.commit()


def cut(path, good):
    path.write_bytes(good.read_bytes()[:good.stat().st_size // 2])
    if (index := good.with_name(good.name + ".db")).exists():
        shutil.copy(index, path.with_name(path.name + ".db"))


def empty_zip(path, good):
    zipfile.ZipFile(path, "w").close()


MISTAKES = {
    "none": (None, None, "no such folder or file"),
    "none.mindrecord": (None, None, "no such file"),
    "photo.jpg": (b"", None, "is not a folder, .txt, .csv, .zip, .tar or .mindrecord"),
    "empty.txt": (b"# nothing\n\n", None, "names no pictures"),
    "latin.txt": ("é.jpg\n".encode("latin-1"), None, "not a text in UTF-8"),
    "column.csv": (b"source,targets\na.jpg,b.jpg\n", None, "has no column target; did you mean targets?"),
    "rows.csv": (b"source,target\n", None, "names no pictures below its header"),
    "header.csv": (b"", None, "has no column target: it is empty"),
    "cell.csv": (b"source,target\na.jpg,b.jpg\n,c.jpg\n", None, "row 2 after the header lacks its source or target"),
    "cut.zip": (cut, "stored.zip", "not a whole zip archive"),
    "empty.zip": (empty_zip, None, "no pictures in"),
    "encrypted.zip": (encrypted_zip, "stored.zip", "encrypted, or compressed in a rare way"),
    "cut.tar": (cut, "archive.tar", "not a whole tar archive"),
    "damaged.tar": (tar_with_a_damaged_header, "archive.tar", "is damaged after its first . files"),
    "gzipped.tar": (gzip.compress(b"x"), None, "damaged, or compressed"),
    "photos.tar.gz": (b"", None, "plain .tar with gunzip"),
    "photos.tgz": (b"", None, "plain .tar with gunzip"),
    "cut.mindrecord": (cut, "packed.mindrecord", "cannot be read as MindRecord"),
    "alone.mindrecord": (b"", None, r"cannot be read as MindRecord: are all of its files there.*\.db"),
    "foreign.mindrecord": (foreign_mindrecord, None, "has the columns image, label, where name and target"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_and_damage_are_told_in_one_line(kinds, tmp_path, name):
    content, good, message = MISTAKES[name]
    if callable(content):
        content(tmp_path / name, kinds.get(good))
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_source(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_read_is_left_out_and_counted(kinds, tmp_path):
    content = bytearray(kinds["stored.zip"].read_bytes())
    with zipfile.ZipFile(kinds["stored.zip"]) as archive:
        content[archive.getinfo("a/b/rocket.png").header_offset + 500] ^= 1
    (tmp_path / "bit.zip").write_bytes(content)
    good = [str(path) for path, in open_source(kinds["list.txt"]).rows]
    (tmp_path / "list.txt").write_text("\n".join(["none.jpg", *good]))
    for path, message in ((tmp_path / "bit.zip", "1 of 7 .*bit.zip/a/b/rocket.png: the archive is damaged"),
                          (tmp_path / "list.txt", "1 of 8 .*no such picture: .*none.jpg")):
        pictures = Pictures(open_source(path), FORMS, 0)
        for i in range(len(pictures)):
            assert pictures.read(i).target.shape == (80, 96, 3)
        assert re.match(message, pictures.complaint())


# Decoding


def test_large_jpegs_are_decoded_no_finer_than_their_crops_need(tmp_path):
    large = photo("astronaut", 1300, 1040)
    for name in ("a.jpg", "a.png"):
        large.save(tmp_path / name)
    whole, less = load_image(tmp_path / "a.jpg"), load_image(tmp_path / "a.jpg", enough=250)
    assert whole.shape == (1040, 1300, 3) and less.shape == (260, 325, 3)
    assert load_image(tmp_path / "a.jpg", enough=270).shape == (520, 650, 3)
    assert load_image(tmp_path / "a.png", enough=250).shape == whole.shape
    shrunk = np.asarray(Image.fromarray(whole).resize((325, 260), Image.BOX)).astype(int)
    assert np.abs(less - shrunk).mean() < 1  # grey levels, between two ways to shrink
    a, b = (crop(Row(picture), FORMS, 64, 0.5, True, np.random.default_rng(3)).target for picture in (whole, less))
    # The same crop, up to half a pixel of the smaller picture; another crop differs by tens of grey levels.
    assert np.abs(a - b).mean() * 127.5 < 5
    pictures = TrainingBatches(config(tmp_path)).pictures
    assert pictures.enough == 32 and min(pictures.read(0).target.shape[:2]) >= 32


# Batches


def test_order_does_not_depend_on_workers_of_uneven_speed(folder, monkeypatch):
    one, two = (TrainingBatches(config(folder, workers=workers)) for workers in (1, 2))
    expected = [one.batch(number) for number in range(12)]
    make = two.batch

    def uneven(number):
        time.sleep(0.02 * (number % 3))
        return make(number)

    monkeypatch.setattr(two, "batch", uneven)
    for batches in (one, two):
        for batch, other in zip(expected, batches.iterate(0)):
            assert_same(batch, other)


def test_a_resumed_sequence_goes_on_at_any_number(folder):
    batches = TrainingBatches(config(folder))
    whole = batches.iterate(0)
    part = TrainingBatches(config(folder, cache_mb=9)).iterate(5)
    whole = [next(whole) for _ in range(8)]
    for batch in whole[5:]:
        assert_same(batch, next(part))


@pytest.mark.parametrize("noise_levels", ["schedule", "cosine"])
def test_ranks_together_make_the_batches_of_one_process(folder, noise_levels):
    def with_batch(size):
        wanted = config(folder, batch_size=size)
        return dataclasses.replace(wanted, diffusion=dataclasses.replace(wanted.diffusion, noise_levels=noise_levels),
                                   model=dataclasses.replace(wanted.model, num_classes=len(wanted.tasks)))

    whole = TrainingBatches(with_batch(6))
    ranks = [TrainingBatches(with_batch(2), rank, 3) for rank in range(3)]
    for batches in (whole, *ranks):
        batches.dropout_numbers = 5
    for number in range(3):
        parts = [rank.batch(number) for rank in ranks]
        assert_same(whole.batch(number), [arrays[0] if arrays[0] is None else np.concatenate(arrays)
                                          for arrays in zip(*parts)])


def test_what_fails_in_a_worker_is_raised_as_it_is(folder, monkeypatch, capfd):
    batches = TrainingBatches(config(folder))
    iterator = batches.iterate(0)
    next(iterator)
    monkeypatch.setattr(batches, "sample", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        for _ in range(50):
            next(iterator)
    assert capfd.readouterr() == ("", "")


def test_pictures_shown_in_training_come_from_the_validation_source(folder, tmp_path, monkeypatch):
    from palette_ms.training.loop import Trainer

    for name in ("camera", "moon"):
        photo(name).save(tmp_path / f"{name}.png")
    trainer = Trainer(config(folder, [{"name": "inpainting"}], validation=str(tmp_path), min_scale=1.0, flip=False))
    monkeypatch.setattr(trainer, "_sampler", lambda samples: lambda cond, y_T, mask, y_0: Tensor(y_0))
    trainer._sample(tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (6 * 18 - 2, 3 * 18 - 2, 3)
    assert (np.ptp(sheet[:, -16:], axis=2) == 0).all()  # both are gray, those trained on are not
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 pictures can be read"):
        Trainer(config(folder, validation=str(tmp_path / "none")))


# Pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Targets and their negatives as sources."""
    root = tmp_path_factory.mktemp("pairs")
    rows = []
    for name in PHOTOS:
        target = np.asarray(photo(name))
        Image.fromarray(target).save(root / f"{name}.png")
        Image.fromarray(255 - target).save(root / f"{name}_negative.png")
        rows.append((f"{name}_negative.png", f"{name}.png"))
    with open(root / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("source", "target"), *rows])
    return root / "pairs.csv"


PAIRED = [{"name": "paired"}]


def test_pairs_stay_in_line_through_crop_and_flip(pairs):
    batches = TrainingBatches(config(pairs, PAIRED, batch_size=32))
    batch = batches.batch(0)
    assert batch.y_0.shape == batch.cond.shape == (32, 3, 16, 16) and (batch.mask == 1).all()
    np.testing.assert_allclose(batch.cond, -batch.y_0, atol=1.01 * 2 / 255)  # resizing rounds to grey levels
    assert batch.y_0.std() > 0.1
    plain = TrainingBatches(config(pairs, PAIRED, flip=False, batch_size=32)).batch(0)
    flipped = [np.array_equal(a, b[..., ::-1]) for a, b in zip(batch.y_0, plain.y_0)]
    same = [np.array_equal(a, b) for a, b in zip(batch.y_0, plain.y_0)]
    assert any(flipped) and any(same)


def test_packed_pairs_are_the_same_pairs(pairs, tmp_path):
    pack(pairs, tmp_path / "pairs.mindrecord")
    assert_same(TrainingBatches(config(tmp_path / "pairs.mindrecord", PAIRED)).batch(2),
                TrainingBatches(config(pairs, PAIRED)).batch(2))


def test_a_source_of_another_size_is_resized_to_its_target():
    ramp = np.broadcast_to(np.linspace(0, 255, 200)[None, :, None], (100, 200, 3)).astype(np.uint8)
    row = []
    for picture in (Image.fromarray(ramp).resize((50, 25), Image.BOX), Image.fromarray(ramp)):
        file = io.BytesIO()
        picture.save(file, "PNG")
        row.append(("a.png", file.getvalue()))
    pair = decode(row, FORMS)
    assert pair.source.shape == pair.target.shape == (100, 200, 3)
    source, target = (array[:, 4:-4].astype(int) for array in (pair.source, pair.target))
    assert np.abs(source - target).max() <= 2


def test_pairs_and_their_task_need_each_other(folder, pairs):
    with pytest.raises(UserError, match="holds pairs: they need the task paired"):
        TrainingBatches(config(pairs))
    with pytest.raises(UserError, match="the task paired needs pairs.*columns source and target"):
        TrainingBatches(config(folder, PAIRED))


# Packing


def command(verb, *arguments):
    return subprocess.run([sys.executable, "-m", f"palette_ms.{verb}", *map(str, arguments)],
                          capture_output=True, text=True)


def test_packing_leaves_out_what_cannot_be_read_and_says_so(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "photos" / "cut.jpg").write_bytes((folder / "a/b/astronaut.jpg").read_bytes()[:1000])
    done = command("pack", tmp_path / "photos", tmp_path / "new" / "photos.mindrecord")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/new/photos.mindrecord\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "warning: 1 of 8 pictures cannot be read and are left out; the first: " in done.stderr
    assert contents(open_source(tmp_path / "new" / "photos.mindrecord")) == contents(open_source(folder))
    done = command("pack", tmp_path / "photos", tmp_path / "new" / "photos.mindrecord")
    assert done.returncode == 2 and "is there" in done.stderr and "--overwrite" in done.stderr


def test_a_new_pack_takes_the_old_ones_place(folder, kinds, tmp_path):
    pack(folder, tmp_path / "a.mindrecord", shards=4)
    pack(kinds["archive.tar"], tmp_path / "a.mindrecord", shards=2, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.mindrecord0", "a.mindrecord0.db", "a.mindrecord1", "a.mindrecord1.db"]
    assert sorted(contents(open_source(tmp_path / "a.mindrecord"))) == sorted(contents(open_source(folder)))
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_pack_leaves_what_was_there(folder, tmp_path, monkeypatch, failure):
    pack(folder, tmp_path / "a.mindrecord")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def failing(row, forms):
        calls.append(row)
        if len(calls) == 4:
            raise failure
        return decode(row, forms)

    monkeypatch.setattr("palette_ms.pack.decode", failing)
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else UserError
    with pytest.raises(expected):
        pack(folder, tmp_path / "a.mindrecord", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_cannot_be_packed_is_told(folder, tmp_path, monkeypatch):
    for name, arguments, message in (("a.mr", {}, "must end in .mindrecord"), ("a&b.mindrecord", {}, "none of"),
                                     ("a.mindrecord", {"shards": 0}, "from 1 to 1000")):
        with pytest.raises(UserError, match=message):
            pack(folder, tmp_path / name, **arguments)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        pack(folder, tmp_path / "file" / "a.mindrecord")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 1 pictures cannot be read"):
        pack(tmp_path / "broken", tmp_path / "a.mindrecord")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "broken" / "b.png")
    monkeypatch.setattr("palette_ms.pack._PAGE", 2**16)
    with pytest.raises(UserError, match="2 of 2 pictures"):
        pack(tmp_path / "broken", tmp_path / "a.mindrecord")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "file"]


# Splitting


def copies(image):
    """What becomes of a photo on its way through the web."""
    width, height = image.size
    mirrored = image.transpose(Image.FLIP_LEFT_RIGHT)
    yield "q30.jpg", image, {"quality": 30}
    yield "small.jpg", image.resize((width // 4, height // 4), Image.LANCZOS), {"quality": 80}
    yield "large.webp", image.resize((width * 3 // 2, height * 3 // 2), Image.BICUBIC), {"quality": 70}
    yield "mirrored.jpg", mirrored, {"quality": 60}
    yield "small_mirrored.gif", mirrored.resize((width // 2, height // 2), Image.BOX), {}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Photos, each with copies under other names."""
    root = tmp_path_factory.mktemp("copied")
    names = (*PHOTOS, "brick", "camera", "grass", "gravel", "coins", "moon", "page", "text", "cell", "clock")
    for name in names:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        (root / name).mkdir()
        image.save(root / name / "original.png")
        for ending, copy, options in copies(image):
            copy.save(root / name / ending, **options)
    return root


def test_copies_are_grouped_and_different_photos_are_not(copied):
    files = [path for path, in open_source(copied).rows]
    hashes = np.array([duplicates.perceptual_hashes(load_image(path)) for path in files])
    groups = duplicates.group_duplicates(hashes, np.arange(len(files)))
    photos = [path.parent.name for path in files]
    assert len(set(zip(groups, photos))) == len(set(groups)) == len(set(photos)) == 17


def test_groups_are_the_connected_components_of_near_hashes(monkeypatch):
    monkeypatch.setattr(duplicates, "_TILE", 7)
    rng = np.random.default_rng(0)
    hashes = rng.random((40, 2, 256)) < 0.5
    for k in range(1, 40, 3):  # chains: each near to the one before it, or to its mirror image
        hashes[k, 0] = hashes[k - 1, k % 2] ^ (rng.permutation(256) < duplicates.DISTANCE)
        hashes[(k * 7) % 40, 0] = hashes[k, 0] ^ (rng.permutation(256) < duplicates.DISTANCE + 1)
    rows = np.repeat(np.arange(20), 2)
    group = list(range(20))
    for i in range(40):
        for j in range(40):
            if min((hashes[i, 0] != hashes[j, side]).sum() for side in (0, 1)) <= duplicates.DISTANCE and i < j:
                group = [group[rows[i]] if g == group[rows[j]] else g for g in group]
    found = duplicates.group_duplicates(np.packbits(hashes, 2), rows)
    assert 1 < len(set(group)) < 20
    assert len(set(zip(group, found))) == len(set(group)) == len(set(found))


def test_splitting_puts_copies_on_one_side(copied, tmp_path):
    done = command("split", copied, tmp_path, "--validation", 0.4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{tmp_path}/train.txt", f"{tmp_path}/validation.txt"]
    sides = [{path.resolve() for path, in open_source(path).rows} for path in done.stdout.split()]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 17 * 6
    photos = [{path.parent.name for path in side} for side in sides]
    assert not photos[0] & photos[1] and min(map(len, photos)) >= 2
    assert f"{len(sides[0])} to train on, {len(sides[1])} to validate with; 85 are copies" in done.stderr


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Photos without compression, whose bytes, and so the sides of the split, no version of Pillow changes."""
    root = tmp_path_factory.mktemp("raw")
    for name in PHOTOS:
        Image.fromarray(np.ascontiguousarray(getattr(data, name)()[::4, ::4])).save(root / f"{name}.ppm")
    return root


def test_sides_stay_when_pictures_are_renamed_or_added(raw, tmp_path):
    def sides(path, output):
        return [{open(file, "rb").read() for file, in open_source(side).rows} for side in split(path, output, 0.5)]

    (tmp_path / "fewer").mkdir()
    for k, (path,) in enumerate(open_source(raw).rows[:5]):
        shutil.copy(path, tmp_path / "fewer" / f"{9 - k}.ppm")
    train, validation = sides(raw, tmp_path / "a")
    fewer_train, fewer_validation = sides(tmp_path / "fewer", tmp_path / "b")
    assert fewer_train <= train and fewer_validation <= validation
    assert len(fewer_train | fewer_validation) == 5 and len(train | validation) == 7


def test_the_share_is_kept_however_many_copies_there_are():
    rng = np.random.default_rng(0)
    for size in (1, 8):
        sides = choose_sides(np.arange(8000) // size, [rng.bytes(16) for _ in range(8000)], 0.2)
        deviation = np.sqrt(0.2 * 0.8 / (8000 / size))
        assert abs(np.mean(sides) - 0.2) < 4 * deviation
        assert all(len(set(sides[k:k + size])) == 1 for k in range(0, 8000, size))


def test_pairs_are_split_as_pairs(pairs, tmp_path):
    lists = split(pairs, tmp_path, 0.5)
    rows = [row for path in lists for row in open_source(path).rows]
    assert [path.name for path in lists] == ["train.csv", "validation.csv"]
    assert {(a.name, b.name) for a, b in rows} == {(a.name, b.name) for a, b in open_source(pairs).rows}
    assert all(path.is_file() for row in rows for path in row)


def test_lists_hold_odd_names(raw, tmp_path):
    names = {"#1.ppm", " #2.ppm", "a b.ppm", "ü,\".ppm", "x.ppm", "y.ppm", "z.ppm"}
    (tmp_path / "photos").mkdir()
    for name, (path,) in zip(sorted(names), open_source(raw).rows):
        shutil.copy(path, tmp_path / "photos" / name)
    lists = split(tmp_path / "photos", tmp_path / "photos", 0.5)
    assert {path.name for side in lists for path, in open_source(side).rows} == names
    photo("coffee").save(tmp_path / "photos" / "line\nbreak.png")
    lists = split(tmp_path / "photos", tmp_path / "other", 0.5)
    assert {path.name for side in lists for path, in open_source(side).rows} == names


def test_what_cannot_be_split_is_told(raw, kinds, tmp_path):
    for kind in ("stored.zip", "packed.mindrecord"):
        with pytest.raises(UserError, match="a list cannot name what is in"):
            split(kinds[kind], tmp_path)
    with pytest.raises(UserError, match="between 0 and 1"):
        split(raw, tmp_path, 1.0)
    with pytest.raises(UserError, match="all 7 would come to one side"):
        split(raw, tmp_path, 1e-9)
    assert not list(tmp_path.iterdir())
    train, _ = split(raw, tmp_path, 0.5)
    with pytest.raises(UserError, match="is there.*--overwrite"):
        split(raw, tmp_path)
    with pytest.raises(UserError, match="choose another folder"):
        split(train, tmp_path, 0.5, overwrite=True)
    split(raw, tmp_path, 0.3, overwrite=True)


def test_flat_pictures_of_other_colours_are_no_copies():
    flat = [np.full((64, 64, 3), colour, np.uint8) for colour in (0, 20, 40, (200, 0, 0), (0, 200, 0))]
    hashes = np.array([duplicates.perceptual_hashes(picture) for picture in [*flat, flat[1][:32]]])
    assert duplicates.group_duplicates(hashes, np.arange(6)).tolist() == [0, 1, 2, 3, 4, 1]
