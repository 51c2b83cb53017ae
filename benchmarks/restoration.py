"""What a model makes of whole photos that its training never saw, beside the classical methods that people run today.

    python benchmarks/restoration.py PHOTOS CHECKPOINT [CHECKPOINT …] [--sampler ddim] [--steps 1] [--rows NAME,…]
        [--number 24] [--output report.json] [--pictures FOLDER]

PHOTOS is a folder; its first NUMBER photos are used, each whole, shrunk to 800 pixels on the longer side where it is
larger. Rows are kinds of damage: means over the photos of PSNR in dB and SSIM over what was to be made (the hole, or
all); of a model also its seconds a photo, without loading, and its lead on the best classical method ± 1.96 standard
errors. Colour is told as the error of ab in CIE Lab (lower is better). `pip install bm3d` adds BM3D, a minute a photo.
--pictures writes for each row and photo damaged | classical methods … | models … | original.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from palette_ms import Palette, errors
from palette_ms.data.images import grid, list_images, load_image, save_atomically, to_float, to_uint8
from palette_ms.evaluation.metrics import ab_error, psnr, ssim
from palette_ms.seeds import generator
from palette_ms.tasks.colorization import Colorization
from palette_ms.tasks.fill import smooth_fill
from palette_ms.tasks.jpeg_restoration import jpeg
from palette_ms.tasks.masks import MASKS

LONGER_SIDE = 800


def resized(picture, height, width, filter=Image.BICUBIC):
    return np.asarray(Image.fromarray(picture).resize((width, height), filter))


def holes(picture, rng):
    """Two squares of 64×64 pixels."""
    mask = np.zeros((1, *picture.shape[:2]), np.float32)
    for _ in range(2):
        top, left = (rng.integers(0, side - 64) for side in picture.shape[:2])
        mask[:, top:top + 64, left:left + 64] = 1
    return mask


def damaged(row, picture, rng):
    """(task, what the user has, mask or None, further arguments of `restore`) of a row's damage."""
    kind, _, level = row.partition(" ")
    if kind == "jpeg":
        return "jpeg_restoration", to_uint8(jpeg(to_float(picture), int(level))), None, {}
    if kind == "noise":
        noisy = picture + rng.normal(0, int(level), picture.shape)
        return "denoising", noisy.round().clip(0, 255).astype(np.uint8), None, {}
    if kind == "enlarged":
        scale = int(level)
        small = resized(picture, *(side // scale for side in picture.shape[:2]))
        return "super_resolution", small, None, {"scale": scale}
    if kind == "color":
        return "colorization", to_uint8(Colorization().source(to_float(picture))), None, {}
    mask = holes(picture, rng) if kind == "holes" else MASKS["scratches"](rng, *picture.shape[:2])
    return "inpainting", np.where(mask[0][..., None] > 0, np.uint8(128), picture), mask, {}


def classical(row, given, mask, size):
    """Results of the classical methods for a row, by their names."""
    kind, _, level = row.partition(" ")
    if kind == "jpeg":
        return {"the JPEG": given, "bilateral": cv2.bilateralFilter(given, 5, 20, 3)}
    if kind == "noise":
        results = {"non-local means": cv2.fastNlMeansDenoisingColored(given, None, 0.6 * int(level), 0.6 * int(level))}
        try:
            import bm3d

            clean = bm3d.bm3d_rgb(given.astype(np.float64), int(level))
            results["BM3D"] = clean.round().clip(0, 255).astype(np.uint8)
        except ImportError:
            pass
        return results
    if kind == "enlarged":
        return {"bicubic": resized(given, *size), "Lanczos": resized(given, *size, Image.LANCZOS)}
    if kind == "color":
        return {"gray": given}
    hole = (mask[0] * 255).astype(np.uint8)
    return {"Telea": cv2.inpaint(given, hole, 3, cv2.INPAINT_TELEA), "NS": cv2.inpaint(given, hole, 3, cv2.INPAINT_NS),
            "smooth fill": to_uint8(smooth_fill(to_float(given), mask))}


ROWS = ("jpeg 10", "jpeg 20", "noise 25", "enlarged 2", "enlarged 4", "scratches", "holes", "color")


def score(row, result, original, where):
    if row == "color":
        return ab_error(result, original), ssim(result, original)
    return psnr(result, original, where), ssim(result, original, where)


def measure(row, photos, palettes, options, pictures):
    """{method: (scores (N, 2), seconds)} of a row."""
    found = {}
    for number, original in enumerate(photos):
        scale = int(row.split()[1]) if row.startswith("enlarged") else 1
        height, width = (side // scale * scale for side in original.shape[:2])
        original = original[:height, :width]
        task, given, mask, asked = damaged(row, original, generator(number, row))
        where = None if mask is None else mask[0] > 0
        results = {name: (result, 0.0) for name, result in classical(row, given, mask, (height, width)).items()}
        for name, palette in palettes.items():
            if task in palette.tasks:
                start = time.perf_counter()
                image, = palette.restore(given, task, mask if mask is None else where, **asked, **options)
                results[name] = np.asarray(image), time.perf_counter() - start
        for name, (result, seconds) in results.items():
            found.setdefault(name, []).append((*score(row, result, original, where), seconds))
        if pictures:
            given = resized(given, height, width, Image.NEAREST)
            cells = [given, *(result for result, _ in results.values()), original]
            save_atomically(grid([cells], 8), pictures / f"{row.replace(' ', '_')}_{number:02}.png")
    return {name: np.array(values) for name, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--number", type=int, default=24)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    photos = []
    for path in list_images(args.photos)[:args.number]:
        photo = load_image(path)
        scale = min(1, LONGER_SIDE / max(photo.shape))
        photos.append(resized(photo, *(round(scale * side) for side in photo.shape[:2]), Image.LANCZOS))
    palettes = {name: Palette.load(name, "CPU") for name in args.checkpoints}
    report = {}
    for row in args.rows.split(","):
        found = measure(row, photos, palettes, {"sampler": args.sampler, "steps": args.steps}, args.pictures)
        best = min if row == "color" else max
        rival = best((name for name in found if name not in palettes), key=lambda name: found[name][:, 0].mean())
        print(f"{row}, {len(photos)} photos" + (": error of ab, SSIM, seconds" if row == "color" else ""), flush=True)
        for name, values in found.items():
            mean = values.mean(0)
            lead = values[:, 0] - found[rival][:, 0]
            spread = 1.96 * lead.std(ddof=1) / np.sqrt(len(lead)) if len(lead) > 1 else float("nan")
            told = f" {mean[2]:7.2f} s  {lead.mean():+6.2f} ± {spread:.2f} to {rival}" if name in palettes else ""
            print(f"  {name[-40:]:40} {mean[0]:7.2f} {mean[1]:7.4f}{told}", flush=True)
        report[row] = {name: values.tolist() for name, values in found.items()}
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    errors.run(main)
