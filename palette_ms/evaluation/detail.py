"""How much fine detail a picture has."""

import cv2
import numpy as np


def detail(y, mask):
    """The mean size of the Laplacian where pixels were made: it falls with every smoothing and rises with noise.

    Args:
        y: float32 (C, H, W) in [−1, 1].
        mask: (1, H, W), 1 where they were.

    Returns: float, from 0 on.
    """
    sizes = [np.abs(cv2.Laplacian(channel, cv2.CV_32F)) for channel in y]
    return float(np.mean([size[mask[0] > 0] for size in sizes]))
