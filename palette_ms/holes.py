"""Holes of any size, made by a network that has seen small ones: crops around them, from coarse to fine.

A hole fits when the largest square in it is at most half as wide as the pictures that the network was trained with, as
in its training. What is around a larger one is shrunk until the hole fits, filled, and made finer by factors of two,
each time starting from what the coarser pass made. The network sees crops alone where that is enough.
"""

import math
from typing import NamedTuple, Optional, Tuple

import cv2
import numpy as np

from palette_ms.data.images import resize
from palette_ms.tasks.fill import smooth_fill

# What the network is given, in training sizes: few sizes, since it is compiled, or exported, for each.
_SIZES = 1, 1.5, 2


class Pass(NamedTuple):
    """A chain over a crop.

    Attributes:
        factor: by which the crop is shrunk before.
        box: (top, bottom, left, right) of the crop in the picture's pixels.
        own: the same of those pixels that it may change; what else of the hole the box holds is other passes'.
        refines: whether it starts from what the pass before it made.
        tile: side of the tiles that the shrunk crop is taken in where it is larger; None: it is taken as it is.
    """

    factor: int
    box: Tuple[int, int, int, int]
    own: Tuple[int, int, int, int]
    refines: bool = False
    tile: Optional[int] = None


def inside(box):
    """What takes a box (top, bottom, left, right) out of arrays (…, H, W)."""
    top, bottom, left, right = box
    return np.s_[..., top:bottom, left:right]


def plan(hole, trained, multiple):
    """The passes that fill a hole.

    Connected parts of the hole are made together, and so are those whose surroundings overlap. Around what it makes, a
    pass sees half of the training size on each side, in the pixels that the network is given, or as far as the picture
    goes.

    Args:
        hole: (1, H, W), above 0 where pixels are to be made; what is beyond the picture counts as known.
        trained: side of the pictures that the network was trained with.
        multiple: what the network divides.

    Returns: tuple of `Pass`, in their order. Where everything fits and crops would save less than half of the picture,
        one of the whole picture; also where nothing is known, or nothing is to be made.
    """
    mask = (np.asarray(hole)[0] > 0).astype(np.uint8)
    height, width = mask.shape
    whole = whole_pass(hole)
    if mask.all() or not mask.any():
        return whole
    context, passes, seen = trained // 2, [], 0
    sizes = [-(-math.floor(size * trained) // multiple) * multiple for size in _SIZES]
    for own in _parts(mask, context):
        factor = 1
        while widest(mask[inside(own)]) > factor * (trained // 2):
            factor *= 2
        bare = _bounds(mask[inside(own)], own)  # `own` has the context of the finest pass around it
        for level in (factor >> k for k in range(factor.bit_length())):
            low, high = np.array(bare[::2]) - level * context, np.array(bare[1::2]) + level * context
            low, high = np.maximum(low, 0), np.minimum(high, mask.shape)
            least = -(-(high - low).min() // level)
            tile = next((size for size in sizes if size >= least), sizes[-1])
            box = [side for ends in zip(low.tolist(), high.tolist(), mask.shape)
                   for side in _span(*ends, level * tile, level * multiple)]
            passes.append(Pass(level, tuple(box), own, level < factor, tile))
        seen += (box[1] - box[0]) * (box[3] - box[2])
    coarse = any(step.refines for step in passes)
    return tuple(passes) if coarse or seen <= height * width / 2 else whole


def fill(passes, pictures, hole, made, chain):
    """What the passes of a plan make, one after the other.

    Args:
        passes: tuple of `Pass`.
        pictures: float32 (N, C, H, W), as sources.
        hole: float32 (N, 1, H, W), in all of the pictures the plan's.
        made: float32 (N · samples, C', H, W), the pictures as results, with anything in the hole; is filled.
        chain: function of a pass's number, pictures (N, C, h, w), hole (N, 1, h, w) and a guess
            (N · samples, C', h, w) or None → (N · samples, C', h, w).

    Returns: made, in which what is known is as it was.
    """
    samples = len(made) // len(pictures)
    for k, (factor, box, own, refines, _) in enumerate(passes):
        view = inside(box)
        small, small_hole = shrink(pictures[view], hole[view], factor)
        size = small.shape[2:]
        guess = None
        if refines:
            guess = made[view] if factor == 1 else resize(made[view], *size)
        y = chain(k, small, small_hole, guess)
        if factor > 1:
            # What was made small misses the details that the hole's border has: the difference there is spread smoothly
            # over the hole (Poisson blending: Pérez et al. 2003), so that no seam is left.
            y = resize(y, *made[view].shape[2:])
            y = y + np.stack([smooth_fill(*pair) for pair in zip(made[view] - y, np.repeat(hole[view], samples, 0))])
        # Of the box, what is in the hole's own part.
        top, bottom, left, right = np.array((box, own)).T
        part = max(top), min(bottom), max(left), min(right)
        place, there = inside(part), inside([side - box[2 * (k // 2)] for k, side in enumerate(part)])
        np.copyto(made[place], y[there], where=np.repeat(hole[place], samples, 0) > 0)
    return made


def whole_pass(hole):
    """The one pass, in a tuple, of all of a picture with the hole (1, H, W)."""
    height, width = hole.shape[1:]
    return Pass(1, (0, height, 0, width), (0, height, 0, width)),


def around(hole, context, multiple):
    """The box of a hole (1, H, W) with so many pixels around it, or as far as the picture goes; its sides are multiples
    where there is room."""
    mask = hole[0] > 0
    bare = _bounds(mask, (0, mask.shape[0], 0, mask.shape[1]))
    ends = [(max(0, low - context), min(end, high + context), end)
            for low, high, end in zip(bare[::2], bare[1::2], mask.shape)]
    return tuple(side for low, high, end in ends for side in _span(low, high, end, 0, multiple))


def widest(mask):
    """Side of the largest square of ones in (H, W), in pixels."""
    # The chessboard distance to the nearest 0 of an odd square's middle; an even one has four middles.
    distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_C, 3)
    largest = int(distance.max())
    middles = np.pad((distance == largest).astype(np.uint8), 1)
    even = (middles[1:, 1:] & middles[:-1, 1:] & middles[1:, :-1] & middles[:-1, :-1]).any()
    return 2 * largest - 1 + int(even and largest > 0)


def shrink(pictures, hole, factor):
    """Pictures and hole made smaller by a factor, each new pixel the mean of those that it covers.

    A pixel is known where at least half of what it covers is, and then it is the mean of that alone, so that nothing of
    the hole is mixed into it.

    Args:
        pictures: float32 (N, C, H, W).
        hole: float32 (N, 1, H, W), 1 where pixels are to be made.
        factor: a whole number.

    Returns: (pictures, hole), of height and width divided by the factor and rounded up.
    """
    if factor == 1:
        return pictures, hole
    size = [-(-side // factor) for side in pictures.shape[2:]]
    share = resize(1 - hole, *size)
    known = resize(pictures * (1 - hole), *size) / np.maximum(share, 1e-6)
    coarse = shrink_hole(hole, factor)
    return np.where(coarse > 0, resize(pictures, *size), known), coarse


def shrink_hole(hole, factor):
    """The hole of `shrink` alone."""
    if factor == 1:
        return hole
    return (resize(1 - hole, *(-(-side // factor) for side in hole.shape[2:])) < 0.5).astype(np.float32)


def _parts(mask, context):
    """Boxes (top, bottom, left, right) of a mask's connected parts with so many pixels around them; those that overlap
    or touch become one."""
    covered, before, grown = mask, None, context
    while True:
        count, _, stats, _ = cv2.connectedComponentsWithStats(covered, connectivity=8)
        boxes = [(max(0, top - grown), min(mask.shape[0], top + height + grown), max(0, left - grown),
                  min(mask.shape[1], left + width + grown)) for left, top, width, height, _ in stats[1:].tolist()]
        if count == before:
            return boxes
        covered, before, grown = np.zeros_like(mask), count if not grown else None, 0
        for box in boxes:
            covered[inside(box)] = 1


def _bounds(mask, box):
    """(top, bottom, left, right) of the ones of a mask that lies at a box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return box[0] + rows[0], box[0] + rows[-1] + 1, box[2] + columns[0], box[2] + columns[-1] + 1


def _span(low, high, end, least, multiple):
    """From low to high as a span within 0 … end, longer where there is room: of at least `least`, and a multiple."""
    length = min(end, max(least, -(-(high - low) // multiple) * multiple))
    low = max(0, min(low - (length - (high - low)) // 2, end - length))
    return low, low + length
