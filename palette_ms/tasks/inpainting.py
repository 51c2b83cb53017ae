"""Inpainting: what the hole holds in the source is Gaussian noise (Palette, section 4.2) or a smooth first guess."""

from dataclasses import dataclass
from typing import Literal, Tuple

from palette_ms.tasks.asks import FEATHER, MASK, read_mask
from palette_ms.tasks.fill import FILL, fill_hole, first_guess
from palette_ms.tasks.masks import MASKS
from palette_ms.tasks.task import Task, option


@dataclass(frozen=True)
class Inpainting(Task):
    """A hole is to be filled."""

    name = "inpainting"
    asks = (MASK, FEATHER)
    required = ("mask",)

    masks: Tuple[Literal[tuple(MASKS)], ...] = option(("free_form", "rectangle"), "kinds of hole, drawn evenly")
    fill: Literal["noise", "smooth"] = option("noise", FILL)

    def pair(self, y_0, rng):
        kind = self.masks[rng.integers(len(self.masks))]
        mask = MASKS[kind](rng, *y_0.shape[1:])
        return self.source(y_0, mask, rng), mask

    def holes(self, height, width, asked, rng):
        return [read_mask(asked, height, width, rng)]

    def source(self, picture, hole, rng):
        return fill_hole(picture, hole, rng, self.fill)

    def guess(self, cond, hole):
        return first_guess(cond, hole, self.fill)
