"""The chains of a checkpoint: samplers around its network, with labels, guidance, tiles and reuse, compiled once."""

import math
import sys
from numbers import Integral
from typing import Callable, NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from palette_ms.diffusion.denoisers import ReusingUNet, Told, flipped, guided, is_cell, labelled
from palette_ms.diffusion.samplers import Sampler, Sampling, create_chain, create_sampler
from palette_ms.diffusion.schedule import make_gamma_schedule
from palette_ms.diffusion.tiles import TiledUNet, blend, spans
from palette_ms.errors import UserError
from palette_ms.holes import inside, plan, shrink_hole, whole_pass
from palette_ms.runtime import max_memory, wants_few_graphs
from palette_ms.unet.cost import attention_bytes
from palette_ms.unet.plan import multiple

# Bytes of the largest attention matrix for one picture, above which pictures are restored in tiles.
ATTENTION_LIMIT = 2**30
# Where the chain of a refining pass starts, as `Sampling.strength`, by process. In holes of 100 × 100 to 300 × 200
# pixels of six photos, made in one call by a model of 64 × 64 and palette's process, 0.3 and 0.5 left specks, and above
# 0.8 the coarse pass hardly counted. I2SB's, whose noise is weaker, left dark specks at 0.7; at 0.3 there were hardly
# any, and holes of ten photos came out 0.05 dB nearer to the originals. ResShift's was not tried.
REFINING = {"palette": 0.7, "resshift": 0.7, "i2sb": 0.3}
# Bytes that a chain holds of each value of a picture: source, noise and states (measured, as `_PICTURE_BYTES` of
# `palette_ms.pipeline`, by tracemalloc at 1200 × 3000 pixels).
CHAIN_BYTES = 52

# Tiles of the training size, of each sample, that an accelerator is given at once, and fewer of larger ones: it waits
# for the host at each call. Not measured on one.
_TILES_TOGETHER = 8


class Band(NamedTuple):
    """Rows of a pass that a chain makes at once.

    Attributes:
        rows: a slice of the shrunk crop's.
        weight: float32 (rows, 1), what the answer counts beside the neighbouring bands'.
        sampler: None: nothing is to be made.
        progress: what it reports its network calls to, or None.
        preview: what is shown the estimates on the way, or None.
    """

    rows: slice
    weight: np.ndarray
    sampler: Optional[Sampler]
    progress: Optional[Callable[[int], None]]
    preview: Optional[Callable] = None


def _attention_limit():
    """`ATTENTION_LIMIT`, or an eighth of the memory that may be used: a network takes a few times that matrix."""
    return min(ATTENTION_LIMIT, max_memory() // 8)


class Chains:
    """Makes samplers, and keeps what they compile from picture to picture.

    Args:
        build: function that makes the network as its process calls it, a Cell.
        config: `palette_ms.config.Config`.
        searched: the steps that were searched for it, see `palette_ms.searched.load_steps`.
        network: `palette_ms.unet.runtimes.Network`, which is called instead, or None.

    Attributes:
        jit_level: of MindSpore's compiler, see `palette_ms.pipeline.Palette.load`; None: MindSpore's own choice.
    """

    def __init__(self, build, config, searched, network=None):
        self.build = build
        self.config = config
        self.searched = searched
        self.network = network
        self.jit_level = None
        self.multiple = multiple(config.model)
        self._denoisers = {}
        self._compiled = {}
        self._tellers = {}
        self._reused = None

    def check_tiles(self, tile, overlap):
        """Raises UserError unless the network divides tiles of that side and overlap."""
        multiple = self.multiple
        if tile is None and overlap is not None:
            raise UserError("overlap is for tiles: name their side too, as tile")
        if not all(isinstance(value, (Integral, type(None))) for value in (tile, overlap)):
            raise UserError(f"tile and overlap must be whole numbers of pixels, not {tile!r} and {overlap!r}")
        if tile is not None and (tile < 1 or tile % multiple):
            raise UserError(f"tile must be a multiple of {multiple} pixels, which this network divides, not {tile}")
        if overlap is not None and not 0 <= overlap <= tile - multiple:
            raise UserError(f"overlap must be from 0 to {tile - multiple} pixels for tiles of {tile}, not {overlap}")

    def of_holes(self, labels, samples, task, sampling, tile, overlap, progress, holes, whole=False):
        """What fills each chain's holes (P, 1, H, W), and what it reports its network calls to.

        Args:
            labels: of a picture's samples, a tuple, or None.
            samples: how many there are of each picture.
            task: `palette_ms.tasks.Task`.
            sampling: `Sampling`.
            tile, overlap, progress: as in `restore`; a tile may be the checkpoint's too.
            whole: whether the user named the tile: then no crops are made, nor where a chain starts from what the user
                gives (a strength below 1).

        Returns: for each of `holes` a list of (members, passes, chains): the indices of pictures that are made
            together, a tuple of `palette_ms.holes.Pass`, and for each of these a list of `Band`.
        """
        whole = whole or sampling.starts_from_source
        update = None if progress is None else progress.update
        work, calls, told, refining = [], 0, False, REFINING[self.config.diffusion.process]
        for hole in holes:
            groups = {}
            for k, one in enumerate(hole):
                passes = whole_pass(one) if whole else plan(one, self.config.data.image_size, self.multiple)
                if self.config.diffusion.distilled:  # to steps that begin with noise alone
                    passes = tuple(step for step in passes if not step.refines)
                groups.setdefault(passes, []).append(k)
            work.append([(members, passes, []) for passes, members in groups.items()])
            for members, passes, chains in work[-1]:
                for step in passes:
                    seen = shrink_hole((hole if len(members) == len(hole) else hole[members])[inside(step.box)],
                                       step.factor)
                    side, overlapping = (step.tile, None) if step.tile and sampling.reuse == 1 else (tile, overlap)
                    all_rows = self._spans_of_bands(seen.shape, samples)
                    if tile is None and (side is None and len(all_rows) > 1 or self._is_too_large(seen, side)):
                        side = self.config.data.image_size
                        while task.looks_far and side < max(seen.shape[2:]) and not self._is_too_large(seen, 2 * side):
                            side *= 2
                        if not told:  # unlike print, this leaves a progress bar whole
                            tqdm.write(f"tiles of {side}×{side} pixels: the whole picture at once would take too much "
                                       "memory", file=sys.stderr)
                        told = True
                    bands = []
                    for rows, weight in zip(all_rows, blend(all_rows)):
                        part, sampler, report = seen[:, :, rows], None, None
                        if len(all_rows) == 1 or (part > 0).any():
                            sampler, report, count = self._sampler_of_hole(
                                None if labels is None else labels * len(members), task,
                                sampling.below(refining) if step.refines else sampling, side, overlapping, update,
                                self.pad(part))
                            calls += count
                        weight = weight[:part.shape[2], None].astype(np.float32)
                        bands.append(Band(rows, weight, sampler, report, getattr(progress, "preview", None)))
                    chains.append(bands)
        if progress is not None:
            progress.reset(calls)
        return work

    def _spans_of_bands(self, shape, samples):
        """The rows of (P, 1, H, W) that are made at once, slices of P · `samples` pictures' rows that together take a
        quarter of the memory that may be used, but no less than four of the training size. They overlap by the training
        size, over which one band's result becomes the next one's."""
        least, multiple = self.config.data.image_size, self.multiple
        row = CHAIN_BYTES * self.config.data.channels.target * shape[0] * samples * shape[3]
        height = max(max_memory() // 4 // row, 4 * least) // multiple * multiple
        return spans(-(-shape[2] // multiple) * multiple, height, least, multiple)

    def _is_too_large(self, hole, tile):
        """Whether what the network is given of (P, 1, H, W) in tiles, or None, is larger than in training and takes
        too much memory."""
        sides = [min(self._padded(side), tile or math.inf) for side in hole.shape[2:]]
        memory = getattr(self.network, "memory", lambda height, width: 0)
        return (max(sides) > self.config.data.image_size
                and (attention_bytes(self.config.model, *sides) > _attention_limit() or memory(*sides) > max_memory()))

    def _sampler_of_hole(self, labels, task, sampling, tile, overlap, update, hole):
        """(sampler, what it reports to, its network calls) for a batch's hole (P, 1, H, W)."""
        if tile is None or max(hole.shape[2:]) <= tile:
            sampler = self.sampler(labels, task, sampling)
            return sampler, update, sampler.num_steps
        if sampling.reuse > 1:
            raise UserError("reuse is for whole pictures: it would take one tile's features for the next")
        sides = [min(side, tile) for side in hole.shape[2:]]
        batch = getattr(self.network, "batch", None)
        together, whole = 1, False
        if batch:
            together = max(1, batch(*sides) // (len(labels) if labels else len(hole)))
        elif self.network is None and wants_few_graphs():  # of one number of tiles, since each would be compiled
            together = min(_TILES_TOGETHER, max(1, _TILES_TOGETHER * self.config.data.image_size**2 // tile**2))
            whole = True
            labels = labels and labels * together
        unet = TiledUNet(self._denoiser(labels, sampling), hole.max(0), self.multiple, tile, overlap, update, together,
                         whole)
        sampler = self._create_sampler(create_chain(unet, self.config.diffusion, sampling), task, sampling)
        return sampler, None, sampler.num_steps * unet.num_tiles  # the tiles report

    def pad(self, array):
        """(N, C, H, W) → height and width up to what the network is given, by reflection."""
        bottom, right = (self._padded(side) - side for side in array.shape[2:])
        if not bottom and not right:
            return array
        return np.pad(array, ((0, 0), (0, 0), (0, bottom), (0, right)), "symmetric")

    def _padded(self, side):
        """The next multiple that the network divides; of a network whose graphs take long to compile, the next of four
        sizes from each power of two to the next."""
        step = self.multiple
        if self.network is None and wants_few_graphs():
            step *= max(1, round(2 ** ((side - 1).bit_length() - 3) / step))
        return -(-side // step) * step

    def _denoiser(self, labels, sampling):
        """The network with its labels and guidance. Kept from picture to picture, since compiled graphs hang on it; but
        not one that remembers its chain."""
        if sampling.reuse > 1:
            return self._around(ReusingUNet(*map(self.at_level, self._parts()), sampling.reuse), labels, sampling)
        key = self._key(labels, sampling)
        if key not in self._denoisers:
            self._denoisers[key] = self.at_level(self._around(self.network or self.build(), labels, sampling))
        self._tell(labels, sampling)
        return self._denoisers[key]

    def at_level(self, cell):
        """A Cell that may be called from Python, and is then compiled by itself."""
        if self.jit_level and is_cell(cell):
            import mindspore as ms

            cell.set_jit_config(ms.JitConfig(jit_level=self.jit_level))
        return cell

    def _key(self, labels, sampling):
        """What decides over the Cells around the network."""
        return labels, sampling.guided_by, sampling.flips, len(self._told(sampling)[0])

    def _told(self, sampling):
        """(text, source_noise) as the network is told them; those that it does not take are None or ()."""
        model, text, source_noise = self.config.model, (), None
        if model.text_channels is not None:
            text = sampling.text
            text = np.zeros((1, model.text_length, model.text_channels), np.float32) if text is None else text
        if model.source_noise:
            source_noise = np.float32([sampling.source_noise])
        return text, source_noise

    def silent(self, unet):
        """The network, here or elsewhere, as it is called where there is no text, nor noise in the source: as
        unet(x, time[, label])."""
        text, source_noise = self._told(Sampling())
        told = (text if len(text) else None, source_noise)
        if all(one is None for one in told):
            return unet
        if not is_cell(unet):
            return Told(unet, *told)
        from palette_ms.diffusion.cells import ToldUNet

        return ToldUNet(unet, *told)

    def _parts(self):
        """The two kinds of call of a `ReusingUNet`."""
        if self._reused is None:
            if self.network:
                self._reused = [self.network.part(name) for name in ("whole", "finest")]
            else:
                from palette_ms.unet.unet import DeepFeatures, FinestLevel

                self._reused = DeepFeatures(self.build()), FinestLevel(self.build())
        return self._reused

    def _around(self, unet, labels, sampling):
        """Labels, guidance and mirror images around the network; Cells, to be compiled with it, around a Cell."""
        guidance, channels = sampling.guided_by, self.config.data.channels.target
        gammas = None
        if self.config.diffusion.time_input == "t":
            gammas = make_gamma_schedule(**vars(self.config.diffusion.train_schedule))
        text, source_noise = self._told(sampling)
        has_text = len(text) > 0
        told = (text if has_text else None, source_noise, sampling.guidance > 1)
        is_told = has_text or source_noise is not None
        if not is_cell(unet):
            unet = self._remembered(Told(unet, *told), labels, sampling) if is_told else unet
            unet = unet if labels is None else labelled(unet, labels)
            unet = guided(unet, guidance, channels, gammas, has_text) if sampling.guidance > 1 else unet
            return flipped(unet, sampling.flips) if sampling.flips > 1 else unet
        from palette_ms.diffusion.cells import FlippedUNet, GuidedUNet, LabelledUNet, ToldUNet

        if is_told:
            unet = self._remembered(ToldUNet(unet, *told), labels, sampling)
        if labels is not None:
            unet = LabelledUNet(unet, labels * 2 if sampling.guidance > 1 else labels)
        unet = GuidedUNet(unet, guidance, channels, gammas, has_text) if sampling.guidance > 1 else unet
        return FlippedUNet(unet, sampling.flips) if sampling.flips > 1 else unet

    def _remembered(self, told, labels, sampling):
        self._tellers[self._key(labels, sampling)] = told
        return told

    def sampler(self, labels, task, sampling):
        """With the chain that samplers of the same graph have compiled."""
        key = *self._key(labels, sampling), sampling.dynamic_threshold is None, sampling.tolerance > 0
        chain = self._compiled.get(key) if sampling.reuse == 1 else None
        if chain is None:
            chain = self.at_level(create_chain(self._denoiser(labels, sampling), self.config.diffusion, sampling))
        if sampling.reuse == 1:
            self._compiled[key] = chain
        self._tell(labels, sampling)
        return self._create_sampler(chain, task, sampling)

    def _tell(self, labels, sampling):
        """The network's text and level are kept where it is called from, and may be of an earlier picture."""
        teller = self._tellers.get(self._key(labels, sampling))
        if teller:
            text, source_noise = self._told(sampling)
            teller.tell(text if len(text) else None, source_noise)

    def check(self, task, sampling):
        """Raises UserError: no chain of a task can be run in that way."""
        self._create_sampler(None, task, sampling)

    def _create_sampler(self, chain, task, sampling):
        try:
            return create_sampler(chain, self.config.diffusion, sampling, task.test_schedule,
                                  self.searched.get(task.name))
        except ValueError as error:
            raise UserError(str(error)) from None
