"""JPEG restoration: the source has the encoder's artefacts (Palette, section 4.4)."""

import io
from dataclasses import dataclass
from typing import Tuple

import numpy as np
from PIL import Image

from palette_ms.data.images import to_float, to_uint8
from palette_ms.tasks.task import Task, option


@dataclass(frozen=True)
class JpegRestoration(Task):
    """The source was encoded as JPEG, by libjpeg by way of Pillow with its usual chroma subsampling (4:2:0)."""

    name = "jpeg_restoration"
    needs_rgb = True

    quality: Tuple[int, int] = option((5, 30), "lowest and highest quality factor, drawn evenly", least=1, most=100)

    def pair(self, y_0, rng):
        return jpeg(y_0, int(rng.integers(self.quality[0], self.quality[1] + 1))), None


def jpeg(y_0, quality):
    """The picture, float32 (3, H, W) in [−1, 1], after JPEG at one quality factor, 1 to 100."""
    file = io.BytesIO()
    Image.fromarray(to_uint8(y_0)).save(file, "JPEG", quality=quality)
    return to_float(np.asarray(Image.open(file)))
