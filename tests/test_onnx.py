"""The network in ONNX Runtime says what its Cell says, and its files lie where they can."""

import os
import time

import numpy as np
import pytest
from golden import relative_error
from mindspore import Tensor
from PIL import Image

import palette_ms.sample
from palette_ms import Palette, errors, runtime
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.diffusion.preconditioning import Preconditioned
from palette_ms.errors import UserError
from palette_ms.unet import UNet
from palette_ms.unet.onnx import NotExported, OnnxCell
from palette_ms.unet.unet import DeepFeatures, FinestLevel

onnxruntime = pytest.importorskip("onnxruntime")

TINY = {"base_channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,),
        "norm_groups": 4}


def filled(unet):
    """The network with random weights everywhere, so that it says something."""
    rng = np.random.default_rng(0)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.2 * rng.standard_normal(parameter.shape, np.float32)))
    return unet.set_train(False)


def inputs(batch, height, width, labels=None):
    rng = np.random.default_rng(1)
    x, gamma = rng.standard_normal((batch, 6, height, width), np.float32), rng.random(batch, np.float32)
    return [Tensor(x), Tensor(gamma)] + ([] if labels is None else [Tensor(np.array(labels, np.int32))])


@pytest.mark.parametrize("options, labels", [
    ({"patch_size": 2}, None),
    ({"num_classes": 3}, [2, 0]),
    ({"attention": "local", "attention_blocks": 3}, None),
    ({"resblock_updown": False, "scale_shift": False}, None),
])
def test_every_kind_of_network_says_what_its_cell_says(tmp_path, options, labels):
    unet = filled(UNet(**TINY, **options))
    arguments = inputs(2, 16, 8, labels)
    made = OnnxCell(unet, tmp_path / "model.safetensors", "")(*arguments)
    assert relative_error(made, unet(*arguments).asnumpy()) < 1e-5


def test_a_preconditioned_network_and_its_parts_say_what_their_cells_say(tmp_path):
    unet, arguments = Preconditioned(filled(UNet(**TINY)), True, "angle"), inputs(2, 16, 8)
    network = OnnxCell(unet, tmp_path / "model.safetensors", "")
    assert relative_error(network(*arguments), unet(*arguments).asnumpy()) < 1e-5
    whole, finest = DeepFeatures(unet), FinestLevel(unet)
    output, deep = network.part(whole, "whole")(*arguments)
    for made, expected in zip((output, deep), whole(*arguments)):
        assert relative_error(made, expected.asnumpy()) < 1e-5
    assert relative_error(network.part(finest, "finest")(deep, *arguments), output.asnumpy()) < 1e-5


def test_changed_code_of_any_cell_is_exported_anew(tmp_path, monkeypatch):
    code = tmp_path / "around_a_network.py"
    code.write_text("from mindspore import nn\n\n\nclass Around(nn.Cell):\n"
                    "    def __init__(self, network):\n        super().__init__()\n        self.network = network\n")
    monkeypatch.syspath_prepend(tmp_path)
    import around_a_network

    unet, path = UNet(**TINY), tmp_path / "model.safetensors"
    cells = unet, around_a_network.Around(unet)
    before = [OnnxCell(cell, path, "these").name for cell in cells]
    assert before == [OnnxCell(cell, path, "these").name for cell in cells]
    code.write_text(code.read_text() + "# other\n")
    after = [OnnxCell(cell, path, "these").name for cell in cells]
    assert after[0] == before[0] and after[1] != before[1]


def test_a_size_is_exported_once_and_other_weights_again(tmp_path):
    def files():
        return {path.name: path.stat().st_ino for path in tmp_path.iterdir()}

    unet, path = filled(UNet(**TINY)), tmp_path / "model.safetensors"
    OnnxCell(unet, path, "these")(*inputs(1, 8, 8))
    first, = files().items()
    assert first[0].startswith("model.") and first[0].endswith(".8x8.onnx")
    before = OnnxCell(unet, path, "these")(*inputs(3, 8, 8))
    assert [*files().items()] == [first]
    OnnxCell(unet, path, "these")(*inputs(1, 16, 8))
    assert len(files()) == 2
    other = filled(UNet(**TINY))
    other.conv_out.bias.set_data(other.conv_out.bias + 1)
    after = OnnxCell(other, path, "others")(*inputs(3, 8, 8))
    assert len(files()) == 3
    np.testing.assert_allclose(after.asnumpy(), before.asnumpy() + 1, atol=1e-5)


def test_pictures_of_many_sizes_do_not_pile_up(tmp_path, monkeypatch):
    monkeypatch.setattr("palette_ms.unet.onnx.MAX_FILES", 2)
    monkeypatch.setattr("palette_ms.unet.onnx.MAX_SESSIONS", 1)
    (tmp_path / "mine.8x8.onnx").touch()
    (tmp_path / "model.8x8.onnx").touch()
    network = OnnxCell(filled(UNet(**TINY)), tmp_path / "model.safetensors", "")
    for height in (8, 16, 8, 24):
        network(*inputs(1, height, 8))
        time.sleep(0.02)  # a file system's clock may be as coarse
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mine.8x8.onnx", "model.8x8.onnx", f"{network.name}.8x8.onnx", f"{network.name}.24x8.onnx"}
    assert len(network.sessions) == 1


def test_where_the_checkpoints_folder_cannot_be_written_the_users_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file").touch()
    OnnxCell(filled(UNet(**TINY)), tmp_path / "file" / "model.safetensors", "")(*inputs(1, 8, 8))
    path, = (tmp_path / "cache" / "palette_ms").iterdir()
    assert path.suffix == ".onnx"


# Palette and the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a model with labels, as the hardest case: labels and guidance stand around the network."""
    config = config_from_dict({
        "model": {**TINY, "channel_mults": [1, 2], "attention_resolutions": [2], "num_classes": 2},
        "diffusion": {"prediction": "x0", "test_schedule": {"num_steps": 6, "start": 0.01, "end": 0.5}},
        "tasks": [{"name": "inpainting"}, {"name": "colorization"}], "data": {"image_size": 16},
        "training": {"source_dropout": 0.1}}, "test")
    path = tmp_path_factory.mktemp("a model") / "tiny.safetensors"  # MindSpore's exporter takes no spaces
    save_checkpoint(path, config, pictures=10**6, weights=unet_arrays(filled(build_unet(config.model))))
    return path


@pytest.mark.parametrize("options", [
    {"sampler": "ddpm"}, {"sampler": "dpmpp_2m", "steps": 4, "guidance": 1.5, "reuse": 2}, {"tile": 12}], ids=str)
def test_the_same_seed_gives_the_same_picture_in_both_runtimes(checkpoint, options):
    # Not above the training size, where ONNX Runtime's sizes are rounded up.
    photo = np.random.default_rng(0).integers(0, 256, (13, 16, 3), np.uint8)
    pictures = [np.stack([np.asarray(image, int) for image in Palette.load(checkpoint, "cpu", name).restore(
        photo, "colorization", num_samples=2, seed=3, **options)]) for name in ("onnx", "mindspore")]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert np.ptp(pictures[0]) > 50


def test_a_checkpoint_written_anew_is_exported_anew(checkpoint, tmp_path):
    path, pictures = tmp_path / "model.safetensors", []
    config = Checkpoint(checkpoint).config
    for weights in (filled(build_unet(config.model)), build_unet(config.model)):
        save_checkpoint(path, config, weights=unet_arrays(weights))
        picture, = Palette.load(path, "cpu").restore(Image.new("RGB", (8, 8)), steps=2)
        pictures.append(np.asarray(picture))
    assert np.abs(np.subtract(*pictures, dtype=float)).max() > 0
    assert len(list(tmp_path.glob("*.onnx"))) == 2


def test_auto_takes_onnx_runtime_where_it_is_installed(checkpoint, monkeypatch):
    assert Palette.load(checkpoint, "cpu").chains.onnx is not None
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    assert Palette.load(checkpoint, "cpu").chains.onnx is None
    with pytest.raises(UserError, match="not installed"):
        Palette.load(checkpoint, "cpu", "onnx")


def test_a_network_too_large_for_a_file_runs_in_its_cell(monkeypatch):
    assert runtime.takes_onnx("auto", 2**30)
    assert not runtime.takes_onnx("auto", 2**31)
    with pytest.raises(UserError, match="too large"):
        runtime.takes_onnx("onnx", 2**31)


def test_an_unknown_runtime_ends_in_one_line(checkpoint, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    monkeypatch.setattr("sys.argv", ["sample", "--ckpt", str(checkpoint), "--input", str(tmp_path / "photo.png"),
                                     "--output", str(tmp_path / "out"), "--runtime", "tensorrt"])
    with pytest.raises(SystemExit) as end:
        errors.run(palette_ms.sample.main)
    assert end.value.code == 2
    assert "unknown runtime 'tensorrt': auto, mindspore, onnx" in capsys.readouterr().err


def test_sizes_above_the_training_size_are_rounded_up_to_few(tmp_path):
    unet = filled(UNet(**TINY))
    network = OnnxCell(unet, tmp_path / "model.safetensors", "", 16, 2)
    for size in ((16, 8), (18, 16), (22, 24)):
        made, expected = network(*inputs(1, *size)).asnumpy(), unet(*inputs(1, *size)).asnumpy()
        assert made.shape == expected.shape
        assert relative_error(Tensor(made), expected) < (1e-5 if max(size) <= 16 else 1)
    assert sorted(path.name.split(".")[-2] for path in tmp_path.glob("*.onnx")) == ["16x8", "24x16", "24x24"]
    assert [network._rounded(side) for side in (2, 16, 18, 100, 1025, 1200, 3000)] == [2, 16, 24, 104, 1152, 1280, 3072]


def damaged(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "cut off":
        del content[1000:]
    elif kind == "empty":
        content.clear()
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut off", "empty", "a bit changed"])
def test_a_damaged_file_is_made_anew(tmp_path, kind, capsys):
    path = tmp_path / "model.safetensors"
    expected = OnnxCell(filled(UNet(**TINY)), path, "")(*inputs(1, 8, 8)).asnumpy()
    file, = tmp_path.glob("*.onnx")
    damaged(file, kind)
    unet = filled(UNet(**TINY))  # MindSpore exports a Cell at a size once
    np.testing.assert_array_equal(OnnxCell(unet, path, "")(*inputs(1, 8, 8)).asnumpy(), expected)
    assert "made anew" in capsys.readouterr().err
    OnnxCell(unet, path, "")(*inputs(1, 8, 8))
    assert "made anew" not in capsys.readouterr().err


def test_a_file_of_other_weights_is_not_taken_by_its_name(tmp_path, capsys):
    unet, other, path = filled(UNet(**TINY)), filled(UNet(**TINY)), tmp_path / "model.safetensors"
    other.conv_out.bias.set_data(other.conv_out.bias + 1)
    expected = unet(*inputs(1, 8, 8)).asnumpy()
    theirs = OnnxCell(other, path, "those")
    theirs(*inputs(1, 8, 8))
    (tmp_path / f"{theirs.name}.8x8.onnx").replace(tmp_path / f"{OnnxCell(unet, path, 'these').name}.8x8.onnx")
    assert relative_error(OnnxCell(unet, path, "these")(*inputs(1, 8, 8)), expected) < 1e-5
    assert "made anew" in capsys.readouterr().err


def test_files_lie_where_no_other_user_can_put_one(tmp_path, monkeypatch):
    shared, home, temporary = tmp_path / "shared", tmp_path / "home", tmp_path / "a b+é"
    for folder in (shared, home, temporary):
        folder.mkdir()
    shared.chmod(0o777)
    monkeypatch.setattr("palette_ms.unet.onnx.gettempdir", lambda: str(temporary))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    network = OnnxCell(UNet(**TINY), shared / f"{'m' * 240}.safetensors", "")
    assert [*network._folders()][:2] == [home / ".cache/palette_ms", temporary / f"palette_ms-{os.getuid()}"]
    assert (home / ".cache/palette_ms").stat().st_mode & 0o777 == 0o700
    (home / ".cache/palette_ms").chmod(0o777)  # as others might have made it
    (temporary / f"palette_ms-{os.getuid()}").rmdir()
    (temporary / f"palette_ms-{os.getuid()}").symlink_to(shared)
    own, = network._folders()
    assert own.stat().st_mode & 0o777 == 0o700
    network(*inputs(1, 8, 8))
    assert len(list(own.glob("m*.8x8.onnx"))) == 1 and not list(shared.iterdir())


def test_a_size_that_cannot_be_exported_is_left_to_the_cell(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise NotExported("MindSpore cannot export this network to ONNX: i: 5 out of range")

    monkeypatch.setattr("palette_ms.unet.onnx.export", fail)
    unet, arguments = filled(UNet(**TINY)), inputs(2, 16, 8)
    cell = OnnxCell(unet, tmp_path / "model.safetensors", "", required=False)
    for _ in range(2):
        np.testing.assert_array_equal(cell(*arguments).asnumpy(), unet(*arguments).asnumpy())
    assert capsys.readouterr().err.count("out of range; MindSpore runs it") == 1
    with pytest.raises(NotExported):
        OnnxCell(unet, tmp_path / "model.safetensors", "")(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_size_can_be_exported_again(tmp_path):
    unet, arguments = Preconditioned(filled(UNet(**TINY)), True, "angle"), inputs(1, 8, 8)
    cell = OnnxCell(unet, tmp_path / "model.safetensors", "")
    first = cell(*arguments).asnumpy()
    for path in tmp_path.glob("*.onnx"):
        path.unlink()
    cell.sessions.clear()
    np.testing.assert_array_equal(cell(*arguments).asnumpy(), first)
