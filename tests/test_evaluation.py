"""Metrics against scikit-image's, and the report on two folders."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import color, data, metrics
from tifffile import imwrite

from palette_ms import evaluate
from palette_ms.data.images import load_image
from palette_ms.errors import UserError
from palette_ms.evaluation import report
from palette_ms.evaluation.metrics import METRICS, ab_error, luma, psnr, ssim

PHOTO = data.astronaut()[::4, ::4]
OTHER = np.clip(PHOTO + np.random.default_rng(0).normal(0, 12, PHOTO.shape), 0, 255).astype(np.uint8)


def test_psnr_equals_scikit_images():
    assert psnr(OTHER, PHOTO) == pytest.approx(metrics.peak_signal_noise_ratio(PHOTO, OTHER), rel=1e-12)
    assert psnr(PHOTO, PHOTO) == float("inf")


def test_colourfulness_is_hasler_and_suesstrunks():
    assert METRICS["colourfulness"](np.repeat(PHOTO[..., :1], 3, 2), PHOTO) == 0
    red, other = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 100
    assert METRICS["colourfulness"](red, None) == pytest.approx(0.3 * np.hypot(100, 50))
    other[:4, :, 0] = 100  # rg is 100 or 0, and yb 50 or 0
    assert METRICS["colourfulness"](other, None) == pytest.approx(np.hypot(50, 25) + 0.3 * np.hypot(50, 25))


def test_psnr_counts_only_the_pixels_asked_for():
    where = np.zeros(PHOTO.shape[:2], bool)
    where[10:30, 5:50] = True
    elsewhere = np.where(where[..., None], OTHER, 0)
    assert psnr(elsewhere, PHOTO, where) == pytest.approx(psnr(OTHER[10:30, 5:50], PHOTO[10:30, 5:50]), rel=1e-12)


def test_colour_error_is_the_distance_in_the_ab_plane():
    a, b = (color.rgb2lab(picture)[..., 1:] for picture in (OTHER, PHOTO))
    # OpenCV's Lab differs from scikit-image's by up to 0.2 in each channel
    assert ab_error(OTHER, PHOTO) == pytest.approx(np.hypot(*np.moveaxis(a - b, -1, 0)).mean(), abs=0.1)
    gray = np.repeat(PHOTO[..., :1], 3, 2)
    assert ab_error(gray, (gray * 0.5).astype(np.uint8)) == pytest.approx(0, abs=0.05)


def test_ssim_equals_scikit_images_with_the_papers_window():
    expected, pixels = metrics.structural_similarity(
        PHOTO, OTHER, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2, data_range=255,
        full=True)
    assert ssim(OTHER, PHOTO) == pytest.approx(expected, rel=1e-12)
    assert ssim(PHOTO, PHOTO) == 1
    where = np.zeros(PHOTO.shape[:2], bool)
    where[:40, 20:60] = True  # reaches the edge, and scikit-image mirrors there
    assert ssim(OTHER, PHOTO, where) == pytest.approx(pixels[5:40, 20:60].mean(), rel=1e-12)
    with pytest.raises(UserError, match="5 or more from each edge"):
        ssim(OTHER[:10], PHOTO[:10])


@pytest.mark.parametrize("metric", METRICS.values())
def test_metrics_do_not_see_far_outside_the_mask(metric):
    where = np.zeros(PHOTO.shape[:2], bool)
    where[30:60, 40:90] = True
    far = np.ones(PHOTO.shape[:2], bool)
    far[25:65, 35:95] = False  # windows of SSIM reach 5 pixels out
    changed = np.where(far[..., None], 0, OTHER).astype(np.uint8)
    assert metric(changed, PHOTO, where) == metric(OTHER, PHOTO, where) != metric(OTHER, PHOTO)


@pytest.mark.parametrize("channels, dtype, span", [(1, np.uint16, 65535), (13, np.int16, 65535), (5, np.float32, 3.0)])
def test_metrics_of_arrays_are_scikit_images(channels, dtype, span):
    rng = np.random.default_rng(1)
    info = (-1, 2) if dtype == np.float32 else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    original = np.linspace(*info, 40 * 30 * channels).reshape(40, 30, channels)
    restored = (original + rng.normal(0, span / 30, original.shape)).clip(*info).astype(dtype)
    original = original.astype(dtype)
    assert psnr(restored, original, None, span) == pytest.approx(
        metrics.peak_signal_noise_ratio(original, restored, data_range=span), rel=1e-5)
    assert ssim(restored, original, None, span) == pytest.approx(metrics.structural_similarity(
        original, restored, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2,
        data_range=span), rel=1e-5)


def noisy(level, picture=PHOTO):
    noise = np.random.default_rng(level).normal(0, level, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def write(folder, pictures):
    for name, picture in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


@pytest.fixture
def folders(tmp_path):
    """Three pictures, one of them in a subfolder and two of one name, with two samples of each."""
    write(tmp_path / "reference", {"in/a.jpg": PHOTO, "b.png": PHOTO[:, ::-1], "b.bmp": PHOTO[::-1]})
    samples = {"in/a": PHOTO, "b_png": PHOTO[:, ::-1], "b_bmp": PHOTO[::-1]}
    write(tmp_path / "restored", {f"{name}_{k}.png": noisy(9 + 8 * k + i, picture)
                                  for i, (name, picture) in enumerate(samples.items()) for k in (0, 1)})
    return tmp_path


def run(monkeypatch, folder, *more, reference="reference", restored="restored"):
    argv = ["evaluate", "--reference", folder / reference, "--restored", folder / restored, "--output",
            folder / "out" / "report.json", *more]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    evaluate.main()
    return json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))


def test_the_report_has_the_mean_of_each_pictures_samples_and_of_all(folders, monkeypatch, capsys):
    made = run(monkeypatch, folders, "--metrics", "ssim,psnr")
    assert list(made) == ["ssim", "psnr", "run"]
    assert (made["run"]["pictures"], made["run"]["samples"]) == (3, 2)
    assert made["run"]["versions"]["numpy"] == np.__version__
    originals = {"in/a": "in/a.jpg", "b_png": "b.png", "b_bmp": "b.bmp"}
    expected = {name: np.mean([metrics.peak_signal_noise_ratio(load_image(folders / "reference" / path),
                                                               load_image(folders / "restored" / f"{name}_{k}.png"))
                               for k in (0, 1)]) for name, path in originals.items()}
    assert made["psnr"]["values"] == pytest.approx(expected, rel=1e-6)  # float32
    assert made["psnr"]["mean"] == pytest.approx(np.mean(list(expected.values())), rel=1e-6)
    assert made["psnr"]["std"] == pytest.approx(np.std(list(expected.values())), rel=1e-4)
    assert made["psnr"]["pictures"] == made["ssim"]["pictures"] == 3
    assert sorted(path.name for path in (folders / "out").iterdir()) == ["report.json"]
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "3 pictures, each the mean of 2 samples"
    assert table[3].split() == ["psnr", f"{made['psnr']['mean']:.4f}", f"{made['psnr']['std']:.4f}"]


def test_names_that_end_in_numbers_are_samples_only_where_a_picture_has_no_result_of_its_own(tmp_path):
    write(tmp_path / "reference", {f"{name}.png": PHOTO for name in ("a", "a_0", "a_1")})
    write(tmp_path / "plain", {f"{name}.png": PHOTO for name in ("a", "a_0", "a_1")})
    write(tmp_path / "sampled", {f"{name}_{k}.png": PHOTO for name in ("a", "a_0", "a_1") for k in range(2)})
    for restored, of_each in (("plain", ["{}"]), ("sampled", ["{}_0", "{}_1"])):
        for pair in report.match(tmp_path / "reference", tmp_path / restored):
            assert [path.stem for path in pair.samples] == [text.format(pair.name) for text in of_each]


def test_a_mask_says_which_pixels_count(tmp_path, monkeypatch):
    mask = np.zeros(PHOTO.shape[:2], np.uint8)
    mask[30:60, 40:90] = 255
    write(tmp_path, {"reference/a.png": PHOTO, "restored/a.png": OTHER, "masks/a.jpg": mask, "masks/other.png": mask})
    made = run(monkeypatch, tmp_path, "--mask", tmp_path / "masks", "--metrics", "psnr")
    expected = metrics.peak_signal_noise_ratio(PHOTO[30:60, 40:90], OTHER[30:60, 40:90])
    assert made["psnr"]["values"] == pytest.approx({"a": expected}, rel=1e-6)


def test_equal_pictures_have_an_infinite_psnr_in_a_json_of_the_standard(repository, tmp_path):
    write(tmp_path, {"reference/a.png": PHOTO, "reference/: Infinity.png": OTHER})
    # Within the tests' process MindSpore is there already.
    code = ("import sys; from palette_ms import evaluate, errors; errors.run(evaluate.main); "
            "sys.exit('mindspore' in sys.modules)")
    folder, output = tmp_path / "reference", tmp_path / "report.json"
    done = subprocess.run([sys.executable, "-c", code, "--reference", folder, "--restored", folder, "--output", output],
                          capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    made = json.loads(output.read_text(encoding="utf-8"), parse_constant=refuse)
    assert made["psnr"] == {"mean": np.inf, "std": None, "pictures": 2, "values": {": Infinity": np.inf, "a": np.inf}}
    assert made["ssim"]["mean"] == 1 and made["ssim"]["std"] == 0


def test_deeper_pictures_are_compared_by_their_own_values(tmp_path, monkeypatch):
    wide = PHOTO[..., 0].astype(np.uint16) * 200
    other = np.clip(wide + np.random.default_rng(0).normal(0, 900, wide.shape), 0, 65535).astype(np.uint16)
    for folder, array in (("reference", wide), ("restored", other)):
        (tmp_path / folder).mkdir()
        imwrite(tmp_path / folder / "a.tif", array)
        write(tmp_path / folder, {"b.png": array})
    mask = np.zeros(wide.shape, np.uint8)
    mask[20:60] = 1
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / "masks" / f"{name}.npy", mask)
    made = run(monkeypatch, tmp_path)
    expected = metrics.peak_signal_noise_ratio(wide, other)
    assert made["psnr"]["values"] == pytest.approx({"a": expected, "b": expected}, rel=1e-6)
    made = run(monkeypatch, tmp_path, "--range", "0,51000", "--mask", tmp_path / "masks", "--metrics", "psnr")
    expected = metrics.peak_signal_noise_ratio(wide[20:60], other[20:60], data_range=51000)
    assert made["psnr"]["mean"] == pytest.approx(expected, rel=1e-6)


def test_floats_need_their_range_and_colours_need_rgb(tmp_path, monkeypatch, capsys):
    for folder in ("reference", "restored"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", np.random.default_rng(0).random((5, 30, 40)))
    for more, message in (([], "a.npy holds float32: say what the values to compare span, as --range LOW,HIGH"),
                          (["--range=-1,1", "--metrics", "ab_error"], "ab_error needs RGB of 8 bits")):
        with pytest.raises(UserError, match="1 of 1 pictures could not be compared"):
            run(monkeypatch, tmp_path, *more)
        assert message in capsys.readouterr().err
    assert run(monkeypatch, tmp_path, "--range", "0,1")["ssim"]["mean"] == 1
    for text in ("1", "1,0", "0,inf", "a,b"):
        with pytest.raises(UserError, match="is not of the form LOW,HIGH"):
            run(monkeypatch, tmp_path, "--range", text)
    np.save(tmp_path / "restored" / "a.npy", np.zeros((30, 40, 4)))
    with pytest.raises(UserError):
        run(monkeypatch, tmp_path, "--range", "0,1")
    assert "a.npy has 4 channels, where 5 are needed" in capsys.readouterr().err


def test_beside_a_picture_of_eight_bits_sixteen_are_scaled(tmp_path, monkeypatch):
    write(tmp_path, {"reference/a.png": PHOTO[..., 0].astype(np.uint16) * 257, "restored/a.jpg": PHOTO[..., 0],
                     "reference/b.png": PHOTO[..., 0], "restored/b.png": PHOTO[..., 0]})
    np.save(tmp_path / "reference" / "a.npy", PHOTO)  # what is no picture is of no matter beside pictures
    made = run(monkeypatch, tmp_path)
    assert made["psnr"]["values"]["a"] > 30 and made["psnr"]["values"]["b"] == np.inf


MISTAKES = {
    "unknown metric": (lambda folder: None, ["--metrics", "psnr,mse"],
                       "unknown metric 'mse': psnr, ssim, psnr_y, ssim_y, ab_error, colourfulness, ssim_between, fid"),
    "no partners": (lambda folder: (folder / "restored").rename(folder / "old") and write(
        folder, {"restored/c.png": PHOTO}), [], "no picture to compare: .*restored lacks 3 of the 3 pictures of "
        ".*reference: b_bmp, b_png, in/a; .*restored has 1 that .*reference lacks: c.png$"),
    "no report": (lambda folder: write(folder, {"a.png": PHOTO}), ["--output", "a.png"], "must end in .json"),
    "fewer samples": (lambda folder: (folder / "restored" / "b_png_1.png").unlink(), [],
                      "2 samples of .* and 1 of b_png"),
    "another size": (lambda folder: write(folder, {"restored/b_png_1.png": PHOTO[:100]}), [],
                     "1 of 3 pictures could not be compared"),
    "unreadable": (lambda folder: (folder / "restored" / "b_png_1.png").write_bytes(b""), [],
                   "1 of 3 pictures could not be compared"),
    "no folder": (lambda folder: None, ["--mask", "nowhere"], "no such folder: nowhere"),
    "no masks": (lambda folder: write(folder, {"masks/x.png": PHOTO}), ["--mask", "masks"],
                 "no picture to compare.*masks lacks 3 of the 3 pictures of .*reference: b_bmp, b_png, in/a$"),
    "empty masks": (lambda folder: write(folder, {"masks/in/a.png": 0 * PHOTO, "masks/b.png": 0 * PHOTO[:, ::-1],
                                                  "masks/b.bmp": 0 * PHOTO}),
                    ["--mask", "masks"], "3 of 3 pictures could not be compared"),
    "folder for a file": (lambda folder: None, ["--output", "."], "it must be a file"),
    "file for a folder": (lambda folder: (folder / "out").write_bytes(b""), [], "cannot write .*report.json"),
}


def test_pictures_without_a_partner_are_left_out_and_counted(folders, monkeypatch, capsys):
    for path in folders.glob("restored/b_png_*"):
        path.unlink()
    write(folders, {"restored/c.png": PHOTO})
    assert run(monkeypatch, folders)["psnr"]["pictures"] == 2
    told, = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert "lacks 1 of the 3 pictures" in told and "reference: b_png; " in told and told.endswith("lacks: c.png")


def test_a_report_takes_the_place_of_a_report_alone(folders, monkeypatch):
    run(monkeypatch, folders)
    run(monkeypatch, folders)
    other = folders / "package.json"
    for text in ('{"name": "mine"}', "{}", "[]"):
        other.write_text(text)
        with pytest.raises(UserError, match="is there and no report"):
            run(monkeypatch, folders, "--output", other)
        assert other.read_text() == text


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_and_leaves_no_report(folders, monkeypatch, mistake, capsys):
    make, more, message = MISTAKES[mistake]
    make(folders)
    monkeypatch.chdir(folders)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, folders, *more)
    assert not list(folders.rglob("*report*")) and not capsys.readouterr().out


def test_each_picture_that_cannot_be_compared_is_named_with_the_reason(folders, monkeypatch, capsys):
    write(folders, {"restored/b_png_1.png": PHOTO[:100]})
    (folders / "restored" / "in" / "a_0.png").write_bytes(b"")
    with pytest.raises(UserError, match="2 of 3 pictures"):
        run(monkeypatch, folders)
    told = [line for line in capsys.readouterr().err.splitlines() if "not compared" in line]
    assert len(told) == 2 and "b_png_1.png is 128×100" in told[0] and "cannot read picture" in told[1]


def test_y_is_that_of_papers_with_their_border(tmp_path):
    """BT.601 as MATLAB's rgb2ycbcr has it: black is 16, white 235."""
    assert luma(np.uint8([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]]))[0, :, 0] == pytest.approx([16, 235, 81.481])
    y, other = (16 + picture @ np.array([65.481, 128.553, 24.966]) / 255 for picture in (PHOTO, OTHER))
    assert METRICS["psnr_y"](OTHER, PHOTO) == pytest.approx(
        metrics.peak_signal_noise_ratio(y, other, data_range=255), rel=1e-12)
    for folder, picture in (("originals", PHOTO), ("restored", OTHER)):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / "a.png")
    pair, = report.match(tmp_path / "originals", tmp_path / "restored")
    inner = np.s_[4:-4, 4:-4]
    expected = metrics.structural_similarity(y[inner], other[inner], gaussian_weights=True, sigma=1.5,
                                             use_sample_covariance=False, data_range=255)
    assert report.measure(pair, report.read(pair), ["psnr_y", "ssim_y"], border=4) == pytest.approx(
        [metrics.peak_signal_noise_ratio(y[inner], other[inner], data_range=255), expected], rel=1e-12)
    with pytest.raises(UserError, match="nothing of .* is left without a border of 64 pixels"):
        report.measure(pair, report.read(pair), ["psnr"], border=64)
