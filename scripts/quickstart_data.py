"""Writes the photos of the quickstart: OUTPUT/train to train on, OUTPUT/held_out the one that no training sees.

    python scripts/quickstart_data.py OUTPUT [--opencv-doc FOLDER]

Seven photos and the held-out one lie in scikit-image's wheel. More to train on are in Debian's package opencv-doc
(OpenCV's examples, Apache 2.0 and BSD licences): FOLDER is its usr/share/doc/opencv-doc, installed (apt-get install
opencv-doc) or unpacked (dpkg -x). Two of its photos go to OUTPUT/validation instead, to choose between recipes on.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps
from skimage import data

from palette_ms import errors
from palette_ms.errors import UserError

# Shorter side in pixels: a training crop of 64×64 gains nothing from more, and decoding and shrinking take time.
SHORTER_SIDE = 512
SCIKIT_IMAGE = {
    "train": {
        "astronaut": data.astronaut,
        "chelsea": data.chelsea,
        "rocket": data.rocket,
        "hubble_deep_field": data.hubble_deep_field,
        "immunohistochemistry": data.immunohistochemistry,
        "retina": data.retina,
        "motorcycle": lambda: data.stereo_motorcycle()[0],  # the other eye's picture is nearly the same
    },
    "held_out": {"coffee": data.coffee},
}
OPENCV_DOC = {
    "train": [
        "examples/alphamat/input_images/plant.jpg",
        *(f"examples/data/{name}" for name in (
            "aero1.jpg", "aloeL.jpg", "apple.jpg", "baboon.jpg", "board.jpg", "building.jpg", "butterfly.jpg",
            "chicky_512.png", "graf1.png", "leuvenA.jpg", "messi5.jpg", "orange.jpg", "rubberwhale1.png",
            "smarties.png", "squirrel_cls.jpg", "starry_night.jpg", "stuff.jpg")),
        *(f"examples/text/scenetext0{number}.jpg" for number in range(1, 7)),
        "examples/reg/home.png",
        *(f"opencv4/html/{name}" for name in (
            "astra_color.jpg", "bicubicOutput.jpg", "detect_test2.jpg", "ldr_robertson.jpg", "opencv_bus_res.jpg",
            "retina_TreeHdr_small.jpg")),
    ],
    "validation": ["examples/data/fruits.jpg", "examples/data/home.jpg"],
}


def save(image, path, shorter_side=SHORTER_SIDE):
    """Write a PIL image upright, in RGB, with so many pixels on its shorter side at most."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    scale = shorter_side / min(image.size)
    if scale < 1:
        image = image.resize([round(side * scale) for side in image.size], Image.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--opencv-doc", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    if args.opencv_doc:
        for folder, names in OPENCV_DOC.items():
            for name in names:
                if not (args.opencv_doc / name).is_file():
                    raise UserError(f"{args.opencv_doc} is not the folder of the package opencv-doc: it lacks {name}")
                target = f"opencv_{Path(name).stem}.png"
                save(Image.open(args.opencv_doc / name), args.output / folder / target)
    for folder, photos in SCIKIT_IMAGE.items():
        for name, load in photos.items():
            save(Image.fromarray(load()), args.output / folder / f"{name}.png")


if __name__ == "__main__":
    errors.run(main)
