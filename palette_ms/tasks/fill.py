"""What a hole holds in the source: noise, or a smooth first guess."""

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

_EXACT = 2**15  # pixels up to which the system is solved at once; by 1.4 million that took 3.4 GB and 35 s
_COARSEST = 1000  # unknowns
_NEAR = 1e-5  # of the first error, in the energy's norm: below 1/1000 in each pixel, see tests/test_tasks.py
_STIFFNESS = 0.6  # of a coarser grid's system, see _grids

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

    Beyond the picture's edges there are no neighbours. Time and memory grow with the number of pixels in the hole, not
    with the picture: 1.4 million take 10 s and 0.7 GB on one core. Up to `_EXACT` pixels it is exact, above to 1/255.

    Args:
        y_0: float32 (C, H, W); what it holds in the hole is not used.
        mask: float32 (1, H, W), 1 in the hole.

    Returns: as y_0, filled; where nothing is known, 0.
    """
    hole = mask[0] > 0
    if not hole.any() or hole.all():
        return np.where(mask > 0, np.float32(0), y_0)
    laplacian, sums, places = _equations(y_0, hole)
    filled = y_0.copy()
    if len(sums) <= _EXACT:
        filled[:, hole] = linalg.spsolve(laplacian.tocsc(), sums.astype(float)).T
    else:
        filled[:, hole] = _solve(laplacian.astype(np.float32), sums, places).T
    return filled


def _equations(y_0, hole):
    """The membrane's equations for the pixels of a hole (H, W) in the order of rows.

    Returns: (matrix (n, n), float32 (n, C) of known neighbours' sums, (rows, columns) of the pixels).
    """
    (height, width), pixels = hole.shape, np.flatnonzero(hole)
    rows, columns = np.divmod(pixels, width)
    values, count = y_0.reshape(len(y_0), -1), len(pixels)
    neighbours, sums, pairs = np.zeros(count), np.zeros((count, len(y_0)), np.float32), []
    for step, exists in ((-width, rows > 0), (-1, columns > 0), (1, columns < width - 1), (width, rows < height - 1)):
        neighbours += exists
        i = np.flatnonzero(exists)
        neighbour = pixels[i] + step
        j = np.searchsorted(pixels, neighbour)
        inside = pixels[np.minimum(j, count - 1)] == neighbour
        pairs.append((i[inside].astype(np.int32), j[inside].astype(np.int32)))
        sums[i[~inside]] += values[:, neighbour[~inside]].T
    i, j = np.concatenate(pairs, 1)
    laplacian = sparse.diags(neighbours) - sparse.csr_matrix((np.ones(len(i)), (i, j)), (count, count))
    return laplacian.tocsr(), sums, (rows, columns)


def _solve(matrix, sums, places):
    """Conjugate gradients with a multigrid V-cycle before each step (Saad 2003, Iterative Methods for Sparse Linear
    Systems, algorithm 9.1), for all columns of sums (n, C) at once."""
    for stiffness in (_STIFFNESS, 1):
        grids = _grids(matrix, *places, stiffness)
        x, residual = np.zeros_like(sums), sums.copy()
        step = better = _cycle(grids, residual)
        size = first = _products(residual, better)
        for _ in range(1000):
            if (size <= _NEAR**2 * first).all():
                break
            moved = matrix @ step
            share = (size / np.maximum(_products(step, moved), 1e-30)).astype(np.float32)
            x += share * step
            residual -= share * moved
            better = _cycle(grids, residual)
            size, before = _products(residual, better), size
            step = better + (size / np.maximum(before, 1e-30)).astype(np.float32) * step
        if (size >= 0).all():  # the cycle was positive definite, as it must be; with stiffness 1 it always is
            return x
    return x


def _products(a, b):
    return np.einsum("nc,nc->c", a, b, dtype=np.float64)


def _grids(matrix, rows, columns, stiffness):
    """From the finest: (system, over its diagonal, to the coarser grid, from it); last the solver of the coarsest.

    A pixel of a coarser grid is a block of 2×2. What one says of its block's pixels alike makes the system of the
    coarser grid up to twice as stiff as the membrane is; of factors tried on holes of all kinds, `_STIFFNESS` took the
    fewest steps and never one too far.
    """
    grids = []
    while matrix.shape[0] > _COARSEST:
        rows, columns = rows // 2, columns // 2
        _, first, block = np.unique(rows.astype(np.int64) << 32 | columns, return_index=True, return_inverse=True)
        rows, columns, count = rows[first], columns[first], len(block)
        up = sparse.csr_matrix((np.ones(count, np.float32), block.astype(np.int32), np.arange(count + 1)))
        down = up.T.tocsr()
        grids.append((matrix, np.float32(0.8) / matrix.diagonal()[:, None], down, up))
        matrix = down @ matrix @ up * np.float32(stiffness)
    return [*grids, linalg.splu(matrix.astype(float).tocsc())]


def _cycle(grids, sums):
    """About the solution: a step of damped Jacobi, the same on the coarser grid, and a step more."""
    if len(grids) == 1:
        return grids[0].solve(sums.astype(float)).astype(np.float32)
    matrix, damped, down, up = grids[0]
    x = damped * sums
    x += up @ _cycle(grids[1:], down @ (sums - matrix @ x))
    x += damped * (sums - matrix @ x)
    return x
