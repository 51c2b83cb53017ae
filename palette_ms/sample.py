"""python -m palette_ms.sample: restore a picture, or a folder of them, or make new ones, with a checkpoint."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from palette_ms import errors, runtime
from palette_ms.data.images import list_images, result_names
from palette_ms.diffusion.schedule import SPACINGS
from palette_ms.diffusion.solvers import SOLVERS
from palette_ms.errors import UserError
from palette_ms.tasks import check_asked, known_asks
from palette_ms.tasks.imports import add_import

BARELY_TRAINED = 20_000  # pictures; below, a new model leaves noise or blur: see palette_ms.training.loop.advice


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.sample", description=__doc__)
    parser.add_argument("--ckpt", required=True, help="checkpoint (.safetensors), or photo: the model that ships")
    parser.add_argument("--input", type=Path, help="picture, or folder of pictures; left out for a model that makes "
                                                   "pictures from nothing")
    parser.add_argument("--output", required=True, type=Path, help="folder for the results: PNG, or such files as the "
                                                                   "model was trained with")
    parser.add_argument("--task", help="such as colorization or inpainting; needed where the model knows several")
    add_import(parser)
    for ask, takers in known_asks().items():
        parser.add_argument(f"--{ask.name.replace('_', '-')}", dest=ask.name, type=ask.parse, metavar=ask.metavar,
                            help=f"for {', '.join(takers)}: {ask.help} ({ask.range()})".replace("%", "%%"))
    parser.add_argument("--sampler", help=f"{', '.join(SOLVERS)} (default: what the checkpoint says is best)")
    parser.add_argument("--steps", type=int, help="network calls a picture (default: what the checkpoint says; the "
                                                  "paper's chain is --sampler ddpm --steps 1000)")
    parser.add_argument("--detail", type=float, metavar="SHARE",
                        help="in place of --steps, from 0, the most faithful picture, to 1, one with the detail of a "
                             "photo (default: 0, and 1 for several samples)")
    add = parser.add_argument_group("how the chain is run").add_argument
    add("--spacing", help=f"of the chain's noise levels: {', '.join(SPACINGS)} (default: what suits the sampler)")
    add("--eta", type=float, default=0.0, help="noise of ddim, from 0 (default) to 1")
    add("--dynamic-threshold", type=float, metavar="SHARE", help="clip to this quantile, such as 0.995, instead of 1")
    add("--strength", type=float, default=1.0, help="below 1: start from the source at this share of the chain")
    add("--tolerance", type=float, default=0.0, help="end early where the result moves less, such as 0.005")
    add("--reuse", type=int, default=1, metavar="N", help="let the coarser levels work in one call of N (DeepCache)")
    add("--guidance", type=float, default=1.0, metavar="W", help="classifier-free guidance's weight (default: 1, off)")
    parser.add_argument("--tile", type=int, help="restore in tiles of so many pixels a side (default: the whole "
                                                 "picture at once, where the network allows its size)")
    parser.add_argument("--overlap", type=int, help="of neighbouring tiles, in pixels (default: a quarter of the tile)")
    parser.add_argument("--num-samples", type=int, default=1, help="different results for each picture")
    parser.add_argument("--class", dest="label", type=int, help="of a class-conditional model (default: drawn)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    parser.add_argument("--runtime", default="auto", help="of the network: mindspore; onnx (ONNX Runtime) on a "
                                                          "CPU; or auto (default), onnx where it is installed")
    parser.add_argument("--precision", default="auto", help="of the network: float32; float16; bfloat16; or auto "
                                                            "(default), float16 on Ascend, float32 elsewhere")
    args = parser.parse_args()

    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file; it must be a folder")
    if args.input and not args.input.exists():
        raise UserError(f"no such picture or folder: {args.input}")

    from palette_ms.pipeline import Palette

    palette = Palette.load(args.ckpt, args.device, args.runtime, args.precision)
    if palette.pictures is not None and palette.pictures < BARELY_TRAINED:
        print(f"warning: this model has seen only {palette.pictures:,} training pictures: expect noise or blur; "
              "train it longer", file=sys.stderr)
    if palette.makes_pictures:
        if args.input:
            raise UserError("this model makes pictures from nothing: leave --input out")
        if args.tile is not None or args.overlap is not None:
            raise UserError("--tile and --overlap are for models that restore pictures")
        if runtime.rank() > 0:
            return
        with tqdm(desc="sample", unit="call", disable=None, leave=False) as bar:
            results = palette.generate(args.num_samples, None, args.label, seed=args.seed, progress=bar,
                                       **sampling(args, palette, palette.config.tasks[0]))
        write(palette, results, args.output / f"sample_{args.seed}")
        return
    if not args.input:
        raise UserError(f"this model restores pictures ({', '.join(palette.tasks)}): name one, or a folder, as --input")
    if args.label is not None:
        raise UserError("--class is for models that make pictures from nothing")
    restore(palette, inputs(args.input, args.output, palette.forms[0].suffixes), args)


def sampling(args, palette, task):
    """The options of `palette_ms.diffusion.samplers.Sampling`, by their names; what they are by default is said."""
    names = ("spacing", "eta", "dynamic_threshold", "strength", "tolerance", "guidance", "reuse")
    options = {name: getattr(args, name) for name in names}
    chosen = palette.sampling(task, args.sampler, args.steps, args.detail, args.num_samples, **options)
    diffusion = palette.config.diffusion
    if args.steps is None and not diffusion.distilled:
        length = (task.test_schedule or diffusion.test_schedule).num_steps
        steps = chosen.steps or length
        print(f"sampling: {chosen.sampler} with {steps} network call{'s' * (steps > 1)}; the whole chain is "
              f"--sampler ddpm --steps {length}", file=sys.stderr)
    return {**options, "sampler": chosen.sampler, "steps": chosen.steps}


def inputs(source, output, suffixes):
    """(picture, where its result goes, without suffix) for a picture or all of a folder."""
    folder = source.is_dir()
    pictures = list_images(source, suffixes) if folder else [source]
    names = result_names(pictures, source if folder else source.parent)
    return [(picture, output / name) for picture, name in zip(pictures, names)]


def restore(palette, work, args):
    task = choose_task(palette, args)
    failed, options = 0, sampling(args, palette, task)
    given = {ask.name: getattr(args, ask.name) for ask in known_asks()}
    check_asked(task, given, palette.config.data.image_size, palette.forms[0])  # once, and not for each picture
    for picture, target in work[runtime.rank()::runtime.ranks()]:
        try:
            if picture.resolve() == palette.forms[1].path(target).resolve():
                raise UserError(f"{picture} would be overwritten: choose another --output")
            asked = {ask.name: ask.of(given[ask.name], picture) for ask in known_asks()}
            with tqdm(desc=picture.name, unit="call", disable=None, leave=False) as bar:
                results = palette.restore(picture, task.name, num_samples=args.num_samples, seed=args.seed,
                                          tile=args.tile, overlap=args.overlap, progress=bar, **asked, **options)
        except UserError as error:
            if not args.input.is_dir():
                raise
            failed += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        write(palette, results, target)
    failed = int(runtime.sum_over_ranks(failed))  # msrun kills all ranks once one fails: none may before all are done
    if failed:
        raise UserError(f"{failed} of {len(work)} pictures could not be restored")


def write(palette, results, target):
    """Each under the target's name, with its number where there are several, and its path on stdout."""
    for k, result in enumerate(results):
        name = target.with_name(target.name + (f"_{k}" if len(results) > 1 else ""))
        try:
            path = palette.forms[1].save(result, name)
        except OSError as error:
            raise UserError(f"cannot write {palette.forms[1].path(name)}: {error.strerror}") from None
        print(path, flush=True)  # msrun ends a rank at once where another one has failed


def choose_task(palette, args):
    """The task that is named, or else the only one, or the only one that takes, or else needs, all that is asked."""
    known = palette.config.tasks
    if args.task is not None:
        return known[palette.config.place(args.task)]
    tasks = {name: known[palette.config.place(name)] for name in palette.tasks}
    asked = {ask.name for ask in known_asks() if getattr(args, ask.name) is not None}
    fitting = [name for name, task in tasks.items() if asked <= {ask.name for ask in task.asks}] if asked else []
    needing = [name for name in fitting if asked & set(tasks[name].required)]
    for choices in (list(tasks), fitting, needing):
        if len(choices) == 1:
            return tasks[choices[0]]
    raise UserError(f"this model knows several tasks: add --task {' or --task '.join(tasks)}")


if __name__ == "__main__":
    errors.run(main)
