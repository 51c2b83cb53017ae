"""The denoiser: U-Net of Dhariwal & Nichol 2021 (arXiv 2105.05233), told the noise level as in Palette."""

from importlib import import_module
from typing import TYPE_CHECKING

from palette_ms.unet.config import ModelConfig

if TYPE_CHECKING:  # for type checkers, and for the documentation
    from palette_ms.unet.blocks import AttentionBlock as AttentionBlock
    from palette_ms.unet.blocks import ResidualBlock as ResidualBlock
    from palette_ms.unet.layers import Swish as Swish
    from palette_ms.unet.layers import TimeEmbedding as TimeEmbedding
    from palette_ms.unet.unet import UNet as UNet

_CELLS = {"AttentionBlock": "blocks", "ResidualBlock": "blocks", "Swish": "layers", "TimeEmbedding": "layers",
          "UNet": "unet"}

__all__ = ["ModelConfig", *_CELLS]


def __getattr__(name):
    # Imported when they are asked for: reading a config needs no MindSpore.
    if name in _CELLS:
        return getattr(import_module(f"palette_ms.unet.{_CELLS[name]}"), name)
    raise AttributeError(f"module 'palette_ms.unet' has no attribute {name!r}")
