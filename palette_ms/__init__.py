"""Palette: image-to-image diffusion models (Saharia et al., SIGGRAPH 2022) on MindSpore."""

from typing import TYPE_CHECKING

from palette_ms import runtime as _runtime  # noqa: F401  sets the environment before MindSpore is imported

if TYPE_CHECKING:  # for type checkers, and for the documentation
    from palette_ms.pipeline import Palette

__version__ = "0.1.0"
__all__ = ["Palette"]


def __getattr__(name):
    # Palette is imported when it is asked for: reading a config or a folder of pictures needs no MindSpore.
    if name == "Palette":
        from palette_ms.pipeline import Palette

        return Palette
    raise AttributeError(f"module 'palette_ms' has no attribute {name!r}")
