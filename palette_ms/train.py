"""python -m palette_ms.train: train a model on a folder of pictures."""

import argparse

from palette_ms import errors, runtime
from palette_ms.config import load_config
from palette_ms.tasks.imports import add_import


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.train", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="replaces a value of the config, such as data.path=photos training.steps=20000")
    parser.add_argument("--resume", metavar="auto|PATH",
                        help="go on from the newest training state in training.output (auto: or start where there is "
                             "none; latest), in another folder, or from this one")
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    add_import(parser)
    args = parser.parse_intermixed_args()
    runtime.check_launcher()
    config = load_config(args.config, args.overrides)
    runtime.setup(args.device, seed=config.training.seed, repeatable=True)
    from palette_ms.pipeline import Palette
    from palette_ms.training.loop import train

    print(train(config, args.resume, Palette.load))


if __name__ == "__main__":
    errors.run(main)
