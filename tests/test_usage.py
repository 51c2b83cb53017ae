"""How a checkpoint says it is best used, who follows that, and the command that measures it."""

import itertools
import re
import sys

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

import palette_ms.export
import palette_ms.sample
import palette_ms.tune
from palette_ms import Palette, errors, runtime
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.diffusion.usage import Usage
from palette_ms.errors import UserError
from palette_ms.evaluation.detail import detail
from palette_ms.searched import load_steps, save_steps

MEASURED = {"sampler": "ddim", "steps": 2, "detailed_steps": 8}


def save_tiny(path, **sections):
    config = config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2],
                  "norm_groups": 4},
        "diffusion": {"prediction": "x0", "from_source": True, "test_schedule": {"name": "cosine", "num_steps": 100}},
        "tasks": [{"name": "denoising", "usage": MEASURED}, {"name": "deblurring"}], "data": {"image_size": 16},
        **sections}, "test")
    unet = build_unet(config.model)
    rng = np.random.default_rng(0)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.1 * rng.standard_normal(parameter.shape, np.float32)))
    save_checkpoint(path, config, 7, 10**6, unet_arrays(unet))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("usage") / "tiny.safetensors")


@pytest.fixture(scope="module")
def palette(checkpoint):
    return Palette.load(checkpoint, "cpu", "mindspore")


@pytest.fixture
def ran(monkeypatch):
    """The number of network calls of each chain, which are not made."""
    calls = []
    monkeypatch.setattr("palette_ms.diffusion.samplers.Sampler.__call__",
                        lambda self, cond, y_T, *_, **__: calls.append(self.num_steps) or Tensor(y_T))
    return calls


CAN_ROUND = runtime.runtime_obstacle("openvino", "bfloat16") is None
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.mark.parametrize("task, options, calls", [
    ("denoising", {}, 2),
    ("denoising", {"detail": 0}, 2),
    ("denoising", {"detail": 0.5}, 4),  # the geometric mean
    ("denoising", {"detail": 1}, 8),
    ("denoising", {"num_samples": 3}, 8),  # of one call they would hardly differ
    ("denoising", {"num_samples": 3, "detail": 0}, 2),
    ("denoising", {"steps": 5}, 5),
    ("denoising", {"sampler": "ddim"}, 2),
    ("denoising", {"sampler": "unipc"}, 20),
    ("denoising", {"sampler": "ddpm"}, 100),  # the paper's chain, whole
    ("denoising", {"strength": 0.01}, 1),
    ("deblurring", {}, 20),
    ("deblurring", {"strength": 0.1}, 10),
])
def test_what_is_not_asked_for_is_as_the_checkpoint_says(palette, ran, task, options, calls):
    palette.restore(PICTURE, task, **options)
    assert ran == [calls]


def test_the_command_and_the_exported_chain_do_the_same(checkpoint, palette, ran, tmp_path, monkeypatch, capsys):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    for arguments in ([], ["--detail", "0.5"], ["--sampler", "ddpm"]):
        monkeypatch.setattr(sys, "argv", ["sample", "--ckpt", str(checkpoint), "--input", str(tmp_path / "a.png"),
                                          "--task", "denoising", "--output", str(tmp_path / "out"), *arguments])
        errors.run(palette_ms.sample.main)
    assert ran == [2, 4, 100]
    assert "ddim with 2 network calls; the whole chain is --sampler ddpm --steps 100" in capsys.readouterr().err
    assert palette.chain("denoising").num_steps == 2 and palette.chain("denoising", sampler="ddpm").num_steps == 100


def test_mirror_images_are_taken_where_the_checkpoint_says_and_nothing_else_is_asked_for(tmp_path):
    usage = {**MEASURED, "flips": 4}
    palette = Palette.load(save_tiny(tmp_path / "a.safetensors", tasks=[{"name": "denoising", "usage": usage}]), "cpu")
    task = palette.config.tasks[0]
    assert palette.sampling(task).flips == palette.sampling(task, steps=2).flips == 4
    for other in ({"steps": 8}, {"sampler": "unipc"}, {"detail": 1}, {"num_samples": 2}, {"reuse": 2}, {"flips": 1}):
        assert palette.sampling(task, **other).flips == 1
    assert palette.sampling(task, "unipc", flips=2).flips == 2
    for wrong in ({"flips": 3}, {"flips": 2, "reuse": 2}, {"flips": "4"}):
        with pytest.raises(UserError, match="flips"):
            palette.sampling(task, **wrong)


def test_a_mirrored_picture_is_restored_to_the_mirrored_result(checkpoint):
    """By the mean over mirror images, not by the network itself."""
    palette = Palette.load(checkpoint, "cpu", "onnx")
    for flips, axes in ((2, [1]), (4, [0]), (4, [0, 1])):
        for count, alike in ((1, False), (flips, True)):
            straight, mirrored = (np.int16(palette.restore(picture, "denoising", steps=1, flips=count)[0])
                                  for picture in (PICTURE, np.flip(PICTURE, axes)))
            assert (abs(straight - np.flip(mirrored, axes)).max() <= 1) == alike


@pytest.mark.parametrize("task, options, message", [
    ("denoising", {"detail": 1.5}, "from 0 to 1"), ("denoising", {"detail": "high"}, "from 0 to 1"),
    ("denoising", {"detail": 0.5, "steps": 4}, "leave those out"),
    ("denoising", {"detail": 0.5, "sampler": "heun"}, "leave those out"),
    ("deblurring", {"detail": 0}, "palette_ms.tune measures it"),
])
def test_mistakes_about_detail_are_told(palette, task, options, message):
    with pytest.raises(UserError, match=message):
        palette.restore(PICTURE, task, **options)


def test_a_task_of_which_more_calls_bring_no_more_detail_takes_none(tmp_path):
    tasks = [{"name": "denoising", "usage": {"sampler": "ddim", "steps": 1}}]
    palette = Palette.load(save_tiny(tmp_path / "a.safetensors", tasks=tasks), "cpu")
    assert palette.sampling(palette.config.tasks[0], detail=0).steps == 1
    with pytest.raises(UserError, match="must be 0 for denoising, for which this model knows no"):
        palette.sampling(palette.config.tasks[0], detail=1)


def test_a_usage_out_of_range_is_told_with_its_place(tmp_path):
    with pytest.raises(UserError, match=r"tasks\[0\].usage.steps must be at least 1, not 0"):
        save_tiny(tmp_path / "a.safetensors", tasks=[{"name": "denoising", "usage": {"steps": 0}}])
    with pytest.raises(UserError, match="tasks.0..usage.sampler is 'dppm'; it must be one of.*did you mean ddpm"):
        save_tiny(tmp_path / "a.safetensors", tasks=[{"name": "denoising", "usage": {"sampler": "dppm"}}])


def test_the_usage_says_whether_pictures_are_cut_into_tiles(tmp_path, ran, monkeypatch):
    path = save_tiny(tmp_path / "a.safetensors", tasks=[{"name": "denoising", "usage": {"steps": 1, "tile": 8}}])
    palette, asked = Palette.load(path, "cpu", "mindspore"), []
    monkeypatch.setattr(palette.chains, "check_tiles", lambda *tiles: asked.append(tiles))
    for tile in (None, 16):
        palette.restore(PICTURE, tile=tile)
    assert asked == [(8, None), (16, None)]


# The command that measures it


def test_the_most_faithful_way_is_the_default_and_the_fewest_calls_among_equals():
    ways = {("ddim", 1): (30.00, 0.5), ("ddim", 2): (30.01, 0.6), ("dpmpp_2m", 2): (29.9, 0.6),
            ("ddim", 4): (29.5, 0.9), ("ddim", 8): (29.0, 1.2), ("ddim", 16): (28.4, 1.0)}
    # 16 calls have all the detail, and are 1.6 dB behind; 4 are nearer to it than 8: 1/0.9 < 1.2
    assert palette_ms.tune.best(ways) == Usage("ddim", 1, 4)
    assert palette_ms.tune.best({("ddim", 1): (29, 0.5), ("ddim", 2): (30, 0.9)}) == Usage("ddim", 2, None)
    # 2 calls are no nearer to the originals' detail, by more than chance
    assert palette_ms.tune.best({("ddim", 1): (29, 0.98), ("ddim", 2): (28.9, 0.99)}) == Usage("ddim", 1, None)


def test_what_is_measured_is_what_restoring_makes(checkpoint, palette):
    """Of a pair without a mask the same as of a user's picture, but for its rounding to 8 bits."""
    cond = PICTURE.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    for model, tile in ((palette, None), (Palette.load(checkpoint, "cpu", "onnx"), 8)):
        sampling = model.sampling(model.config.tasks[0], "ddim", 2)
        made = model.make(0, cond, np.ones_like(cond[:1]), sampling, seed=3, tile=tile)[0]
        restored = np.asarray(model.restore(PICTURE, "denoising", sampler="ddim", steps=2, seed=3, tile=tile)[0])
        np.testing.assert_allclose((made.transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5, restored, atol=0.51)


def test_several_samples_of_a_model_that_does_not_say_more_take_two_calls():
    assert Usage("ddim", 1).calls("ddim", 1, 1000) == 2 and Usage("ddim", 1).calls("ddim", 0, 1000) == 1


def test_detail_is_that_of_the_hole_and_grows_with_contrast():
    y = np.random.default_rng(0).standard_normal((3, 16, 16)).astype(np.float32)
    mask = np.zeros((1, 16, 16), np.float32)
    mask[:, 4:8, 4:8] = 1
    assert detail(0.5 * y, mask) == pytest.approx(0.5 * detail(y, mask))
    other = y.copy()
    other[:, 12:] = 0
    assert detail(other, mask) == detail(y, mask) > 0 == detail(np.ones_like(y), mask)


def tune(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tune", *map(str, arguments)])
    errors.run(palette_ms.tune.main)


def test_tuning_writes_what_it_measured_and_nothing_else(checkpoint, tmp_path, monkeypatch, capsys):
    photos, model = tmp_path / "photos", tmp_path / "model.safetensors"
    photos.mkdir()
    for i in range(2):
        Image.fromarray(PICTURE[:, ::1 - 2 * i]).save(photos / f"{i}.png")
    model.write_bytes(checkpoint.read_bytes())
    save_steps(Checkpoint(model), {"denoising": {3: [0, 1, 99]}})
    tune(monkeypatch, "--ckpt", model, "--input", photos, "--steps", "1,3", "--task", "deblurring", "--device", "cpu")
    before, after = Checkpoint(checkpoint), Checkpoint(model)
    assert before.config.tasks[0] == after.config.tasks[0]
    usage = after.config.tasks[1].usage
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"deblurring: {usage.sampler} with {usage.steps}") and told[-1] == str(model)
    assert len(told) == 6 + CAN_ROUND  # ddim with 1 and 3 calls, dpmpp_2m with 3, mirror images
    assert usage.bfloat16 == (CAN_ROUND and float(re.search(r"in bfloat16 ([\d.]+) dB", told[-2])[1]) >= 45)
    for name, array in before.tensors("weights").items():
        np.testing.assert_array_equal(after.tensors("weights")[name], array)
    assert (after.step, after.pictures) == (before.step, before.pictures)
    assert load_steps(after) == {"denoising": {3: [0, 1, 99]}}


@pytest.mark.parametrize("gain, tile", [(0.1, 16), (0.01, None)])
def test_tiles_are_taken_where_they_gain_enough(checkpoint, tmp_path, monkeypatch, capsys, gain, tile):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(palette_ms.tune, "score", lambda *given: (30 + (given[7:] == (16,)) * gain, 1.0))
    monkeypatch.setattr(palette_ms.tune, "distance", lambda *_: 50)
    tune(monkeypatch, "--ckpt", checkpoint, "--input", tmp_path, "--steps", "1", "--task", "deblurring",
         "--output", tmp_path / "tuned.safetensors", "--device", "cpu")
    assert Checkpoint(tmp_path / "tuned.safetensors").config.tasks[1].usage.tile == tile
    assert f"{30 + gain:.2f} dB in tiles of 16" in capsys.readouterr().out


@pytest.mark.parametrize("measured", [(True, True), (True, False)])
def test_bfloat16_is_taken_of_models_whose_pictures_were_found_to_stay_near(tmp_path, measured, capsys):
    tasks = [{"name": name, "usage": {"bfloat16": near}} for name, near in zip(("denoising", "deblurring"), measured)]
    Palette.load(save_tiny(tmp_path / "a.safetensors", tasks=tasks), "cpu", "auto")
    assert ("bfloat16" in capsys.readouterr().err) == (CAN_ROUND and all(measured))


def test_mistakes_of_tuning_end_with_one_line(checkpoint, tmp_path, monkeypatch, capsys):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    arguments = {"--ckpt": checkpoint, "--input": tmp_path}
    for message, changed in {
        "is not a list of whole numbers": {"--steps": "1;2"}, "must be at least 1": {"--pictures": 0},
        "name another file to write": {"--ckpt": "photo"}, "must be a file in a folder": {"--output": tmp_path},
        "does not know the task 'inpainting'": {"--task": "inpainting"}, "no such": {"--input": tmp_path / "none"},
        "at most 100": {"--steps": "200"},
    }.items():
        before = checkpoint.read_bytes()
        with pytest.raises(SystemExit) as stop:
            tune(monkeypatch, *itertools.chain(*{**arguments, **changed}.items()))
        assert stop.value.code == 2 and message in capsys.readouterr().err
        assert checkpoint.read_bytes() == before
