"""Exported files say what the PyTorch port says."""

import dataclasses
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden import DATA, load_arrays, relative_error

import palette_ms.export
from palette_ms import errors
from palette_ms.checkpoint import save_checkpoint
from palette_ms.errors import UserError
from palette_ms.torch_weights.conversion import convert

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The port's network, with the schedule of the reference chain."""
    converted = convert(DATA / "palette_unet.pth", overrides=["model.num_head_channels=16"])
    schedule = converted.config.diffusion.train_schedule
    diffusion = dataclasses.replace(converted.config.diffusion, test_schedule=schedule)
    path = tmp_path_factory.mktemp("a port") / "port.safetensors"
    save_checkpoint(path, dataclasses.replace(converted.config, diffusion=diffusion), weights=converted.weights)
    return path


@pytest.fixture(scope="module")
def arrays():
    return load_arrays("palette_unet.npz")


def export(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    errors.run(palette_ms.export.main)


def test_the_network_in_onnx_runtime_is_the_ports(checkpoint, arrays, tmp_path, monkeypatch, capsys):
    path = tmp_path / "a folder" / "unet.onnx"
    export(monkeypatch, "--ckpt", checkpoint, "--output", path)
    session = onnxruntime.InferenceSession(str(path))
    names = [node.name for node in session.get_inputs()]
    assert names == ["x", "gamma"] and [node.name for node in session.get_outputs()] == ["output"]
    output, = session.run(None, dict(zip(names, (arrays["x"], arrays["gamma"]))))
    assert relative_error(output, arrays["unet_out"]) < 1e-5
    assert "x: float32 (N, 6, H, W)\ngamma: float32 (N)\n" in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == ["unet.onnx"]


def test_a_chain_loaded_again_is_the_ports(checkpoint, arrays, tmp_path, monkeypatch, capsys):
    path = tmp_path / "chain.mindir"
    export(monkeypatch, "--ckpt", checkpoint, "--output", path, "--chain", "--task", "inpainting", "--sampler", "ddpm",
           "--steps", 20, "--size", "16x16", "--batch", 2)
    inputs = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    noise = arrays["chain_noise"]
    values = {"y_T": noise[-1], "cond": arrays["cond"], "mask": arrays["mask"], "y_0": arrays["y0"],
              "noise": np.concatenate((noise[-2::-1], np.zeros_like(noise[:1])))[:20]}  # none is added to the last step
    chain = ms.nn.GraphCell(ms.load(str(path)))
    assert relative_error(chain(*(ms.Tensor(values[name]) for name in inputs)), arrays["chain_mask"]) < 1e-3


def test_weights_too_large_for_an_onnx_file_lie_beside_it(checkpoint, arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(palette_ms.export, "MOST_BYTES", 1000)
    export(monkeypatch, "--ckpt", checkpoint, "--output", tmp_path / "unet.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["unet.onnx", "unet.onnx.data"]
    session = onnxruntime.InferenceSession(str(tmp_path / "unet.onnx"))
    source, weights = tmp_path / "unet.onnx.data", tmp_path / "other.onnx.data"
    weights.write_text("mine")
    with pytest.raises(UserError, match="other.onnx.data, where the weights are to be, is there already"):
        palette_ms.export.put(source, weights)
    assert weights.read_text() == "mine"
    palette_ms.export.put(weights, source)  # which is unet.onnx's
    assert source.read_text() == "mine"
    output, = session.run(None, {"x": arrays["x"], "gamma": arrays["gamma"]})
    assert relative_error(output, arrays["unet_out"]) < 1e-5


def test_a_file_that_says_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(palette_ms.export, "answer", lambda path, inputs: inputs[0])
    ones = {"x": np.ones((1, 3), np.float32)}
    with pytest.raises(UserError, match=r"does not say what the network says \(relative error 5.0e-01\)"):
        palette_ms.export.write(Path.touch, lambda x: 2 * x, ones, tmp_path / "unet.onnx")
    assert not list(tmp_path.iterdir())
    palette_ms.export.write(Path.touch, lambda x: x, ones, tmp_path / "unet.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["unet.onnx"]


@pytest.mark.parametrize("arguments, message", [
    (["--output", "unet.pt"], "must end in .onnx or .mindir"),
    (["--output", "unet.mindir", "--format", "onnx"], "must end in .onnx"),
    (["--output", "unet.onnx", "--chain"], "--chain is for MINDIR"),
    (["--output", "unet.mindir", "--steps", "5"], "add --chain"),
    (["--output", "unet.mindir", "--chain"], "several tasks: name one of inpainting, colorization"),
    (["--output", "unet.mindir", "--size", "15x16"], "multiples of 2"),
    (["--output", "unet.onnx", "--size", "16x16"], "takes pictures of any size and number"),
])
def test_mistakes_end_in_one_line(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["export", "--ckpt", str(checkpoint), *arguments])
    with pytest.raises(SystemExit) as end:
        errors.run(palette_ms.export.main)
    assert end.value.code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())
