"""python -m palette_ms.imagine: pictures of texts or classes, by models that are run one after the other."""

import argparse
import os
import re
import sys

from tqdm import tqdm

from palette_ms import errors, runtime
from palette_ms.data.files import expand
from palette_ms.data.originals import FORMATS
from palette_ms.diffusion.schedule import SPACINGS
from palette_ms.diffusion.solvers import SOLVERS
from palette_ms.errors import UserError
from palette_ms.sample import add_guidance, check_format, make, names_result, works

_LETTERS = 60  # of a prompt that a file is named by


def per_stage(kind, many=False):
    """A parser of "A,B,…", a value for each stage, or one for all; - is the default, and with `many` A:B several."""
    def one(text):
        if text in ("", "-"):
            return None
        parts = [kind(part) for part in text.split(":")] if many else [kind(text)]
        return parts if len(parts) > 1 else parts[0]

    def parse(text):
        return [one(part.strip()) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}"  # which argparse calls it in errors
    return parse


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.imagine", description=__doc__,
        epilog="STAGES are values with commas between, one for each model, - for its default; a single one counts for "
               "all that take it.")
    parser.add_argument("--cascade", required=True, metavar="BASE[,NEXT…]",
                        help="checkpoints: one that makes small pictures, then those that enlarge them")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT",
                        help="what is to be seen; several times for several")
    parser.add_argument("--prompts", type=expand, metavar="FILE", help="a prompt a line")
    parser.add_argument("--encoder", type=expand, metavar="FOLDER",
                        help="of the T5 that the models were trained with: config.json, weights and tokenizer")
    parser.add_argument("--class", dest="label", type=int, help="of class-conditional models (default: drawn)")
    parser.add_argument("--output", default="outputs", type=expand,
                        help="folder for the results (default: outputs), or of one picture its name")
    parser.add_argument("--num-samples", type=int, default=1, help="different pictures of each prompt")
    parser.add_argument("--first-sample", type=int, default=0, metavar="K",
                        help="number of the first of them: 2 makes the third of several again, alone")
    parser.add_argument("--seed", type=int, default=0)
    add = parser.add_argument_group("how each stage's chain is run").add_argument
    add("--sampler", type=per_stage(str), metavar="STAGES", help=f"{', '.join(SOLVERS)}")
    add("--steps", type=per_stage(int), metavar="STAGES", help="network calls")
    add("--spacing", type=per_stage(str), metavar="STAGES", help=f"of the noise levels: {', '.join(SPACINGS)}")
    add("--eta", type=per_stage(float), metavar="STAGES", help="noise of ddim, from 0 to 1")
    add("--dynamic-threshold", type=per_stage(float), metavar="STAGES",
        help="clip to this quantile, such as 0.995, instead of 1")
    add("--source-noise", type=per_stage(float, many=True), metavar="STAGES",
        help="of stages after the first: the level of noise that is added to the picture before, from 0 to 1; A:B:C "
             "makes each and keeps the best by the stage's own denoising error")
    of_stages = {"type": per_stage(float), "metavar": "STAGES", "default": None}
    add_guidance(lambda name, **how: add(name, **{**how, **(of_stages if name == "--guidance" else {})}))
    parser.add_argument("--format", choices=tuple(FORMATS),
                        help="of the results (default: png, or what --output ends in)")
    parser.add_argument("--quality", type=int, metavar="1-100", help="of jpg, webp and avif (default: 95)")
    parser.add_argument("--resume", action="store_true", help="leave out what is there, made in the same way")
    parser.add_argument("--max-memory", metavar="SIZE", help="such as 8G; larger pictures are made in tiles or refused")
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    parser.add_argument("--runtime", default="auto", help="of the networks: see sample")
    parser.add_argument("--precision", default="auto", help="of the networks: see sample")
    parser.add_argument("--jit-level", choices=("O0", "O1"), help="of MindSpore's compiler: see sample")
    args = parser.parse_args()

    runtime.check_launcher()
    one = names_result(args.output)
    if args.output.exists() and not args.output.is_dir() and not one:
        raise UserError(f"--output {args.output} is a file; it must be a folder")
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise UserError(f"--quality must be from 1 to 100, not {args.quality}")
    prompts = read_prompts(args)
    if one and len(prompts) > 1:
        raise UserError(f"--output {args.output} is the name of one picture: for several prompts, name a folder")

    from palette_ms.cascade import Cascade
    from palette_ms.pipeline import check_counts

    check_counts(args.num_samples, args.seed, args.first_sample)
    if args.max_memory is not None:
        os.environ["PALETTE_MS_MAX_MEMORY"] = args.max_memory or "nothing"
    runtime.max_memory()
    paths = [path.strip() for path in args.cascade.split(",") if path.strip()]
    cascade = Cascade.load(paths, args.encoder, args.device, args.runtime, args.precision, args.jit_level)
    last = cascade.stages[-1]
    check_format(last.forms[1], args, one)
    if cascade.takes_text and not prompts:
        raise UserError("these models make pictures of texts: give one as --prompt, or a file of them as --prompts")
    options = stage_options(args, cascade)
    print(f"cascade: {' → '.join(f'{size}×{size}' for size in cascade.sizes)}", file=sys.stderr)
    for prompt in prompts:  # all that is wrong with one is told before the first is made
        cascade.check_prompt(prompt)
    names = {f"{k:04}_{_slug(prompt)}" if prompt else f"picture_{args.seed}": prompt
             for k, prompt in enumerate(prompts or [None])}

    def make_one(work):
        with tqdm(desc=work.name, unit="call", disable=None, leave=False) as bar:
            return cascade.generate(names[work.name], args.num_samples, args.seed, args.label, options,
                                    progress=bar, first_sample=args.first_sample)

    # What `make` asks of a sample's options and these have not.
    args.best = args.mix = None
    args.confidence, args.input = False, []
    work = works([(None, name) for name in names], args.output, one, last.forms[0].suffixes)
    how = {"cascade": [stage.sha256 for stage in cascade.stages], "options": options, "class": args.label,
           "encoder": cascade.encoder and cascade.encoder.fingerprint}
    make(last, work, args, make_one, lambda work: [names[work.name]], how)


def read_prompts(args):
    """The prompts of the command line and of the file, in order. Raises UserError: one is empty, or the file cannot be
    read."""
    prompts = list(args.prompt)
    if args.prompts is not None:
        try:
            lines = args.prompts.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read --prompts {args.prompts}: {getattr(error, 'strerror', None) or error}"
                            ) from None
        prompts += [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UserError(f"--prompts {args.prompts} holds no prompt")
    if any(not prompt.strip() for prompt in prompts):
        raise UserError("the prompt is empty: say what is to be seen")
    return prompts


def stage_options(args, cascade):
    """For each stage its options by name. Raises UserError: another number of values than of stages."""
    count, options = len(cascade.stages), [{} for _ in cascade.stages]
    for name in ("sampler", "steps", "spacing", "eta", "dynamic_threshold", "source_noise", "guidance"):
        values = getattr(args, name)
        if values is None:
            continue
        if len(values) == 1:
            if not any(takes(name, stage, k) for k, stage in enumerate(cascade.stages)):
                raise UserError(f"--{name.replace('_', '-')} is for "
                                + {"source_noise": "stages after the first that were trained with model.source_noise",
                                   "guidance": "models that take a text, and were trained without it, too"}[name]
                                + ", and there is none in this cascade")
            values = [values[0] if takes(name, stage, k) else None for k, stage in enumerate(cascade.stages)]
        if len(values) != count:
            raise UserError(f"--{name.replace('_', '-')} has {len(values)} values, and the cascade {count} stages: "
                            "give one for each, with commas, or one for all")
        for chosen, value in zip(options, values):
            if value is not None:
                chosen[name] = value
    for chosen in options:
        if chosen.get("guidance", 1) > 1:
            chosen.update(guidance_schedule=args.guidance_schedule, guidance_interval=args.guidance_interval)
    return options


def takes(name, stage, k):
    """Whether a stage takes an option that is given for all."""
    config = stage.config
    return {"source_noise": k > 0 and config.model.source_noise,
            "guidance": bool(config.model.text_channels is not None and config.training.text_dropout)}.get(name, True)


def _slug(prompt):
    """A prompt as a part of a file's name."""
    return re.sub(r"[^\w]+", "_", prompt).strip("_")[:_LETTERS].strip("_") or "prompt"


if __name__ == "__main__":
    errors.run(main)
