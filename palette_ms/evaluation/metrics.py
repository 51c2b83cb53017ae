"""Distances between pictures, uint8 RGB (H, W, 3) or float arrays of the same range."""

import cv2
import numpy as np


def psnr(restored, original, where=None):
    """Peak signal-to-noise ratio in dB; infinite for equal pictures.

    Args:
        restored, original: (H, W, 3), 0 to 255.
        where: bool (H, W), the pixels that count; None: all.
    """
    error = np.subtract(restored, original, dtype=np.float64)
    mean = np.mean(np.square(error if where is None else error[where]))
    return float(10 * np.log10(255**2 / mean)) if mean else float("inf")


def ab_error(restored, original):
    """Mean distance in the ab plane of CIE Lab (colour without lightness); 0 for equal colours.

    Args:
        restored, original: uint8 (H, W, 3).
    """
    a, b = (cv2.cvtColor(np.float32(picture) / 255, cv2.COLOR_RGB2LAB)[..., 1:] for picture in (restored, original))
    return float(np.linalg.norm(a - b, axis=-1).mean())
