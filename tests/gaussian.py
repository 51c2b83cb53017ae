"""Data whose best denoiser is a formula: independent pixels N(mean, variance), or a mixture of two such."""

import numpy as np
from mindspore import nn, ops

MEAN, VARIANCE = 0.2, 0.25


class GaussianDenoiser(nn.Cell):
    """The exact denoiser of pictures whose pixels are independent N(mean, variance): E[target | y_t]."""

    def __init__(self, prediction, mean=MEAN, variance=VARIANCE):
        super().__init__()
        self.prediction, self.mean, self.variance = prediction, mean, variance

    def construct(self, x, gamma):
        g = gamma.reshape((-1, 1, 1, 1))
        y_t = x[:, 3:]
        signal, noise = ops.sqrt(g), ops.sqrt(1 - g)
        gain = signal * self.variance / (g * self.variance + 1 - g)
        y_0 = self.mean + gain * (y_t - signal * self.mean)
        eps = (y_t - signal * y_0) / noise
        if self.prediction == "eps":
            return eps
        return signal * eps - noise * y_0 if self.prediction == "v" else y_0


def gaussian_answer(gamma):
    """(gain, offset) of the same denoiser in float64: ŷ₀ = gain · y + offset."""
    gain = np.sqrt(gamma) * VARIANCE / (gamma * VARIANCE + 1 - gamma)
    return gain, MEAN * (1 - gain * np.sqrt(gamma))


def mixture_answer(y, gamma, centres=(-0.6, 0.5), deviation=0.15):
    """ŷ₀ = E[y_0 | y] in float64 for y_0 drawn evenly from two Gaussians."""
    signal, variance = np.sqrt(gamma), gamma * deviation**2 + 1 - gamma
    logs = np.stack([-(y - signal * centre) ** 2 / (2 * variance) for centre in centres])
    weights = np.exp(logs - logs.max(0))
    means = np.stack([centre + signal * deviation**2 / variance * (y - signal * centre) for centre in centres])
    return (weights * means).sum(0) / weights.sum(0)


def run_calls(calls, gammas, y, answer):
    """The picture after a solver's calls, by NumPy in float64, without its last one and without noise.

    Args:
        answer: function (y, γ) → ŷ₀.
    """
    base, last, older = y, 0 * y, 0 * y
    for call in calls:
        y_0 = answer(y, gammas[call.level])
        parts = np.stack([y, base, y_0, last, older])
        y, base = (np.tensordot(weights[:5], parts, 1) for weights in (call.y, call.base))
        older, last = last, y_0
    return y


def even_levels(count, first=1e-3, last=0.999):
    """Noise levels evenly spaced in log-SNR, the noisiest first."""
    ends = [np.log(gamma / (1 - gamma)) for gamma in (first, last)]
    return 1 / (1 + np.exp(-np.linspace(*ends, count)))


def exact_ode(y, first, last):
    """The probability flow's end at level `last` from y at level `first`, in closed form for the Gaussian."""
    deviations = [np.sqrt(gamma * VARIANCE + 1 - gamma) for gamma in (first, last)]
    return np.sqrt(last) * MEAN + deviations[1] / deviations[0] * (y - np.sqrt(first) * MEAN)


def moments(calls, gammas, mean=0.0, variance=1.0):
    """Mean and variance after a solver's calls for the Gaussian, noise included: the calls are linear."""
    state, covariance = np.array([mean, mean, 0.0, 0.0]), np.zeros((4, 4))  # of y, base, last, older
    covariance[:2, :2] = variance
    for call in calls:
        gain, offset = gaussian_answer(gammas[call.level])
        y_0 = np.array([gain, 0, 0, 0])
        identity = np.eye(4)
        # Columns: y, base, last, older; the answer is gain · y + offset.
        parts = np.stack([identity[0], identity[1], y_0, identity[2], identity[3]])
        offsets = np.array([0, 0, offset, 0, 0])
        matrix = np.stack([call.y[:5] @ parts, call.base[:5] @ parts, y_0, identity[2]])
        state = matrix @ state + np.array([call.y[:5] @ offsets, call.base[:5] @ offsets, offset, 0])
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += call.y[5] ** 2
    return state[0], covariance[0, 0]
