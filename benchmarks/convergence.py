"""How fast each sampler reaches the exact solution, for data whose best denoiser is a formula.

    python benchmarks/convergence.py [OUTPUT.png]        (default: docs/convergence.png; needs matplotlib)

The data are independent Gaussian pixels, N(0.2, 0.25). Levels lie evenly in log-SNR from γ = 0.001 to 0.999. Left: the
distance to the probability flow's end, which has a closed form, for the samplers without noise; right: the error of the
variance for those with noise, whose recursion is linear. All in float64, by the tables that the compiled chain runs.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np

from palette_ms.diffusion.solvers import SOLVERS, ddim

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from gaussian import MEAN, VARIANCE, even_levels, exact_ode, gaussian_answer, moments, run_calls  # noqa: E402

CALLS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def answer(y, gamma):
    gain, offset = gaussian_answer(gamma)
    return gain * y + offset


def flow_errors(name):
    """(calls, distance to the exact end) for each of `CALLS`."""
    for calls in CALLS:
        gammas = even_levels(calls // SOLVERS[name].calls_a_step + 1)
        y = run_calls(SOLVERS[name].calls(gammas), gammas, np.array(1.3), answer)
        yield calls, abs(y - exact_ode(1.3, gammas[0], gammas[-1]))


def variance_errors(solver):
    for calls in CALLS:
        gammas = even_levels(calls + 1)
        _, variance = moments(solver(gammas), gammas, np.sqrt(gammas[0]) * MEAN, gammas[0] * VARIANCE + 1 - gammas[0])
        yield calls, abs(variance - gammas[-1] * VARIANCE - 1 + gammas[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default=ROOT / "docs" / "convergence.png")
    args = parser.parse_args()
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for name in ("ddim", "dpmpp_2m", "heun", "unipc"):
        curve = np.array(list(flow_errors(name)))
        order = -np.polyfit(*np.log(curve[-5:]).T, 1)[0]
        left.loglog(*curve.T, "o-", markersize=3, label=f"{name}: order {order:.2f}")
    noisy = {"ddpm": SOLVERS["ddpm"].calls, "ddim, eta 0.5": lambda gammas: ddim(gammas, 0.5),
             "dpmpp_2m_sde": SOLVERS["dpmpp_2m_sde"].calls}
    for name, solver in noisy.items():
        curve = np.array(list(variance_errors(solver)))
        order = -np.polyfit(*np.log(curve[-5:]).T, 1)[0]
        right.loglog(*curve.T, "o-", markersize=3, label=f"{name}: order {order:.2f}")
    left.set(title="Without noise: distance to the exact flow", ylabel="error (the data's deviation is 0.5)")
    right.set(title="With noise: error of the variance", ylabel="error (the data's variance is 0.25)")
    for axes in (left, right):
        axes.set_xlabel("network calls")
        axes.set_xticks([4, 8, 16, 32, 64, 128, 256], ["4", "8", "16", "32", "64", "128", "256"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(args.output, dpi=110)
    print(args.output)


if __name__ == "__main__":
    main()
