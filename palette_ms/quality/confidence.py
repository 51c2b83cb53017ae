"""How sure each pixel of a result is, by how far several samples of it are apart."""

import cv2
import numpy as np

# A value is taken for right within so many 255ths of the original's.
WITHIN = 8
# Spread in 255ths, see `spread`, above which a region is doubtful.
DOUBTFUL = 8
# Spread in 255ths, the median of a picture's, below which samples are too much alike for it to say anything.
ALIKE = 0.5
# (scale, power) of the mean error in 255ths, scale · spread^power, of a sample and of a mix of several, as `calibrated`
# found them for the model that ships on photos that its training never saw (`benchmarks/quality.py`); docs/quality.md
# has how they hold on others.
OF_SAMPLE, OF_MIX = (6.02, 0.67), (6.39, 0.63)
# (scale, power, deepening) in holes, where samples agree more than they are right, the deeper the more: the mean error
# is scale · spread^power · depth^deepening, of the pixel's distance from what is known.
OF_SAMPLE_IN_HOLES, OF_MIX_IN_HOLES = (3.63, 0.91, 0.15), (3.39, 0.91, 0.20)
_LEAST = 0.1  # spread, which rounding hides below
_BLUR = 2  # deviation, in pixels, of the window in which spreads are taken together


def spread(samples):
    """The standard deviation of samples float32 (S, C, H, W) in [−1, 1] around their mean, in 255ths, of all channels
    together and averaged nearby: float32 (H, W). S must be 2 or more."""
    variance = np.var(samples, 0, ddof=1).mean(0)
    return 127.5 * np.sqrt(cv2.GaussianBlur(variance, (0, 0), _BLUR).clip(0))


def confidence(spread, law=OF_SAMPLE, depth=1.0):
    """The chance that a value is within `WITHIN` 255ths of the truth: 1 − exp(−WITHIN/e) where errors have a Laplace
    distribution of the mean e = scale · spread^power, in holes times depth^deepening, in 255ths.

    Args:
        spread: (H, W), see `spread`.
        law: (scale, power) or (scale, power, deepening), see `law`, or what `calibrated` finds.
        depth: in holes, (H, W), see `palette_ms.quality.blend.depth`.

    Returns: as spread, from 0 to 1.
    """
    scale, power, *deepening = law
    error = scale * np.maximum(spread, _LEAST) ** power
    if deepening:
        error = error * np.maximum(depth, 1) ** deepening[0]
    return (1 - np.exp(-WITHIN / error)).astype(np.float32)


def law(mixed, in_hole):
    """The law for a sample or a mix, of a whole picture or in a hole, beside which something is known."""
    if in_hole:
        return OF_MIX_IN_HOLES if mixed else OF_SAMPLE_IN_HOLES
    return OF_MIX if mixed else OF_SAMPLE


def calibrated(spreads, right, depths=None, bins=20):
    """The law by which confidence is right on average: a line through the logarithms, of holes a plane, by least
    squares over bins with as many pixels each, so that the few pixels of large spread count.

    Args:
        spreads: (N,), of pixels, in 255ths.
        right: (N,), the share of a pixel's values that are within `WITHIN` 255ths of the truth.
        depths: (N,), in holes how far the pixels are from what is known; they are binned by that first, into a fifth of
            `bins`. None: not in holes.

    Returns: (scale, power), in holes (scale, power, deepening), neither exponent below 0.
    """
    layers = [np.arange(len(spreads))]
    if depths is not None:
        layers = np.array_split(np.argsort(depths, kind="stable"), max(bins // 5, 2))
    parts = [part for layer in layers
             for part in np.array_split(layer[np.argsort(np.asarray(spreads)[layer], kind="stable")], bins)]
    given = [spreads] if depths is None else [spreads, depths]
    x = np.log([[np.maximum(values[part], _LEAST).mean() for values in given] for part in parts])
    half = 0.5 * len(parts) / len(spreads)  # of a pixel: no bin is all right or all wrong
    share = np.array([np.mean(right[part]) for part in parts]).clip(half, 1 - half)
    y = np.log(-WITHIN / np.log(1 - share))
    # The exponents of what varies; the least squares of the others are 0, the smallest.
    exponents = np.linalg.lstsq(x - x.mean(0), y - y.mean(), rcond=1e-6)[0].clip(0)
    return (float(np.exp(y.mean() - exponents @ x.mean(0))), *map(float, exponents))


def unsure(spread, hole):
    """Where a region is to be made again: float32 (1, H, W), 1 where samples are more than `DOUBTFUL` apart, with the
    pixels around, in the hole (1, H, W)."""
    doubtful = np.uint8((spread > DOUBTFUL) & (hole[0] > 0))
    return np.float32(cv2.dilate(doubtful, np.ones((2 * _BLUR + 1,) * 2, np.uint8)) * (hole[0] > 0))[None]
