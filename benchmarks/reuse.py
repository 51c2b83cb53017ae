"""What reusing deep features between a chain's calls (DeepCache) saves and costs.

    python benchmarks/reuse.py PHOTO [--ckpt quickstart] [--crops 6] [--reuse 1,2,3,5] [--sampler dpmpp_2m]
                               [--steps 20,50] [--runtime auto]

Crops of a photo that the model's training never saw have a hole filled, as in samplers.py. Time is a picture's, the
median over the crops, relative to the whole network in every call, in one process; distances are root mean squares over
the hole to what the same noise becomes with the whole network, in grey levels of 255. Prints a table in Markdown.
"""

import argparse
import time

import numpy as np
from heldout import crops_of
from samplers import rms

from palette_ms import Palette, errors
from palette_ms.evaluation.metrics import psnr
from palette_ms.tasks.masks import MASKS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--ckpt", default="quickstart")
    parser.add_argument("--crops", type=int, default=6)
    parser.add_argument("--reuse", default="1,2,3,5")
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--steps", default="20,50")
    parser.add_argument("--runtime", default="auto")
    args = parser.parse_args()
    palette = Palette.load(args.ckpt, "CPU", args.runtime)
    size = palette.config.data.image_size
    crops = crops_of(args.photo, args.crops, size)

    def made(number, steps, reuse):
        """(picture, hole, seconds)"""
        hole = MASKS[("center", "free_form")[number % 2]](np.random.default_rng(number), size, size)[0] > 0
        start = time.perf_counter()
        picture, = palette.restore(crops[number], "inpainting", hole, args.sampler, steps, seed=number, reuse=reuse)
        return np.asarray(picture), hole, time.perf_counter() - start

    numbers = [0, *range(args.crops)]  # the first is not counted: it compiles or exports
    print("| calls | reuse | whole calls | time | to reuse 1, grey levels | PSNR in the hole, dB |")
    print("| --- " * 6 + "|")
    for steps in map(int, args.steps.split(",")):
        wholes = [made(number, steps, 1) for number in numbers][1:]
        for reuse in map(int, args.reuse.split(",")):
            rows = [made(number, steps, reuse) for number in numbers][1:]
            seconds = np.median([row[2] for row in rows]) / np.median([row[2] for row in wholes])
            distance = np.mean([rms(row[:1], whole[:1], row[1]) for row, whole in zip(rows, wholes)])
            quality = np.mean([psnr(row[0], crop, row[1]) for row, crop in zip(rows, crops)])
            print(f"| {steps} | {reuse} | {-(-steps // reuse)} | {seconds:.2f} | {distance:.1f} | {quality:.2f} |",
                  flush=True)


if __name__ == "__main__":
    errors.run(main)
