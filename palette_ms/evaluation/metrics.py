"""How near one picture is to another: arrays (H, W, C) of the same range.

A metric of `METRICS` is a function (restored, original, where, span) → float, where `where`, bool (H, W) or None, says
which pixels count, and `span` how far apart the least and the greatest value are. It may raise UserError for pictures
that it has no value for.
"""

from typing import Callable, Dict, Optional

import cv2
import numpy as np

from palette_ms.errors import UserError

_WINDOW = cv2.getGaussianKernel(11, 1.5, cv2.CV_64F)  # of SSIM
_EDGE = len(_WINDOW) // 2


def psnr(restored: np.ndarray, original: np.ndarray, where: Optional[np.ndarray] = None, span: float = 255) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures.

    Args:
        restored, original: (H, W, C).
        where: bool (H, W), the pixels that count; None: all.
        span: of the values.

    Examples:
        Off by 51 of 255 everywhere, a fifth:

        >>> black = np.zeros((4, 4, 3), np.uint8)
        >>> round(psnr(black + 51, black), 3)
        13.979
        >>> psnr(black, black)
        inf
    """
    error = np.subtract(restored, original, dtype=np.float64)
    mean = np.mean(np.square(error if where is None else error[where]))
    return float(10 * np.log10(span**2 / mean)) if mean else float("inf")


def ssim(restored: np.ndarray, original: np.ndarray, where: Optional[np.ndarray] = None, span: float = 255) -> float:
    """Structural similarity, mean over pixels and channels; 1 for equal pictures.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", equation 13, with its
    window of 11×11 pixels, Gaussian with σ = 1.5, and K = 0.01 and 0.03. Windows that reach past the picture's edge do
    not count.

    Args:
        restored, original: (H, W, C).
        where: bool (H, W), the windows that count, by their middles; None: all.
        span: of the values.

    Raises:
        UserError: no window counts, as in a picture of less than 11 pixels on a side.

    Examples:
        >>> picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
        >>> round(ssim(picture, picture), 6)
        1.0
        >>> ssim(255 - picture, picture) < 0
        True
    """
    counted = np.zeros(np.shape(original)[:2], bool)
    counted[_EDGE:-_EDGE, _EDGE:-_EDGE] = True if where is None else where[_EDGE:-_EDGE, _EDGE:-_EDGE]
    if not counted.any():
        raise UserError(f"SSIM needs a pixel to compare that is {_EDGE} or more from each edge")

    def mean(values):
        return cv2.sepFilter2D(values, -1, _WINDOW, _WINDOW).reshape(values.shape)  # OpenCV drops an axis of length 1

    x, y = np.float64(restored), np.float64(original)
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c_1, c_2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    similarity = (2 * mean_x * mean_y + c_1) * (2 * covariance + c_2)
    similarity /= (mean_x**2 + mean_y**2 + c_1) * (variances + c_2)
    return float(similarity[counted].mean())


def ab_error(restored: np.ndarray, original: np.ndarray, where: Optional[np.ndarray] = None,
             span: float = 255) -> float:
    """Mean distance in the ab plane of CIE Lab (colour without lightness); 0 for equal colours.

    Args:
        restored, original: uint8 (H, W, 3).
        where: bool (H, W), the pixels that count; None: all.
        span: must be 255.

    Raises:
        UserError: they are not RGB of 8 bits.

    Examples:
        >>> gray, red = np.full((2, 2, 3), 128, np.uint8), np.full((2, 2, 3), (255, 0, 0), np.uint8)
        >>> ab_error(gray, gray), round(ab_error(gray, red))
        (0.0, 105)
    """
    _check_rgb(original, span, "ab_error")
    a, b = (cv2.cvtColor(np.asarray(picture, np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 1:]
            for picture in (restored, original))
    distances = np.linalg.norm(a - b, axis=-1)
    return float(np.mean(distances if where is None else distances[where]))


def luma(picture: np.ndarray, span: float = 255) -> np.ndarray:
    """Y of BT.601, from 16 to 235, as MATLAB's rgb2ycbcr gives it and papers on super-resolution and JPEG compare it.

    Args:
        picture: uint8 (H, W, 3).
        span: must be 255.

    Returns: float64 (H, W, 1), not rounded.

    Raises:
        UserError: it is not RGB of 8 bits.

    Examples:
        >>> luma(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)).round(6).ravel().tolist()
        [16.0, 235.0]
    """
    _check_rgb(picture, span, "luma (psnr_y, ssim_y)")
    return 16 + np.asarray(picture) @ np.array([[65.481], [128.553], [24.966]]) / 255


def psnr_y(restored: np.ndarray, original: np.ndarray, where: Optional[np.ndarray] = None, span: float = 255) -> float:
    """`psnr` of their `luma`, with 255 as the greatest value, as papers have it.

    Examples:
        >>> black = np.zeros((2, 2, 3), np.uint8)
        >>> round(psnr_y(black + 255, black), 3)  # 219 of 255 apart
        1.322
    """
    return psnr(luma(restored, span), luma(original, span), where)


def ssim_y(restored: np.ndarray, original: np.ndarray, where: Optional[np.ndarray] = None, span: float = 255) -> float:
    """`ssim` of their `luma`, with 255 as the greatest value.

    Examples:
        >>> picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
        >>> round(ssim_y(picture, picture), 6)
        1.0
    """
    return ssim(luma(restored, span), luma(original, span), where)


def colourfulness(restored: np.ndarray, original: Optional[np.ndarray], where: Optional[np.ndarray] = None,
                  span: float = 255) -> float:
    """How colourful the restored picture is, from 0 for gray to about 110; the original is of no matter.

    Hasler & Süsstrunk 2003, "Measuring colourfulness in natural images", section 6: M̂⁽³⁾.

    Args:
        restored: uint8 (H, W, 3).
        original: not used.
        where: bool (H, W), the pixels that count; None: all.
        span: must be 255.

    Raises:
        UserError: it is not RGB of 8 bits.

    Examples:
        >>> colourfulness(np.full((2, 2, 3), 128, np.uint8), None)
        0.0
    """
    _check_rgb(restored, span, "colourfulness")
    red, green, blue = np.moveaxis(np.asarray(restored, np.float64)[slice(None) if where is None else where], -1, 0)
    opponents = red - green, (red + green) / 2 - blue
    deviations, means = [part.std() for part in opponents], [part.mean() for part in opponents]
    return float(np.hypot(*deviations) + 0.3 * np.hypot(*means))


METRICS: Dict[str, Callable[..., float]] = {
    "psnr": psnr, "ssim": ssim, "psnr_y": psnr_y, "ssim_y": ssim_y, "ab_error": ab_error,
    "colourfulness": colourfulness,
}
# Functions alike, but of two samples of one picture: the value is the mean over all pairs of them.
BETWEEN_SAMPLES = {"ssim_between": ssim}
LOWER_IS_BETTER = {"ab_error", "fid", "fid_64", "fid_192", "fid_768", "clean_fid", "perceptual_distance", "lpips_alex",
                   "lpips_vgg", "ssim_between"}


def _check_rgb(picture, span, name):
    """Raises UserError unless a picture, as metrics are given it, is RGB of 8 bits."""
    if span != 255 or np.shape(picture)[2] != 3:
        raise UserError(f"{name} needs RGB of 8 bits")
