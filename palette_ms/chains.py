"""The chains of a checkpoint: samplers around its network, with labels, guidance, tiles and reuse, compiled once."""

import sys
from numbers import Integral

from mindspore import nn
from tqdm import tqdm

from palette_ms.diffusion.denoisers import GuidedUNet, LabelledUNet, ReusingUNet
from palette_ms.diffusion.samplers import create_chain, create_sampler
from palette_ms.diffusion.tiles import TiledUNet
from palette_ms.errors import UserError
from palette_ms.unet.unet import DeepFeatures, FinestLevel

# Bytes of the largest attention matrix for one picture, above which pictures are restored in tiles.
ATTENTION_LIMIT = 2**30


class Chains:
    """Makes samplers, and keeps what they compile from picture to picture.

    Args:
        network: `palette_ms.unet.UNet`.
        unet: the network as its process calls it.
        config: `palette_ms.config.Config`.
        searched: the steps that were searched for it, see `palette_ms.searched.load_steps`.
        onnx: `unet` in ONNX Runtime, which is called instead, or None.
    """

    def __init__(self, network, unet, config, searched, onnx=None):
        self.network = network
        self.unet = unet
        self.config = config
        self.searched = searched
        self.onnx = onnx
        self._denoisers = {}
        self._compiled = {}
        self._reused = None

    def check_tiles(self, tile, overlap):
        """Raises UserError unless the network divides tiles of that side and overlap."""
        multiple = self.network.multiple
        if tile is None and overlap is not None:
            raise UserError("overlap is for tiles: name their side too, as tile")
        if not all(isinstance(value, (Integral, type(None))) for value in (tile, overlap)):
            raise UserError(f"tile and overlap must be whole numbers of pixels, not {tile!r} and {overlap!r}")
        if tile is not None and (tile < 1 or tile % multiple):
            raise UserError(f"tile must be a multiple of {multiple} pixels, which this network divides, not {tile}")
        if overlap is not None and not 0 <= overlap <= tile - multiple:
            raise UserError(f"overlap must be from 0 to {tile - multiple} pixels for tiles of {tile}, not {overlap}")

    def of_holes(self, labels, task, sampling, tile, overlap, progress, holes):
        """For each chain's holes (P, 1, H, W) the sampler that fills them, and what it reports its network calls to.

        Args:
            labels: of the pictures, a tuple, or None.
            task: `palette_ms.tasks.Task`.
            sampling: `Sampling`.
            tile, overlap, progress: as in `restore`.
        """
        size = self.config.data.image_size
        too_large = max(self.network.attention_bytes(*hole.shape[2:]) for hole in holes) > ATTENTION_LIMIT
        if tile is None and too_large and max(max(hole.shape[2:]) for hole in holes) > size:
            tile = size
            # Unlike print, this leaves a progress bar whole.
            tqdm.write(f"tiles of {tile}×{tile} pixels: the whole picture's attention would take more than "
                       f"{ATTENTION_LIMIT // 2**20} MiB", file=sys.stderr)
        update = None if progress is None else progress.update
        chains, calls = [], 0
        for hole in holes:
            if tile is None or max(hole.shape[2:]) <= tile:
                sampler = self.sampler(labels, task, sampling)
                chains.append((sampler, update))
                calls += sampler.num_steps
            elif sampling.reuse > 1:
                raise UserError("reuse is for whole pictures: it would take one tile's features for the next")
            else:
                unet = TiledUNet(self._denoiser(labels, sampling), hole.max(0), self.network.multiple, tile, overlap,
                                 update)
                sampler = self._create_sampler(create_chain(unet, self.config.diffusion, sampling), task, sampling)
                chains.append((sampler, None))  # the tiles report
                calls += sampler.num_steps * unet.num_tiles
        if progress is not None:
            progress.reset(calls)
        return chains

    def _denoiser(self, labels, sampling):
        """The network with its labels and guidance. Kept from picture to picture, since compiled graphs hang on it; but
        not one that remembers its chain."""
        if sampling.reuse > 1:
            return self._around(ReusingUNet(*self._parts(), sampling.reuse), labels, sampling.guidance)
        key = labels, sampling.guidance
        if key not in self._denoisers:
            self._denoisers[key] = self._around(self.onnx or self.unet, labels, sampling.guidance)
        return self._denoisers[key]

    def _parts(self):
        """The two kinds of call of a `ReusingUNet`."""
        if self._reused is None:
            parts = {"whole": DeepFeatures(self.unet), "finest": FinestLevel(self.unet)}
            self._reused = [self.onnx.part(cell, name) if self.onnx else cell for name, cell in parts.items()]
        return self._reused

    def _around(self, unet, labels, guidance):
        """A Cell around the network to compile with it; around one that is no Cell, plain lines."""
        compiled = isinstance(unet, nn.Cell)
        if labels is not None:
            cell = LabelledUNet(unet, labels * 2 if guidance > 1 else labels)
            unet = cell if compiled else cell.construct
        if guidance > 1:
            cell = GuidedUNet(unet, guidance, self.config.data.channels.target)
            unet = cell if compiled else cell.construct
        return unet

    def sampler(self, labels, task, sampling):
        """With the chain that samplers of the same graph have compiled."""
        key = labels, sampling.guidance, sampling.dynamic_threshold is None, sampling.tolerance > 0
        chain = self._compiled.get(key) if sampling.reuse == 1 else None
        if chain is None:
            chain = create_chain(self._denoiser(labels, sampling), self.config.diffusion, sampling)
        if sampling.reuse == 1:
            self._compiled[key] = chain
        return self._create_sampler(chain, task, sampling)

    def _create_sampler(self, chain, task, sampling):
        try:
            return create_sampler(chain, self.config.diffusion, sampling, task.test_schedule,
                                  self.searched.get(task.name))
        except ValueError as error:
            raise UserError(str(error)) from None
