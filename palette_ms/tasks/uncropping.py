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
    count = height * width // 2
    flat = mask.reshape(-1) if side in ("top", "bottom") else np.zeros(height * width, np.float32)
    flat[:count] = 1
    mask = flat.reshape(height, width) if side in ("top", "bottom") else flat.reshape(width, height).T
    if side in ("right", "bottom"):
        mask = mask[::-1, ::-1]
    return np.ascontiguousarray(mask[None])
