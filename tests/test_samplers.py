"""Every sampler against the exact solution of problems that have one; and what chains are told besides."""

import numpy as np
import pytest
from gaussian import (
    MEAN,
    VARIANCE,
    GaussianDenoiser,
    even_levels,
    exact_ode,
    gaussian_answer,
    mixture_answer,
    moments,
    run_calls,
)
from mindspore import Tensor, nn, ops
from scipy.integrate import solve_ivp

from palette_ms.config import DiffusionConfig, ScheduleConfig
from palette_ms.diffusion.cells import CompiledChain, FlippedUNet, GuidedUNet, Update
from palette_ms.diffusion.denoisers import flipped, guided, on_arrays
from palette_ms.diffusion.samplers import Chain, Sampling, create_chain, create_sampler
from palette_ms.diffusion.schedule import SPACINGS, evenly_spaced, make_beta_schedule, place_steps
from palette_ms.diffusion.solvers import NOISE, SOLVERS, ddim, ddpm, dpmpp_2m_sde

# Of the samplers without noise.
ORDERS = {"ddim": 1, "dpmpp_2m": 2, "heun": 2, "unipc": 3}
DIFFUSION = DiffusionConfig(prediction="x0", clip=False,
                            test_schedule=ScheduleConfig("linear", 200, start=1e-4, end=0.06))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def gaussian(y, gamma):
    gain, offset = gaussian_answer(gamma)
    return gain * y + offset


def make(unet, diffusion=DIFFUSION, **sampling):
    sampling = Sampling(**sampling)
    return create_sampler(create_chain(unet, diffusion, sampling), diffusion, sampling)


@pytest.fixture(scope="module")
def chain():
    """With the exact denoiser: compiled once for a shape, whatever the sampler."""
    return CompiledChain(GaussianDenoiser("x0"), clip=False)


# The solvers, in float64


@pytest.mark.parametrize("name, order", ORDERS.items())
def test_the_error_falls_with_the_order_that_the_sampler_claims(name, order):
    errors = []
    for count in (40, 80, 160):
        gammas = even_levels(count + 1)
        y = run_calls(SOLVERS[name].calls(gammas), gammas, np.array(1.3), gaussian)
        errors.append(abs(y - exact_ode(1.3, gammas[0], gammas[-1])))
    observed = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(observed - order).max() < 0.1, observed


@pytest.mark.parametrize("name", ORDERS)
def test_the_flow_of_a_mixture_is_that_of_a_library_integrator(name):
    """Two Gaussians: the denoiser is not linear, and there is no closed form. Compared in x = y/α over s = σ/α."""
    gammas = even_levels(321, 1e-2, 0.99)
    start = np.linspace(-2.5, 2.5, 11)
    s = np.sqrt(1 / gammas - 1)

    def slope(s, x):
        gamma = 1 / (1 + s**2)
        return (x - mixture_answer(x * np.sqrt(gamma), gamma)) / s

    solution = solve_ivp(slope, (s[0], s[-1]), start / np.sqrt(gammas[0]), rtol=1e-10, atol=1e-12)
    expected = solution.y[:, -1] * np.sqrt(gammas[-1])
    y = run_calls(SOLVERS[name].calls(gammas), gammas, start, mixture_answer)
    # The first order's error at 320 calls was 0.012, the others' below 3e-4.
    assert np.abs(y - expected).max() < (0.03 if ORDERS[name] == 1 else 1e-3)


@pytest.mark.parametrize("calls, order", [(ddpm, 1), (lambda gammas: ddim(gammas, 0.5), 1), (dpmpp_2m_sde, 2)])
def test_samplers_with_noise_draw_from_the_data_in_the_limit(calls, order):
    """Mean and variance of the chain for Gaussian data, by its linear recursion."""
    errors = []
    for count in (200, 400, 800):
        gammas = even_levels(count + 1)
        # Started with the level's own moments, the exact chain keeps to those of every level.
        mean, variance = moments(calls(gammas), gammas, np.sqrt(gammas[0]) * MEAN, gammas[0] * VARIANCE + 1 - gammas[0])
        assert mean == pytest.approx(np.sqrt(gammas[-1]) * MEAN, abs=1e-12)  # all of them keep the mean
        errors.append(abs(variance - gammas[-1] * VARIANCE - 1 + gammas[-1]))
    observed = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(observed - order).max() < 0.1, observed


def test_ddim_with_eta_1_is_the_ancestral_chain():
    gammas = even_levels(12)
    for one, other in zip(ddim(gammas, 1.0), ddpm(gammas)):
        np.testing.assert_allclose(one.y, other.y, rtol=1e-9, atol=1e-12)


def test_samplers_without_noise_say_so():
    gammas = even_levels(5)
    quiet = {name for name, solver in SOLVERS.items() if not any(call.y @ NOISE for call in solver.calls(gammas))}
    assert quiet == set(ORDERS)


# The compiled chain


@pytest.mark.parametrize("name", SOLVERS)
def test_the_compiled_chain_does_what_the_solver_says(name, chain):
    sampler = create_sampler(chain, DIFFUSION, Sampling(name, 9))
    gammas = np.cumprod(1 - make_beta_schedule("linear", 200, 1e-4, 0.06))
    kept = place_steps(gammas, 5 if name == "heun" else 9, SOLVERS[name].spacing)[::-1]
    calls = SOLVERS[name].calls(gammas[kept])
    assert sampler.num_steps == 9 == len(calls) + 1
    start, cond = normal(2, 3, 8, 8), np.zeros((2, 3, 8, 8), np.float32)
    y = sampler(cond, start, seed=3).asnumpy()
    if any(call.y @ NOISE for call in calls):
        # Noise enters linearly: the mean over pixels of many draws is the chain without it.
        assert np.abs(y - sampler(cond, start, seed=4).asnumpy()).max() > 0.05
        np.testing.assert_array_equal(y, sampler(cond, start, seed=3).asnumpy())
        return
    expected = gaussian(run_calls(calls, gammas[kept], start.astype(float), gaussian), gammas[kept[-1]])
    np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde"])
def test_chains_with_noise_reach_the_moments_of_their_recursion(name, chain):
    sampler = create_sampler(chain, DIFFUSION, Sampling(name, 12))
    y = sampler(np.zeros((2, 3, 96, 96), np.float32), normal(2, 3, 96, 96), seed=1).asnumpy()
    gammas = np.cumprod(1 - make_beta_schedule("linear", 200, 1e-4, 0.06))
    gammas = gammas[place_steps(gammas, 12, SOLVERS[name].spacing)[::-1]]
    mean, variance = moments(SOLVERS[name].calls(gammas), gammas)
    gain, offset = gaussian_answer(gammas[-1])  # of the last call
    # 55 296 draws: the standard error of the mean is 0.002, of the variance 0.6 %
    assert y.mean() == pytest.approx(gain * mean + offset, abs=0.01)
    assert y.var() == pytest.approx(gain**2 * variance, rel=0.03)


@pytest.mark.parametrize("name", SOLVERS)
def test_known_pixels_come_back_and_do_not_depend_on_the_compiler(name, chain):
    mask, known = np.zeros((2, 1, 8, 8), np.float32), normal(2, 3, 8, 8, seed=5)
    mask[:, :, :4] = 1
    sampler = create_sampler(chain, DIFFUSION, Sampling(name, 5))
    arguments = np.zeros((2, 3, 8, 8), np.float32), normal(2, 3, 8, 8), 7, mask, known
    y = sampler(*arguments).asnumpy()
    np.testing.assert_array_equal(y[:, :, 4:], known[:, :, 4:])
    by_numpy = create_sampler(create_chain(on_arrays(GaussianDenoiser("x0")), DIFFUSION, Sampling()), DIFFUSION,
                              Sampling(name, 5))
    np.testing.assert_allclose(by_numpy(*arguments), y, atol=1e-5)


@pytest.mark.parametrize("dynamic, learned, stops", [(True, False, False), (False, True, False), (False, False, True)])
def test_every_kind_of_update_is_in_numpy_what_it_is_compiled(dynamic, learned, stops):
    y, base, last, older, noise = normal(5, 2, 3, 4, 4, seed=1)
    output = 2 * normal(2, 6 if learned else 3, 4, 4, seed=2)
    mask, known, finished = (normal(2, 1, 4, 4, seed=3) > 0).astype(np.float32), 0 * y, np.zeros((2, 1, 1, 1), y.dtype)
    row = normal(18, seed=4)
    row[-1] = np.sqrt(3 * np.mean((mask * (y - last)) ** 2))  # a movement between the two pictures'
    inputs = output, y, base, last, older, finished, mask, known, np.int32([[3], [7]]), noise, row
    made = Chain(None, True, dynamic, learned, stops).update(*inputs)
    compiled = Update(True, dynamic, learned, stops)(*map(Tensor, inputs))
    for array, tensor in zip(made, compiled):
        np.testing.assert_allclose(array, tensor.asnumpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "jsd"])
def test_three_calls_from_pure_noise_stay_finite_in_every_sampler(schedule, prediction):
    """Where γ is 0, or 6e-21 as at the end of the paper's chain, 1/√γ must not blow up."""
    diffusion = DiffusionConfig(prediction=prediction, test_schedule=ScheduleConfig(schedule, 1000, 1e-4, 0.09))
    chain = create_chain(GaussianDenoiser(prediction), diffusion, Sampling())
    for name in SOLVERS:
        for spacing in SPACINGS:
            sampler = create_sampler(chain, diffusion, Sampling(name, 3, spacing))
            y = sampler(np.zeros((1, 3, 4, 4), np.float32), normal(1, 3, 4, 4)).asnumpy()
            assert np.abs(y).max() <= 1 + 1e-6, (name, spacing)  # false for NaN


# Where the levels lie


def paper_gammas():
    return np.cumprod(1 - make_beta_schedule("linear", 1000, 1e-4, 0.09))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 400, 999, 1000])
def test_steps_are_distinct_and_reach_from_the_least_noisy_one_up(spacing, steps):
    gammas = paper_gammas()
    kept = place_steps(gammas, steps, spacing)
    assert len(kept) == steps and (np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] < 1000
    if steps > 1:
        assert kept[0] == 0
    hiding = np.sqrt(1 / gammas[kept[-1]] - 1)
    assert kept[-1] == 999 if spacing == "uniform" else steps > 300 or 75 < hiding <= 80


def test_steps_lie_where_their_formulas_say():
    gammas = paper_gammas()
    ratios = np.sqrt(1 / gammas - 1)
    top = int((ratios <= 80).sum()) - 1
    assert top < 500  # as the comment beside the limit says: more than half of the paper's steps are beyond
    ramp = np.linspace(0, 1, 12)
    karras = (ratios[0] ** (1 / 7) + ramp * (ratios[top] ** (1 / 7) - ratios[0] ** (1 / 7))) ** 7
    log_snr = ratios[0] * (ratios[top] / ratios[0]) ** ramp
    for spacing, wanted in (("karras", karras), ("log_snr", log_snr)):
        nearest = np.abs(np.log(ratios[:, None] / wanted)).argmin(0)
        # Near the clean end the paper's steps lie further apart than the formula asks for.
        np.testing.assert_allclose(place_steps(gammas, 12, spacing)[4:], nearest[4:], atol=1)
    np.testing.assert_allclose(place_steps(gammas, 12, "quadratic"), (ramp * np.sqrt(top)) ** 2, atol=3)
    np.testing.assert_array_equal(place_steps(gammas, 12), evenly_spaced(1000, 12))


# What else a chain is told


class Wide(nn.Cell):
    """ŷ₀ that goes far out of range."""

    def construct(self, x, gamma):
        return 3 * x[:, 3:]


@pytest.mark.parametrize("masked", [False, True])
def test_dynamic_threshold_is_the_quantile_over_the_hole(masked):
    y_T, y_0 = normal(2, 3, 8, 8), np.zeros((2, 3, 8, 8), np.float32)
    mask = np.ones((2, 1, 8, 8), np.float32)
    if masked:
        mask[0, :, :3] = 0
        mask[1, :, :, 5:] = 0
    sampler = make(Wide(), steps=1, dynamic_threshold=0.9)
    y = sampler(np.zeros_like(y_T), y_T, mask=mask, y_0=y_0).asnumpy()
    for k in range(2):
        where = np.broadcast_to(mask[k] > 0, y_T[k].shape)
        wanted = 3 * y_T[k][where]
        size = max(1, np.quantile(np.abs(wanted), 0.9, method="lower"))
        np.testing.assert_allclose(y[k][where], np.clip(wanted, -size, size) / size, rtol=1e-5)
    small = make(Wide(), steps=1, dynamic_threshold=0.5)(np.zeros_like(y_T), 0.01 * y_T).asnumpy()
    np.testing.assert_allclose(small, 0.03 * y_T, rtol=1e-5)  # within range nothing is stretched


def test_a_chain_below_the_top_starts_from_the_source_with_its_levels_noise():
    gammas = np.cumprod(1 - make_beta_schedule("linear", 200, 1e-4, 0.06))
    source, noise = normal(1, 3, 4, 4, seed=1), normal(1, 3, 4, 4, seed=2)
    for strength, top in ((0.5, 99), (0.25, 49), (0.001, 0)):
        sampler = make(Wide(), steps=1, strength=strength)
        expected = np.sqrt(gammas[top]) * source + np.sqrt(1 - gammas[top]) * noise
        np.testing.assert_allclose(sampler.start(source, noise), expected, rtol=1e-5, atol=1e-6)
    assert make(Wide(), strength=0.25).num_steps == 50
    with pytest.raises(ValueError, match="from 1 to 50"):
        make(Wide(), steps=51, strength=0.25)


class Settled(nn.Cell):
    """ŷ₀ moves with the noise level by as much as the source says, until γ = 0.8; from there on it stands still."""

    def construct(self, x, gamma):
        g = ops.minimum(gamma, ops.full_like(gamma, 0.8)).reshape((-1, 1, 1, 1))
        return x[:, :3] * g + 0 * x[:, 3:]


def test_a_chain_ends_once_its_answer_stands_still():
    cond = np.stack([np.full((3, 4, 4), 0.5, np.float32), np.full((3, 4, 4), 1e-4, np.float32)])
    sampler = make(Settled(), sampler="dpmpp_2m", steps=30, tolerance=1e-3)
    done = []
    y = sampler(cond, normal(2, 3, 4, 4), progress=done.append).asnumpy()
    np.testing.assert_allclose(y[0], 0.8 * cond[0], rtol=1e-4)
    assert 10 < sum(done) < 30
    # A picture's result does not depend on which others are in its batch; one that hardly moves is done at γ = 0.5.
    early = []
    alone = sampler(cond[1:], normal(2, 3, 4, 4)[1:], progress=early.append).asnumpy()
    assert sum(early) < sum(done)
    np.testing.assert_array_equal(alone[0], y[1])
    assert (y[1] > 0.45e-4).all() and (y[1] < 0.75e-4).all()
    whole = make(Settled(), sampler="dpmpp_2m", steps=30)
    done.clear()
    whole(cond, normal(2, 3, 4, 4), progress=done.append)
    assert sum(done) == 30


class Halves(nn.Cell):
    """Says source + 2 y_t, and with `learned` the source again as variance."""

    def __init__(self, learned):
        super().__init__()
        self.learned = learned

    def construct(self, x, gamma):
        output = x[:, :3] + 2 * x[:, 3:] + gamma.reshape((-1, 1, 1, 1))
        return ops.concat((output, x[:, :3]), 1) if self.learned else output


@pytest.mark.parametrize("learned", [False, True])
def test_guidance_goes_beyond_the_answer_with_the_source(learned):
    source, y_t, gamma = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), np.array([0.25, 0.5], np.float32)
    x = np.concatenate((source, y_t), 1)
    output = GuidedUNet(Halves(learned), 2.5)(Tensor(x), Tensor(gamma)).asnumpy()
    np.testing.assert_array_equal(guided(on_arrays(Halves(learned)), 2.5)(x, gamma), output)
    np.testing.assert_allclose(output[:, :3], 2.5 * source + 2 * y_t + gamma[:, None, None, None], rtol=1e-5, atol=1e-6)
    if learned:
        np.testing.assert_array_equal(output[:, 3:], source)


class Ramp(nn.Cell):
    """Says x plus a gradient from the upper left corner, which no mirror image has."""

    def construct(self, x, gamma):
        rows, columns = ops.arange(x.shape[2]).reshape((1, 1, -1, 1)), ops.arange(x.shape[3]).reshape((1, 1, 1, -1))
        return x[:, 3:] + rows + 10 * columns + gamma.reshape((-1, 1, 1, 1))


@pytest.mark.parametrize("count, row, column", [(2, None, 10 * 2.5), (4, 1.5, 10 * 2.5)])
def test_mirror_images_are_turned_back_before_the_mean(count, row, column):
    x, gamma = normal(2, 6, 4, 6), np.array([0.25, 0.5], np.float32)
    output = FlippedUNet(Ramp(), count)(Tensor(x), Tensor(gamma)).asnumpy()
    np.testing.assert_allclose(flipped(on_arrays(Ramp()), count)(x, gamma), output, rtol=1e-6)
    rows = np.arange(4)[:, None] if row is None else row  # the mean of a gradient and its mirror image
    np.testing.assert_allclose(output, x[:, 3:] + rows + column + gamma[:, None, None, None], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("options, message", [
    ({"sampler": "plms"}, "unknown sampler 'plms': ddpm, ddim"), ({"steps": 0}, "from 1 on"),
    ({"spacing": "even"}, "unknown spacing 'even': uniform"), ({"eta": 2.0, "sampler": "ddim"}, "from 0 to 1"),
    ({"eta": 0.5, "sampler": "heun"}, "ddim alone"), ({"dynamic_threshold": 99.5}, "share"),
    ({"strength": 0.0}, "strength"), ({"tolerance": -1.0}, "tolerance"), ({"guidance": 0.5}, "guidance"),
])
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
