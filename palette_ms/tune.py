"""python -m palette_ms.tune: measure how a checkpoint is best used for each of its tasks, and write it into it."""

import argparse
import dataclasses
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from palette_ms import errors, runtime
from palette_ms.diffusion.worth import ALIKE, cross_validated, features, learned
from palette_ms.errors import UserError
from palette_ms.tasks.imports import add_import

SAMPLERS = ("ddim", "dpmpp_2m")  # of the others, ddpm is for long chains, and what heun and unipc add shows there
# In dB, what pictures in bfloat16 must keep to those in float32, at least, to be taken for them.
NEAR = 45
# In dB, what twice as many mirror images must gain to be worth twice the time, and tiles to be worth their borders.
WORTH = 0.08


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.tune", description=__doc__,
        epilog="The most faithful way (the highest PSNR over what is made) becomes what sample and restore() do by "
               "default; among ways with more calls, the one whose results have as much detail as the originals is "
               "what --detail 1 does. Mirror images (--flips) are taken where they gain 0.08 dB each time their number "
               "is doubled (never by models of data.flip: false), tiles of the training size, or of that which the "
               "checkpoint had, where they gain as much over whole pictures, and bfloat16 on processors that compute "
               "in it where pictures keep 45 dB to those in float32. Take photos that it was not trained with, and a "
               "--size as that of those to restore.")
    parser.add_argument("--ckpt", required=True, help="checkpoint (.safetensors), which is written again")
    parser.add_argument("--input", required=True, help="pictures like those to restore: as data.path in training")
    parser.add_argument("--output", help="where to write it instead")
    parser.add_argument("--task", help="default: each that the model knows")
    parser.add_argument("--steps", default="1,2,3,4,6,8", help="numbers of network calls to try (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="of the square taken of each, at most (default: "
                                                              "%(default)s)")
    parser.add_argument("--predict-steps", action="store_true",
                        help="learn, too, how many calls each picture is worth (sample --steps auto), and keep it "
                             "where it is found to gain or to save something; take 30 pictures or more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    add_import(parser)
    args = parser.parse_args()
    try:
        steps = sorted({int(text) for text in args.steps.split(",")})
    except ValueError:
        raise UserError(f"--steps {args.steps!r} is not a list of whole numbers such as 1,2,4") from None
    if min(steps) < 1 or args.pictures < 1 or args.size < 1 or args.seed < 0:
        raise UserError("--steps, --pictures and --size must be at least 1, --seed at least 0")
    if args.predict_steps and (args.pictures < 4 or steps[0] != 1 or len(steps) < 2):
        raise UserError("--predict-steps needs --pictures of 4 or more, and --steps with 1 and others")

    from palette_ms.checkpoint import MODELS, Checkpoint
    from palette_ms.pipeline import Palette
    from palette_ms.searched import load_steps, save_steps

    checkpoint = Checkpoint(args.ckpt)
    output = Path(args.output or checkpoint.path)
    if output.absolute().parent == MODELS:
        raise UserError("this model is the package's own: name another file to write, with --output")
    if output.is_dir() or not os.access(output if output.exists() else output.absolute().parent, os.W_OK):
        raise UserError(f"cannot write {output}: it must be a file in a folder that can be written")
    if checkpoint.path.suffix != ".safetensors":
        raise UserError(f"{args.ckpt} is a MindSpore file, which holds no config to write into: convert it first")
    palette, rounded = Palette.load(args.ckpt, args.device, precision="float32"), None
    if palette.chains.network and runtime.runtime_obstacle("openvino", "bfloat16") is None:
        rounded = Palette.load(args.ckpt, "CPU", "openvino", "bfloat16")
    config = palette.config
    if palette.makes_pictures or config.diffusion.distilled:
        raise UserError("this model " + ("makes pictures from nothing: there is no original to compare with"
                                         if palette.makes_pictures else "was distilled to steps of its own"))
    wanted = range(len(config.tasks)) if args.task is None else [config.place(args.task)]
    tasks = list(config.tasks)
    for place in wanted:
        task = tasks[place]
        length = (task.test_schedule or config.diffusion.test_schedule).num_steps
        if max(steps) > length:
            raise UserError(f"--steps must be at most {length}, the length of the chain")
        examples = list(pairs(config, place, args.input, args.pictures, args.size, args.seed))
        ways = {(sampler, count): score(palette, place, examples, sampler, count, args.seed)
                for count in steps for sampler in SAMPLERS[:1 if count == 1 else None]}
        usage = best(ways)
        faithful = ways[usage.sampler, usage.steps][0]
        mirrored = {1: faithful}
        for flips in (2, 4) if config.data.flip else ():  # others were trained to tell left from right
            mirrored[flips], _ = score(palette, place, examples, usage.sampler, usage.steps, args.seed, flips)
            if mirrored[flips] < faithful + WORTH:
                break
            faithful, usage = mirrored[flips], dataclasses.replace(usage, flips=flips)
        tile = task.usage and task.usage.tile or config.data.image_size
        tiled, _ = score(palette, place, examples, usage.sampler, usage.steps, args.seed, usage.flips, tile)
        kept = task.usage.worth if task.usage and task.usage.sampler == usage.sampler else None
        usage = dataclasses.replace(usage, tile=tile if tiled >= faithful + WORTH else None, worth=kept,
                                    bfloat16=bool(task.usage and task.usage.bfloat16))
        near = None
        if rounded:
            near = distance(palette, rounded, place, examples, usage, args.seed)
            usage = dataclasses.replace(usage, bfloat16=near >= NEAR)
        if args.predict_steps:
            usage = dataclasses.replace(usage, worth=predictor(palette, place, examples, usage, steps, args.seed))
        tasks[place] = dataclasses.replace(task, usage=usage)
        _tell(task.name, ways, mirrored, {tile: tiled}, near, usage)
    palette.config = dataclasses.replace(config, tasks=tuple(tasks))
    found = load_steps(checkpoint)
    _write(checkpoint, palette.config, output)
    if found:  # which are known by the file's checksum
        save_steps(Checkpoint(output), found)
    print(output)


def best(ways):
    """`Usage` by what was measured.

    Args:
        ways: (PSNR in dB, detail over the originals') of each (sampler, steps).
    """
    from palette_ms.diffusion.usage import Usage

    limit = max(psnr for psnr, _ in ways.values()) - ALIKE
    sampler, steps = min((way for way, (psnr, _) in ways.items() if psnr >= limit), key=lambda way: way[1])
    away = {way: abs(np.log(detail)) for way, (_, detail) in ways.items()}
    # More than 1.5 dB worse, it is noise rather than detail; hardly nearer to the originals', it is not worth calls.
    richer = [way for way, (psnr, _) in ways.items() if way[0] == sampler and way[1] > steps and psnr >= limit - 1.5
              and away[way] < away[sampler, steps] - 0.05]
    return Usage(sampler, steps, min(richer, key=away.get)[1] if richer else None)


def pairs(config, place, source, number, size, seed):
    """(y_0, cond, mask) of whole pictures, damaged as in training, of the squares in their middle.

    Args:
        config: `palette_ms.config.Config`.
        place: of the task in it.
        source: as `data.path`.
        number: of pictures, at most.
        size: side of the square at most; it is cut to what the network divides.
        seed: decides the damage.

    Raises:
        UserError: see `palette_ms.data.sources.open_source`; or a picture is too small.
    """
    from palette_ms.data.forms import forms
    from palette_ms.data.loader import Pictures
    from palette_ms.data.sources import open_source
    from palette_ms.seeds import generator

    task, both = config.tasks[place], forms(config.data)
    pictures = Pictures(open_source(source, both[1].suffixes), both, 0)
    multiple = config.model.patch_size * 2 ** (len(config.model.channel_mults) - 1)
    for index in range(min(number, len(pictures))):
        row = pictures.read(index)
        height, width = (min(side, size) // multiple * multiple for side in row.target.shape[:2])
        if not height or not width:
            raise UserError(f"{source}: pictures must have {multiple} pixels a side or more")
        top, left = ((side - part) // 2 for side, part in zip(row.target.shape[:2], (height, width)))
        square = np.s_[top:top + height, left:left + width]
        y_0 = both[1].to_float(row.target[square])
        given = {}
        if task.needs_pairs:
            given = {"source": both[0].to_float(row.source[square]),
                     "mask": None if row.mask is None else np.float32(row.mask[square].transpose(2, 0, 1))}
        cond, mask = task.checked_pair(y_0, generator(seed, "tune", index), config.data.channels.source, **given)
        yield y_0, cond, np.ones_like(y_0[:1]) if mask is None else mask


def score(palette, place, examples, sampler, steps, seed, flips=1, tile=None):
    """(mean PSNR in dB, geometric mean of the detail over the original's) over what is made."""
    from palette_ms.evaluation.detail import detail

    scores = []
    for (y_0, _, mask), made in zip(examples, results(palette, place, examples, sampler, steps, seed, flips, tile)):
        scores.append((psnr_of(made, y_0, mask), np.log((detail(made, mask) + 1e-6) / (detail(y_0, mask) + 1e-6))))
    psnr, detail_ = np.mean(scores, 0)
    return float(psnr), float(np.exp(detail_))


def results(palette, place, examples, sampler, steps, seed, flips=1, tile=None):
    """What is made of each example, (C, H, W)."""
    task = palette.config.tasks[place]
    sampling = palette.sampling(task, sampler, steps, flips=flips)
    for _, cond, mask in tqdm(examples, desc=f"{task.name}, {sampler}, {steps}", disable=None, leave=False):
        yield palette.make(place, cond, mask, sampling, seed, tile=tile)[0].clip(-1, 1)


def psnr_of(made, y_0, mask):
    """In dB, over what is made."""
    squares = (mask * (made - y_0) ** 2).sum() / (mask.sum() * len(y_0))
    return 10 * np.log10(4 / max(squares, 1e-12))


def predictor(palette, place, examples, usage, steps, seed):
    """A `palette_ms.diffusion.worth.Worth` for the usage's sampler, or None where by cross-validation it neither gains
    nor saves calls beside one number for all pictures."""
    if len(examples) < 4:
        raise UserError(f"--predict-steps needs 4 pictures or more, and there are {len(examples)}")
    psnr, known = [], None
    for count in steps:
        made = list(results(palette, place, examples, usage.sampler, count, seed))
        if known is None:
            known = np.stack([features(cond, y, mask) for (_, cond, mask), y in zip(examples, made)])
        psnr.append([psnr_of(y, y_0, mask) for (y_0, _, mask), y in zip(examples, made)])
    gains = np.transpose(np.subtract(psnr[1:], psnr[0]))
    means = [0.0, *gains.mean(0)]
    fixed = next(k for k, gain in enumerate(means) if gain >= max(means) - ALIKE)
    gain, calls = cross_validated(steps[1:], known, gains)
    helps = gain >= means[fixed] + ALIKE or (gain >= means[fixed] - ALIKE and calls < steps[fixed] - 0.1)
    best_each = np.maximum(gains.max(1), 0).mean()
    print(f"{palette.config.tasks[place].name}: by each picture's worth {gain:+.3f} dB over one call, with {calls:.2f} "
          f"calls; {steps[fixed]} for all {means[fixed]:+.3f} dB; the best of each, if one knew, {best_each:+.3f} dB: "
          + ("kept" if helps else "not kept"))
    return learned(steps[1:], known, gains) if helps else None


def distance(palette, rounded, place, examples, usage, seed):
    """The least PSNR in dB, over some examples, of what is made in another precision to what `palette` makes."""
    sampling = palette.sampling(palette.config.tasks[place], usage.sampler, usage.steps, flips=usage.flips)
    nearest = []
    for _, cond, mask in examples:
        one, other = (each.make(place, cond, mask, sampling, seed, tile=usage.tile)[0].clip(-1, 1)
                      for each in (palette, rounded))
        squares = (mask * (one - other) ** 2).sum() / (mask.sum() * len(one))
        nearest.append(10 * np.log10(4 / max(squares, 1e-12)))
    return float(min(nearest))


def _tell(name, ways, mirrored, tiled, near, usage):
    print(f"{name}: {usage.sampler} with {usage.steps}"
          + (f" over {usage.flips} mirror images" if usage.flips > 1 else "")
          + (f" in tiles of {usage.tile}" if usage.tile else "")
          + (f", and {usage.detailed_steps} for detail" if usage.detailed_steps else ""))
    for (sampler, steps), (psnr, detail_) in ways.items():
        print(f"    {sampler:10} {steps:4}   {psnr:6.2f} dB   {detail_:4.2f} of the originals' detail")
    print(f"    {usage.sampler:10} {usage.steps:4}   "
          + ", ".join([*(f"{psnr:.2f} dB over {flips} mirror images" for flips, psnr in list(mirrored.items())[1:]),
                       *(f"{psnr:.2f} dB in tiles of {side}" for side, psnr in tiled.items())]))
    if near is not None:
        print(f"    in bfloat16 {near:.1f} dB from float32, at the least: {'taken' if usage.bfloat16 else 'not taken'}")


def _write(checkpoint, config, path):
    """The checkpoint with another config; a training state stays one."""
    from palette_ms.checkpoint import save_checkpoint

    groups = {group: checkpoint.tensors(group) for group in ("weights", "ema", "optimizer", "refiner")}
    save_checkpoint(path, config, checkpoint.step, checkpoint.pictures, source=checkpoint.source,
                    run=checkpoint.run or None,
                    **{group: arrays for group, arrays in groups.items() if arrays})


if __name__ == "__main__":
    errors.run(main)
