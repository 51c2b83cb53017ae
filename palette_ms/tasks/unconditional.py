"""No source: the plain DDPM (Ho et al. 2020), which makes pictures from nothing."""

from dataclasses import dataclass

from palette_ms.tasks.task import Task


@dataclass(frozen=True)
class Unconditional(Task):
    """The model makes pictures from nothing. It must be the only task."""

    name = "unconditional"
    has_source = False

    def pair(self, y_0, rng):
        return None, None
