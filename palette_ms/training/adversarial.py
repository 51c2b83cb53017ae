"""A refining network and the discriminator that judges patches of what it makes: their losses.

Pictures are (N, C, H, W) in [−1, 1], masks (N, 1, H, W), 1 where pixels were made.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from palette_ms.seeds import generator

_SLOPE = 0.2  # of leaky ReLU
HALVINGS = 3  # of the discriminator


class Refined(nn.Cell):
    """What was made, with what a network adds to it where it was made.

    Args:
        network: `palette_ms.unet.UNet`, which sees made ‖ source ‖ mask; its noise level stays 1, which is none.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, made, cond, mask):
        x = ops.concat((made, cond, mask), 1)
        return made + mask * self.network(x, ops.ones((x.shape[0],), ms.float32))


class SpectralConv(nn.Cell):
    """A convolution whose kernel, as a matrix of a row for each channel that it makes, is divided by its largest
    singular value (Miyato et al. 2018, arXiv 1802.05957, section 2.1 and Algorithm 1).

    The singular value is σ = uᵀ W v, of vectors that one power iteration a training step leads on: `iterate`.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, "pad", 1, has_bias=False)
        self.bias = Parameter(Tensor(np.zeros((1, out_channels, 1, 1), np.float32)))
        u = generator(0, "u", out_channels).standard_normal((1, out_channels), np.float32)
        self.u = Parameter(Tensor(u / np.linalg.norm(u)), requires_grad=False)

    def matrix(self):
        return self.layer.weight.reshape((self.u.shape[1], -1))

    def iterate(self):
        """u one power iteration further."""
        return ops.assign(self.u, _unit(ops.matmul(_unit(ops.matmul(self.u, self.matrix())), self.matrix().T)))

    def construct(self, x):
        matrix = self.matrix()
        v = ops.stop_gradient(_unit(ops.matmul(self.u, matrix)))
        sigma = ops.sum(self.u * ops.matmul(v, matrix.T))
        return self.layer.conv2d(x, self.layer.weight / sigma) + self.bias


class PatchDiscriminator(nn.Cell):
    """For each of a picture's patches, how much it looks like the originals: the higher, the more (Isola et al. 2017,
    arXiv 1611.07004, section 3.2.2).

    Args:
        in_channels: of picture ‖ source.
        width: channels of the first layer.

    Inputs: picture and source, H and W multiples of 2^`HALVINGS`. Output: (N, 1, H / 8, W / 8).
    """

    def __init__(self, in_channels, width):
        super().__init__()
        widths = [in_channels, *(width * 2**min(k, 2) for k in range(HALVINGS))]
        self.layers = nn.CellList([SpectralConv(*pair, 4, 2) for pair in zip(widths, widths[1:])])
        self.last = SpectralConv(widths[-1], 1, 3, 1)

    def iterate(self):
        for layer in self.layers:
            layer.iterate()
        return self.last.iterate()

    def construct(self, picture, cond):
        x = ops.concat((picture, cond), 1)
        for layer in self.layers:
            x = layer(x)
            x = ops.maximum(x, _SLOPE * x)
        return self.last(x)


class PowerIteration(nn.Cell):
    """`PatchDiscriminator.iterate` as a graph of its own."""

    def __init__(self, discriminator):
        super().__init__()
        self.discriminator = discriminator

    def construct(self):
        return self.discriminator.iterate()


class RefinerLoss(nn.Cell):
    """Mean absolute error where pixels were made, and the hinge loss of a generator: E|y − y₀| − w E D(y) (Lim & Ye
    2017, arXiv 1705.02894, with the error as in Isola et al. 2017, eq. 4).

    Args:
        refined: `Refined`.
        discriminator: `PatchDiscriminator`, or another cell (picture, source) → a number each patch.
        weight: w ≥ 0.

    Inputs: made, source, original, mask.
    """

    def __init__(self, refined, discriminator, weight):
        super().__init__()
        self.refined, self.discriminator, self.weight = refined, discriminator, weight

    def construct(self, made, cond, y_0, mask):
        y = self.refined(made, cond, mask)
        error = ops.sum(mask * ops.abs(y - y_0)) / (ops.sum(mask) * y.shape[1] + 1e-6)
        return error - self.weight * ops.mean(self.discriminator(y, cond))


class DiscriminatorLoss(nn.Cell):
    """The hinge loss E max(0, 1 − D(y₀)) + E max(0, 1 + D(y)). Arguments and inputs as of `RefinerLoss`."""

    def __init__(self, refined, discriminator):
        super().__init__()
        self.refined, self.discriminator = refined, discriminator

    def construct(self, made, cond, y_0, mask):
        y = ops.stop_gradient(self.refined(made, cond, mask))
        return (ops.mean(ops.relu(1 - self.discriminator(y_0, cond)))
                + ops.mean(ops.relu(1 + self.discriminator(y, cond))))


def _unit(vector):
    """(1, K) → of length 1."""
    return vector / (ops.sqrt(ops.sum(vector * vector)) + 1e-12)
