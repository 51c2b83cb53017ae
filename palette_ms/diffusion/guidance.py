"""Classifier-free guidance's weight at each noise level (Ho & Salimans 2022, arXiv 2207.12598; w below is theirs + 1).

    w(γ) = 1 + (w − 1) f(γ)          where guidance is on, else 1

f is 1 for a constant weight. Guidance that grows as the picture comes out of the noise loses less variety for the same
obedience (Wang et al. 2024, arXiv 2404.13040): their linear f = 2 (1 − t/T) and cosine f = 1 + cos(π t/T), each with
mean 1. Their t/T is here the share of the cosine schedule that has this noise, t/T = 2/π · arccos √γ, whatever the
chain's own schedule and sampler, so that linear f = 4/π · arcsin √γ and cosine f = 2 γ.

Guidance may be on in an interval of noise levels alone (Kynkäänniemi et al. 2024, arXiv 2404.07724), by σ/α =
√((1 − γ)/γ), their σ: at high noise it drives all pictures to a few, and at low noise it hardly matters.
"""

import math
from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np

GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Guidance:
    """How strongly a chain is guided.

    Attributes:
        weight: w ≥ 1; 1 is off.
        schedule: f, one of `GUIDANCE_SCHEDULES`.
        interval: (least, most) σ/α between which guidance is on; None: everywhere.

    Examples:
        >>> Guidance(5.0, "cosine").at(np.array([0.25, 0.5, 1.0])).tolist()
        [3.0, 5.0, 9.0]
        >>> Guidance(5.0, interval=(0.5, 2.0)).at(np.array([0.1, 0.5, 0.9])).tolist()
        [1.0, 5.0, 1.0]
    """

    weight: float
    schedule: str = "constant"
    interval: Optional[Tuple[float, float]] = None

    @property
    def is_constant(self) -> bool:
        """Whether the weight is the same at all levels."""
        return self.schedule == "constant" and self.interval is None

    def at(self, gamma: Any, arcsin: Any = np.arcsin, sqrt: Any = np.sqrt) -> Any:
        """w(γ); gamma: an array, or, with the functions of its library, a Tensor."""
        share = {"constant": lambda: 1, "cosine": lambda: 2 * gamma,
                 "linear": lambda: 4 / math.pi * arcsin(sqrt(gamma))}[self.schedule]()
        if self.interval is not None:
            least, most = (1 / (1 + sigma**2) for sigma in reversed(self.interval))
            share = share * ((gamma >= least) * 1.0) * ((gamma <= most) * 1.0)
        return 1 + (self.weight - 1) * share
