"""One picture of several samples. All are float32 (S, C, H, W) in [−1, 1]."""

import cv2
import numpy as np

MIXES = ("mean", "median", "agreement", "score")
_BLUR = 2  # deviation, in pixels, of the window in which samples are compared
_SHARE = 0.5  # of the samples' mean distance from their median, at which one counts half


def mix(samples, how, scores=None):
    """The mixed picture, (C, H, W).

    Args:
        samples: two or more.
        how: "mean"; "median" of each value; "agreement", the mean weighted, pixel by pixel, by how near each sample is
            to the median there; "score", the mean weighted, picture by picture, by `scores`.
        scores: (S,) in dB, for "score": one that is better by 3 dB counts twice.

    Raises:
        ValueError: an unknown way.
    """
    if how == "mean":
        return samples.mean(0)
    if how == "median":
        return np.median(samples, 0).astype(np.float32)
    if how == "agreement":
        away = np.mean((samples - np.median(samples, 0)) ** 2, 1)
        away = np.stack([cv2.GaussianBlur(one, (0, 0), _BLUR) for one in np.float32(away)])
        weights = 1 / (away + _SHARE * away.mean(0) + 1e-6)
        weights = weights[:, None]
    elif how == "score":
        weights = 10 ** ((np.asarray(scores) - np.max(scores)) / 10).reshape(-1, 1, 1, 1)
    else:
        raise ValueError(f"unknown mix {how!r}: {', '.join(MIXES)}")
    return np.float32((weights * samples).sum(0) / weights.sum(0))
