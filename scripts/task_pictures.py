"""Shows what every task does to photos: a row a task, and for each photo source | mask | target.

    python scripts/task_pictures.py FOLDER OUTPUT.png [--size 128] [--photos 3] [--seed 0]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from palette_ms import errors
from palette_ms.data.forms import Photo
from palette_ms.data.images import grid, list_images, load_image, save_atomically, to_uint8
from palette_ms.data.loader import crop
from palette_ms.data.sources import Row
from palette_ms.errors import UserError
from palette_ms.tasks import TASKS
from palette_ms.tasks.asks import SIDES
from palette_ms.tasks.inpainting import Inpainting
from palette_ms.tasks.masks import MASKS
from palette_ms.tasks.super_resolution import SuperResolution
from palette_ms.tasks.uncropping import Uncropping

# The tasks that draw a kind have a row for each.
ROWS = {
    **{f"inpainting {kind}": Inpainting(masks=(kind,)) for kind in MASKS},
    "inpainting, smooth fill": Inpainting(fill="smooth"),
    **{f"uncropping {side}": Uncropping(sides=(side,)) for side in (*SIDES, "all")},
    **{f"super_resolution x{scale}": SuperResolution(scales=(scale,)) for scale in (2, 4, 8)},
    **{name: task() for name, task in TASKS.items() if task not in (Inpainting, Uncropping, SuperResolution)
       and task.has_source and not task.needs_pairs},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="photos, one a column; the first ones by name")
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--photos", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    files = list_images(args.folder)
    if len(files) < args.photos:
        raise UserError(f"{args.folder} holds {len(files)} pictures; --photos {args.photos} needs as many")
    photos = [load_image(path) for path in files[:args.photos]]
    rows = []
    for name, task in ROWS.items():
        label = np.full((args.size, args.size, 3), 255, np.uint8)
        for i, word in enumerate(name.replace("_", " ").split()):
            cv2.putText(label, word, (4, 20 + 18 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        row = [label]
        for k, photo in enumerate(photos):
            rng = np.random.default_rng([args.seed, k])
            y_0 = crop(Row(photo), (Photo(), Photo()), args.size, 1.0, False, rng).target
            cond, mask = task.pair(y_0, rng)
            shown = np.ones_like(y_0[:1]) if mask is None else mask
            row += [to_uint8(cond), to_uint8(np.repeat(2 * shown - 1, 3, 0)), to_uint8(y_0)]
        rows.append(row)
    save_atomically(grid(rows).quantize(256), args.output)  # a third of the size, and looks the same
    print(args.output)


if __name__ == "__main__":
    errors.run(main)
