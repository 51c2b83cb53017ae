"""Masks for inpainting: float32 (1, H, W), 1 in the hole."""

import math

import cv2
import numpy as np


def center(rng, height, width):
    """A centred hole of half the height and width: 128×128 at 256×256 (Palette, section 4.2)."""
    mask = np.zeros((1, height, width), np.float32)
    top, left = height // 4, width // 4
    mask[:, top:top + height // 2, left:left + width // 2] = 1
    return mask


def rectangle(rng, height, width):
    """One rectangle, each side from a fifth to a half of the picture's, anywhere."""
    mask = np.zeros((1, height, width), np.float32)
    h, w = (rng.integers(max(1, side // 5), max(1, side // 2) + 1) for side in (height, width))
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    mask[:, top:top + h, left:left + w] = 1
    return mask


def free_form(rng, height, width):
    """One to four brush strokes (Yu et al. 2019, arXiv 1806.03589, Algorithm 1)."""
    strokes = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 5)):
        _stroke(rng, strokes)
    return _flipped(rng, strokes)


def scratches(rng, height, width):
    """What old photos have: scratches and cracks, dust, lettering. Each is one to five pixels wide at any size."""
    marks = np.zeros((height, width), np.uint8)
    longer = max(height, width)
    if rng.random() < 0.7:
        for _ in range(rng.integers(1, 6)):
            _scratch(rng, marks)
    if rng.random() < 0.5 or not marks.any():
        for _ in range(rng.integers(1, 3)):
            _letters(rng, marks)
    if rng.random() < 0.3:
        for _ in range(rng.integers(1, 2 + longer // 16)):
            place = int(rng.integers(0, width)), int(rng.integers(0, height))
            cv2.circle(marks, place, int(rng.integers(1, 3)), 1, -1)
    if not marks.any():  # letters may lie outside of a picture of a few pixels
        marks[rng.integers(0, height), rng.integers(0, width)] = 1
    return marks[None].astype(np.float32)


def _scratch(rng, marks):
    """Draw one into uint8 (H, W): a long line that wanders a little."""
    height, width = marks.shape
    x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
    step, thickness = max(height, width) / 8, int(rng.integers(1, 4))
    points = [(x, y)]
    for _ in range(rng.integers(3, 13)):
        angle += rng.normal(0, 0.2)
        x, y = x + step * math.cos(angle), y + step * math.sin(angle)
        points.append((x, y))
    cv2.polylines(marks, [np.round(points).astype(np.int32)], False, 1, thickness)


def _letters(rng, marks):
    """Write some into uint8 (H, W), at any place and angle."""
    height, width = marks.shape
    text = "".join(chr(code) for code in rng.integers(33, 127, rng.integers(2, 13)))
    fonts = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX,
             cv2.FONT_HERSHEY_SCRIPT_SIMPLEX)
    font, size, thickness = fonts[rng.integers(len(fonts))], rng.uniform(0.3, 1.5), int(rng.integers(1, 4))
    line = np.zeros_like(marks)
    start = int(rng.integers(-width // 4, max(1, width // 2))), int(rng.integers(0, height + 10))
    cv2.putText(line, text, start, font, size, 1, thickness)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.normal(0, 15), 1)
    marks |= cv2.warpAffine(line, turn, (width, height), flags=cv2.INTER_NEAREST)


def free_form_covering(low, high):
    """A kind of mask: brush strokes that cover more than `low` and at most `high` of the picture (shares of 1).

    The bands 0.1–0.2, 0.2–0.3 and 0.3–0.4 are those of the paper's table on inpainting (Palette, table 3).
    """
    def mask(rng, height, width):
        best = np.zeros((height, width), np.uint8)
        for attempt in range(100):
            strokes = np.zeros((height, width), np.uint8)
            while strokes.mean() <= low:
                best = strokes.copy()
                # After many misses, on tiny pictures, thinner and shorter strokes.
                _stroke(rng, strokes, 1 if attempt < 50 else 0.3)
            if strokes.mean() <= high:
                return _flipped(rng, strokes)
        # No stroke is small enough for a picture of a few pixels: single pixels are.
        known = np.flatnonzero(best == 0)
        count = max(1, math.floor(high * best.size) - int(best.sum()))
        best.flat[rng.permutation(known)[:count]] = 1
        return best[None].astype(np.float32)

    return mask


def _stroke(rng, strokes, size=1.0):
    """Draw one into uint8 (H, W), scaled from the 256×256 of its source to the picture's size.

    It has 4 to 12 vertices, turns by 2π/5 ± 2π/15, alternately to one side and the other, and has a width of 12 to 40
    pixels at 256×256.
    """
    height, width = strokes.shape
    scale = size * min(height, width) / 256
    mean_length = size * math.hypot(height, width) / 8
    x, y = rng.integers(0, width), rng.integers(0, height)
    thickness = max(1, round(rng.uniform(12, 40) * scale))
    for vertex in range(rng.integers(4, 13)):
        angle = rng.uniform(2 * math.pi / 5 - 2 * math.pi / 15, 2 * math.pi / 5 + 2 * math.pi / 15)
        if vertex % 2 == 0:
            angle = 2 * math.pi - angle
        length = np.clip(rng.normal(mean_length, mean_length / 2), 0, 2 * mean_length)
        new_x = int(np.clip(x + length * math.sin(angle), 0, width))
        new_y = int(np.clip(y + length * math.cos(angle), 0, height))
        cv2.line(strokes, (int(x), int(y)), (new_x, new_y), 1, thickness)
        cv2.circle(strokes, (new_x, new_y), thickness // 2, 1, -1)  # round joints
        x, y = new_x, new_y


def _flipped(rng, strokes):
    if rng.random() < 0.5:
        strokes = strokes[:, ::-1]
    if rng.random() < 0.5:
        strokes = strokes[::-1]
    return np.ascontiguousarray(strokes[None], dtype=np.float32)


MASKS = {
    "free_form": free_form, "rectangle": rectangle, "center": center, "scratches": scratches,
    "free_form_10_20": free_form_covering(0.1, 0.2), "free_form_20_30": free_form_covering(0.2, 0.3),
    "free_form_30_40": free_form_covering(0.3, 0.4),
}
