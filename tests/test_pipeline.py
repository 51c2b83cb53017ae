"""Checkpoints, restoring, and the commands as a user meets them."""

import dataclasses
import fcntl
import os
import subprocess
import sys
import termios

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image
from safetensors.numpy import load_file, save_file

import palette_ms.sample
import palette_ms.train
from palette_ms import Palette, errors, runtime
from palette_ms.chains import Chains
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.data.images import to_uint8
from palette_ms.errors import UserError

PHOTO = np.random.default_rng(0).integers(0, 256, (13, 18, 3), np.uint8)


def tiny_config(**sections):
    return config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]},
        "diffusion": {"prediction": "x0", "test_schedule": {"num_steps": 6, "start": 0.01, "end": 0.5}},
        "tasks": [{"name": "inpainting"}, {"name": "colorization"}], "data": {"image_size": 16}, **sections}, "test")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network with random weights everywhere, so that it says something."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    unet = build_unet(tiny_config().model)
    rng = np.random.default_rng(0)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.3 * rng.standard_normal(parameter.shape, np.float32)))
    save_checkpoint(path, tiny_config(), step=7, pictures=10**6, weights=unet_arrays(unet))
    return path


@pytest.fixture(scope="module")
def palette(checkpoint):
    return Palette.load(checkpoint, "cpu", "mindspore")  # ONNX Runtime: tests/test_onnx.py


def arrays(images):
    return np.stack([np.asarray(image) for image in images])


# Checkpoints


def test_a_checkpoint_brings_weights_and_config_back(checkpoint, palette):
    assert palette.config == tiny_config()
    assert (Checkpoint(checkpoint).step, palette.pictures) == (7, 10**6)
    stored = Checkpoint(checkpoint).tensors("weights")
    for name, parameter in palette.unet.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), stored[name])
    output = palette.unet(Tensor(np.ones((2, 6, 8, 8), np.float32)), Tensor(np.array([0.1, 0.9], np.float32)))
    assert output.shape == (2, 3, 8, 8)


def test_averaged_weights_are_preferred(checkpoint, tmp_path):
    weights = Checkpoint(checkpoint).tensors("weights")
    average = {name: 0.5 * value for name, value in weights.items()}
    path = tmp_path / "both.safetensors"
    save_checkpoint(path, tiny_config(), 1, 1, weights, average)
    for name, parameter in Palette.load(path, "cpu").unet.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), average[name])


def damaged(path, checkpoint, how):
    content = checkpoint.read_bytes()
    if how == "cut off":
        path.write_bytes(content[:-1000])
    elif how == "cut in the header":
        path.write_bytes(content[:100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a web page":
        path.write_bytes(b"<!DOCTYPE html><html>404</html>")
    elif how == "another program's":
        save_file(load_file(checkpoint), path, {"format": "pt"})
    weights, first = Checkpoint(checkpoint).tensors("weights"), "conv_in.weight"
    changed = {"a tensor missing": {name: value for name, value in weights.items() if name != first},
               "a tensor too many": {**weights, "extra": weights[first]},
               "another shape": {**weights, first: weights[first][:, :3]}}
    if how in changed:
        save_checkpoint(path, tiny_config(), weights=changed[how])


@pytest.mark.parametrize("how, message", [
    ("cut off", "not a whole safetensors file"), ("cut in the header", "not a whole safetensors file"),
    ("empty", "not a whole safetensors file"), ("a web page", "not a whole safetensors file"),
    ("another program's", "not written by palette_ms"),
    ("a tensor missing", "lacks 1 tensors .conv_in.weight"), ("a tensor too many", "has besides 1 tensors .extra"),
    ("another shape", r"conv_in.weight is \(8, 3, 3, 3\), the network needs \(8, 6, 3, 3\)"),
])
def test_a_damaged_checkpoint_is_told_in_one_line(checkpoint, tmp_path, how, message):
    path = tmp_path / "bad.safetensors"
    damaged(path, checkpoint, how)
    with pytest.raises(UserError, match=message) as error:
        Palette.load(path, "cpu")
    assert "\n" not in str(error.value) and "bad.safetensors" in str(error.value)


def test_a_checkpoint_with_any_byte_changed_or_cut_off_anywhere_is_refused(tmp_path):
    path, changed = tmp_path / "whole.safetensors", tmp_path / "changed.safetensors"
    save_checkpoint(path, tiny_config(), 3, 6, weights={"a": np.arange(12.0, dtype=np.float32).reshape(3, 4)})
    content = path.read_bytes()
    assert Checkpoint(path).step == 3
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        damaged = bytearray(content)
        # In the header also by what JSON reads alike: a blank, a tab, another case of a digit.
        damaged[place] ^= int(rng.choice([1, 4, 32, 41, 255]))
        changed.write_bytes(damaged)
        with pytest.raises(UserError):
            Checkpoint(changed)
    for length in range(0, len(content), 7):
        changed.write_bytes(content[:length])
        with pytest.raises(UserError):
            Checkpoint(changed)
    changed.write_bytes(content + b"\0")
    with pytest.raises(UserError):
        Checkpoint(changed)


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        Palette.load(tmp_path / "none.safetensors")


def test_a_failed_write_leaves_the_old_checkpoint(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(checkpoint.read_bytes())

    def fail(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("palette_ms.checkpoint.save_file", fail)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, tiny_config(), 1, 1, {})
    assert path.read_bytes() == checkpoint.read_bytes() and len(list(tmp_path.iterdir())) == 1


# Restoring


def test_any_size_comes_back_with_its_size(palette):
    for size in ((13, 18), (1, 1), (12, 16)):
        images = palette.restore(PHOTO[:size[0], :size[1]], steps=2)
        assert len(images) == 1 and images[0].size == size[::-1] and images[0].mode == "RGB"


def test_only_the_hole_is_made(palette):
    mask = np.zeros((13, 18), bool)
    mask[3:9, 5:12] = True
    for image in arrays(palette.restore(PHOTO, "inpainting", mask, steps=3, num_samples=2)):
        np.testing.assert_array_equal(image[~mask], PHOTO[~mask])
        assert (image[mask] != PHOTO[mask]).any()


def test_what_lies_in_the_hole_does_not_matter(palette):
    mask = np.zeros((13, 18), np.uint8)
    mask[3:9, 5:12] = 255
    other = PHOTO.copy()
    other[3:9, 5:12] = 255 - other[3:9, 5:12]
    first, second = (arrays(palette.restore(photo, "inpainting", mask, steps=3)) for photo in (PHOTO, other))
    np.testing.assert_array_equal(first, second)


def test_colorization_sees_only_the_gray_picture(palette):
    gray = np.asarray(Image.fromarray(PHOTO).convert("L"))
    first, second = (arrays(palette.restore(photo, steps=3)).astype(int) for photo in (PHOTO, gray))
    # Pillow rounds the gray values; the random network does not hide such a difference entirely
    assert np.abs(first - second).mean() < 3


def test_the_seed_decides_and_samples_differ(palette):
    first, again, other = (arrays(palette.restore(PHOTO, steps=3, num_samples=2, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any() and (first != other).any()
    alone = arrays(palette.restore(PHOTO, steps=3, num_samples=1, seed=1))
    assert np.abs(alone[0].astype(int) - first[0]).max() <= 1  # a batch of one may round elsewhere


def test_masks_come_as_files_pictures_arrays_and_names(palette, tmp_path):
    mask = np.zeros((13, 18), np.uint8)
    mask[:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    sources = (mask, mask > 0, Image.fromarray(mask), tmp_path / "mask.png", str(tmp_path / "mask.png"))
    results = [arrays(palette.restore(PHOTO, "inpainting", source, steps=2)) for source in sources]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    center = arrays(palette.restore(PHOTO, "inpainting", "center", steps=2))[0]
    np.testing.assert_array_equal(np.argwhere((center != PHOTO).any(2)).min(0) >= (3, 4), True)


def test_mistakes_are_told(palette, tmp_path):
    for message, arguments in {
        "does not know the task 'uncropping': it was trained for inpainting, colorization": dict(task="uncropping"),
        "needs mask: a picture that is white": dict(task="inpainting"),
        "takes no mask": dict(mask=np.full((13, 18), 255, np.uint8)),
        "the mask is 18×12, the picture 18×13": dict(task="inpainting", mask=np.full((12, 18), 255, np.uint8)),
        "no white pixel": dict(task="inpainting", mask=np.zeros((13, 18), np.uint8)),
        "unknown sampler 'euler': ddpm": dict(sampler="euler"),
        "steps must be from 1 to 6": dict(steps=7),
        "samples must be at least 1": dict(num_samples=0),
        "no such picture": dict(task="inpainting", mask="centre"),
    }.items():
        with pytest.raises(UserError, match=message):
            palette.restore(PHOTO, **arguments)


@pytest.mark.parametrize("task", ["inpainting", "colorization"])
def test_pictures_of_one_size_are_restored_together_each_as_alone(palette, task):
    photos = [PHOTO, 255 - PHOTO]
    masks = ["center", "rectangle"] if task == "inpainting" else [None, None]
    together = palette.restore(photos, task, masks, steps=2, num_samples=2, seed=4)
    for photo, mask, images in zip(photos, masks, together):
        alone = arrays(palette.restore(photo, task, mask, steps=2, num_samples=2, seed=4))
        assert np.abs(arrays(images).astype(int) - alone).max() <= 1  # a batch of four may round elsewhere


def test_pictures_of_several_sizes_are_not_restored_together(palette):
    with pytest.raises(UserError, match="must have one size; these have 18×12, 18×13"):
        palette.restore([PHOTO, PHOTO[:12]])
    with pytest.raises(UserError, match="2 pictures and 1 masks"):
        palette.restore([PHOTO, PHOTO], "inpainting", ["center"])


# Every task: what the chain is given, and what becomes of its result


class Chain:
    """Stands in for a sampler: keeps what it was given and fills the hole with what it is told to."""

    def __init__(self, fill=0.5):
        self.fill, self.calls = fill, []

    num_steps = 6

    def start(self, source, noise):
        self.guess = source
        return noise

    def __call__(self, cond, y_T, seed, mask, y_0, progress=None, samples=None, watch=None):
        self.calls.append((cond, y_T, seed, mask, y_0))
        return Tensor(np.where(mask > 0, np.float32(self.fill), y_0).astype(np.float32))


@pytest.fixture
def chained(palette, monkeypatch):
    """A model of all tasks, trained at 16×16, and its chain."""
    tasks = [{"name": name} for name in ("uncropping", "jpeg_restoration", "deblurring", "denoising", "paired")]
    tasks += [{"name": "super_resolution", "scales": [2, 4]}, {"name": "colorization", "gray": "lightness"}]
    chain = Chain()
    monkeypatch.setattr(Chains, "sampler", lambda *_: chain)
    return Palette(palette.unet, tiny_config(tasks=tasks)), chain


@pytest.mark.parametrize("task", ["jpeg_restoration", "deblurring", "denoising", "paired"])
def test_a_damaged_picture_is_its_own_source(chained, task):
    model, chain = chained
    image, = arrays(model.restore(PHOTO, task))
    cond, y_T, _, mask, _ = chain.calls[0]
    np.testing.assert_array_equal(to_uint8(cond[0, :, :13, :18]), PHOTO)
    assert mask.all() and abs(y_T.std() - 1) < 0.1
    assert image.shape == PHOTO.shape and (image == 191).all()


def test_a_task_is_restored_with_its_own_label_and_schedule(palette, monkeypatch):
    asked = []
    monkeypatch.setattr("palette_ms.chains.create_sampler", lambda *arguments: asked.append(arguments) or Chain())
    config = tiny_config(tasks=[{"name": "colorization"}, {"name": "denoising", "test_schedule": {"num_steps": 5}}])
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=2))
    model = Palette(palette.unet, config)
    for task in ("colorization", "denoising"):
        model.restore(PHOTO, task, num_samples=2)
    assert [chain.unet.labels.asnumpy().tolist() for chain, *_ in asked] == [[0, 0], [1, 1]]
    assert [schedule and schedule.num_steps for *_, schedule, _ in asked] == [None, 5]


def test_a_small_picture_comes_out_large(chained):
    model, chain = chained
    image, = model.restore(PHOTO, "super_resolution", scale=4)
    assert image.size == (72, 52)
    source = np.asarray(Image.fromarray(PHOTO).resize((72, 52), Image.BICUBIC))
    np.testing.assert_array_equal(to_uint8(chain.calls[0][0][0]), source)


def test_lightness_is_put_back_into_the_colours(chained):
    model, chain = chained
    smooth = np.full((12, 16, 3), 90, np.uint8)
    smooth[:, 8:] = 150
    image, = arrays(model.restore(smooth, "colorization"))
    np.testing.assert_allclose(image, smooth, atol=1)  # the chain said gray of one brightness


def test_a_picture_is_extended_by_one_hole_beside_it(chained):
    model, chain = chained
    done = arrays(model.restore(PHOTO, "uncropping", extend={"left": 3, "bottom": 7}, num_samples=2))
    assert done.shape == (2, 20, 21, 3)
    np.testing.assert_array_equal(done[0, :13, 3:], PHOTO)
    assert (done[:, :, :3] == 191).all() and (done[:, 13:] == 191).all()
    (_, _, _, mask, known), = chain.calls
    hole = np.ones((20, 21))
    hole[:13, 3:] = 0
    np.testing.assert_array_equal(mask[0, 0, :20, :21], hole)
    np.testing.assert_array_equal(to_uint8(known[0])[:13, 3:21], PHOTO)


@pytest.mark.parametrize("side, where", [
    ("left", np.s_[:, :5]), ("right", np.s_[:, -5:]), ("top", np.s_[:5]), ("bottom", np.s_[-5:])])
def test_a_side_is_extended_where_it_is(chained, side, where):
    model, chain = chained
    chain.fill = -1
    image, = arrays(model.restore(PHOTO, "uncropping", extend={side: 5}))
    new = np.zeros(image.shape[:2], bool)
    new[where] = True
    assert (image[new] == 0).all()
    np.testing.assert_array_equal(image[~new].reshape(PHOTO.shape), PHOTO)


@pytest.mark.parametrize("options", [{}, {"extend": {"left": 4}}])
def test_a_chain_below_the_top_starts_from_a_smooth_picture_where_the_source_is_noise(palette, monkeypatch, options):
    chain = Chain()
    monkeypatch.setattr(Chains, "sampler", lambda *_: chain)
    task = "uncropping" if options else "inpainting"
    model = Palette(palette.unet, tiny_config(tasks=[{"name": task}]))
    flat = np.full((16, 12 if options else 16, 3), 150, np.uint8)
    model.restore(flat, task, mask=None if options else "center", strength=0.5, **options)
    assert chain.guess.shape[-2:] == (16, 16) and np.abs(to_uint8(chain.guess.reshape(3, 16, 16)) - 150.0).max() <= 1
    assert chain.calls[0][0].std() > 0.1  # the source itself is noise in the hole
    model.restore(flat, task, mask=None if options else "center", **options)
    assert len(chain.calls) == 2  # from the top there is nothing to start from


def test_guidance_needs_a_model_that_has_missed_its_sources(palette):
    with pytest.raises(UserError, match="trained with training.source_dropout 0"):
        palette.restore(PHOTO, guidance=2.0)
    config = tiny_config(training={"source_dropout": 0.1})
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=2))
    unet, rng = build_unet(config.model), np.random.default_rng(0)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.3 * rng.standard_normal(parameter.shape, np.float32)))
    model = Palette(unet, config)
    plain, guided = (arrays(model.restore(PHOTO, steps=2, num_samples=2, **options))
                     for options in ({}, {"guidance": 4.0}))
    assert (plain != guided).any()
    # With a label and a source of its own for each half of the doubled batch, a picture's result is its own.
    alone = arrays(model.restore(PHOTO, steps=2, num_samples=1, guidance=4.0))
    np.testing.assert_allclose(alone[0], guided[0], atol=1)


def test_every_sampler_restores_and_mistakes_about_it_are_told(palette):
    for sampler in ("ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc"):
        image, = palette.restore(PHOTO, "inpainting", "center", sampler, 3, tolerance=1e-6)
        assert image.size == (18, 13)
    for message, options in {
        "unknown sampler 'euler'": {"sampler": "euler"}, "from 1 to 6": {"steps": 7}, "from 1 on": {"steps": -1},
        "unknown spacing": {"spacing": "cosine"}, "from 1 to 3, the length": {"steps": 4, "strength": 0.5},
    }.items():
        with pytest.raises(UserError, match=message):
            palette.restore(PHOTO, **options)


def test_mistakes_about_tasks_are_told(chained):
    model, _ = chained
    for message, arguments in {
        "does not know the task 'inpainting'": dict(task="inpainting"),
        "uncropping takes no mask: it is for inpainting, paired": dict(task="uncropping", mask="center"),
        "takes no scale": dict(task="denoising", scale=2), "takes no extend": dict(task="denoising", extend={"top": 1}),
        "needs extend": dict(task="uncropping"), "adds no pixel": dict(task="uncropping", extend={"left": 0}),
        "up=3 is not a number": dict(task="uncropping", extend={"up": 3}),
        "left=-1 is not": dict(task="uncropping", extend={"left": -1}),
        "several factors: name scale, one of 2, 4": dict(task="super_resolution"),
        "not trained to enlarge 3 times, but 2, 4": dict(task="super_resolution", scale=3),
    }.items():
        with pytest.raises(UserError, match=message):
            model.restore(PHOTO, **arguments)


def test_an_extended_picture_by_the_command(checkpoint, pictures, tmp_path):
    model = Checkpoint(checkpoint)
    path = tmp_path / "uncropping.safetensors"
    save_checkpoint(path, tiny_config(tasks=[{"name": "uncropping"}]), 1, 10**6, model.tensors("weights"))
    done = command("sample", "--ckpt", path, "--input", pictures / "a.png", "--output", tmp_path / "out", "--extend",
                   "right=4,top=2", "--steps", 2)
    assert done.returncode == 0, done.stderr
    image = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    np.testing.assert_array_equal(image[2:, :18], PHOTO)
    done = command("sample", "--ckpt", path, "--input", pictures / "a.png", "--output", tmp_path, "--extend", "4")
    assert done.returncode == 2 and "not of the form left=64,right=64" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [{}, {"tile": 16}, {"reuse": 2}])
def test_the_compilers_level_reaches_whatever_is_compiled(checkpoint, monkeypatch, options):
    class Compiled(Exception):
        pass

    def compile_(cell, *args, **kwargs):
        raise Compiled(cell.jit_config_dict["jit_level"])

    palette = Palette.load(checkpoint, "cpu", "mindspore", jit_level="O1")
    monkeypatch.setattr(ms.nn.Cell, "compile", compile_)
    with pytest.raises(Compiled, match="^O1$"):
        palette.restore(np.zeros((24, 24), np.uint8), "colorization", sampler="ddim", steps=4, **options)


def test_the_compilers_level_is_refused_where_another_runtime_computes(checkpoint):
    with pytest.raises(UserError, match="jit_level is of MindSpore's compiler, and onnx runs the network"):
        Palette.load(checkpoint, "cpu", "onnx", jit_level="O1")
    with pytest.raises(UserError, match="jit_level must be O0 or O1, not 'O3'"):
        Palette.load(checkpoint, "cpu", "mindspore", jit_level="O3")


def test_devices_are_chosen_and_missed_in_one_line(capsys):
    assert runtime.setup("auto") == "CPU"
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("device: CPU (auto: no Ascend or GPU")
    for device, message in (("Ascend", "Ascend was asked for"), ("tpu", "unknown device 'tpu'")):
        with pytest.raises(UserError, match=message):
            runtime.setup(device)


@pytest.mark.parametrize("name, cores, repeatable", [("Ascend910B2", 192, False), ("Ascend910A", 8, True)])
def test_what_a_card_needs_is_set_before_ranks_meet(name, cores, repeatable, monkeypatch, capsys):
    calls = []

    def note(called):
        def call(value):
            calls.append((called, value))
            raise RuntimeError("can not be set repeatedly")  # as by MindSpore from the second time on
        return call

    monkeypatch.setattr(runtime, "_available", lambda name: name == "Ascend")
    monkeypatch.setattr(runtime, "device", lambda: "Ascend")
    monkeypatch.setattr(runtime, "card", lambda: name)
    monkeypatch.setattr(runtime, "_meet", lambda: calls.append("meet"))
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda process: range(cores))
    precision = ms.device_context.ascend.op_precision
    for module, called in ((precision, "conv_allow_hf32"), (precision, "matmul_allow_hf32"), (ms, "set_deterministic"),
                           (ms.runtime, "dispatch_threads_num")):
        monkeypatch.setattr(module, called, note(called))
    monkeypatch.setattr(ms, "set_device", lambda name: None)
    assert runtime.setup("auto", repeatable=repeatable) == "Ascend"
    told = capsys.readouterr().err
    exact = [("conv_allow_hf32", False), ("matmul_allow_hf32", False)]
    if repeatable:
        assert calls == [*exact, ("dispatch_threads_num", 2), ("set_deterministic", True), "meet"]
        assert "warning: Ascend910A is of before the Atlas A2 series" in told
    else:
        assert calls == [*exact, "meet"] and told == "device: Ascend (auto: found)\n"


# The commands


def command(verb, *arguments):
    """A verb as a user runs it, in a process of its own."""
    return subprocess.run([sys.executable, "-m", f"palette_ms.{verb}", *map(str, arguments)], capture_output=True,
                          text=True, env={**os.environ, "PYTHONHASHSEED": "random"})


def complaint(verb, monkeypatch, capsys, *arguments):
    """stderr of a verb that must end with exit status 2, in this process."""
    monkeypatch.setattr(sys, "argv", [verb.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        errors.run(verb.main)
    assert end.value.code == 2
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device:")]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(PHOTO).save(folder / "a.png")
    Image.fromarray(PHOTO).save(folder / "a.bmp")
    Image.fromarray(PHOTO[:8, :8]).save(folder / "sub" / "b.png")
    return folder


def test_the_same_seed_gives_the_same_picture_in_two_processes(checkpoint, pictures, tmp_path):
    results = []
    for output, seed in (("first", 3), ("second", 3), ("third", 4)):
        done = command("sample", "--ckpt", checkpoint, "--input", pictures / "a.png", "--output", tmp_path / output,
                       "--task", "colorization", "--seed", seed, "--num-samples", 2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(tmp_path / output / f"a_{k}.png") for k in range(2)]
        assert "WARNING" not in done.stderr and "Traceback" not in done.stderr
        results.append([(tmp_path / output / f"a_{k}.png").read_bytes() for k in range(2)])
    assert results[0] == results[1] != results[2]


def test_a_folder_keeps_its_names(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["sample", "--ckpt", str(checkpoint), "--input", str(pictures), "--output",
                                      str(output), "--mask", "center", "--steps", "2"])
    errors.run(palette_ms.sample.main)
    made = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.png"))
    assert made == ["a_bmp.png", "a_png.png", "sub/b.png"]
    assert capsys.readouterr().out.count("\n") == 3


def test_a_picture_is_all_that_must_be_named_beside_the_task(pictures, tmp_path, monkeypatch, capsys):
    loaded = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Palette, "restore", lambda self, *_, **options: [Image.new("RGB", (4, 4))])
    load = Palette.load
    monkeypatch.setattr(Palette, "load", lambda path, *rest: loaded.append(path) or load(path, *rest))
    monkeypatch.setattr(sys, "argv", ["sample", str(pictures / "a.png"), "--task", "denoising"])
    errors.run(palette_ms.sample.main)
    assert loaded == ["photo"] and capsys.readouterr().out.split() == [os.path.join("outputs", "a.png")]
    assert (tmp_path / "outputs" / "a.png").is_file()


def test_by_default_the_command_makes_few_calls_and_says_so(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(Palette, "restore", lambda self, *_, **options: asked.append(options) or [])
    arguments = ["sample", "--ckpt", str(checkpoint), "--input", str(pictures / "a.png"), "--output", str(tmp_path),
                 "--task", "colorization"]
    for added in ([], ["--steps", "4"], ["--sampler", "ddpm", "--steps", "6"], ["--strength", "0.5"]):
        monkeypatch.setattr(sys, "argv", arguments + added)
        errors.run(palette_ms.sample.main)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sampling")]
    assert [(options["sampler"], options["steps"]) for options in asked] == [
        ("dpmpp_2m", 6), ("dpmpp_2m", 4), ("ddpm", 6), ("dpmpp_2m", 3)]  # the chain has only 6 steps
    assert told[0] == ("sampling: dpmpp_2m with 6 network calls; the whole chain is --sampler ddpm --steps 6")
    assert len(told) == 2


def test_masks_of_a_folder_go_by_name(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((13, 18), np.uint8)
    mask[0, 0] = 255
    Image.fromarray(mask).save(masks / "a.png")
    lines = complaint(palette_ms.sample, monkeypatch, capsys, "--ckpt", checkpoint, "--input", pictures, "--output",
                      tmp_path / "out", "--mask", masks, "--steps", "2")
    assert "holds 0 masks for sub/b.png" in lines[0] and lines[-1].endswith("1 of 3 pictures could not be restored")
    made = np.asarray(Image.open(tmp_path / "out" / "a_png.png"))
    np.testing.assert_array_equal(made.reshape(-1, 3)[1:], PHOTO.reshape(-1, 3)[1:])


def test_mistakes_on_the_command_line_end_with_status_2(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"")
    (pictures / "broken.png").write_bytes(b"")
    sample = {"--ckpt": checkpoint, "--input": pictures / "a.png", "--output": tmp_path / "out",
              "--task": "colorization", "--steps": 2}
    for message, changed in {
        "no such picture or folder": {"--input": tmp_path / "none.png"},
        "cannot read picture": {"--input": pictures / "broken.png"},
        "no such checkpoint": {"--ckpt": tmp_path / "none.safetensors"},
        "is a file; it must be a folder": {"--output": tmp_path / "file"},
        "would be overwritten": {"--output": pictures},
        "does not know the task": {"--task": "denoising"},
        "device Ascend was asked for": {"--device": "Ascend"},
        "steps must be from 1": {"--steps": 0}, "at most 10000": {"--num-samples": 10**8},
    }.items():
        arguments = [text for pair in {**sample, **changed}.items() for text in pair]
        lines = complaint(palette_ms.sample, monkeypatch, capsys, *arguments)
        assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert not (tmp_path / "out").exists()
    del sample["--task"]
    arguments = [text for pair in sample.items() for text in pair]
    assert "several tasks" in complaint(palette_ms.sample, monkeypatch, capsys, *arguments)[0]


def test_mistakes_in_training_end_with_status_2(tmp_path, monkeypatch, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("training: {stepss: 3}")
    lines = complaint(palette_ms.train, monkeypatch, capsys, "--config", config)
    assert lines == [f"error: {config}: unknown key training.stepss; did you mean steps?"]
    config.write_text(f"data: {{path: {tmp_path / 'none'}}}")
    assert "no such folder" in complaint(palette_ms.train, monkeypatch, capsys, "--config", config)[0]
    config.write_text("model: {base_channels: 20, channel_mults: [1], num_head_channels: 32}\n"
                      f"data: {{path: {tmp_path}, image_size: 8}}")
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    lines = complaint(palette_ms.train, monkeypatch, capsys, "--config", config)
    assert lines[-1] == "error: model: attention over 20 channels cannot be divided into heads of 32 channels"


TRAINING = """
model: {{base_channels: 8, channel_mults: [1], num_res_blocks: 1, attention_resolutions: []}}
diffusion: {{prediction: v, test_schedule: {{num_steps: 4}}}}
tasks: [{{name: colorization}}]
data: {{path: {pictures}, image_size: 8, workers: 1}}
training: {{output: {output}, steps: 3, batch_size: 2, log_every: 1, sample_every: 0}}
"""


def test_ctrl_c_ends_a_run_after_its_step_with_a_state_to_go_on_from(pictures, tmp_path):
    config, output = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(TRAINING.format(pictures=pictures, output=output))
    arguments = ["--config", str(config), "training.steps=1000000"]
    keyboard, terminal = os.openpty()

    def take_terminal():
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    run = subprocess.Popen([sys.executable, "-m", "palette_ms.train", *arguments], stdin=terminal,
                           stderr=subprocess.PIPE, text=True, preexec_fn=take_terminal)
    os.close(terminal)
    for line in run.stderr:
        if line.startswith("step 20/"):  # well inside the compiled loop
            os.write(keyboard, b"\x03")
            break
    rest = run.stderr.read()
    assert run.wait() == 130, rest
    os.close(keyboard)
    assert "interrupted at step" in rest and "Traceback" not in rest
    states = list(output.glob("state_*.safetensors"))
    assert len(states) == 1 and Checkpoint(states[0]).step >= 20
    assert not (output / "model.safetensors").exists()


def test_train_then_sample_through_the_commands(pictures, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(TRAINING.format(pictures=pictures, output=tmp_path / "run"))
    done = command("train", "--config", config, "training.steps=2")
    assert done.returncode == 0, done.stderr
    model = tmp_path / "run" / "model.safetensors"
    assert done.stdout.strip() == str(model)
    assert "warning: this run ends after 4 pictures" in done.stderr and "step 2/2  loss" in done.stderr
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr
    done = command("train", "--config", config, "--resume", "auto")
    assert done.returncode == 0 and "resumed from" in done.stderr and "at step 2" in done.stderr
    done = command("sample", "--ckpt", model, "--input", pictures, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "seen only 6 training pictures" in done.stderr
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_what_takes_more_memory_than_may_be_used_is_refused_before_it_is_made(palette, monkeypatch):
    monkeypatch.setenv("PALETTE_MS_MAX_MEMORY", "1M")
    with pytest.raises(UserError, match="400×400 pixels, 1 times, take about .* MiB, more than .* --max-memory"):
        palette.restore(np.zeros((400, 400, 3), np.uint8), task="colorization")
    monkeypatch.setenv("PALETTE_MS_MAX_MEMORY", "much")
    with pytest.raises(UserError, match="must be like 500M or 8G, not 'much'"):
        palette.restore(np.zeros((16, 16, 3), np.uint8), task="colorization")
