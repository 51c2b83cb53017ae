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

    What is to be added to a user's picture is one hole beside or around it. Where that is wider than half of the
    training size, it is made from coarse to fine, see `palette_ms.holes`.
    """

    name = "uncropping"
    asks = (MarginsAsk("extend", "pixels to add on some of left, right, top, bottom; more than half of the training "
                                 "size on a side is made small first, and then finer",
                       metavar="left=64,right=64"),)
    required = ("extend",)

    sides: Tuple[Literal[SIDES + ("all",)], ...] = option((*SIDES, "all"), "which are missing, drawn evenly")
    fill: Literal["noise", "smooth"] = option("noise", FILL)

    def pair(self, y_0, rng):
        mask = side_mask(self.sides[rng.integers(len(self.sides))], *y_0.shape[1:])
        return self.source(y_0, mask, rng), mask

    def holes(self, height, width, asked, rng):
        return [np.pad(np.zeros((1, height, width), np.float32), margins(asked["extend"]), constant_values=1)]

    def source(self, picture, hole, rng):
        return fill_hole(picture, hole, rng, self.fill)

    def guess(self, cond, hole):
        return first_guess(cond, hole, self.fill)

    def restore(self, pictures, asked, run):
        return run(np.pad(pictures, ((0, 0), *margins(asked["extend"]))))

    def put_back(self, result, picture, hole, asked):
        top, left = (asked["extend"].get(side, 0) for side in ("top", "left"))
        result[top:top + picture.shape[0], left:left + picture.shape[1]] = picture
        return result


def margins(extend):
    """Pixels to add by side, as `np.pad` takes them for (1, H, W)."""
    left, right, top, bottom = (extend.get(side, 0) for side in SIDES)
    return (0, 0), (top, bottom), (left, right)


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
