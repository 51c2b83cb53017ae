"""The variational bound on the likelihood, in bits a value: its terms, and losses that hold a network to it.

    −log p(y₀) ≤ KL(q(y_T | y₀) ‖ N(0, 1)) + Σ_t KL(q(y_{t−1} | y_t, y₀) ‖ p(y_{t−1} | y_t)) − log p(y₀ | y_1)

(Ho et al. 2020, arXiv 2006.11239, eq. 5; Nichol & Dhariwal 2021, arXiv 2102.09672, eqs. 4 to 7.) Values are those of
8 bits in [−1, 1]. With infinitely many steps the sum becomes an integral over the log-SNR λ from λ_1 down to λ_0,

    ½ ∫ E ‖ε − ε̂‖² dλ                                                      λ = log(γ/(1−γ))

whatever the schedule in between (Kingma et al. 2021, arXiv 2107.00630, eq. 17).
"""

import math

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from palette_ms.diffusion.loss import denoiser_inputs
from palette_ms.diffusion.preconditioning import check_prediction, target, y_0_coefficients

_BITS = 1 / math.log(2)  # of a nat
_BIN = 1 / 255  # half the distance of two values
# Columns of a bound's table, by steps.
_A, _B, _OF_Y_0, _OF_Y, _POSTERIOR, _FIXED, _LARGEST = range(7)
LOG_SNR = 13.3, -5.0  # at both ends of the continuous process (Kingma et al. 2021, appendix H)


class BoundTerms(nn.Cell):
    """The bound's terms at whole steps, for each value.

    Args:
        gammas: (T,), the least noisy first.
        prediction: what the network says: "eps", "v" or "x0".
        variance: of p: "posterior", "beta" or "learned_range", as of `palette_ms.diffusion.solvers.ddpm`.
        clip: keep ŷ₀ in [−1, 1].

    Inputs: y_0 and y_t (N, C, H, W); the network's output, of a learned variance with 2 C channels; step (N,) int32.
    Output: bits (N, C, H, W), and ŷ₀ alike.
    """

    def __init__(self, gammas, prediction="eps", variance="posterior", clip=False):
        super().__init__()
        check_prediction(prediction)
        before = np.append(1.0, gammas[:-1])
        betas = 1 - gammas / before
        posterior = betas * (1 - before) / (1 - gammas)
        # At the first step the posterior has no variance; as in both papers' programs, the second's stands for it.
        posterior[0] = posterior[1] if len(gammas) > 1 else betas[0]
        fixed = np.append(posterior[0], betas[1:]) if variance == "beta" else posterior
        table = np.stack([*y_0_coefficients(prediction, gammas), betas * np.sqrt(before) / (1 - gammas),
                          (1 - before) * np.sqrt(1 - betas) / (1 - gammas), np.log(posterior), np.log(fixed),
                          np.log(betas)], 1)
        self.table = Tensor(table.astype(np.float32))
        self.learned, self.clip = variance == "learned_range", clip

    def construct(self, y_0, y_t, output, step):
        rows = ops.gather(self.table, step, 0)
        channels = y_0.shape[1]
        estimate = _column(rows, _A) * y_t + _column(rows, _B) * output[:, :channels]
        if self.clip:
            estimate = ops.clamp(estimate, -1.0, 1.0)
        log_variance = _column(rows, _FIXED) + ops.zeros_like(y_0)
        if self.learned:
            share = (output[:, channels:] + 1) / 2
            log_variance = share * _column(rows, _LARGEST) + (1 - share) * _column(rows, _POSTERIOR)
        own, of_y = _column(rows, _OF_Y_0), _column(rows, _OF_Y)
        difference, log_true = own * (y_0 - estimate), _column(rows, _POSTERIOR)
        kl = 0.5 * (log_variance - log_true - 1 + ops.exp(log_true - log_variance)
                    + difference * difference * ops.exp(-log_variance))
        mean = own * estimate + of_y * y_t
        first = (step == 0).reshape((-1, 1, 1, 1))
        nats = ops.where(first, -_log_of_bin(y_0, mean, 0.5 * log_variance), kl)
        return nats * _BITS, estimate


def _column(rows, number):
    return rows[:, number].reshape((-1, 1, 1, 1))


def _log_of_bin(y_0, mean, log_deviation):
    """log of the probability of y_0's bin of 8 bits, by a Gaussian whose first and last bin have no end."""
    centred, inverse = y_0 - mean, ops.exp(-log_deviation)
    above, below = _cdf(inverse * (centred + _BIN)), _cdf(inverse * (centred - _BIN))
    probability = ops.select(y_0 < -0.999, above, ops.select(y_0 > 0.999, 1 - below, above - below))
    return ops.log(ops.maximum(probability, Tensor(1e-12, mstype.float32)))


def _cdf(x):
    """Of the normal distribution, by tanh as in guided-diffusion, whose numbers are to be compared with."""
    x = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    # tanh by the sigmoid: MindSpore's is off by some of the last bits near −1 and 1, of which the difference is wanted.
    return 0.5 * (1 + ops.sign(x) * (1 - 2 * ops.sigmoid(-2 * ops.abs(x))))


class SteppedLoss(nn.Cell):
    """The loss at whole steps, for networks that are told the step or that learn their variance.

    Args:
        unet: as of `palette_ms.diffusion.loss.DiffusionLoss`; of a learned variance with twice the channels.
        gammas: (T,), the least noisy first.
        loss: "l2", the mean square error of what is predicted, alone; "hybrid", with T/1000 times the bound, through
            which the variance alone learns (Nichol & Dhariwal 2021, eq. 16); "vlb", T times the bound's term.
        prediction: "eps", "v" or "x0".
        variance: see `BoundTerms`.
        tells_step: the network is told the step, not γ.

    Inputs: those of `DiffusionLoss`, but for gamma, in whose place is the step (N,), int32, from 0.
    Output: the loss, a float32 scalar, the mean over all values.
    """

    def __init__(self, unet, gammas, loss="hybrid", prediction="eps", variance="learned_range", tells_step=False):
        super().__init__()
        self.unet = unet
        self.terms = None if loss == "l2" else BoundTerms(gammas, prediction, variance)
        self.prediction = prediction
        self.simple, self.share = loss != "vlb", len(gammas) * (1 if loss == "vlb" else 0.001)
        told = np.arange(len(gammas)) if tells_step else gammas
        self.levels, self.told = (Tensor(np.asarray(values, np.float32)) for values in (gammas, told))

    def construct(self, y_0, cond, noise, step, mask=None, label=None, weight=None, dropout=None, text=None,
                  source_noise=None):
        level = ops.gather(self.levels, step, 0).reshape((-1, 1, 1, 1))
        signal_rate, noise_rate = ops.sqrt(level), ops.sqrt(1 - level)
        y_t = signal_rate * y_0 + noise_rate * noise
        if mask is not None:
            y_t = mask * y_t + (1 - mask) * y_0
        output = self.unet(*denoiser_inputs(y_t, cond, ops.gather(self.told, step, 0), label, dropout, text,
                                             source_noise))
        channels = y_0.shape[1]
        loss = ops.zeros_like(y_0)
        if self.simple:
            error = output[:, :channels] - target(self.prediction, y_0, noise, signal_rate, noise_rate)
            loss = error * error
            output = ops.concat((ops.stop_gradient(output[:, :channels]), output[:, channels:]), 1)
        if self.terms is not None:
            loss = loss + self.share * self.terms(y_0, y_t, output, step)[0]
        if mask is not None:
            loss = loss * mask
        if weight is not None:
            loss = loss * weight.reshape((-1, 1, 1, 1))
        return ops.mean(loss)


class ContinuousLoss(nn.Cell):
    """The bound of infinitely many steps, in bits a value, with a schedule that is learned: VDM (Kingma et al. 2021).

    The bound does not depend on the schedule between its ends, but the variance of its estimate does (section 5), and
    that is what the schedule learns by. It is a histogram over the log-SNR, evenly from `LOG_SNR`[0] down to [1], of
    softmax(weights): with t uniform, λ of t is the inverse of its cumulative sum. With ℓ = ½ ‖ε − ε̂‖² / p(λ), the
    estimate, the gradient of E ℓ² is −E ℓ² ∇ log p(λ). It is followed in the forward pass, each step by `rate` times
    what it is for ℓ² over its mean; the paper learns a network of t by the same.

    Args:
        unet, prediction: as of `palette_ms.diffusion.loss.DiffusionLoss`.
        bins: of the histogram.
        rate: of its learning; 0: evenly distributed log-SNR.
        ranks: processes that train together, over which the gradient is averaged.

    Inputs: those of `DiffusionLoss`, but for gamma, in whose place is t (N,), uniform in [0, 1).
    Output: the loss, a float32 scalar, the mean over all values.
    """

    def __init__(self, unet, prediction="eps", bins=64, rate=0.01, ranks=1):
        super().__init__()
        check_prediction(prediction)
        self.unet, self.prediction, self.bins, self.rate = unet, prediction, bins, rate
        self.schedule = Parameter(Tensor(np.zeros(bins, np.float32)), name="schedule", requires_grad=False)
        self.width = (LOG_SNR[0] - LOG_SNR[1]) / bins
        self.sum = ops.AllReduce() if ranks > 1 else None
        self.ranks = ranks

    def draw(self, t):
        """(λ, p(λ), one-hot bins (N, bins)) of t (N,)."""
        shares = ops.softmax(self.schedule.value(), 0)
        ends = ops.cumsum(shares, 0)
        place = ops.sum((t.reshape((-1, 1)) >= ends[:self.bins - 1].reshape((1, -1))).astype(mstype.float32), 1)
        found = ops.cast(place.reshape((-1, 1)) == ops.arange(self.bins).reshape((1, -1)), mstype.float32)
        share, end = ops.sum(found * shares, 1), ops.sum(found * ends, 1)
        within = ops.clamp(1 - (end - t) / share, 0.0, 1.0)
        return LOG_SNR[0] - (place + within) * self.width, share / self.width, found

    def construct(self, y_0, cond, noise, t, mask=None, label=None, weight=None, dropout=None, text=None,
                  source_noise=None):
        log_snr, density, found = self.draw(t)
        gamma = ops.sigmoid(log_snr)
        level = gamma.reshape((-1, 1, 1, 1))
        # 1 − γ by its own sigmoid: rounding would leave little of it where the picture is hardly noisy.
        signal_rate, noise_rate = ops.sqrt(level), ops.sqrt(ops.sigmoid(-log_snr)).reshape((-1, 1, 1, 1))
        y_t = signal_rate * y_0 + noise_rate * noise
        if mask is not None:
            y_t = mask * y_t + (1 - mask) * y_0
        error = self.unet(*denoiser_inputs(y_t, cond, gamma, label, dropout, text, source_noise))
        error = error - target(self.prediction, y_0, noise, signal_rate, noise_rate)
        # The error of ε: it is (y_t − √γ y₀)/√(1−γ), and √γ v + √(1−γ) y_t.
        if self.prediction == "x0":
            error = error * signal_rate / noise_rate
        elif self.prediction == "v":
            error = error * signal_rate
        error = error * error
        if mask is not None:
            error = error * mask
        estimates = 0.5 * _BITS * ops.mean(error, (1, 2, 3)) / density
        if self.rate:
            squares = ops.stop_gradient(estimates * estimates)
            sums = ops.concat((ops.sum(squares.reshape((-1, 1)) * found, 0), ops.sum(squares).reshape((1,))))
            if self.sum is not None:
                sums = self.sum(sums)
            total = ops.maximum(sums[self.bins:], Tensor(1e-30, mstype.float32))
            # −∇E ℓ² over E ℓ²: each bin's share of the squares, less its share of the draws.
            moved = self.schedule.value() + self.rate * (sums[:self.bins] / total
                                                         - ops.softmax(self.schedule.value(), 0))
            moved = ops.select(ops.isfinite(moved), moved, self.schedule.value())
            estimates = ops.depend(estimates, ops.assign(self.schedule, ops.stop_gradient(moved)))
        if weight is not None:
            estimates = estimates * weight
        return ops.mean(estimates)


def prior_bits(y_0, gamma):
    """The bound's first term, for each value: KL(q(y_T | y₀) ‖ N(0, 1)), as y_0.

    Args:
        y_0: any shape.
        gamma: γ_T.
    """
    return 0.5 * _BITS * (gamma * np.square(y_0) - gamma - np.log1p(-gamma))


def bound(unet, y_0, cond, noise, gammas, told, terms, mask=None, progress=None):
    """The bound of some pictures, in bits for each value that is made.

    Args:
        unet: called as unet(source ‖ y_t, told (N,)).
        y_0, cond: (N, C, H, W), cond None without a source.
        noise: function of a step → (N, C, H, W).
        gammas: (T,), the least noisy first.
        told: (T,), what the network is told at each.
        terms: `BoundTerms` of them.
        mask: (N, 1, H, W), 1 where pixels are made, or None: everywhere.
        progress: called after each step, or None.

    Returns: dict of "total", "prior" (N,) and, for each step, the noisiest first, "terms", and "y_0_error" and
        "eps_error", the mean squares of ŷ₀ − y₀ and of ε̂ − ε, by ŷ₀, (N, T).
    """
    mask = np.ones_like(y_0[:, :1]) if mask is None else mask
    values = mask.sum((1, 2, 3)) * y_0.shape[1]

    def mean(array):
        return (np.asarray(array, np.float64) * mask).sum((1, 2, 3)) / values

    found = {"terms": [], "y_0_error": [], "eps_error": []}
    for step in reversed(range(len(gammas))):
        eps = noise(step)
        y_t = np.float32(np.sqrt(gammas[step])) * y_0 + np.float32(np.sqrt(1 - gammas[step])) * eps
        y_t = (mask * y_t + (1 - mask) * y_0).astype(np.float32)
        x = y_t if cond is None else np.concatenate([cond, y_t], 1)
        output = unet(Tensor(x), Tensor(np.full(len(y_0), told[step], np.float32)))
        bits, estimate = (part.asnumpy() for part in terms(
            Tensor(y_0), Tensor(y_t), output, Tensor(np.full(len(y_0), step, np.int32))))
        said = (y_t - np.sqrt(gammas[step]) * estimate) / np.sqrt(1 - gammas[step])
        for name, array in (("terms", bits), ("y_0_error", (estimate - y_0) ** 2), ("eps_error", (said - eps) ** 2)):
            found[name].append(mean(array))
        if progress:
            progress()
    found = {name: np.stack(arrays, 1) for name, arrays in found.items()}
    prior = mean(prior_bits(y_0, gammas[-1]))
    return {"total": prior + found["terms"].sum(1), "prior": prior, **found}


def decoder_bits(y_0, y_t, gamma):
    """−log₂ p(y₀ | y_t) of the least noisy picture of the continuous process, for each value: p is q(y_t | y₀) over all
    256 values that y₀ may have (Kingma et al. 2021, section 3).

    Args:
        y_0, y_t: alike, y_0 of 8-bit values.
        gamma: of y_t.
    """
    levels = np.linspace(-1, 1, 256)
    logits = -np.square(y_t[..., None] - np.sqrt(gamma) * levels) / (2 * (1 - gamma))
    own = -np.square(y_t - np.sqrt(gamma) * y_0) / (2 * (1 - gamma))
    most = logits.max(-1)
    return _BITS * (most + np.log(np.exp(logits - most[..., None]).sum(-1)) - own)
