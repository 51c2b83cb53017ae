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
OF_SAMPLE, OF_MIX = (2.83, 0.99), (2.91, 0.97)
# The same in holes, where samples agree more than they are right.
OF_SAMPLE_IN_HOLES, OF_MIX_IN_HOLES = OF_SAMPLE, OF_MIX
_LEAST = 0.1  # spread, which rounding hides below
_BLUR = 2  # deviation, in pixels, of the window in which spreads are taken together


def spread(samples):
    """The standard deviation of samples float32 (S, C, H, W) in [−1, 1] around their mean, in 255ths, of all channels
    together and averaged nearby: float32 (H, W). S must be 2 or more."""
    variance = np.var(samples, 0, ddof=1).mean(0)
    return 127.5 * np.sqrt(cv2.GaussianBlur(variance, (0, 0), _BLUR).clip(0))


def confidence(spread, law=OF_SAMPLE):
    """The chance that a value is within `WITHIN` 255ths of the truth: 1 − exp(−WITHIN/e) where errors have a Laplace
    distribution of the mean e = scale · spread^power, in 255ths.

    Args:
        spread: (H, W), see `spread`.
        law: (scale, power), see `law`, or what `calibrated` finds.

    Returns: as spread, from 0 to 1.
    """
    scale, power = law
    return (1 - np.exp(-WITHIN / (scale * np.maximum(spread, _LEAST) ** power))).astype(np.float32)


def law(mixed, in_hole):
    """(scale, power) for a sample or a mix, of a whole picture or in a hole, beside which something is known."""
    if in_hole:
        return OF_MIX_IN_HOLES if mixed else OF_SAMPLE_IN_HOLES
    return OF_MIX if mixed else OF_SAMPLE


def calibrated(spreads, right, bins=20):
    """The law by which confidence is right on average: a line through the logarithms, by least squares over bins with
    as many pixels each, so that the few pixels of large spread count.

    Args:
        spreads: (N,), of pixels, in 255ths.
        right: (N,), the share of a pixel's values that are within `WITHIN` 255ths of the truth.

    Returns: (scale, power), the power not below 0.
    """
    order = np.argsort(spreads, kind="stable")
    x, share = (np.array([part.mean() for part in np.array_split(np.asarray(values, float)[order], bins)])
                for values in (np.maximum(spreads, _LEAST), right))
    half = 0.5 * bins / len(order)  # of a pixel: no bin is all right or all wrong
    error = -WITHIN / np.log(1 - share.clip(half, 1 - half))
    x, y = np.log(x), np.log(error)
    power = max(0.0, np.polyfit(x, y, 1)[0]) if np.ptp(x) else 0.0
    return float(np.exp(y.mean() - power * x.mean())), float(power)


def unsure(spread, hole):
    """Where a region is to be made again: float32 (1, H, W), 1 where samples are more than `DOUBTFUL` apart, with the
    pixels around, in the hole (1, H, W)."""
    doubtful = np.uint8((spread > DOUBTFUL) & (hole[0] > 0))
    return np.float32(cv2.dilate(doubtful, np.ones((2 * _BLUR + 1,) * 2, np.uint8)) * (hole[0] > 0))[None]
