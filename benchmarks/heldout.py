"""PSNR of checkpoints on a photo that their training never saw, beside classical inpainting and the smooth fill
(Laplace's equation) that the quickstart model's source holds.

    python benchmarks/heldout.py PHOTO CHECKPOINT [CHECKPOINT …] [--steps 25] [--crops 16] [--size 64]

Square crops of random place and scale are resized to SIZE; the hole is the centred one of half the side, and
free-form strokes. Each row is the mean over the crops; PSNR is that of the hole's pixels alone. `mean of 4` is the
average of four samples, which an estimate of the mean, such as the classical method, is fairly compared with.
Colorization is told as the error of the ab channels of CIE Lab (lower is better), beside leaving the picture gray.
"""

import argparse

import cv2
import numpy as np

from palette_ms import Palette
from palette_ms.data.forms import Photo
from palette_ms.data.images import load_image, to_float, to_uint8
from palette_ms.data.loader import crop
from palette_ms.data.sources import Row
from palette_ms.evaluation.metrics import ab_error, psnr
from palette_ms.tasks.colorization import Colorization
from palette_ms.tasks.fill import smooth_fill
from palette_ms.tasks.masks import MASKS


def crops_of(photo, count, size):
    row, forms = Row(load_image(photo)), (Photo(), Photo())
    return [to_uint8(crop(row, forms, size, 0.25, False, np.random.default_rng(i)).target) for i in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    pictures = crops_of(args.photo, args.crops, args.size)
    grays = [to_uint8(Colorization().source(to_float(picture))) for picture in pictures]
    holes = {kind: [MASKS[kind](np.random.default_rng(i), args.size, args.size)[0] > 0 for i in range(args.crops)]
             for kind in ("center", "free_form")}

    print(f"{'':40} {'center':>15} {'free_form':>15} {'ab error':>9}")
    rows = {"mean of the known pixels": [], "cv2.inpaint (Telea)": [], "smooth fill": []}
    for masks in holes.values():
        known = [np.broadcast_to(p[~m].mean(0), p.shape) for p, m in zip(pictures, masks)]
        telea = [cv2.inpaint(p, m.astype(np.uint8), 3, cv2.INPAINT_TELEA) for p, m in zip(pictures, masks)]
        smooth = [to_uint8(smooth_fill(to_float(p), m[None].astype(np.float32))) for p, m in zip(pictures, masks)]
        for row, results in zip(rows.values(), (known, telea, smooth)):
            row.append(np.mean([psnr(r, p, m) for r, p, m in zip(results, pictures, masks)]))
    for name, row in rows.items():
        print(f"{name:40} " + " ".join(f"{value:15.2f}" for value in row))
    print(f"{'gray':72} {np.mean([ab_error(g, p) for g, p in zip(grays, pictures)]):9.2f}")
    for checkpoint in args.checkpoints:
        palette = Palette.load(checkpoint)
        cells = []
        for masks in holes.values():
            single, mean = [], []
            for picture, mask in zip(pictures, masks):
                results = [np.asarray(r) for r in palette.restore(picture, "inpainting", mask, steps=args.steps,
                                                                  num_samples=4)]
                single += [psnr(r, picture, mask) for r in results]
                mean.append(psnr(np.mean(results, 0), picture, mask))
            cells.append(f"{np.mean(single):6.2f} (mean of 4 {np.mean(mean):.2f})")
        colored = [palette.restore(gray, "colorization", steps=args.steps)[0] for gray in grays]
        error = np.mean([ab_error(c, p) for c, p in zip(colored, pictures)])
        print(f"{checkpoint[-40:]:40} {' '.join(cells)} {error:9.2f}")


if __name__ == "__main__":
    main()
