"""Pictures larger than a network can take at once: it is called tile by tile, at every step of a chain."""

import numpy as np

from palette_ms.diffusion.denoisers import on_arrays


class TiledUNet:
    """A network that answers for a whole picture, tile by tile: called as samplers call one.

    What the tiles say is blended where they overlap, at every step, as a weighted mean (MultiDiffusion: Bar-Tal et al.
    2023, arXiv 2302.08113; Jiménez 2023, arXiv 2302.02412, blends the network's outputs, as here). ŷ₀ is linear
    in the output whatever the network predicts, so this blends the tiles' ŷ₀ as well, before any clipping: errors of
    two tiles cancel as far as they can. All tiles see the same y_t and share the noise that the sampler adds to it.

    Tiles of one size serve pictures of every size, and so many as `together` says go through the network in one batch.
    In a direction in which the picture is no larger than a tile, there is one tile of the picture's size. A tile
    without any pixel to make is left out; all tiles of a pixel in the hole take part, so that the hole's pixels come
    out the same to the bit.

    Args:
        unet: the network, called as unet(x (N, C, h, w), time (N,)).
        hole: (1, H, W), above 0 where pixels are to be made; H and W multiples of `multiple`.
        multiple: what the network divides; tiles stand on multiples of it, so that its patches and halvings fall on
            the same pixels in each.
        tile: side of a tile in pixels, a multiple of `multiple`.
        overlap: the least overlap of neighbouring tiles in pixels, from 0 to tile − `multiple`; None: a quarter of
            the tile, or what is left beside `multiple`.
        progress: called with the number of tiles that the network has answered for since the last report.
        together: tiles of all pictures that make a batch.
        whole: the last batch is made up to as many with tiles of it, whose answers are not used.

    Attributes:
        num_tiles: network calls for one answer, were each tile one.

    Inputs: x (N, C, H, W), time (N,). Output: (N, C', H, W); 0 where no tile was needed.
    """

    def __init__(self, unet, hole, multiple, tile, overlap=None, progress=None, together=1, whole=False):
        self.unet = on_arrays(unet)
        self.progress = progress
        self.together, self.whole = together, whole
        height, width = hole.shape[1:]
        overlap = min(tile // 4, tile - multiple) if overlap is None else overlap
        rows, columns = (spans(side, tile, overlap, multiple) for side in (height, width))
        places = [np.s_[..., row, column] for row in rows for column in columns]
        places = [place for place in places if (hole[place] > 0).any()]
        self.num_tiles = len(places)
        windows = [np.outer(_window(row), _window(column)) for _, row, column in places]
        total = np.zeros((height, width))
        for place, window in zip(places, windows):
            total[place] += window
        self.tiles = [(place, (window / total[place]).astype(np.float32)) for place, window in zip(places, windows)]

    def __call__(self, x, time):
        blended = None
        for i in range(0, len(self.tiles), self.together):
            tiles = self.tiles[i:i + self.together]
            batch = [x[place] for place, _ in tiles]
            if self.whole:
                batch = (batch * self.together)[:self.together]
            answers = self.unet(np.concatenate(batch), np.tile(time, len(batch)))
            if blended is None:
                blended = np.zeros((len(x), answers.shape[1], *x.shape[2:]), np.float32)
            for (place, weight), answer in zip(tiles, np.split(answers, len(batch))):
                blended[place] += weight * answer
            if self.progress:
                self.progress(len(tiles))
        return blended


def blend(parts):
    """What each of some spans along one side counts where they overlap: a list of arrays that add up to 1."""
    weights = [_window(part) for part in parts]
    total = np.zeros(parts[-1].stop)
    for part, weight in zip(parts, weights):
        total[part] += weight
    return [weight / total[part] for part, weight in zip(parts, weights)]


def spans(side, tile, overlap, multiple):
    """Slices of `tile` pixels, evenly spread from one edge to the other; of the whole side where that is shorter."""
    stride = (tile - overlap) // multiple  # at most
    tile = min(tile, side)
    room = (side - tile) // multiple
    starts = np.linspace(0, room, -(-room // stride) + 1).round().astype(int) * multiple
    return [slice(start, start + tile) for start in starts.tolist()]


def _window(span):
    """Weights along a tile: sin², which falls smoothly to 0 half a pixel beyond each end."""
    length = span.stop - span.start
    return np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
