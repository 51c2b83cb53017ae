"""How often what a text-to-picture cascade makes is what its caption says: colours, shapes, relations, counts, sizes
and places, by a detector that learned nothing, on scenes that training never saw.

    python benchmarks/shapes.py base.safetensors,sr.safetensors --encoder DATA/t5 --output FOLDER [--guidance 1,2,6]
        [--schedule cosine] [--source-noise 0.1] [--number 100] [--steps 20] [--sampler NAME] [--seed 0]

DATA is what `scripts/shapes_data.py` wrote. Writes the pictures, a sheet of the first ones, and prints a table: of all
pictures the share with the right colours, with the right shapes, with each colour on its shape; of those with two
things the share that is related as said, of those with several alike the share with the right number, of those that
name a size or a place the share that has it. The last line is what the detector says of true pictures, as small as the
base's and enlarged.
"""

import argparse
import sys
import textwrap
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from shapes_data import COLOURS, COUNTS, PLACES, RELATIONS, SIZES, draw_scene, render

from palette_ms.cascade import Cascade
from palette_ms.data.files import expand
from palette_ms.seeds import generator

SIDE = 64  # to which pictures are brought
_SHOWN = 8  # pictures of each kind on the sheet
_CELL, _GAP, _LINE = 128, 8, 16  # on the sheet, in pixels
_LEAST = 0.006  # of the picture: smaller spots are none
_COVERED = 0.5  # from here on a pixel is a thing's
_RIM = 3  # pixels around it, in which a blurred edge ends
_FAR = 60  # from the line between background and colour, in grey levels: another colour
# What tells shapes apart, whatever their size, and hardly changes as they are blurred. Skewness from top to bottom: of
# a triangle −0.57, of the others 0. E[x² y²] / (E[x²] E[y²]): of a circle 2/3; of a square, whose x and y are
# independent, 1.
_SKEWED, _INDEPENDENT = -0.22, 0.87
_AREAS = {"triangle": 1 / 2, "circle": np.pi / 4, "square": 1}  # over that of the box
_BETWEEN = 0.1625, 0.197  # half sides that part small from usual and usual from large things


def detect(picture):
    """The things in a picture.

    Each pixel is taken for a mixture of the background and one of `COLOURS`. Connected pixels of more than half of a
    colour are a thing; its shape is told by the moments of that share, as of a mass.

    Args:
        picture: uint8 (H, W, 3).

    Returns: list of (colour, shape, x, y, half side of the box), as shares of the picture's side; a shape that is twice
        as wide as high, or the reverse, is None.
    """
    picture = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    border = np.concatenate((picture[0], picture[-1], picture[:, 0], picture[:, -1]))
    background = np.median(border, 0)
    away = picture - background
    towards = np.float32(list(COLOURS.values())) - background
    share = away @ towards.T / (towards**2).sum(1)
    distance = np.linalg.norm(away[:, :, None] - share[..., None] * towards, axis=-1)
    nearest = distance.argmin(-1)
    found = []
    for k, colour in enumerate(COLOURS):
        cover = np.where((nearest == k) & (distance[..., k] < _FAR), np.clip(share[..., k], 0, 1), 0)
        count, labels = cv2.connectedComponents((cover > _COVERED).astype(np.uint8))
        for label in range(1, count):
            core = (labels == label).astype(np.uint8)
            thing = cover * cv2.dilate(core, np.ones((3, 3), np.uint8), iterations=_RIM)
            thing[(labels != label) & (labels > 0)] = 0
            if core.sum() >= _LEAST * SIDE**2:
                found.append((colour, *_measure(thing / SIDE**2)))
    return found


def _measure(mass):
    """(shape, x, y, half side) of shares of pixels (SIDE, SIDE), which add up to an area."""
    axis, area = (np.arange(SIDE) + 0.5) / SIDE, mass.sum()
    x, y = (mass.sum(side) @ axis / area for side in (0, 1))
    u, v = axis - x, axis - y
    across, down, skew = ((mass.sum(side) @ power / area) for side, power in ((0, u**2), (1, v**2), (1, v**3)))
    both = v**2 @ mass @ u**2 / area
    shape = "triangle" if skew < _SKEWED * down**1.5 else "square" if both > _INDEPENDENT * across * down else "circle"
    half = np.sqrt(area / _AREAS[shape]) / 2
    return shape if 1 / 4 < across / down < 4 else None, x, y, half


def judge(picture, scene):
    """What of a scene is right in a picture: dict of booleans by name; what the scene does not say is left out."""
    found, wanted = detect(picture), scene.all_things
    right = {"colour": Counter(thing[0] for thing in found) == Counter(thing.colour for thing in wanted),
             "shape": Counter(thing[1] for thing in found) == Counter(thing.shape for thing in wanted),
             "both": Counter(thing[:2] for thing in found) == Counter(thing[1:] for thing in wanted)}
    if scene.count:
        right["count"] = len(found) == COUNTS[scene.count]
    if scene.relation:
        right["relation"] = right["both"] and _related(found, scene)
    if scene.place:
        right["place"] = len(found) == 1 and min(PLACES, key=lambda place: np.hypot(
            *(np.array(found[0][2:4]) - (0.25 + 0.5 * np.array(PLACES[place]))))) == scene.place
    sized = [thing for thing in wanted if thing.size]
    if sized:
        right["size"] = right["both"] and all(_size(thing, found) == thing.size for thing in sized)
    return right


def _related(found, scene):
    (first, second), (axis, sign) = ([next(one for one in found if one[:2] == thing[1:]) for thing in scene.things],
                                     RELATIONS[scene.relation])
    away = np.subtract(second[2:4], first[2:4])
    return sign * away[axis] > abs(away[1 - axis])


def _size(thing, found):
    half = next(one[4] for one in found if one[:2] == thing[1:])
    return tuple(SIZES)[sum(half > bound for bound in _BETWEEN)]


def shares(pictures, scenes):
    """Of each thing that can be right, the share that is, among the scenes that say it: dict of floats."""
    judged = [judge(picture, scene) for picture, scene in zip(pictures, scenes)]
    names = "colour", "shape", "both", "relation", "count", "size", "place"
    return {name: float(np.mean([right[name] for right in judged if name in right] or [np.nan])) for name in names}


def held_out_scenes(number, seed):
    """So many scenes that training never saw."""
    return [draw_scene(generator(seed, "judged", k), True) for k in range(number)]


def true_pictures(scenes, seed, side, small):
    """Their true pictures, made `small` and enlarged to `side` again."""
    for k, scene in enumerate(scenes):
        picture = render(generator(seed, "true", k), scene, small)
        yield cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR) if side != small else picture


def sheet(rows, captions):
    """The first pictures of each row below their captions, a PIL image.

    Args:
        rows: lists of (name, pictures).
        captions: of the columns.
    """
    wrapped = [textwrap.wrap(caption, 20) for caption in captions[:_SHOWN]]
    top, step = _GAP + _LINE * max(map(len, wrapped)) + _GAP, _CELL + _GAP
    drawn = Image.new("RGB", (step * (1 + len(wrapped)) + _GAP, top + step * len(rows)), "white")
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(13)
    for j, lines in enumerate(wrapped):
        draw.multiline_text((step * (j + 1), _GAP), "\n".join(lines), "black", font)
    for i, (name, pictures) in enumerate(rows):
        draw.multiline_text((_GAP, top + step * i + _CELL / 2), "\n".join(textwrap.wrap(name, 18)), "black", font, "lm")
        for j, picture in enumerate(pictures[:len(wrapped)]):
            cell = Image.fromarray(picture).resize((_CELL, _CELL), Image.NEAREST)
            drawn.paste(cell, (step * (j + 1), top + step * i))
    return drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cascade", help="checkpoints with commas between, the base first")
    parser.add_argument("--encoder", required=True, help="folder of the T5")
    parser.add_argument("--output", required=True, type=expand)
    parser.add_argument("--guidance", default="1,2,6", help="weights of the base's guidance (default: %(default)s)")
    parser.add_argument("--schedule", default="constant", help="of that weight (default: %(default)s)")
    parser.add_argument("--source-noise", type=float, default=0.1, help="in the enlargement's source (default: 0.1)")
    parser.add_argument("--number", type=int, default=100, help="captions, a picture each (default: %(default)s)")
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--steps", type=int, default=20, help="network calls of the base (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cascade = Cascade.load(args.cascade.split(","), args.encoder)
    scenes = held_out_scenes(args.number, args.seed)
    rows, shown = [], []
    for weight in map(float, args.guidance.split(",")):
        base = {"sampler": args.sampler, "steps": args.steps, "dynamic_threshold": 0.995}
        if weight > 1:
            base.update(guidance=weight, guidance_schedule=args.schedule)
        further = [{"sampler": "ddim", "steps": 4, "source_noise": args.source_noise} for _ in cascade.stages[1:]]
        pictures = []
        for k, scene in enumerate(tqdm(scenes, desc=f"guidance {weight:g}", unit="picture", disable=None)):
            picture, = cascade.generate(scene.caption, seed=args.seed, first_sample=k, options=[base, *further])
            pictures.append(np.asarray(picture))
            folder = args.output / f"guidance_{weight:g}"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{k:04}.png")
        name = f"guidance {weight:g}" if weight > 1 else "no guidance"
        rows.append((name, shares(pictures, scenes)))
        shown.append((name, pictures))
    side, small = pictures[0].shape[0], cascade.sizes[0]
    true = list(true_pictures(scenes, args.seed, side, small))
    rows.append((f"true pictures, {small} × {small} enlarged", shares(true, scenes)))
    shown.append(("true pictures, as small as the base's and enlarged", true))
    sheet(shown, [scene.caption for scene in scenes]).save(args.output / "sheet.png")
    print("| | " + " | ".join(rows[0][1]) + " |\n| --- |" + " --- |" * len(rows[0][1]))
    for name, row in rows:
        print(f"| {name} | " + " | ".join(f"{100 * value:.0f} %" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
