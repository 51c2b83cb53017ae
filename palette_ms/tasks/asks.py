"""What a user may ask of a task besides the picture: a mask, a factor, margins.

A task declares its asks once. The command's options, the checks of `Palette.restore` and forms are made of them. An ask
that several tasks take is one object, named by each.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from keyword import iskeyword
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Callable, Optional, Tuple

import cv2
import numpy as np

from palette_ms.data.files import expand, plain_name, stem
from palette_ms.data.images import list_images
from palette_ms.data.readers import ARRAY_SUFFIXES
from palette_ms.errors import UserError, did_you_mean
from palette_ms.tasks.masks import MASKS

SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Ask:
    """A number, or a choice; the base of other kinds.

    Attributes:
        name: the keyword of `Palette.restore`, and the command's option.
        help: what it means, to stand after the names of its tasks.
        type: int, float or str.
        least, most: the range, both ends included; None: no end.
        choices: the only values there are; (): all of the range.
        metavar: what stands for the value in the command's help; None: the name.

    Examples:
        >>> scale = Ask("scale", "factor of enlargement", int, least=2, most=8)
        >>> scale.parse("4")
        4
        >>> scale.check(9)
        Traceback (most recent call last):
        palette_ms.errors.UserError: scale must be a whole number from 2 to 8, not 9
    """

    name: str
    help: str
    type: Any = str
    least: Optional[float] = None
    most: Optional[float] = None
    choices: Tuple = ()
    metavar: Optional[str] = None

    def __post_init__(self):
        if not str(self.name).isidentifier() or iskeyword(self.name):
            raise UserError(f"{self.name!r} cannot be the name of an ask: it must be one that a Python argument may "
                            "have")
        if self.type not in (int, float, str) or not all(isinstance(choice, self.type) for choice in self.choices):
            raise UserError(f"the type of the ask {self.name} must be int, float or str, and that of its choices")
        object.__setattr__(self, "choices", tuple(self.choices))

    def parse(self, text: str) -> Any:
        """The value that a text of the command line or a form stands for. Raises UserError."""
        try:
            return self.type(text)
        except ValueError:
            kind = {int: "a whole number", float: "a number"}.get(self.type, "such a value")
            raise UserError(f"{self.name}: {text!r} is not {kind}") from None

    def check(self, value: Any) -> None:
        """Raises UserError unless a value is of the type and in the range."""
        kind = {int: Integral, float: Real}.get(self.type, self.type)  # NumPy's numbers too
        good = isinstance(value, kind) and not isinstance(value, bool)
        if good and self.choices:
            good = value in self.choices
        elif good and self.type is not str:  # NaN is in no range
            good = not (value != value or (self.least is not None and value < self.least)
                        or (self.most is not None and value > self.most))
        if not good:
            raise UserError(f"{self.name} must be {self.range()}, not {value!r}")

    def range(self) -> str:
        """Type and range in words."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        kind = {int: "a whole number", float: "a number"}.get(self.type, "a text")
        ends = [f"from {self.least} on" if self.most is None else f"from {self.least} to {self.most}"
                if self.least is not None else f"up to {self.most}"] * (self.least is not None or self.most is not None)
        return " ".join([kind, *ends])

    def for_each(self, value: Any) -> Callable[[Path], Any]:
        """A function: a picture's relative path, from its folder on → the value for it."""
        return lambda path: value


@dataclass(frozen=True)
class MaskAsk(Ask):
    """A mask: a path, PIL image or array of the picture's size, white (above half) where pixels are to be made, or the
    name of a kind of mask. On the command line also a folder of masks by the pictures' paths below theirs.

    Examples:
        >>> from palette_ms.tasks.asks import MASK
        >>> MASK.check(np.ones((4, 4), np.uint8))
        >>> MASK.parse("center")
        'center'
    """

    def range(self):
        return "a file, or a folder of them by the pictures' names"

    def check(self, value):
        if not isinstance(value, (str, Path, np.ndarray)) and not hasattr(value, "convert"):
            raise UserError(f"{self.name} must be a path, a picture or an array, not {type(value).__name__}")

    def parse(self, text):
        return text if text in MASKS else str(expand(text))

    def for_each(self, value):
        if isinstance(value, str) and value not in MASKS and not os.path.lexists(value):
            raise UserError(f"no such mask: {value}{did_you_mean(value, MASKS, '')}")
        if not isinstance(value, str) or value in MASKS or not Path(value).is_dir():
            return super().for_each(value)
        masks = defaultdict(list)
        for path in list_images(value, ARRAY_SUFFIXES):
            below = path.relative_to(value)
            for name in {below, stem(below, ARRAY_SUFFIXES)}:
                masks[plain_name(name)].append(path)

        def mask_of(path):
            # The file of the very name, or else the only one with another suffix.
            found = masks.get(plain_name(path)) or masks.get(plain_name(stem(path, ARRAY_SUFFIXES)), [])
            if len(found) != 1:
                raise UserError(f"{value} holds {len(found)} masks for {path}, by its name and in the same subfolder; "
                                "one is needed")
            return found[0]

        return mask_of


def read_mask(asked, height, width, rng):
    """What `MASK` was answered with, its edge softened as `FEATHER` says.

    Args:
        asked: `palette_ms.tasks.task.Request`.
        rng: numpy.random.Generator, for a kind of mask.

    Returns: float32 (1, height, width): 1 where pixels are to be made, between 0 and 1 where what is made is laid over
        what is known.

    Raises:
        UserError: it cannot be read, has another size, or nothing is to be made.
    """
    mask = asked["mask"]
    if isinstance(mask, str) and mask in MASKS:
        hole = MASKS[mask](rng, height, width)[0]
    else:
        hole = asked.form.read_mask(mask)
    if hole.shape != (height, width):
        turned = "" if hole.shape != (width, height) else \
            "; a mask is for the picture as viewers show it, turned as its EXIF orientation says"
        raise UserError(f"the mask is {hole.shape[1]}×{hole.shape[0]}, the picture {width}×{height} "
                        f"(width × height): they must be the same{turned}")
    if asked.get("feather"):
        away = cv2.distanceTransform(np.uint8(hole < 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        hole = np.maximum(hole, (1 - away / (asked["feather"] + 1)).clip(0, 1))
    return hole[None].astype(np.float32)


@dataclass(frozen=True)
class MarginsAsk(Ask):
    """Pixels to add on some sides: a dict, as text `left=64,right=64`."""

    def range(self):
        return "pixels from 0 on"

    def parse(self, text):
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(pixels.isdecimal() for _, _, pixels in pairs):
            raise UserError(f"--{self.name} {text!r} is not of the form {self.metavar}")
        return {side: int(pixels) for side, _, pixels in pairs}

    def check(self, value):
        if not isinstance(value, dict):
            raise UserError(f"{self.name} must be a dict of pixels on some of {', '.join(SIDES)}, not {value!r}")
        for side, pixels in value.items():
            if side not in SIDES or not isinstance(pixels, Integral) or pixels < 0:
                raise UserError(f"{self.name}: {side}={pixels!r} is not a number of pixels on one of "
                                f"{', '.join(SIDES)}")
        if not any(value.values()):
            raise UserError(f"{self.name} adds no pixel: nothing to make")


FEATHER = Ask("feather", "pixels around the hole over which what is made fades into what is known", float, least=0)
MASK = MaskAsk("mask", f"a picture that is white where pixels are to be made, or {', '.join(MASKS)}", metavar="MASK")
