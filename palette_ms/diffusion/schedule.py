"""Noise schedules and the distribution of noise levels in training, in float64 NumPy.

β_t is the variance added at step t, α_t = 1 − β_t, γ_t = ∏ α_s the share of the picture's variance that is left
(Ho et al. 2020 call it ᾱ_t, Palette γ_t). Index 0 is the least noisy step.
"""

from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np

from palette_ms.diffusion.process import i2sb_schedule, resshift_schedule


def _warmup(num_steps, start, end, fraction):
    betas = np.full(num_steps, end)
    warm = int(num_steps * fraction)
    betas[:warm] = np.linspace(start, end, warm)
    return betas


def _cosine(num_steps):
    # Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17.
    s = 8e-3
    gammas = np.cos((np.arange(num_steps + 1) / num_steps + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - gammas[1:] / gammas[:-1], 0.999)


SCHEDULES = {
    "linear": lambda n, start, end: np.linspace(start, end, n),
    "quad": lambda n, start, end: np.linspace(start**0.5, end**0.5, n) ** 2,
    "const": lambda n, start, end: np.full(n, end),
    "jsd": lambda n, start, end: 1 / np.linspace(n, 1, n),  # Sohl-Dickstein et al. 2015, appendix B
    "warmup10": lambda n, start, end: _warmup(n, start, end, 0.1),
    "warmup50": lambda n, start, end: _warmup(n, start, end, 0.5),
    "cosine": lambda n, start, end: _cosine(n),
    "resshift": lambda n, start, end: resshift_schedule(n),
    "i2sb": lambda n, start, end: i2sb_schedule(n),
}

SPACINGS = ("uniform", "quadratic", "log_snr", "karras")


@dataclass(frozen=True)
class ScheduleConfig:
    """Arguments of `make_beta_schedule`, by the same names."""

    name: Literal[tuple(SCHEDULES)] = "linear"
    num_steps: int = 2000
    start: float = 1e-6
    end: float = 0.01


def make_beta_schedule(name: str, num_steps: int, start: float = 1e-6, end: float = 1e-2) -> np.ndarray:
    """β of every step.

    Args:
        name: one of `SCHEDULES`.
        num_steps: T.
        start, end: β of the first and the last step; cosine, jsd, resshift and i2sb use neither, const only the end.

    Returns: float64 (num_steps,), in (0, 1]; jsd and i2sb end at 1.

    Raises:
        ValueError: an unknown name or fewer than one step.

    Examples:
        >>> make_beta_schedule("linear", 3, start=0.1, end=0.3).round(3).tolist()
        [0.1, 0.2, 0.3]
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown noise schedule {name!r}: {', '.join(SCHEDULES)}")
    if num_steps < 1:
        raise ValueError(f"a noise schedule needs at least one step, not {num_steps}")
    return np.asarray(SCHEDULES[name](num_steps, start, end), np.float64)


def make_gamma_schedule(name: str, num_steps: int, start: float = 1e-6, end: float = 1e-2) -> np.ndarray:
    """γ of every step, float64 (num_steps,), falling; arguments and errors as of `make_beta_schedule`.

    Examples:
        >>> make_gamma_schedule("const", 3, end=0.5).tolist()
        [0.5, 0.25, 0.125]
    """
    return np.cumprod(1 - make_beta_schedule(name, num_steps, start, end))


def evenly_spaced(length, num_steps):
    """The steps that a shorter chain keeps, evenly spaced from the first to the last, as guided-diffusion does.

    Args:
        length: T, of the whole chain.
        num_steps: K, from 1 to T. With one step it is the last, noisiest one.

    Returns: int (K,), ascending.

    Raises:
        ValueError: K is not in 1 … T.
    """
    if not 1 <= num_steps <= length:
        raise ValueError(f"steps must be from 1 to {length}, the length of the chain, not {num_steps}")
    if num_steps == 1:
        return np.array([length - 1])
    strides = np.full(num_steps, (length - 1) / (num_steps - 1))
    strides[0] = 0
    return np.cumsum(strides).round().astype(int)  # summed up, since guided-diffusion rounds what it sums up


# Noise of this many times the signal's deviation (σ/α) hides the picture: where EDM's sampler starts (Karras et al.
# 2022, arXiv 2206.00364, table 1). More than half of the paper's 1000 steps lie beyond.
_HIDING = 80.0


def place_steps(gammas: np.ndarray, num_steps: int, spacing: str = "uniform") -> np.ndarray:
    """The steps that a shorter chain keeps.

    Args:
        gammas: γ of the whole chain's steps (T,), the least noisy first.
        num_steps: K, from 1 to T. With one step it is the noisiest of those below.
        spacing: one of `SPACINGS`: "uniform", in t, see `evenly_spaced`; or, between the least noisy step and the
            noisiest with σ/α up to 80: "quadratic", evenly in √t (as Song et al. 2021, arXiv 2010.02502, appendix D.3,
            but to the end); "log_snr", evenly in log(γ/(1−γ)) (Lu et al. 2022, arXiv 2206.00927); "karras", evenly in
            (σ/α)^(1/7) (Karras et al. 2022, eq. 5, ρ = 7). Each level is the nearest step's, and no step is kept twice.

    Returns: int (K,), ascending.

    Raises:
        ValueError: K is not in 1 … T.

    Examples:
        >>> gammas = make_gamma_schedule("cosine", 1000)
        >>> place_steps(gammas, 5).tolist()
        [0, 250, 500, 749, 999]
        >>> place_steps(gammas, 5, "log_snr").tolist()[0]
        0
    """
    uniform = evenly_spaced(len(gammas), num_steps)
    if spacing == "uniform":
        return uniform
    ratios = np.sqrt((1 - gammas) / np.maximum(gammas, 1e-300))
    last = max(num_steps, int(np.searchsorted(ratios, _HIDING, "right"))) - 1
    if spacing == "quadratic":
        places = np.sqrt(np.arange(last + 1))
    else:
        places = np.log(ratios[:last + 1]) if spacing == "log_snr" else ratios[:last + 1] ** (1 / 7)
    wanted = np.linspace(places[0], places[-1], num_steps) if num_steps > 1 else places[-1:]
    kept = np.interp(wanted, places, np.arange(last + 1)).round().astype(int)
    # Where steps lie closer together than the chain's, the next ones are taken instead, from the least noisy on …
    kept = np.maximum.accumulate(kept - np.arange(num_steps)) + np.arange(num_steps)
    # … but none beyond the noisiest.
    return np.minimum(kept, last + 1 - num_steps + np.arange(num_steps))


def strength_of(gammas: np.ndarray, noise: float) -> float:
    """The share of a chain (see `palette_ms.diffusion.samplers.Sampling.strength`) whose noisiest step is the one
    nearest, in log-SNR, to a noise of σ/α = `noise`. gammas: γ of the whole chain's steps (T,), the least noisy first.
    """
    ratios = np.log((1 - gammas) / np.maximum(gammas, 1e-300)) / 2
    return (np.abs(ratios - np.log(noise)).argmin() + 1) / len(gammas)


def draw_gammas(rng: np.random.Generator, count: int, betas: Optional[np.ndarray] = None) -> np.ndarray:
    """Noise levels to train at, independent draws.

    With `betas` as Palette does (section 2.2, p(γ)): t uniform over 1 … T, then γ uniform between γ_t and γ_{t−1}
    (γ_0 = 1). Without, γ = cos²(πu/2) for u uniform over (0, 1), the continuous cosine schedule, which trains
    more at high noise.

    Args:
        rng: numpy.random.Generator.
        count: N.
        betas: (T,) or None.

    Returns: float32 (N,), in [0, 1].

    Examples:
        >>> levels = draw_gammas(np.random.default_rng(0), 4, betas=make_beta_schedule("linear", 1000))
        >>> levels.shape, bool((levels > 0).all()), bool((levels <= 1).all())
        ((4,), True, True)
    """
    u = rng.random(count)
    if betas is None:
        return (np.cos(np.pi * u / 2) ** 2).astype(np.float32)
    gammas = np.append(1.0, np.cumprod(1 - np.asarray(betas, np.float64)))
    t = rng.integers(1, len(gammas), count)
    return (gammas[t] + u * (gammas[t - 1] - gammas[t])).astype(np.float32)
