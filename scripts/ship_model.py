"""Makes the checkpoint that ships with the package: the averaged weights alone, in half precision.

    python scripts/ship_model.py MODEL [MODEL …] OUTPUT

Of several models, ends of one training that was continued in several ways, it is their mean (Wortsman et al. 2022,
arXiv 2203.05482: model soups), with what else the last one says.
"""

import argparse

import numpy as np

from palette_ms import errors
from palette_ms.checkpoint import Checkpoint, save_checkpoint
from palette_ms.errors import UserError


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("output", metavar="OUTPUT")
    args = parser.parse_args()
    *others, trained = map(Checkpoint, args.models)
    if any(other.config.model != trained.config.model for other in others):
        raise UserError("the models' networks differ")
    weights = [each.tensors("ema") for each in (*others, trained)]
    average = {name: np.mean([each[name] for each in weights], 0).astype(np.float16) for name in weights[-1]}
    save_checkpoint(args.output, trained.config, trained.step, trained.pictures, ema=average)


if __name__ == "__main__":
    errors.run(main)
