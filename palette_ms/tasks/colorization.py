"""Colorization: the source is the picture in gray (Palette, section 4.1)."""

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as libjpeg and Pillow


def colorization(y_0, rng=None, gray="luma"):
    """The picture in gray, repeated to three channels; no mask. Shapes and ranges as in `palette_ms.tasks`.

    Args:
        gray: "luma" (Rec. 601) or "lightness" (L of CIE Lab, 0 to 100, as −1 to 1).
    """
    if gray == "luma":
        value = np.tensordot(LUMA, y_0, 1)
    else:
        value = to_lab(y_0)[0] / 50 - 1
    return np.repeat(value[None], 3, 0), None


def with_lightness(y, source):
    """The colours (ab of CIE Lab) of one picture with the lightness of a source that `colorization` made of it.

    Args:
        y, source: float32 (3, H, W) in [−1, 1], the source with gray="lightness".

    Returns: as y.
    """
    lab = to_lab(y)
    lab[0] = (source[0] + 1) * 50
    rgb = cv2.cvtColor(np.ascontiguousarray(lab.transpose(1, 2, 0)), cv2.COLOR_LAB2RGB)
    return rgb.transpose(2, 0, 1) * 2 - 1


def to_lab(y):
    """float32 RGB (3, H, W) in [−1, 1] → CIE Lab (3, H, W): L in [0, 100], a and b in about [−127, 127] (sRGB, D65)."""
    rgb = np.clip(np.ascontiguousarray(y.transpose(1, 2, 0)) / 2 + 0.5, 0, 1)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).transpose(2, 0, 1)
