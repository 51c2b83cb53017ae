"""python -m palette_ms.estimate: what a training needs of a card's memory, before a card is rented."""

import argparse

from palette_ms import errors
from palette_ms.config import load_config
from palette_ms.errors import UserError
from palette_ms.tasks.imports import add_import


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.estimate", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="replaces a value of the config, such as training.recompute=2")
    parser.add_argument("--batch", type=int, help="pictures of a card at once; default: training.batch_size")
    parser.add_argument("--ranks", type=int, default=1, help="cards that train together (default 1)")
    add_import(parser)
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    batch = config.training.batch_size if args.batch is None else args.batch
    for name, value in (("--batch", batch), ("--ranks", args.ranks)):
        if value < 1:
            raise UserError(f"{name} must be at least 1")
    from palette_ms.training.memory import report

    print(report(config, batch, args.ranks))


if __name__ == "__main__":
    errors.run(main)
