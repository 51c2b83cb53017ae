"""Training small matrices beside a trained network's layers."""

import dataclasses
import shutil

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from PIL import Image

from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict, load_config
from palette_ms.errors import UserError
from palette_ms.training import loop
from palette_ms.training.memory import Memory
from palette_ms.unet.lora import LowRank, adapt, count_parameters
from palette_ms.unet.lora_weights import merged

MODEL = {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [1],
         "num_head_channels": 8, "norm_groups": 4}


def filled(unet, seed=0):
    rng = np.random.default_rng(seed)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.2 * rng.standard_normal(parameter.shape, np.float32)))
    return unet


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder with photos and a trained model."""
    ms.set_context(mode=ms.GRAPH_MODE)
    folder = tmp_path_factory.mktemp("lora")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "photos" / f"{i}.png")
    unet = filled(build_unet(config(folder, "none").model))
    save_checkpoint(folder / "base.safetensors", config(folder, "none"), 1, 10**6, unet_arrays(unet), unet_arrays(unet))
    return folder


def config(folder, output, **training):
    return config_from_dict({
        "model": MODEL, "diffusion": {"prediction": "v"}, "tasks": [{"name": "denoising"}],
        "data": {"path": str(folder / "photos"), "image_size": 16, "workers": 1},
        "training": {"output": str(folder / output), "steps": 4, "batch_size": 2, "learning_rate": 0.05,
                     "warmup_steps": 0, "sample_every": 0, "save_every": 2, **training}}, "test")


def adapted(folder, output):
    return config(folder, output, init_from=str(folder / "base.safetensors"), lora={"rank": 2})


@pytest.fixture(scope="module")
def trained(base):
    loop.train(adapted(base, "whole"))
    return base


def test_only_what_is_added_is_trained_and_the_model_is_the_networks_own(trained):
    before = Checkpoint(trained / "base.safetensors").tensors("weights")
    state = Checkpoint(trained / "whole" / "state_0000004.safetensors")
    model = Checkpoint(trained / "whole" / "model.safetensors")
    arrays = state.tensors("weights")
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array)
    for group in ("weights", "ema"):
        changed = {name for name, array in model.tensors(group).items() if (array != before[name]).any()}
        layers = {name.rpartition(".")[0] for name in arrays if name.endswith("lora_up")}
        assert changed == {f"{layer}.weight" for layer in layers}
        assert any(layer.endswith(".attention.qkv") for layer in layers)
        assert any(layer.endswith(".residual.conv1") for layer in layers)
    assert not any("moment" in name and "lora" not in name for name in state.tensors("optimizer"))
    assert model.tensors("weights").keys() == before.keys()


def test_a_model_and_its_state_say_the_same_as_the_adapted_network(trained):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # for one call of each
    state = Checkpoint(trained / "whole" / "state_0000004.safetensors")
    unet = adapt(build_unet(state.config.model), 2, ("attention", "residual"), np.random.default_rng(1))
    state.fill(unet, "ema")
    x, gamma = np.random.default_rng(2).standard_normal((1, 6, 16, 16), np.float32), np.float32([0.5])
    said = [network(Tensor(x), Tensor(gamma)).asnumpy() for network in (
        unet.set_train(False), *(Checkpoint(trained / name).load_unet() for name in (
            "whole/state_0000004.safetensors", "whole/model.safetensors", "base.safetensors")))]
    np.testing.assert_allclose(said[1], said[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(said[1], said[2])
    assert abs(said[3] - said[0]).max() > 1e-2


def test_a_resumed_adaptation_ends_with_the_weights_of_an_undisturbed_one(trained):
    (trained / "parted").mkdir()
    shutil.copy(trained / "whole" / "state_0000002.safetensors", trained / "parted")
    loop.train(adapted(trained, "parted"), resume="auto")
    one, other = (Checkpoint(trained / name / "model.safetensors") for name in ("whole", "parted"))
    for group in ("weights", "ema"):
        for name, array in one.tensors(group).items():
            np.testing.assert_array_equal(other.tensors(group)[name], array)


def test_an_adapted_models_state_starts_another_training(trained):
    state = trained / "whole" / "state_0000004.safetensors"
    start = dataclasses.replace(config(trained, "next").training, init_from=str(state))
    trainer = loop.Trainer(dataclasses.replace(config(trained, "next"), training=start))
    for name, array in merged(Checkpoint(state).tensors("weights")).items():
        np.testing.assert_array_equal(unet_arrays(trainer.unet)[name], array)


@pytest.mark.parametrize("layer, shape", [(nn.Conv2d(3, 4, 3, pad_mode="pad", padding=1, has_bias=True), (2, 3, 5, 5)),
                                          (nn.Dense(3, 4), (2, 3))], ids=["convolution", "dense"])
def test_gradients_are_those_of_the_weight_by_the_chain_rule(layer, shape):
    """Of f(W + BA): with G of W, those of B and A are GAᵀ and BᵀG."""
    rng = np.random.default_rng(0)
    x, plain = Tensor(rng.standard_normal(shape, np.float32)), layer
    cell = LowRank(layer, 2, rng)
    cell.lora_up.set_data(Tensor(rng.standard_normal((4, 2), np.float32)))
    up, down = cell.lora_up.asnumpy(), cell.lora_down.asnumpy()

    def gradients(network, parameters):
        def total(x):
            return ops.sin(network(x)).sum()

        return [part.asnumpy() for part in ms.grad(total, None, ms.ParameterTuple(parameters))(x)]

    found = gradients(cell, [cell.lora_up, cell.lora_down])
    weight = plain.weight.asnumpy()
    plain.weight.set_data(Tensor(weight + (up @ down).reshape(weight.shape)))
    whole = gradients(plain, [plain.weight])[0].reshape(4, -1)
    np.testing.assert_allclose(found[0], whole @ down.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], up.T @ whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [("attention",), ("residual",), ("attention", "residual")])
@pytest.mark.parametrize("plain", [False, True])
def test_what_is_added_is_counted_without_building_it(base, targets, plain):
    model = dataclasses.replace(config(base, "none").model, channel_mults=(1, 2), attention_resolutions=(2,),
                                resblock_updown=not plain, scale_shift=not plain)
    unet = adapt(build_unet(model), 3, targets, np.random.default_rng(0))
    assert count_parameters(model, 3, targets) == sum(parameter.size for parameter in unet.trainable_params())


def test_a_card_holds_moments_of_what_is_added_alone(repository):
    path = repository / "configs" / "palette_paper.yaml"
    whole = Memory(load_config(path))
    low = Memory(load_config(path, ["training.init_from=paper.safetensors", "training.lora={rank: 8}"]))
    assert low.kept["Adam's moments"] < 0.02 * whole.kept["Adam's moments"]
    assert low.total(1) < 0.6 * whole.total(1)


@pytest.mark.parametrize("changed, message", [
    ({"lora": {"rank": 0}}, "rank must be above 0"), ({"lora": {"targets": []}}, "at least one"),
    ({"lora": {"targets": ["text"]}}, "attention, residual"), ({"init_from": None}, "name it as training.init_from"),
])
def test_what_cannot_be_adapted_is_told(base, changed, message):
    with pytest.raises(UserError, match=message):
        config(base, "none", **{"init_from": "base.safetensors", "lora": {"rank": 2}, **changed})


def test_a_network_without_attention_has_none_to_adapt():
    unet = build_unet(config_from_dict({"model": {**MODEL, "attention": "none"}}, "test").model)
    with pytest.raises(ValueError, match="no attention to adapt"):
        adapt(unet, 2, ("attention",), np.random.default_rng(0))
