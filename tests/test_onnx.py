"""The network in OpenVINO and ONNX Runtime says what its Cell says, at any size, and needs no MindSpore."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden import relative_error
from mindspore import Tensor
from PIL import Image

import palette_ms.sample
from palette_ms import Palette, errors, runtime
from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays
from palette_ms.config import DiffusionConfig, config_from_dict, load_config
from palette_ms.diffusion.cells import precondition
from palette_ms.diffusion.preconditioning import around_network
from palette_ms.errors import UserError
from palette_ms.unet import ModelConfig, UNet
from palette_ms.unet.onnx import shapes, write
from palette_ms.unet.runtimes import Network, OnnxRuntime
from palette_ms.unet.unet import DeepFeatures

for package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(package)

RUNTIMES = ("onnx", "openvino")
TINY = {"base_channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,),
        "norm_groups": 4}
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def pynative(graph_mode):
    """Nothing is compiled: each Cell is called a few times only."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Networks as small as these gain nothing by more, and on a busy machine wait long for each other."""
    monkeypatch.setattr("palette_ms.unet.runtimes.processors", lambda: 1)


def filled(unet):
    """The network with random weights everywhere, so that it says something."""
    rng = np.random.default_rng(0)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.2 * rng.standard_normal(parameter.shape, np.float32)))
    return unet.set_train(False)


def inputs(model, batch, height, width, steps=False):
    rng = np.random.default_rng(1)
    gamma = rng.integers(0, 1000, batch).astype(np.float32) if steps else rng.random(batch, np.float32)
    arrays = [rng.standard_normal((batch, model.in_channels, height, width), np.float32), gamma]
    label = None if model.num_classes is None else rng.integers(0, model.num_classes, batch).astype(np.int32)
    text = noise = None
    if model.text_channels is not None:
        text = rng.standard_normal((batch, model.text_length, model.text_channels), np.float32)
        text[0, model.text_length // 2:] = 0
    if model.source_noise:
        noise = rng.random(batch, np.float32)
    arrays += [label, None, text, noise]
    while arrays[-1] is None:
        arrays.pop()
    return arrays


def hold(cell, networks, arrays):
    """Assert that networks say what their Cell says; with its deep features, both. Returns what it says."""
    expected = cell(*(one if one is None else Tensor(one) for one in arrays))
    expected = [one.asnumpy() for one in (expected if isinstance(expected, tuple) else (expected,))]
    for network in networks:
        made = network(*arrays)
        for one, other in zip(made if isinstance(made, tuple) else (made,), expected):
            assert relative_error(one, other) < 1e-5
    return expected


def narrowed():
    """The networks of the recipes, each but once, a few channels wide and a block a level deep."""
    found = {}
    for path in CONFIGS:
        config = load_config(path)
        model = dataclasses.replace(config.model, base_channels=8, norm_groups=4, dropout=0.0, num_heads=1,
                                    num_res_blocks=1, num_head_channels=8 if config.model.num_head_channels else None)
        if model.res_blocks is not None:
            model = dataclasses.replace(model, res_blocks=tuple(min(number, 1) for number in model.res_blocks))
        if model.text_channels is not None:
            model = dataclasses.replace(model, text_channels=8, text_length=4, text_blocks=min(model.text_blocks, 1),
                                        text_width=8 if model.text_blocks else None)
        found.setdefault((model, config.diffusion.from_source, config.diffusion.noise_input, config.diffusion.process,
                          config.diffusion.time_input), (path.stem, model, config.diffusion))
    return list(found.values())


@pytest.mark.parametrize("model, diffusion", [pytest.param(*rest, id=name) for name, *rest in narrowed()])
def test_the_networks_of_the_recipes_say_what_their_cells_say(pynative, model, diffusion):
    unet = filled(UNet(model))
    cell, weights = precondition(unet, diffusion), unet_arrays(unet)
    around = around_network(diffusion, model.out_channels)
    side = unet.multiple
    arrays = inputs(model, 1, side, 2 * side, diffusion.time_input == "t")
    hold(cell, [Network(model, weights, name, around=around) for name in RUNTIMES], arrays)


@pytest.mark.parametrize("options", [
    {"patch_size": 2, "num_classes": 3, "attention": "local", "attention_blocks": 3},
    {"resblock_updown": False, "scale_shift": False, "attention": "local", "attention_block_size": 3},
    {"attention": "dilated", "base_channels": 9, "norm_groups": 3, "in_channels": 3},
    {"text_channels": 6, "text_length": 4, "text_blocks": 1, "text_width": 8, "source_noise": True, "num_classes": 2},
    {"kind": "efficient", "res_blocks": (0, 2), "text_channels": 6, "text_length": 4, "num_heads": 2}], ids=str)
def test_one_network_takes_every_size_and_number_of_pictures(pynative, options):
    model = ModelConfig(**{**TINY, **options})
    unet = filled(UNet(model))
    networks = [Network(model, unet_arrays(unet), name) for name in RUNTIMES]
    for batch, height, width in ((1, 16, 8), (3, 28, 12)):
        hold(unet, networks, inputs(model, batch, height, width))


@pytest.mark.parametrize("diffusion", [
    DiffusionConfig(prediction="x0", from_source=True, noise_input="angle"),
    DiffusionConfig(prediction="x0", process="resshift"), DiffusionConfig(prediction="x0", process="i2sb")], ids=str)
def test_what_stands_around_a_network_and_its_parts_are_the_cells(pynative, diffusion):
    model = ModelConfig(**TINY)
    unet, arrays = filled(UNet(model)), inputs(model, 2, 16, 8)
    cell, weights, around = precondition(unet, diffusion), unet_arrays(unet), around_network(diffusion, 3)
    networks = [Network(model, weights, name, around=around) for name in RUNTIMES]
    output, deep = hold(DeepFeatures(cell), [network.part("whole") for network in networks], arrays)
    graph = OnnxRuntime(*write(model, around), weights)  # with all of it in the graph, as it is exported
    assert relative_error(graph(dict(zip(("x", "gamma"), arrays)))[0], output) < 1e-5
    for network in networks:
        assert relative_error(network(*arrays), output) < 1e-5
        assert relative_error(network.part("finest")(deep, *arrays), output) < 1e-5  # see test_unet.py


@pytest.mark.parametrize("diffusion, levels", [
    (DiffusionConfig(time_input="t"), range(900, 910)),
    (DiffusionConfig(prediction="x0", from_source=True, noise_input="angle"), (0.001, 0.01, 0.4, 0.401, 0.402, 0.403))])
def test_in_half_precision_the_noise_and_the_source_are_told_in_full(diffusion, levels):
    # bfloat16 has 8 digits of 2: it rounds by a relative 1/512 at most, and takes 902 for 904.
    if not runtime.computes_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    model = ModelConfig(**{**TINY, "base_channels": 32})
    rng, around = np.random.default_rng(0), around_network(diffusion, 3)
    weights = {name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in shapes(model).items()}
    whole, half = (Network(model, weights, "openvino", precision, around) for precision in ("float32", "bfloat16"))
    x = rng.standard_normal((1, 6, 16, 16)).astype(np.float32)
    for level in np.float32(levels):
        assert 0 < relative_error(half(x, level[None]), whole(x, level[None])) < 0.01


def test_a_large_batch_is_computed_in_parts(monkeypatch):
    model = ModelConfig(**TINY)
    weights = unet_arrays(filled(UNet(model)))
    arrays, calls = inputs(model, 5, 8, 8), []
    whole = Network(model, weights, "onnx")
    assert whole.batch(8, 8) > 5 and whole.batch(2**14, 2**14) == 1
    parts = Network(model, weights, "onnx")
    parts.batch = lambda height, width: 2
    expected = whole(*arrays)
    parts(*(array[:1] for array in arrays))
    run = parts._program
    parts._program = lambda given: calls.append(len(given["x"])) or run(given)
    np.testing.assert_allclose(parts(*arrays), expected, rtol=1e-5, atol=1e-5)
    assert calls == [2, 2, 1]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_network_without_attention_takes_memory_too(name):
    # At least what one convolution of 64 channels reads and writes.
    assert Network(ModelConfig(attention="none"), {}, name).memory(4000, 3000) > 2 * 4 * 64 * 4000 * 3000


# Palette and the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a model with labels, as the hardest case: labels and guidance stand around the network."""
    config = config_from_dict({
        "model": {**TINY, "channel_mults": [1, 2], "attention_resolutions": [2], "num_classes": 2},
        "diffusion": {"prediction": "x0", "test_schedule": {"num_steps": 6, "start": 0.01, "end": 0.5}},
        "tasks": [{"name": "inpainting"}, {"name": "colorization"}], "data": {"image_size": 16},
        "training": {"source_dropout": 0.1}}, "test")
    path = tmp_path_factory.mktemp("a model") / "tiny.safetensors"
    save_checkpoint(path, config, pictures=10**6, weights=unet_arrays(filled(build_unet(config.model))))
    return path


@pytest.mark.parametrize("options", [
    {"sampler": "ddpm"}, {"sampler": "dpmpp_2m", "steps": 4, "guidance": 1.5, "reuse": 2}, {"tile": 12}], ids=str)
def test_the_same_seed_gives_the_same_picture_in_every_runtime(checkpoint, options):
    photo = np.random.default_rng(0).integers(0, 256, (13, 27, 3), np.uint8)
    expected, *others = [np.stack([np.asarray(image, int) for image in Palette.load(checkpoint, "cpu", name).restore(
        photo, "colorization", num_samples=2, seed=3, **options)]) for name in ("mindspore", *RUNTIMES)]
    for made in others:
        assert np.abs(made - expected).max() <= 1
    assert np.ptp(expected) > 50
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]  # nothing is written beside it


WITHOUT_MINDSPORE = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mindspore":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nowhere())
from palette_ms import errors, sample
errors.run(sample.main)
"""


@pytest.mark.parametrize("name", RUNTIMES)
def test_pictures_are_restored_where_mindspore_is_not_installed(checkpoint, tmp_path, repository, name):
    photo = np.random.default_rng(0).integers(0, 256, (13, 27, 3), np.uint8)
    (tmp_path / "home").mkdir()
    for picture, cut in (("a.png", np.s_[:]), ("b.png", np.s_[:, :10])):
        Image.fromarray(photo[cut]).save(tmp_path / picture)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MINDSPORE, "--ckpt", checkpoint, "--input", tmp_path / "a.png",
         tmp_path / "b.png", "--output", tmp_path / "out", "--task", "colorization", "--steps", "2", "--runtime", name],
        env={"PYTHONPATH": str(repository), "PATH": "", "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"onnx": "ONNX Runtime, float32", "openvino": "OpenVINO, float32"}[name] in done.stderr.splitlines()[0]
    here = Palette.load(checkpoint, "cpu", "mindspore").restore(photo, "colorization", steps=2)[0]
    made = np.asarray(Image.open(tmp_path / "out" / "a.png"), int)
    assert np.abs(made - np.asarray(here, int)).max() <= 1
    assert Image.open(tmp_path / "out" / "b.png").size == (10, 13)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png", "home", "out"}
    assert not list((tmp_path / "home").iterdir())


def test_auto_takes_the_first_that_is_installed(monkeypatch, capsys):
    there = {"openvino", "onnx", "onnxruntime", "mindspore"}
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(runtime, "computes_bfloat16", lambda: True)
    assert runtime.setup_sampling("cpu") == ("openvino", "float32")
    assert capsys.readouterr().err == "device: CPU (as asked), OpenVINO, float32\n"
    assert runtime.setup_sampling("cpu", "auto", "bfloat16") == ("openvino", "bfloat16")
    assert runtime.setup_sampling("cpu", bfloat16=True) == ("openvino", "bfloat16")
    assert runtime.setup_sampling("cpu", precision="float32", bfloat16=True) == ("openvino", "float32")
    assert runtime.setup_sampling("cpu", "onnx", bfloat16=True) == ("onnx", "float32")
    monkeypatch.setattr(runtime, "computes_bfloat16", lambda: False)
    assert runtime.setup_sampling("cpu", bfloat16=True) == ("openvino", "float32")
    assert runtime.setup_sampling("cpu", "auto", "float16") == ("mindspore", "float16")
    there.remove("openvino")
    assert runtime.setup_sampling("cpu") == ("onnx", "float32")
    there.remove("onnx")
    assert runtime.setup_sampling("cpu") == ("mindspore", "float32")
    with pytest.raises(UserError, match="openvino and onnx are not installed: pip install openvino onnx"):
        runtime.setup_sampling("cpu", "openvino")
    there.remove("mindspore")
    there |= {"onnx", "openvino"}
    with pytest.raises(UserError, match="OpenVINO does not compute in float16 on this processor"):
        runtime.setup_sampling("cpu", "auto", "float16")
    there.clear()
    with pytest.raises(UserError, match="nothing is installed that runs a network"):
        runtime.setup_sampling("cpu")


def test_half_precision_is_not_onnx_runtimes():
    with pytest.raises(UserError, match="ONNX Runtime computes in float32 here, and bfloat16 was asked for"):
        runtime.setup_sampling("cpu", "onnx", "bfloat16")


def test_an_unknown_runtime_ends_in_one_line(checkpoint, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    monkeypatch.setattr("sys.argv", ["sample", "--ckpt", str(checkpoint), "--input", str(tmp_path / "photo.png"),
                                     "--output", str(tmp_path / "out"), "--runtime", "tensorrt"])
    with pytest.raises(SystemExit) as end:
        errors.run(palette_ms.sample.main)
    assert end.value.code == 2
    assert "unknown runtime 'tensorrt': auto, mindspore, onnx, openvino" in capsys.readouterr().err
