"""The search for the best steps: against all ways there are, and through the command."""

import itertools
import json
import shutil
import sys

import numpy as np
import pytest
from gaussian import MEAN, GaussianDenoiser, gaussian_answer
from mindspore import Tensor
from PIL import Image

import palette_ms.search_steps
from palette_ms import Palette, errors
from palette_ms.checkpoint import MODELS, Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.diffusion.schedule import make_beta_schedule
from palette_ms.diffusion.search import best_steps, elbo_costs
from palette_ms.errors import UserError
from palette_ms.evaluation.denoising import denoising_errors
from palette_ms.searched import load_steps, save_steps, steps_file


def config(path="", **model):
    return config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [], **model},
        "diffusion": {"prediction": "x0", "clip": False,
                      "test_schedule": {"num_steps": 100, "start": 1e-3, "end": 0.1}},
        "tasks": [{"name": "denoising"}, {"name": "colorization"}], "data": {"image_size": 16, "path": str(path)},
    }, "test")


def gammas_of(config):
    return np.cumprod(1 - make_beta_schedule(**vars(config.diffusion.test_schedule)))


def test_the_way_found_is_the_cheapest_of_all():
    costs = np.where(np.tri(9, k=-1) > 0, np.random.default_rng(0).random((9, 9)), np.inf)
    found = best_steps(costs, [2, 4, 5, 9])
    for count, steps in found.items():
        ways = [(0, *middle, 8) for middle in itertools.combinations(range(1, 8), count - 2)]
        price = {way: sum(costs[t, s] for s, t in zip(way, way[1:])) for way in ways}
        assert tuple(steps) == min(price, key=price.get)


def test_the_cost_of_a_step_is_the_divergence_of_its_gaussians():
    """KL of two Gaussians of one variance by its definition: squared distance of the means over twice the variance."""
    gammas = gammas_of(config())
    squares = np.linspace(1, 5, 100)
    costs = elbo_costs(gammas, squares)
    for t, s in ((99, 0), (40, 39), (70, 12)):
        beta = 1 - gammas[t] / gammas[s]
        weight = beta * np.sqrt(gammas[s]) / (1 - gammas[t])  # of ŷ₀ in the mean
        variance = beta * (1 - gammas[s]) / (1 - gammas[t])
        assert costs[t, s] == pytest.approx(weight**2 * squares[t] / (2 * variance), rel=1e-9)
    assert np.isinf(costs[3, 3]) and np.isinf(costs[3, 50])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for i in range(64):  # pixels as independent Gaussians, of 8 bits; of the training size, so that none are averaged
        values = np.clip(MEAN + 0.4 * rng.standard_normal((16, 16, 3)), -1, 1)
        Image.fromarray(np.uint8(np.round((values + 1) * 127.5))).save(folder / f"{i}.png")
    return folder


def test_the_measured_error_is_that_of_the_exact_denoiser(photos):
    settings = config(photos)
    gammas, squares = denoising_errors(GaussianDenoiser("x0"), settings, 0, 64, 0)
    values = np.stack([np.asarray(Image.open(path)) for path in photos.iterdir()]) / 127.5 - 1
    gain, offset = gaussian_answer(gammas)
    bias = offset - (1 - gain * np.sqrt(gammas)) * values.mean()
    pixel = (1 - gain * np.sqrt(gammas)) ** 2 * values.var() + bias**2 + gain**2 * (1 - gammas)
    assert len(squares) == 100 and (np.diff(squares) >= 0).all()
    # 49 152 values: the standard error is below 1 %
    np.testing.assert_allclose(squares, 16 * 16 * 3 * pixel, rtol=0.04)


@pytest.fixture
def checkpoint(photos, tmp_path):
    path, settings = tmp_path / "tiny.safetensors", config()
    save_checkpoint(path, settings, 1, 10**6, unet_arrays(build_unet(settings.model)))
    return path


def search(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["search_steps", *map(str, arguments)])
    errors.run(palette_ms.search_steps.main)


def test_searched_steps_are_used_until_the_checkpoint_changes(checkpoint, photos, monkeypatch, capsys):
    search(monkeypatch, "--ckpt", checkpoint, "--input", photos, "--steps", "3,5", "--pictures", 16, "--task",
           "denoising")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("denoising, 3 steps: 0 ") and told[-1] == str(steps_file(checkpoint))
    found = load_steps(Checkpoint(checkpoint))
    assert list(found) == ["denoising"] and [len(steps) for steps in found["denoising"].values()] == [3, 5]
    save_steps(Checkpoint(checkpoint), {"colorization": {4: [0, 1, 2, 99]}})
    assert load_steps(Checkpoint(checkpoint)) == {**found, "colorization": {4: [0, 1, 2, 99]}}

    palette = Palette.load(checkpoint, "cpu")
    gammas, used = gammas_of(palette.config), []
    chain = "palette_ms.diffusion.samplers.Sampler.__call__"
    monkeypatch.setattr(chain, lambda self, cond, y_T, *_: used.append(self.table[:, 0]) or Tensor(y_T))
    picture = np.zeros((16, 16, 3), np.uint8)
    for options in ({"steps": 5}, {"steps": 5, "sampler": "unipc"}, {"steps": 5, "spacing": "uniform"}, {"steps": 4}):
        palette.restore(picture, "denoising", **options)
    best = gammas[found["denoising"][5]][::-1]
    np.testing.assert_allclose(used[0], best, rtol=1e-6)
    np.testing.assert_allclose(used[1], best, rtol=1e-6)
    assert np.abs(used[2] - best).max() > 1e-3 and len(used[3]) == 4

    other = config(norm_groups=4)
    save_checkpoint(checkpoint, other, 2, 10**6, unet_arrays(build_unet(other.model)))
    assert Palette.load(checkpoint, "cpu").chains.searched == {}
    assert "was searched for another checkpoint" in capsys.readouterr().err




def test_mistakes_end_with_one_line(checkpoint, photos, tmp_path, monkeypatch, capsys):
    arguments = {"--ckpt": checkpoint, "--input": photos, "--pictures": 16}
    for message, changed in {
        "is not a list of whole numbers": {"--steps": "5;8"}, "from 2 to 100": {"--steps": "1,5"},
        "does not know the task 'inpainting'": {"--task": "inpainting"}, "no such": {"--input": tmp_path / "none"},
        "--pictures must be at least 1": {"--pictures": 0},
    }.items():
        with pytest.raises(SystemExit) as stop:
            search(monkeypatch, *itertools.chain(*{**arguments, **changed}.items()))
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not steps_file(checkpoint).exists()
    steps_file(checkpoint).write_text(json.dumps({"tasks": []}))
    with pytest.raises(UserError, match="is damaged"):
        Palette.load(checkpoint, "cpu")
    copy = shutil.copy(checkpoint, tmp_path / "copy.safetensors")
    assert Palette.load(copy, "cpu").chains.searched == {}


@pytest.mark.parametrize("steps", [[999_999], [1e999], [], [10**40], [-5], [1, 2, 3], [5, 1], [1, 1], "12", None])
def test_steps_that_no_search_finds_are_a_damaged_file(tmp_path, steps):
    path = tmp_path / "model.safetensors"
    shutil.copy(MODELS / "photo.safetensors", path)
    checkpoint = Checkpoint(path)
    held = json.dumps({"sha256": checkpoint.sha256, "tasks": {"colorization": {"2" if steps else "1": steps}}})
    steps_file(path).write_text("[" * 100_000 if steps is None else held)
    with pytest.raises(UserError, match="steps.json is damaged"):
        load_steps(checkpoint)
