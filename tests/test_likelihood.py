"""The command that takes a model's likelihood: its figures, and what it refuses."""

import json
import sys

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image
from test_usage import save_tiny

from palette_ms import Palette, likelihood
from palette_ms.errors import UserError
from palette_ms.evaluation.trials import make_pair, open_clean
from palette_ms.seeds import generator

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("likelihood"), np.random.default_rng(0)
    (folder / "clean").mkdir()
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).save(folder / "clean" / f"{name}.png")
    save_tiny(folder / "tiny.safetensors", tasks=[{"name": "denoising"}], diffusion={
        "prediction": "x0", "from_source": True, "clip": False,
        "test_schedule": {"name": "cosine", "num_steps": STEPS}})
    return folder


def run(monkeypatch, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["likelihood", "--ckpt", str(folder / "tiny.safetensors"), "--input",
                                      *map(str, arguments)])
    likelihood.main()


def test_the_terms_are_the_divergences_of_the_chains_steps(folder, tmp_path, monkeypatch, capsys):
    run(monkeypatch, folder, folder / "clean", "--seed", "2", "--output", tmp_path / "l.json", "--device", "cpu")
    found = json.loads((tmp_path / "l.json").read_text())
    assert np.sum(found["terms"], 1) + found["prior"] == pytest.approx(found["total"], rel=1e-6)
    assert f"{np.mean(found['total']):.4f} bits a value" in capsys.readouterr().out
    palette = Palette.load(folder / "tiny.safetensors", "cpu", "mindspore")
    task, gammas = palette.config.tasks[0], np.array(found["gammas"])  # the noisiest first
    size, source = open_clean(palette, task, folder / "clean")
    for index in range(2):
        y_0, cond, _ = make_pair(palette, task, source, index, size, 2)
        rng = generator(2, "likelihood", index)
        for step in range(STEPS - 1):
            gamma, before = gammas[step:step + 2]
            y_t = np.sqrt(gamma) * y_0 + np.sqrt(1 - gamma) * rng.standard_normal(y_0.shape, np.float32)
            said = palette.unet(Tensor(np.concatenate([cond, y_t])[None].astype(np.float32)),
                                Tensor(np.float32([gamma]))).asnumpy()[0]
            # Of Gaussians with one variance: that of q(y_{t-1} | y_t, y_0), whose mean has a share of y_0.
            beta = 1 - gamma / before
            share, variance = beta * np.sqrt(before) / (1 - gamma), beta * (1 - before) / (1 - gamma)
            bits = np.mean((share * (y_0 - said)) ** 2) / (2 * variance) / np.log(2)
            assert found["terms"][index][step] == pytest.approx(bits, rel=1e-4)


def test_what_cannot_be_read_is_left_out_and_told(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.png").write_bytes((folder / "clean" / "a.png").read_bytes())
    (tmp_path / "c" / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 2 pictures could not be read and are left out"):
        run(monkeypatch, folder, tmp_path / "c", "--device", "cpu")
    told = capsys.readouterr()
    assert "of 1 pictures" in told.out and "b.png" in told.err
    (tmp_path / "c" / "a.png").write_bytes(b"neither")
    with pytest.raises(UserError, match="none of the 2 pictures can be read"):
        run(monkeypatch, folder, tmp_path / "c", "--device", "cpu")


@pytest.mark.parametrize("arguments, message", [
    (["--steps", "0"], "--steps must be at least 1"),
    (["--steps", "5"], "from 1 to 4"),
    (["--size", "0"], "--size must be a multiple of 2, not 0"),
    (["--pictures", "0"], "--pictures and"),
    (["--output", "l.txt"], "must end in .json"),
])
def test_a_mistake_is_told(folder, monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        run(monkeypatch, folder, folder / "clean", *arguments)
