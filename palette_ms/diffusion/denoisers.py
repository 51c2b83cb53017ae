"""Denoisers around a network, called as samplers call one: denoiser(source ‖ y_t, time)."""

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype


class LabelledUNet(nn.Cell):
    """A network with its labels, classes or tasks, filled in.

    Args:
        unet: called as unet(x, time, label).
        labels: (N,), whole numbers.
    """

    def __init__(self, unet, labels):
        super().__init__()
        self.unet = unet
        self.labels = Tensor(labels, mstype.int32)

    def construct(self, x, time):
        return self.unet(x, time, self.labels)


class GuidedUNet(nn.Cell):
    """Classifier-free guidance by the source (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, whose w is ours − 1).

    The network answers twice, in one batch of 2 N: with the source, and with 0 in its place, as in training where
    sources are left out. A learned variance stays that with the source.

    Args:
        unet: the network, or a `LabelledUNet` for 2 N pictures.
        weight: w ≥ 1; 1 is the answer with the source alone.
        channels: of the noisy picture.
    """

    def __init__(self, unet, weight, channels=3):
        super().__init__()
        self.unet = unet
        self.weight = weight
        self.channels = channels

    def construct(self, x, time):
        source, y_t = x[:, :-self.channels], x[:, -self.channels:]
        x = ops.concat((x, ops.concat((ops.zeros_like(source), y_t), 1)))
        given, without = ops.chunk(self.unet(x, ops.concat((time, time))), 2, 0)
        guided = given[:, :self.channels] + (self.weight - 1) * (given - without)[:, :self.channels]
        return guided if given.shape[1] == self.channels else ops.concat((guided, given[:, self.channels:]), 1)


class FlippedUNet(nn.Cell):
    """The mean of what a network says of a picture and of its mirror images, turned back: Lim et al.'s geometric
    self-ensemble (2017, arXiv 1707.02921, section 3.4) without the transposed images, which would be of another size.

    A network was never told that a mirrored picture is to be restored alike, so its answers err differently.

    Args:
        unet: the network, or one of the Cells above.
        count: 2: left to right; 4: upside down and both, too.
    """

    def __init__(self, unet, count):
        super().__init__()
        self.unet = unet
        self.axes = ((3,), (2,), (2, 3))[:count - 1]

    def construct(self, x, time):
        total = self.unet(x, time)
        for axes in self.axes:
            total = total + ops.flip(self.unet(ops.flip(x, axes), time), axes)
        return total / (1 + len(self.axes))


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
        self.whole = whole
        self.finest = finest
        self.interval = interval
        self.calls = 0

    def __call__(self, x, time, *label):
        if self.calls % self.interval == 0:
            output, self.deep = self.whole(x, time, *label)
        else:
            output = self.finest(self.deep, x, time, *label)
        self.calls += 1
        return output
