"""Calls added to a solver's: a start from an estimate, parts of a chain gone through again, refinement at its end.

Each takes noise levels (n,), the noisiest first, and a solver's calls from each of them to the next
(`palette_ms.diffusion.solvers`), and gives both for the longer chain, whose levels need not fall any more. They are
rows of the same table, so that nothing is compiled anew.
"""

import numpy as np

from palette_ms.diffusion.solvers import NOISE, Y_0, Call, rates


def noised(gamma):
    """Weights of ŷ₀ with the noise of a level added: q(y_t | ŷ₀)."""
    alpha, sigma, _ = rates(np.array([gamma]))
    return alpha[0] * Y_0 + sigma[0] * NOISE


def from_estimate(first, gammas, calls):
    """The chain after a call at the level `first`, whose ŷ₀, noised to the level of gammas[0], begins it. That call is
    a denoising autoencoder's answer where nothing but the source is known.

    Returns: (gammas, calls), each longer by one.
    """
    return (np.append(first, gammas),
            [Call(0, noised(gammas[0])), *(call._replace(level=call.level + 1) for call in calls)])


def resampled(gammas, calls, jump, repeats):
    """The chain of RePaint (Lugmayr et al. 2022, arXiv 2201.09865, Algorithm 1): each `jump` levels are gone through
    `repeats` times, with noise added in between that leads back to the first of them (its eq. 1 over several steps).

    Args:
        gammas, calls: of a solver that looks at no more than the last call, and adds noise of a fixed variance.

    Returns: (gammas, calls). The last level, after which ŷ₀ is the result, is not left again.
    """
    ratio = np.sqrt(gammas)
    longer, levels = [], len(gammas)
    for start in range(0, len(calls), jump):
        stretch = calls[start:start + jump]
        last = stretch[-1]
        end = min(start + jump, levels - 1)
        back = ratio[start] / ratio[end]
        weights = back * last.y
        added = 1 - gammas[start] / gammas[end]
        weights = weights + (np.sqrt(weights[-1] ** 2 + added) - weights[-1]) * NOISE  # variances add up
        for _ in range(repeats - 1):
            longer += [*stretch[:-1], last._replace(y=weights)]
        longer += stretch
    return gammas, longer


def refined(gammas, calls, level, repeats):
    """The chain and, `repeats` times more, noise of a level γ added to its result and taken away by one call.

    Returns: (gammas, calls): `level` is the last of the levels.
    """
    again = noised(level)
    return np.append(gammas, level), [*calls, Call(len(gammas) - 1, again),
                                      *[Call(len(gammas), again)] * (repeats - 1)]
