"""PyTorch's checkpoints: read without PyTorch, equal in numbers, and refused where they ask for more than tensors."""

import collections
import io
import json
import os
import pickle
import pickletools
import shutil
import struct
import subprocess
import sys
import zipfile

import mindspore as ms
import numpy as np
import pytest
from golden import DATA, load_arrays, relative_error
from mindspore import Tensor
from running import status
from safetensors.numpy import save_file

import palette_ms.convert
from palette_ms import Palette
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import ModelConfig, config_from_dict
from palette_ms.diffusion.samplers import DDPMSampler, Sampling, create_chain, create_sampler
from palette_ms.diffusion.schedule import evenly_spaced, make_beta_schedule
from palette_ms.errors import UserError
from palette_ms.torch_weights.configs import adm_config, palette_config, read_foreign_config, read_off_tensors
from palette_ms.torch_weights.conversion import convert
from palette_ms.torch_weights.files import is_torch, read_tensors, write_pth
from palette_ms.torch_weights.names import torch_names


@pytest.fixture(scope="module")
def palette_arrays():
    return load_arrays("palette_unet.npz")


@pytest.fixture(scope="module")
def adm_arrays():
    return load_arrays("adm_unet.npz")


@pytest.fixture(scope="module")
def port_config(palette_arrays, tmp_path_factory):
    """A config as the port has them: with comments, and much that does not matter here."""
    path = tmp_path_factory.mktemp("port") / "inpainting.json"
    schedule = str(palette_arrays["test_schedule"])
    path.write_text(f"""{{
        "name": "inpainting", // experiments name
        "path": {{ // "resume_state": "experiments/x/checkpoint/1"
            "resume_state": null // ex: 100
        }},
        "datasets": {{"train": {{"which_dataset": {{
            "name": ["data.dataset", "InpaintDataset"],
            "args": {{"data_root": "http://a/b", "mask_mode": "hybrid"}}}}}}}},
        "model": {{"which_networks": [{{
            "name": ["models.network", "Network"],
            "args": {{"init_type": "kaiming", "module_name": "guided_diffusion", // sr3 | guided_diffusion
                "unet": {str(palette_arrays["config"])}, "beta_schedule": {{"train": {schedule}, "test": {schedule}}}}}
        }}]}}
    }}""")
    return path


def command(*arguments):
    return status(palette_ms.convert, *arguments)


@pytest.fixture(scope="module")
def converted_palette(port_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "palette.safetensors"
    assert command("--input", DATA / "palette_unet.pth", "--output", path, "--arch", "palette",
                   "--config", port_config) == 0
    return path


@pytest.fixture(scope="module")
def converted_adm(adm_arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    (folder / "adm.json").write_text(str(adm_arrays["config"]))
    path = folder / "adm.safetensors"
    assert command("--input", DATA / "adm_unet.pth", "--output", path, "--arch", "adm",
                   "--config", folder / "adm.json") == 0
    return path


@pytest.fixture(scope="module")
def palette(converted_palette):
    return Palette.load(converted_palette, "cpu")


@pytest.fixture(scope="module")
def adm(converted_adm):
    return Palette.load(converted_adm, "cpu")


class FixedNoise:
    def __init__(self, chain_noise):
        self.noises = iter(chain_noise[-2::-1])

    def draw(self):
        return next(self.noises)


# Equal numbers


def test_the_ports_network_and_chain_give_its_numbers(palette, palette_arrays, monkeypatch):
    arrays = palette_arrays
    for output in (palette.unet(Tensor(arrays["x"]), Tensor(arrays["gamma"])),
                   palette.chains.network(arrays["x"], arrays["gamma"])):
        assert relative_error(output, arrays["unet_out"]) < 1e-5
    monkeypatch.setattr("palette_ms.diffusion.samplers.NoiseStream", lambda *_: FixedNoise(arrays["chain_noise"]))
    diffusion = palette.config.diffusion
    sampler = create_sampler(create_chain(palette.unet, diffusion, Sampling()), diffusion, Sampling())
    y_0 = sampler(arrays["cond"], arrays["chain_noise"][-1], mask=arrays["mask"], y_0=arrays["y0"])
    assert relative_error(y_0, arrays["chain_mask"]) < 1e-3


def test_guided_diffusions_network_and_respaced_chains_give_its_numbers(adm, adm_arrays, monkeypatch):
    arrays = adm_arrays
    for output in (adm.unet(Tensor(arrays["x"]), Tensor(arrays["t"])), adm.chains.network(arrays["x"], arrays["t"])):
        assert relative_error(output, arrays["unet_out"]) < 1e-5
    monkeypatch.setattr("palette_ms.diffusion.samplers.NoiseStream", lambda *_: FixedNoise(arrays["chain_noise"]))
    steps = len(json.loads(str(arrays["respacing"]))["timesteps"])
    diffusion, chain = adm.config.diffusion, create_chain(adm.unet, adm.config.diffusion, Sampling())
    for name, expected in (("ddpm", "chain_ancestral"), ("ddim", "chain_ddim")):  # compiled once for both
        sampler = create_sampler(chain, diffusion, Sampling(name, steps))
        assert relative_error(sampler(None, arrays["chain_noise"][-1]), arrays[expected]) < 1e-3


def test_steps_are_spaced_as_in_guided_diffusion():
    for length in (1000, 4000):
        for count in (2, 10, 25, 50, 100, 250, 999, length):
            stride, at, expected = (length - 1) / (count - 1), 0.0, []
            for _ in range(count):
                expected.append(round(at))
                at += stride
            assert evenly_spaced(length, count).tolist() == expected


@pytest.mark.parametrize("place, variance", [(-1.0, "posterior"), (1.0, "beta")])
def test_the_ends_of_the_learned_range_are_the_two_fixed_variances(place, variance):
    class Saying(ms.nn.Cell):
        def __init__(self, learned):
            super().__init__()
            self.learned = learned

        def construct(self, x, time):
            eps = 0.1 * x
            return ms.ops.concat((eps, ms.ops.full_like(x, place)), 1) if self.learned else eps

    betas = make_beta_schedule("linear", 5, 0.01, 0.5)
    rng = np.random.default_rng(0)
    y_t, noise = (Tensor(rng.standard_normal((2, 3, 4, 4), np.float32)) for _ in range(2))
    for t in range(5):
        learned = DDPMSampler(Saying(True), betas, "learned_range").step(y_t, None, t, noise)
        fixed = DDPMSampler(Saying(False), betas, variance).step(y_t, None, t, noise)
        # MindSpore's float32 exp on a CPU was seen 2e-6 from NumPy's, on noise of up to 3
        np.testing.assert_allclose(learned.asnumpy(), fixed.asnumpy(), rtol=1e-4, atol=1e-5)


def test_a_converted_file_says_where_it_came_from(converted_palette, capsys):
    palette = Palette.load(converted_palette, "cpu")
    assert palette.source == "converted from palette_unet.pth of the PyTorch Palette port"
    assert palette.source in capsys.readouterr().err
    assert palette.pictures is None and palette.tasks == ("inpainting",)
    assert palette.config.tasks[0].masks == ("free_form", "rectangle")


# To PyTorch and back


@pytest.mark.parametrize("name", ["palette", "adm"])
def test_the_round_trip_is_exact_to_the_bit(name, request, tmp_path):
    converted, back = request.getfixturevalue(f"converted_{name}"), tmp_path / "back.pth"
    assert command("--to", "torch", "--input", converted, "--output", back) == 0
    original, written = read_tensors(DATA / f"{name}_unet.pth"), read_tensors(back)
    assert original.keys() == written.keys()
    for key, value in original.items():
        np.testing.assert_array_equal(value, written[key], key)
    again = convert(back, overrides=["model.num_head_channels=16"])
    weights = Checkpoint(converted).tensors("weights")
    assert weights.keys() == again.weights.keys()
    assert all(np.array_equal(value, again.weights[key]) for key, value in weights.items())


def test_what_is_written_names_nothing_but_tensors(tmp_path):
    write_pth(tmp_path / "a.pth", {"a.weight": np.arange(6.0).reshape(2, 3), "b": np.float32(3)})
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        opcodes = list(pickletools.genops(archive.read("archive/data.pkl")))
    named = {argument for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
    assert named == {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"}
    tensors = read_tensors(tmp_path / "a.pth")
    np.testing.assert_array_equal(tensors["a.weight"], np.arange(6.0).reshape(2, 3))
    assert tensors["b"] == 3 and tensors["b"].shape == ()


def test_networks_that_pytorch_has_not_are_not_written(tmp_path, capsys):
    assert command("--to", "torch", "--input", "quickstart", "--output", tmp_path / "a.pth") == 2
    assert "no patch_size but 1" in capsys.readouterr().err and not (tmp_path / "a.pth").exists()


# The form of the files


class Global:
    """Pickled as a module's member, whether or not it exists here."""

    def __init__(self, name):
        self.name = name


class Stored:
    def __init__(self, kind, key, numel):
        self.description = "storage", Global(f"torch {kind}"), key, "cpu", numel


class Called:
    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class TorchPickler(pickle._Pickler):
    """Writes what PyTorch would write; the C pickler would import what a global names."""

    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, value):
        return value.description if isinstance(value, Stored) else None

    def save_global_name(self, value):
        module, _, name = value.name.rpartition(" ")
        self.write(f"c{module}\n{name}\n".encode())

    def save_call(self, value):
        self.save_global_name(value)
        self.save(value.arguments)
        self.write(pickle.REDUCE)

    dispatch[Global] = save_global_name
    dispatch[Called] = save_call


def pickled(value, protocol=2):
    file = io.BytesIO()
    TorchPickler(file, protocol).dump(value)
    return file.getvalue()


def tensor(kind, key, numel, size, stride, offset=0, version="_v2"):
    return Called(f"torch._utils _rebuild_tensor{version}", Stored(kind, key, numel), offset, size, stride, False,
                  collections.OrderedDict())


def zip_file(path, content, storages, root="archive", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", content if isinstance(content, bytes) else pickled(content))
        for key, data in storages.items():
            archive.writestr(f"{root}/data/{key}", data)
    return path


def legacy_file(path, content, storages):
    """The format of PyTorch before 1.6; `storages` are (number of elements, bytes) by key."""
    system = dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4))
    path.write_bytes(
        b"".join(map(pickled, (0x1950A86A20F9469CFC6C, 1001, system, content, list(storages))))
        + b"".join(struct.pack("<q", numel) + data for numel, data in storages.values()))
    return path


FLOATS = np.arange(24, dtype="<f4")


def test_the_older_format_is_read(tmp_path):
    content = {"w": tensor("FloatStorage", "7", 24, (2, 3), (3, 1)),
               "v": tensor("FloatStorage", "7", 24, (4,), (1,), 6)}
    tensors = read_tensors(legacy_file(tmp_path / "old.pth", content, {"7": (24, FLOATS.tobytes())}))
    np.testing.assert_array_equal(tensors["w"], FLOATS[:6].reshape(2, 3))
    np.testing.assert_array_equal(tensors["v"], FLOATS[6:10])


def test_strided_and_shared_storages_are_read(tmp_path):
    content = {"transposed": tensor("FloatStorage", "0", 24, (6, 4), (1, 6)),
               "a row of it": tensor("FloatStorage", "0", 24, (6,), (1,), 12),
               "expanded": tensor("FloatStorage", "0", 24, (3, 2), (0, 1)),
               "empty": tensor("FloatStorage", "0", 24, (0, 5), (5, 1)),
               "parameter": Called("torch._utils _rebuild_parameter", tensor("FloatStorage", "0", 24, (), ()), True,
                                   collections.OrderedDict()),
               "epoch": 3, "nested": {"of": tensor("FloatStorage", "0", 24, (2,), (12,), version="")}}
    tensors = read_tensors(zip_file(tmp_path / "a.pth", content, {"0": FLOATS.tobytes()}))
    np.testing.assert_array_equal(tensors["transposed"], FLOATS.reshape(4, 6).T)
    np.testing.assert_array_equal(tensors["a row of it"], FLOATS[12:18])
    np.testing.assert_array_equal(tensors["expanded"], [[0, 1]] * 3)
    assert tensors["empty"].shape == (0, 5) and tensors["parameter"] == 0
    np.testing.assert_array_equal(tensors["nested.of"], [0, 12])


def test_every_type_of_number_is_read_and_floats_come_as_float32(tmp_path):
    values = np.array([1.5, -2.25, 3e-3, 0, 65504, -1e-7])
    bits = np.frombuffer(values.astype("<f4").tobytes(), "<u4")
    storages = {"half": values.astype("<f2").tobytes(), "double": values.tobytes(),
                "long": values.astype("<i8").tobytes(), "bfloat": (bits >> 16).astype("<u2").tobytes()}
    content = {name: tensor(f"{kind}Storage", name, 6, (6,), (1,))
               for name, kind in zip(storages, ("Half", "Double", "Long", "BFloat16"))}
    tensors = read_tensors(zip_file(tmp_path / "a.pth", content, storages))
    assert [tensors[name].dtype for name in storages] == [np.float32, np.float32, np.int64, np.float32]
    np.testing.assert_array_equal(tensors["half"], values.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(tensors["double"], values.astype(np.float32))
    np.testing.assert_array_equal(tensors["long"], values.astype(int))
    np.testing.assert_array_equal(tensors["bfloat"].view(np.uint32), bits & 0xFFFF0000)


def test_safetensors_are_read_with_bfloat16(tmp_path):
    save_file({"w": FLOATS.astype(np.float16).reshape(4, 6)}, tmp_path / "half.safetensors")
    np.testing.assert_array_equal(read_tensors(tmp_path / "half.safetensors")["w"], FLOATS.reshape(4, 6))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 12], "data_offsets": [0, 48]}}).encode()
    data = (FLOATS.view("<u4") >> 16).astype("<u2").tobytes()
    (tmp_path / "bf16.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    np.testing.assert_array_equal(read_tensors(tmp_path / "bf16.safetensors")["w"], FLOATS.reshape(2, 12))


# Hostile and broken files


def hostile_and_broken(folder):
    """(name, path, part of the message) of files that are to be refused."""
    sentinel = folder / "executed"
    good = {"w": tensor("FloatStorage", "0", 24, (24,), (1,))}
    data = {"0": FLOATS.tobytes()}

    def reduce(name, *arguments):
        return pickled({"w": Called(name, *arguments)})

    calls = {
        "os.system": reduce("posix system", f"touch {sentinel}"),
        "eval": reduce("builtins eval", f"open({str(sentinel)!r}, 'w')"),
        "getattr": reduce("builtins getattr", 1, "real"),
        "import": reduce("importlib import_module", "antigravity"),
        "torch.load": reduce("torch load", "other.pth"),
        "torch hub": reduce("torch.hub load", "a", "b"),
        "numpy": reduce("numpy.core.multiarray scalar", 1),
        "a member of OrderedDict": reduce("collections OrderedDict.fromkeys", "ab"),
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        "INST": b"(S'true'\niposix\nsystem\n.",
        "extension code": b"\x80\x02\x82\x01.",
    }
    for name, content in calls.items():
        yield f"{name} in a zip", zip_file(folder / f"{name}.pth", content, {}), None
        (folder / f"{name} old.pth").write_bytes(content)
        yield f"{name} in the older format", folder / f"{name} old.pth", None
    bomb = b"\x80\x02]r\xff\xff\xff\x7f."  # memo index 2^31 − 1
    yield "memo bomb", zip_file(folder / "memo.pth", bomb, {}), "damaged"
    yield "deep nesting", zip_file(folder / "deep.pth", b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".", {}), None
    odd = Stored("FloatStorage", "0", 24)
    odd.description = "module", "x", "0", "cpu", 24
    yield "odd persistent id", zip_file(folder / "pid.pth", {"w": odd}, data), "not a whole"

    def wrong(name, message, content=good, storages=data, **options):
        return name, zip_file(folder / f"{name}.pth", content, storages, **options), message

    def one(*arguments, **options):
        return {"w": tensor(*arguments, **options)}

    yield wrong("storage too short", "storage 0 has 80 bytes, its tensors claim 96",
                storages={"0": FLOATS[:20].tobytes()})
    yield wrong("storage missing", "storage 0 is missing", storages={})
    yield wrong("beyond the storage", "w needs 25 elements", one("FloatStorage", "0", 24, (5, 5), (5, 1)))
    yield wrong("offset beyond", "w needs 34 elements", one("FloatStorage", "0", 24, (24,), (1,), offset=10))
    yield wrong("negative stride", "senseless", one("FloatStorage", "0", 24, (24,), (-1,), offset=23))
    yield wrong("negative offset", "senseless", one("FloatStorage", "0", 24, (2,), (1,), offset=-2))
    yield wrong("size and stride differ", "senseless", one("FloatStorage", "0", 24, (24,), (1, 1)))
    yield wrong("not a storage", None, {"w": Called("torch._utils _rebuild_tensor_v2", "x", 0, (1,), (1,))})
    yield wrong("unknown storage", "torch.ComplexFloatStorage", one("ComplexFloatStorage", "0", 24, (24,), (1,)))
    yield wrong("compressed", "compressed", compression=zipfile.ZIP_DEFLATED)
    yield wrong("no tensors", "no tensors", {"epoch": 3})
    yield wrong("TorchScript", "TorchScript", storages={**data, "../code/a": b""}, root="x/y")
    whole = zip_file(folder / "whole.pth", good, data).read_bytes()
    old = legacy_file(folder / "old.pth", good, {"0": (24, FLOATS.tobytes())}).read_bytes()
    for share in (0.02, 0.3, 0.7, 0.99):
        for name, content in (("zip", whole), ("old", old)):
            path = folder / f"{name} cut at {share}.pth"
            path.write_bytes(content[:int(share * len(content))])
            yield path.stem, path, None
    for name, content, message in (
            ("page", b"\n <!DOCTYPE html><html><body>404</body></html>", "web page"), ("empty", b"", "not a PyTorch"),
            ("text", b"hello, world", "not a PyTorch checkpoint"), ("a pickle", pickled({"a": 1}), "not a PyTorch"),
            ("not a pickle", b"\x80\x02\xff\xff", "not a whole"), ("a picture", b"\x89PNG\r\n", "not a PyTorch")):
        (folder / f"{name}.pth").write_bytes(content)
        yield name, folder / f"{name}.pth", message
    header = b'{"w": {"dtype": "F32", "shape":[9],"data_offsets":[0,36]}}'
    for name, content in (("short", b"abc"), ("huge header", struct.pack("<Q", 2**60)),
                          ("header no JSON", struct.pack("<Q", 4) + b"abcd"),
                          ("outside", struct.pack("<Q", len(header)) + header)):
        (folder / f"{name}.safetensors").write_bytes(content)
        yield name, folder / f"{name}.safetensors", "not a whole safetensors"
    yield "missing", folder / "none.pth", "no such file"
    yield "a folder", folder, "cannot read"


def test_hostile_and_broken_files_are_refused_with_one_line_and_run_nothing(tmp_path, monkeypatch):
    def run(*_, **__):
        raise AssertionError("something was run")

    for module, name in ((os, "system"), (subprocess, "Popen"), (sys.modules["builtins"], "eval")):
        monkeypatch.setattr(module, name, run)
    seen = 0
    for name, path, message in hostile_and_broken(tmp_path):
        with pytest.raises(UserError, match=message) as error:
            read_tensors(path)
        text = str(error.value)
        assert "\n" not in text and len(text) < 400 and str(path) in text, name
        seen += 1
    assert seen > 50 and not (tmp_path / "executed").exists()


def test_a_refused_pickle_names_what_it_asked_for(tmp_path):
    path = zip_file(tmp_path / "a.pth", pickled({"w": Called("posix system", "true")}), {})
    with pytest.raises(UserError, match="posix.system, which no tensor needs; nothing of it was run"):
        read_tensors(path)


def test_what_lies_beside_the_weights_is_left_out_and_never_run(tmp_path):
    sentinel = tmp_path / "executed"
    content = {"epoch": Called("numpy.core.multiarray scalar", 1), "args": Called("argparse Namespace"), "note": "text",
               "when": Called("posix system", f"touch {sentinel}"),
               "state_dict": {"w": tensor("FloatStorage", "0", 24, (24,), (1,))}}
    tensors = read_tensors(zip_file(tmp_path / "a.pth", pickled(content), {"0": FLOATS.tobytes()}))
    assert list(tensors) == ["state_dict.w"] and not sentinel.exists()


def test_dicts_that_hold_each_other_have_no_end_of_names(tmp_path):
    content = {"w": tensor("FloatStorage", "0", 24, (24,), (1,))}
    for _ in range(60):
        content = {"a": content, "b": content}
    read_tensors(zip_file(tmp_path / "a.pth", pickled(content), {"0": FLOATS.tobytes()}))


def test_what_a_file_claims_is_compared_with_its_length_first(tmp_path):
    huge = {"w": tensor("FloatStorage", "0", 2**40, (1,), (1,))}
    path = legacy_file(tmp_path / "a.pth", huge, {"0": (2**40, FLOATS.tobytes())})
    with pytest.raises(UserError, match="cut off or damaged"):
        read_tensors(path)
    again = zip_file(tmp_path / "b.pth", pickled({str(k): tensor("FloatStorage", str(k), 24, (24,), (1,))
                                                  for k in range(40)}), {"0": FLOATS.tobytes()})
    with pytest.raises(UserError, match="storage 1 is missing"):
        read_tensors(again)


@pytest.mark.parametrize("text", [
    'export MODEL_FLAGS="{}"', '!MODEL_FLAGS="{}"', "set MODEL_FLAGS={}\r\n",
    "#!/bin/bash\n# the user's own\nMODEL_FLAGS='{}'\npython image_sample.py $MODEL_FLAGS", "python a.py {} && ls"])
def test_flags_are_found_anywhere_in_a_text(text, tmp_path):
    flags = {"image_size": "32", "num_channels": "64", "channel_mult": "1,2", "learn_sigma": "True"}
    path, line = tmp_path / "a.sh", " ".join(f"--{name} {value}" for name, value in flags.items())
    path.write_text(text.format(line))
    assert read_foreign_config(path) == flags
    path.write_text(json.dumps({"cells": [{"source": ["import os\n", text.format(line)]}]}))
    assert read_foreign_config(path) == flags


def test_an_archive_whose_names_are_no_texts_is_damaged(tmp_path):
    whole = zip_file(tmp_path / "a.pth", pickle.dumps({}, 2), {}).read_bytes()
    directory = whole.index(b"PK\x01\x02")
    data = bytearray(whole)
    data[directory + 9] |= 8  # the name is said to be UTF-8
    data[directory + 46] = 0xff
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(UserError, match="a.pth is not a whole zip archive"):
        read_tensors(tmp_path / "a.pth")


def test_a_config_without_an_end_and_a_checkpoint_that_is_a_pipe_are_told(tmp_path):
    with pytest.raises(UserError, match="/dev/zero is not a config: it is larger than 16 MiB"):
        read_foreign_config("/dev/zero")
    os.mkfifo(tmp_path / "a.pth")
    assert not is_torch(tmp_path / "a.pth")
    with pytest.raises(UserError, match="a.pth is a pipe or a device"):
        read_tensors(tmp_path / "a.pth")


def test_improved_diffusions_flags_are_understood_or_named():
    flags = {"image_size": 64, "num_channels": 64, "sigma_small": "True", "rescale_timesteps": "True"}
    assert adm_config(flags)["diffusion"]["variance"] == "posterior"
    with pytest.raises(UserError, match="improved-diffusion .* t · 1000 / 4000"):
        adm_config({**flags, "diffusion_steps": "4000"})


def test_a_ckpt_of_pytorch_is_told_by_its_first_bytes(tmp_path, port_config):
    shutil.copy(DATA / "palette_unet.pth", tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="is a PyTorch file: python -m palette_ms.convert takes it in"):
        Checkpoint(tmp_path / "model.ckpt")


def test_a_config_that_asks_for_a_gigantic_network_is_told_before_it_is_built(tmp_path):
    for options in ({"base_channels": 10**9}, {"num_res_blocks": 10**9}, {"channel_mults": [1e9]}):
        with pytest.raises(UserError, match="more parameters than there is room for"):
            build_unet(ModelConfig(**options), "a.safetensors", 10**6)


# Files and networks that do not fit


def changed(folder, **changes):
    """The port's network with tensors replaced (or, where None, left out)."""
    tensors = read_tensors(DATA / "palette_unet.pth")
    tensors.update({key.replace("__", "."): value for key, value in changes.items()})
    write_pth(folder / "changed.pth", {name: value for name, value in tensors.items() if value is not None})
    return folder / "changed.pth"


@pytest.mark.parametrize("changes, message", [
    ({"denoise_fn__out__2__bias": None}, "lacks 1 tensors .denoise_fn.out.2.bias"),
    ({"denoise_fn__extra": FLOATS}, "has besides 1 tensors .denoise_fn.extra"),
    ({"optimizer": FLOATS}, "1 tensors besides the network .optimizer"),
    ({"denoise_fn__out__2__bias": FLOATS, "denoise_fn__out__0__bias": FLOATS},
     r"2 shapes differ: denoise_fn.out.0.bias is \(24,\), the network needs \(32,\); denoise_fn.out.2.bias"),
    ({"denoise_fn__input_blocks__0__0__weight": None}, "has no input_blocks.0.0.weight"),
    ({"denoise_fn__cond_embed__0__weight": None}, "has no time_embed.0.weight"),
    ({"gammas": FLOATS / 24}, "does not fall from 1"),
    ({"gammas": np.geomspace(0.9, 0.1, 20) ** np.linspace(1, 2, 20)}, "no schedule that is known"),
    ({"ema__input_blocks__0__0__weight": FLOATS}, "holds 2 networks"),
])
def test_a_file_that_does_not_fit_is_told(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        convert(changed(tmp_path, **changes), overrides=["model.num_head_channels=16"])
    assert "\n" not in str(error.value)


def test_the_ports_sr3_network_is_told_apart(tmp_path):
    write_pth(tmp_path / "sr3.pth", {"denoise_fn.noise_level_mlp.1.weight": FLOATS})
    with pytest.raises(UserError, match="sr3 network, which is another one"):
        convert(tmp_path / "sr3.pth")


def test_the_command_ends_a_mistake_with_status_2_and_writes_nothing(tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    page = tmp_path / "page.pth"
    page.write_text("<html>")
    for arguments in (["--input", page], ["--input", DATA / "palette_unet.pth"],
                      ["--input", DATA / "palette_unet.pth", "--arch", "adm", "model.num_heads=1"],
                      ["--input", DATA / "palette_unet.pth", "model.num_head_channels=5"],
                      ["--input", DATA / "palette_unet.pth", "--config", tmp_path / "none.json"]):
        assert command(*arguments, "--output", output) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert command("--input", DATA / "palette_unet.pth", "--output", tmp_path / "a.ckpt") == 2
    assert command("--input", tmp_path / "none.pth", "--output", page) == 2
    assert command("--input", page, "--output", page) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["page.pth"]


# Configs


def test_what_the_tensors_do_not_tell_is_asked_for_by_name(tmp_path):
    with pytest.raises(UserError, match="model.num_head_channels=N"):
        convert(DATA / "palette_unet.pth")
    converted = convert(DATA / "palette_unet.pth", overrides=["model.num_head_channels=16"])
    assert converted.config.model.channel_mults == (1, 2)
    assert vars(converted.config.diffusion.train_schedule) == dict(name="linear", num_steps=20, start=1e-4, end=0.5)
    assert any("task is not told" in note for note in converted.notes)


def test_a_config_of_this_project_will_do_too(tmp_path):
    config = tmp_path / "ours.yaml"
    config.write_text("""
        model: {base_channels: 32, channel_mults: [1, 2], num_res_blocks: 1, attention_resolutions: [2],
                num_head_channels: 16}
        diffusion: {test_schedule: {num_steps: 5}}
        tasks: [{name: colorization}]
        data: {image_size: 32}
    """)
    converted = convert(DATA / "palette_unet.pth", foreign_config=config)
    told = convert(DATA / "palette_unet.pth", overrides=["model.num_head_channels=16"])
    assert (converted.config.diffusion.test_schedule.num_steps, converted.config.tasks[0].name) == (5, "colorization")
    assert all(np.array_equal(value, told.weights[name]) for name, value in converted.weights.items())


@pytest.mark.parametrize("model", [
    ModelConfig(base_channels=32, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(2,)),
    ModelConfig(base_channels=32, channel_mults=(1, 1, 2, 3), num_res_blocks=2, attention_resolutions=(2, 8)),
    ModelConfig(base_channels=64, channel_mults=(0.5, 1, 1), num_res_blocks=3, attention_resolutions=(),
                scale_shift=False, resblock_updown=False, num_classes=7),
    ModelConfig(base_channels=32, channel_mults=(1,), num_res_blocks=2, attention_resolutions=(1,)),
    ModelConfig(in_channels=3, out_channels=6, base_channels=32, channel_mults=(1, 1, 1), attention_resolutions=(1, 4),
                resblock_updown=False),
])
def test_the_architecture_is_read_off_the_shapes(model):
    unet = build_unet(model)
    shapes = {name: tuple(dict(unet.parameters_and_names())[ours].shape)
              for ours, name in torch_names(unet, "adm").items()}
    assert len(set(shapes)) == len(shapes)
    told = read_off_tensors(shapes, "time_embed")
    expected = {name: getattr(model, name) for name in told}
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()} == expected


FLAGS_256 = ("--attention_resolutions 32,16,8 --class_cond False --diffusion_steps 1000 --image_size 256 --learn_sigma "
             "True --noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 "
             "--resblock_updown True --use_fp16 True --use_scale_shift_norm True")
FLAGS_64 = ("--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 "
            "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
            "--resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True")


def test_published_flags_are_understood(tmp_path):
    config = adm_config(read_foreign_config(FLAGS_256))
    assert config.pop("split_in_heads")
    model = config_from_dict({**config, "tasks": [{"name": "unconditional"}]}, "flags").model
    assert (model.base_channels, model.channel_mults) == (256, (1, 1, 2, 2, 4, 4))
    assert (model.attention_resolutions, model.num_head_channels, model.num_classes) == ((8, 16, 32), 64, None)
    assert (model.in_channels, model.out_channels, model.resblock_updown, model.scale_shift) == (3, 6, True, True)
    (tmp_path / "flags.txt").write_text(f'MODEL_FLAGS="{FLAGS_64}"\n')
    config = adm_config(read_foreign_config(tmp_path / "flags.txt"))
    assert not config.pop("split_in_heads")
    model = config_from_dict({**config, "tasks": [{"name": "unconditional"}]}, "flags").model
    assert (model.channel_mults, model.num_res_blocks, model.dropout, model.num_classes) == ((1, 2, 3, 4), 3, 0.1, 1000)
    assert (model.attention_resolutions, config["diffusion"]["test_schedule"]["name"]) == ((2, 4, 8), "cosine")


@pytest.mark.parametrize("text", [
    '{\t"unet": {\t"inner_channel": 64,\n\t\t// "res_blocks": 3,\n\t"res_blocks": 2}}',
    '{"unet": {"inner_channel": 64,// one\n"res_blocks": 2// two\n}}',
    '{"unet": {"inner_channel": 64, "res_blocks": 2,}, "data_root": "http://a/b"} // at the end',
    "unet:\n  inner_channel: 64\n  res_blocks: 2\n",
])
def test_the_ports_config_is_read_with_its_comments(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    model = palette_config(read_foreign_config(tmp_path / "config.json"))["model"]
    assert (model["base_channels"], model["num_res_blocks"]) == (64, 2)


@pytest.mark.parametrize("text", ["[1, 2]", "{: [", "hello"])
def test_what_is_no_config_is_told(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json is neither JSON, YAML nor flags"):
        read_foreign_config(tmp_path / "config.json")


def test_flags_are_taken_on_the_command_line(converted_adm, tmp_path):
    flags = ("--attention_resolutions 16 --image_size 32\n --learn_sigma True --num_channels 32 --channel_mult 1,2 "
             "--num_head_channels 16 --num_res_blocks 1 --resblock_updown True --use_scale_shift_norm True")
    output = tmp_path / "flags.safetensors"
    assert command("--input", DATA / "adm_unet.pth", "--output", output, "--config", flags) == 0
    assert Checkpoint(output).config == Checkpoint(converted_adm).config


def test_values_of_another_kind_are_told(tmp_path, capsys):
    config = tmp_path / "config.json"
    for arch, text in (("adm", '{"attention_resolutions": "a,b"}'), ("palette", '{"unet": 3}'),
                       ("adm", '{"diffusion_steps": 0}')):
        config.write_text(text)
        assert command("--input", DATA / f"{arch}_unet.pth", "--output", tmp_path / "a.safetensors",
                       "--config", config) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_512_network_begins_at_half_its_width():
    model = adm_config({"image_size": 512, "num_channels": 256})["model"]
    assert model["channel_mults"] == (0.5, 1, 1, 2, 2, 4, 4) and model["num_heads"] == 4


def test_both_orders_of_attention_give_the_same_network():
    rng = np.random.default_rng(0)
    unet = build_unet(ModelConfig(base_channels=32, channel_mults=(1,), num_res_blocks=1, num_heads=4))
    from palette_ms.torch_weights.names import from_torch, to_torch

    arrays = {name: rng.standard_normal(p.shape, np.float32) for name, p in unet.parameters_and_names()}
    tensors = to_torch(arrays, unet, "adm")
    in_heads = tensors["middle_block.1.qkv.weight"]
    # Row h·3·d + j·d + c within heads is row j·C + h·d + c where q, k and v come one after the other.
    apart = np.stack([in_heads[24 * h + 8 * j + c] for j in range(3) for h in range(4) for c in range(8)])
    bias = tensors["middle_block.1.qkv.bias"]
    bias = np.stack([bias[24 * h + 8 * j + c] for j in range(3) for h in range(4) for c in range(8)])
    new_order = {**tensors, "middle_block.1.qkv.weight": apart, "middle_block.1.qkv.bias": bias}
    for split_in_heads, given in ((True, tensors), (False, new_order)):
        back = from_torch(given, unet, "adm", "a", split_in_heads)
        assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("content, message", [
    ({"model": {"which_networks": [{"args": {"module_name": "sr3", "unet": {}}}]}}, "sr3 network"),
    ({"hello": 1}, "not a config of the PyTorch Palette port"),
    ({"inner_channel": 64, "num_heads": 4, "num_heads_upsample": 8}, "num_heads_upsample"),
])
def test_configs_of_other_networks_are_told(content, message):
    with pytest.raises(UserError, match=message):
        palette_config(content)


@pytest.mark.parametrize("content, message", [
    ({"num_chanels": 64}, "has no num_chanels"), ({"image_size": 48}, "no channel_mult for image_size 48"),
    ({"rescale_timesteps": True, "diffusion_steps": 4000}, "rescale_timesteps"),
])
def test_flags_of_other_networks_are_told(content, message):
    with pytest.raises(UserError, match=message):
        adm_config(content)


# Networks without a source


@pytest.fixture(scope="module")
def class_conditional(tmp_path_factory):
    config = config_from_dict({
        "model": {"in_channels": 3, "base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "num_classes": 3},
        "diffusion": {"prediction": "x0", "test_schedule": {"num_steps": 3, "start": 0.1, "end": 0.5}},
        "tasks": [{"name": "unconditional"}], "data": {"image_size": 8}}, "test")
    unet, rng = build_unet(config.model), np.random.default_rng(0)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.3 * rng.standard_normal(parameter.shape, np.float32)))
    path = tmp_path_factory.mktemp("classes") / "classes.safetensors"
    save_checkpoint(path, config, weights=unet_arrays(unet))
    return Palette.load(path, "cpu")


def pictures(images):
    return np.stack([np.asarray(image) for image in images])


def test_classes_give_other_pictures_and_the_seed_decides(class_conditional):
    zero, again, one = (pictures(class_conditional.generate(2, label=label)) for label in (0, 0, 1))
    assert zero.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(zero, again)
    assert (zero != one).any() and (zero[0] != zero[1]).any()
    drawn = pictures(class_conditional.generate(2, size=(4, 10), seed=3))
    np.testing.assert_array_equal(drawn, pictures(class_conditional.generate(2, size=(4, 10), seed=3)))
    assert drawn.shape == (2, 4, 10, 3)


def test_the_class_embedding_is_added_to_the_time_embedding(class_conditional):
    unet, x = class_conditional.unet, Tensor(np.ones((1, 3, 4, 4), np.float32))
    gamma, label = Tensor(np.array([0.5], np.float32)), Tensor([2], ms.int32)
    expected = unet(x, gamma, label).asnumpy()
    table, bias = unet.label_embedding.asnumpy().copy(), unet.time_embedding.dense2.bias.asnumpy().copy()
    unet.label_embedding.set_data(Tensor(0 * table))
    unet.time_embedding.dense2.bias.set_data(Tensor(bias + table[2]))
    np.testing.assert_allclose(unet(x, gamma, label).asnumpy(), expected, rtol=1e-4, atol=1e-5)
    unet.label_embedding.set_data(Tensor(table))
    unet.time_embedding.dense2.bias.set_data(Tensor(bias))


@pytest.mark.parametrize("arguments, message", [
    ({"label": 3}, "no class 3"), ({"num_samples": 0}, "at least 1"), ({"size": (3, 4)}, "multiples of 2"),
    ({"seed": -1}, "at least 0"), ({"sampler": "magic"}, "unknown sampler"), ({"steps": 9}, "from 1 to 3"),
])
def test_what_cannot_be_generated_is_told(class_conditional, arguments, message):
    with pytest.raises(UserError, match=message):
        class_conditional.generate(**arguments)


def test_generating_and_restoring_models_are_told_apart(palette, adm):
    with pytest.raises(UserError, match="use restore"):
        palette.generate()
    with pytest.raises(UserError, match="inpainting needs mask"):
        adm.restore(np.zeros((8, 8, 3), np.uint8), "inpainting")
    with pytest.raises(UserError, match="restores by prior.* not unconditional"):
        adm.restore(np.zeros((8, 8, 3), np.uint8), "unconditional")
    with pytest.raises(UserError, match="knows no classes"):
        adm.generate(label=1)


def test_the_sample_command_generates_with_a_converted_network(converted_adm, tmp_path):
    def sample(*arguments):
        return subprocess.run([sys.executable, "-m", "palette_ms.sample", "--ckpt", converted_adm, "--output", tmp_path,
                               "--device", "cpu", *arguments], capture_output=True, text=True)

    result = sample("--num-samples", "2", "--steps", "2", "--seed", "5")
    assert result.returncode == 0, result.stderr
    assert "converted from adm_unet.pth of guided-diffusion" in result.stderr and "warning" not in result.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["sample_5_0.png", "sample_5_1.png"]
    result = sample("--input", tmp_path / "sample_5_0.png")
    assert result.returncode == 2 and "restores by prior: name a task" in result.stderr


# MindSpore's own files


def test_a_mindspore_checkpoint_loads_with_its_config_beside_it(class_conditional, tmp_path):
    import yaml

    unet = class_conditional.unet
    ms.save_checkpoint(unet, str(tmp_path / "a.ckpt"))
    with pytest.raises(UserError, match="put the model's YAML beside it, as a.yaml"):
        Palette.load(tmp_path / "a.ckpt", "cpu")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(class_conditional.config.to_dict()))))
    loaded = Palette.load(tmp_path / "a.ckpt", "cpu")
    for name, parameter in loaded.unet.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), dict(unet.parameters_and_names())[name].asnumpy())
    assert command("--input", tmp_path / "a.ckpt", "--output", tmp_path / "b.safetensors") == 0
    assert Checkpoint(tmp_path / "b.safetensors").source == "converted from MindSpore file a.ckpt"
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole MindSpore checkpoint"):
        Palette.load(tmp_path / "a.ckpt", "cpu")
