"""What the network predicts: ε, v or x̂₀, and how ŷ₀ follows from it.

y_t = √γ y₀ + √(1−γ) ε (Palette, eq. 2). The three targets are linear in (y₀, ε), and ŷ₀ is linear in (y_t, output):
    eps   ε                              ŷ₀ = (y_t − √(1−γ) ε̂) / √γ
    v     √γ ε − √(1−γ) y₀               ŷ₀ = √γ y_t − √(1−γ) v̂        (Salimans & Ho 2022, section 4)
    x0    y₀                             ŷ₀ = output
"""

import numpy as np

PREDICTIONS = ("eps", "v", "x0")


def check(prediction):
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
    """(a, b), float64 arrays like `gammas`, such that ŷ₀ = a · y_t + b · output at each noise level."""
    signal, noise = np.sqrt(gammas), np.sqrt(1 - gammas)
    if prediction == "eps":
        return 1 / signal, -noise / signal
    if prediction == "v":
        return signal, -noise
    return np.zeros_like(gammas), np.ones_like(gammas)
