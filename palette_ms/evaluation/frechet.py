"""Fréchet distance and Inception score: numbers about a set of pictures, from what Inception says of each."""

from typing import Tuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from palette_ms.data.files import replacing
from palette_ms.errors import UserError


def statistics(features: ArrayLike) -> Tuple[np.ndarray, np.ndarray]:
    """(mean (d,), covariance (d, d)) of features (N, d), float64, the covariance over N − 1.

    Raises:
        UserError: fewer than two.

    Examples:
        >>> mean, covariance = statistics([[0.0, 1.0], [2.0, 1.0]])
        >>> mean.tolist(), covariance.tolist()
        ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise UserError(f"FID needs two pictures or more, and there is {len(features)}")
    return features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], features.shape[1])


def frechet_distance(mean_a: ArrayLike, covariance_a: ArrayLike, mean_b: ArrayLike,
                     covariance_b: ArrayLike) -> float:
    """‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    The trace of the root is that of the symmetric (Σ_a^½ Σ_b Σ_a^½)^½, by its eigenvalues, which but for rounding are
    not negative. So nothing need be added to a covariance that is singular, as that of few samples is.

    Args:
        mean_a, mean_b: (d,).
        covariance_a, covariance_b: (d, d).

    Examples:
        Of two normal distributions on a line, (μ_a − μ_b)² + (σ_a − σ_b)²:

        >>> round(frechet_distance([0.0], [[4.0]], [3.0], [[1.0]]), 9)
        10.0
    """
    covariance_a, covariance_b = np.asarray(covariance_a), np.asarray(covariance_b)
    values, vectors = linalg.eigh(covariance_a)
    root = vectors * _roots(values) @ vectors.T
    cross = _roots(linalg.eigvalsh(root @ covariance_b @ root)).sum()
    difference = np.subtract(mean_a, mean_b)
    return float(difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def _roots(values):
    """Of eigenvalues, those that are rounding alone taken for 0: the roots of hundreds of them would add up."""
    return np.sqrt(np.where(values > values.max() * len(values) * np.finfo(float).eps, values, 0))


def inception_score(logits: ArrayLike, splits: int = 10) -> Tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) (Salimans et al. 2016, arXiv 1606.03498, section 4), in parts of the pictures.

    Args:
        logits: (N, classes), in random order; those of the authors' code have no bias.
        splits: parts, of as many pictures each but for one; no more than there are pictures.

    Returns: (mean, standard deviation) over the parts.

    Examples:
        Sure of each picture, and of another class in each, it is the number of classes; never sure, 1:

        >>> round(inception_score(100 * np.eye(4), splits=1)[0], 6)
        4.0
        >>> round(inception_score(np.zeros((4, 4)), splits=1)[0], 6)
        1.0
    """
    logits = np.asarray(logits, np.float64)
    logs = logits - logits.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    scores = []
    for part in np.array_split(logs, min(splits, len(logs))):
        p = np.exp(part)
        scores.append(np.exp((p * (part - np.log(p.mean(0)))).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def save_statistics(path, mean, covariance):
    """Write `.npz` with `mu` and `sigma`, which other programs for FID read too. Raises UserError: it cannot be."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, mu=mean, sigma=covariance)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def load_statistics(path):
    """(mean, covariance) of a `.npz` with `mu` and `sigma`.

    Raises:
        UserError: no such file, or it does not hold statistics.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            mean, covariance = (np.asarray(held[name], np.float64) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except Exception as error:  # of a damaged archive there are many kinds
        raise UserError(f"{path} is no .npz with mu and sigma: {' '.join(str(error).split())[:200]}") from None
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not np.isfinite(covariance).all():
        raise UserError(f"{path}: mu and sigma must be (d,) and (d, d), and are {mean.shape} and {covariance.shape}")
    return mean, covariance
