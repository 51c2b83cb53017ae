"""Tasks: from a clean picture to the source that the model is given, and the mask of what it is to make.

A task is a pure function `task(y_0, rng, …) -> (cond, mask)`: y_0 and cond float32 (3, H, W) in [−1, 1], rng a
numpy.random.Generator, mask float32 (1, H, W), 1 where pixels are to be made, or None: everywhere.
"""

from palette_ms.tasks.colorization import colorization
from palette_ms.tasks.inpainting import inpainting

TASKS = ("colorization", "inpainting")


def create_task(config):
    """The function (y_0, rng) → (cond, mask) of a `TaskConfig`."""
    if config.name == "colorization":
        return colorization
    return lambda y_0, rng: inpainting(y_0, rng, config.masks, config.fill)
