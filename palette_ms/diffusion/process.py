"""Processes from the source to the picture, as Palette's own process seen from the source.

Each has, with η falling from 1 to 0 as the picture is made and k = √((1−η)² + s²),

    x_t = (1−η) y₀ + η source + s ε = source + k (y_t − √γ source)          y_t = √γ y₀ + √(1−γ) ε,   γ = (1−η)²/k²

    process     s²            begins with                       η of γ
    resshift    κ² η          noise around the source           2(1−γ) / (2(1−γ) + κ²γ + κ √(γ (κ²γ + 4(1−γ))))
    i2sb        S η(1−η)      the source itself                 (1−γ) / (1−γ + Sγ)

(ResShift: Yue et al. 2023, arXiv 2307.12348, eq. 2; I2SB: Liu et al. 2023, arXiv 2302.05872, eq. 11.) So the loss, the
solvers and all samplers are Palette's own, in y_t; the network is shown x_t in its place
(`palette_ms.diffusion.preconditioning`), and the schedules "resshift" and "i2sb" have the papers' levels. I2SB's
ancestral chain is `ddpm` as it stands, since both are the Markov chain with these marginals; ResShift's noise is a
Brownian motion in η, which `palette_ms.diffusion.solvers.resshift` knows. One call, from γ = 0, answers E[y₀ | source]
in any of them.
"""

import numpy as np

# κ, the deviation of the noise that ResShift adds to the source; the paper's (section 4.1).
KAPPA = 2.0
# Of I2SB, as its released code has it: √β at both ends and in the middle, and S = ∫β dt over the whole time, the
# variance between source and picture, in units of [−1, 1].
_LEAST, _MOST = 0.1**0.5, (0.1**0.5 + 0.3**0.5) / 2
SPREAD = (_MOST**3 - _LEAST**3) / (3 * (_MOST - _LEAST))


def eta(process, gamma, sqrt=np.sqrt):
    """The share of the source in x_t, from 0 to 1, of a noise level.

    Args:
        process: "resshift" or "i2sb".
        gamma: an array, or a Tensor with its `sqrt`.
    """
    if process == "resshift":
        own = KAPPA**2 * gamma
        return 2 * (1 - gamma) / (2 * (1 - gamma) + own + sqrt(own * (own + 4 * (1 - gamma))))
    return (1 - gamma) / (1 - gamma + SPREAD * gamma)


def scale(process, gamma, sqrt=np.sqrt):
    """k above. Arguments as of `eta`."""
    source = eta(process, gamma, sqrt)
    noise = KAPPA**2 * source if process == "resshift" else SPREAD * source * (1 - source)
    return sqrt((1 - source) ** 2 + noise)


def resshift_schedule(num_steps):
    """β of every step (Yue et al. 2023, eqs. 5 and 6, with its η_1, η_T and p = 0.3)."""
    first, last, power = min(0.04 / KAPPA, 0.001**0.5), 0.999**0.5, 0.3
    shares = np.linspace(0, 1, num_steps) ** power if num_steps > 1 else np.ones(1)
    source = (first * (last / first) ** shares) ** 2
    return _betas((1 - source) ** 2 / ((1 - source) ** 2 + KAPPA**2 * source))


def i2sb_schedule(num_steps):
    """β of every step: I2SB's √β rises linearly to the middle of the time and falls again; η is ∫β up to t over S."""
    t = np.arange(1, num_steps + 1) / num_steps
    rise = 2 * (_MOST - _LEAST)
    risen = ((_LEAST + rise * np.minimum(t, 1 - t)) ** 3 - _LEAST**3) / (3 * rise)
    source = np.where(t <= 0.5, risen, SPREAD - risen) / SPREAD
    return _betas((1 - source) / (1 - source + SPREAD * source))


def _betas(gammas):
    return 1 - gammas / np.append(1.0, gammas[:-1])


def noised(source, noise, level):
    """A source with noise of a level s: cos(πs/2) source + sin(πs/2) noise, which is noise conditioning augmentation
    (Ho et al. 2021, arXiv 2106.15282, section 4.2; Saharia et al. 2022, arXiv 2205.11487, figure A.32) along the cosine
    schedule.

    Args:
        source, noise: (N, C, H, W), noise standard normal.
        level: (N,), or a number, from 0, the source itself, to 1, noise alone.

    Returns: float32, as source.
    """
    angle = np.reshape(np.float32(np.pi / 2 * np.asarray(level)), (-1, 1, 1, 1))
    return np.cos(angle) * source + np.sin(angle) * noise
