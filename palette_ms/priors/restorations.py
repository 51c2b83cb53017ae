"""What a prior restores: for each task its degradation, what a user may say of it, and how strongly it guides.

A new task is a `Restoration` more. MindSpore is imported where a degradation is made, since commands ask for the rest.
"""

import math
import sys
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Dict, Tuple

import cv2
import numpy as np

from palette_ms.data.files import expand
from palette_ms.data.images import load_image
from palette_ms.errors import UserError
from palette_ms.tasks.asks import FEATHER, MASK, Ask
from palette_ms.tasks.deblurring import gaussian_kernel, motion_kernel
from palette_ms.tasks.super_resolution import SuperResolution

RESTORATIONS: Dict[str, "Restoration"] = {}  # by name
STEPS = 100  # network calls by default, where the chain has as many
METHODS = ("gdp", "ddnm", "dps", "diffpir")  # see palette_ms.priors.methods
# What a user may say besides what the task asks, see palette_ms.priors.restore.guiding_of.
OPTIONS = {"prior", "guidance_scale", "loss", "exposure", "colour", "smoothness", "guide_at", "guide_by_variance",
           "zeta"}


@dataclass(frozen=True)
class PathsAsk(Ask):
    """Files, or arrays of the same kind: a path, an array, or a list of these, as text `a.jpg,b.jpg`."""

    most_files: int = 1

    def range(self):
        return "a file" if self.most_files == 1 else "files, with commas between"

    def parse(self, text):
        paths = tuple(str(expand(part)) for part in text.split(",") if part)
        if not paths:
            raise UserError(f"{self.name} names no file")
        return paths if self.most_files > 1 else str(expand(text))

    def check(self, value):
        values = value if isinstance(value, (list, tuple)) else [value]
        for one in values:
            if not isinstance(one, (str, Path, np.ndarray)) and not hasattr(one, "convert"):
                raise UserError(f"{self.name} must be {self.range()}, or arrays, not {one!r}")
        if not 1 <= len(values) <= self.most_files:
            raise UserError(f"{self.name} must be {self.range()}, or arrays, from 1 to {self.most_files} of them, not "
                            f"{len(values)}")


@dataclass(frozen=True)
class MotionAsk(Ask):
    """(length, angle) of a straight motion, as text `9,45`."""

    def range(self):
        return "two numbers, pixels from 1 to 128 and degrees, such as 9,45"

    def parse(self, text):
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise UserError(f"{self.name} must be {self.range()}, not {text!r}") from None

    def check(self, value):
        if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(one, Real) for one in value)
                and 1 <= value[0] <= 128 and math.isfinite(value[1])):
            raise UserError(f"{self.name} must be {self.range()}, not {value!r}")


SCALE, = SuperResolution.asks
DOWNSCALING = Ask("downscaling", "how a small picture came about: each pixel the mean of a block, or by Pillow's "
                                 "bicubic interpolation", choices=("mean", "bicubic"))
BLUR = Ask("blur", "deviation of a Gaussian blur, in pixels", float, least=0.1, most=32)
MOTION = MotionAsk("motion", "length and direction that the camera moved, counterclockwise from the right",
                   metavar="PIXELS,DEGREES")
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

    def degradation(self, height, width, asked, blurs):
        """`palette_ms.priors.degradations.Degradation` of results of a size, but for what a mask says. blurs: what
        `kernels` says of what is asked."""
        from palette_ms.priors.degradations import Bicubic, BlockMean, Blur, Composition, Gray, Whole
        from palette_ms.priors.jpeg import Jpeg

        scale, parts = self.factor(asked), [Blur(kernel) for kernel in blurs]
        if scale > 1:
            parts.append(Bicubic(scale, height, width) if asked.get("downscaling") == "bicubic" else BlockMean(scale))
        if asked.get("jpeg_quality") is not None:
            parts.append(Jpeg(asked["jpeg_quality"]))
        if self.gray:
            parts.append(Gray())
        degradation = Composition(*parts) if len(parts) > 1 else parts[0] if parts else Whole()
        degradation.size(height, width)
        return degradation


_BLURS = (BLUR, MOTION, KERNEL)
_SMALL = (SCALE, DOWNSCALING, *_BLURS)
# The scales are those of Fei et al. 2023 and its released code, for 256 × 256 and 1000 steps; where f and M are
# learned, 80 000, twice a step for dark pictures. Its code has colour constancy for colorization alone.
Restoration("super_resolution", 2000, (*_SMALL, NOISE))
Restoration("deblurring", 6000, (*_BLURS, NOISE), needs_one=("blur", "motion", "kernel"))
Restoration("inpainting", 4000, (MASK, FEATHER), required=("mask",))
Restoration("colorization", 6000, (NOISE,), quality=(("colour", 500.0),), keeps_gray=False, gray=True)
Restoration("denoising", 2000, (NOISE,))
Restoration("jpeg_restoration", 2000, (QUALITY,), required=("jpeg_quality",), prior="ddnm")
Restoration("low_light", 160_000, _SMALL, blind=True)
Restoration("hdr", 80_000, (EXPOSURES,), required=("exposures",), blind=True)


def calls(steps, diffusion):
    """Network calls of a chain, where a user asks for so many, or for none in particular (None)."""
    return min(STEPS, diffusion.test_schedule.num_steps) if steps is None else steps


def restoration(name: str) -> Restoration:
    """That of a name. Raises UserError: there is none.

    Examples:
        >>> restoration("super_resolution").asks[0].name, restoration("inpainting").required
        ('scale', ('mask',))
    """
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


def kernels(asked):
    """Those of the blurs that a user names, one after the other."""
    found = []
    if asked.get("kernel") is not None:
        found.append(read_kernel(asked["kernel"]))
    if asked.get("blur") is not None:
        found.append(gaussian_kernel(asked["blur"]))
    if asked.get("motion") is not None:
        length, degrees = asked["motion"]  # rows go down
        found.append(motion_kernel(length, -math.radians(degrees)))
    return found


def read_kernel(source):
    """A blur's kernel, float32 (k, k): an array, a `.npy` file, or a picture's gray values."""
    if isinstance(source, (str, Path)) and str(source).endswith(".npy"):
        try:
            array = np.load(source, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it is an archive of arrays")
            source = array
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"cannot read kernel {source}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(source, np.ndarray) or source.dtype == np.uint8:
        return load_image(source).astype(np.float32).mean(2)  # a picture has no sum to speak of
    if not (np.issubdtype(source.dtype, np.floating) or np.issubdtype(source.dtype, np.integer)):
        raise UserError(f"a kernel's values must be numbers, not {source.dtype}")
    kernel = source.astype(np.float32)
    if kernel.sum() > 0 and abs(kernel.sum() - 1) > 1e-3:  # others are refused
        print(f"the kernel's values have the sum {kernel.sum():.4g}: they are divided by it", file=sys.stderr)
    return kernel


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
