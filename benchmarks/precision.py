"""How far pictures made in half precision are from those in float32, with the same noise.

    python benchmarks/precision.py PHOTO [--ckpt quickstart] [--crops 6] [--steps 4,20] [--precision float16]
                                   [--runtime mindspore] [--device auto]

Crops of a photo that the model's training never saw, in each of the model's tasks; a hole where a task takes one. Grey
levels are of 255; PSNR is of the one picture to the other, and the crops' least. Prints a table in Markdown.
"""

import argparse

import numpy as np
from heldout import crops_of

from palette_ms import Palette, errors
from palette_ms.tasks.asks import MASK


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--ckpt", default="quickstart")
    parser.add_argument("--crops", type=int, default=6)
    parser.add_argument("--steps", default="4,20")
    parser.add_argument("--precision", default="float16")
    parser.add_argument("--runtime", default="mindspore")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    whole, half = (Palette.load(args.ckpt, args.device, args.runtime, name) for name in ("float32", args.precision))
    crops = crops_of(args.photo, args.crops, whole.config.data.image_size)
    print("| task | calls | mean difference, grey levels | largest | values that differ | least PSNR, dB |")
    print("| --- " * 6 + "|")
    for task in whole.config.tasks:
        mask = "center" if MASK in task.asks else None
        options = {"scale": task.scales[0]} if hasattr(task, "scales") else {}
        for steps in map(int, args.steps.split(",")):
            made = [[np.asarray(palette.restore(crop, task.name, mask, "dpmpp_2m", steps, seed=seed,
                                                 **options)[0], float)
                     for seed, crop in enumerate(crops)] for palette in (whole, half)]
            apart = np.abs(np.subtract(*made))
            psnr = min(20 * np.log10(255 / max(np.sqrt(np.mean(one**2)), 1e-9)) for one in apart)
            print(f"| {task.name} | {steps} | {apart.mean():.4f} | {apart.max():.0f} | {(apart > 0).mean():.2%} | "
                  f"{psnr:.1f} |", flush=True)


if __name__ == "__main__":
    errors.run(main)
