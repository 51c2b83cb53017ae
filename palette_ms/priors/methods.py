"""Restoring by a prior: what ŷ₀ becomes once the given picture is known, in each of the methods that people compare.

    gdp      Generative Diffusion Prior: the step's mean is moved against the gradient of s · L(D(ŷ₀), y) + λ · Q(ŷ₀),
             taken at ŷ₀ (or at y_t) and not through the network (Fei et al. 2023, arXiv 2304.01247, Algorithms 1, 2)
    ddnm     the range-null-space projection, with noise where that is said (Wang et al. 2022, arXiv 2212.00490,
             Algorithm 1 and section 3.3)
    dps      the gradient of the distance ‖D(ŷ₀(y_t)) − y‖, through the network (Chung et al. 2022, arXiv 2209.14687,
             Algorithm 1, ζᵢ = ζ′/‖D(ŷ₀) − y‖)
    diffpir  the proximal step of half-quadratic splitting (Zhu et al. 2023, arXiv 2305.08995, Algorithm 1, eq. 13)

Each gives a ŷ₀ that a chain's solver goes on with, whichever that is. A shift g of the next picture, as of `gdp` and
`dps`, is g/w in ŷ₀, where w is what ŷ₀ counts in the next picture.
"""

import numpy as np
from mindspore import nn, ops

from palette_ms.diffusion.solvers import NOISE, Y_0, Call, Y, rates


class Weighed(nn.Cell):
    """What gdp's mean is moved against the gradient of, Σ s · L(D(x), y) + λ · Q(x), summed over the batch.

    Args:
        degradations: D of each given picture.
        loss: L of pictures in [0, 1], a function → (N,).
        scale: s.
        qualities: (Q, λ), functions of x → (N,).

    Inputs: x (N, C, H, W) in [−1, 1], and a tuple, of each given picture y: `ops.grad` takes no more than one of them
    as arguments.
    """

    def __init__(self, degradations, loss, scale, qualities=()):
        super().__init__()
        self.degradations = nn.CellList(degradations)
        self.loss, self.scale, self.qualities = loss, scale, qualities

    def construct(self, x, given):
        total = 0
        for i in range(len(self.degradations)):
            total = total + self.scale * self.loss(self.degradations[i](x) / 2, given[i] / 2).sum()
        for quality, weight in self.qualities:
            total = total + weight * quality(x).sum()
        return total


class Blind(nn.Cell):
    """L(f · D(x) + M, y) of pictures in [0, 1], summed over the batch: a degradation that is not known.

    Inputs: x (N, C, H, W) in [−1, 1], f (N, 1, 1, 1), M (N, 1, h, w), y (N, C, h, w) in [−1, 1].
    """

    def __init__(self, degradation, loss):
        super().__init__()
        self.degradation, self.loss = degradation, loss

    def construct(self, x, factor, mask, y):
        return self.loss(factor * (self.degradation(x) + 1) / 2 + mask, (y + 1) / 2).sum()


class Distance(nn.Cell):
    """‖D(ŷ₀(y_t)) − y‖ of each picture and of all its given ones, summed over the batch, and ŷ₀ with what else `answer`
    gives. dps moves the next picture by −ζ′ times its gradient by y_t, which is eq. 16 with ζᵢ = ζ′/‖D(ŷ₀) − y‖, but
    for a factor of 2.

    Args:
        answer: a Cell, (y_t, row, rank) → (ŷ₀, …).
        degradations: D of each given picture.

    Inputs: y_t, row, rank, and a tuple, of each given picture.
    """

    def __init__(self, answer, degradations):
        super().__init__()
        self.answer, self.degradations = answer, nn.CellList(list(degradations))

    def construct(self, y_t, row, rank, given):
        x_0, rest = self.answer(y_t, row, rank)
        squares = 1e-12
        for i in range(len(self.degradations)):
            squares = squares + ((self.degradations[i](x_0) - given[i]) ** 2).sum((1, 2, 3))
        return ops.sqrt(squares).sum(), x_0, rest


def ddnm(x_0, degradation, y, noise, sigma, w, added):
    """(ŷ₀, noise) by the range-null-space projection.

    Args:
        x_0: (N, C, H, W).
        degradation: `palette_ms.priors.degradations.Degradation`.
        y: what is given.
        noise: of the step, (N, C, H, W), standard normal.
        sigma: deviation of the noise in y; 0: none.
        w: what ŷ₀ counts in the next picture.
        added: deviation of the noise that the step adds.
    """
    fitted = degradation.fit(x_0, y)
    if sigma == 0:
        return fitted, noise
    # Of what the step adds, the fitted part already has w · share · sigma/s (section 3.3, eqs. 17 to 19).
    own = w * sigma / degradation.gain
    share = ops.minimum(ops.ones_like(own), added / own)
    left = ops.sqrt(ops.maximum(1 - (own * share / ops.maximum(added, 1e-12 * ops.ones_like(added))) ** 2,
                                ops.zeros_like(own)))
    return x_0 + share * (fitted - x_0), noise - (1 - left) * degradation.shade(noise)


def diffpir(x_0, degradation, y, sigma, alpha, deviation, strength):
    """ŷ₀ by the proximal step argmin ‖y − D(x)‖² + ρ ‖x − ŷ₀‖², ρ = strength · σ² α²/(1 − α²).

    Args:
        x_0, degradation, y, sigma: as of `ddnm`; without noise it is the projection.
        alpha, deviation: rates of signal and noise in y_t.
        strength: λ of the paper.
    """
    return degradation.fit(x_0, y, strength * sigma**2 * alpha**2 / deviation**2)


def diffpir_calls(gammas, zeta):
    """What `diffpir` does after the proximal step (eqs. 14 and 15): of the noise, a share ζ is fresh; a solver as of
    `palette_ms.diffusion.solvers`."""
    alpha, sigma, _ = rates(gammas)
    kept = np.sqrt(1 - zeta)
    return [Call(i, kept * sigma[i + 1] / sigma[i] * Y + (alpha[i + 1] - alpha[i] * kept * sigma[i + 1] / sigma[i])
                 * Y_0 + np.sqrt(zeta) * sigma[i + 1] * NOISE) for i in range(len(gammas) - 1)]
