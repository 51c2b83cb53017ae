"""How many network calls a picture is worth: learned from a checkpoint's own chains, by `python -m palette_ms.tune
--predict-steps`, and asked for with `steps="auto"`.

What is known of a picture after one call is put into a few numbers; from these, a linear function says what each larger
number of calls would gain in PSNR.
"""

from dataclasses import dataclass
from typing import Tuple

import cv2
import numpy as np

# In dB. What lies closer to the best is taken for chance, and fewer calls are taken instead.
ALIKE = 0.02
_RIDGE = 1.0  # pictures that a weight's being 0 counts as much as


@dataclass(frozen=True)
class Worth:
    """The linear function, as a checkpoint holds it for a task.

    Attributes:
        counts: numbers of calls above one, ascending.
        mean, deviation: of each of `features`, by which they are put on one scale.
        weights: for each count, a constant and a weight for each feature: dB over one call.

    Raises:
        ValueError: lengths that do not go together.
    """

    counts: Tuple[int, ...]
    mean: Tuple[float, ...]
    deviation: Tuple[float, ...]
    weights: Tuple[Tuple[float, ...], ...]

    def __post_init__(self):
        if (len(self.counts) != len(self.weights) or list(self.counts) != sorted(set(self.counts))
                or min(self.counts, default=2) < 2 or len(self.mean) != FEATURES or len(self.deviation) != FEATURES
                or any(len(row) != FEATURES + 1 for row in self.weights) or min(self.deviation) <= 0):
            raise ValueError("worth: counts, weights, mean and deviation do not go together")

    def calls(self, features) -> int:
        """The fewest calls whose gain is said to be within `ALIKE` of the largest. features: (FEATURES,)."""
        gains = np.array([0.0, *np.array(self.weights) @ _row(features, self.mean, self.deviation)])
        return (1, *self.counts)[int(np.argmax(gains >= gains.max() - ALIKE))]


FEATURES = 4


def features(cond, made, hole):
    """What is known of a picture after one call: the logarithms of its fine detail, of its contrast, of how far the
    call went from the source, and of the share that was made.

    Args:
        cond: (C, H, W), the source as the network sees it.
        made: (C', H, W), the call's answer.
        hole: (1, H, W).

    Returns: float64 (FEATURES,).
    """
    where = hole[0] > 0
    moved = made - cond if made.shape == cond.shape else np.zeros_like(made)
    sizes = [np.abs(cv2.Laplacian(np.ascontiguousarray(channel), cv2.CV_32F))[where].mean() for channel in made]
    found = np.mean(sizes), made[:, where].std(), np.sqrt(np.mean(moved[:, where] ** 2)), where.mean()
    return np.log(np.array(found, float) + 1e-3)


def learned(counts, features, gains):
    """`Worth` by ridge regression.

    Args:
        counts: of calls, above one, ascending.
        features: (N, FEATURES) of pictures.
        gains: (N, len(counts)), PSNR over that of one call, in dB.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    rows = np.stack([_row(one, mean, deviation) for one in features])
    penalty = _RIDGE * np.diag([0.0] + [1.0] * features.shape[1])
    weights = np.linalg.solve(rows.T @ rows + penalty, rows.T @ gains).T
    return Worth(tuple(counts), *(tuple(map(float, values)) for values in (mean, deviation)),
                 tuple(tuple(map(float, row)) for row in weights))


def cross_validated(counts, features, gains):
    """(gain in dB, calls) a picture, on average, where each half of the pictures is judged by the other half."""
    totals = []
    for half in (0, 1):
        worth = learned(counts, features[half::2], gains[half::2])
        for one, gain in zip(features[1 - half::2], gains[1 - half::2]):
            calls = worth.calls(one)
            totals.append((0.0 if calls == 1 else gain[worth.counts.index(calls)], calls))
    gain, calls = np.mean(totals, 0)
    return float(gain), float(calls)


def _row(features, mean, deviation):
    return np.append(1.0, (np.asarray(features) - mean) / deviation)
