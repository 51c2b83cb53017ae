"""Each way of restoring by a prior beside the posterior that is known: Gaussian data, linear degradation, white noise.

    python benchmarks/priors_gaussian.py [--output docs/priors_gaussian.png]

Pictures of 8 × 8 whose pixels are correlated over about 3 of them, and their exact denoiser. What is given are the
means of 2 × 2 blocks with noise of a deviation of 0.1. The table has, of 512 results of one given picture, how far
their mean is from the posterior's (root mean square, over the posterior's deviation), and their variance over the
posterior's.
"""

import argparse

import palette_ms  # noqa: F401  before MindSpore: it sets the environment

# isort: split
import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from palette_ms.diffusion.cells import Update
from palette_ms.diffusion.samplers import Sampler
from palette_ms.diffusion.schedule import make_gamma_schedule, place_steps
from palette_ms.diffusion.solvers import ddpm
from palette_ms.priors.chain import REFERENCE, Guidance, GuidedChain, Guiding, guide
from palette_ms.priors.degradations import BlockMean
from palette_ms.priors.methods import diffpir_calls

SIDE, SIGMA, SAMPLES = 8, 0.1, 512
GAMMAS = make_gamma_schedule("linear", 1000, 1e-4, 0.02)


class ExactDenoiser(nn.Cell):
    """E[y_0 | y_t] of pictures (N, 1, 8, 8) drawn from N(0, covariance)."""

    def __init__(self, covariance):
        super().__init__()
        values, basis = np.linalg.eigh(covariance)
        self.values, self.basis = Tensor(np.float32(values)), Tensor(np.float32(basis))

    def construct(self, x, gamma):
        g = gamma.reshape((-1, 1))
        gain = ops.sqrt(g) * self.values / (g * self.values + 1 - g)
        return ops.matmul(ops.matmul(x.reshape((x.shape[0], -1)), self.basis) * gain, self.basis.T).reshape(x.shape)


def covariance():
    """(64, 64), of pixels at distance d: 0.25 · exp(−d/3)."""
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    return 0.25 * np.exp(-distance / 3)


def posterior(prior, degradation, y):
    """(mean, covariance) of x given y = D x + noise, of vectors."""
    a = degradation.degrade(np.eye(SIDE**2).reshape(-1, 1, SIDE, SIDE)).reshape(SIDE**2, -1).T.astype(float)
    gain = prior @ a.T @ np.linalg.inv(a @ prior @ a.T + SIGMA**2 * np.eye(len(a)))
    return gain @ y.ravel(), prior - gain @ a @ prior


def moments(guiding, unet, degradation, y, steps):
    """(mean, variance) of each pixel over the results."""
    kept = place_steps(GAMMAS, steps)[::-1]
    calls = diffpir_calls(GAMMAS[kept], guiding.zeta) if guiding.prior == "diffpir" else ddpm(GAMMAS[kept])
    chain = GuidedChain(unet, Update(False, False, False, False), Guidance(guiding, [degradation]))
    chain.given = (Tensor(np.repeat(y, SAMPLES, 0)),)
    sampler = guide(Sampler(None, GAMMAS[kept], calls, "x0"), chain)
    y_T = np.random.default_rng(1).standard_normal((SAMPLES, 1, SIDE, SIDE), np.float32)
    made = sampler(None, y_T, seed=2).asnumpy().reshape(SAMPLES, -1)
    return made.mean(0), made.var(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="docs/priors_gaussian.png")
    args = parser.parse_args()
    ms.set_context(mode=ms.GRAPH_MODE)
    prior, degradation, rng = covariance(), BlockMean(2), np.random.default_rng(0)
    x = rng.multivariate_normal(np.zeros(SIDE**2), prior).reshape(1, 1, SIDE, SIDE)
    y = degradation.degrade(x)
    y = (y + SIGMA * rng.standard_normal(y.shape)).astype(np.float32)
    mean, spread = posterior(prior, degradation, y)
    deviation, unet = np.sqrt(np.trace(spread) / SIDE**2), ExactDenoiser(prior)
    # What one step of gdp moves a pixel of its way to y, were the others still: s / (6 · 256²).
    ways = {f"gdp, {share:.1%} a step": Guiding("gdp", 6 * REFERENCE**2 * share) for share in (0.005, 0.02, 0.1, 0.5)}
    ways.update({"ddnm": Guiding("ddnm", sigma=SIGMA), "ddnm, told of no noise": Guiding("ddnm"),
                 "dps, ζ′ = 1": Guiding("dps"), "dps, ζ′ = 0.3": Guiding("dps", zeta=0.3),
                 "diffpir, λ = 8": Guiding("diffpir", sigma=SIGMA, zeta=0.3),
                 "diffpir, λ = 1": Guiding("diffpir", sigma=SIGMA, zeta=0.3, strength=1.0)})
    lengths, found = (30, 100, 1000), {}
    print("| | " + " | ".join(f"{n} steps: mean | variance" for n in lengths) + " |")
    print("| --- |" + " --- |" * 2 * len(lengths))
    for name, guiding in ways.items():
        found[name] = []
        for steps in lengths:
            made, variance = moments(guiding, unet, degradation, y, steps)
            found[name].append((np.sqrt(np.mean((made - mean) ** 2)) / deviation,
                                variance.mean() / np.diag(spread).mean()))
        print(f"| {name} | " + " | ".join(f"{error:.2f} | {ratio:.2f}" for error, ratio in found[name]) + " |",
              flush=True)
    plot(found, lengths, args.output)


def plot(found, lengths, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4))
    for name, values in found.items():
        values = np.array(values)
        style = {"gdp": "-", "ddnm": "--", "dps": "-.", "diffpir": ":"}[name.split(",")[0]]
        for axis, column in zip(axes, values.T):
            axis.plot(lengths, column, style, marker="o", label=name)
    for axis, title in zip(axes, ("error of the mean / posterior deviation", "variance / posterior variance")):
        axis.set(xscale="log", yscale="log", xlabel="steps", title=title, xticks=lengths, xticklabels=lengths)
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    axes[1].axhline(1, color="black", linewidth=0.5)
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
