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


def needed(diffusion):
    """Whether anything stands around the network: what it is given, told or says is scaled or shifted.

    Args:
        diffusion: `palette_ms.config.DiffusionConfig`.
    """
    return diffusion.from_source or diffusion.noise_input != "value" or diffusion.process != "palette"


def bridged(kernel, was, process):
    """The first convolution of a network that was trained with `from_source` by one process, for another.

    As Palette's it sees source and c_in · (y_t − √γ source), in a process from the source this and x_t = source +
    k (y_t − √γ source). In both the second half of the channels is to see the distance from the source, so that at
    γ = 0 both networks answer the same.

    Args:
        kernel: (C_out, C_in, K, K), the source's channels before the picture's.
        was, process: their names.
    """
    of_source, of_picture = np.split(kernel, 2, axis=1)
    sign = (was != "palette") - (process != "palette")
    return np.concatenate((of_source + sign * of_picture, of_picture), axis=1)


def around_network(diffusion, channels):
    """`palette_ms.diffusion.cells.Preconditioned` for networks that are no Cells.

    Args:
        diffusion: `palette_ms.config.DiffusionConfig`.
        channels: of source and picture each.

    Returns: function around(by, answer, x, gamma) → (output, deep), by: `palette_ms.unet.runtimes.Arrays`, or the
        `palette_ms.unet.onnx.Graph` whose values x and gamma are; answer(x, told) → (output, deep); or None: nothing
        stands around it.
    """
    if not needed(diffusion):
        return None

    def around(by, answer, x, gamma):
        told = 2000 / math.pi * by.acos(by.sqrt(gamma)) if diffusion.noise_input == "angle" else gamma
        if not diffusion.from_source and diffusion.process == "palette":
            return answer(x, told)
        source, y_t = by.channels(x, 0, channels), by.channels(x, channels, 2 * channels)
        level = gamma.reshape(-1, 1, 1, 1)
        distance = y_t - by.sqrt(level) * source
        if diffusion.process == "palette":
            seen = by.sqrt(level) * SOURCE_STD / (level * SOURCE_STD**2 + 1 - level) * distance
        else:
            seen = source + scale(diffusion.process, level, by.sqrt) * distance
        said, deep = answer(by.concat((source, seen)), told)
        return (source + SOURCE_STD * said if diffusion.from_source else said), deep

    return around
