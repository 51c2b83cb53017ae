"""Palette's process beside those that begin with the source, each trained for the same time by the same recipe.

    python benchmarks/processes.py TRAIN PHOTOS OUTPUT [--minutes 10] [--calls 1,2,4] [key=value …]

TRAIN is a folder of photos to train on, PHOTOS one of others, OUTPUT where the trainings go. configs/photo.yaml is
trained with diffusion.process palette, resshift and i2sb, each at its own levels (cosine; the papers' schedules, of 15
and of 1000 steps), from the same seed, one after the other; key=value changes all three, such as
model.base_channels=16. Then PSNR in dB over what was to be made, and the detail over the originals', by the number of
calls: means over 8 photos, of 256×256 pixels, of the sampler ddim.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from palette_ms import Palette, errors
from palette_ms.tune import pairs, score

OWN = {
    "palette": ["diffusion.test_schedule={name: cosine, num_steps: 1000}"],
    "resshift": ["diffusion.noise_levels=schedule", "diffusion.train_schedule={name: resshift, num_steps: 15}",
                 "diffusion.test_schedule={name: resshift, num_steps: 15}"],
    "i2sb": ["diffusion.noise_levels=schedule", "diffusion.train_schedule={name: i2sb, num_steps: 1000}",
             "diffusion.test_schedule={name: i2sb, num_steps: 1000}"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("photos")
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--calls", default="1,2,4")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    calls = [int(text) for text in args.calls.split(",")]
    config = Path(__file__).parents[1] / "configs" / "photo.yaml"
    print("| task | process | pictures | " + " | ".join(f"{count} calls" for count in calls) + " |")
    print("| --- " * (3 + len(calls)) + "|")
    for process, own in OWN.items():
        folder = args.output / process
        if not (folder / "model.safetensors").exists():
            status = subprocess.run([sys.executable, "-m", "palette_ms.train", "--config", config,
                                     f"data.path={args.train}", f"training.output={folder}",
                                     f"training.max_minutes={args.minutes}", "training.seed=0",
                                     f"diffusion.process={process}", *own, *args.overrides],
                                    stdout=subprocess.DEVNULL).returncode
            if status:
                sys.exit(status)
        palette = Palette.load(folder / "model.safetensors", "CPU")
        for place, task in enumerate(palette.config.tasks):
            examples = list(pairs(palette.config, place, args.photos, 8, 256, 0))
            figures = [score(palette, place, examples, "ddim", count, 0) for count in calls]
            print(f"| {task.name} | {process} | {palette.pictures} | "
                  + " | ".join(f"{psnr:.2f} ({detail:.2f})" for psnr, detail in figures) + " |", flush=True)


if __name__ == "__main__":
    errors.run(main)
