"""Time of one forward pass and of one training step.

    python benchmarks/speed.py [--config configs/palette_62m.yaml] [--size 64] [--batch 1] [--repeats 7]

Prints the median and the range of several runs after the first (which compiles), and the time of the first. Under
msrun, the step is that of all ranks together, each with a batch of its own:

    msrun --worker_num=2 --local_worker_num=2 --join=True --log_dir=logs python benchmarks/speed.py …
"""

import argparse
import dataclasses
import time

import numpy as np

from palette_ms import errors, runtime  # before MindSpore: it sets the environment

# isort: split
from mindspore import Tensor, nn

from palette_ms.checkpoint import build_unet
from palette_ms.config import load_config
from palette_ms.diffusion.cells import precondition
from palette_ms.diffusion.loss import DiffusionLoss
from palette_ms.training.step import TrainStep


def measure(name, call, repeats):
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    first, times = times[0], np.array(times[1:])
    print(f"{name:14} median {np.median(times):.3f} s  ({times.min():.3f} to {times.max():.3f})  first {first:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/palette_62m.yaml")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    config = load_config(args.config)
    model = dataclasses.replace(config.model, dropout=0.0)
    runtime.setup(args.device, seed=0)
    unet, average = build_unet(model), build_unet(model)
    for name, parameter in average.parameters_and_names():
        parameter.name = f"ema.{name}"
    print(f"{sum(p.size for p in unet.get_parameters()) / 1e6:.2f} M parameters, "
          f"{args.size}×{args.size}, batch {args.batch}")
    rng = np.random.default_rng(0)
    y_0, cond, noise = (Tensor(rng.standard_normal((args.batch, 3, args.size, args.size), np.float32))
                        for _ in range(3))
    x = Tensor(rng.standard_normal((args.batch, 6, args.size, args.size), np.float32))
    gamma = Tensor(rng.random(args.batch, np.float32))
    denoiser = precondition(unet, config.diffusion).set_train(False)
    measure("forward", lambda: denoiser(x, gamma).asnumpy(), args.repeats)
    optimizer = nn.Adam(unet.trainable_params(), 1e-4)
    loss = DiffusionLoss(denoiser)
    step = TrainStep(loss, optimizer, list(average.get_parameters()), ranks=runtime.ranks()).set_train()
    measure("training step", lambda: step(y_0, cond, noise, gamma)[0].asnumpy(), args.repeats)


if __name__ == "__main__":
    errors.run(main)
