"""The refining network: its losses against numbers reckoned by hand, its training, and what a model with one makes."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from PIL import Image

import palette_ms.sample
from palette_ms import Palette, runtime
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict, load_config
from palette_ms.errors import UserError
from palette_ms.pipeline import _build_refiner
from palette_ms.quality.refiner import Refiner
from palette_ms.training.adversarial import (
    DiscriminatorLoss,
    PatchDiscriminator,
    PowerIteration,
    Refined,
    RefinerLoss,
    SpectralConv,
)
from palette_ms.training.loop import changes, train


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Adding(nn.Cell):
    """A network that answers a half everywhere, whatever it sees."""

    def construct(self, x, gamma):
        return 0.5 * ops.ones_like(x[:, :1])


class MeanOf(nn.Cell):
    """A judge of two patches, left and right: the mean of the picture there, plus that of the source."""

    def construct(self, picture, cond):
        return ops.mean((picture + cond).reshape((picture.shape[0], 1, 2, 2)), 2)


# One picture of one channel, 2 × 2; its right half was made.
MADE = np.array([[[[0.1, 0.2], [0.3, -0.4]]]], np.float32)
Y_0 = np.array([[[[0.1, 0.9], [0.3, 0.3]]]], np.float32)
COND = np.array([[[[2.0, -1.0], [0.0, -2.0]]]], np.float32)
MASK = np.array([[[[0, 1], [0, 1]]]], np.float32)


def test_the_losses_are_those_reckoned_by_hand():
    # Refined: the right half becomes 0.7 and 0.1. Errors there: 0.2 and 0.2.
    # The judge, left and right: (0.1 + 0.3)/2 + 1 = 1.2 and (0.7 + 0.1)/2 − 1.5 = −1.1.
    # Of the original: 1.2 and (0.9 + 0.3)/2 − 1.5 = −0.9.
    inputs = [Tensor(array) for array in (MADE, COND, Y_0, MASK)]
    refined = Refined(Adding())
    assert np.allclose(refined(*inputs[:2], inputs[3]).asnumpy()[0, 0], [[0.1, 0.7], [0.3, 0.1]])
    loss = RefinerLoss(refined, MeanOf(), 0.1)(*inputs).asnumpy()
    assert loss == pytest.approx(0.2 - 0.1 * (1.2 - 1.1) / 2, abs=1e-6)
    # Hinge: of the original max(0, 1 − 1.2) and 1 + 0.9; of the refined 1 + 1.2 and max(0, 1 − 1.1).
    judged = DiscriminatorLoss(refined, MeanOf())(*inputs).asnumpy()
    assert judged == pytest.approx((0 + 1.9) / 2 + (2.2 + 0) / 2, abs=1e-6)


def test_a_spectral_convolution_has_the_norm_of_one():
    layer = SpectralConv(5, 4, 4, 2)
    weight = normal(4, 5, 4, 4)
    layer.layer.weight.set_data(Tensor(weight))
    u = layer.u.asnumpy()
    step = PowerIteration(layer)
    step.discriminator = layer
    matrix = weight.reshape(4, -1)
    for _ in range(60):
        layer_u = u @ matrix
        u = (layer_u / np.linalg.norm(layer_u)) @ matrix.T
        u = u / np.linalg.norm(u)
        step()
    assert np.allclose(layer.u.asnumpy(), u, atol=1e-4)
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    x = normal(2, 5, 8, 8, seed=1)
    plain = ops.conv2d(Tensor(x), Tensor(weight / largest), stride=2, pad_mode="pad", padding=1).asnumpy()
    assert np.allclose(layer(Tensor(x)).asnumpy(), plain, atol=1e-4)


def test_patches_are_judged_by_themselves():
    judge, x, cond = PatchDiscriminator(6, 4), normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1)
    other = x.copy()
    other[:, :, :8, :8] += 1
    first, second = (judge(Tensor(one), Tensor(cond)).asnumpy() for one in (x, other))
    assert first.shape == (1, 1, 8, 8)
    assert first[0, 0, 0, 0] != second[0, 0, 0, 0] and np.array_equal(first[0, 0, 4:, 4:], second[0, 0, 4:, 4:])


def test_large_pictures_are_refined_in_tiles_as_a_whole():
    seen = []

    def network(x, gamma):
        seen.append(x.shape)
        return 2 * x[:, 3:6] + x[:, 6:]  # pixel by pixel, so that tiles do not matter

    made, cond = normal(2, 3, 301, 530), normal(2, 3, 301, 530, seed=1)
    hole = np.ones((1, 301, 530), np.float32)
    hole[:, :100] = 0
    refined = Refiner(network, 4)(made, cond, hole)
    assert np.allclose(refined, made + hole * (2 * cond + 1), atol=1e-5)
    assert np.array_equal(refined[:, :, :100], made[:, :, :100]) and {shape[2:] for shape in seen} == {(256, 256)}


# As a user trains and uses one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and photos."""
    folder = tmp_path_factory.mktemp("refiner")
    (folder / "photos").mkdir()
    for k in range(3):
        picture = np.random.default_rng(k).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(picture).save(folder / "photos" / f"{k}.png")
    usage = {"sampler": "ddim", "steps": 1}
    config = config_from_dict({
        "model": {"base_channels": 4, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": [],
                  "norm_groups": 2, "num_heads": 1},
        "diffusion": {"prediction": "x0", "test_schedule": {"name": "cosine", "num_steps": 50}},
        "tasks": [{"name": "inpainting", "fill": "smooth", "usage": usage}, {"name": "denoising", "usage": usage}],
        "data": {"image_size": 16}}, "test")
    save_checkpoint(folder / "tiny.safetensors", config, 7, 10**6, unet_arrays(build_unet(config.model)))
    return folder


def config(folder, output, *overrides):
    return load_config("refiner_small", [
        f"refiner.of={folder}/tiny.safetensors", "refiner.pairs=20", "refiner.judge_channels=4",
        "refiner.network.base_channels=4", "refiner.network.channel_mults=[1]", "refiner.network.norm_groups=2",
        f"data.path={folder}/photos", f"training.output={output}", "training.steps=4", "training.batch_size=2",
        "training.warmup_steps=2", "training.decay_steps=0", "training.save_every=2", "training.log_every=2",
        "training.sample_every=4", "training.learning_rate=0.01", *overrides])


@pytest.fixture(scope="module")
def finished(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palette_ms.training.refiner._FILE_PAIRS", 7)
        runtime.setup("CPU", seed=0, repeatable=True)
        yield train(config(folder, folder / "run"), load=Palette.load)


def test_the_model_is_as_it_was_with_a_refiner_that_learned(finished, folder):
    before, after = Checkpoint(folder / "tiny.safetensors"), Checkpoint(finished)
    assert all(np.array_equal(array, after.tensors("weights")[name])
               for name, array in before.tensors("weights").items())
    assert after.config.model == before.config.model and after.config.tasks == before.config.tasks
    assert after.config.training == before.config.training and after.step == before.step
    assert np.abs(after.tensors("refiner")["conv_out.weight"]).max() > 0  # which begins with zeros
    lines = [json.loads(line) for line in (finished.parent / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) and 0 < line["judge_loss"] < 4 for line in lines) and len(lines) == 2
    assert (finished.parent / "samples" / "step_0000004.png").is_file()


def test_a_resumed_training_ends_with_the_same_bits(finished, folder):
    parts = folder / "parts"
    shutil.copytree(folder / "run" / "pairs", parts / "pairs")
    shutil.copy(folder / "run" / "state_0000002.safetensors", parts)

    def load(*arguments):
        raise AssertionError("the pairs are there")

    train(config(folder, parts), resume="auto", load=load)
    states = [Checkpoint(run / "state_0000004.safetensors") for run in (folder / "run", parts)]
    for group in ("refiner", "optimizer", "weights"):
        whole, resumed = (state.tensors(group) for state in states)
        assert whole and whole.keys() == resumed.keys()
        assert all(np.array_equal(array, resumed[name]) for name, array in whole.items()), group
    before = Checkpoint(parts / "state_0000002.safetensors").tensors("optimizer")
    moved = [name for name, array in states[1].tensors("optimizer").items() if not np.array_equal(array, before[name])]
    for part in ("refiner:refiner.conv_out", "judge:moment2.judge.last", "refiner:discriminator.layers.0.u"):
        assert any(name.startswith(part) for name in moved), part


def test_a_pair_is_what_restore_makes(finished, folder):
    """Of the picture damaged as in training; float16 rounds it by less than 8 bits do."""
    from palette_ms.training.refiner import Pairs

    trained = Checkpoint(folder / "run" / "state_0000004.safetensors").config
    pairs = Pairs(trained, Checkpoint(folder / "tiny.safetensors"), Palette.load)
    assert len(list(pairs.folder.iterdir())) == 3  # of 7 pairs each
    made, cond, y_0, mask = pairs.take(range(8))
    palette = Palette.load(folder / "tiny.safetensors", "cpu")
    for k in range(8):
        if mask[k].min() == 1:  # denoising
            picture = np.uint8((127.5 * cond[k] + 127.5).round().clip(0, 255).transpose(1, 2, 0))
            restored = np.asarray(palette.restore(picture, "denoising", seed=k)[0])
            assert np.abs(127.5 * made[k].transpose(1, 2, 0) + 127.5 - restored).max() < 2
            break
    else:
        raise AssertionError("no pair of denoising")
    other = Pairs(config(folder, folder / "run", "training.seed=1"), pairs.checkpoint, Palette.load)
    assert other.folder != pairs.folder


PICTURE = np.random.default_rng(0).integers(0, 256, (19, 22, 3), np.uint8)
HOLE = np.zeros((19, 22), np.uint8)
HOLE[6:14, 8:16] = 255


def of(images):
    return np.asarray(images[0]).astype(int)


def test_restore_refines_what_was_made_and_nothing_else(finished, folder):
    palette = Palette.load(finished, "cpu")
    plain = of(palette.restore(PICTURE, "inpainting", HOLE))
    refined = of(palette.restore(PICTURE, "inpainting", HOLE, refine=True))
    assert np.array_equal(plain, of(Palette.load(folder / "tiny.safetensors", "cpu").restore(
        PICTURE, "inpainting", HOLE)))
    assert np.array_equal(refined[HOLE == 0], PICTURE[HOLE == 0]) and (refined != plain)[HOLE > 0].any()
    in_mindspore = _build_refiner(Checkpoint(finished), "mindspore")
    made, cond = normal(1, 3, 18, 22), normal(1, 3, 18, 22, seed=1)
    hole = np.ones((1, 18, 22), np.float32)
    assert np.allclose(in_mindspore(made, cond, hole), palette.refiner(made, cond, hole), atol=1e-4)
    mixed = palette.restore([PICTURE, PICTURE[::-1].copy()], "denoising", refine=True, num_samples=2, mix="mean")
    assert [len(one) for one in mixed] == [1, 1]


def test_the_command_refines(finished, tmp_path, monkeypatch):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(sys, "argv", ["sample", "--ckpt", str(finished), "--input", str(tmp_path / "a.png"), "--task",
                                      "denoising", "--refine", "--output", str(tmp_path / "b.png"), "--device", "cpu"])
    palette_ms.sample.main()
    expected = Palette.load(finished, "cpu").restore(PICTURE, "denoising", refine=True)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), of(expected))


def test_what_cannot_be_done_is_told(folder, finished):
    with pytest.raises(UserError, match="carries no refining network"):
        Palette.load("photo", "cpu").restore(PICTURE, "denoising", refine=True)
    with pytest.raises(UserError, match="true or false"):
        Palette.load(finished, "cpu").restore(PICTURE, "denoising", refine=2)
    with pytest.raises(UserError, match="training.init_from must be left out"):
        train(config(folder, folder / "other", "training.init_from=photo"), load=Palette.load)
    with pytest.raises(UserError, match="refiner.pairs must be above 0"):
        config(folder, folder / "other", "refiner.pairs=0")


def test_pairs_that_were_cut_off_are_made_again_as_they_were(finished, folder):
    from palette_ms.training.refiner import Pairs

    pairs = Pairs(Checkpoint(folder / "run" / "state_0000004.safetensors").config,
                  Checkpoint(folder / "tiny.safetensors"), Palette.load)
    file = sorted(pairs.folder.iterdir())[1]
    whole = file.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palette_ms.training.refiner._FILE_PAIRS", 7)
        for damaged in (b"", whole[:len(whole) // 2]):
            file.write_bytes(damaged)
            pairs.make()
            assert file.read_bytes() == whole


def test_another_model_in_the_place_of_the_one_before_is_told(finished):
    state = Checkpoint(finished.parent / "state_0000004.safetensors")
    told = [changes(state, SimpleNamespace(config=state.config, surroundings=lambda of=of: {**state.run, "of": of}))
            for of in (state.run["of"], "another")]
    assert told[0] is None and "the model that the refiner is for" in told[1]
