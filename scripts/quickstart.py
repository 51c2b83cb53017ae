"""Restores damaged photos that the model never saw, whole, and writes one sheet to look at.

    python scripts/quickstart.py OUTPUT [--photo PICTURE] [--ckpt photo] [--device auto]

A row a kind of damage: damaged | a method that people run today | palette_ms | original, with PSNR in dB and SSIM over
what was to be made. The photos lie in scikit-image's wheel; each is shrunk and cropped to 448×296 pixels, and shown
pixel by pixel. The colour table gives each brightness the mean colour that it has in the other photos. OUTPUT is a
.png, or a .jpg of a third of its size.

PICTURE is one of yours, which is not damaged first and has no original to compare with. The last row shows its middle,
pixel by pixel: as it is | JPEG's traces removed, where it is a JPEG | coloured, where it is gray | noise removed | its
middle enlarged twice; the first three of these results that apply, of a JPEG the others made of the first. What is made
of the whole picture lies beside OUTPUT as NAME_TASK.png. Of more than 640 pixels on the longer side it is shrunk to
these first (`python -m palette_ms.sample` takes all of it).
"""

import argparse
from pathlib import Path

import numpy as np
from damage import as_given, classical, damaged, mean_colours, title
from PIL import Image, ImageDraw, ImageFont, ImageOps
from skimage import data
from tqdm import tqdm

from palette_ms import Palette, errors
from palette_ms.data.files import replacing
from palette_ms.data.images import load_image, save_atomically
from palette_ms.errors import UserError
from palette_ms.evaluation.metrics import psnr, ssim
from palette_ms.seeds import generator

WIDTH, HEIGHT = 448, 296
LARGEST = 640  # of a square photo, what can still be restored at once, not in tiles
GAP, TITLE, CAPTION = 24, 48, 32
SEED = 12  # of scratches and letters that cross the photo
SUFFIXES = {".png": "PNG", ".jpg": "JPEG"}
# (damage, photo, which part of its height is shown: 0 the uppermost, 1 the lowest; the classical method that is shown)
ROWS = (
    ("jpeg 10", data.coffee, 0.5, "bilateral filter"),
    ("noise 25", data.chelsea, 0.5, "non-local means"),
    ("enlarged 4", data.astronaut, 0, "Lanczos"),
    ("scratches", lambda: data.stereo_motorcycle()[0], 0.5, "Telea"),
    ("blur 1.5", data.rocket, 1, "unsharp mask"),
    ("old", data.chelsea, 0.5, "levels and NL means"),
    ("color", data.coffee, 0.5, "colour table"),
)


def middle(picture, width=WIDTH, height=HEIGHT):
    """The middle of a picture, as many pixels as there are up to these."""
    top, left = (max(0, have - wanted) // 2 for have, wanted in zip(picture.shape, (height, width)))
    return picture[top:top + height, left:left + width]


def row(palette, kind, load, part, method):
    """(title, [(picture, name, what is told of it)]) of a kind of damage, or None: the model has not learned it."""
    size = HEIGHT, WIDTH
    original = np.asarray(ImageOps.fit(Image.fromarray(load()), (WIDTH, HEIGHT), Image.LANCZOS, centering=(0.5, part)))
    task, given, hole, asked = damaged(kind, original, generator(SEED, kind))
    if task not in palette.tasks:
        return None
    name, nothing = as_given(kind, given, size)
    others = dict.fromkeys(other[1] for other in ROWS if other[1] is not load)
    colours = mean_colours(other() for other in others) if kind == "color" else None
    result = classical(kind, given, hole, size, colours)[method]()
    made, = palette.restore(given, task, hole, **asked)
    cells = [(picture, name, f"{psnr(picture, original, hole):.2f} dB  SSIM {ssim(picture, original, hole):.3f}")
             for picture, name in ((nothing, name), (result, method), (np.asarray(made), "palette_ms"))]
    if given.shape != original.shape:
        pixels = np.asarray(Image.fromarray(given).resize((WIDTH, HEIGHT), Image.NEAREST))
        cells[0] = pixels, f"given: {given.shape[1]} by {given.shape[0]} pixels", ""
    return title(kind), [*cells, (original, "original", "")]


def own_row(palette, path, output):
    """The same of a picture of the user's, without an original; whole results are written beside the sheet."""
    picture = load_image(path)
    with Image.open(path) as file:
        is_jpeg = file.format in ("JPEG", "MPO")
    if max(picture.shape) > LARGEST:
        picture = np.asarray(ImageOps.contain(Image.fromarray(picture), (LARGEST, LARGEST), Image.LANCZOS))
    choices = [
        ("jpeg_restoration", "JPEG's traces removed", is_jpeg),
        ("colorization", "coloured", np.ptp(picture.astype(int), axis=2).max() < 8),
        ("denoising", "noise removed", True),
        ("super_resolution", "its middle enlarged twice", True),
    ]
    cells = [(middle(picture), "as it is", "")]
    for task, name in [(task, name) for task, name, applies in choices if applies and task in palette.tasks][:3]:
        if task == "super_resolution":
            made, = palette.restore(middle(picture, WIDTH // 2, HEIGHT // 2), task, scale=2)
        else:
            made, = palette.restore(picture, task)
            save_atomically(made, output.with_name(f"{output.stem}_{task}.png"))
            if task == "jpeg_restoration":  # the others would keep and sharpen its blocks
                picture = np.asarray(made)
        cells.append((middle(np.asarray(made)), name, ""))
    return "your own photo", cells


def drawn(rows):
    """The sheet, a PIL image, of rows as `row` makes them."""
    height = TITLE + CAPTION + HEIGHT
    sheet = Image.new("RGB", (4 * (WIDTH + GAP) + GAP, len(rows) * (height + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(30), ImageFont.load_default(21)
    for i, (name, cells) in enumerate(rows):
        top = GAP + i * (height + GAP)
        draw.text((GAP, top + TITLE / 2), name, "black", large, anchor="lm")
        for j, (picture, label, told) in enumerate(cells):
            left, line = GAP + j * (WIDTH + GAP), top + TITLE + CAPTION / 2
            draw.text((left, line), label, "black", small, anchor="lm")
            draw.text((left + WIDTH, line), told, "black", small, anchor="rm")
            sheet.paste(Image.fromarray(picture), (left, top + TITLE + CAPTION))
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--ckpt", default="photo")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.output.suffix not in SUFFIXES:
        raise UserError(f"cannot write {args.output}: name it .png or .jpg")
    if args.photo:
        load_image(args.photo)  # where it cannot be read, tell it now
    palette = Palette.load(args.ckpt, args.device)
    rows = []
    for chosen in tqdm(ROWS, unit="photo", leave=False, disable=None):
        made = row(palette, *chosen)
        if made is None:
            continue
        rows.append(made)
        print(f"{rows[-1][0]}: " + ", ".join(f"{name} {told}" for _, name, told in rows[-1][1] if told))
    if args.photo:
        rows.append(own_row(palette, args.photo, args.output))
    with replacing(args.output) as temporary:
        # PNG takes no notice of how a JPEG is to be encoded.
        drawn(rows).save(temporary, SUFFIXES[args.output.suffix], quality=93, subsampling=0)
    print(args.output)


if __name__ == "__main__":
    errors.run(main)
