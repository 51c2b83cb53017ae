"""Whole pictures made worse: JPEG artefacts, small size, blur, noise. No masks: everything is to be made.

Shapes and ranges as in `palette_ms.tasks`.
"""

import io
import math

import cv2
import numpy as np
from PIL import Image

from palette_ms.data.images import to_float, to_uint8


def jpeg_restoration(y_0, rng, quality=(5, 30)):
    """Encoded as JPEG at a factor drawn evenly from `quality`, both ends included (Palette, section 4.4), and decoded.

    The encoder is libjpeg by way of Pillow, with its usual chroma subsampling (4:2:0).
    """
    return jpeg(y_0, int(rng.integers(quality[0], quality[1] + 1))), None


def jpeg(y_0, quality):
    """The picture after JPEG at one quality factor, 1 to 100."""
    file = io.BytesIO()
    Image.fromarray(to_uint8(y_0)).save(file, "JPEG", quality=quality)
    return to_float(np.asarray(Image.open(file)))


def super_resolution(y_0, rng, scales=(4,)):
    """Made smaller by a factor drawn from `scales` and large again, both bicubic (SR3: Saharia et al. 2021,
    arXiv 2104.07636, section 2). Sides that the factor does not divide are rounded up when made smaller."""
    height, width = y_0.shape[1:]
    scale = scales[rng.integers(len(scales))]
    small = Image.fromarray(to_uint8(y_0)).resize((math.ceil(width / scale), math.ceil(height / scale)), Image.BICUBIC)
    return enlarge(np.asarray(small), height, width), None


def enlarge(picture, height, width):
    """uint8 (h, w, 3) → the source of super-resolution, float32 (3, height, width)."""
    return to_float(np.asarray(Image.fromarray(picture).resize((width, height), Image.BICUBIC)))


def deblurring(y_0, rng, kinds=("gaussian", "motion"), sigma=(0.5, 3.0), length=(3, 15)):
    """Blurred by a Gaussian of `sigma` pixels, or along a line of `length` pixels at any angle (camera motion)."""
    if kinds[rng.integers(len(kinds))] == "gaussian":
        kernel = gaussian_kernel(rng.uniform(*sigma))
    else:
        kernel = motion_kernel(rng.uniform(*length), rng.uniform(0, math.pi))
    blurred = cv2.filter2D(y_0.transpose(1, 2, 0), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(blurred.transpose(2, 0, 1)), None


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


def denoising(y_0, rng, sigma=(5.0, 50.0)):
    """White Gaussian noise added, of a deviation drawn from `sigma`, in grey levels of 255; clipped to [−1, 1]."""
    noise = rng.standard_normal(y_0.shape, np.float32) * np.float32(rng.uniform(*sigma) / 127.5)
    return np.clip(y_0 + noise, -1, 1), None
