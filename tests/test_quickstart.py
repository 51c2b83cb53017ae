"""The model that ships and the scripts around it."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from palette_ms import Palette
from palette_ms.checkpoint import MODELS, Checkpoint, save_checkpoint
from palette_ms.config import load_config
from palette_ms.evaluation.metrics import psnr
from palette_ms.seeds import generator


@pytest.fixture(scope="module")
def scripts(repository):
    """The folder of scripts, from which they can be imported."""
    folder = repository / "scripts"
    sys.path[:0] = [str(folder), str(repository / "benchmarks")]
    yield folder
    del sys.path[:2]


@pytest.fixture(scope="module")
def photo():
    """A part of a photo that no training saw, uint8 (96, 128, 3)."""
    from skimage import data

    return np.asarray(Image.fromarray(data.coffee()).crop((100, 50, 500, 350)).resize((128, 96), Image.LANCZOS))


@pytest.fixture(scope="module")
def palette():
    return Palette.load("photo", "cpu")


def test_the_shipped_model_is_small_and_of_its_config(repository):
    assert (MODELS / "photo.safetensors").stat().st_size < 10 * 2**20
    shipped, config = Checkpoint("photo"), load_config(repository / "configs" / "photo.yaml")
    assert shipped.config.model == config.model
    theirs, ours = ([task.name for task in each.tasks] for each in (shipped.config, config))
    assert theirs == ours[:len(theirs)]  # what it has an embedding for, by their places


@pytest.mark.parametrize("kind", ["jpeg 10", "noise 25", "enlarged 2", "blur 1.5"])
def test_the_shipped_model_is_nearer_to_the_original_than_what_is_given(scripts, palette, photo, kind):
    from damage import as_given, damaged

    task, given, hole, asked = damaged(kind, photo, generator(0, kind))
    _, nothing = as_given(kind, given, photo.shape[:2])
    made, = palette.restore(given, task, hole, **asked)
    assert psnr(np.asarray(made), photo) > psnr(nothing, photo) + 0.3


def test_the_shipped_model_fills_scratches_and_colours(scripts, palette, photo):
    from damage import damaged

    task, given, hole, _ = damaged("scratches", photo, generator(12, "scratches"))
    made = np.asarray(palette.restore(given, task, hole)[0])
    mean = np.broadcast_to(photo[~hole].mean(0), photo.shape)
    assert psnr(made, photo, hole) > psnr(mean, photo, hole) + 3
    np.testing.assert_array_equal(made[~hole], photo[~hole])
    _, gray, _, _ = damaged("color", photo, None)
    assert np.ptp(gray, axis=2).max() == 0
    colored = np.asarray(palette.restore(gray, "colorization")[0]).astype(int)
    assert np.ptp(colored, axis=2).mean() > 2


def test_shipping_takes_the_mean_of_averaged_weights_in_half_precision(repository, tmp_path):
    rng = np.random.default_rng(0)
    config = load_config(repository / "configs" / "quickstart.yaml")
    averages = rng.standard_normal((2, 3, 4), np.float32)
    sources, target = [tmp_path / f"{k}.safetensors" for k in range(2)], tmp_path / "shipped.safetensors"
    for k, (source, average) in enumerate(zip(sources, averages)):
        save_checkpoint(source, config, 3 + k, 48, {"a": rng.standard_normal((3, 4), np.float32)}, {"a": average})
    subprocess.run([sys.executable, repository / "scripts" / "ship_model.py", *sources, target], check=True)
    shipped = Checkpoint(target)
    assert (shipped.step, shipped.pictures, shipped.tensors("weights")) == (4, 48, {})
    mean = (averages[0].astype(np.float64) + averages[1]) / 2
    np.testing.assert_allclose(shipped.tensors("ema")["a"], mean, rtol=2**-11, atol=1e-7)
    assert shipped.tensors("ema")["a"].dtype == np.float16


def test_the_quickstart_photos_are_written_with_the_held_out_one_apart(repository, tmp_path):
    subprocess.run([sys.executable, repository / "scripts" / "quickstart_data.py", tmp_path], check=True)
    train, held_out = ({path.stem for path in (tmp_path / name).iterdir()} for name in ("train", "held_out"))
    assert held_out == {"coffee"} and len(train) == 7 and not train & held_out


# The damage


@pytest.mark.parametrize("sigma", [15, 50])
def test_noise_has_the_deviation_it_is_named_by(scripts, sigma):
    from damage import damaged

    gray = np.full((200, 300, 3), 128, np.uint8)
    task, given, hole, _ = damaged(f"noise {sigma}", gray, np.random.default_rng(0))
    assert task == "denoising" and hole is None
    assert np.std(given.astype(float)) == pytest.approx(sigma, rel=0.03)


def test_a_jpeg_is_what_pillow_makes_at_that_quality(scripts, photo):
    from damage import damaged

    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=10)
    np.testing.assert_array_equal(damaged("jpeg 10", photo, None)[1], np.asarray(Image.open(file)))


def test_what_is_enlarged_has_fewer_pixels_and_what_was_cut_off_is_not_compared(scripts, photo):
    from damage import as_given, damaged, divisible

    original = divisible("enlarged 4", photo[:95, :127])
    assert original.shape == (92, 124, 3)
    task, given, _, asked = damaged("enlarged 4", original, None)
    assert (task, given.shape, asked) == ("super_resolution", (23, 31, 3), {"scale": 4})
    name, result = as_given("enlarged 4", given, original.shape[:2])
    assert name == "bicubic" and result.shape == original.shape


def test_holes_are_two_squares_and_the_rest_is_as_it_was(scripts):
    from damage import damaged

    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    _, given, hole, _ = damaged("holes", picture, np.random.default_rng(1))
    assert 64 * 64 < hole.sum() <= 2 * 64 * 64
    np.testing.assert_array_equal(given[~hole], picture[~hole])


def test_richardson_lucy_takes_a_known_blur_back(scripts, photo):
    from damage import classical, damaged

    _, given, _, _ = damaged("blur 1.5", photo, None)
    methods = classical("blur 1.5", given, None, photo.shape[:2])
    assert psnr(methods["Richardson–Lucy"](), photo) > psnr(given, photo) + 1


def test_a_colour_table_gives_each_brightness_its_mean_colour(scripts):
    from damage import mean_colours, tinted

    red = np.full((8, 8, 3), (200, 60, 50), np.uint8)  # of CIE L* 46.5
    made = tinted(np.full((8, 8, 3), 110, np.uint8), mean_colours([red] * 20))  # of 46.4
    assert abs(made[0, 0].astype(int) - (200, 60, 50)).max() <= 8


# The sheet


class Echo:
    """A model that gives back what it is given, enlarged where that is asked."""

    tasks = ("jpeg_restoration", "denoising", "super_resolution", "inpainting", "colorization")

    def __init__(self):
        self.asked = []

    def restore(self, image, task, mask=None, scale=1, **options):
        self.asked.append((task, image.shape))
        return [Image.fromarray(image).resize((image.shape[1] * scale, image.shape[0] * scale))]


def test_a_row_has_four_pictures_of_one_size_and_figures_but_for_the_original(scripts):
    import quickstart

    for chosen in quickstart.ROWS:
        made = quickstart.row(Echo(), *chosen)
        if chosen[0].startswith(("blur", "old")):
            assert made is None  # no task of this model
        else:
            title, cells = made
            assert title and {picture.shape for picture, _, _ in cells} == {(296, 448, 3)}
            assert cells[2][1] == "palette_ms" and "dB" in cells[2][2] and cells[3][1:] == ("original", "")


def test_a_photo_of_the_users_is_restored_as_it_is_and_written_whole(scripts, tmp_path):
    import quickstart

    rng = np.random.default_rng(0)
    path, output, echo = tmp_path / "my.jpg", tmp_path / "sheet.png", Echo()
    Image.fromarray(rng.integers(0, 256, (400, 600, 3), np.uint8)).save(path)
    _, cells = quickstart.own_row(echo, path, output)
    assert echo.asked == [("jpeg_restoration", (400, 600, 3)), ("denoising", (400, 600, 3)),
                          ("super_resolution", (148, 224, 3))]
    assert {picture.shape for picture, _, _ in cells} == {(296, 448, 3)}
    np.testing.assert_array_equal(cells[0][0], np.asarray(Image.open(path))[52:348, 76:524])
    assert Image.open(tmp_path / "sheet_denoising.png").size == (600, 400)


def test_what_else_is_made_of_a_jpeg_is_made_of_it_without_its_traces(scripts, tmp_path):
    import quickstart

    class Blackening(Echo):
        def restore(self, image, task, **options):
            self.asked.append((task, image.max()))
            return super().restore(image * (task != "jpeg_restoration"), task, **options)

    path, model = tmp_path / "my.jpg", Blackening()
    Image.new("RGB", (300, 200), (250, 90, 20)).save(path)
    quickstart.own_row(model, path, tmp_path / "sheet.png")
    brightest = {task: value for task, value in model.asked if not isinstance(value, tuple)}
    assert brightest["jpeg_restoration"] > 200 and brightest["denoising"] == brightest["super_resolution"] == 0


def test_a_large_photo_is_shrunk_and_a_gray_one_coloured(scripts, tmp_path):
    import quickstart

    path, echo = tmp_path / "my.png", Echo()
    Image.new("L", (3000, 1500), 90).save(path)
    _, cells = quickstart.own_row(echo, path, tmp_path / "sheet.png")
    assert echo.asked[:2] == [("colorization", (320, 640, 3)), ("denoising", (320, 640, 3))] and len(cells) == 4


def test_a_photo_smaller_than_a_cell_is_shown_as_it_is(scripts, tmp_path):
    import quickstart

    path = tmp_path / "my.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    title, cells = quickstart.own_row(Echo(), path, tmp_path / "sheet.png")
    assert [picture.shape for picture, _, _ in cells] == [(40, 50, 3), (40, 50, 3), (80, 100, 3)]
    assert quickstart.drawn([(title, cells)]).size[0] == 4 * (448 + 24) + 24


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_bad_photo_of_the_users_ends_before_anything_is_done(repository, tmp_path, content):
    path = tmp_path / "my.jpg"
    if content is not None:
        path.write_bytes(content)
    done = subprocess.run([sys.executable, repository / "scripts" / "quickstart.py", tmp_path / "sheet.png", "--photo",
                           path], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and "my.jpg" in lines[0]
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("arguments", [["none.jpg"], ["a.jpg", "b.jpg"]])
def test_the_quickstart_refuses_a_photo_that_is_not_there_before_it_installs(repository, tmp_path, arguments):
    done = subprocess.run(["bash", repository / "scripts" / "quickstart.sh", *arguments], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


# The comparison and the card


@pytest.fixture
def report(scripts):
    """Two kinds on three photos: the model 1 dB ahead of the best method in one, behind in the other."""
    from restoration import summary

    def values(*scores):
        return [[score, 0.5, 1.0] for score in scores]

    ours, theirs = values(31, 31.1, 30.9), values(30, 30, 30)
    return {"checkpoint": "photo", "pictures_seen": 1234, "photos": ["a", "b", "c"], "kinds": {
        "jpeg 10": summary("jpeg 10", {"the JPEG": values(25, 25, 25), "filter": theirs, "palette_ms": ours}),
        "color": summary("color", {"gray": values(20, 20, 20), "palette_ms": values(21, 21, 21.3)}),
    }}


def test_intervals_are_those_of_students_t(report):
    # Of three values with deviation 0.1: 4.3027 · 0.1 / √3.
    assert report["kinds"]["jpeg 10"]["filter"]["lead"] == pytest.approx([1, 0.24841], abs=1e-4)
    assert report["kinds"]["jpeg 10"]["palette_ms"]["score"] == pytest.approx([31, 0.24841], abs=1e-4)
    assert report["kinds"]["color"]["gray"]["lead"][0] == pytest.approx(-1.1)  # lower is better


def test_a_table_names_the_best_method_and_the_lead_on_it(report):
    from restoration import table

    _, _, jpeg, color = table(report).splitlines()
    assert "+1.00 ± 0.25 on filter" in jpeg and "the JPEG 25.00 / 0.500" in jpeg and "**31.00** ± 0.25" in jpeg
    assert "error of ab" in color and "-1.10" in color and "on gray" in color


def test_the_card_has_the_figures_of_its_sources(repository, report, tmp_path):
    scores, log, data, text = (tmp_path / name for name in ("scores.json", "log.jsonl", "data.csv", "card.md"))
    model = tmp_path / "model.safetensors"
    scores.write_text(json.dumps(report))
    log.write_text("".join(json.dumps({"step": step, "loss": 0.5, "steps_per_second": 2.0}) + "\n"
                           for step in (3600, 7200, 10800, 7200, 3600)))  # 10 800 was lost
    with open(data, "w", newline="") as file:
        csv.writer(file).writerows([("set", "photo", "licence", "copyright"), ("train", "a", "GPL-3", "Ann"),
                                    ("train", "b", "GPL-3", "not noted singly: the package's"),
                                    ("held_out", "c", "CC0-1.0", "Bob")])
    config = load_config(repository / "configs" / "photo.yaml", ["model.base_channels=8", "model.num_head_channels=8"])
    save_checkpoint(model, config, 3, 5678, ema={"a": np.zeros((1000, 1500), np.float16)})
    names = ("facts", "training", "licences", "scores", "claims")
    text.write_text("Before.\n" + "".join(f"<!-- {name}: command -->\nstale {name}\n<!-- end -->\n" for name in names))
    command = [sys.executable, repository / "scripts" / "photo_card.py", text, "--ckpt", model, "--log", log,
               "--scores", scores, "--data", data]
    subprocess.run(command, check=True, capture_output=True)
    written = text.read_text()
    assert "stale" not in written and written.startswith("Before.\n<!-- facts: command -->\n")
    assert "1.5 M parameters, 3.0 MB" in written and "5,678 pictures seen" in written
    assert "| `jpeg_restoration` | quality 5, 40 | 20 of dpmpp_2m |" in written
    assert "| 1 | 7,200 | 1.0 | 0.5000 |" in written and "| 2 | 3,600 | 0.5 | 0.5000 |" in written
    assert "| GPL-3 | 2 |  |" in written and "1 of them are not noted singly" in written
    assert "- ahead of all methods compared: JPEG, quality 10 (+1.00 on filter)" in written
    assert "- behind the best of them: colour (-1.10 on gray)" in written
    subprocess.run(command, check=True, capture_output=True)
    assert text.read_text() == written
