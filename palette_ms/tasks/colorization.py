"""Colorization: the source is the picture in gray (Palette, section 4.1)."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from palette_ms.tasks.task import Task, option

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as libjpeg and Pillow


@dataclass(frozen=True)
class Colorization(Task):
    """The source is gray, repeated to three channels."""

    name = "colorization"
    needs_rgb = True
    keeps_gray = False

    gray: Literal["luma", "lightness"] = option("luma", "what the source holds: luma (Rec. 601), or the L of CIE Lab, "
                                                        "which is put back into the result")

    def pair(self, y_0, rng):
        return self.source(y_0), None

    def source(self, picture, hole=None, rng=None):
        if self.gray == "luma":
            value = np.tensordot(LUMA, picture, 1)
        else:
            value = to_lab(picture)[0] / 50 - 1
        return np.repeat(value[None], 3, 0)

    def restore(self, pictures, asked, run):
        made = run(pictures)
        if self.gray == "luma":
            return made
        sources = [self.source(picture) for picture in pictures]
        samples = len(made) // len(pictures)
        return np.stack([with_lightness(np.clip(picture, -1, 1), sources[i // samples])
                         for i, picture in enumerate(made)])


def with_lightness(y, source):
    """The colours (ab of CIE Lab) of one picture with the lightness of a source that `Colorization` made of it.

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
