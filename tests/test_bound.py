"""The bound on the likelihood and the losses by it: guided-diffusion's numbers, and theory on Gaussian data."""

import json

import mindspore as ms
import numpy as np
import pytest
from golden import DATA, load_arrays, relative_error
from mindspore import Tensor, nn, ops
from PIL import Image
from scipy.stats import norm

from palette_ms.checkpoint import build_unet
from palette_ms.config import config_from_dict
from palette_ms.diffusion.bound import LOG_SNR, BoundTerms, ContinuousLoss, SteppedLoss, bound, decoder_bits
from palette_ms.diffusion.schedule import make_gamma_schedule
from palette_ms.errors import UserError
from palette_ms.torch_weights.conversion import convert
from palette_ms.training.loop import Trainer
from palette_ms.training.step import TrainStep, Trapezoid


@pytest.fixture(scope="module")
def arrays():
    return load_arrays("likelihood.npz")


@pytest.fixture(scope="module")
def adm(arrays, tmp_path_factory):
    """guided-diffusion's network."""
    path = tmp_path_factory.mktemp("adm") / "adm.json"
    path.write_text(str(arrays["config"]))
    converted = convert(DATA / "adm_unet.pth", "adm", str(path))
    ms.set_context(mode=ms.GRAPH_MODE)  # which a module's fixtures would come before
    unet = build_unet(converted.config.model).set_train(False)
    for name, parameter in unet.parameters_and_names():
        parameter.set_data(Tensor(converted.weights[name]))
    return unet


GAMMAS = make_gamma_schedule("linear", 1000, 1e-4, 0.02)


def test_the_bound_and_its_terms_are_guided_diffusions(adm, arrays):
    kept = np.array(json.loads(str(arrays["timesteps"])))
    noise = arrays["bound_noise"]
    found = bound(adm, arrays["x0"], None, lambda step: noise[len(kept) - 1 - step], GAMMAS[kept], kept,
                  BoundTerms(GAMMAS[kept], variance="learned_range", clip=True))
    for ours, theirs in (("total", "total_bpd"), ("terms", "vb"), ("y_0_error", "xstart_mse"), ("eps_error", "mse")):
        assert relative_error(found[ours], arrays[f"bound_{theirs}"]) < 1e-4, ours
    assert relative_error(found["prior"], arrays["bound_prior_bpd"]) < 1e-2  # theirs is what float32 leaves of 1


class Said(nn.Cell):
    """Stands for a network, whose output is known."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def construct(self, x, time):
        return self.output


def test_the_losses_are_guided_diffusions(adm, arrays):
    level = GAMMAS[arrays["loss_t"]].reshape(-1, 1, 1, 1)
    y_t = np.sqrt(level) * arrays["x0"] + np.sqrt(1 - level) * arrays["loss_noise"]
    output = adm(Tensor(y_t.astype(np.float32)), Tensor(arrays["loss_t"].astype(np.float32)))
    for loss, name in (("l2", "mse"), ("hybrid", "hybrid"), ("vlb", "kl")):
        made = SteppedLoss(Said(output), GAMMAS, loss, tells_step=True)(
            *map(Tensor, (arrays["x0"], arrays["x0"], arrays["loss_noise"], arrays["loss_t"].astype(np.int32))))
        assert float(made.asnumpy()) == pytest.approx(arrays[f"loss_{name}"].mean(), rel=1e-4), loss


def test_five_steps_of_the_hybrid_loss_are_guided_diffusions(adm, arrays):
    step = TrainStep(SteppedLoss(adm, GAMMAS, tells_step=True), nn.Adam(adm.trainable_params(), Trapezoid(1e-4, 0)),
                     [p.clone() for p in adm.trainable_params()], max_grad_norm=0)
    losses = [float(step(Tensor(arrays["x0"]), None, Tensor(noise), Tensor(t.astype(np.int32)))[0].asnumpy())
              for noise, t in zip(arrays["train_noise"], arrays["train_t"])]
    np.testing.assert_allclose(losses, arrays["train_losses"], rtol=1e-4)


VARIANCE = 0.09  # of the data, Gaussian around 0


class Exact(nn.Cell):
    """ε̂ of Gaussian data, E[ε | y_t], times a factor."""

    def __init__(self, factor=1.0, learned=False):
        super().__init__()
        self.factor, self.learned = factor, learned

    def construct(self, y, gamma):
        level = gamma.reshape((-1, 1, 1, 1))
        eps = self.factor * ops.sqrt(1 - level) / (1 - level + VARIANCE * level) * y
        return ops.concat((eps, ops.ones_like(eps)), 1) if self.learned else eps


def gaussian(count, seed=0):
    rng = np.random.default_rng(seed)
    y_0 = np.clip(np.round(255 * (VARIANCE**0.5 * rng.standard_normal((count, 3, 16, 16)) + 1) / 2), 0, 255) / 127.5 - 1
    return y_0.astype(np.float32)


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_the_bound_of_the_exact_denoiser_is_what_theory_says(variance):
    y_0, rng, gammas = gaussian(8), np.random.default_rng(1), GAMMAS[::10]
    found = bound(Exact(), y_0, None, lambda _: rng.standard_normal(y_0.shape, np.float32), gammas, gammas,
                  BoundTerms(gammas, variance=variance))
    # ŷ₀ is off by so much, and the mean of p by the share that ŷ₀ has in it.
    off, before = VARIANCE * (1 - gammas) / (1 - gammas + VARIANCE * gammas), np.append(1, gammas[:-1])
    beta = 1 - gammas / before
    true = beta * (1 - before) / (1 - gammas)
    true[0] = true[1]
    said = np.append(true[0], beta[1:]) if variance == "beta" else true
    terms = 0.5 * (np.log(said / true) - 1 + true / said + (beta**2 * before / (1 - gammas) ** 2 * off) / said)
    error = np.linspace(-8, 8, 4001) * off[0] ** 0.5
    bins = norm.cdf(error + 1 / 255, scale=said[0]**0.5) - norm.cdf(error - 1 / 255, scale=said[0]**0.5)
    weights = norm.pdf(error, scale=off[0]**0.5)
    terms[0] = -(weights * np.log(np.maximum(bins, 1e-12))).sum() / weights.sum()
    np.testing.assert_allclose(found["terms"].mean(0), terms[::-1] / np.log(2), rtol=0.1)  # by chance
    assert found["total"].mean() == pytest.approx(terms.sum() / np.log(2), rel=0.02)


def test_outside_the_mask_nothing_counts():
    y_0, gammas = gaussian(2), make_gamma_schedule("linear", 6, 0.01, 0.5)
    mask = np.zeros_like(y_0[:, :1])
    mask[:, :, 4:9, 3:12] = 1
    noise = np.random.default_rng(0).standard_normal((6, *y_0.shape), np.float32)
    other = np.where(mask > 0, y_0, -y_0)
    a, b = (bound(Exact(), y, None, noise.__getitem__, gammas, gammas, BoundTerms(gammas), mask) for y in (y_0, other))
    crop = np.s_[:, :, 4:9, 3:12]
    c = bound(Exact(), y_0[crop], None, lambda step: noise[step][crop], gammas, gammas, BoundTerms(gammas))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
        np.testing.assert_allclose(a[name], c[name], rtol=1e-4)


def estimate(loss, count=2, together=64):
    """The continuous bound, over as many times, evenly spread."""
    rng, times = np.random.default_rng(3), (np.arange(count * together) + 0.5) / (count * together)
    y_0, made = gaussian(together), []
    for t in times.reshape(together, count).T:
        noise = rng.standard_normal(y_0.shape, np.float32)
        made.append(loss(Tensor(y_0), None, Tensor(noise), Tensor(t.astype(np.float32))).asnumpy())
    return np.mean(made)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_continuous_bound_of_the_exact_denoiser_is_the_entropy_whatever_the_schedule(prediction):
    class Predicts(nn.Cell):
        def construct(self, y, gamma):
            level = gamma.reshape((-1, 1, 1, 1))
            eps = ops.sqrt(1 - level) / (1 - level + VARIANCE * level) * y
            if prediction == "eps":
                return eps
            y_0 = ops.sqrt(level) * VARIANCE / (1 - level + VARIANCE * level) * y
            return ops.sqrt(level) * eps - ops.sqrt(1 - level) * y_0 if prediction == "v" else y_0

    # ½ ∫ E (ε − ε̂)² dλ, in which (ε − ε̂)² is V e^λ/(1 + V e^λ)
    expected = 0.5 * np.log2(np.divide(*(1 + VARIANCE * np.exp(LOG_SNR))))
    loss = ContinuousLoss(Predicts(), prediction, rate=0)
    for schedule in (np.zeros(64), np.linspace(-1, 1.5, 64)):
        loss.schedule.set_data(Tensor(schedule.astype(np.float32)))
        assert estimate(loss) == pytest.approx(expected, rel=0.02)


def test_the_decoder_takes_what_the_noise_hides():
    y_0, gamma = gaussian(4).astype(np.float64), 0.999
    y_t = np.sqrt(gamma) * y_0 + np.sqrt(1 - gamma) * np.random.default_rng(0).standard_normal(y_0.shape)
    # The entropy of the noise, of deviation √((1−γ)/γ) beside the picture, less the logarithm of a bin's width.
    expected = 0.5 * np.log2(2 * np.pi * np.e * (1 - gamma) / gamma) - np.log2(2 / 255)
    assert decoder_bits(y_0, y_t, gamma).mean() == pytest.approx(expected, abs=0.03)
    assert decoder_bits(y_0, np.sqrt(1 - 1e-7) * y_0, 1 - 1e-7).max() < 1e-6


def test_the_schedule_learns_to_make_all_draws_alike():
    """The best density is in proportion to the error there (Kingma et al. 2021, section 5)."""
    loss, rng = ContinuousLoss(Exact(), bins=8, rate=0.2), np.random.default_rng(0)
    y_0 = gaussian(32)
    for _ in range(400):
        loss(Tensor(y_0), None, Tensor(rng.standard_normal(y_0.shape, np.float32)), Tensor(rng.random(32, np.float32)))
    shares = ops.softmax(loss.schedule.value(), 0).asnumpy()
    log_snr = np.linspace(*LOG_SNR, 8001)
    gamma = 1 / (1 + np.exp(-log_snr))
    error = VARIANCE * gamma / (1 - gamma + VARIANCE * gamma)  # E (ε − ε̂)²
    best = np.sqrt((error[:-1] ** 2).reshape(8, 1000).mean(1))
    np.testing.assert_allclose(shares, best / best.sum(), atol=0.02)


class Gain(nn.Cell):
    """A network of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = ms.Parameter(Tensor(np.float32([0.2])), name="weight")

    def construct(self, y, gamma):
        return self.weight * y


def test_network_and_schedule_learn_in_one_step():
    network, y_0 = Gain(), gaussian(8)
    loss = ContinuousLoss(network, bins=8, rate=0.1)
    step = TrainStep(loss, nn.Adam(network.trainable_params(), Trapezoid(0.01, 0)), [network.weight.clone()])
    rng, t = np.random.default_rng(0), Tensor((np.arange(8) / 8).astype(np.float32))
    losses = [float(step(Tensor(y_0), None, Tensor(rng.standard_normal(y_0.shape, np.float32)), t)[0].asnumpy())
              for _ in range(20)]
    assert losses[-1] < losses[0] and loss.schedule.asnumpy().std() > 0.1


@pytest.mark.parametrize("loss", ["hybrid", "vdm"])
def test_a_config_says_which_bound_is_trained_by_and_a_state_holds_the_schedule(loss, tmp_path):
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f"{i}.png")
    diffusion = {"loss": loss, "test_schedule": {"num_steps": 8}, "train_schedule": {"num_steps": 50}}
    if loss == "hybrid":
        diffusion.update(variance="learned_range", time_input="t")
    config = config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": []},
        "diffusion": diffusion, "tasks": [{"name": "colorization"}], "data": {"path": str(tmp_path), "image_size": 8},
        "training": {"output": str(tmp_path / "run"), "batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-3},
        "validation": {"every": 5, "metrics": ["psnr"]}}, "test")
    trainer = Trainer(config)
    batch = trainer.batches.batch(0)
    assert batch.gamma.dtype == (np.int32 if loss == "hybrid" else np.float32)
    value = trainer.step_cell.network(*(array if array is None else Tensor(array) for array in batch))
    assert np.isfinite(value.asnumpy())
    samples = [trainer.shown.sample(i, 0) for i in range(2)]
    found = trainer.validation.loss(samples, np.ones((2, 3, 8, 8), np.float32), 0.5)
    assert np.isfinite(found) and found > 0
    schedules = {name: array for name, array in trainer.optimizer_arrays().items() if name.endswith("schedule")}
    assert len(schedules) == (loss == "vdm") and all(array.any() for array in schedules.values())
    with pytest.raises(UserError, match="needs diffusion.variance: learned_range" if loss == "hybrid" else
                       "needs diffusion.time_input: gamma"):
        raw = config.to_dict()
        raw["diffusion"].update({"variance": "posterior"} if loss == "hybrid" else {"time_input": "t"})
        config_from_dict(raw, "test")
