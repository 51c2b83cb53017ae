"""What a prior restores: for each task its degradation, what a user may say of it, and how strongly it guides.

A new task is a `Restoration` more. MindSpore is imported where a degradation is made, since commands ask for the rest.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

import cv2
import numpy as np

from palette_ms.data.images import load_image
from palette_ms.errors import UserError
from palette_ms.tasks.asks import FEATHER, MASK, Ask
from palette_ms.tasks.deblurring import gaussian_kernel
from palette_ms.tasks.super_resolution import SuperResolution

RESTORATIONS = {}  # by name
STEPS = 100  # network calls by default
METHODS = ("gdp", "ddnm", "dps", "diffpir")  # see palette_ms.priors.methods
# What a user may say besides what the task asks, see palette_ms.priors.restore.guiding_of.
OPTIONS = {"prior", "guidance_scale", "loss", "exposure", "colour", "guide_at", "guide_by_variance", "zeta"}


@dataclass(frozen=True)
class PathsAsk(Ask):
    """Files, or arrays of the same kind: a path, an array, or a list of these, as text `a.jpg,b.jpg`."""

    most_files: int = 1

    def range(self):
        return "a file" if self.most_files == 1 else "files, with commas between"

    def parse(self, text):
        return tuple(text.split(",")) if self.most_files > 1 else text

    def check(self, value):
        values = value if isinstance(value, (list, tuple)) else [value]
        if len(values) > self.most_files or not all(
                isinstance(one, (str, Path, np.ndarray)) or hasattr(one, "convert") for one in values):
            raise UserError(f"{self.name} must be {self.range()}, or arrays, not {value!r}")


SCALE, = SuperResolution.asks
DOWNSCALING = Ask("downscaling", "how a small picture came about: each pixel the mean of a block, or by Pillow's "
                                 "bicubic interpolation", choices=("mean", "bicubic"))
BLUR = Ask("blur", "deviation of a Gaussian blur, in pixels", float, least=0.1, most=32)
KERNEL = PathsAsk("kernel", "the blur's own kernel, odd and square: a picture, or a .npy array", metavar="FILE")
QUALITY = Ask("jpeg_quality", "quality factor that the picture was encoded with", int, least=1, most=100)
NOISE = Ask("noise", "deviation of the noise in the picture, in 255ths", float, least=0, most=128)
EXPOSURES = PathsAsk("exposures", "further exposures of the same scene", metavar="FILE,FILE", most_files=8)


@dataclass(frozen=True)
class Restoration:
    """A task.

    Attributes:
        name: in commands.
        scale: s of `palette_ms.priors.chain.Guiding`, for the chain of 1000 steps.
        asks: what a user may say.
        required: names of those that it cannot do without.
        needs_one: names of which one must be given.
        quality: as of `Guiding`.
        keeps_gray: of a gray picture the result is gray, too.
        blind: the brightness is not known: f · D(x) + M.
        gray: the given picture has no colours.
        prior: the method by default.
    """

    name: str
    scale: float
    asks: Tuple[Ask, ...] = ()
    required: Tuple[str, ...] = ()
    needs_one: Tuple[str, ...] = ()
    quality: Tuple[Tuple[str, float], ...] = ()
    keeps_gray: bool = True
    blind: bool = False
    gray: bool = False
    prior: str = "gdp"

    def __post_init__(self):
        RESTORATIONS[self.name] = self

    def checked(self, asked):
        """What is asked (dict by name, None: not asked), all names there. Raises UserError: something it does not take,
        something out of range, or nothing where it is needed."""
        own = {ask.name: ask for ask in self.asks}
        for name, value in asked.items():
            if value is not None and name not in own:
                raise UserError(f"{self.name} by a prior takes no {name}, but {', '.join(own) or 'nothing'}")
            if value is not None:
                own[name].check(value)
        given = {name for name, value in asked.items() if value is not None}
        for name in self.required:
            if name not in given:
                raise UserError(f"{self.name} needs {name}: {own[name].help}")
        if self.needs_one and not given & set(self.needs_one):
            raise UserError(f"{self.name} needs {' or '.join(self.needs_one)}: " +
                            "; ".join(own[name].help for name in self.needs_one))
        return {name: asked.get(name) for name in own}

    def factor(self, asked):
        """How many times larger than the given picture the result is, each side."""
        if "scale" not in asked:
            return 1
        return asked["scale"] or (4 if self.name == "super_resolution" else 1)

    def degradation(self, height, width, asked):
        """`palette_ms.priors.degradations.Degradation` of results of a size, but for what a mask says."""
        from palette_ms.priors.degradations import Bicubic, BlockMean, Blur, Composition, Gray, Whole
        from palette_ms.priors.jpeg import Jpeg

        scale, parts = self.factor(asked), []
        if asked.get("kernel") is not None:
            parts.append(Blur(read_kernel(asked["kernel"])))
        if asked.get("blur") is not None:
            parts.append(Blur(gaussian_kernel(asked["blur"])))
        if scale > 1:
            parts.append(Bicubic(scale, height, width) if asked.get("downscaling") == "bicubic" else BlockMean(scale))
        if asked.get("jpeg_quality") is not None:
            parts.append(Jpeg(asked["jpeg_quality"]))
        if self.gray:
            parts.append(Gray())
        degradation = Composition(*parts) if len(parts) > 1 else parts[0] if parts else Whole()
        degradation.size(height, width)
        return degradation


_SMALL = (SCALE, DOWNSCALING, BLUR, KERNEL)
# The scales are those of Fei et al. 2023 and its released code, for 256 × 256 and 1000 steps; where f and M are
# learned, 80 000, twice a step for dark pictures. Its code has colour constancy for colorization alone.
Restoration("super_resolution", 2000, (*_SMALL, NOISE))
Restoration("deblurring", 6000, (BLUR, KERNEL, NOISE), needs_one=("blur", "kernel"))
Restoration("inpainting", 4000, (MASK, FEATHER), required=("mask",))
Restoration("colorization", 6000, (NOISE,), quality=(("colour", 500.0),), keeps_gray=False, gray=True)
Restoration("denoising", 2000, (NOISE,))
Restoration("jpeg_restoration", 2000, (QUALITY,), required=("jpeg_quality",), prior="ddnm")
Restoration("low_light", 160_000, (*_SMALL, NOISE), blind=True)
Restoration("hdr", 80_000, (EXPOSURES,), required=("exposures",), blind=True)


def restoration(name):
    """That of a name. Raises UserError: there is none."""
    if name not in RESTORATIONS:
        raise UserError("this model restores by prior: name a task, one of " + ", ".join(RESTORATIONS)
                        + (f", not {name}" if name else ""))
    return RESTORATIONS[name]


def restoration_asks():
    """What users may say: dict from each `Ask` to the names of the tasks that take it."""
    takers = {}
    for task in RESTORATIONS.values():
        for ask in task.asks:
            takers.setdefault(ask, []).append(task.name)
    return takers


def read_kernel(source):
    """A blur's kernel, float32 (k, k): an array, a `.npy` file, or a picture's gray values."""
    if isinstance(source, (str, Path)) and str(source).endswith(".npy"):
        try:
            source = np.load(source, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read kernel {source}: {error}") from None
    if not isinstance(source, np.ndarray) or source.dtype == np.uint8:
        return load_image(source).astype(np.float32).mean(2)  # a picture has no sum to speak of
    if abs(source.sum() - 1) > 1e-3:
        print(f"the kernel's values have the sum {source.sum():.4g}: they are divided by it", file=sys.stderr)
    return source.astype(np.float32)


def aligned(exposures, reference):
    """Further exposures brought to lie over the reference, uint8 (H, W, 3) each, by OpenCV: moved, turned and scaled a
    little, found by the correlation of their gradients (ECC: Evangelidis & Psarakis 2008), which a change of brightness
    leaves alone. One that cannot be brought to lie stays as it is."""
    def edges(picture):
        gray = cv2.GaussianBlur(np.log1p(picture.mean(2).astype(np.float32)), (5, 5), 0)
        return cv2.magnitude(cv2.Sobel(gray, -1, 1, 0), cv2.Sobel(gray, -1, 0, 1))

    target, out = edges(reference), []
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-5)
    for picture in exposures:
        matrix = np.eye(2, 3, dtype=np.float32)
        try:
            # From coarse to fine: the correlation has a peak only where edges nearly meet.
            for factor in (8, 4, 2, 1):
                if min(target.shape) // factor < 24:
                    continue
                small = [cv2.resize(part, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
                         for part in (target, edges(picture))]
                matrix[:, 2] /= factor
                _, matrix = cv2.findTransformECC(*small, matrix, cv2.MOTION_EUCLIDEAN, stop, None, 5)
                matrix[:, 2] *= factor
        except cv2.error:
            matrix = np.eye(2, 3, dtype=np.float32)
        out.append(cv2.warpAffine(picture, matrix, reference.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101,
                                  flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP))
    return out

