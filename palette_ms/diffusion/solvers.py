"""Samplers as numbers: from the noise levels of a chain to what is done after each of its network calls, in float64.

A chain is a sequence of network calls. Each sees a picture y at a noise level γ and answers ŷ₀. What the next call
sees, y′, and a picture kept beside it, base′, are weighted sums of what is at hand:

    Y      the picture that the network saw
    BASE   the picture kept beside it
    Y_0    ŷ₀ of this call
    LAST   ŷ₀ of the call before
    OLDER  ŷ₀ of the call before that
    NOISE  fresh standard normal noise

A solver is a function from the levels γ (from the noisiest on, all below 1) to its calls. After the last level, every
chain ends with ŷ₀ itself: with no noise left, each of the formulas comes to that. α = √γ and σ = √(1 − γ) are the rates
of signal and noise, and λ = log(α/σ) is half the log-SNR.
"""

import math
from typing import Callable, List, NamedTuple

import numpy as np

from palette_ms.diffusion.process import eta

Y, BASE, Y_0, LAST, OLDER, NOISE = np.eye(6)

# γ is 6e-21 at the end of the paper's chain and 0 in jsd's; float32 can still hold the 1/√γ of this one.
LEAST_GAMMA = 1e-38


class Call(NamedTuple):
    """One network call and what follows.

    Attributes:
        level: index of the noise level that the network is called at.
        y: weights of what the next call sees, (6,).
        base: weights of the picture kept beside it, (6,), without noise.

    Examples:
        >>> Call(0, 0.5 * Y + 0.5 * Y_0).y.tolist()
        [0.5, 0.0, 0.5, 0.0, 0.0, 0.0]
    """

    level: int
    y: np.ndarray
    base: np.ndarray = Y


def _distinct(gammas):
    """Levels with those below `LEAST_GAMMA` raised to it, and kept apart from each other."""
    return np.maximum(gammas, LEAST_GAMMA * np.arange(1, len(gammas) + 1))


def rates(gammas):
    """(α, σ, λ) of noise levels γ < 1, float64 arrays like `gammas`."""
    gammas = _distinct(gammas)
    alpha, sigma = np.sqrt(gammas), np.sqrt(1 - gammas)
    return alpha, sigma, np.log(alpha / sigma)


def ddpm(gammas: np.ndarray, variance: str = "posterior") -> List[Call]:
    """The ancestral chain (Ho et al. 2020, Algorithm 2; Palette, Algorithm 2).

    y′ is drawn from q(y′ | y, ŷ₀) (Ho et al. 2020, eqs. 6 and 7). Where ŷ₀ is not clipped that mean is, for
    ε-prediction, (y − β/√(1−γ) ε̂)/√(1−β), the line of Palette's Algorithm 2.

    Args:
        gammas: (n,).
        variance: of the noise: "posterior", (1−γ′)/(1−γ) β; "beta", β, which is Palette's Algorithm 2; or
            "learned_range": the network's further channels say it.

    Examples:
        At its end, all that is left of a picture is what the network says of it:

        >>> last = ddpm(np.array([0.5, 1 - 1e-12]))[-1]
        >>> float((last.y @ Y_0).round(3)), float((last.y @ NOISE).round(3))
        (1.0, 0.0)
    """
    calls, gammas = [], _distinct(gammas)
    for i, (gamma, following) in enumerate(zip(gammas[:-1], gammas[1:])):
        beta = 1 - gamma / following
        posterior = beta * (1 - following) / (1 - gamma)
        added = {"posterior": posterior, "beta": beta, "learned_range": 1.0}[variance]
        calls.append(Call(i, (1 - following) * np.sqrt(1 - beta) / (1 - gamma) * Y
                          + beta * np.sqrt(following) / (1 - gamma) * Y_0 + np.sqrt(added) * NOISE))
    return calls


def learned_ends(gammas):
    """The logarithms of the deviations between which a learned variance lies: of β̃ and of β, at each level (2, n)."""
    gammas = _distinct(gammas)
    following = np.append(gammas[1:], 1.0)
    betas = 1 - gammas / following
    posterior = betas * (1 - following) / (1 - gammas)
    return np.log([np.maximum(posterior, 1e-20), betas]) / 2  # at the last level, which adds no noise, posterior is 0


def ddim(gammas: np.ndarray, eta: float = 0.0) -> List[Call]:
    """Song, Meng & Ermon 2021 (arXiv 2010.02502), eqs. 12 and 16: without noise at η = 0, as `ddpm` at η = 1.

    Examples:
        >>> gammas = np.array([0.1, 0.5, 0.9])  # the noisiest first
        >>> all(np.allclose(a.y, b.y) for a, b in zip(ddim(gammas, eta=1), ddpm(gammas)))
        True
    """
    alpha, sigma, _ = rates(gammas)
    calls = []
    for i in range(len(gammas) - 1):
        added = eta * sigma[i + 1] / sigma[i] * np.sqrt(1 - (alpha[i] / alpha[i + 1]) ** 2)
        direction = np.sqrt(sigma[i + 1] ** 2 - added**2) / sigma[i]
        calls.append(Call(i, direction * Y + (alpha[i + 1] - alpha[i] * direction) * Y_0 + added * NOISE))
    return calls


def resshift(gammas):
    """The ancestral chain of ResShift (Yue et al. 2023, arXiv 2307.12348, eq. 7), see `palette_ms.diffusion.process`.

    Its noise is a Brownian motion in η: of what was added at η, the share √(η′/η) of its deviation is still there.
    """
    alpha, sigma, _ = rates(gammas)
    share = eta("resshift", gammas)
    calls = []
    for i in range(len(gammas) - 1):
        kept = share[i + 1] / share[i]
        direction = np.sqrt(kept) * sigma[i + 1] / sigma[i]
        calls.append(Call(i, direction * Y + (alpha[i + 1] - alpha[i] * direction) * Y_0
                          + sigma[i + 1] * np.sqrt(1 - kept) * NOISE))
    return calls


def dpmpp_2m(gammas: np.ndarray) -> List[Call]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2): second order by ŷ₀ of two calls.

    Examples:
        The first step has one call to go by, and is that of `ddim`:

        >>> gammas = np.array([0.1, 0.5, 0.9])
        >>> bool(np.allclose(dpmpp_2m(gammas)[0].y, ddim(gammas)[0].y))
        True
    """
    alpha, sigma, lambdas = rates(gammas)
    h = np.diff(lambdas)
    return [Call(i, sigma[i + 1] / sigma[i] * Y - alpha[i + 1] * np.expm1(-h[i]) * _extrapolated(h, i))
            for i in range(len(h))]


def dpmpp_2m_sde(gammas: np.ndarray) -> List[Call]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, section 5): the same for the reverse SDE.

    Examples:
        The first step has one call to go by, and is the ancestral chain's:

        >>> gammas = np.array([0.1, 0.5, 0.9])
        >>> bool(np.allclose(dpmpp_2m_sde(gammas)[0].y, ddpm(gammas)[0].y))
        True
    """
    alpha, sigma, lambdas = rates(gammas)
    h = np.diff(lambdas)
    return [Call(i, sigma[i + 1] / sigma[i] * np.exp(-h[i]) * Y
                 - alpha[i + 1] * np.expm1(-2 * h[i]) * _extrapolated(h, i)
                 + sigma[i + 1] * np.sqrt(-np.expm1(-2 * h[i])) * NOISE) for i in range(len(h))]


def _extrapolated(h, i):
    """ŷ₀ in the middle of step i, by the line through this call and the one before."""
    if i == 0:
        return Y_0
    share = h[i] / (2 * h[i - 1])
    return (1 + share) * Y_0 - share * LAST


def heun(gammas: np.ndarray) -> List[Call]:
    """Karras et al. 2022 (arXiv 2206.00364), Algorithm 1: the trapezoidal rule in s = σ/α; two calls a step.

    Examples:
        >>> [call.level for call in heun(np.array([0.1, 0.5, 0.9]))]
        [0, 1, 1, 2]
    """
    alpha, sigma, _ = rates(gammas)
    s = sigma / alpha
    calls = []
    for i in range(len(gammas) - 1):
        j = i + 1
        ratio = sigma[j] / sigma[i]
        calls.append(Call(i, ratio * Y + (alpha[j] - alpha[i] * ratio) * Y_0))
        # dx/ds = (x − ŷ₀)/s for x = y/α, at both ends of the step; BASE is the y of its beginning.
        begin = (BASE / alpha[i] - LAST) / s[i]
        end = (Y / alpha[j] - Y_0) / s[j]
        calls.append(Call(j, alpha[j] * (BASE / alpha[i] + (s[j] - s[i]) / 2 * (begin + end))))
    return calls


def unipc(gammas: np.ndarray) -> List[Call]:
    """UniPC-2 (Zhao et al. 2023, arXiv 2302.04867, Algorithms 5 and 6, data prediction): third order, one call a step.

    Each call's ŷ₀ first corrects the step that led to it (BASE is the corrected picture before), then predicts the
    next. Both integrate the polynomial through the ŷ₀ at hand exactly, which solves the paper's eq. 5 for any B(h).

    Examples:
        >>> len(unipc(np.array([0.1, 0.5, 0.9])))
        2
    """
    alpha, sigma, lambdas = rates(gammas)
    answers = Y_0, LAST, OLDER

    def step(picture, start, stop, nodes):
        """`picture` at level start, brought to level stop by the ŷ₀ of the levels `nodes`, the last of them first."""
        weights = _integrals(lambdas[start], lambdas[stop], lambdas[nodes])
        return (sigma[stop] / sigma[start] * picture
                + alpha[stop] * sum(weight * answer for weight, answer in zip(weights, answers)))

    calls = []
    for i in range(len(gammas) - 1):
        known = list(range(i, max(i - 3, -1), -1))
        base = step(BASE, i - 1, i, known) if i else Y
        calls.append(Call(i, step(base, i, i + 1, known[:2]), base))
    return calls


def _integrals(start, stop, nodes):
    """∫ e^(λ − stop) ℓ_j(λ) dλ from start to stop, for the Lagrange polynomials ℓ_j of the nodes."""
    points, weights = np.polynomial.legendre.leggauss(32)
    points = (stop - start) / 2 * points + (stop + start) / 2
    weights = (stop - start) / 2 * weights * np.exp(points - stop)
    return [weights @ math.prod([(points - other) / (node - other) for other in nodes if other != node],
                                start=np.ones_like(points)) for node in nodes]


class Solver(NamedTuple):
    """A sampler by its calls, and how its levels are placed and counted by default.

    Attributes:
        calls: function (gammas, …) → list of `Call`.
        spacing: of the levels, see `palette_ms.diffusion.schedule.place_steps`.
        calls_a_step: network calls from one level to the next.
    """

    calls: Callable
    spacing: str
    calls_a_step: int = 1


SOLVERS = {
    "ddpm": Solver(ddpm, "uniform"),
    "ddim": Solver(ddim, "uniform"),
    "dpmpp_2m": Solver(dpmpp_2m, "log_snr"),
    "dpmpp_2m_sde": Solver(dpmpp_2m_sde, "log_snr"),
    "heun": Solver(heun, "karras", 2),
    "unipc": Solver(unipc, "log_snr"),
}
