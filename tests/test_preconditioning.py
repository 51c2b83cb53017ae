"""What the process scales, shifts and tells around the network, against closed forms."""

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from palette_ms.config import DiffusionConfig
from palette_ms.diffusion.cells import Preconditioned, precondition
from palette_ms.diffusion.preconditioning import (
    PREDICTIONS,
    SOURCE_STD,
    target,
    y_0_coefficients,
)
from palette_ms.diffusion.process import KAPPA, SPREAD, eta, scale
from palette_ms.diffusion.schedule import make_gamma_schedule
from palette_ms.diffusion.solvers import NOISE, Y_0, Y, ddpm, resshift
from palette_ms.unet import UNet
from palette_ms.unet.layers import DROPOUT_MODULUS
from palette_ms.unet.unet import DeepFeatures, FinestLevel

TINY = dict(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_head_channels=8,
            norm_groups=4)
GAMMAS = np.array([1e-6, 0.2, 0.9, 0.999], np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def randomize(cell):
    for i, parameter in enumerate(cell.get_parameters()):
        parameter.set_data(Tensor(0.3 * normal(*parameter.shape, seed=[0, i])))
    return cell


class Recorder(nn.Cell):
    """Says what it sees of y_t plus what it is told, and as its deep features all that it sees."""

    out_channels = 2

    def answer(self, x, gamma, label=None, dropout=None, deep=None, text=None, source_noise=None):
        return x[:, 2:] + gamma.reshape((-1, 1, 1, 1)), x


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_who_says_the_target_has_said_the_picture(prediction):
    y_0, noise, gammas = normal(3, 2, 4, 4).astype(float), normal(3, 2, 4, 4, seed=1), np.array([0.02, 0.5, 0.98])
    level = gammas.reshape(-1, 1, 1, 1)
    signal_rate, noise_rate = np.sqrt(level), np.sqrt(1 - level)
    said = target(prediction, y_0, noise, signal_rate, noise_rate)
    c_skip, c_out = (c.reshape(-1, 1, 1, 1) for c in y_0_coefficients(prediction, gammas))
    np.testing.assert_allclose(c_skip * (signal_rate * y_0 + noise_rate * noise) + c_out * said, y_0, atol=1e-12)


def test_coefficients_are_those_of_the_published_table():
    """Karras et al. 2022, table 1, are for x = y_t/√γ = y₀ + σ ε, σ² = (1 − γ)/γ: with VP, c_skip = 1, c_out = −σ."""
    gammas = np.array([1e-4, 0.3, 0.999])
    sigma = np.sqrt((1 - gammas) / gammas)
    c_skip, c_out = y_0_coefficients("eps", gammas)
    np.testing.assert_allclose([c_skip * np.sqrt(gammas), c_out], [np.ones(3), -sigma])
    # Salimans & Ho 2022: with α = cos φ and σ = sin φ, v turns (y_t, v̂) by −φ into (ŷ₀, ε̂).
    angle = np.arctan(sigma)
    np.testing.assert_allclose(y_0_coefficients("v", gammas), [np.cos(angle), -np.sin(angle)])


def test_from_source_the_network_sees_and_says_the_distance_to_the_source(both_modes):
    source, y_t = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1)
    x = np.concatenate([source, y_t], 1)
    new = Preconditioned(UNet(**TINY), from_source=True)
    np.testing.assert_array_equal(new(Tensor(x), Tensor(GAMMAS)).asnumpy(), source)
    # y₀ ~ N(source, s²), y_t = √γ y₀ + √(1−γ) ε: precisions add
    level = GAMMAS.astype(float).reshape(-1, 1, 1, 1)
    mean = ((source / SOURCE_STD**2 + np.sqrt(level) * y_t / (1 - level))
            / (1 / SOURCE_STD**2 + level / (1 - level)))
    seen = np.concatenate([source, (mean - source) / SOURCE_STD], 1).astype(np.float32)
    network = randomize(UNet(**TINY))
    said = network(Tensor(seen), Tensor(GAMMAS)).asnumpy()
    output = Preconditioned(network, from_source=True)(Tensor(x), Tensor(GAMMAS)).asnumpy()
    np.testing.assert_allclose(output, source + SOURCE_STD * said, atol=2e-3)


def test_source_and_picture_may_have_any_number_of_channels():
    x = normal(4, 4, 2, 2)
    output, seen = Preconditioned(Recorder(), from_source=True).answer(Tensor(x), Tensor(GAMMAS))
    level = GAMMAS.astype(float).reshape(-1, 1, 1, 1)
    c_in = np.sqrt(level) * SOURCE_STD / (level * SOURCE_STD**2 + 1 - level)
    distance = c_in * (x[:, 2:] - np.sqrt(level) * x[:, :2])
    np.testing.assert_allclose(seen.asnumpy(), np.concatenate([x[:, :2], distance], 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.asnumpy(), x[:, :2] + SOURCE_STD * (distance + level), rtol=1e-4, atol=1e-5)


# Processes from the source to the picture, by their papers' own formulas. `share` is η.


def variance(process, share):
    """ResShift's eq. 2, I2SB's eq. 11 with σ_t² = S η and σ̄_t² = S (1 − η)."""
    return KAPPA**2 * share if process == "resshift" else SPREAD * share * (1 - share)


def published_posterior(process, before, after, x, y_0, source):
    """Mean and variance of x at η `after` given that at `before`, y₀ and, of ResShift, the source."""
    if process == "resshift":  # its eqs. 6 and 7
        added = before - after
        return after / before * x + added / before * y_0, KAPPA**2 * after * added / before
    added = SPREAD * (before - after)  # I2SB's eq. 4: p(x_n | x_0, x_{n+1}), α_n² = ∫β from n to n + 1
    known = SPREAD * after
    return (added * y_0 + known * x) / (added + known), added * known / (added + known)


@pytest.mark.parametrize("process", ["resshift", "i2sb"])
def test_the_network_sees_the_state_of_the_process(process, both_modes):
    share = np.array([0.999, 0.7, 0.2, 0.001])
    gamma = (1 - share) ** 2 / ((1 - share) ** 2 + variance(process, share))
    np.testing.assert_allclose(eta(process, gamma), share, rtol=1e-9)
    y_0, source, noise = (normal(4, 2, 4, 4, seed=i).astype(float) for i in range(3))
    level, part = gamma.reshape(-1, 1, 1, 1), share.reshape(-1, 1, 1, 1)
    x_t = (1 - part) * y_0 + part * source + np.sqrt(variance(process, part)) * noise
    y_t = np.sqrt(level) * y_0 + np.sqrt(1 - level) * noise
    x = np.concatenate([source, y_t], 1).astype(np.float32)
    cell = Preconditioned(Recorder(), process=process)
    output, seen = cell.answer(Tensor(x), Tensor(gamma.astype(np.float32)))
    np.testing.assert_allclose(seen.asnumpy(), np.concatenate([source, x_t], 1), atol=2e-4)
    np.testing.assert_allclose(output.asnumpy(), x_t + level, atol=2e-4)


@pytest.mark.parametrize("process", ["resshift", "i2sb"])
def test_a_step_of_the_ancestral_chain_is_the_papers_in_its_coordinates(process):
    """With the state y = √γ source + (x − source)/k, whose noise is 1/k of the state's own."""
    shares = np.array([0.95, 0.5, 0.05])
    gammas = (1 - shares) ** 2 / ((1 - shares) ** 2 + variance(process, shares))
    y_0, source, x = 0.3, -0.6, 0.8
    calls = resshift(gammas) if process == "resshift" else ddpm(gammas)
    for call, before, after, gamma, following in zip(calls, shares, shares[1:], gammas, gammas[1:]):
        y = np.sqrt(gamma) * source + (x - source) / scale(process, gamma)
        mean = call.y @ Y * y + call.y @ Y_0 * y_0
        k = scale(process, following)
        ours = source + k * (mean - np.sqrt(following) * source), (k * (call.y @ NOISE)) ** 2
        np.testing.assert_allclose(ours, published_posterior(process, before, after, x, y_0, source), rtol=1e-9)


def test_i2sb_begins_at_the_source_itself_and_resshift_with_noise_around_it():
    x, gamma = normal(1, 4, 8, 8), np.array([0], np.float32)
    for process, deviation in (("i2sb", 0), ("resshift", KAPPA)):
        _, seen = Preconditioned(Recorder(), process=process).answer(Tensor(x), Tensor(gamma))
        np.testing.assert_allclose(seen.asnumpy()[:, 2:], x[:, :2] + deviation * x[:, 2:], rtol=1e-5)


def test_the_schedules_of_the_processes_are_their_papers():
    shares = eta("resshift", make_gamma_schedule("resshift", 15))
    # its eq. 5: √η₁ = 0.04/κ = 0.02, η_T = 0.999, and between them a geometric row with exponents ((t−1)/(T−1))^0.3
    t = np.arange(15)
    np.testing.assert_allclose(np.sqrt(shares), 0.02 * (np.sqrt(0.999) / 0.02) ** ((t / 14) ** 0.3), rtol=1e-9)
    shares = eta("i2sb", make_gamma_schedule("i2sb", 1000))
    ends = np.linspace(1e-4**0.5, (0.3 / 1000) ** 0.5, 1000)[:500] ** 2  # its β of half the steps, then backwards
    betas = np.concatenate([ends, ends[::-1]])
    np.testing.assert_allclose(shares, betas.cumsum() / betas.sum(), atol=1e-3)
    assert betas.sum() == pytest.approx(SPREAD, rel=2e-3)


def test_the_angle_of_the_noise_level_is_what_the_network_is_told():
    gamma = np.array([0.04, 0.5, 1], np.float32)
    told, seen = Preconditioned(Recorder(), noise_input="angle").answer(Tensor(np.zeros((3, 4, 1, 1), np.float32)),
                                                                        Tensor(gamma))
    angle = 1000 * np.arccos(np.sqrt(gamma.astype(float))) / (np.pi / 2)
    np.testing.assert_allclose(told.asnumpy()[:, 0, 0, 0], angle, rtol=1e-5, atol=1e-2)
    np.testing.assert_array_equal(seen.asnumpy(), 0)


def test_where_there_is_nothing_to_do_the_network_itself_is_called():
    network = UNet(**TINY)
    assert precondition(network, DiffusionConfig()) is network
    made = precondition(network, DiffusionConfig(prediction="x0", from_source=True, noise_input="angle"))
    assert (made.network, made.from_source, made.tells_angle) == (network, True, True)


def test_labels_dropout_and_deep_features_pass_through():
    network = randomize(UNet(**TINY, num_classes=2, dropout=0.5))
    unet, x, gamma = Preconditioned(network, True, "angle"), Tensor(normal(1, 6, 8, 8)), Tensor(GAMMAS[1:2])
    one, other = (Tensor(np.array([label], np.int32)) for label in (0, 1))
    numbers = Tensor(np.random.default_rng(0).integers(1, DROPOUT_MODULUS, (1, network.dropout_numbers(8, 8)))
                     .astype(np.float32))
    output, deep = DeepFeatures(unet)(x, gamma, one)
    for changed in ((x, gamma, other), (x, gamma, one, numbers)):
        assert np.abs((unet(*changed) - output).asnumpy()).max() > 1e-3
    np.testing.assert_allclose(FinestLevel(unet)(deep, x, gamma, one).asnumpy(), output.asnumpy(), rtol=1e-5, atol=1e-6)
    assert np.abs((FinestLevel(unet)(ops.zeros_like(deep), x, gamma, one) - output).asnumpy()).max() > 1e-3
