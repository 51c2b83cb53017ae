"""Pictures that are not RGB of 8 bits, from file to file: what comes back has the target's kind, depth and range."""

import numpy as np
import pytest
import tifffile
from mindspore import Tensor
from running import status

import palette_ms.sample
from palette_ms import Palette
from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.errors import UserError

RNG = np.random.default_rng(0)
CT = RNG.integers(-1000, 3000, (13, 18)).astype(np.int16)


def model(path, tasks, data):
    """A checkpoint of a tiny network with random weights, which says something."""
    config = config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": []},
        "diffusion": {"prediction": "x0", "test_schedule": {"num_steps": 4, "start": 0.01, "end": 0.5}},
        "tasks": [{"name": name} for name in tasks], "data": {"image_size": 8, **data}}, "test")
    network, rng = build_unet(config.model), np.random.default_rng(1)
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(0.3 * rng.standard_normal(parameter.shape, np.float32)))
    save_checkpoint(path, config, 1, 10**6, unet_arrays(network))
    return path


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    data = {"channels": {"source": 1, "target": 1}, "ranges": {"source": [-1000, 3000], "target": [-1000, 3000]},
            "result": {"suffix": ".tif", "dtype": "int16"}}
    return model(tmp_path_factory.mktemp("ct") / "ct.safetensors", ["inpainting", "denoising", "uncropping"], data)


def command(*arguments):
    return status(palette_ms.sample, *arguments)


def test_known_values_come_back_to_the_bit_in_a_file_of_the_same_kind(ct, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "scan.tif", CT)
    hole = np.zeros((13, 18), np.uint8)
    hole[3:9, 5:12] = 1  # as programs for masks of such pictures write them
    np.save(tmp_path / "hole.npy", hole)
    assert command("--ckpt", ct, "--input", tmp_path / "scan.tif", "--output", tmp_path / "out", "--task",
                   "inpainting", "--mask", tmp_path / "hole.npy", "--steps", 2) == 0
    made = tifffile.imread(tmp_path / "out" / "scan.tif")
    assert made.dtype == np.int16 and made.shape == CT.shape and made.min() >= -1000 and made.max() <= 3000
    np.testing.assert_array_equal(made[hole == 0], CT[hole == 0])
    assert (made[hole > 0] != CT[hole > 0]).mean() > 0.9


def test_a_scan_is_extended(ct):
    made, = Palette.load(ct, "cpu", "mindspore").restore(CT, "uncropping", steps=2, extend={"left": 3})
    np.testing.assert_array_equal(made[:, 3:], CT)
    assert made.dtype == np.int16


def test_in_a_folder_what_does_not_fit_is_skipped_and_counted(ct, tmp_path, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    tifffile.imwrite(folder / "good.tif", CT)
    tifffile.imwrite(folder / "rgb.tif", RNG.integers(0, 255, (13, 18, 3)).astype(np.uint8), photometric="rgb")
    np.save(folder / "nan.npy", np.full((13, 18), np.nan, np.float32))
    np.save(folder / "bright.npy", np.full((13, 18), 4000, np.int16))
    assert command("--ckpt", ct, "--input", folder, "--output", tmp_path / "out", "--task", "denoising",
                   "--steps", 1) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("skipped", "warning", "error"))]
    assert len(lines) == 4
    assert "bright.npy: 234 values are outside the range that this model was trained with" in lines[0]
    assert "nan.npy holds values that are NaN" in lines[1]
    assert "rgb.tif has 3 channels, where 1 is needed" in lines[2]
    assert lines[3] == "error: 2 of 4 pictures could not be restored"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == ["bright.tif", "good.tif"]


def test_what_is_wrong_with_what_is_asked_is_told_once_for_a_folder(ct, tmp_path, capsys):
    for name in "abc":
        tifffile.imwrite(tmp_path / f"{name}.tif", CT)
    assert command("--ckpt", ct, "--input", tmp_path, "--output", tmp_path / "out", "--task",
                   "inpainting") == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum("inpainting needs mask" in line for line in lines) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("source, target, kind", [
    (4, 3, {"suffix": ".tif", "dtype": "uint16"}), (1, 3, {"suffix": ".npy", "dtype": "float32"})])
def test_sources_and_targets_may_have_other_channels(tmp_path, source, target, kind):
    ranges = {"source": [[0, 10000]] * source, "target": [[0, 1], [5, 6], [100, 1000]]}
    path = model(tmp_path / "m.safetensors", ["paired"],
                 {"channels": {"source": source, "target": target}, "ranges": ranges, "result": kind})
    given = RNG.uniform(0, 10000, (source, 10, 12)).astype(np.float32)  # channels first, as rasterio gives them
    np.save(tmp_path / "given.npy", given)
    assert command("--ckpt", path, "--input", tmp_path / "given.npy", "--output", tmp_path / "out",
                   "--steps", 2) == 0
    written = tmp_path / "out" / f"given{kind['suffix']}"
    made = np.load(written) if kind["suffix"] == ".npy" else tifffile.imread(written)
    assert made.shape == (10, 12, 3) and made.dtype == kind["dtype"]
    for channel, (low, high) in enumerate(ranges["target"]):
        assert low <= made[..., channel].min() < made[..., channel].max() <= high
    palette = Palette.load(path, "cpu", "mindspore")
    for message, options in {"strength must be 1": {"strength": 0.5, "steps": 1}, "a mask needs": {"mask": "center"},
                             "has 2 channels, where": {"image": given[:1].repeat(2, 0)}}.items():
        with pytest.raises(UserError, match=message):
            palette.restore(**{"image": given, "task": "paired", **options})


def test_a_mask_of_pairs_says_what_is_made(tmp_path):
    data = {"channels": {"source": 2, "target": 2}, "ranges": {"source": [0, 1], "target": [0, 1]},
            "result": {"suffix": ".npy", "dtype": "float32"}}
    palette = Palette.load(model(tmp_path / "m.safetensors", ["paired"], data), "cpu", "mindspore")
    cloudy = RNG.random((10, 12, 2)).astype(np.float32)
    clouds = np.zeros((10, 12), bool)
    clouds[2:6, 3:9] = True
    made, = palette.restore(cloudy, "paired", clouds, steps=2)
    np.testing.assert_array_equal(made[~clouds], cloudy[~clouds])
    assert (made[clouds] != cloudy[clouds]).all()
    everything, = palette.restore(cloudy, "paired", steps=2)
    assert (everything != cloudy).mean() > 0.9


def test_known_values_stay_where_source_and_target_have_other_ranges(tmp_path):
    data = {"channels": {"source": 1, "target": 1}, "ranges": {"source": [0, 10000], "target": [0, 1000]},
            "result": {"suffix": ".tif", "dtype": "uint16"}}
    palette = Palette.load(model(tmp_path / "m.safetensors", ["paired"], data), "cpu", "mindspore")
    given = []
    palette.chains.sampler = lambda *_: type("Chain", (), {
        "num_steps": 1, "__call__": lambda self, *arguments: given.append(arguments) or Tensor(arguments[4])})()
    cloudy, clouds = RNG.integers(0, 1000, (10, 12)).astype(np.uint16), np.zeros((10, 12), bool)
    clouds[2:6, 3:9] = True
    made, = palette.restore(cloudy, "paired", clouds, steps=2)
    np.testing.assert_array_equal(made[~clouds], cloudy[~clouds])
    cond, known = given[0][0], given[0][4]
    np.testing.assert_allclose((cond[0, 0] + 1) * 5000, cloudy, atol=1e-2)
    np.testing.assert_allclose((known[0, 0] + 1) * 500, cloudy, atol=1e-2)


def test_pictures_of_four_channels_are_compared_in_all_of_them(tmp_path):
    from PIL import Image

    from palette_ms.evaluation.report import evaluate, match

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        picture = RNG.integers(0, 256, (16, 16, 4), np.uint8)
        picture[..., 3] = 0  # infrared, say, and no opacity
        Image.fromarray(picture).save(tmp_path / folder / "x.png")
    first, second = (np.asarray(Image.open(tmp_path / folder / "x.png")).astype(float) for folder in ("a", "b"))
    report = evaluate(match(tmp_path / "a", tmp_path / "b"), ["psnr"])
    assert report["psnr"]["mean"] == pytest.approx(10 * np.log10(255**2 / np.mean((first - second) ** 2)), abs=1e-4)


@pytest.mark.parametrize("options, message", [
    ({"num_samples": 1.5}, "must be whole numbers"), ({"seed": None}, "must be whole numbers"),
    ({"tile": "8"}, "tile and overlap must be whole numbers"), ({"image": None}, "must be a path, an array"),
    ({"image": []}, "no picture to restore"), ({"strength": "1"}, "strength must be a number, not '1'"),
    ({"steps": 2.5}, "steps must be a whole number"),
    ({"guidance": float("nan")}, "guidance must be at least 1"),
])
def test_odd_arguments_are_told(ct, options, message):
    with pytest.raises(UserError, match=message):
        Palette.load(ct, "cpu", "mindspore").restore(**{"image": CT, "task": "denoising", **options})


def test_known_values_come_back_from_files_of_another_depth(ct, tmp_path):
    palette = Palette.load(ct, "cpu", "mindspore")
    hole = np.zeros((13, 18), bool)
    hole[3:9, 5:12] = True
    for given in (CT.clip(0, 200).astype(np.uint8), CT.astype(np.float32) + 0.25, CT.astype(np.int32)):
        made, = palette.restore(given, "inpainting", hole, steps=2)
        assert made.dtype == np.int16
        np.testing.assert_array_equal(made[~hole], np.round(given[~hole]))
    with pytest.raises(UserError, match="results of this model are int16, which cannot hold"):
        palette.restore(CT.astype(np.int32) + 40000, "inpainting", hole, steps=2)
