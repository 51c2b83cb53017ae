"""python -m palette_ms.sample: restore a picture, or a folder of them, or make new ones, with a checkpoint."""

import argparse
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from palette_ms import errors, runtime
from palette_ms.data.files import at_work, expand, find, identity, plain_name, result_names, stem, tell_left_out
from palette_ms.data.forms import Photo
from palette_ms.data.images import check_regular, further_frames, no_pictures
from palette_ms.data.originals import FORMATS, same_format
from palette_ms.data.readers import ARRAY_SUFFIXES
from palette_ms.data.results import RECORD, Results, Work, digest
from palette_ms.diffusion.guidance import GUIDANCE_SCHEDULES
from palette_ms.diffusion.samplers import STARTS, Sampling
from palette_ms.diffusion.schedule import SPACINGS
from palette_ms.diffusion.solvers import SOLVERS
from palette_ms.errors import UserError
from palette_ms.priors.restorations import METHODS, OPTIONS, RESTORATIONS, calls, restoration, restoration_asks
from palette_ms.quality.blend import BLENDS
from palette_ms.quality.mix import MIXES
from palette_ms.quality.nearest import LPIPS, by_lpips
from palette_ms.quality.stage import QUALITY, SCORES, Quality
from palette_ms.tasks import check_asked, known_asks
from palette_ms.tasks.imports import add_import

FURTHER = "start", "repeats", "jump", "rounds", "round_noise"  # of the chain
BARELY_TRAINED = 20_000  # pictures; below, a new model leaves noise or blur: see palette_ms.training.loop.advice


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.sample", description=__doc__)
    parser.add_argument("pictures", type=expand, nargs="*", metavar="PICTURE", help="the same as --input")
    parser.add_argument("--ckpt", default="photo",
                        help="checkpoint (.safetensors), or photo (default), the model that ships")
    parser.add_argument("--input", type=expand, nargs="+", default=[],
                        help="pictures, or folders of pictures; left out for a model that makes pictures from nothing")
    parser.add_argument("--output", default="outputs", type=expand,
                        help="folder for the results (default: outputs), or of one picture the result's name, such as "
                             "result.png")
    parser.add_argument("--format", choices=(*FORMATS, "same"),
                        help="of the results, or that of each picture (default: png, or what --output ends in; models "
                             "of arrays write such files as they were trained with)")
    parser.add_argument("--quality", type=int, metavar="1-100", help="of jpg, webp and avif (default: 95)")
    parser.add_argument("--resume", action="store_true",
                        help="leave out pictures whose results are there, made of the same picture in the same way")
    parser.add_argument("--task", help="such as colorization or inpainting; needed where the model knows several")
    add_import(parser)
    for ask, takers in known_asks().items():
        parser.add_argument(f"--{ask.name.replace('_', '-')}", dest=ask.name, type=ask.parse, metavar=ask.metavar,
                            help=f"for {', '.join(takers)}: {ask.help} ({ask.range()})".replace("%", "%%"))
    add_prior(parser)
    parser.add_argument("--sampler", help=f"{', '.join(SOLVERS)} (default: what the checkpoint says is best)")
    parser.add_argument("--steps", type=number_of_calls, metavar="N|auto",
                        help="network calls a picture (default: what the checkpoint says; the paper's chain is "
                             "--sampler ddpm --steps 1000); auto: as many as each picture is worth, where the "
                             "checkpoint knows")
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
    add("--flips", type=int, choices=(1, 2, 4),
        help="take the mean over so many mirror images at each call, which is more faithful and as many times slower "
             "(default: what the checkpoint says)")
    add_guidance(add)
    add("--start", choices=STARTS, default="source",
        help="of a chain below the full strength: the source (default), or the estimate of a first call")
    add("--repeats", type=int, default=1, metavar="N", help="for ddpm and ddim: go through each --jump levels N times "
                                                            "(RePaint)")
    add("--jump", type=int, default=Sampling.jump, metavar="N", help="for --repeats (default: %(default)s)")
    add("--rounds", type=int, default=0, metavar="N", help="add noise of a low level to the result and take it away, N "
                                                           "times")
    add("--round-noise", type=float, default=Sampling.round_noise, metavar="S",
        help="for --rounds: the noise's deviation over the signal's (default: %(default)s)")
    add = parser.add_argument_group("after the chain", "what each brings: docs/quality.md").add_argument
    add("--best", type=int, metavar="K", help="of --num-samples, keep the K with the highest --score")
    add("--score", choices=(*SCORES, *LPIPS), default="denoising",
        help="denoising (default): how small the model's error is in taking noise away from a sample again; "
             "lpips_alex, lpips_vgg: how near it is to the others")
    add("--weights", type=expand, metavar="FOLDER", help="where the published weights of --score lpips_… lie (default: "
                                                         "PyTorch's cache)")
    add("--mix", choices=MIXES, help="make one result of --num-samples")
    add("--blend", choices=BLENDS, default="none", help="how a hole's border is fitted to what is around it")
    add("--resample", type=int, default=0, metavar="N", help="make what has a bad seam again, up to N times")
    add("--resample-regions", type=int, default=0, metavar="N",
        help="make the regions again, N times, where the samples are far apart")
    add("--border-rounds", type=int, default=0, metavar="N",
        help="add noise to the borders of holes alone and take it away, N times")
    add("--refine", action="store_true", help="let the refining network that the checkpoint carries sharpen the result")
    add("--confidence", action="store_true",
        help="write NAME_confidence beside each result: white where the samples agree, and so are likely right")
    parser.add_argument("--tile", type=int, help="restore in tiles of so many pixels a side (default: the whole "
                                                 "picture at once, where the network allows its size)")
    parser.add_argument("--overlap", type=int, help="of neighbouring tiles, in pixels (default: a quarter of the tile)")
    parser.add_argument("--max-memory", metavar="SIZE",
                        help="such as 8G: what takes more is made in tiles as far as that helps, or refused (default: "
                             "half of the machine's)")
    parser.add_argument("--num-samples", type=int, default=1, help="different results for each picture")
    parser.add_argument("--first-sample", type=int, default=0, metavar="K",
                        help="number of the first of them: 2 makes the third of several again, alone")
    parser.add_argument("--class", dest="label", type=int, help="of a class-conditional model (default: drawn)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    parser.add_argument("--runtime", default="auto", help="of the network: mindspore; on a CPU openvino or onnx (ONNX "
                                                          "Runtime); or auto (default), there the first of openvino, "
                                                          "onnx and mindspore that is installed")
    parser.add_argument("--precision", default="auto", help="of the network: float32; float16; bfloat16; or auto "
                                                            "(default): float16 on Ascend; bfloat16 where OpenVINO "
                                                            "and the processor can and the checkpoint says that it "
                                                            "is near enough; else float32")
    parser.add_argument("--jit-level", choices=("O0", "O1"),
                        help="of MindSpore's compiler: O1 makes one kernel of neighbouring operators (default: its own "
                             "choice)")
    args = parser.parse_args()
    args.input = [*args.pictures, *args.input]

    runtime.check_launcher()
    one = names_result(args.output)
    if args.output.exists() and not args.output.is_dir() and not one:
        raise UserError(f"--output {args.output} is a file; it must be a folder")
    for source in args.input:
        if not os.path.exists(source):
            raise UserError(f"no such picture or folder: {source}")
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise UserError(f"--quality must be from 1 to 100, not {args.quality}")
    if one and args.input and (len(args.input) > 1 or args.input[0].is_dir()):
        raise UserError(f"--output {args.output} is the name of one picture: for several, name a folder")

    from palette_ms.pipeline import Palette, check_counts

    check_counts(args.num_samples, args.seed, args.first_sample)  # before each sample gets a name
    if args.max_memory is not None:
        os.environ["PALETTE_MS_MAX_MEMORY"] = args.max_memory or "nothing"
    runtime.max_memory()
    palette = Palette.load(args.ckpt, args.device, args.runtime, args.precision, args.jit_level)
    check_format(palette.forms[1], args, one)
    if palette.pictures is not None and palette.pictures < BARELY_TRAINED:
        print(f"warning: this model has seen only {palette.pictures:,} training pictures: expect noise or blur; "
              "train it longer", file=sys.stderr)
    if palette.makes_pictures:
        if args.steps == "auto":
            raise UserError("--steps auto is for models that were trained to restore")
        further = [name for name in FURTHER if getattr(args, name) != getattr(Sampling, name)] * bool(args.input)
        asked = [*further, *after(args)]
        if asked:
            raise UserError(f"--{asked[0].replace('_', '-')} is for models that were trained to restore")
        if args.input:
            return restore_by_prior(palette, args, one)
        refuse_prior(args, "restore a picture: name one, or a folder, as --input")
        if args.task not in (None, *palette.tasks):
            raise UserError(f"{args.task} by a model that makes pictures from nothing needs a picture, as --input")
        if args.tile is not None or args.overlap is not None:
            raise UserError("--tile and --overlap are for models that restore pictures")
        if runtime.rank() > 0:
            return
        options = sampling(args, palette, palette.config.tasks[0])

        def generate(work):
            with tqdm(desc="sample", unit="call", disable=None, leave=False) as bar:
                return palette.generate(args.num_samples, None, args.label, seed=args.seed, progress=bar,
                                        first_sample=args.first_sample, **options)

        work = works([(None, f"sample_{args.seed}")], args.output, one, palette.forms[0].suffixes)
        make(palette, work, args, generate, lambda work: [], {**options, "class": args.label})
        return
    if not args.input:
        raise UserError(f"this model restores pictures ({', '.join(palette.tasks)}): name one, or a folder, as --input")
    if args.label is not None:
        raise UserError("--class is for models that make pictures from nothing")
    refuse_prior(args, "were not trained to restore, and this one was")
    masks = [value for ask in known_asks() for value in [getattr(args, ask.name)] if isinstance(value, str)]
    pictures = found(args.input, args.output, masks, palette.forms[0].suffixes)
    restore(palette, works(pictures, args.output, one, palette.forms[0].suffixes), args)


def number_of_calls(text):
    """What --steps holds."""
    return text if text == "auto" else int(text)


number_of_calls.__name__ = "whole number"  # in argparse's error


def add_guidance(add):
    """The options of classifier-free guidance, by a parser's `add_argument`."""
    add("--guidance", type=float, default=1.0, metavar="W", help="classifier-free guidance's weight (default: 1, off)")
    add("--guidance-schedule", choices=GUIDANCE_SCHEDULES, default="constant",
        help="how that weight grows as noise goes: linear and cosine have the same mean (default: constant)")
    add("--guidance-interval", type=two_numbers, metavar="A,B",
        help="guide only where the noise's deviation over the signal's is between these, such as 0.3,5")


def two_numbers(text):
    """A,B → a tuple of floats."""
    first, second = text.split(",")
    return float(first), float(second)


def add_prior(parser):
    """The options of models that make pictures from nothing, and so restore by guidance."""
    add = parser.add_argument_group("for models that make pictures from nothing",
                                    f"which restore without having been trained to: --task {', '.join(RESTORATIONS)}"
                                    ).add_argument
    known = {ask.name for ask in known_asks()}
    for ask, takers in restoration_asks().items():
        if ask.name not in known:
            add(f"--{ask.name.replace('_', '-')}", dest=ask.name, type=ask.parse, metavar=ask.metavar,
                help=f"for {', '.join(takers)}: {ask.help} ({ask.range()})")
    add("--prior", choices=METHODS, help="the method (default: gdp; of JPEG, ddnm)")
    add("--guidance-scale", type=float, metavar="S", help="for gdp: weight of the given picture, for 256 × 256")
    add("--loss", help="for gdp: what compares, mse (default) or mae")
    add("--exposure-weight", dest="exposure", type=float, metavar="W", help="for gdp: of the exposure-control loss")
    add("--colour-weight", dest="colour", type=float, metavar="W", help="for gdp: of the colour-constancy loss")
    add("--smoothness-weight", dest="smoothness", type=float, metavar="W",
        help="for gdp: of the smoothness of the map M that is learned for low_light and hdr")
    add("--guide-at", help="for gdp: take the gradient at x0 (default) or xt")
    add("--guide-by-variance", action="store_true", default=None, help="for gdp: times the step's variance")
    add("--zeta", type=float, help="for dps the step (default: 1), for diffpir the share of fresh noise (0.3)")
    add("--flat", dest="hierarchical", action="store_false", help="make no small picture of a large one first")


def refuse_prior(args, which):
    """Raises UserError: there are options that `add_prior` adds."""
    names = OPTIONS | {ask.name for ask in restoration_asks()} - {ask.name for ask in known_asks()}
    given = sorted(name for name in names if getattr(args, name) is not None)
    if given or not args.hierarchical:
        raise UserError(f"{', '.join(given) or 'flat'}: for models that {which}")


def restore_by_prior(palette, args, one):
    """Pictures by a model that was not trained to restore: see `palette_ms.priors.restore`."""
    task = restoration(args.task)
    if args.label is not None:
        raise UserError("--class is for models that make pictures from nothing, when they do")
    asks = {ask.name: ask for ask in (*known_asks(), *restoration_asks())}
    given = {name: value for name in asks for value in [getattr(args, name)] if value is not None}
    task.checked(given)
    options = {name: value for name in OPTIONS for value in [getattr(args, name)] if value is not None}
    options.update(spacing=args.spacing, eta=args.eta, dynamic_threshold=args.dynamic_threshold, strength=args.strength,
                   tolerance=args.tolerance, guidance=args.guidance, reuse=args.reuse, flips=args.flips or 1,
                   detail=args.detail, sampler=args.sampler, steps=args.steps, tile=args.tile, overlap=args.overlap,
                   hierarchical=args.hierarchical)
    print(f"{task.name} by prior {args.prior or task.prior}: this model was not trained to restore, and makes what "
          f"fits the picture in {calls(args.steps, palette.config.diffusion)} steps", file=sys.stderr)
    masks = [value for value in given.values() if isinstance(value, str)]
    pictures = found(args.input, args.output, masks, palette.forms[0].suffixes)
    work = works(pictures, args.output, one, palette.forms[0].suffixes)
    choices = {name: asks[name].for_each(value) for name, value in given.items()}

    def make_one(work):
        with tqdm(desc=work.picture.name, unit="call", disable=None, leave=False) as bar:
            return palette.restore(work.picture, task.name, num_samples=args.num_samples, seed=args.seed, progress=bar,
                                   first_sample=args.first_sample, **options,
                                   **{name: choose(work.path) for name, choose in choices.items()})

    def files(work):
        chosen = [choose(work.path) for choose in choices.values()]
        values = [value for choice in chosen for value in (choice if isinstance(choice, tuple) else (choice,))]
        return [Path(value) for value in values if isinstance(value, (str, Path)) and Path(value).is_file()]

    make(palette, work, args, make_one, files, {"task": task.name, "asked": given, **options})


def sampling(args, palette, task):
    """The options of `palette_ms.diffusion.samplers.Sampling`, by their names; what they are by default is said."""
    names = ("spacing", "eta", "dynamic_threshold", "strength", "tolerance", "guidance", "guidance_schedule",
             "guidance_interval", "reuse", "flips")
    further = [name for name in FURTHER if getattr(args, name) != getattr(Sampling, name)]
    options = {name: getattr(args, name) for name in (*names, *further)}
    if args.steps == "auto":
        return {**options, "sampler": args.sampler, "steps": "auto"}
    chosen = palette.sampling(task, args.sampler, args.steps, args.detail,
                              args.first_sample + args.num_samples + args.resample, **options)
    diffusion = palette.config.diffusion
    if args.steps is None and not diffusion.distilled:
        length = (task.test_schedule or diffusion.test_schedule).num_steps
        steps = chosen.steps or length
        mirrored = f", each the mean over {chosen.flips} mirror images" * (chosen.flips > 1)
        print(f"sampling: {chosen.sampler} with {steps} network call{'s' * (steps > 1)}{mirrored}; the whole chain is "
              f"--sampler ddpm --steps {length}", file=sys.stderr)
    return {**options, "sampler": chosen.sampler, "steps": chosen.steps, "flips": chosen.flips}


def after(args):
    """The options of `palette_ms.quality.stage.Quality` that are asked for, by their names."""
    return {name: getattr(args, name) for name in sorted(QUALITY)
            if getattr(args, name) != getattr(Quality, name)}


def found(sources, output, masks, suffixes):
    """(path, relative path that names it among all) of pictures and of those in folders, none twice, but for those in
    the folders of results and masks. Of several sources, a folder's own name comes before its pictures'."""
    pictures = {}
    for source in sources:
        files, names = [source], [source.name]
        if source.is_dir():
            files, left_out = find(source, suffixes, [output, *masks])
            if identity(source) == identity(output):
                earlier, count = Results(output).lines, len(files)
                files = [file for file in files if str(file.relative_to(source)) not in earlier]
                left_out["results of earlier runs"] = count - len(files)
            tell_left_out(source, +left_out)
            if not files:
                raise no_pictures(source, suffixes)
            above = Path(source.resolve().name if len(sources) > 1 else "")
            names = [above / file.relative_to(source) for file in files]
        for file, name in zip(files, names):
            pictures.setdefault(os.path.abspath(file), (file, name))
    return list(pictures.values())


def check_format(form, args, one):
    """Set `args.format` where it follows from the name of the result. Raises UserError: the model cannot write it."""
    if not isinstance(form, Photo):
        if args.format or args.quality is not None:
            raise UserError("--format and --quality are for photos, and this model makes arrays")
        suffixes = [form.path(Path("a")).suffix]
    else:
        if one and args.format is None:
            args.format = next((name for name, suffix in FORMATS.items() if suffix == suffix_of(args.output)), None)
        suffixes = [FORMATS[args.format]] if args.format in FORMATS else list(FORMATS.values())
    if one and (suffix_of(args.output) not in suffixes or args.format == "same"):
        raise UserError(f"--output {args.output} must be a folder, or end in {' or '.join(suffixes)}")


def suffix_of(path):
    """A path's suffix as results have it: of photo.JPEG, .jpg."""
    suffix = path.suffix.lower()
    return {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)


def format_of(form, work, args):
    """The arguments of the form's `save` for a picture, besides the quality."""
    if not isinstance(form, Photo):
        return {}
    if args.format != "same":
        return {"format": args.format or "png"}
    try:
        check_regular(work.picture)
        with Image.open(work.picture) as image:
            return {"format": same_format(image.format)}
    except Exception:  # which is told when the picture is read
        return {"format": "png"}


def names_result(output):
    """Whether `--output` is the name of one result rather than a folder."""
    return output.suffix.lower() in ARRAY_SUFFIXES and not output.is_dir()


def works(pictures, output, one, suffixes):
    """The `Work` of all pictures, (path, name) each. one: `output` is the result's name, not a folder."""
    names = result_names([Path(name) for _, name in pictures], suffixes)
    return [Work(picture, Path(path), plain_name(name), *((output.parent, stem(output, ARRAY_SUFFIXES)) if one else
                                                          (output, output / name)))
            for (picture, path), name in zip(pictures, names)]


def restore(palette, work, args):
    task = choose_task(palette, args)
    options = {**sampling(args, palette, task), **after(args)}
    score = {"score": by_lpips(args.score, args.weights)} if args.score in LPIPS else {}
    palette.quality({**after(args), **score}, args.num_samples)  # once, and not for each picture
    if args.confidence and not isinstance(palette.forms[1], Photo):
        raise UserError("--confidence writes pictures of photos' confidence, and this model makes arrays: "
                        "Palette.restore(…, confidence=True, details=True) gives it")
    given = {ask.name: getattr(args, ask.name) for ask in known_asks()}
    check_asked(task, given, palette.config.data.image_size, palette.forms[0])  # once, and not for each picture
    choices = {ask.name: ask.for_each(given[ask.name]) for ask in known_asks()}

    def asked(work):
        return {name: choose(work.path) for name, choose in choices.items()}

    def restore_one(work):
        with tqdm(desc=work.picture.name, unit="call", disable=None, leave=False) as bar:
            made = palette.restore(work.picture, task.name, num_samples=args.num_samples, seed=args.seed,
                                   tile=args.tile, overlap=args.overlap, progress=bar, first_sample=args.first_sample,
                                   details=args.confidence, **asked(work), **{**options, **score})
        if not args.confidence:
            return made
        return [*made.samples, Image.fromarray(np.uint8(np.round(255 * made.confidence)))]

    def files(work):
        return [Path(value) for value in asked(work).values()
                if isinstance(value, (str, Path)) and Path(value).is_file()]

    asks = {name: value for name, value in given.items() if not isinstance(value, str) or not os.path.exists(value)}
    how = {"task": task.name, "tile": args.tile, "overlap": args.overlap, "asked": asks, **options}
    make(palette, work, args, restore_one, files, how)


def make(palette, work, args, make_one, given_for, how):
    """The results of all pictures, written and told, without loss of anything that is there.

    Args:
        work: list of `Work`.
        make_one: function of a `Work` → its results.
        given_for: function of a `Work` → what was given for it besides the picture: files (`Path`) and texts.
        how: what else decides the results, for the record.

    Raises:
        UserError: something would be overwritten, or some results could not be made.
    """
    form, folder = palette.forms[1], work[0].folder
    # The best of several are numbered from the best on; what is mixed of several is one.
    numbers = range(args.first_sample, args.first_sample + (args.best or (1 if args.mix else args.num_samples)))
    run = digest(palette.sha256, {**how, "seed": args.seed, "precision": args.precision, "format": args.format,
                                  "quality": args.quality})
    several = len(numbers) > 1 or args.first_sample > 0
    kinds = {one: format_of(form, one, args) for one in work}
    named = args.output.suffix if names_result(args.output) else None
    names = [*(f"_{k}" * several for k in numbers), *["_confidence"] * args.confidence]
    targets = {one: [one.target.with_name(one.target.name + name) for name in names] for one in work}
    paths = {one: [target.with_name(target.name + named) if named else form.path(target, **kinds[one])
                   for target in targets[one]] for one in work}
    alone = len(work) == 1 and not any(map(Path.is_dir, args.input))
    failed = done = frames = 0
    with at_work(folder / RECORD) if runtime.rank() == 0 else nullcontext():
        results, given, problems = Results(folder), {}, {}
        taken = {target for some in targets.values() for target in some[:len(numbers)]}
        inputs = {identity(path) for path in (palette.path, *(one.picture for one in work)) if path}
        for one in work:
            try:
                if one.picture:
                    check_regular(one.picture)
                given[one] = given_for(one)
                inputs.update(identity(thing) for thing in given[one] if isinstance(thing, Path))
            except UserError as error:
                problems[one] = error
            except OSError as error:
                problems[one] = UserError(f"cannot read picture {one.picture}: {error.strerror}")
        for one in work:
            problem = results.check(one.picture, paths[one], inputs)
            if not problem and args.confidence and paths[one][-1].with_suffix("") in taken:
                problem = f"cannot write {paths[one][-1]}: another picture's result has this name"
            if problem:
                problems[one] = UserError(problem)
        if runtime.rank() == 0 and not named:  # which may lie among anything
            results.tell_left_overs(work, [path for some in paths.values() for path in some], run,
                                    args.first_sample > 0)
        runtime.sum_over_ranks(0)  # none writes before all have looked
        for one in work[runtime.rank()::runtime.ranks()]:
            try:
                if one in problems:
                    raise problems[one]
                made_of = digest(run, *given[one], *[one.picture] * bool(one.picture))
                line = {**results.about(one, run), "made_of": made_of}
                if args.resume and all(results.is_done(path, made_of) for path in paths[one]):
                    results.confirm(paths[one], run)
                    done += 1
                    continue
                quality = {"quality": args.quality} if args.quality is not None else {}
                for path, result in zip(paths[one], make_one(one)):
                    results.note(path, **line)
                    form.save(result, path, **kinds[one], **quality)
                    results.note(path, **line, sha256=digest(path))
            except Exception as error:
                if not isinstance(error, UserError):
                    error = _of_one(error, one)
                if alone:
                    raise error from None
                if one.picture and str(one.picture) not in str(error):
                    error = UserError(f"{one.picture}: {error}")
                failed += 1
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                continue
            if one.picture and isinstance(form, Photo):
                frames += further_frames(one.picture)
            for path in paths[one]:
                print(path, flush=True)  # msrun ends a rank at once where another one has failed
        if done:
            print(f"{done} pictures were made before, of the same and in the same way, and left as they are",
                  file=sys.stderr)
        if frames:
            print(f"not restored: {frames} further frames or pages of these pictures; of each the first alone is",
                  file=sys.stderr)
        # msrun kills all ranks once one fails: none may before all are done
        failed = int(runtime.sum_over_ranks(failed))
    if failed:
        raise UserError(f"{failed} of {len(work)} pictures could not be restored")


def _of_one(error, work):
    """The UserError of an error that is one picture's, such as for want of memory; others are raised again."""
    memory = isinstance(error, MemoryError) or re.search("memory|alloc", str(error), re.I)
    if isinstance(error, BrokenPipeError) or not (memory or isinstance(error, (OSError, cv2.error))):
        raise error
    if isinstance(error, OSError) and not memory:
        return UserError(f"cannot write the results of {work.name}: {error.strerror or error}")
    reason = "there is not enough memory for it; --tile takes less" if memory else " ".join(str(error).split())
    return UserError(f"{work.picture or work.name}: {reason}")


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
