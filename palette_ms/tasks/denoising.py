"""Denoising: the source has white noise."""

from dataclasses import dataclass
from typing import Tuple

import numpy as np

from palette_ms.tasks.task import Task, option


@dataclass(frozen=True)
class Denoising(Task):
    """White Gaussian noise is added, and clipped to the pictures' range."""

    name = "denoising"

    sigma: Tuple[float, float] = option((5.0, 50.0), "its deviation, in 255ths of the pictures' range, drawn evenly",
                                        least=0)

    def pair(self, y_0, rng):
        noise = rng.standard_normal(y_0.shape, np.float32) * np.float32(rng.uniform(*self.sigma) / 127.5)
        return np.clip(y_0 + noise, -1, 1), None
