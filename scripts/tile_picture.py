"""Restores a photo larger than the training size, whole and in tiles, and writes one picture to look at.

    python scripts/tile_picture.py PHOTO OUTPUT.png [--ckpt quickstart] [--size 192] [--steps 8] [--device auto]

A row a task: source | whole | in tiles | in tiles that do not overlap | original. The photo's middle is made `size`
pixels high and a third wider; tiles have the training size.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from palette_ms import Palette, errors
from palette_ms.data.images import grid, load_image, save_atomically
from palette_ms.tasks.masks import MASKS

COLUMNS = ("source", "whole", "tiles", "no overlap", "original")


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
    parser.add_argument("--ckpt", default="quickstart")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    palette = Palette.load(args.ckpt, args.device)
    tile, width = palette.config.data.image_size, args.size * 4 // 3
    original = np.asarray(ImageOps.fit(Image.fromarray(load_image(args.photo)), (width, args.size), Image.LANCZOS))
    hole = MASKS["free_form"](np.random.default_rng(1), args.size, width)[0] > 0
    sources = {"colorization": np.asarray(Image.fromarray(original).convert("L").convert("RGB")),
               "inpainting": np.where(hole[..., None], np.uint8(128), original)}
    rows = []
    for task, source in sources.items():
        cells = [source]
        for side, overlap in ((palette.network.multiple * width, None), (tile, None), (tile, 0)):  # first: at once
            with tqdm(desc=task, unit="call", disable=None, leave=False) as bar:
                image, = palette.restore(source, task, hole if task == "inpainting" else None, steps=args.steps,
                                         tile=side, overlap=overlap, progress=bar)
            cells.append(np.asarray(image))
        rows.append([*cells, original])
    picture = np.concatenate([caption(COLUMNS, width), np.asarray(grid(rows, gap=4))])
    save_atomically(Image.fromarray(picture).quantize(256), args.output)  # a third of the size, and looks the same
    print(args.output)


if __name__ == "__main__":
    errors.run(main)
