"""What is measured while training: always the same, whatever came before, and the best model kept."""

import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from golden import relative_error
from mindspore import Tensor, ops
from PIL import Image
from skimage import data, metrics
from test_training import tiny_config

from palette_ms.checkpoint import Checkpoint
from palette_ms.errors import UserError
from palette_ms.seeds import generator
from palette_ms.training import loop
from palette_ms.training.validation import LEVELS, Validation


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    for name, photo in (("train", data.astronaut()), ("held", data.coffee())):
        (folder / name).mkdir()
        for i in range(7):
            Image.fromarray(photo[40 * i:40 * i + 64, 50:114]).save(folder / name / f"{i}.png")
    config = tiny_config(folder / "train", folder / "whole", steps=5, sample_every=0, save_every=2)
    held = dataclasses.replace(config.data, validation=str(folder / "held"), image_size=16)
    return dataclasses.replace(config, data=held, validation=dataclasses.replace(
        config.validation, every=2, pictures=12))


def make_trainer(config):
    """A trainer whose steps need not be compiled: they move the averaged weights by what their number says."""
    ms.set_context(mode=ms.GRAPH_MODE)  # which a module's fixtures would come before
    ms.set_seed(0)
    trainer, number = loop.Trainer(config), Tensor(1.0)

    def train_on(batch):
        rng = np.random.default_rng(trainer.step)
        for weights in (trainer.unet, trainer.ema):
            for parameter in weights.get_parameters():
                moved = 0.9 * parameter.asnumpy() + 0.1 * rng.standard_normal(parameter.shape, np.float32)
                ops.assign(parameter, Tensor(moved.astype(np.float32)))
        return number, number, Tensor(True)

    trainer.train_on = train_on
    return trainer


@pytest.fixture(scope="module")
def whole(config):
    """The folder of a run."""
    return make_trainer(config).run().parent


@pytest.fixture(scope="module")
def resumed(config, whole, tmp_path_factory):
    """A trainer after a run from the state of the second step."""
    training = dataclasses.replace(config.training, output=str(tmp_path_factory.mktemp("resumed")))
    trainer = make_trainer(dataclasses.replace(config, training=training))
    trainer.load(Checkpoint(whole / "state_0000002.safetensors"))
    trainer.run()
    return trainer


def validations(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: {name: value for name, value in line.items() if name not in ("step", "time")}
            for line in lines if "validation/psnr" in line}


def test_the_log_has_each_validation_and_the_best_model_is_kept(whole):
    found = validations(whole)
    assert list(found) == [2, 4, 5]
    assert found[2].keys() == {f"validation/{name}" for name in ("psnr", "ssim", *(f"loss_at_{g:g}" for g in LEVELS))}
    best = max(found, key=lambda step: found[step]["validation/psnr"])
    kept = Checkpoint(whole / "best.safetensors")
    assert kept.step == best and kept.tensors("ema")
    assert Checkpoint(whole / "state_0000005.safetensors").run["best"] == found[best]["validation/psnr"]


def test_a_resumed_run_measures_the_same_and_keeps_the_same(whole, resumed):
    found, folder = validations(whole), loop.Path(resumed.config.training.output)
    assert validations(folder) == {step: found[step] for step in (4, 5)} and found[4] != found[5]
    for name in ("state_0000005", "model"):
        expected, actual = (Checkpoint(place / f"{name}.safetensors") for place in (whole, folder))
        for group in ("weights", "ema"):
            for key, value in expected.tensors(group).items():
                np.testing.assert_array_equal(actual.tensors(group)[key], value)
        assert expected.run == actual.run
    best = Checkpoint(whole / "best.safetensors").step
    assert (folder / "best.safetensors").exists() == (best > 2)  # that of step 2 lies in the folder of before


def test_what_is_measured_is_the_averaged_model(whole, resumed):
    """The loss and PSNR of the log, computed anew from the last state and weights."""
    config, state, trainer = resumed.config, Checkpoint(whole / "state_0000005.safetensors"), resumed
    losses, values = [], []
    unet = state.load_unet()
    for group in range(2):
        samples = [trainer.shown.sample(6 * group + i, i % len(config.tasks)) for i in range(6)]
        y_0, cond, mask = trainer._stacked(samples)
        noise = generator(0, "validation", group).standard_normal(y_0.shape, np.float32)
        half = np.float32(0.5**0.5)
        x = np.concatenate([cond, mask * half * (y_0 + noise) + (1 - mask) * y_0], 1)
        said = unet(Tensor(x), Tensor(np.full(6, 0.5, np.float32))).asnumpy()
        losses.append((mask * (said - half * (noise - y_0)) ** 2).mean())  # of v-prediction
        for y, where, made in zip(y_0, mask, trainer._restore(samples, noise)):
            to_uint8 = trainer.shown.forms[1].from_float
            where = where[0] > 0
            values.append(metrics.peak_signal_noise_ratio(to_uint8(y)[where], to_uint8(made)[where]))
    found = validations(whole)[5]
    assert relative_error(np.mean(losses), found["validation/loss_at_0.5"]) < 1e-5
    assert np.mean(values) == pytest.approx(found["validation/psnr"], rel=1e-6)


def test_the_better_value_is_that_of_the_metric(whole, config):
    def validation(*metrics):
        wanted = dataclasses.replace(config.validation, metrics=metrics)
        return Validation(dataclasses.replace(config, validation=wanted), loop.TrainingBatches(config), 6, None)

    psnr, error = validation("psnr"), validation("ab_error", "psnr")
    assert psnr.is_better(20, None) and psnr.is_better(20, 19) and not psnr.is_better(19, 19)
    assert error.is_better(19, 20) and not error.is_better(20, 19)
    for name, message in (("mse", "'mse' is none to validate by"), ("accuracy", "none to validate by"),
                          ("inception_score", "none to validate by"), ("lpips_alex", "has no alexnet"),
                          ("fid", "needs pictures of 32 pixels a side or more, and data.image_size is 16")):
        with pytest.raises(UserError, match=message):
            wanted = dataclasses.replace(config.validation, metrics=(name,), weights=str(whole))
            held = dataclasses.replace(config.data, image_size=16 if name == "fid" else 32)
            Validation(dataclasses.replace(config, validation=wanted, data=held), loop.TrainingBatches(config), 6, None)
