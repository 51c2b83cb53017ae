"""Time of a chain run by the compiled loop, beside a Python loop around what is compiled of it.

    python benchmarks/chain.py [--ckpt quickstart] [--size 64] [--batch 1] [--steps 64] [--rounds 5]

The same DDIM chain three ways, in turn, the median of some rounds and its ratio to the first:
    chain      the loop over calls is in the graph, 16 calls a launch
    step       one compiled call with its update a launch
    network    the network alone is compiled, and NumPy does the update, as for tiles
"""

import argparse
import time

import numpy as np

from palette_ms import Palette, errors
from palette_ms.diffusion.denoisers import on_arrays
from palette_ms.diffusion.samplers import Sampling, create_chain, create_sampler


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="quickstart")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    palette = Palette.load(args.ckpt, runtime="mindspore")
    diffusion, sampling = palette.config.diffusion, Sampling("ddim", args.steps)
    compiled, stepwise, by_python = (
        create_sampler(create_chain(denoiser, diffusion, sampling), diffusion, sampling)
        for denoiser in (palette.unet, palette.unet, on_arrays(palette.unet)))
    stepwise.chain.block = 1
    rng = np.random.default_rng(0)
    cond, y_T = (rng.standard_normal((args.batch, 3, args.size, args.size), np.float32) for _ in range(2))
    ways = {
        "chain": lambda: compiled(cond, y_T),
        "step": lambda: stepwise(cond, y_T),
        "network": lambda: by_python(cond, y_T),
    }
    times = {name: [] for name in ways}
    for _ in range(args.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            np.asarray(way())
            times[name].append(time.perf_counter() - start)
    print(f"{args.steps} calls, {args.batch} × {args.size}×{args.size}")
    first = np.median(times["chain"][1:])
    for name, seconds in times.items():
        median = np.median(seconds[1:])
        print(f"{name:8} {median:.3f} s  {1000 * median / args.steps:.1f} ms a call  {median / first:.2f}×"
              f"  ({min(seconds[1:]):.3f} to {max(seconds[1:]):.3f})  first, with compiling: {seconds[0]:.1f} s")


if __name__ == "__main__":
    errors.run(main)
