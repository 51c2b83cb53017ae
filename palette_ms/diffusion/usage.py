"""How a trained model is best used for a task: what a checkpoint says where its user says nothing."""

from dataclasses import dataclass
from typing import Literal, Optional

from palette_ms.diffusion.solvers import SOLVERS
from palette_ms.diffusion.worth import Worth


@dataclass(frozen=True)
class Usage:
    """Sampler and number of calls for a task; `python -m palette_ms.tune` measures them and writes them into a
    checkpoint. By default what suits a model that nothing is known of, see docs/sampling.md.

    Few calls give the mean of what the source leaves open: faithful, and smooth where it leaves much open. More calls
    decide for one of it: more texture, further from the original on average (Blau & Michaeli 2018, arXiv 1711.06077).

    Attributes:
        sampler: one of `palette_ms.diffusion.solvers.SOLVERS`.
        steps: network calls of the most faithful result.
        detailed_steps: network calls of a result that has as much detail as photos have; None: not known.
        flips: of the most faithful result, see `palette_ms.diffusion.samplers.Sampling`.
        bfloat16: its pictures stay within 45 dB of those in float32 where the network is rounded to bfloat16, which
            some processors compute twice as fast.
        worth: says how many calls a picture is worth, where that was learned, see `palette_ms.diffusion.worth`.
        tile: side of tiles in pixels, see `palette_ms.Palette.restore`; None: whole pictures, as far as they fit.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> usage = Usage("ddim", steps=1, detailed_steps=16)
        >>> [usage.calls("ddim", detail, longest=1000) for detail in (0, 0.5, 1)]
        [1, 4, 16]
    """

    sampler: Literal[tuple(SOLVERS)] = "dpmpp_2m"
    steps: int = 20
    detailed_steps: Optional[int] = None
    flips: Literal[1, 2, 4] = 1
    bfloat16: bool = False
    tile: Optional[int] = None
    worth: Optional[Worth] = None

    def __post_init__(self):
        for name in ("steps", "detailed_steps", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"usage.{name} must be at least 1, not {value}")

    def calls(self, sampler: str, detail: float, longest: int) -> Optional[int]:
        """The number of network calls where none is asked for.

        Args:
            sampler: the one that is used. ddpm is the paper's, whose chain is run as a whole where the checkpoint does
                not say otherwise; the others are made for short chains.
            detail: from 0, `steps`, to 1, `detailed_steps`, in equal factors; where these are not known two calls,
                since pictures of one hardly differ.
            longest: calls of the whole chain.

        Returns: int, or None: the whole chain.
        """
        if sampler != self.sampler:
            return None if sampler == "ddpm" else min(Usage.steps, longest)
        most = self.detailed_steps or max(self.steps, 2)
        return min(round(self.steps * (most / self.steps) ** detail), longest)
