"""What a prior restores of photos that its training never saw, beside what people use without one.

    python -m palette_ms.train --config configs/prior.yaml
    python benchmarks/priors.py runs/prior/model.safetensors PHOTO … [--steps 100] [--methods gdp,…]
                                [--large] [--scales] [--time] [--output docs/priors.png]

The middles of the photos at 64 × 64 are degraded as each task says, and restored by each method in --steps. Prints a
table in Markdown of PSNR (dB, mean over the photos), and makes a sheet of the first photo. --large: at 256 × 256, in
windows after a small picture (gdp alone), PSNR with and without the small one. --scales: gdp by its scale and number of
steps. --time: a guided step's processor time over that of one of plain sampling, in the same run, and the peak memory
of a process that does the one over that of one that does the other.
"""

import argparse
import functools
import multiprocessing
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from palette_ms import Palette
from palette_ms.data.images import grid, load_image, to_float, to_uint8
from palette_ms.evaluation.metrics import psnr
from palette_ms.priors.degradations import BlockMean, Blur
from palette_ms.tasks.deblurring import gaussian_kernel

METHODS = ("gdp", "ddnm", "diffpir", "dps")


def middle(path, side):
    """The largest square in the middle of a photo at side × side."""
    image = Image.fromarray(load_image(path))
    least = min(image.size)
    left, top = ((length - least) // 2 for length in image.size)
    return np.asarray(image.crop((left, top, left + least, top + least)).resize((side, side), Image.LANCZOS))


def degraded(photo, degradation):
    return to_uint8(degradation.degrade(to_float(photo)[None])[0])


def hole(side):
    mask = np.zeros((side, side), np.uint8)
    mask[side * 3 // 8:side * 5 // 8, side * 3 // 8:side * 5 // 8] = 255
    for row in range(side // 8, side, side // 4):
        mask[row:row + max(1, side // 32)] = 255
    return mask


def gamma_corrected(photo):
    """To a mean of half."""
    values = photo / 255.0
    return np.uint8(255 * values ** (np.log(0.5) / np.log(values.mean())) + 0.5)


def cases(photo):
    """task → (what is given, options, what is used without a prior, its result, shown as given)."""
    side, blur = len(photo), len(photo) / 64
    rng = np.random.default_rng(0)
    small = degraded(photo, BlockMean(4))
    blurred = degraded(photo, Blur(gaussian_kernel(blur)))
    noisy = np.uint8((photo + rng.normal(0, 25, photo.shape)).clip(0, 255).round())
    gray = np.asarray(Image.fromarray(photo).convert("L").convert("RGB"))
    mask = hole(side)
    dark = np.uint8((photo * 0.25 + rng.normal(0, 2, photo.shape)).clip(0, 255).round())
    exposures = [np.uint8((photo * share).clip(0, 255)) for share in (0.3, 0.7, 1.6)]
    fused = cv2.createMergeMertens().process([one[..., ::-1] for one in exposures])[..., ::-1]
    return {
        "super_resolution": (small, {"scale": 4}, "bicubic", np.asarray(
            Image.fromarray(small).resize((side, side), Image.BICUBIC))),
        "deblurring": (blurred, {"blur": blur}, "nothing", blurred),
        "inpainting": (np.where(mask[..., None] > 0, np.uint8(255), photo), {"mask": mask}, "cv2.inpaint",
                       cv2.inpaint(photo, mask, 3, cv2.INPAINT_TELEA)),
        "colorization": (gray, {}, "gray", gray),
        "denoising": (noisy, {"noise": 25.0}, "NL means",
                      cv2.fastNlMeansDenoisingColored(noisy, None, 10, 10, 7, 21)),
        "low_light": (dark, {}, "gamma", gamma_corrected(dark)),
        "hdr": (exposures[1], {"exposures": [exposures[0], exposures[2]]}, "Mertens",
                np.uint8((fused * 255).clip(0, 255).round())),
    }


def restored(palette, task, given, options, steps, **more):
    if more.get("prior") in ("gdp", "dps"):  # which take no account of it
        options = {name: value for name, value in options.items() if name != "noise"}
    return np.asarray(palette.restore(given, task=task, steps=steps, **options, **more)[0])


def compare(palette, photos, steps, methods):
    print("| task | without a prior | " + " | ".join(methods) + " |\n| --- | --- |" + " --- |" * len(methods))
    sheet = []
    for task in cases(photos[0]):
        scores = {name: [] for name in ("without", *methods)}
        for k, photo in enumerate(photos):
            given, options, name, without = cases(photo)[task]
            scores["without"].append(psnr(without, photo))
            row = [enlarged(given, len(photo)), without]
            for method in methods:
                if task in ("low_light", "hdr") and method != "gdp":
                    row.append(None)
                    continue
                made = restored(palette, task, given, options, steps, prior=method)
                scores[method].append(psnr(made, photo))
                row.append(made)
            if k == 0:
                sheet.append([*row, photo])
        print(f"| {task} | {name} {statistics.mean(scores['without']):.2f} | "
              + " | ".join(f"{statistics.mean(scores[m]):.2f}" if scores[m] else "" for m in methods) + " |",
              flush=True)
    return sheet


def enlarged(picture, side):
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.NEAREST))


def compare_large(palette, photos, steps):
    print("| task at 256 × 256 | without a prior | gdp | gdp, no small picture first |\n| --- | --- | --- | --- |")
    sheet = []
    for task in ("super_resolution", "inpainting", "low_light", "hdr"):
        given, options, name, without = cases(photos[0])[task]
        made = [restored(palette, task, given, options, steps, hierarchical=flag) for flag in (True, False)]
        values = [psnr(one, photos[0]) for one in (without, *made)]
        print(f"| {task} | {name} {values[0]:.2f} | {values[1]:.2f} | {values[2]:.2f} |", flush=True)
        sheet.append([enlarged(given, len(photos[0])), without, *made, photos[0]])
    return sheet


def compare_scales(palette, photos):
    shares = (0.005, 0.02, 0.1, 0.5)
    print("| task | steps | " + " | ".join(f"{share:.1%} a step" for share in shares) + " |\n| --- | --- |"
          + " --- |" * len(shares))
    for task in ("super_resolution", "inpainting"):
        for steps in (25, 100, 400):
            values = []
            for share in shares:
                values.append(statistics.mean(
                    psnr(restored(palette, task, *cases(photo)[task][:2], steps, guidance_scale=share * 6 * 256**2),
                         photo) for photo in photos))
            print(f"| {task} | {steps} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)


def peak(ckpt, given, options, steps, method):
    """Peak memory of this process after a chain, in MB; method None: plain sampling."""
    palette = Palette.load(ckpt, "cpu", "mindspore")
    if method is None:
        palette.generate(1, sampler="ddpm", steps=steps)
    else:
        restored(palette, "super_resolution", given, options, steps, prior=method)
    # Not getrusage's, which a process has from the one that started it.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def compare_time(ckpt, palette, photo, steps, methods):
    given, options = cases(photo)["super_resolution"][:2]

    def seconds(run):
        run()
        best = []
        for _ in range(3):
            start = time.process_time()
            run()
            best.append(time.process_time() - start)
        return min(best) / steps

    plain = seconds(lambda: palette.generate(1, sampler="ddpm", steps=steps))
    print(f"plain sampling: {1000 * plain:.1f} ms of processor time a step, the least of three")
    for method in methods:
        run = functools.partial(restored, palette, "super_resolution", given, options, steps, prior=method)
        print(f"{method}: {seconds(run) / plain:.2f} times that", flush=True)
    peaks = []
    for method in (None, *methods):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks.append(pool.submit(peak, ckpt, given, options, steps, method).result())
        print(f"{method or 'plain sampling'}: {peaks[-1]:.0f} MB at most, {peaks[-1] / peaks[0]:.2f} times that of the "
              "first", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt")
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--output")
    for flag in ("--large", "--scales", "--time"):
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args()
    # Guided and plain steps are compared in one runtime.
    palette = Palette.load(args.ckpt, "cpu", "mindspore" if args.time else "auto")
    photos = [middle(path, 256 if args.large else 64) for path in args.photos]
    if args.time:
        return compare_time(args.ckpt, palette, photos[0], args.steps, args.methods.split(","))
    if args.scales:
        return compare_scales(palette, photos)
    if args.large:
        sheet = compare_large(palette, photos, args.steps)
    else:
        sheet = compare(palette, photos, args.steps, args.methods.split(","))
    if args.output:
        image = grid(sheet)
        times = 1 if args.large else 2
        image.resize((image.width * times, image.height * times), Image.NEAREST).save(args.output)


if __name__ == "__main__":
    main()
