"""python -m palette_ms.likelihood: how many bits a model takes for pictures, by the variational bound."""

import argparse
import json
import sys

import numpy as np
from tqdm import tqdm

from palette_ms import errors, runtime
from palette_ms.data.files import expand, replacing
from palette_ms.errors import UserError
from palette_ms.tasks.imports import add_import

_ROWS = 10  # of the table of terms


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.likelihood", description=__doc__,
        epilog="Bits for each value that is made, given the source: of −log p there is at most so much. Smaller is "
               "better. The variance is what the config says, learned or not.")
    parser.add_argument("--ckpt", required=True, help="checkpoint (.safetensors), or photo: the model that ships")
    parser.add_argument("--input", required=True, type=expand, help="clean pictures, as data.path in training")
    parser.add_argument("--task", help="needed where the model knows several")
    parser.add_argument("--steps", type=int, help="of the chain, evenly spaced; fewer make the bound looser (default: "
                                                  "all of its test schedule, each a network call)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the squares in the pictures' middles "
                                                                   "(default: as in training)")
    parser.add_argument("--pictures", type=int, help="how many (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="decides damage and noise")
    parser.add_argument("--output", type=expand, metavar="FILE.json", help="terms and total of each picture")
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    add_import(parser)
    args = parser.parse_args()
    if args.seed < 0 or any(value is not None and value < 1 for value in (args.pictures, args.steps)):
        raise UserError("--pictures and --steps must be at least 1, --seed at least 0")
    if args.output and (args.output.suffix.lower() != ".json" or args.output.exists()):
        raise UserError(f"--output {args.output} must end in .json, and not be there yet")

    from mindspore import Tensor

    from palette_ms.data.forms import Photo
    from palette_ms.diffusion.bound import BoundTerms
    from palette_ms.diffusion.schedule import evenly_spaced, make_gamma_schedule
    from palette_ms.evaluation.trials import open_clean
    from palette_ms.pipeline import Palette

    palette = Palette.load(args.ckpt, args.device)
    diffusion = palette.config.diffusion
    if not isinstance(palette.forms[1], Photo) or diffusion.distilled or (
            palette.makes_pictures and palette.config.model.num_classes is not None):
        raise UserError("the likelihood is for models of photos that are neither distilled nor of classes of pictures")
    if args.task is None and len(palette.tasks) > 1:
        raise UserError(f"this model knows several tasks: add --task {' or --task '.join(palette.tasks)}")
    place = palette.config.place(args.task or palette.tasks[0])
    task = palette.config.tasks[place]
    gammas = make_gamma_schedule(**vars(task.test_schedule or diffusion.test_schedule))
    try:
        kept = evenly_spaced(len(gammas), args.steps or len(gammas))
    except ValueError as error:
        raise UserError(f"--{error}") from None
    runtime.setup("CPU" if palette.chains.network else args.device, quiet=True)
    label = [] if palette.config.model.num_classes is None else [np.int32([place])]

    network = palette.chains.silent(palette.chains.network or palette.unet)

    def unet(x, told):
        if palette.chains.network:
            return Tensor(network(x.asnumpy(), told.asnumpy(), *label))
        return network(x, told, *map(Tensor, label))

    terms = BoundTerms(gammas[kept], diffusion.prediction, diffusion.variance, diffusion.clip)
    size, source = open_clean(palette, task, args.input, args.size)
    number = min(len(source), args.pictures or len(source))
    found, failed = measure(palette, task, source, number, size, args.seed, unet, gammas[kept],
                    kept if diffusion.time_input == "t" else gammas[kept], terms)
    tell(found, gammas[kept])
    if args.output:
        text = json.dumps({"gammas": gammas[kept][::-1].tolist(), "seed": args.seed,
                           **{name: values.tolist() for name, values in found.items()}}, indent=1)
        with replacing(args.output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if failed:
        raise UserError(f"{failed} of {number} pictures could not be read and are left out")


def measure(palette, task, source, number, size, seed, unet, gammas, told, terms):
    """What `palette_ms.diffusion.bound.bound` gives, of all pictures, one after the other, and how many are left out,
    since they cannot be read. Raises UserError: none can."""
    from palette_ms.diffusion.bound import bound
    from palette_ms.evaluation.trials import make_pair
    from palette_ms.seeds import generator

    found = []
    with tqdm(total=number * len(gammas), desc="likelihood", unit="call", disable=None, leave=False) as bar:
        for index in range(number):
            try:
                y_0, cond, mask = make_pair(palette, task, source, index, size, seed)
            except UserError as error:
                if number == 1:
                    raise
                tqdm.write(f"left out: {error}", file=sys.stderr)
                bar.update(len(gammas))
                continue
            rng = generator(seed, "likelihood", index)
            found.append(bound(unet, y_0[None], None if cond is None else cond[None],
                               lambda _, rng=rng, shape=y_0.shape: rng.standard_normal((1, *shape), np.float32),
                               gammas, told, terms, mask[None], bar.update))
    if not found:
        raise UserError(f"none of the {number} pictures can be read")
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}, number - len(found)


def tell(found, gammas):
    """The bound, for a terminal."""
    total = found["total"]
    spread = f", standard deviation {total.std():.4f}" if len(total) > 1 else ""
    print(f"{total.mean():.4f} bits a value, at most, of {len(total)} pictures{spread}")
    print(f"{'gamma':>22}{'bits':>12}{'error of y_0':>15}{'of eps':>10}")
    print(f"{'prior':>22}{found['prior'].mean():12.6f}")
    for steps in np.array_split(np.arange(len(gammas)), min(_ROWS, len(gammas))):
        levels = gammas[::-1][steps]
        print(f"{f'{levels[0]:.3g} to {levels[-1]:.3g}':>22}{found['terms'][:, steps].sum(1).mean():12.6f}"
              f"{found['y_0_error'][:, steps].mean():15.6f}{found['eps_error'][:, steps].mean():10.4f}")
    sys.stdout.flush()


if __name__ == "__main__":
    errors.run(main)
