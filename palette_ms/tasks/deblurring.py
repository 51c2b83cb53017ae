"""Deblurring: the source is blurred by an optic out of focus or a camera that moved."""

import math
from dataclasses import dataclass
from typing import Literal, Tuple

import cv2
import numpy as np

from palette_ms.tasks.task import Task, option


@dataclass(frozen=True)
class Deblurring(Task):
    """Blurred by a Gaussian, or along a line at any angle (camera motion)."""

    name = "deblurring"

    kinds: Tuple[Literal["gaussian", "motion"], ...] = option(("gaussian", "motion"), "of blur, drawn evenly")
    sigma: Tuple[float, float] = option((0.5, 3.0), "a Gaussian's, in pixels, drawn evenly", above=0)
    length: Tuple[float, float] = option((3.0, 15.0), "a motion's, in pixels, drawn evenly", least=1)

    def pair(self, y_0, rng):
        if self.kinds[rng.integers(len(self.kinds))] == "gaussian":
            kernel = gaussian_kernel(rng.uniform(*self.sigma))
        else:
            kernel = motion_kernel(rng.uniform(*self.length), rng.uniform(0, math.pi))
        # Channel by channel: OpenCV filters at most four at once.
        return np.stack([cv2.filter2D(channel, -1, kernel, borderType=cv2.BORDER_REFLECT_101) for channel in y_0]), None


def gaussian_kernel(sigma):
    """(2r + 1, 2r + 1) float32, sum 1, r = ⌈3 sigma⌉."""
    line = np.exp(-0.5 * (np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1) / sigma) ** 2)
    kernel = np.outer(line, line)
    return (kernel / kernel.sum()).astype(np.float32)


def motion_kernel(length, angle):
    """Square, odd-sided float32, sum 1: a line through the middle, `length` pixels long, at `angle` radians."""
    radius = math.ceil(length / 2)
    kernel = np.zeros((2 * radius + 1,) * 2, np.float32)
    # Points close together on the line, each shared among the four pixels around it.
    for distance in np.linspace(-(length - 1) / 2, (length - 1) / 2, 8 * radius + 1):
        x, y = radius + distance * math.cos(angle), radius + distance * math.sin(angle)
        left, top = math.floor(x), math.floor(y)
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                if share_x * share_y > 0:
                    kernel[row, column] += share_x * share_y
    return kernel / kernel.sum()
