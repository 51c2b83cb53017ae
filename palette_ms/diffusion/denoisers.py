"""Denoisers around a network, called as samplers call one: denoiser(source ‖ y_t, time), with arrays. Those that are
compiled with their network are in `palette_ms.diffusion.cells`."""

import numpy as np

from palette_ms.diffusion.guidance import Guidance


def is_cell(denoiser):
    """Whether it is one of MindSpore's Cells, which take Tensors, rather than a function of arrays."""
    return hasattr(denoiser, "construct")


def on_arrays(denoiser):
    """A denoiser as a function of arrays; a Cell is handed Tensors."""
    if not is_cell(denoiser):
        return denoiser
    from mindspore import Tensor

    def answer(*inputs):
        made = denoiser(*(None if array is None else Tensor(np.ascontiguousarray(array)) for array in inputs))
        return tuple(one.asnumpy() for one in made) if isinstance(made, tuple) else made.asnumpy()

    return answer


def labelled(unet, labels):
    """A network with its labels, classes or tasks, filled in.

    Args:
        unet: called as unet(x, time, label).
        labels: (K,), whole numbers; of more pictures they come again.
    """
    return lambda x, time: unet(x, time, np.resize(np.int32(labels), len(x)))


class Told:
    """As `palette_ms.diffusion.cells.ToldUNet`."""

    def __init__(self, unet, text=None, source_noise=None, halves=False):
        self.unet, self.halves = unet, halves
        self.tell(text, source_noise)

    def tell(self, text=None, source_noise=None):
        self.text, self.source_noise = text, source_noise

    def __call__(self, x, time, label=None):
        text, noise = self.text, self.source_noise
        if text is not None:
            given = len(x) // 2 if self.halves else len(x)
            text = np.broadcast_to(text, (given, *text.shape[1:])).astype(np.float32)
            text = np.concatenate((text, np.zeros_like(text))) if self.halves else text
        if noise is not None:
            noise = np.resize(np.float32(noise), len(x))
        return self.unet(x, time, label, None, text, noise)


def guided(unet, guidance, channels=3, gammas=None, by_text=False):
    """As `palette_ms.diffusion.cells.GuidedUNet`.

    Args:
        unet: called with 2 N pictures.
        guidance: w ≥ 1, or a `palette_ms.diffusion.guidance.Guidance`.
        channels: of the noisy picture.
        gammas: (T,), γ of the steps that the network is told, the least noisy first; None: it is told γ.
        by_text: the source is kept.
    """
    guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)

    def weight(time):
        gamma = time if gammas is None else gammas[np.int64(time)]
        return np.reshape(guidance.at(gamma), (-1, 1, 1, 1))

    def answer(x, time):
        second = x if by_text else np.concatenate((np.zeros_like(x[:, :-channels]), x[:, -channels:]), 1)
        given, without = np.split(unet(np.concatenate((x, second)), np.concatenate((time, time))), 2)
        guided = given[:, :channels] + np.float32(weight(time) - 1) * (given - without)[:, :channels]
        return np.concatenate((guided, given[:, channels:]), 1)

    return answer


def flipped(unet, count):
    """As `palette_ms.diffusion.cells.FlippedUNet`."""
    def answer(x, time):
        total = unet(x, time)
        for axes in ((3,), (2,), (2, 3))[:count - 1]:
            total = total + np.flip(unet(np.flip(x, axes), time), axes)
        return total / np.float32(count)

    return answer


class ReusingUNet:
    """A network whose coarser levels work in one call of several only, for one chain (Ma et al. 2023, arXiv 2312.00858:
    DeepCache). What they say changes little from one noise level of a chain to the next; the finest level, which the
    picture's detail depends on, works in every call.

    Args:
        whole: called as whole(x, time[, label]) → (output, deep), such as `palette_ms.unet.unet.DeepFeatures`.
        finest: called as finest(deep, x, time[, label]) → output, such as `palette_ms.unet.unet.FinestLevel`.
        interval: the calls that share deep features, 1 with the next interval − 1.
    """

    def __init__(self, whole, finest, interval):
        self.whole = on_arrays(whole)
        self.finest = on_arrays(finest)
        self.interval = interval
        self.calls = 0

    def __call__(self, x, time, *label):
        if self.calls % self.interval == 0:
            output, self.deep = self.whole(x, time, *label)
        else:
            output = self.finest(self.deep, x, time, *label)
        self.calls += 1
        return output
