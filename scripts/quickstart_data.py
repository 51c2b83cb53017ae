"""Writes the pictures that the quickstart model is trained on: the colour photos in scikit-image's wheel, and
dead-leaves pictures (Lee, Mumford & Huang 2001), whose edges and occlusions have the statistics of photos.

    python scripts/quickstart_data.py OUTPUT [--leaves N]

OUTPUT/train gets the photos and the dead leaves, OUTPUT/held_out the photo that no training sees.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

TRAIN = ("astronaut", "chelsea", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")
HELD_OUT = ("coffee",)


def dead_leaves(rng, size=768):
    """uint8 (size, size, 3): discs and polygons of power-law sizes that cover one another.

    Each picture has a palette of a few colours around a hue, each leaf a colour from it with its own shading and
    1/f grain.
    """
    hue = rng.uniform(0, 180)
    palette = np.stack([(hue + rng.normal(0, 25, 6)) % 180, rng.uniform(20, 200, 6), rng.uniform(20, 250, 6)], 1)
    palette[:2, 0] = rng.uniform(0, 180, 2)
    palette = cv2.cvtColor(palette[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency
    grain = np.fft.irfft2(spectrum, (size, size))
    grain = (grain / grain.std()).astype(np.float32)
    ys, xs = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = palette[0]
    radii = np.sort((rng.uniform(1 / 150**2, 1 / 6**2, 1500)) ** -0.5)[::-1]
    for radius in radii[rng.permutation(len(radii))]:
        center = rng.uniform(0, size, 2)
        if rng.random() < 0.5:
            corners = rng.integers(3, 7)
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            points = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        else:
            axes = (int(radius), max(1, int(radius * rng.uniform(0.4, 1))))
            points = cv2.ellipse2Poly(tuple(int(c) for c in center), axes, int(rng.uniform(0, 180)), 0, 360, 8)
        leaf = np.zeros((size, size), np.uint8)
        cv2.fillPoly(leaf, [np.round(points).astype(np.int32)], 1)
        inside = leaf > 0
        shade = rng.normal(0, 60) * xs[inside] + rng.normal(0, 60) * ys[inside] + rng.uniform(0, 12) * grain[inside]
        picture[inside] = palette[rng.integers(len(palette))] + rng.normal(0, 8, 3) + shade[:, None]
    return cv2.GaussianBlur(picture, (0, 0), 0.7).clip(0, 255).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--leaves", type=int, default=3, help="number of dead-leaves pictures (default 3)")
    args = parser.parse_args()
    for folder, names in (("train", TRAIN), ("held_out", HELD_OUT)):
        (args.output / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.fromarray(getattr(data, name)()).save(args.output / folder / f"{name}.png")
    # The two halves of the stereo pair are nearly the same picture.
    Image.fromarray(data.stereo_motorcycle()[0]).save(args.output / "train" / "motorcycle.png")
    for i in range(args.leaves):
        Image.fromarray(dead_leaves(np.random.default_rng(i))).save(args.output / "train" / f"leaves_{i}.png")


if __name__ == "__main__":
    main()
