"""Network, loss and chains give the PyTorch Palette port's numbers: in graph mode, in PyNative mode and, but for the
loss, in the other runtimes."""

import functools

import numpy as np
import pytest
from golden import DATA, golden_network, golden_unet, load_arrays, relative_error
from mindspore import Tensor

from palette_ms.diffusion.loss import DiffusionLoss
from palette_ms.diffusion.samplers import DDPMSampler
from palette_ms.diffusion.schedule import SCHEDULES, make_beta_schedule
from palette_ms.unet.runtimes import Network


@pytest.fixture(scope="module")
def arrays():
    return load_arrays("palette_unet.npz")


@pytest.fixture(scope="module")
def unet():
    return golden_unet()


@functools.cache
def in_runtime(name):
    """The port's network in another runtime."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    converted = golden_network()
    return Network(converted.config.model, converted.weights, name)


@pytest.fixture(params=["graph", "onnx", "openvino"])
def network(request, unet):
    """The port's network, to be called as each runtime does."""
    return unet if request.param == "graph" else in_runtime(request.param)


class FixedNoise:
    """Stands in for the sampler's noise: chain_noise[t] is added at step t."""

    def __init__(self, chain_noise):
        self.noises = iter(chain_noise[-2::-1])

    def draw(self):
        return next(self.noises)


def run_chain(unet, arrays, monkeypatch, mask=None, y_0=None, **kwargs):
    monkeypatch.setattr("palette_ms.diffusion.samplers.NoiseStream", lambda *_: FixedNoise(arrays["chain_noise"]))
    sampler = DDPMSampler(unet, arrays["chain_betas"], **kwargs)
    return sampler(arrays["cond"], arrays["chain_noise"][-1], mask=mask, y_0=y_0)


def test_network_output_equals_the_port(unet, arrays, both_modes):
    output = unet(Tensor(arrays["x"]), Tensor(arrays["gamma"]))
    assert relative_error(output, arrays["unet_out"]) < 1e-5


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_network_output_in_other_runtimes_equals_the_port(name, arrays):
    assert relative_error(in_runtime(name)(arrays["x"], arrays["gamma"]), arrays["unet_out"]) < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_loss_equals_the_port(unet, arrays, both_modes, masked):
    names = ["y0", "cond", "noise", "gamma"] + ["mask"] * masked
    loss = DiffusionLoss(unet)(*(Tensor(arrays[name]) for name in names))
    expected = arrays["loss_mask" if masked else "loss_nomask"]
    assert abs(float(loss.asnumpy()) - expected) < 1e-5 * expected


def test_posterior_chain_equals_the_port(network, arrays, monkeypatch):
    y_0 = run_chain(network, arrays, monkeypatch)
    assert relative_error(y_0, arrays["chain_nomask"]) < 1e-3


def test_masked_chain_equals_the_port(network, arrays, monkeypatch):
    y_0 = run_chain(network, arrays, monkeypatch, mask=arrays["mask"], y_0=arrays["y0"])
    assert relative_error(y_0, arrays["chain_mask"]) < 1e-3


def test_algorithm_2_without_clipping_equals_the_paper(network, arrays, monkeypatch):
    y_0 = run_chain(network, arrays, monkeypatch, variance="beta", clip=False)
    assert relative_error(y_0, arrays["chain_algorithm2"]) < 1e-3


def test_single_steps_make_the_chain(unet, arrays, both_modes):
    sampler = DDPMSampler(unet, arrays["chain_betas"])
    noise = arrays["chain_noise"]
    y_t = Tensor(noise[-1])
    for t in reversed(range(len(arrays["chain_betas"]))):
        y_t = sampler.step(y_t, Tensor(arrays["cond"]), t, Tensor(noise[t]))
    assert relative_error(y_t, arrays["chain_nomask"]) < 1e-3


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"resshift", "i2sb"}))  # which test_preconditioning.py has
@pytest.mark.parametrize("num_steps", [1000, 2000])
def test_schedule_equals_the_port(name, num_steps):
    with np.load(DATA / "schedules.npz") as expected:
        # atol: cosine's β are 1 minus a ratio near 1, so their last bit is that of 1.
        np.testing.assert_allclose(
            make_beta_schedule(name, num_steps), expected[f"{name}_{num_steps}"], rtol=1e-12, atol=5e-16)


def test_paper_schedules_equal_the_port():
    with np.load(DATA / "schedules.npz") as expected:
        train = make_beta_schedule("linear", 2000, 1e-6, 0.01)
        test = make_beta_schedule("linear", 1000, 1e-4, 0.09)
        np.testing.assert_allclose(train, expected["palette_train_linear_2000"], rtol=1e-12)
        np.testing.assert_allclose(test, expected["palette_test_linear_1000"], rtol=1e-12)
