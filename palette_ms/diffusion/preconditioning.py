"""Preconditioning: what the network is given, what it is to say, and how ŷ₀ follows from that.

With y_t = √γ y₀ + √(1−γ) ε (Palette, eq. 2), and after table 1 of Karras et al. 2022 (arXiv 2206.00364):

    ŷ₀ = c_skip · y_t + c_out · output             output = F(source ‖ y_t, c_noise)

    prediction    target                c_skip    c_out
    eps           ε                     1/√γ      −√(1−γ)/√γ       (Ho et al. 2020; Palette, eq. 3)
    v             √γ ε − √(1−γ) y₀      √γ        −√(1−γ)          (Salimans & Ho 2022, section 4)
    x0            y₀                    0         1

    noise_input   c_noise
    value         γ                                                (Palette, section 2.2)
    angle         1000 · (2/π) arccos √γ

(`time_input: t` tells the step in place of c_noise, to networks of guided-diffusion.) y_t keeps its scale, c_in = 1:
at every γ its variance lies between a picture's and 1. `from_source`, for x0, is about the distance d = y₀ − source, of
deviation s, which is seen through y_t − √γ source:

    output = source + s · F(source ‖ c_in · (y_t − √γ source), c_noise)          c_in = √γ s / (γ s² + 1 − γ)

c_in · (y_t − √γ source) is E[d | y_t]/s, were d white noise: it fades as y_t says less of it.

In a process from the source to the picture (`palette_ms.diffusion.process`) it sees x_t in place of y_t.
"""

import math

import numpy as np
from mindspore import nn, ops

from palette_ms.diffusion.process import scale

PREDICTIONS = ("eps", "v", "x0")

# s above. Of y₀ − source where pixels are to be made, in [−1, 1]: over 400 crops of the quickstart's photos its root
# mean square was 0.24 for smoothly filled holes and 0.23 for gray pictures. Only the order of magnitude matters.
SOURCE_STD = 0.2


def check_prediction(prediction):
    """Raises ValueError unless `prediction` is one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"unknown prediction {prediction!r}: {', '.join(PREDICTIONS)}")


def target(prediction, y_0, noise, signal_rate, noise_rate):
    """What the network should say. y_0, noise (N, C, H, W); rates √γ and √(1−γ) (N, 1, 1, 1). Returns as y_0."""
    if prediction == "eps":
        return noise
    if prediction == "v":
        return signal_rate * noise - noise_rate * y_0
    return y_0


def y_0_coefficients(prediction, gammas):
    """(c_skip, c_out), float64 arrays like `gammas`: ŷ₀ = c_skip · y_t + c_out · output at each noise level."""
    signal, noise = np.sqrt(gammas), np.sqrt(1 - gammas)
    if prediction == "eps":
        return 1 / signal, -noise / signal
    if prediction == "v":
        return signal, -noise
    return np.zeros_like(gammas), np.ones_like(gammas)


class Preconditioned(nn.Cell):
    """A network as the process calls it: told the noise as it is to be, its inputs and output scaled and shifted.

    Args:
        network: `palette_ms.unet.UNet`, or another with its `answer` and `out_channels`.
        from_source: see above; source and picture have `out_channels` channels each. A new network says its source, and
            a short training need not learn first how far y_t can be trusted at each noise level.
        noise_input: what the network is told: "value", γ itself as in the paper, or "angle". The network's sinusoids
            hardly tell γ = 0.01 from 0.05, where the gain 1/√γ on y_t that it has to apply differs by a factor of two;
            the angle spreads these levels out.
        process: "palette", "resshift" or "i2sb".

    Inputs: as the network's; gamma (N,) is the noise level in (0, 1]. Output: as the network's.
    """

    def __init__(self, network, from_source=False, noise_input="value", process="palette"):
        super().__init__()
        self.network = network
        self.channels = network.out_channels
        self.from_source = from_source
        self.tells_angle = noise_input == "angle"
        self.process = process
        self.sees_source = from_source or process != "palette"

    def construct(self, x, gamma, label=None, dropout=None):
        return self.answer(x, gamma, label, dropout)[0]

    def answer(self, x, gamma, label=None, dropout=None, deep=None):
        """The output, and the network's deep features, see `palette_ms.unet.unet.UNet.answer`."""
        told = 2000 / math.pi * ops.acos(ops.sqrt(gamma)) if self.tells_angle else gamma
        if not self.sees_source:
            return self.network.answer(x, told, label, dropout, deep)
        source, y_t, level = x[:, :self.channels], x[:, self.channels:], gamma.reshape((-1, 1, 1, 1))
        distance = y_t - ops.sqrt(level) * source
        if self.process == "palette":
            seen = ops.sqrt(level) * SOURCE_STD / (level * SOURCE_STD**2 + 1 - level) * distance
        else:
            seen = source + scale(self.process, level, ops.sqrt) * distance
        said, deep = self.network.answer(ops.concat((source, seen), 1), told, label, dropout, deep)
        return source + SOURCE_STD * said if self.from_source else said, deep


def precondition(network, diffusion):
    """A network as a process calls it: the network itself where there is nothing to scale, shift or tell otherwise.

    Args:
        network: `palette_ms.unet.UNet`.
        diffusion: `palette_ms.config.DiffusionConfig`.
    """
    if diffusion.from_source or diffusion.noise_input != "value" or diffusion.process != "palette":
        return Preconditioned(network, diffusion.from_source, diffusion.noise_input, diffusion.process)
    return network
