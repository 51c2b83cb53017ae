"""What a day of one card costs in training steps: an estimate from the operations that a network needs.

    python benchmarks/card_day.py [CONFIG …] [--tflops 256] [--utilisation 0.3]

Counted are the multiplications and additions of convolutions, dense layers and attention (two for each product), of a
forward pass at the config's size; a training step is taken as three of them. --tflops is the card's published peak in
half precision (256 for an Ascend 910), --utilisation the share of it that training reaches: an assumption, since
nothing here was measured on a card. A step is batch_size × accumulation pictures, whatever the number of cards.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from palette_ms import errors, runtime  # before MindSpore: it sets the environment

# isort: split
import mindspore as ms
from mindspore import Tensor, nn

from palette_ms.checkpoint import build_unet
from palette_ms.config import load_config
from palette_ms.unet import AttentionBlock


def forward_operations(model, size):
    """Operations of one picture's forward pass, counted at a small size (a convolution's grow with the area, an
    attention's are those at the full size)."""
    unet = build_unet(model)
    small = unet.multiple
    area = (size / small) ** 2
    total = 0

    def count(cell, inputs, output):
        nonlocal total
        if isinstance(cell, nn.Conv2d):
            total += area * 2 * cell.weight.size * output.shape[2] * output.shape[3]
        elif isinstance(cell, nn.Dense):
            total += 2 * cell.weight.size
        elif isinstance(cell, AttentionBlock):
            _, channels, height, width = output.shape
            side = size // small
            shape = cell.weights_shape(side * height, side * width)
            total += 4 * channels // shape[1] * math.prod(shape)

    for _, cell in unet.cells_and_names():
        cell.register_forward_hook(count)
    unet(Tensor(np.zeros((1, model.in_channels, small, small), np.float32)), Tensor(np.ones(1, np.float32)),
         *([Tensor(np.zeros(1, np.int32))] if model.num_classes else []))
    return total, sum(parameter.size for parameter in unet.get_parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--tflops", type=float, default=256)
    parser.add_argument("--utilisation", type=float, default=0.3)
    args = parser.parse_args()
    runtime.setup("CPU")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    print(f"{'config':28} {'parameters':>10} {'forward':>10} {'batch':>6} {'steps a card-day':>17} {'card-days':>10}")
    for path in args.configs or sorted(Path("configs").glob("*.yaml")):
        config = load_config(path)
        operations, parameters = forward_operations(config.model, config.data.image_size)
        batch = config.training.batch_size * config.training.accumulation
        steps = 86400 * args.tflops * 1e12 * args.utilisation / (3 * operations * batch)
        print(f"{path.name:28} {parameters / 1e6:8.1f} M {operations / 1e9:8.1f} G {batch:6d} {steps:17,.0f} "
              f"{config.training.steps / steps:10,.1f}")


if __name__ == "__main__":
    errors.run(main)
