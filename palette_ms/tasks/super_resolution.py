"""Super-resolution: the source is small, enlarged by bicubic interpolation (SR3: Saharia et al. 2021, arXiv 2104.07636,
section 2), or bilinear (guided-diffusion's upsamplers: Dhariwal & Nichol 2021, arXiv 2105.05233, appendix H)."""

import math
from dataclasses import dataclass
from typing import Literal, Tuple

import numpy as np
from PIL import Image

from palette_ms.errors import UserError
from palette_ms.tasks.asks import Ask
from palette_ms.tasks.task import Task, option

# Of photos enlarged 2 and 4 times, more rounds do not bring the result nearer to the original.
BACK_PROJECTIONS = 5


@dataclass(frozen=True)
class SuperResolution(Task):
    """The source was made smaller and large again. Sides that the factor does not divide are rounded up when made
    smaller."""

    name = "super_resolution"
    asks = (Ask("scale", "the factor, where the model knows several", int, least=2),)

    scales: Tuple[int, ...] = option((4,), "factors, drawn evenly", least=2)
    interpolation: Literal["bicubic", "bilinear"] = option("bicubic", "how the source is made small and large again; "
                                                           "bilinear: small by the mean over blocks")
    consistent: bool = option(False, "the result, made small again, is the picture that was given: where it is not, "
                                     "the difference is added (back-projection)")
    classes: bool = option(False, "the labels of a network with `num_classes` are the pictures' classes, not tasks")

    @property
    def has_classes(self):
        return self.classes

    @property
    def smaller(self):
        """Pillow's filter by which pictures are made smaller."""
        return Image.BOX if self.interpolation == "bilinear" else Image.BICUBIC

    @property
    def filter(self):
        return Image.BILINEAR if self.interpolation == "bilinear" else Image.BICUBIC

    def pair(self, y_0, rng):
        height, width = y_0.shape[1:]
        scale = self.scales[rng.integers(len(self.scales))]
        small = resized(y_0, math.ceil(height / scale), math.ceil(width / scale), self.smaller)
        return resized(small, height, width, self.filter), None

    def size(self, height, width, asked):
        scale, trained = asked["scale"], ", ".join(map(str, self.scales))
        if scale is None and len(self.scales) > 1:
            raise UserError(f"this model knows several factors: name scale, one of {trained}")
        scale = self.scales[0] if scale is None else scale
        if scale not in self.scales:
            raise UserError(f"this model was not trained to enlarge {scale} times, but {trained}")
        return scale * height, scale * width

    def restore(self, pictures, asked, run):
        made = run(pictures)
        # Of a training pair's source nobody says which of several factors it was made by.
        scale = asked["scale"] or (self.scales[0] if len(set(self.scales)) == 1 else None)
        if self.consistent and scale:
            small = tuple(side // scale for side in pictures.shape[2:])
            samples = len(made) // len(pictures)
            for number, picture in enumerate(pictures):
                for place in range(len(picture)):  # a channel at a time, for the memory's sake
                    channel = slice(place, place + 1)
                    given = self._before_enlarging(picture[channel], *small)
                    for y in made[number * samples:(number + 1) * samples]:
                        y[channel] = self._back_projected(y[channel], given)
        return made

    def _before_enlarging(self, enlarged, height, width):
        """The picture (C, height, width) that `enlarged` (C, H, W), which may be rounded since, was made of."""
        small = resized(enlarged, height, width, self.smaller)
        for _ in range(BACK_PROJECTIONS):
            small += resized(enlarged - resized(small, *enlarged.shape[1:], self.filter), height, width, self.smaller)
        return small

    def _back_projected(self, y, given):
        """A result (C, H, W) that made smaller is the picture that was given (C, h, w): Irani & Peleg 1991, section
        3."""
        for _ in range(BACK_PROJECTIONS):
            y = y + resized(given - resized(y, *given.shape[1:], self.smaller), *y.shape[1:], self.filter)
            y = np.clip(y, -1, 1)  # as the result will be: what is cut off is made up for by its neighbours
        return y


def bicubic(y, height, width):
    """A picture (C, H, W) resized by Pillow's bicubic interpolation, to (C, height, width), clipped to [−1, 1]."""
    return resized(y, height, width, Image.BICUBIC)


def resized(y, height, width, filter):
    """A picture (C, H, W) resized by one of Pillow's filters, to (C, height, width), clipped to [−1, 1]."""
    channels = [Image.fromarray(channel).resize((width, height), filter) for channel in y]
    return np.clip(np.stack([np.asarray(channel) for channel in channels]), -1, 1)
