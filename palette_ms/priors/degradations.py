"""Degradations as operators: y = D(x) of pictures (N, C, H, W), of any batch, which gradients go through.

`Degradation.adjoint` is Dᵀ, by differentiation, and `fit` the picture nearest to another one whose D(x) is y, or near
to y; a new operator has to say only what it does to a picture. Blur, bicubic interpolation, gray and JPEG are those of
the tasks that make training pairs.
"""

import math
from typing import Any, Optional, Tuple

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from palette_ms.data.images import LUMA
from palette_ms.errors import UserError
from palette_ms.tasks.super_resolution import bicubic

_ITERATIONS = 12  # of conjugate gradients; where D Dᵀ = s² I, the first one ends them
_LEAST = 1e-20  # instead of 0, to divide by


class Degradation(nn.Cell):
    """y = D(x), linear.

    Attributes:
        gain: s where D Dᵀ = s² I on what D can make, or None: D has several singular values.

    Examples:
        An operator says what it does to a picture; the rest follows:

        >>> class Halved(Degradation):
        ...     def construct(self, x):
        ...         return x / 2
        >>> x, y = Tensor([[[[0.0, 0.0]]]]), Tensor([[[[1.0, 2.0]]]])
        >>> Halved().adjoint(y, x).asnumpy().ravel().tolist()
        [0.5, 1.0]
        >>> Halved().fit(x, y).asnumpy().ravel().round(5).tolist()
        [2.0, 4.0]
    """

    gain: Optional[float] = None

    def size(self, height: int, width: int) -> Tuple[int, int]:
        """(height, width) of y for pictures of a size. Raises UserError: D takes no such size."""
        return height, width

    def degrade(self, x: np.ndarray) -> np.ndarray:
        """D(x) of an array (N, C, H, W) as an array."""
        return self(Tensor(np.ascontiguousarray(x, np.float32))).asnumpy()

    def adjoint(self, y: Any, x: Any) -> Any:
        """Dᵀ(y) for pictures like x, of which only the shape counts."""
        return ops.grad(self._product)(ops.zeros_like(x), y)

    def _product(self, x, y):
        return (self.construct(x) * y).sum()

    def fit(self, x: Any, y: Any, damping: float = 0.0) -> Any:
        """argmin over z of ‖D(z) − y‖² + damping · ‖z − x‖²; without damping, of those that fit best the nearest to x:
        the range-null-space projection (Wang et al. 2022, arXiv 2212.00490, eq. 13), D⁺ y + (I − D⁺ D) x.

        By conjugate gradients on the normal equations (CGLS: Björck 1996, Numerical Methods for Least Squares Problems,
        algorithm 7.4.1), each picture of the batch for itself; few iterations, which is a damping of its own.
        """
        residual, moved = y - self.construct(x), ops.zeros_like(x)
        slope = step = self.adjoint(residual, x)
        size = _products(slope, slope)
        for _ in range(1 if self.gain else _ITERATIONS):
            degraded = self.construct(step)
            curvature = _products(degraded, degraded) + damping * _products(step, step)
            share = size / ops.maximum(curvature, _LEAST * ops.ones_like(size))
            moved, residual = moved + share * step, residual - share * degraded
            slope = self.adjoint(residual, x) - damping * moved
            following = _products(slope, slope)
            step = slope + following / ops.maximum(size, _LEAST * ops.ones_like(size)) * step
            size = following
        return x + moved

    def shade(self, x):
        """The part of x (N, C, H, W) that y says something of, D⁺ D x; for D with a `gain`."""
        return self.adjoint(self.construct(x), x) / self.gain**2


def _products(a, b):
    return (a * b).sum((1, 2, 3), keepdims=True)


class Whole(Degradation):
    """D(x) = x: noise alone stands between the given picture and the one wanted."""

    gain = 1.0

    def construct(self, x):
        return x


class BlockMean(Degradation):
    """Each block of scale × scale pixels becomes its mean.

    Examples:
        >>> BlockMean(2).degrade(np.array([[[[1, 2, 3, 3], [3, 2, 3, 3]]]], np.float32)).tolist()
        [[[[2.0, 3.0]]]]
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale, self.gain = scale, 1 / scale

    def size(self, height: int, width: int) -> Tuple[int, int]:
        return _divided(self.scale, height, width)

    def construct(self, x):
        n, c, h, w = x.shape
        return x.reshape((n * c, h // self.scale, self.scale, w // self.scale, self.scale)).mean((2, 4)).reshape(
            (n, c, h // self.scale, w // self.scale))


class Bicubic(Degradation):
    """Made smaller by Pillow's bicubic interpolation, as `palette_ms.tasks.super_resolution` makes its sources."""

    def __init__(self, scale, height, width):
        super().__init__()
        self.scale = scale
        rows, columns = (_bicubic_matrix(side, side // scale) for side in (height, width))
        self.rows, self.columns = constant(rows), constant(columns.T)

    def size(self, height, width):
        return _divided(self.scale, height, width)

    def construct(self, x):
        return ops.matmul(self.rows, ops.matmul(x, self.columns))


def _bicubic_matrix(side, smaller):
    """(smaller, side): what each pixel of a line counts in those of the smaller one."""
    return bicubic(np.eye(side, dtype=np.float32)[None], smaller, side)[0]


def _divided(scale, height, width):
    if height % scale or width % scale:
        raise UserError(f"{height}×{width} is no multiple of the factor {scale}")
    return height // scale, width // scale


class Blur(Degradation):
    """Filtered by a kernel (k, k), odd, of sum 1.

    Args:
        kernel: float (k, k); one of another sum is divided by it.
        valid: only pixels whose window lies inside the picture: y is k − 1 smaller. Otherwise the picture goes on by
            reflection about its outermost pixels, as in `palette_ms.tasks.deblurring`.

    Raises:
        UserError: a kernel that is not odd and square, or of sum 0.

    Examples:
        >>> spot = np.zeros((1, 1, 5, 5), np.float32)
        >>> spot[..., 2, 2] = 9
        >>> Blur(np.ones((3, 3))).degrade(spot)[0, 0, 2].round(5).tolist()
        [0.0, 1.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, kernel: np.ndarray, valid: bool = False) -> None:
        super().__init__()
        kernel = np.asarray(kernel, np.float32)
        if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
            raise UserError(f"a kernel must be square with an odd side, not {'×'.join(map(str, kernel.shape))}")
        if not np.isfinite(kernel).all() or kernel.sum() <= 0:
            raise UserError(f"a kernel's values must have a sum above 0, not {kernel.sum():g}")
        self.radius, self.valid = len(kernel) // 2, valid
        self.kernel = constant((kernel / kernel.sum())[None, None])

    def size(self, height, width):
        less = 2 * self.radius * self.valid
        if min(height, width) <= 2 * self.radius:
            raise UserError(f"{height}×{width} is too small for a kernel of {2 * self.radius + 1} pixels")
        return height - less, width - less

    def construct(self, x):
        n, c, h, w = x.shape
        x = x.reshape((n * c, 1, h, w))
        if not self.valid:
            x = _reflect(_reflect(x, self.radius).swapaxes(2, 3), self.radius).swapaxes(2, 3)
        y = ops.conv2d(x, self.kernel)
        return y.reshape((n, c, y.shape[2], y.shape[3]))


def _reflect(x, radius):
    """Rows before and after by reflection about the outermost ones."""
    if radius == 0:
        return x
    return ops.concat((x[:, :, 1:radius + 1].flip((2,)), x, x[:, :, -radius - 1:-1].flip((2,))), 2)


class Known(Degradation):
    """Only some pixels are known.

    Args:
        known: (1 or N, 1, H, W), 1 where a pixel is known, else 0.
    """

    gain = 1.0

    def __init__(self, known):
        super().__init__()
        self.known = constant(known)

    def construct(self, x):
        return x * self.known


class Gray(Degradation):
    """A weighted mean of the channels, one channel.

    Args:
        weights: (C,), None: luma, as `palette_ms.tasks.colorization`.
    """

    def __init__(self, weights=None):
        super().__init__()
        weights = LUMA if weights is None else np.asarray(weights, np.float32)
        self.weights = constant(weights.reshape((1, -1, 1, 1)))
        self.gain = float(np.linalg.norm(weights))

    def construct(self, x):
        return (x * self.weights).sum(1, keepdims=True)


class Composition(Degradation):
    """Several, one after the other, the first of them first."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.CellList(list(parts))
        gains = [part.gain for part in parts]
        self.gain = None if None in gains else math.prod(gains)

    def size(self, height, width):
        for part in self.parts:
            height, width = part.size(height, width)
        return height, width

    def construct(self, x):
        for part in self.parts:
            x = part(x)
        return x


def constant(array):
    """What a compiled graph takes as an input, so that another value of the same shape compiles nothing anew."""
    return Parameter(Tensor(np.ascontiguousarray(array, np.float32)), requires_grad=False)
