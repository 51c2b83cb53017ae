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
    """Brush strokes (Yu et al. 2019, arXiv 1806.03589, Algorithm 1), scaled from its 256×256 to the picture's size.

    One to four strokes; each has 4 to 12 vertices, turns by 2π/5 ± 2π/15, alternately to one side and the other,
    and has a width of 12 to 40 pixels at 256×256.
    """
    scale = min(height, width) / 256
    mean_length = math.hypot(height, width) / 8
    strokes = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 5)):
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
    if rng.random() < 0.5:
        strokes = strokes[:, ::-1]
    if rng.random() < 0.5:
        strokes = strokes[::-1]
    return np.ascontiguousarray(strokes[None], dtype=np.float32)


MASKS = {"free_form": free_form, "rectangle": rectangle, "center": center}
