"""Where the memory of a training step on a CPU goes: what the process holds after each stage, in GiB.

    python benchmarks/step_memory.py [--size 64] [--batch 1] [--optimize-level O0] [model.base_channels=8 …]
    python benchmarks/step_memory.py --convolutions [--channels 64] [--size 64]

The network is that of configs/palette_62m.yaml without dropout. With --convolutions: what twenty convolutions of one
shape in a row add to the process, forward alone and with the gradients of their weights, each in its own process.
"""

import argparse
import resource
import subprocess
import sys

import numpy as np

from palette_ms import errors, runtime  # before MindSpore: it sets the environment

# isort: split
import mindspore as ms
from mindspore import Tensor, nn, ops

from palette_ms.checkpoint import build_unet
from palette_ms.config import load_config
from palette_ms.diffusion.loss import DiffusionLoss
from palette_ms.training.step import TrainStep

CONVOLUTIONS = 20


class Convolutions(nn.Cell):
    def __init__(self, channels):
        super().__init__()
        self.row = nn.SequentialCell([nn.Conv2d(channels, channels, 3, pad_mode="pad", padding=1)
                                      for _ in range(CONVOLUTIONS)])

    def construct(self, x):
        return ops.sum(self.row(x))


def held():
    """GiB, at most so far: nothing is given back on the way."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def convolutions(kind, channels, size):
    net, x = Convolutions(channels), Tensor(np.ones((1, channels, size, size), np.float32))
    net(x[:, :, :4, :4]).asnumpy()
    before = held()
    call = net if kind == "forward" else ms.value_and_grad(net, None, net.trainable_params())
    for _ in range(2):
        result = call(x)
        (result if kind == "forward" else result[0]).asnumpy()
    print(f"{kind}: {1024 * (held() - before):.0f} MiB")


def step(config, size, batch):
    print(f"imports {held():.2f}")
    unet, average = build_unet(config.model), build_unet(config.model)
    for name, parameter in average.parameters_and_names():
        parameter.name = f"ema.{name}"
    cell = TrainStep(DiffusionLoss(unet), nn.Adam(unet.trainable_params(), 1e-4), list(average.get_parameters()))
    cell.set_train()
    rng = np.random.default_rng(0)
    inputs = [Tensor(rng.standard_normal((batch, 3, size, size), np.float32)) for _ in range(3)]
    inputs.append(Tensor(rng.random(batch, np.float32)))
    print(f"weights and their average made {held():.2f}")
    cell.compile(*inputs)
    print(f"compiled {held():.2f}")
    for number in range(2):
        cell(*inputs)[0].asnumpy()
        print(f"step {number + 1} {held():.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--optimize-level", default="O0", help="of MindSpore's memory: O0 or O1")
    parser.add_argument("--convolutions", nargs="?", const="all", help="(forward or gradients: in this process)")
    parser.add_argument("--channels", type=int, default=64)
    args = parser.parse_intermixed_args()
    if args.convolutions == "all":
        for kind in ("forward", "gradients"):
            subprocess.run([sys.executable, __file__, f"--convolutions={kind}", "--channels", str(args.channels),
                            "--size", str(args.size)], check=True)
        return
    runtime.setup("CPU", seed=0)
    ms.set_context(memory_optimize_level=args.optimize_level)
    if args.convolutions:
        convolutions(args.convolutions, args.channels, args.size)
    else:
        step(load_config("configs/palette_62m.yaml", ["model.dropout=0", *args.overrides]), args.size, args.batch)


if __name__ == "__main__":
    errors.run(main)
