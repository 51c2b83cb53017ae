"""A picture through a prior: what is given and how → chains → results.

Pictures larger than the model was trained with are seen in overlapping windows, and before that the whole picture is
made small: hierarchical guidance (Fei et al. 2023, section 3.4).
"""

import math
from dataclasses import replace
from numbers import Real
from typing import Optional

import numpy as np
from mindspore import Tensor

from palette_ms.data.forms import Photo
from palette_ms.diffusion.cells import Update
from palette_ms.diffusion.samplers import Sampler, create_sampler
from palette_ms.diffusion.schedule import make_gamma_schedule, place_steps
from palette_ms.errors import UserError
from palette_ms.priors.chain import REFERENCE, Guidance, GuidedChain, Guiding, Windows, guide
from palette_ms.priors.degradations import BlockMean, Composition, Degradation, Known
from palette_ms.priors.losses import LOSSES
from palette_ms.priors.methods import diffpir_calls
from palette_ms.priors.restorations import METHODS, OPTIONS, Restoration, aligned, kernels, restoration
from palette_ms.runtime import max_memory, setup
from palette_ms.seeds import generator
from palette_ms.tasks.asks import read_mask
from palette_ms.tasks.inpainting import Inpainting
from palette_ms.tasks.task import Request

_JPEG_BLOCK = 16
_KEPT = 8  # compiled chains, of pictures of other sizes and tasks
# Bytes that a step takes for each value of a picture, or of its windows, and again where f and M are learned window by
# window; and, for each number of a blur's kernel, for each value of a picture (measured at 512 × 512 and 1024 × 1024).
_VALUE_BYTES, _KERNEL_BYTES = 120, 40
_FACTOR = 0.7  # what f begins with, as in the reference numbers
# Of the way from D(x̃₀) to y, what a step may go at most in one pixel, were all others still: with more, neighbouring
# steps overshoot and the picture swings.
_MOST_SHARE = 0.5


class Enlarged(Degradation):
    """Each pixel becomes a block of factor × factor: what a small picture of the whole is compared through."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def construct(self, x):
        return x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


def guiding_of(task: Restoration, steps: int, prior: Optional[str] = None, guidance_scale: Optional[float] = None,
               loss: Optional[str] = None, exposure: Optional[float] = None, colour: Optional[float] = None,
               smoothness: Optional[float] = None, guide_at: Optional[str] = None,
               guide_by_variance: Optional[bool] = None, noise: Optional[float] = None,
               zeta: Optional[float] = None) -> Guiding:
    """`Guiding` of a task, from what a user says.

    Args:
        task: `palette_ms.priors.restorations.Restoration`.
        steps: of the chain. gdp moves a picture by a share of what it is off at every step; in fewer steps each has to
            go further: s is the task's times 1000/steps, but at most what goes `_MOST_SHARE` of the way.
        prior: None: the task's, or diffpir where noise is told of.
        guidance_scale: s itself, for 256 × 256; None: as above.
        loss: None: mse.
        exposure, colour: weights λ of the quality losses; None: the task's.
        smoothness: weight of that of M; None: 0.
        guide_at, guide_by_variance: `at` and `variance` of `Guiding`; None: "x0" and False.
        noise: deviation of the noise, in 255ths.
        zeta: None: 1 for dps, 0.3 for diffpir.

    Raises:
        UserError: something out of range, or of another method.

    Examples:
        >>> guiding = guiding_of(restoration("super_resolution"), steps=100)
        >>> guiding.prior, guiding.scale
        ('gdp', 20000.0)
    """
    if prior is None:
        prior = "diffpir" if noise else task.prior
    for name, value, choices in (("prior", prior, METHODS), ("loss", loss, (None, *LOSSES)),
                                 ("guide_at", guide_at, (None, "x0", "xt"))):
        if value not in choices:
            raise UserError(f"{name} must be one of {', '.join(filter(None, choices))}, not {value!r}")
    numbers = {"guidance_scale": guidance_scale, "exposure": exposure, "colour": colour, "smoothness": smoothness,
               "zeta": zeta}
    for name, value in numbers.items():
        if value is not None and not (isinstance(value, Real) and 0 <= value < math.inf):
            raise UserError(f"{name} must be a number from 0 on, not {value!r}")
    takers = {"noise": ("ddnm", "diffpir"), "zeta": ("dps", "diffpir")}
    for name, value in {**numbers, "loss": loss, "guide_at": guide_at, "guide_by_variance": guide_by_variance,
                        "noise": noise}.items():
        if value and prior not in takers.get(name, ("gdp",)):
            raise UserError(f"{name} is for --prior {' and '.join(takers.get(name, ('gdp',)))}, not for {prior}")
    if smoothness and not task.blind:
        raise UserError(f"smoothness is of the map M of a degradation that is not known, and {task.name} knows it")
    if prior == "diffpir" and zeta is not None and zeta > 1:
        raise UserError(f"zeta, diffpir's share of fresh noise, must be from 0 to 1, not {zeta}")
    if task.blind and prior != "gdp":
        raise UserError(f"{task.name} is for --prior gdp: {prior} needs a degradation that is known")
    if task.prior == "ddnm" != prior:
        raise UserError(f"{task.name} is for --prior ddnm: its degradation is a projection, and has no gradient")
    if guidance_scale is None:
        # d/dx of ‖(x − y)/2‖² / (3 · 256²) is (x − y) / (6 · 256²).
        guidance_scale = min(task.scale * 1000 / steps, max(task.scale, _MOST_SHARE * 6 * REFERENCE**2))
    weights = {**dict(task.quality), **{name: value for name, value in (("exposure", exposure), ("colour", colour))
                                        if value is not None}}
    scaled = tuple((name, weight * guidance_scale / task.scale) for name, weight in weights.items() if weight)
    return Guiding(prior, float(guidance_scale), loss or "mse", scaled, guide_at or "x0", bool(guide_by_variance),
                   (noise or 0) / 127.5, zeta if zeta is not None else 1.0 if prior == "dps" else 0.3,
                   smoothness=float(smoothness or 0))


class PriorRestorer:
    """Restores by an unconditional model.

    Args:
        chains: its `palette_ms.chains.Chains`.
        form: of its pictures, see `palette_ms.data.forms`.
    """

    def __init__(self, chains, form):
        self.chains, self.config, self.multiple, self.form = chains, chains.config, chains.multiple, form
        self._compiled = {}
        if chains.network:  # in another runtime; what is compiled here is MindSpore's all the same
            setup("CPU", quiet=True)

    def restore(self, image, task, sampling, numbers, seed=0, tile=None, overlap=None, hierarchical=True, progress=None,
                **options):
        """Results of a picture.

        Args:
            image: as of `palette_ms.pipeline.Palette.restore`, one picture.
            task: name of a `Restoration`.
            sampling: `Sampling`, with its steps; without a sampler, ddpm, or diffpir's own.
            numbers: of the samples, a range.
            tile, overlap: side and overlap of the windows; None: the training size, and half of it.
            hierarchical: whether a picture in windows is made small first.
            options: what the task asks, and `OPTIONS` of `guiding_of`, by name.

        Returns: list of results.

        Raises:
            UserError: what is asked does not fit.
        """
        task = restoration(task)
        asked = task.checked({name: options.pop(name) for name in set(options) - OPTIONS})
        if self.config.model.num_classes is not None:
            raise UserError("a class-conditional model is no prior for pictures of any kind: an unconditional one is")
        if not isinstance(self.form, Photo) and (task.gray or {"jpeg_quality", "exposures"} & set(task.required)
                                                 or options.get("colour")):
            raise UserError(f"{'colour' if options.get('colour') else task.name} is for models of photos, and this one "
                            "makes arrays")
        guiding = guiding_of(task, sampling.steps, noise=asked.get("noise"), **options)
        original = self.form.original(image)
        picture = self.form.shown(original)
        factor = task.factor(asked)
        height, width = (side * factor for side in picture.shape[:2])
        side, stride = self._windows(height, width, tile, overlap)
        blurs = kernels(asked)
        _check_memory(height, width, side, stride, picture.shape[2] * len(numbers), task.blind,
                      sum(kernel.size for kernel in blurs))
        given = self._given(task, picture, asked)
        hole = np.ones((1, height, width), np.float32)
        if "mask" in asked:
            hole = read_mask(Request(asked, self.config.data.image_size, self.form), height, width,
                             generator(seed, "mask"))
            if hole.min() >= 1 or hole.max() <= 0:
                raise UserError("the mask leaves no pixel known" if hole.min() >= 1 else "the mask marks no pixel")
        if side and guiding.prior == "dps":
            raise UserError(f"dps goes through the network as a whole, and not in windows, as {width}×{height} would "
                            "be restored: --prior gdp, ddnm or diffpir are")
        made = self._make(task, guiding, asked, blurs, sampling, numbers, seed, given, hole, factor, side, stride,
                          hierarchical, progress)
        original = self.form.resized(original, height, width)
        if not np.isfinite(made).all():
            raise UserError("the chain made values that are not finite: a smaller --guidance-scale, or more steps")
        put_back = None
        if (hole < 1).any():
            def put_back(result, picture):
                return Inpainting().put_back(result, picture, hole, asked)
        return [self.form.finish(np.clip(y, -1, 1), original, put_back, task.keeps_gray) for y in made]

    def _given(self, task, picture, asked):
        """The given pictures, float32 (C, h, w) each."""
        exposures = [picture]
        if asked.get("exposures") is not None:
            further = asked["exposures"] if isinstance(asked["exposures"], (list, tuple)) else [asked["exposures"]]
            further = [self.form.shown(self.form.original(one)) for one in further]
            for one in further:
                if one.shape != picture.shape:
                    raise UserError(f"exposures must have one size: {one.shape[1]}×{one.shape[0]} and "
                                    f"{picture.shape[1]}×{picture.shape[0]}")
            exposures += aligned(further, picture)
        return [self.form.to_float(one) for one in exposures]

    def _windows(self, height, width, tile, overlap):
        """(side, stride) of the windows, or (None, None): the picture at once."""
        self.chains.check_tiles(tile, overlap)
        trained = self.config.data.image_size
        if tile is None and max(height, width) <= trained * 1.25:
            return None, None
        side = tile or trained
        overlap = side // 2 if overlap is None else overlap
        return side, side - overlap

    def _make(self, task, guiding, asked, blurs, sampling, numbers, seed, given, hole, factor, side, stride,
              hierarchical, progress):
        """float32 (samples, C, H, W), by one chain, or by two where the picture is made small first."""
        height, width = hole.shape[1:]
        if guiding.prior == "ddnm" and (guiding.sigma or task.prior == "ddnm"):
            # JPEG of an enlarged picture is no projection, nor has what is enlarged and degraded one singular value;
            # and what noise and JPEG leave says already what the whole looks like.
            hierarchical = False
        shrink = math.ceil(max(height, width) / self.config.data.image_size) if side and hierarchical else 1
        unit = math.lcm(self.multiple * shrink, factor, 1 if task.prior == "gdp" else _JPEG_BLOCK)
        padded = [max(-(-length // unit) * unit, side or 0) for length in (height, width)]
        padded = [-(-length // unit) * unit for length in padded]
        channels = self.config.model.in_channels
        windows = Windows(*padded, side, stride) if side else None
        given = np.stack([_pad(one, *(length // factor for length in padded)) for one in given])
        known = 1 - np.ceil(_pad(hole, *padded))[None]
        degradation = task.degradation(*padded, asked, blurs)
        if "mask" in asked:
            degradation = Known(known)
            given = given * known
        if task.gray:
            given = degradation.degrade(given)
        samples = len(numbers)
        given = [np.repeat(one[None], samples, 0) for one in given]
        if progress is not None:
            progress.reset(sampling.steps * (1 + (shrink > 1)))
        update = None if progress is None else progress.update
        if guiding.prior == "ddnm" and guiding.sigma and not degradation.gain:
            raise UserError("ddnm takes noise into account for degradations of one singular value, which this is not: "
                            "--prior diffpir or gdp do")
        comparisons = list(zip([degradation] * len(given), given))
        exposures = len(given) * task.blind
        guess = self._guess(*comparisons[0], (samples, channels, *padded)) if sampling.strength < 1 else None
        if shrink > 1:
            degraded = [(Composition(Enlarged(shrink), part), y) for part, y in comparisons]
            mean = BlockMean(shrink)
            small = self._chain((task.name, asked, "small"), guiding, sampling, degraded, exposures, None,
                                (samples, channels, *(length // shrink for length in padded)), numbers, seed,
                                None if guess is None else mean.degrade(guess), update)
            small = np.clip(small, -1, 1)
            comparisons.append((mean, small))
            if guess is not None:
                guess = np.repeat(np.repeat(small, shrink, 2), shrink, 3)
        made = self._chain((task.name, asked, "whole"), guiding, sampling, comparisons, exposures, windows,
                           (samples, channels, *padded), numbers, seed + (shrink > 1), guess, update)
        return made[:, :, :height, :width]

    def _guess(self, degradation, y, shape):
        """What a chain below the full strength starts from: the picture of least size that fits what is given."""
        return degradation.fit(Tensor(np.zeros(shape, np.float32)), Tensor(y)).asnumpy()

    def _chain(self, key, guiding, sampling, comparisons, exposures, windows, shape, numbers, seed, guess, progress):
        """One chain, float32 as `shape` (N, C, H, W).

        Args:
            key: (task, asked, which of its chains), what its graph hangs on besides the other arguments.
            comparisons: (degradation, what is given) each.
        """
        degradations, given = zip(*comparisons)
        task, asked, which = key
        asked = tuple((name, value if isinstance(value, (int, float, str)) and name not in ("kernel", "mask") else None)
                      for name, value in asked.items())
        shapes = tuple(parameter.shape for part in degradations for parameter in part.get_parameters())
        key = (task, asked, which, guiding, sampling.dynamic_threshold is None, exposures, shape, shapes,
               tuple(y.shape for y in given), windows and (windows.side, windows.count))
        if key not in self._compiled:
            if len(self._compiled) >= _KEPT:
                del self._compiled[next(iter(self._compiled))]
            diffusion = self.config.diffusion
            update = Update(diffusion.clip, sampling.dynamic_threshold is not None,
                            diffusion.variance == "learned_range", False)
            guidance = Guidance(guiding, list(degradations), exposures, windows)
            network = None if guiding.prior == "dps" else self.chains.network
            network = self.chains.at_level(self.chains.silent(network or self.chains.build()))
            self._compiled[key] = chain = GuidedChain(network, update, guidance)
            self.chains.at_level(chain.step)
        chain = self._compiled[key]
        for ours, theirs in zip(chain.step.guidance.degradations, degradations):
            for old, new in zip(ours.get_parameters(), theirs.get_parameters()):
                old.set_data(new)
        chain.given, chain.learned = tuple(Tensor(np.ascontiguousarray(y, np.float32)) for y in given), (None, None)
        if exposures:
            chain.learned = (Tensor(np.full((shape[0], 1, 1, 1), _FACTOR, np.float32)),
                             Tensor(np.zeros((shape[0], 1, *given[0].shape[2:]), np.float32)))
        sampler = guide(self._sampler(guiding, sampling), chain)
        y_T = np.stack([generator(seed, "start", k).standard_normal(shape[1:], np.float32) for k in numbers])
        if guess is not None:
            y_T = sampler.start(guess, y_T)
        return sampler(None, y_T, seed, progress=progress, samples=numbers).asnumpy()

    def _sampler(self, guiding, sampling):
        """The solver's numbers, without a chain; `diffpir` has a solver of its own where none is named."""
        diffusion = self.config.diffusion
        try:
            if guiding.prior != "diffpir" or sampling.sampler:
                return create_sampler(None, diffusion, replace(sampling, sampler=sampling.sampler or "ddpm"))
            gammas = make_gamma_schedule(**vars(diffusion.test_schedule))
            kept = place_steps(gammas[:max(1, round(sampling.strength * len(gammas)))], sampling.steps,
                               sampling.spacing or "uniform")[::-1]
        except ValueError as error:
            raise UserError(str(error)) from None
        return Sampler(None, gammas[kept], diffpir_calls(gammas[kept], guiding.zeta), diffusion.prediction,
                       kept if diffusion.time_input == "t" else None)



def _check_memory(height, width, side, stride, planes, blind, kernel):
    """Raises UserError: a step at height × width takes more memory than may be used.

    Args:
        side, stride: of the windows, or None.
        planes: channels of all samples.
        blind: whether f and M are learned.
        kernel: how many numbers the kernels of the blurs have.
    """
    seen = height * width
    if side:
        seen = side**2 * math.prod(max(0, length - side) // stride + 2 for length in (height, width))
    needed = planes * (seen * _VALUE_BYTES * (1 + blind) + height * width * kernel * _KERNEL_BYTES)
    if needed > max_memory():
        raise UserError(f"{width}×{height} pixels take about {needed / 2**30:.1f} GiB, more than the "
                        f"{max_memory() / 2**30:.1f} that may be used: a smaller picture, fewer samples or less "
                        "overlap take less, and --max-memory (PALETTE_MS_MAX_MEMORY) allows more")


def _pad(array, height, width):
    """(C, h, w) → larger at the bottom and at the right, by reflection."""
    return np.pad(array, ((0, 0), (0, height - array.shape[1]), (0, width - array.shape[2])), "symmetric")
