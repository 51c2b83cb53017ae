"""What a picture of the batch adds to the memory of a training step on a CPU, beside the estimate, and the step's time.

    python benchmarks/memory.py [key=value …] [--config configs/quickstart.yaml] [--size 64] [--batches 4 12]
                                [--recompute 0 3] [--pynative]

Each measurement is a process that makes three steps; a picture's memory is the difference of the peaks of two
batches over that of their sizes, so that what does not depend on the batch (imports, compiling, weights) falls out.

MindSpore's graphs on a CPU hold tables for operators that broadcast, for as long as they live, which no card does;
--pynative measures without graphs, which leaves what the derivatives need.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time

import numpy as np

from palette_ms import errors, runtime  # before MindSpore: it sets the environment

# isort: split
import mindspore as ms
from mindspore import Tensor, nn

from palette_ms.checkpoint import build_unet
from palette_ms.config import load_config
from palette_ms.diffusion.cells import precondition
from palette_ms.diffusion.loss import DiffusionLoss
from palette_ms.training.memory import Memory
from palette_ms.training.step import TrainStep


def worker(config, batch, pynative):
    """Print peak memory in MiB and the median time of two steps after the first as a line of JSON."""
    runtime.setup("CPU", seed=0)
    if pynative:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    unet, average = build_unet(config.model), build_unet(config.model)
    for name, parameter in average.parameters_and_names():
        parameter.name = f"ema.{name}"
    if config.training.precision != "float32":
        unet.use_precision(getattr(ms, config.training.precision))
    unet.recompute_blocks(config.training.recompute)
    rng, size = np.random.default_rng(0), config.data.image_size
    y_0, cond, noise = (Tensor(rng.standard_normal((batch, 3, size, size), np.float32)) for _ in range(3))
    gamma = Tensor(rng.random(batch, np.float32))
    loss = DiffusionLoss(precondition(unet, config.diffusion))
    step = TrainStep(loss, nn.Adam(unet.trainable_params(), 1e-4), list(average.get_parameters()))
    step.set_train()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        step(y_0, cond, noise, gamma)[0].asnumpy()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"peak": peak, "seconds": float(np.median(times[1:]))}))


def measure(arguments):
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs=2, default=(4, 12))
    parser.add_argument("--recompute", type=int, nargs="*", default=(0, 3), help="values of training.recompute")
    parser.add_argument("--pynative", action="store_true")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    config = load_config(args.config, [*args.overrides, f"data.image_size={args.size}"])
    if args.worker:
        worker(config, args.worker, args.pynative)
        return
    small, large = args.batches
    print(f"| recompute | MiB a picture, measured | estimated | ratio | peak at batch {large}, GiB | step, s |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for levels in args.recompute:
        runs = [measure([*args.overrides, f"training.recompute={levels}", "--config", args.config, "--size",
                         str(args.size), "--worker", str(batch), *["--pynative"] * args.pynative])
                for batch in args.batches]
        measured = (runs[1]["peak"] - runs[0]["peak"]) / (large - small)
        training = dataclasses.replace(config.training, recompute=levels)
        memory = Memory(dataclasses.replace(config, training=training))
        estimated = (memory.activations + memory.work) / 2**20
        print(f"| {levels} | {measured:.1f} | {estimated:.1f} | {measured / estimated:.2f} | "
              f"{runs[1]['peak'] / 1024:.2f} | {runs[1]['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    errors.run(main)
