"""What a day of one card costs in training steps: an estimate from the operations that a network needs.

    python benchmarks/card_day.py [CONFIG …] [--tflops 256] [--utilisation 0.3]

Counted are the multiplications and additions of convolutions, dense layers and attention (two for each product), of a
forward pass at the config's size; a training step is taken as three of them, and what `training.recompute` adds.
--tflops is the card's published peak in half precision (256 for an Ascend 910), --utilisation the share of it that
training reaches: an assumption, since nothing here was measured on a card. A step is batch_size × accumulation
pictures, whatever the number of cards.
"""

import argparse
from pathlib import Path

from palette_ms import errors
from palette_ms.config import load_config
from palette_ms.training.memory import Memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--tflops", type=float, default=256)
    parser.add_argument("--utilisation", type=float, default=0.3)
    args = parser.parse_args()
    print(f"{'config':28} {'parameters':>10} {'forward':>10} {'batch':>6} {'steps a card-day':>17} {'card-days':>10}")
    for path in args.configs or sorted(Path("configs").glob("*.yaml")):
        config = load_config(path)
        memory = Memory(config)
        batch = config.training.batch_size * config.training.accumulation
        step = 3 * memory.operations * (1 + memory.more_operations) * batch
        steps = 86400 * args.tflops * 1e12 * args.utilisation / step
        print(f"{path.name:28} {memory.parameters / 1e6:8.1f} M {memory.operations / 1e9:8.1f} G {batch:6d} "
              f"{steps:17,.0f} {config.training.steps / steps:10,.1f}")


if __name__ == "__main__":
    errors.run(main)
