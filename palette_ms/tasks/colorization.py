"""Colorization: the source is the picture in gray (Palette, section 4.1)."""

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as libjpeg and Pillow


def colorization(y_0, rng=None):
    """Luma repeated to three channels; no mask. Shapes and ranges as in `palette_ms.tasks`."""
    luma = np.tensordot(LUMA, y_0, 1)
    return np.repeat(luma[None], 3, 0), None
