"""python -m palette_ms.search_steps: find the best steps of a checkpoint's chain for short runs."""

import argparse
import dataclasses

from palette_ms import errors, runtime
from palette_ms.errors import UserError
from palette_ms.tasks.imports import add_import


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.search_steps", description=__doc__)
    parser.add_argument("--ckpt", required=True, help="checkpoint (.safetensors)")
    parser.add_argument("--input", required=True, help="pictures like those to restore: as data.path in training")
    parser.add_argument("--steps", default="5,8,10,15,20,30,50", help="numbers of steps, default: %(default)s")
    parser.add_argument("--task", help="default: each that the model knows")
    parser.add_argument("--pictures", type=int, default=64, help="how many crops the error is measured on, default: 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    add_import(parser)
    args = parser.parse_args()
    try:
        counts = sorted({int(text) for text in args.steps.split(",")})
    except ValueError:
        raise UserError(f"--steps {args.steps!r} is not a list of whole numbers such as 5,10,20") from None
    if args.pictures < 1 or args.seed < 0:
        raise UserError("--pictures must be at least 1, --seed at least 0")

    from palette_ms.checkpoint import Checkpoint
    from palette_ms.diffusion.cells import precondition
    from palette_ms.diffusion.search import best_steps, elbo_costs
    from palette_ms.evaluation.denoising import denoising_errors
    from palette_ms.searched import save_steps

    checkpoint = Checkpoint(args.ckpt)
    data = dataclasses.replace(checkpoint.config.data, path=args.input)
    training = dataclasses.replace(checkpoint.config.training, seed=args.seed)
    config = dataclasses.replace(checkpoint.config, data=data, training=training)
    names = [task.name for task in config.tasks]
    if args.task is not None:
        config.place(args.task)
    if config.diffusion.distilled:
        raise UserError("this model was distilled to steps of its own: there are none to search")
    runtime.setup(args.device)
    unet, found = precondition(checkpoint.load_unet(), config.diffusion), {}
    for place, task in enumerate(names):
        if args.task in (None, task):
            gammas, squares = denoising_errors(unet, config, place, args.pictures, args.seed)
            if not 2 <= counts[0] <= counts[-1] <= len(gammas):
                raise UserError(f"--steps must be from 2 to {len(gammas)}, the length of the chain")
            found[task] = best_steps(elbo_costs(gammas, squares), counts)
            for count, steps in found[task].items():
                print(f"{task}, {count} steps: {' '.join(map(str, steps))}")
    print(save_steps(checkpoint, found))


if __name__ == "__main__":
    errors.run(main)
