"""How many calls a picture is worth: what is learned from chains, and restoring by it."""

import dataclasses
import sys

import numpy as np
import pytest
from mindspore import Tensor

import palette_ms.tune
from palette_ms import Palette
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.data.images import to_float
from palette_ms.diffusion.worth import FEATURES, Worth, cross_validated, features, learned
from palette_ms.errors import UserError


def chains(number=400, noise=0.05):
    """Pictures whose gain by 4 calls rises with the first feature, and by 2 calls is half of that."""
    rng = np.random.default_rng(0)
    known = rng.normal(3, 2, (number, FEATURES))
    gain = 0.5 * (known[:, 0] - 3) + rng.normal(0, noise, number)
    return known, np.stack([gain / 2, gain], 1)


def test_the_law_that_gains_follow_is_learned():
    known, gains = chains()
    worth = learned((2, 4), known, gains)
    expected = 0.5 * known[:, 0].std() / 2
    assert worth.weights[0][1] == pytest.approx(expected, rel=0.03) and worth.weights[1][1] == pytest.approx(
        2 * expected, rel=0.03)
    assert np.abs(np.array(worth.weights)[:, 2:]).max() < 0.03
    assert worth.calls([6, 3, 3, 3]) == 4 and worth.calls([0, 3, 3, 3]) == 1
    # Where the gain is no more than chance, fewer calls.
    assert dataclasses.replace(worth, weights=((0.01,) + (0.0,) * FEATURES,) * 2).calls([9] * FEATURES) == 1


def test_by_each_pictures_worth_is_better_than_one_number_for_all_and_not_by_chance():
    known, gains = chains()
    gain, calls = cross_validated((2, 4), known, gains)
    assert gain == pytest.approx(np.maximum(gains[:, 1], 0).mean(), abs=0.02) and 1.5 < calls < 3.5
    # Features that tell nothing: about what the better number for all has, which here is one call.
    lost, few = cross_validated((2, 4), np.random.default_rng(1).normal(0, 1, known.shape), gains - 0.3)
    assert lost == pytest.approx(0, abs=0.03) and few < 1.2


def test_features_are_those_of_counting():
    made = np.zeros((3, 12, 12), np.float32)
    made[:, :, 6:] = 0.5
    hole = np.zeros((1, 12, 12), np.float32)
    hole[0, 3:9] = 1
    found = np.exp(features(made - 0.1, made, hole)) - 1e-3
    assert found == pytest.approx([0.5 * 2 / 12, 0.25, 0.1, 0.5], rel=1e-4)


def test_what_does_not_go_together_is_told():
    for change in ({"counts": (4, 2)}, {"counts": (1, 2)}, {"mean": (0.0,)}, {"weights": ((0.0,) * 5,)},
                   {"deviation": (0.0,) * FEATURES}):
        with pytest.raises(ValueError, match="do not go together"):
            Worth(**{"counts": (2, 4), "mean": (0.0,) * FEATURES, "deviation": (1.0,) * FEATURES,
                     "weights": ((0.0,) * (FEATURES + 1),) * 2, **change})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model whose usage says 3 calls where the first one's answer is of more than usual contrast."""
    worth = {"counts": [3], "mean": [0, -1, 0, 0], "deviation": [1.0] * 4, "weights": [[0, 0, 1, 0, 0]]}
    config = config_from_dict({
        "model": {"base_channels": 4, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [],
                  "attention": "none", "norm_groups": 2},
        "diffusion": {"prediction": "x0", "from_source": True, "noise_input": "angle",
                      "test_schedule": {"name": "cosine", "num_steps": 50}},
        "tasks": [{"name": "denoising", "usage": {"sampler": "ddim", "steps": 1, "worth": worth}}],
        "data": {"image_size": 16}}, "test")
    unet, rng = build_unet(config.model), np.random.default_rng(0)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.2 * rng.standard_normal(parameter.shape, np.float32)))
    path = tmp_path_factory.mktemp("worth") / "tiny.safetensors"
    save_checkpoint(path, config, 7, 10**6, unet_arrays(unet))
    return path


def test_restore_makes_as_many_calls_as_a_picture_is_worth(checkpoint):
    palette = Palette.load(checkpoint, "cpu")
    rng = np.random.default_rng(0)
    strong = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    faint = np.uint8(120 + strong // 32)
    together = palette.restore([strong, faint], "denoising", steps="auto")
    worth = palette.config.tasks[0].usage.worth
    for picture, made, calls in zip((strong, faint), together, (3, 1)):
        first, alone = (np.asarray(palette.restore(picture, "denoising", sampler="ddim", steps=count)[0])
                        for count in (1, calls))
        assert worth.calls(features(to_float(picture), to_float(first), np.ones((1, 16, 20)))) == calls
        assert np.array_equal(np.asarray(made[0]), alone)
    for options in ({"sampler": "ddpm"}, {"detail": 1.0}):
        with pytest.raises(UserError):
            palette.restore(strong, "denoising", steps="auto", **options)
    with pytest.raises(UserError, match="tune --predict-steps"):
        Palette.load("photo", "cpu").restore(strong, "denoising", steps="auto")


def test_tune_measures_it_and_keeps_what_helps(checkpoint, tmp_path, monkeypatch, capsys):
    from PIL import Image

    for k in range(6):
        picture = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    monkeypatch.setattr(sys, "argv", [
        "tune", "--ckpt", str(checkpoint), "--input", str(tmp_path), "--output", str(tmp_path / "tuned.safetensors"),
        "--steps", "1,2", "--pictures", "6", "--predict-steps", "--device", "cpu"])
    palette_ms.tune.main()
    line = next(line for line in capsys.readouterr().out.splitlines() if "worth" in line)
    worth = Checkpoint(tmp_path / "tuned.safetensors").config.tasks[0].usage.worth
    assert (worth is not None) == line.endswith(": kept")


def test_a_picture_that_is_made_again_takes_the_calls_that_it_is_worth(checkpoint, monkeypatch):
    palette, run, steps = Palette.load(checkpoint, "cpu"), Palette._run, []
    monkeypatch.setattr("palette_ms.quality.stage._fit", lambda y, hole: 2.0)  # a bad seam
    monkeypatch.setattr(Palette, "_run", lambda self, task, chains, holes, sampling, *rest: (
        steps.append(sampling.steps), run(self, task, chains, holes, sampling, *rest))[1])
    strong = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    palette.restore(strong, "denoising", steps="auto", resample=1)
    assert steps == [1, 3, 1, 3]
