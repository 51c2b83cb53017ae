"""Uncropping: one side of the picture is missing, or all four (Palette, section 4.3)."""

import math
from dataclasses import dataclass
from typing import Literal, Tuple

import numpy as np

from palette_ms.tasks.asks import SIDES, MarginsAsk
from palette_ms.tasks.fill import FILL, fill_hole, first_guess
from palette_ms.tasks.task import Task, option


@dataclass(frozen=True)
class Uncropping(Task):
    """Half of the pixels are to be made.

    A user's picture is extended side after side, at most half of the training size at a go: the model learned to make
    half of a picture from the other half, so each go shows it as much of what is next to the new strip.
    """

    name = "uncropping"
    asks = (MarginsAsk("extend", "pixels to add on some of left, right, top, bottom; more than half of the training "
                                 "size on a side is made in several goes, each continuing the one before",
                       metavar="left=64,right=64"),)
    required = ("extend",)

    sides: Tuple[Literal[(*SIDES, "all")], ...] = option((*SIDES, "all"), "which are missing, drawn evenly")
    fill: Literal["noise", "smooth"] = option("noise", FILL)

    def pair(self, y_0, rng):
        mask = side_mask(self.sides[rng.integers(len(self.sides))], *y_0.shape[1:])
        return self.source(y_0, mask, rng), mask

    def holes(self, height, width, asked, rng):
        return [hole for *_, hole in goes(asked["extend"], asked.trained, height, width)]

    def source(self, picture, hole, rng):
        return fill_hole(picture, hole, rng, self.fill)

    def guess(self, cond, hole):
        return first_guess(cond, hole, self.fill)

    def restore(self, pictures, asked, run):
        for number, (side, pixels, hole) in enumerate(goes(asked["extend"], asked.trained, *pictures.shape[2:])):
            axis = 3 if side in ("left", "right") else 2
            before = side in ("left", "top")
            known = hole.shape[axis - 1] - pixels
            near, new = [slice(None)] * 4, [slice(None)] * 4
            near[axis] = slice(known) if before else slice(pictures.shape[axis] - known, None)
            new[axis] = slice(pixels) if before else slice(known, None)
            made = run(np.pad(pictures[tuple(near)], ((0, 0), (0, 0), *margin(side, pixels))), number, stream=number)
            if len(pictures) < len(made):  # of each picture several samples
                pictures = np.repeat(pictures, len(made) // len(pictures), 0)
            strip = made[tuple(new)]
            pictures = np.concatenate((strip, pictures) if before else (pictures, strip), axis)
        return pictures

    def put_back(self, result, picture, hole, asked):
        top, left = (asked["extend"].get(side, 0) for side in ("top", "left"))
        result[top:top + picture.shape[0], left:left + picture.shape[1]] = picture
        return result


def goes(extend, trained, height, width):
    """The strips of a picture (height, width) in the order they are made in: (side, pixels, hole).

    The hole (1, h, w) is that of the window which the model is shown: the strip and what is next to it, `trained`
    pixels together.
    """
    shape, strips = [height, width], []
    for side in SIDES:
        axis = 1 if side in ("left", "right") else 0
        for done in range(0, extend.get(side, 0), trained // 2):
            pixels = min(trained // 2, extend[side] - done)
            near = list(shape)
            near[axis] = min(shape[axis], trained - pixels)
            hole = np.pad(np.zeros(near, np.float32), margin(side, pixels), constant_values=1)
            strips.append((side, pixels, hole[None]))
            shape[axis] += pixels
    return strips


def margin(side, pixels):
    """Pixels on one side, as `np.pad` takes them for (H, W)."""
    return {"left": ((0, 0), (pixels, 0)), "right": ((0, 0), (0, pixels)),
            "top": ((pixels, 0), (0, 0)), "bottom": ((0, pixels), (0, 0))}[side]


def side_mask(side, height, width):
    """float32 (1, H, W), 1 in half of the pixels (rounded down): at the side named, or around the middle for "all"."""
    mask = np.zeros((height, width), np.float32)
    if side == "all":
        mask[:] = 1
        known = height * width - height * width // 2
        rows = min(height, max(1, round(height / math.sqrt(2))))
        columns, rest = divmod(known, rows)
        if columns >= width:  # a strip too narrow to have sides
            columns, rest = width, 0
            rows = known // width
        top, left = (height - rows) // 2, (width - columns) // 2
        mask[top:top + rows, left:left + columns] = 0
        # What is left over of the half lies along the middle's right edge.
        mask[top:top + rest, min(left + columns, width - 1)] = 0
        return mask[None]
    if side in ("left", "right"):
        return side_mask({"left": "top", "right": "bottom"}[side], width, height).transpose(0, 2, 1).copy()
    mask.flat[:height * width // 2] = 1
    return mask[None] if side == "top" else mask[None, ::-1, ::-1].copy()
