"""Writes the photos of the quickstart, which scikit-image carries in its wheel: OUTPUT/train holds those that the
model that ships was trained on, OUTPUT/held_out the one that it never saw.

    python scripts/quickstart_data.py OUTPUT
"""

import argparse
from pathlib import Path

from PIL import Image
from skimage import data

PHOTOS = {
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    for folder, photos in PHOTOS.items():
        (output / folder).mkdir(parents=True, exist_ok=True)
        for name, load in photos.items():
            Image.fromarray(load()).save(output / folder / f"{name}.png")


if __name__ == "__main__":
    main()
