"""Restores patches of a photo that the quickstart model never saw, and writes one picture to look at.

    python scripts/quickstart.py PHOTO OUTPUT.png [--train FOLDER] [--ckpt quickstart] [--steps 4] [--device auto]

A row a patch: damaged | the first guess that the model starts from | three samples | their mean | a classical method |
original, with the PSNR over what was to be made. The first guess is the smooth fill of the hole, or the gray picture.
The classical method for inpainting is Telea's (OpenCV); for colorization, the mean colour that each brightness has in
the photos of --train.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from palette_ms import Palette, errors
from palette_ms.data.images import grid, list_images, load_image, save_atomically, to_float, to_uint8
from palette_ms.evaluation.metrics import psnr
from palette_ms.tasks.colorization import Colorization
from palette_ms.tasks.fill import smooth_fill
from palette_ms.tasks.masks import MASKS

SIZE = 64  # what the model was trained at
ZOOM = 3
SAMPLES = 3
# (task, mask, centre x, centre y, side), in the 600×400 coffee photo: the patch is resized to SIZE
PATCHES = (
    ("inpainting", "center", 190, 150, 192),
    ("inpainting", "rectangle", 330, 230, 256),
    ("inpainting", "free_form", 300, 200, 400),
    ("colorization", None, 300, 200, 400),
    ("colorization", None, 180, 180, 256),
)
COLUMNS = ("damaged", "first guess", *(f"sample {k + 1}" for k in range(SAMPLES)), "mean", "classical", "original")


def patch(photo, x, y, side):
    square = photo[max(0, y - side // 2):, max(0, x - side // 2):][:side, :side]
    return np.asarray(Image.fromarray(square).resize((SIZE, SIZE), Image.LANCZOS))


def mean_colour_of_brightness(folder):
    """A (256, 2) table: the mean a and b of CIE Lab, as OpenCV's 8-bit values, at each L in a folder's photos."""
    sums, counts = np.zeros((256, 2)), np.zeros(256)
    for path in list_images(folder):
        lab = cv2.cvtColor(load_image(path), cv2.COLOR_RGB2LAB).reshape(-1, 3)
        counts += np.bincount(lab[:, 0], minlength=256)
        for channel in (0, 1):
            sums[:, channel] += np.bincount(lab[:, 0], lab[:, channel + 1].astype(float), 256)
    return (sums + 128) / (counts + 1)[:, None]


def classical(task, damaged, hole, colours):
    if task == "inpainting":
        return cv2.inpaint(damaged, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    lab = cv2.cvtColor(damaged, cv2.COLOR_RGB2LAB)
    lab[..., 1:] = colours[lab[..., 0]].round()
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def caption(texts, width):
    """A white strip with one text centred over each column."""
    strip = np.full((22, len(texts) * (width + 4) - 4, 3), 255, np.uint8)
    for i, text in enumerate(texts):
        (w, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        place = (i * (width + 4) + (width - w) // 2, 16)
        cv2.putText(strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", required=True, help="folder of the training photos")
    parser.add_argument("--ckpt", default="quickstart")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    palette = Palette.load(args.ckpt, args.device)
    photo = load_image(args.photo)
    colours = mean_colour_of_brightness(args.train)
    strips = [caption(COLUMNS, SIZE * ZOOM)]
    print("PSNR in dB over what was to be made:")
    print(f"{'':24} {'first guess':>12} {'samples':>23} {'their mean':>11} {'classical':>10}")
    for number, (task, kind, x, y, side) in enumerate(PATCHES):
        original = patch(photo, x, y, side)
        if task == "inpainting":
            hole = MASKS[kind](np.random.default_rng(number), SIZE, SIZE)[0] > 0
            damaged = np.where(hole[..., None], np.uint8(128), original)
            guess = to_uint8(smooth_fill(to_float(original), hole[None].astype(np.float32)))
        else:
            hole = np.ones((SIZE, SIZE), bool)
            damaged = guess = to_uint8(Colorization().source(to_float(original)))
        mask = hole if task == "inpainting" else None
        with tqdm(desc=f"{task} {kind or ''}", unit="call", leave=False, disable=None) as bar:
            samples = [np.asarray(image) for image in palette.restore(
                damaged, task, mask, steps=args.steps, num_samples=SAMPLES, progress=bar)]
        mean = np.mean(samples, 0).round().astype(np.uint8)
        results = [guess, *samples, mean, classical(task, damaged, hole, colours)]
        values = [psnr(result, original, hole) for result in results]
        print(f"{task:13}{kind or 'whole':11} {values[0]:12.2f} "
              + " ".join(f"{value:7.2f}" for value in values[1:SAMPLES + 1])
              + f" {values[-2]:11.2f} {values[-1]:10.2f}")
        cells = [cv2.resize(cell, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_NEAREST)
                 for cell in (damaged, *results, original)]
        strips += [np.asarray(grid([cells], gap=4)), caption(["", *(f"{v:.1f} dB" for v in values), ""], SIZE * ZOOM)]
    save_atomically(Image.fromarray(np.concatenate(strips)), args.output)
    print(args.output)


if __name__ == "__main__":
    errors.run(main)
