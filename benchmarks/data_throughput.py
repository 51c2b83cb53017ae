"""Pictures a second that the data pipeline makes at 256×256, beside what a training step takes.

    python benchmarks/data_throughput.py [--config configs/palette_62m.yaml] [--seconds 3] [--need PICTURES_A_SECOND]
                                         [key=value …]

Eight photos of scikit-image, shorter side 512, as JPEG of four qualities, in every kind of source; tasks and crops are
the config's, and nothing is kept decoded but where a row says so. Not more workers than cores are used, so columns of
more are left out. The training step is the config's with the values given (default: data.image_size=64
training.batch_size=1 training.precision=float32, for a CPU), unless --need tells what one takes.
"""

import argparse
import csv
import dataclasses
import os
import tarfile
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from palette_ms import errors, runtime  # before MindSpore: it sets the environment

# isort: split
import numpy as np
from PIL import Image
from skimage import data

from palette_ms.config import PairedConfig, load_config
from palette_ms.data.loader import TrainingBatches
from palette_ms.pack import pack
from palette_ms.training.loop import Trainer

PHOTOS = (data.astronaut, data.chelsea, data.coffee, data.rocket, data.hubble_deep_field, data.immunohistochemistry,
          data.retina, lambda: data.stereo_motorcycle()[0])


def write_sources(folder):
    """The same pictures as every kind of source; returns their paths by what the table calls them."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for k, load in enumerate(PHOTOS):
        photo = Image.fromarray(load())
        scale = 512 / min(photo.size)
        photo = photo.resize([round(side * scale) for side in photo.size], Image.LANCZOS)
        for quality in (80, 85, 90, 95):
            photo.save(pictures / f"{k}_{quality}.jpg", quality=quality)
    files = sorted(pictures.iterdir())
    (folder / "list.txt").write_text("".join(f"{file}\n" for file in files))
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("source", "target"), *((path, path) for path in files)])
    with zipfile.ZipFile(folder / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    with tarfile.open(folder / "pictures.tar", "w") as archive:
        archive.add(pictures, "pictures")
    pack(pictures, folder / "pictures.mindrecord")
    pack(folder / "pairs.csv", folder / "pairs.mindrecord")
    return {"folder": pictures, "list (.txt)": folder / "list.txt", "zip": folder / "pictures.zip",
            "tar": folder / "pictures.tar", "MindRecord": folder / "pictures.mindrecord",
            "pairs (.csv)": folder / "pairs.csv", "pairs (MindRecord)": folder / "pairs.mindrecord"}


def pictures_per_second(config, path, workers, seconds, cache_mb=0):
    part = dataclasses.replace(config.data, path=str(path), image_size=256, workers=workers, cache_mb=cache_mb)
    config = dataclasses.replace(config, data=part)
    if "pairs" in path.name:
        config = dataclasses.replace(config, tasks=(PairedConfig(),))
    batches = TrainingBatches(config).iterate(0)
    warm_up = 64 // config.training.batch_size + 1  # every picture has been read once
    for _ in range(warm_up):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        next(batches)
        count += config.training.batch_size
    elapsed = time.perf_counter() - start
    batches.close()
    return count / elapsed


def step_seconds(config):
    """The median time of a training step after the first, which compiles."""
    trainer = Trainer(config)
    batch = trainer.batches.batch(0)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        trainer.train_on(batch)[0].asnumpy()
        times.append(time.perf_counter() - start)
    return np.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/palette_62m.yaml")
    parser.add_argument("--seconds", type=float, default=3, help="for each figure")
    parser.add_argument("--need", type=float, help="pictures a second that a training step takes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    config = load_config(args.config)
    runtime.setup(args.device, seed=0)
    with TemporaryDirectory() as folder:
        sources = write_sources(Path(folder))
        columns = [workers for workers in (1, 2, 4) if workers <= os.cpu_count()]
        print(f"pictures/s at 256×256, {os.cpu_count()} cores".ljust(40)
              + "".join(f"{workers} worker{'s' if workers > 1 else ''}".rjust(11) for workers in columns))
        for name, path in sources.items():
            rates = [pictures_per_second(config, path, workers, args.seconds) for workers in columns]
            print(name.ljust(40) + "".join(f"{rate:11.1f}" for rate in rates))
        rates = [pictures_per_second(config, sources["folder"], workers, args.seconds, 1024) for workers in columns]
        print("folder, kept decoded".ljust(40) + "".join(f"{rate:11.1f}" for rate in rates))
        if args.need:
            print(f"the training step takes {args.need:g} pictures/s, as told")
            return
        overrides = args.overrides or ["data.image_size=64", "training.batch_size=1", "training.precision=float32"]
        config = load_config(args.config, [*overrides, f"data.path={sources['folder']}"])
        seconds = step_seconds(config)
        size, batch = config.data.image_size, config.training.batch_size
        print(f"a training step of {args.config} at {size}×{size}, batch {batch}, {config.training.precision}: "
              f"{seconds:.2f} s, takes {batch / seconds:.1f} pictures/s")


if __name__ == "__main__":
    errors.run(main)
