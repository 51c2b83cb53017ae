"""What a model of several tasks makes of a photo that its training never saw, beside the damaged picture.

    python benchmarks/multi_task.py PHOTO CHECKPOINT [--steps 2] [--crops 16] [--picture OUTPUT.png]

Square crops of random place and scale, resized to the training size, are damaged as each task does it in training and
restored. Each row is the mean over the crops: of PSNR in dB over what was to be made, and for colorization, whose
brightness is known, of the error of the ab channels of CIE Lab (lower is better). `damaged` has mid-gray in a hole;
`source` is what the model is given, with the hole filled as the task fills it. `mean of 4` is the average of four
samples. Two steps give nearly the mean of what the picture may have been, which is what PSNR asks for. The picture
shows a crop for each task: source, sample, mean of 4, original.
"""

import argparse
from pathlib import Path

import numpy as np

from palette_ms import Palette, errors
from palette_ms.data.forms import Photo
from palette_ms.data.images import grid, load_image, save_atomically, to_uint8
from palette_ms.data.loader import crop
from palette_ms.data.sources import Row
from palette_ms.diffusion.cells import LabelledUNet
from palette_ms.diffusion.samplers import Sampling, create_chain, create_sampler
from palette_ms.evaluation.metrics import ab_error, psnr

SAMPLES = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("checkpoint")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    palette = Palette.load(args.checkpoint)
    config, photo = palette.config, load_image(args.photo)
    size = config.data.image_size
    row, forms = Row(photo), (Photo(), Photo())
    originals = [crop(row, forms, size, 0.25, False, np.random.default_rng(i)).target for i in range(args.crops)]

    print(f"{'task':18} {'':9} {'damaged':>8} {'source':>8} {'sample':>8} {f'mean of {SAMPLES}':>10}")
    rows = []
    for place, task in enumerate(config.tasks):
        unet = palette.unet
        if config.model.num_classes is not None:
            unet = LabelledUNet(unet, (place,) * SAMPLES)
        sampling = Sampling(steps=args.steps)
        sampler = create_sampler(create_chain(unet, config.diffusion, sampling), config.diffusion, sampling,
                                 task.test_schedule)
        scores = []
        for i, y_0 in enumerate(originals):
            cond, mask = task.pair(y_0, np.random.default_rng([1, i]))
            hole = np.ones_like(y_0[:1]) if mask is None else mask
            cond, batch = (np.repeat(array[None], SAMPLES, 0) for array in (cond, y_0))
            noise = np.random.default_rng([2, i]).standard_normal(batch.shape, np.float32)
            made = sampler(cond, hole * noise + (1 - hole) * batch, i, hole[None], batch).asnumpy()
            source, damaged, mean, original, *samples = map(
                to_uint8, (cond[0], np.where(hole > 0, 0, y_0) if mask is not None else cond[0],
                           np.clip(made, -1, 1).mean(0), y_0, *made))
            score = ab_error if task.name == "colorization" else lambda a, b, where=hole[0] > 0: psnr(a, b, where)
            scores.append([score(damaged, original), score(source, original),
                           np.mean([score(sample, original) for sample in samples]), score(mean, original)])
            if i == 0:
                rows.append([source, samples[0], mean, original])
        values = np.mean(scores, 0)
        unit = "ab error" if task.name == "colorization" else "dB"
        print(f"{task.name:18} {unit:9} {values[0]:8.2f} {values[1]:8.2f} {values[2]:8.2f} "
              f"{values[3]:10.2f}")
    if args.picture:
        save_atomically(grid(rows), args.picture)
        print(args.picture)


if __name__ == "__main__":
    errors.run(main)
