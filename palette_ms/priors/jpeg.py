"""JPEG as a degradation: a projection, not a gradient."""

import io

import numpy as np
from mindspore import ops
from PIL import Image

from palette_ms.priors.degradations import Degradation, constant

# RGB to luma and the two chroma differences (JFIF).
_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


class Jpeg(Degradation):
    """Encoded and decoded, by the tables of `palette_ms.tasks.jpeg_restoration`'s encoder and its chroma subsampling
    (4:2:0); the sides must be multiples of 16. What libjpeg interpolates of the chroma is repeated here.

    It is not linear, and rounding has no gradient. `fit` is x + y − D(x): y where it says something, and of x what D
    takes away (Kawar et al. 2022, arXiv 2209.11888, eq. 7).

    Args:
        quality: 1 to 100.
    """

    gain = 1.0  # as of a projection

    def __init__(self, quality):
        super().__init__()
        tables = quantization(quality)
        self.luma, self.chroma = (constant(np.reshape(tables[k], (8, 8))) for k in (0, 1))
        basis = 0.5 * np.cos(np.outer(np.arange(8), 2 * np.arange(8) + 1) * np.pi / 16)  # DCT-II
        basis[0] /= np.sqrt(2)
        self.basis = constant(basis)
        self.to_ycc, self.to_rgb = constant(_YCC), constant(np.linalg.inv(_YCC))

    def construct(self, x):
        n, c, h, w = x.shape
        # Levels −128 to 127: black to white are −127.5 to 127.5, half a level higher.
        planes = ops.matmul(self.to_ycc, (127.5 * x).reshape((n, 3, h * w))).reshape((n, 3, h, w))
        luma = self.rounded(planes[:, :1] - 0.5, self.luma) + 0.5
        chroma = planes[:, 1:].reshape((n, 2, h // 2, 2, w // 2, 2)).mean((3, 5))
        chroma = self.rounded(chroma, self.chroma).repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = ops.matmul(self.to_rgb, ops.concat((luma, chroma), 1).reshape((n, 3, h * w)))
        return ops.clamp(y.reshape((n, 3, h, w)) / 127.5, -1, 1)

    def rounded(self, planes, table):
        """Planes (N, C, h, w) whose blocks of 8 × 8 have DCT coefficients that are multiples of a table's."""
        n, c, h, w = planes.shape
        blocks = planes.reshape((n, c, h // 8, 8, w // 8, 8)).transpose(0, 1, 2, 4, 3, 5)
        coefficients = ops.matmul(ops.matmul(self.basis, blocks), self.basis.T)
        coefficients = ops.round(coefficients / table) * table
        blocks = ops.matmul(ops.matmul(self.basis.T, coefficients), self.basis)
        return blocks.transpose(0, 1, 2, 4, 3, 5).reshape((n, c, h, w))

    def fit(self, x, y, damping=0.0):
        return x + y - self.construct(x)


def quantization(quality):
    """The encoder's tables of luma and chroma, 64 numbers each, by rows."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    return Image.open(file).quantization
