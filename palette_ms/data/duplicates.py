"""Copies of one picture, found by what it shows: re-encoded, resized or mirrored ones too."""

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

# Of 256 bits. Copies of 51 photos (the quickstart's and scikit-image's: JPEG down to quality 20, WebP, GIF, 64 pixels
# wide, enlarged, mirrored) differed from them in at most 22, crops of different photos from each other in at least 48.
DISTANCE = 32
_FLAT = 2  # grays from the darkest to the brightest
_TILE = 2048


def perceptual_hashes(picture):
    """The perceptual hash of a picture and that of its mirror image.

    It is pHash (Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions): which of the 16×16
    lowest frequencies of the picture in gray at 64×64, by the cosine transform, are above their median.

    Args:
        picture: uint8 (H, W, 3).

    Returns: uint8 (2, 32), eight bits each.
    """
    small = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    low = np.stack([cv2.dct(np.float32(view))[:16, :16].ravel() for view in (small, small[:, ::-1])])
    if np.ptp(small) <= _FLAT:  # it has no frequencies but its colour, which decides then
        return np.repeat(_colour_bits(picture)[None], 2, 0)
    return np.packbits(low > np.median(low, 1, keepdims=True), 1)


def _colour_bits(picture):
    """uint8 (32,) that a picture's mean colour decides, far apart for other colours."""
    mean = picture.mean((0, 1)).round().astype(np.uint8)
    return np.random.default_rng(mean.tolist()).integers(0, 256, 32, np.uint8)


def group_duplicates(hashes, rows):
    """Which rows hold copies of each other's pictures: a chain of copies is one group.

    Every picture is compared with every other, so the time grows with the square of their number.

    Args:
        hashes: uint8 (N, 2, 32), from `perceptual_hashes`.
        rows: int (N,), the row of each picture, from 0.

    Returns: int (R,), the number of each row's group.
    """
    hashes, place = np.unique(hashes, axis=0, return_inverse=True)
    count = len(hashes)
    group = np.arange(count)
    for top in tqdm(range(0, count, _TILE), "compare", disable=None):
        some = _signs(hashes[top:top + _TILE, 0])
        for left in range(top, count, _TILE):
            # The inner product of two hashes as ±1 is 256 − 2 × their distance, which mirroring both does not change.
            others = hashes[left:left + _TILE]
            near = np.maximum(some @ _signs(others[:, 0]).T, some @ _signs(others[:, 1]).T)
            i, j = np.nonzero(near >= 256 - 2 * DISTANCE)
            a, b = group[top + i], group[left + j]
            if (a != b).any():
                group = _components(a, b, count)[group]
    number = rows.max() + 1
    return _components(rows, number + group[place.ravel()], number + count)[:number]


def _signs(hashes):
    """The bits of uint8 (N, 32) as float32 (N, 256), −1 or 1."""
    return 2 * np.unpackbits(hashes, 1).astype(np.float32) - 1


def _components(a, b, count):
    """The connected component of each of `count` nodes, where a[k] and b[k] are linked."""
    return connected_components(coo_matrix((np.ones(len(a)), (a, b)), (count, count)), directed=False)[1]
