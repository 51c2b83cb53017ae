"""Kinds of damage to whole photos, and the methods that people run against them today.

A kind is written as its name and, where it has one, its level: "jpeg 10" (quality), "noise 25" (deviation in 255ths),
"enlarged 4" (times), "scratches", "holes" (two squares of 64×64 pixels), "color" (gray), "blur 1.5" (a Gaussian's
deviation in pixels), "old" (a faded, grainy, scratched print of `OLD`, no mask given). `KINDS` are those of the table
in docs/photo_model.md.
"""

import cv2
import numpy as np
from PIL import Image

from palette_ms.data.images import to_float, to_uint8
from palette_ms.tasks.colorization import Colorization
from palette_ms.tasks.deblurring import gaussian_kernel
from palette_ms.tasks.fill import smooth_fill
from palette_ms.tasks.jpeg_restoration import jpeg
from palette_ms.tasks.masks import MASKS
from palette_ms.tasks.old_photo import OldPhoto

KINDS = ("jpeg 10", "jpeg 20", "noise 15", "noise 25", "noise 50", "enlarged 2", "enlarged 4", "scratches", "holes",
         "color", "blur 1.5", "old")
HOLE = 64
OLD = OldPhoto(blur=(0.8, 0.8), fading=(0.3, 0.3), cast=(0.15, 0.15), grain=(10.0, 10.0), scratched=1.0,
               quality=(75, 75))


def resized(picture, height, width, filter=Image.BICUBIC):
    """uint8 (H, W, 3) → (height, width, 3)."""
    return np.asarray(Image.fromarray(picture).resize((width, height), filter))


def title(kind):
    """What a kind is called in sheets and tables."""
    name, _, level = kind.partition(" ")
    return {
        "jpeg": f"JPEG, quality {level}",
        "noise": f"noise, deviation {level}",
        "enlarged": f"enlarged {level} times",
        "scratches": "scratches and lettering",
        "holes": f"holes of {HOLE} by {HOLE} pixels",
        "color": "colour",
        "blur": f"blur, deviation {level} pixels",
        "old": "an old print",
    }[name]


def divisible(kind, picture):
    """A picture cropped, at its right and lower edge, to sides that an enlargement gives."""
    times = int(kind.split()[1]) if kind.startswith("enlarged") else 1
    height, width = (side // times * times for side in picture.shape[:2])
    return picture[:height, :width]


def damaged(kind, picture, rng):
    """What someone has who asks for a picture to be restored.

    Args:
        picture: uint8 (H, W, 3), of `divisible` sides.
        rng: NumPy generator, for noise and holes.

    Returns: (task's name, what is given, uint8 (h, w, 3), bool (H, W) of what is to be made or None, further arguments
        of `Palette.restore`).
    """
    name, _, level = kind.partition(" ")
    if name == "jpeg":
        return "jpeg_restoration", to_uint8(jpeg(to_float(picture), int(level))), None, {}
    if name == "noise":
        noisy = picture + rng.normal(0, int(level), picture.shape)
        return "denoising", noisy.round().clip(0, 255).astype(np.uint8), None, {}
    if name == "enlarged":
        times = int(level)
        small = resized(picture, *(side // times for side in picture.shape[:2]))
        return "super_resolution", small, None, {"scale": times}
    if name == "color":
        return "colorization", to_uint8(Colorization(gray="lightness").source(to_float(picture))), None, {}
    if name == "blur":
        return "deblurring", _filtered(picture, gaussian_kernel(float(level))), None, {}
    if name == "old":
        return "old_photo", to_uint8(OLD.pair(to_float(picture), rng)[0]), None, {}
    hole = _squares(picture, rng) if name == "holes" else _scratched(picture, rng)
    return "inpainting", np.where(hole[..., None], np.uint8(255), picture), hole, {}


def _scratched(picture, rng):
    """Scratches and lettering over at least half a per cent: letters may lie outside, and a dot tells nothing."""
    while True:
        hole = MASKS["scratches"](rng, *picture.shape[:2])[0] > 0
        if hole.mean() >= 0.005:
            return hole


def as_given(kind, given, size):
    """(name, result) of doing nothing that would take a method: what the others must come past."""
    name = kind.split()[0]
    if name == "enlarged":
        return "bicubic", resized(given, *size)
    return {"jpeg": "the JPEG", "color": "gray"}.get(name, "as given"), given


def classical(kind, given, hole, size, colours=None):
    """{name: function that makes a result, uint8 (H, W, 3)} of the methods in use; BM3D where `bm3d` is installed.

    The noise filters are told the noise's deviation and Richardson–Lucy the blur's, which the model is not.

    Args:
        given, hole: as `damaged` returns them.
        size: (H, W) of the result.
        colours: what `mean_colours` returned, for "color".
    """
    name, _, level = kind.partition(" ")
    if name == "jpeg":
        return {"bilateral filter": lambda: cv2.bilateralFilter(given, 5, 20, 3)}
    if name == "noise":
        strength = 0.6 * int(level)
        methods = {"non-local means": lambda: cv2.fastNlMeansDenoisingColored(given, None, strength, strength)}
        try:
            import bm3d
        except ImportError:
            return methods
        return {**methods, "BM3D": lambda: _rounded(bm3d.bm3d_rgb(given.astype(np.float64), int(level)))}
    if name == "enlarged":
        return {"Lanczos": lambda: resized(given, *size, Image.LANCZOS)}
    if name == "color":
        return {} if colours is None else {"colour table": lambda: tinted(given, colours)}
    if name == "blur":
        return {"unsharp mask": lambda: _rounded(2.0 * given - cv2.GaussianBlur(given, (0, 0), float(level))),
                "Richardson–Lucy": lambda: richardson_lucy(given, gaussian_kernel(float(level)))}
    if name == "old":
        return {"levels and NL means": lambda: cv2.fastNlMeansDenoisingColored(levelled(given), None, 7, 7)}
    mask = hole.astype(np.uint8)
    return {"Telea": lambda: cv2.inpaint(given, mask, 3, cv2.INPAINT_TELEA),
            "Navier–Stokes": lambda: cv2.inpaint(given, mask, 3, cv2.INPAINT_NS),
            "smooth fill": lambda: to_uint8(smooth_fill(to_float(given), hole[None].astype(np.float32)))}


def richardson_lucy(given, kernel, rounds=10):
    """Deconvolution of uint8 (H, W, 3) by a known symmetric blur (Richardson 1972, equation 14)."""
    blurred = given / 255 + 1e-3
    made = blurred.copy()
    for _ in range(rounds):
        made *= cv2.filter2D(blurred / cv2.filter2D(made, -1, kernel), -1, kernel)
    return _rounded(255 * (made - 1e-3))


def levelled(picture):
    """Each channel stretched, so that a hundredth of its pixels is black and a hundredth white."""
    low, high = np.percentile(picture, (1, 99), axis=(0, 1))
    return _rounded((picture - low) * 255 / np.maximum(high - low, 1))


def mean_colours(photos):
    """A (256, 2) table: the mean a and b of CIE Lab, as OpenCV's 8-bit values, at each L in photos, uint8 (H, W, 3)."""
    sums, counts = np.zeros((256, 2)), np.zeros(256)
    for photo in photos:
        lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB).reshape(-1, 3)
        counts += np.bincount(lab[:, 0], minlength=256)
        for channel in (0, 1):
            sums[:, channel] += np.bincount(lab[:, 0], lab[:, channel + 1].astype(float), 256)
    return (sums + 128) / (counts + 1)[:, None]


def tinted(gray, colours):
    """A gray picture, uint8 (H, W, 3), each brightness in its colour of `mean_colours`."""
    lab = cv2.cvtColor(gray, cv2.COLOR_RGB2LAB)
    lab[..., 1:] = colours[lab[..., 0]].round()
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def _filtered(picture, kernel):
    return _rounded(cv2.filter2D(picture.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REFLECT_101))


def _squares(picture, rng):
    hole = np.zeros(picture.shape[:2], bool)
    for _ in range(2):
        top, left = (rng.integers(0, side - HOLE + 1) for side in picture.shape[:2])
        hole[top:top + HOLE, left:left + HOLE] = True
    return hole


def _rounded(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
