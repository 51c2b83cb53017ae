"""Inpainting: the hole is filled with Gaussian noise in the source (Palette, section 4.2)."""

import numpy as np

from palette_ms.tasks.masks import MASKS


def inpainting(y_0, rng, masks=("free_form", "rectangle")):
    """A hole of a kind drawn evenly from `masks` (names in `MASKS`). Shapes and ranges as in `palette_ms.tasks`."""
    kind = masks[rng.integers(len(masks))]
    mask = MASKS[kind](rng, *y_0.shape[1:])
    return fill_hole(y_0, mask, rng), mask


def fill_hole(y_0, mask, rng):
    """The source: y_0 (3, H, W) outside the mask (1, H, W), standard Gaussian noise inside."""
    return np.where(mask > 0, rng.standard_normal(y_0.shape, np.float32), y_0)
