"""Uncropping: one side of the picture is missing, or all four (Palette, section 4.3)."""

import math

import numpy as np

from palette_ms.tasks.inpainting import fill_hole

SIDES = ("left", "right", "top", "bottom", "all")


def uncropping(y_0, rng, sides=SIDES, fill="noise"):
    """Half of the pixels are to be made, on a side drawn evenly. Shapes and ranges as in `palette_ms.tasks`."""
    mask = side_mask(sides[rng.integers(len(sides))], *y_0.shape[1:])
    return fill_hole(y_0, mask, rng, fill), mask


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
