"""A refining network at work: what it adds to results, see `palette_ms.training.refiner`."""

import numpy as np

from palette_ms.diffusion.tiles import TiledUNet

_TILE = 256  # pixels a side, above which a picture is refined in tiles


class Refiner:
    """Args:
        network: called as a denoiser is: network(made ‖ source ‖ hole (N, C, h, w), noise level (N,)), with arrays, or
            a Cell.
        multiple: what it divides.
    """

    def __init__(self, network, multiple):
        self.network, self.multiple = network, multiple

    def __call__(self, made, cond, hole):
        """Samples (S, C, h, w) refined in the hole (1, h, w); cond: their sources (S, C', h, w), as the model's network
        sees them. Returns as made."""
        height, width = made.shape[2:]
        x = np.concatenate((made, cond, np.broadcast_to(hole, (len(made), *hole.shape))), 1).astype(np.float32)
        below, right = (-side % self.multiple for side in (height, width))
        x = np.pad(x, ((0, 0), (0, 0), (0, below), (0, right)), "symmetric")
        added = TiledUNet(self.network, x[0, -1:], self.multiple, _TILE)(x, np.ones(len(x), np.float32))
        return made + np.float32(hole) * added[:, :, :height, :width]
