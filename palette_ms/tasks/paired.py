"""Pairs: the user's own task, whose sources are pictures too."""

from dataclasses import dataclass

import numpy as np

from palette_ms.tasks.asks import FEATHER, MASK, read_mask
from palette_ms.tasks.task import Task


@dataclass(frozen=True)
class Paired(Task):
    """The data give source and target, and where they have a column `mask`, what is to be made (clouds, artefacts);
    elsewhere the target is known."""

    name = "paired"
    needs_pairs = True
    asks = (MASK, FEATHER)

    def __post_init__(self):
        super().__post_init__()
        if self.recolor:
            raise ValueError("recolor would change the target and not the source: leave it out")

    def pair(self, y_0, rng, source, mask=None):
        return source, mask

    def holes(self, height, width, asked, rng):
        if asked["mask"] is None:
            return [np.ones((1, height, width), np.float32)]
        return [read_mask(asked, height, width, rng)]
