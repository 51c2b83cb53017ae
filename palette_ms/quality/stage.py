"""What is done with a chain's samples before they become pictures, and the record of it."""

import sys
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Callable, List, NamedTuple, Optional, Tuple, Union

import numpy as np
from tqdm import tqdm

from palette_ms.quality.blend import BAD, BLENDS, Seam, blend, border, depth, seam
from palette_ms.quality.confidence import ALIKE, confidence, law, spread, unsure
from palette_ms.quality.mix import MIXES, mix

SCORES = ("denoising",)
# Noise, σ/α, at which the model's denoising error of a sample is taken.
_SCORED_AT = 0.1, 0.3, 1.0
# Noise that doubtful regions start again from, in spreads of their samples.
_SUITS = 2.0
_CALLS = 4  # of a region that is made again
# Noise that a hole's border is refined with, as that of `Sampling.rounds` may be: little enough to keep what is there.
_AT_BORDERS = 0.3
_FURTHER = 2**10  # numbers the noise of these rounds apart from that of regions


@dataclass(frozen=True)
class Quality:
    """What is done after the chain. By default nothing.

    Attributes:
        best: how many of the samples are kept, the best first; None: all.
        score: by which they are compared: "denoising", the model's own error in taking noise away from them, or a
            function, such as `palette_ms.quality.nearest.by_lpips` makes: the list of a picture's samples, as `restore`
            returns them → a number for each, the higher the better.
        mix: one result of all samples, see `palette_ms.quality.mix`; None: the samples themselves.
        blend: see `palette_ms.quality.blend.blend`.
        resample: how many times a sample whose seam is bad is made again, with other noise.
        resample_regions: how many times the regions are made again where several samples are far apart.
        border_rounds: how many times noise is added to the border of a hole alone, see
            `palette_ms.quality.blend.border`, and taken away by a call that sees what is on both sides.
        refine: the model's refining network, of those that carry one, adds what it learned to the result, see
            `palette_ms.training.refiner`.
        confidence: the record has a map of it, which takes two samples or more.

    Raises:
        ValueError: a value that is not as above.
    """

    best: Optional[int] = None
    score: Union[str, Callable] = "denoising"
    mix: Optional[str] = None
    blend: str = "none"
    resample: int = 0
    resample_regions: int = 0
    border_rounds: int = 0
    refine: bool = False
    confidence: bool = False

    def __post_init__(self):
        for name, known in (("mix", (None, *MIXES)), ("blend", BLENDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(filter(None, known))}, not {getattr(self, name)!r}")
        if not callable(self.score) and self.score not in SCORES:
            raise ValueError(f"score must be {', '.join(SCORES)} or a function, not {self.score!r}")
        for name, least in (("best", 1), ("resample", 0), ("resample_regions", 0), ("border_rounds", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < least):
                raise ValueError(f"{name} must be a whole number from {least} on, not {value!r}")
        if not isinstance(self.refine, bool):
            raise ValueError(f"refine must be true or false, not {self.refine!r}: how many rounds of noise is rounds")
        if self.best is not None and self.mix:
            raise ValueError("best and mix cannot be had together: one keeps samples, the other makes one of all")
        if self.mix == "score" and callable(self.score):
            raise ValueError("mix=score takes the score denoising: a function sees finished results alone")

    def check(self, samples):
        """Raises ValueError: it needs more samples than so many."""
        if self.best is not None and self.best > samples:
            raise ValueError(f"best must be at most num_samples, {samples}, not {self.best}")
        for name in ("mix", "resample_regions", "confidence"):
            if getattr(self, name) and samples < 2:
                raise ValueError(f"{name} compares several samples: ask for num_samples of 2 or more, such as 8")

    @property
    def again(self):
        """Whether chains are run that begin with what was made."""
        return bool(self.resample_regions or self.border_rounds or self.scored == "denoising")

    @property
    def scored(self):
        """The score that is needed, or None."""
        return self.score if self.best is not None or self.mix == "score" else None


QUALITY = {field.name for field in fields(Quality)}


@dataclass(frozen=True)
class Details:
    """What `restore(..., details=True)` says of a picture.

    Attributes:
        samples: the results, as `restore` gives them.
        numbers: of the samples that they are; None where they are mixed.
        scores: of all samples that were made, or None.
        confidence: float32 (H, W), the chance that a pixel's values are within 8 255ths of the truth, 1 where it was
            known; or None, of a single sample.
        seams: `Seam` of each result, or None where there is no hole with a border.
        seconds: that the whole batch took.
    """

    samples: list
    numbers: Optional[Tuple[int, ...]]
    scores: Optional[Tuple[float, ...]]
    confidence: Optional[np.ndarray] = field(repr=False)
    seams: Optional[Tuple[Seam, ...]]
    seconds: float


class Made(NamedTuple):
    """What is known of a picture's results: as in `Details`."""

    scores: Optional[List[float]]
    confidence: Optional[np.ndarray]
    seams: Optional[List[Seam]]


class Stage:
    """A chain's function as `palette_ms.tasks.Task.restore` calls it, with what comes after.

    Args:
        run: the function: run(pictures, number=0, stream=None).
        rerun: the same with other noise: rerun(round, pictures, number, stream).
        again: function of sources (S, C, h, w) of a picture's samples, these (S, C', h, w), a guess alike, hole (1, h,
            w), noise σ/α, calls, whether all have the same noise, and a number that tells its noise → the samples,
            with the hole made again from the guess with that noise.
        refine: function of sources (N, C, h, w), results of the same (S, C', h, w) and their hole → them, refined.
        quality: `Quality`.
        holes: of each chain (P, 1, h, w).

    Attributes:
        made: of each picture `Made`, after the first chain.
    """

    def __init__(self, run, rerun, again, refine, quality, holes):
        self.run, self.rerun, self.again, self.refine = run, rerun, again, refine
        self.quality, self.holes = quality, holes
        self.made = None

    def __call__(self, pictures, number=0, stream=None):
        quality, hole = self.quality, self.holes[number]
        groups = self._blended(self.run(pictures, number, stream), hole)
        for turn in range(quality.resample):
            fits = np.array([[_fit(y, one) for y in group] for group, one in zip(groups, hole)])
            if (fits <= BAD).all():
                break
            others = self._blended(self.rerun(turn, pictures, number, stream), hole)
            fits_others = np.array([[_fit(y, one) for y in group] for group, one in zip(others, hole)])
            better = (fits > BAD) & (fits_others < fits)
            groups = np.where(better[..., None, None, None], others, groups)
        results, told = [], []
        for place, (group, one) in enumerate(zip(groups, hole)):
            each = len(pictures) // len(hole)  # one of each picture, or one of each sample
            source = pictures[place * each:(place + 1) * each]
            if quality.again:
                source = np.repeat(source, len(group) // each, 0)
            for turn in range(quality.resample_regions):
                apart = spread(group)
                region = unsure(apart, one)
                if not region.any():
                    break
                noise = _SUITS * np.sqrt(np.mean(apart[region[0] > 0] ** 2)) / 127.5
                guess = np.broadcast_to(np.median(group, 0), group.shape)
                # What is known around a hole is what the source holds there, by now.
                given = source if one.all() else group
                group = self.again(given, group, guess, region, noise, _CALLS, False, turn)
            for turn in range(quality.border_rounds if border(one).any() else 0):
                group = self.again(group, group, group, border(one), _AT_BORDERS, 1, False, _FURTHER + turn)
            scores = self._scores(source, group, one) if quality.scored == "denoising" else None
            sure = None
            if quality.confidence:
                apart = spread(group)
                if np.median(apart[one[0] > 0]) < ALIKE:
                    tqdm.write("the samples hardly differ, and so say little of how sure they are: more calls (8 "
                               "steps) make them differ", file=sys.stderr)
                sure = confidence(apart, law(bool(quality.mix), not one.all()), depth(one))
                sure = np.where(one[0] > 0, sure, np.float32(1))
            if quality.mix:
                group = blend(mix(group, quality.mix, scores), one, quality.blend)[None]
            if quality.refine:
                group = self.refine(source, group, one)
            seams = [seam(y, one) for y in group]
            results.append(group)
            told.append(Made(scores, sure, None if seams[0] is None else seams))
        if number == 0:
            self.made = told
        return np.concatenate(results)

    def _blended(self, made, hole):
        """Samples (P · S, C, h, w) as (P, S, …), each blended into what is around its hole."""
        groups = made.reshape(len(hole), -1, *made.shape[1:])
        if self.quality.blend == "none":
            return groups
        return np.stack([[blend(y, one, self.quality.blend) for y in group] for group, one in zip(groups, hole)])

    def _scores(self, source, samples, hole):
        """The denoising error of each sample, as PSNR in dB, the mean over some levels of noise, the same of all."""
        count = hole.sum() * samples.shape[1]
        decibels = []
        for noise in _SCORED_AT:
            seen = self.again(source, samples, samples, hole, noise, 1, True, 0)
            squares = (hole * (seen - samples) ** 2).sum((1, 2, 3)) / count
            decibels.append(10 * np.log10(4 / np.maximum(squares, 1e-12)))
        return np.mean(decibels, 0).tolist()


def _fit(y, hole):
    """A seam's score, 0 where there is none."""
    found = seam(y, hole)
    return 0.0 if found is None else found.score
