"""The denoiser: U-Net of Dhariwal & Nichol 2021 (arXiv 2105.05233), told the noise level as in Palette."""

from palette_ms.unet.blocks import AttentionBlock, ResidualBlock
from palette_ms.unet.layers import Swish, TimeEmbedding
from palette_ms.unet.unet import UNet

__all__ = ["AttentionBlock", "ResidualBlock", "Swish", "TimeEmbedding", "UNet"]
