"""Tasks: from a clean picture to the source that the model is given, and the mask of what it is to make.

A task is a pure function `task(y_0, rng, …) -> (cond, mask)`: y_0 and cond float32 (3, H, W) in [−1, 1], rng a
numpy.random.Generator, mask float32 (1, H, W), 1 where pixels are to be made, or None: everywhere. cond is None for a
model that takes no source. Its further arguments are its config's, by the same names; `paired` alone takes another, the
source that the data give.
"""

import functools

from palette_ms.tasks.colorization import colorization
from palette_ms.tasks.degradations import deblurring, denoising, jpeg_restoration, super_resolution
from palette_ms.tasks.inpainting import inpainting
from palette_ms.tasks.paired import paired
from palette_ms.tasks.uncropping import uncropping


def unconditional(y_0, rng=None):
    """No source: the plain DDPM (Ho et al. 2020), which makes pictures from nothing."""
    return None, None


TASKS = {
    "colorization": colorization,
    "inpainting": inpainting,
    "uncropping": uncropping,
    "jpeg_restoration": jpeg_restoration,
    "super_resolution": super_resolution,
    "deblurring": deblurring,
    "denoising": denoising,
    "paired": paired,
    "unconditional": unconditional,
}


def create_task(config):
    """The function (y_0, rng) → (cond, mask) of a task's config."""
    return functools.partial(TASKS[config.name], **config.options())
