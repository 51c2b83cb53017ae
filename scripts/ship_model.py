"""Makes the checkpoint that ships with the package: the averaged weights alone, in half precision.

    python scripts/ship_model.py runs/quickstart/model.safetensors palette_ms/models/quickstart.safetensors
"""

import argparse

import numpy as np

from palette_ms import errors
from palette_ms.checkpoint import Checkpoint, save_checkpoint


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    args = parser.parse_args()
    trained = Checkpoint(args.input)
    average = {name: value.astype(np.float16) for name, value in trained.tensors("ema").items()}
    save_checkpoint(args.output, trained.config, trained.step, trained.pictures, ema=average)


if __name__ == "__main__":
    errors.run(main)
