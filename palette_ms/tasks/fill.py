"""What a hole holds in the source: noise, or a smooth first guess."""

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

FILL = "what the hole holds in the source: noise as in the paper, or a smooth first guess, for short trainings"


def fill_hole(y_0, mask, rng, fill="noise"):
    """The source: y_0 (C, H, W) outside the mask (1, H, W), a filling inside.

    Args:
        fill: "noise", standard Gaussian, is the paper's. "smooth" is `smooth_fill`: a small network that starts from
            it only has to learn what to add.
    """
    inside = rng.standard_normal(y_0.shape, np.float32) if fill == "noise" else smooth_fill(y_0, mask)
    return np.where(mask > 0, inside, y_0)


def first_guess(cond, mask, fill):
    """A source (C, H, W) that `fill_hole` made, with a smooth hole where it holds noise."""
    return smooth_fill(cond, mask) if fill == "noise" else cond


def smooth_fill(y_0, mask):
    """The membrane over the hole: each of its pixels is the mean of its neighbours (Laplace's equation).

    Args:
        y_0: float32 (C, H, W); what it holds in the hole is not used.
        mask: float32 (1, H, W), 1 in the hole.

    Returns: as y_0, filled; where nothing is known, 0.
    """
    hole = mask[0] > 0
    if not hole.any() or hole.all():
        return np.where(mask > 0, np.float32(0), y_0)
    number = np.full(hole.shape, -1)  # of each pixel in the hole
    number[hole] = np.arange(hole.sum())
    numbers = np.pad(number, 1, constant_values=-2)  # -2: beyond the edge
    values = np.pad(y_0, ((0, 0), (1, 1), (1, 1)))
    rows, columns = np.nonzero(hole)
    neighbours, sums, pairs = 0, 0, []
    for down, right in ((0, 1), (1, 0), (1, 2), (2, 1)):  # in the padded arrays
        place = rows + down, columns + right
        neighbour = numbers[place]
        neighbours = neighbours + (neighbour > -2)
        sums = sums + np.where(neighbour == -1, values[:, place[0], place[1]], 0)
        inside = neighbour >= 0
        pairs.append((number[hole][inside], neighbour[inside]))
    i, j = np.concatenate(pairs, 1)
    laplacian = sparse.diags(neighbours.astype(float)) - sparse.csr_matrix((np.ones(len(i)), (i, j)), (len(rows),) * 2)
    filled = y_0.copy()
    filled[:, hole] = linalg.spsolve(laplacian.tocsc(), sums.T.astype(float)).T
    return filled
