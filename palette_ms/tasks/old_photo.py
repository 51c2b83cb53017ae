"""Old photos: the source has what time and scanning do to a print, several damages at once."""

from dataclasses import dataclass
from typing import Tuple

import cv2
import numpy as np

from palette_ms.tasks.deblurring import gaussian_kernel
from palette_ms.tasks.jpeg_restoration import jpeg
from palette_ms.tasks.masks import MASKS
from palette_ms.tasks.task import Task, option


@dataclass(frozen=True)
class OldPhoto(Task):
    """Blurred, faded and turned yellowish, grainy, scratched (no mask says where), then saved as JPEG. What has not
    faded, no grain and the like are among it, so that good photos come out as they are."""

    name = "old_photo"
    needs_rgb = True
    # How faded a print is shows in no small part: of 1200 × 800 pixels tiles of 64 gave 22.7 dB, of 512 25.8.
    looks_far = True

    blur: Tuple[float, float] = option((0.3, 1.2), "deviation of a Gaussian, in pixels, drawn evenly", above=0)
    fading: Tuple[float, float] = option((0.0, 0.5), "share of the contrast that is lost, drawn evenly", least=0,
                                         most=1)
    cast: Tuple[float, float] = option((0.0, 0.2), "share of the blue that is lost, drawn evenly", least=0, most=1)
    grain: Tuple[float, float] = option((0.0, 20.0), "deviation of the noise, in 255ths of the range, drawn evenly",
                                        least=0)
    scratched: float = option(0.5, "share of the pictures with scratches", least=0, most=1)
    quality: Tuple[int, int] = option((40, 95), "lowest and highest of JPEG, drawn evenly", least=1, most=100)

    def pair(self, y_0, rng):
        kernel = gaussian_kernel(rng.uniform(*self.blur))
        y = cv2.filter2D(y_0.transpose(1, 2, 0), -1, kernel, borderType=cv2.BORDER_REFLECT_101).transpose(2, 0, 1)
        y = faded(y, rng.uniform(*self.fading), rng.uniform(*self.cast))
        # Of the print's silver, alike in all channels, and some of the scanner's own.
        silver, own = rng.standard_normal(y.shape[1:], np.float32), rng.standard_normal(y.shape, np.float32)
        y = y + np.float32(rng.uniform(*self.grain) / 127.5) * (0.9 * silver + 0.44 * own)
        if rng.random() < self.scratched:
            marks = MASKS["scratches"](rng, *y.shape[1:])
            # Where the layer is gone the paper shows; dirt is dark.
            y = np.where(marks > 0, np.float32(rng.uniform(0.5, 1) * (1 if rng.random() < 0.8 else -1)), y)
        return jpeg(np.clip(y, -1, 1), int(rng.integers(self.quality[0], self.quality[1] + 1))), None


def faded(y, fading, cast):
    """A picture (3, H, W) in [−1, 1] with its darks lifted towards light gray and its blue lowered.

    Args:
        fading: share of the contrast that is lost, from 0 to 1.
        cast: share of the blue, from 0 (black) to full, that is lost.
    """
    paper = np.float32(0.6)
    y = (1 - fading) * y + fading * paper
    loss = np.float32(cast) * np.array([0, 0.3, 1], np.float32)[:, None, None]
    return ((1 - loss) * (y + 1) - 1).astype(np.float32)
