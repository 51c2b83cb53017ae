"""Metrics against scikit-image's."""

import numpy as np
import pytest
from skimage import color, data, metrics

from palette_ms.evaluation.metrics import ab_error, psnr

PHOTO = data.astronaut()[::4, ::4]
OTHER = np.clip(PHOTO + np.random.default_rng(0).normal(0, 12, PHOTO.shape), 0, 255).astype(np.uint8)


def test_psnr_equals_scikit_images():
    assert psnr(OTHER, PHOTO) == pytest.approx(metrics.peak_signal_noise_ratio(PHOTO, OTHER), rel=1e-12)
    assert psnr(PHOTO, PHOTO) == float("inf")


def test_psnr_counts_only_the_pixels_asked_for():
    where = np.zeros(PHOTO.shape[:2], bool)
    where[10:30, 5:50] = True
    elsewhere = np.where(where[..., None], OTHER, 0)
    assert psnr(elsewhere, PHOTO, where) == pytest.approx(psnr(OTHER[10:30, 5:50], PHOTO[10:30, 5:50]), rel=1e-12)


def test_colour_error_is_the_distance_in_the_ab_plane():
    a, b = (color.rgb2lab(picture)[..., 1:] for picture in (OTHER, PHOTO))
    # OpenCV's Lab differs from scikit-image's by up to 0.2 in each channel
    assert ab_error(OTHER, PHOTO) == pytest.approx(np.hypot(*np.moveaxis(a - b, -1, 0)).mean(), abs=0.1)
    gray = np.repeat(PHOTO[..., :1], 3, 2)
    assert ab_error(gray, (gray * 0.5).astype(np.uint8)) == pytest.approx(0, abs=0.05)
