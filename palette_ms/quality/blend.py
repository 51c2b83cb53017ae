"""Where what was made meets what is known: how well it fits there, and how to make it fit.

Pictures are float32 (C, H, W) in [−1, 1], holes (1, H, W), above 0 where pixels were made; what is outside comes
back as it was.
"""

from typing import NamedTuple

import cv2
import numpy as np

from palette_ms.tasks.fill import smooth_fill

BLENDS = ("none", "feather", "poisson")
# Of a seam's `score`, above which it counts as bad: of 21 photos with holes of three kinds drawn in them, 95 of 100
# score below 1.1 (`benchmarks/quality.py`).
BAD = 1.2
BORDER = 8  # pixels of a hole that are its border
_WIDTH = 4  # pixels over which `feather` fades
_ALONG = 8  # deviation, in pixels, of the window that steps are averaged in along the border
_NEAR = 3  # pixels on each side of the border whose gradients count as those beside it


class Seam(NamedTuple):
    """How well what was made fits to what is around it.

    Attributes:
        score: mean gradient across the hole's border over that beside it, on both sides; of originals about 1.
        step: how far the values on both sides are apart at the border, in 255ths: both sides are continued to it by
            straight lines, and the difference is averaged along it, before its root mean square is taken.
    """

    score: float
    step: float


def seam(y, hole):
    """The `Seam` of a picture with its hole; None where there is no border."""
    inside = hole[0] > 0
    padded = np.pad(inside, 1, "edge")
    away = sum(cv2.distanceTransform(np.uint8(part), cv2.DIST_L1, 3)[1:-1, 1:-1] for part in (padded, ~padded))
    across, beside = [], []
    for picture, made, near in ((y, inside, away <= _NEAR), (y.swapaxes(1, 2), inside.T, away.T <= _NEAR)):
        gradient, changes = np.abs(np.diff(picture)), made[:, 1:] != made[:, :-1]
        across.append(gradient[:, changes].ravel())
        beside.append(gradient[:, ~changes & near[:, 1:] & near[:, :-1]].ravel())
    across, beside = np.concatenate(across), np.concatenate(beside)
    if not across.size:
        return None
    score = across.mean() / max(beside.mean() if beside.size else 0, 1 / 127.5)
    steps, weights = _steps(y, inside)
    square = (weights * steps**2).sum() / max(weights.sum(), 1) / len(y)
    return Seam(float(score), float(127.5 * np.sqrt(square)))


def _steps(y, inside):
    """Made minus known at the border of a hole (H, W), each side continued to it by a straight line, averaged along it.

    Returns: (steps (C, H, W), how many meet at each pixel (H, W)); around the border both are defined, elsewhere 0.
    """
    steps, weights = np.zeros_like(y), np.zeros(inside.shape, np.float32)
    for picture, step, made, weight in ((y, steps, inside, weights),
                                        (y.swapaxes(1, 2), steps.swapaxes(1, 2), inside.T, weights.T)):
        gradient, changes = np.diff(picture), np.diff(made.astype(np.int8))
        # Of four pixels in a line, the first two are on one side and the last two on the other.
        row, left = np.nonzero(changes[:, 1:-1] * ((changes[:, :-2] == 0) & (changes[:, 2:] == 0)))
        left += 1
        jump = gradient[:, row, left] - (gradient[:, row, left - 1] + gradient[:, row, left + 1]) / 2
        for place in (left, left + 1):
            np.add.at(step, (slice(None), row, place), jump * changes[row, left])
            np.add.at(weight, (row, place), 1)
    around = np.maximum(cv2.GaussianBlur(weights, (0, 0), _ALONG), 1e-6)
    return np.stack([cv2.GaussianBlur(channel, (0, 0), _ALONG) for channel in steps]) / around, weights


def depth(hole):
    """How far each pixel of a hole (1, H, W) is from what is known, in pixels: float32 (H, W), 0 outside."""
    return cv2.distanceTransform(np.uint8(hole[0] > 0), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def border(hole):
    """The pixels of a hole (1, H, W) within `BORDER` of what is known: float32 alike, 1 there; nothing where all was
    made."""
    deep = depth(hole)
    return np.float32((deep > 0) & (deep <= BORDER) & (hole[0] <= 0).any())[None]


def blend(y, hole, how):
    """What was made, fitted to what is around it.

    Args:
        y: float32 (C, H, W), with what is known outside the hole.
        hole: (1, H, W).
        how: "none"; "feather": over the first pixels of the hole it comes out of a membrane from the border; "poisson":
            it keeps its gradients, and the step at the border is taken away and spread over the hole, as smoothly as
            can be (Poisson image editing: Pérez et al. 2003, eq. 4, by its eq. 5 for what is added).

    Returns: as y.

    Raises:
        ValueError: an unknown way.
    """
    if how not in BLENDS:
        raise ValueError(f"unknown blend {how!r}: {', '.join(BLENDS)}")
    hole = np.float32(hole > 0)
    if how == "none" or hole.all() or not hole.any():
        return y
    if how == "feather":
        share = np.minimum(depth(hole) / (_WIDTH + 1), 1).astype(np.float32)
        return np.where(hole > 0, share * y + (1 - share) * smooth_fill(y, hole), y)
    return np.where(hole > 0, np.clip(y - smooth_fill(_steps(y, hole[0] > 0)[0], hole), -1, 1), y)

