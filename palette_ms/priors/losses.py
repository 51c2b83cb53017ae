"""What guidance weighs: how far D(x̃₀) is from the given picture, and how good x̃₀ looks by itself.

Functions of Tensors, differentiable. A picture counts for itself: losses are (N,).
"""

from mindspore import ops


def mse(a, b):
    """Mean squared difference of pictures (N, C, H, W)."""
    return ((a - b) ** 2).mean((1, 2, 3))


def mae(a, b):
    """Mean absolute difference."""
    return ops.abs(a - b).mean((1, 2, 3))


LOSSES = {"mse": mse, "mae": mae}


def exposure(x, level=0.3, side=8):
    """How far regions of side × side pixels are from a level of brightness, squared (Zero-DCE: Guo et al. 2020, arXiv
    2001.06826, eq. 5, squared as in Fei et al. 2023).

    Args:
        x: (N, C, H, W) in [−1, 1]; what is left over at the right and at the bottom does not count.
        level: E, in the units of x.
    """
    n, c, h, w = x.shape
    x = x[:, :, :h // side * side, :w // side * side].mean(1)
    means = x.reshape((n, h // side, side, w // side, side)).mean((2, 4))
    return ((means - level) ** 2).mean((1, 2))


def colour_constancy(x):
    """How far the means of the channels are from each other: √ of the sum of the fourth powers of their differences
    (Guo et al. 2020, eq. 6, whose square the released code takes the root of).

    Args:
        x: (N, 3, H, W).
    """
    red, green, blue = ops.unbind(x.mean((2, 3)), 1)
    fourth = (red - green) ** 4 + (red - blue) ** 4 + (green - blue) ** 4
    return ops.sqrt(fourth + 1e-20)  # the root of 0 has no derivative


def smoothness(mask):
    """How much a map (N, 1, H, W) changes from pixel to pixel: twice the sum of the mean squared differences along both
    axes (Guo et al. 2020, eq. 7)."""
    down = (mask[:, :, 1:] - mask[:, :, :-1]) ** 2
    right = (mask[:, :, :, 1:] - mask[:, :, :, :-1]) ** 2
    return 2 * (down.mean((1, 2, 3)) + right.mean((1, 2, 3)))


QUALITIES = {"exposure": exposure, "colour": colour_constancy}
