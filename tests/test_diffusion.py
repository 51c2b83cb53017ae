"""Schedules, noise levels, loss and sampler against closed forms."""

import numpy as np
import pytest
from gaussian import GaussianDenoiser
from mindspore import Tensor, nn

from palette_ms.diffusion.loss import DiffusionLoss
from palette_ms.diffusion.preconditioning import PREDICTIONS
from palette_ms.diffusion.samplers import DDPMSampler, NoiseStream
from palette_ms.diffusion.schedule import SCHEDULES, draw_gammas, make_beta_schedule
from palette_ms.seeds import generator


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_float64_and_within_bounds(name):
    betas = make_beta_schedule(name, 50, 1e-4, 0.05)
    assert betas.dtype == np.float64 and betas.shape == (50,)
    assert (betas > 0).all() and (betas <= 1).all()
    assert (np.diff(betas) >= 0).all() or name == "resshift"  # whose second step adds more than its third


def test_unknown_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="'sigmoid'.*linear, quad"):
        make_beta_schedule("sigmoid", 10)


def test_training_noise_levels_are_piecewise_uniform_between_steps():
    betas = np.array([0.1, 0.5, 0.8])
    edges = np.append(1.0, np.cumprod(1 - betas))
    gammas = draw_gammas(np.random.default_rng(0), 60_000, betas)
    for upper, lower in zip(edges[:-1], edges[1:]):
        inside = gammas[(gammas > lower) & (gammas <= upper)]
        assert len(inside) == pytest.approx(20_000, rel=0.03)
        assert inside.mean() == pytest.approx((upper + lower) / 2, rel=0.02)
        assert inside.std() == pytest.approx((upper - lower) / np.sqrt(12), rel=0.03)


def test_cosine_noise_levels_follow_their_closed_form():
    gammas = np.sort(draw_gammas(np.random.default_rng(0), 20_000))
    quantiles = np.cos(np.pi * (1 - (np.arange(20_000) + 0.5) / 20_000) / 2) ** 2
    assert np.abs(gammas - quantiles).max() < 0.02


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_loss_of_the_wrong_answer_zero_is_the_size_of_the_target(prediction, kind):
    class Zero(nn.Cell):
        def construct(self, x, gamma):
            return x[:, 3:] * 0

    y_0, noise, gamma = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), np.array([0.3, 0.8], np.float32)
    mask = (normal(2, 1, 4, 4, seed=2) > 0).astype(np.float32)
    g = gamma[:, None, None, None]
    target = {"eps": noise, "v": np.sqrt(g) * noise - np.sqrt(1 - g) * y_0, "x0": y_0}[prediction]
    size = np.abs if kind == "l1" else np.square
    cell = DiffusionLoss(Zero(), kind, prediction)
    inputs = [Tensor(a) for a in (y_0, y_0, noise, gamma)]
    assert float(cell(*inputs).asnumpy()) == pytest.approx(size(target).mean(), rel=1e-5)
    assert float(cell(*inputs, Tensor(mask)).asnumpy()) == pytest.approx(size(target * mask).mean(), rel=1e-5)


def test_masked_loss_shows_known_pixels_clean():
    class Look(nn.Cell):
        def construct(self, x, gamma):
            return x[:, 3:]

    y_0, mask = normal(1, 3, 4, 4), np.zeros((1, 1, 4, 4), np.float32)
    mask[..., :2] = 1
    gamma = np.array([0.5], np.float32)
    # x0-prediction of what it sees: in the hole the error is (√γ − 1) y_0 + √(1−γ) ε, outside it is not counted
    noise = normal(1, 3, 4, 4, seed=1)
    loss = DiffusionLoss(Look(), prediction="x0")(*map(Tensor, (y_0, y_0, noise, gamma, mask)))
    error = ((np.sqrt(0.5) - 1) * y_0 + np.sqrt(0.5) * noise)[..., :2]
    assert float(loss.asnumpy()) == pytest.approx((error**2).sum() / y_0.size, rel=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_chain_with_the_exact_denoiser_draws_from_the_data(prediction, variance):
    """Gaussian data: the mean and variance of the chain's result follow from its linear recursion."""
    betas = make_beta_schedule("linear", 60, 1e-3, 0.2)
    sampler = DDPMSampler(GaussianDenoiser(prediction), betas, variance, clip=False, prediction=prediction)
    y = sampler(np.zeros((8, 3, 32, 32), np.float32), normal(8, 3, 32, 32), seed=1).asnumpy()
    mean, var = 0.0, 1.0
    gammas = np.cumprod(1 - betas)
    for t in reversed(range(60)):
        g, previous = gammas[t], gammas[t - 1] if t else 1.0
        gain = np.sqrt(g) * 0.25 / (g * 0.25 + 1 - g)
        a, b = betas[t] * np.sqrt(previous) / (1 - g), (1 - previous) * np.sqrt(1 - betas[t]) / (1 - g)
        added = 0 if t == 0 else betas[t] * ((1 - previous) / (1 - g) if variance == "posterior" else 1)
        mean, var = a * (0.2 + gain * (mean - np.sqrt(g) * 0.2)) + b * mean, (a * gain + b) ** 2 * var + added
    # 24 576 draws: the standard error of the mean is 0.003, of the variance 1 %
    assert y.mean() == pytest.approx(mean, abs=0.012)
    assert y.var() == pytest.approx(var, rel=0.04)


def test_clipping_keeps_the_result_in_range():
    betas = make_beta_schedule("linear", 10, 1e-3, 0.5)
    wild = GaussianDenoiser("x0", mean=3.0)
    y_T, cond = normal(1, 3, 8, 8), np.zeros((1, 3, 8, 8), np.float32)
    assert np.abs(DDPMSampler(wild, betas, prediction="x0")(cond, y_T).asnumpy()).max() <= 1 + 1e-6
    assert np.abs(DDPMSampler(wild, betas, clip=False, prediction="x0")(cond, y_T).asnumpy()).max() > 2


def test_chain_in_blocks_equals_single_steps_and_reports_all_of_them(monkeypatch):
    betas = make_beta_schedule("linear", 23, 1e-3, 0.3)
    sampler = DDPMSampler(GaussianDenoiser("eps"), betas)
    cond, y_t = Tensor(np.zeros((2, 3, 8, 8), np.float32)), Tensor(normal(2, 3, 8, 8))
    mask, y_0 = np.zeros((2, 1, 8, 8), np.float32), 0.5 * np.ones((2, 3, 8, 8), np.float32)
    mask[..., :3] = 1
    done = []
    whole = sampler(cond, y_t, seed=5, mask=mask, y_0=y_0, progress=done.append).asnumpy()
    assert sum(done) == 23 and len(done) > 3
    noise = NoiseStream(5, (2, 3, 8, 8))
    for t in reversed(range(23)):
        y_t = sampler.step(y_t, cond, t, Tensor(noise.draw()))
        y_t = Tensor(mask * y_t.asnumpy() + (1 - mask) * y_0)
    np.testing.assert_allclose(whole, y_t.asnumpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole[..., 3:], y_0[..., 3:])


def test_a_pictures_noise_does_not_depend_on_its_batch():
    two, one = NoiseStream(3, (2, 3, 4, 4)), NoiseStream(3, (1, 3, 4, 4))
    for _ in range(3):
        a, b = two.draw(), one.draw()
        np.testing.assert_array_equal(a[:1], b)
        assert np.abs(a[0] - a[1]).max() > 0.1
    assert np.abs(NoiseStream(4, (1, 3, 4, 4)).draw() - NoiseStream(3, (1, 3, 4, 4)).draw()).max() > 0.1


def test_a_mask_needs_the_known_pixels():
    sampler = DDPMSampler(GaussianDenoiser("eps"), make_beta_schedule("linear", 3, 1e-3, 0.3))
    with pytest.raises(ValueError, match="y_0"):
        sampler(normal(1, 3, 4, 4), normal(1, 3, 4, 4), mask=np.ones((1, 1, 4, 4), np.float32))


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="l1, l2"):
        DiffusionLoss(nn.Identity(), loss="huber")
    with pytest.raises(ValueError, match="eps, v, x0"):
        DiffusionLoss(nn.Identity(), prediction="score")
    with pytest.raises(ValueError, match="posterior, beta"):
        DDPMSampler(nn.Identity(), np.array([0.1]), variance="learned")


def test_streams_of_one_seed_are_independent():
    draws = np.stack([generator(0, purpose, *key).standard_normal(4000)
                      for purpose in ("noise", "start") for key in ((), (0,), (1,), (0, 1), (1, 0))])
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < 0.08  # five standard errors
    np.testing.assert_array_equal(generator(5, "noise", 2).random(3), generator(5, "noise", 2).random(3))
