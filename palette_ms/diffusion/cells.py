"""What MindSpore compiles of sampling and training around a network: preconditioning, labels, guidance, whole chains.

The same as functions of arrays, for networks in other runtimes, are in `palette_ms.diffusion.preconditioning`,
`denoisers` and `samplers`; the tests hold each to the other.
"""

import math

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from palette_ms.diffusion.guidance import Guidance
from palette_ms.diffusion.preconditioning import SOURCE_STD, needed
from palette_ms.diffusion.process import scale
from palette_ms.diffusion.samplers import BASE, ENDS, LIMIT, NEXT, TIME, A, B


class Preconditioned(nn.Cell):
    """A network as the process calls it: told the noise as it is to be, its inputs and output scaled and shifted.

    Args:
        network: `palette_ms.unet.UNet`, or another with its `answer` and `out_channels`.
        from_source: see `palette_ms.diffusion.preconditioning`; source and picture have `out_channels` channels each. A
            new network says its source, and a short training need not learn first how far y_t can be trusted at each
            noise level.
        noise_input: what the network is told: "value", γ itself as in the paper, or "angle". The network's sinusoids
            hardly tell γ = 0.01 from 0.05, where the gain 1/√γ on y_t that it has to apply differs by a factor of two;
            the angle spreads these levels out.
        process: "palette", "resshift" or "i2sb".

    Inputs: as the network's; gamma (N,) is the noise level in (0, 1]. Output: as the network's.
    """

    def __init__(self, network, from_source=False, noise_input="value", process="palette"):
        super().__init__()
        self.network = network
        self.channels = network.out_channels
        self.from_source = from_source
        self.tells_angle = noise_input == "angle"
        self.process = process
        self.sees_source = from_source or process != "palette"

    def construct(self, x, gamma, label=None, dropout=None, text=None, source_noise=None):
        return self.answer(x, gamma, label, dropout, None, text, source_noise)[0]

    def answer(self, x, gamma, label=None, dropout=None, deep=None, text=None, source_noise=None):
        """The output, and the network's deep features, see `palette_ms.unet.unet.UNet.answer`."""
        told = 2000 / math.pi * ops.acos(ops.sqrt(gamma)) if self.tells_angle else gamma
        if not self.sees_source:
            return self.network.answer(x, told, label, dropout, deep, text, source_noise)
        source, y_t, level = x[:, :self.channels], x[:, self.channels:], gamma.reshape((-1, 1, 1, 1))
        distance = y_t - ops.sqrt(level) * source
        if self.process == "palette":
            seen = ops.sqrt(level) * SOURCE_STD / (level * SOURCE_STD**2 + 1 - level) * distance
        else:
            seen = source + scale(self.process, level, ops.sqrt) * distance
        said, deep = self.network.answer(ops.concat((source, seen), 1), told, label, dropout, deep, text, source_noise)
        return source + SOURCE_STD * said if self.from_source else said, deep


def precondition(network, diffusion):
    """A network as a process calls it: the network itself where there is nothing to scale, shift or tell otherwise.

    Args:
        network: `palette_ms.unet.UNet`.
        diffusion: `palette_ms.config.DiffusionConfig`.
    """
    if needed(diffusion):
        return Preconditioned(network, diffusion.from_source, diffusion.noise_input, diffusion.process)
    return network


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


class ToldUNet(nn.Cell):
    """A network with what it is told of the source and by a text filled in. Other texts and levels of the same shapes
    are told without compiling anew.

    Args:
        unet: called as unet(x, time, label, dropout, text, source_noise).
        text: (N, L, C), or (1, L, C) for all pictures, see `palette_ms.unet.text`; None: the network takes none.
        source_noise: (N,), or (1,) for all pictures; None: the network is not told it.
        halves: the second half of the pictures is told no text, as `GuidedUNet` has them.
    """

    def __init__(self, unet, text=None, source_noise=None, halves=False):
        super().__init__()
        self.unet = unet
        self.halves = halves
        self.has_text, self.has_noise = text is not None, source_noise is not None
        for name, array in (("told_text", text), ("told_noise", source_noise)):
            if array is not None:
                setattr(self, name, Parameter(Tensor(np.float32(array)), name=name, requires_grad=False))

    def tell(self, text=None, source_noise=None):
        """Another text or level, of the shapes that it was made with."""
        for name, array in (("told_text", text), ("told_noise", source_noise)):
            if array is not None:
                ops.assign(getattr(self, name), Tensor(np.float32(array)))  # set_data is not seen by compiled graphs

    def construct(self, x, time, label=None):
        count, text, noise = x.shape[0], None, None
        if self.has_text:
            given = count // 2 if self.halves else count
            text = ops.broadcast_to(self.told_text, (given,) + self.told_text.shape[1:])
            if self.halves:
                text = ops.concat((text, ops.zeros_like(text)))
        if self.has_noise:
            noise = ops.tile(self.told_noise, (count // self.told_noise.shape[0],))
        return self.unet(x, time, label, None, text, noise)


class Exported(nn.Cell):
    """A network called with the inputs that it takes alone, in order, as exported files are: x, gamma, and what there
    is of label, text and source_noise.

    Args:
        unet: called as unet(x, gamma, label, dropout, text, source_noise).
        model: `palette_ms.unet.config.ModelConfig`.
    """

    def __init__(self, unet, model):
        super().__init__()
        self.unet = unet
        places, count = [], 0
        for takes in (model.num_classes is not None, model.text_channels is not None, model.source_noise):
            places.append(count if takes else -1)
            count += takes
        self.label, self.text, self.noise = places

    def construct(self, x, gamma, *rest):
        label = rest[self.label] if self.label >= 0 else None
        text = rest[self.text] if self.text >= 0 else None
        noise = rest[self.noise] if self.noise >= 0 else None
        return self.unet(x, gamma, label, None, text, noise)


class GuidedUNet(nn.Cell):
    """Classifier-free guidance by the source (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, whose w is ours − 1), or by
    a text.

    The network answers twice, in one batch of 2 N: with the source, and with 0 in its place, as in training where
    sources are left out; by a text, twice with the source, of which a `ToldUNet` within tells but the first its text. A
    learned variance stays that with the source or the text.

    Args:
        unet: the network, or a `LabelledUNet` or `ToldUNet` for 2 N pictures.
        guidance: w ≥ 1, 1 is the answer with the source or the text alone; or a
            `palette_ms.diffusion.guidance.Guidance`.
        channels: of the noisy picture.
        gammas: (T,), γ of the steps that the network is told, the least noisy first; None: it is told γ.
        by_text: the source is kept.
    """

    def __init__(self, unet, guidance, channels=3, gammas=None, by_text=False):
        super().__init__()
        self.by_text = by_text
        self.unet = unet
        self.guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        self.gammas = None if gammas is None else Tensor(gammas, mstype.float32)
        self.channels = channels

    def construct(self, x, time):
        without = x
        if not self.by_text:
            source, y_t = x[:, :-self.channels], x[:, -self.channels:]
            without = ops.concat((ops.zeros_like(source), y_t), 1)
        x = ops.concat((x, without))
        given, without = ops.chunk(self.unet(x, ops.concat((time, time))), 2, 0)
        guided = given[:, :self.channels] + (self.weight(time) - 1) * (given - without)[:, :self.channels]
        return guided if given.shape[1] == self.channels else ops.concat((guided, given[:, self.channels:]), 1)

    def weight(self, time):
        """w at each picture's noise level."""
        if self.guidance.is_constant:
            return self.guidance.weight
        gamma = time if self.gammas is None else ops.gather(self.gammas, ops.cast(time, mstype.int32), 0)
        return self.guidance.at(gamma, ops.asin, ops.sqrt).reshape((-1, 1, 1, 1))


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


class Update(nn.Cell):
    """`palette_ms.diffusion.samplers.Chain.update`, of whose chain the arguments are."""

    def __init__(self, clip, dynamic, learned, stops):
        super().__init__()
        self.clip = clip
        self.dynamic = dynamic
        self.learned = learned
        self.stops = stops

    def construct(self, output, y, base, last, older, finished, mask, known, rank, noise, row):
        row = ops.unbind(row)  # at once: indexing a Tensor takes long to compile
        y_0, scale = self.answer(output, y, mask, rank, row)
        return self.move(y_0, scale, y, base, last, older, finished, mask, known, noise, row)

    def answer(self, output, y, mask, rank, row):
        """(ŷ₀, logarithm of what the noise is multiplied by) of a network's answer; arguments as of `construct`, the
        row unbound. The logarithm is that of a learned variance's deviation, like ŷ₀, or else 0."""
        scale = ops.zeros((1, 1, 1, 1), y.dtype)
        if self.learned:
            output, place = ops.chunk(output, 2, 1)
            place = (place + 1) / 2
            scale = (1 - place) * row[ENDS] + place * row[ENDS + 1]
        return self.bound(row[A] * y + row[B] * output, mask, rank), scale

    def move(self, y_0, scale, y, base, last, older, finished, mask, known, noise, row):
        """What `construct` gives, from what `answer` gave."""
        if self.learned:
            noise = noise * ops.exp(scale)
        following = (row[NEXT] * y + row[NEXT + 1] * base + row[NEXT + 2] * y_0 + row[NEXT + 3] * last
                     + row[NEXT + 4] * older + row[NEXT + 5] * noise)
        base = (row[BASE] * y + row[BASE + 1] * base + row[BASE + 2] * y_0 + row[BASE + 3] * last
                + row[BASE + 4] * older)
        if self.stops:
            squares = ops.sum(mask * (y_0 - last) ** 2, (1, 2, 3), True)
            pixels = ops.maximum(ops.sum(mask * ops.ones_like(y_0), (1, 2, 3), True), ops.ones_like(finished))
            still = ops.cast(squares < row[LIMIT] * ops.abs(row[LIMIT]) * pixels, y.dtype)
            following = still * y_0 + (1 - still) * following
            following = finished * y + (1 - finished) * following
            finished = ops.maximum(finished, still)
        return mask * following + (1 - mask) * known, base, y_0, last, finished

    def bound(self, y_0, mask, rank):
        """ŷ₀ clipped or thresholded."""
        if self.dynamic:
            sizes = ops.where(mask > 0, ops.abs(y_0), -ops.ones_like(y_0)).reshape((y_0.shape[0], -1))
            largest = ops.gather_elements(ops.topk(sizes, sizes.shape[1])[0], 1, rank).reshape((-1, 1, 1, 1))
            largest = ops.maximum(largest, ops.ones_like(largest))
            return ops.minimum(ops.maximum(y_0, -largest), largest) / largest
        return ops.clamp(y_0, -1, 1) if self.clip else y_0


class CompiledChain(nn.Cell):
    """The loop over network calls, compiled with its denoiser into one graph that serves every solver and number of
    steps; else as `palette_ms.diffusion.samplers.Chain`.

    Args:
        unet: the denoiser, a Cell.
        clip, dynamic, learned, stops: see `palette_ms.diffusion.samplers.Chain`.
    """

    block = 16

    def __init__(self, unet, clip=True, dynamic=False, learned=False, stops=False):
        super().__init__()
        self.unet = unet
        self.update = Update(clip, dynamic, learned, stops)
        self.stops = stops

    def construct(self, y, base, last, older, finished, cond, mask, known, rank, noise, rows, count):
        """`count` calls, at the rows of `rows`, with noise[i] for the i-th; the first five inputs, moved on."""
        i = ops.zeros_like(count)
        moving = ops.ones_like(count)
        while i < count * moving:
            row = rows[i]
            x = y if cond is None else ops.concat((cond, y), 1)
            output = self.unet(x, ops.broadcast_to(row[TIME], (y.shape[0],)))
            y, base, last, older, finished = self.update(output, y, base, last, older, finished, mask, known, rank,
                                                         noise[i], row)
            if self.stops:
                moving = ops.cast(ops.sum(1 - finished) > 0, count.dtype)
            i = i + 1
        return y, base, last, older, finished

    @staticmethod
    def take(array):
        """An array as `launch` takes it."""
        return Tensor(array)

    def launch(self, state, cond, mask, known, rank, noise, rows, count):
        """`construct` on what `take` made, and arrays."""
        return self(*state, cond, mask, known, rank, Tensor(noise), Tensor(rows), Tensor(count, mstype.int32))

    def step(self, y_t, cond, noise, row):
        """y_{t−1} of y_t alone, without a mask."""
        row, everywhere, nothing = Tensor(row), ops.ones((1, 1, 1, 1)), ops.zeros_like(y_t)
        x = y_t if cond is None else ops.concat((cond, y_t), 1)
        output = self.unet(x, ops.broadcast_to(row[TIME], (y_t.shape[0],)))
        return self.update.construct(output, y_t, nothing, nothing, nothing, None, everywhere, nothing, None, noise,
                                     row)[0]


class WholeChain(nn.Cell):
    """A sampler's chain as one function of Tensors, its numbers within, to be exported.

    Args:
        sampler: `Sampler` around a Cell, without dynamic threshold.
        has_source: whether its network takes one.

    Attributes:
        inputs: their names in order. y_T (N, 3, H, W), what the chain starts from; where the network takes a source,
            cond (N, 3, H, W), mask (N, 1, H, W), 1 where pixels are to be made, and y_0 (N, 3, H, W), which holds the
            others; where the sampler adds noise, noise (`num_steps`, N, 3, H, W), standard normal.

    Output: y_0 (N, 3, H, W).
    """

    def __init__(self, sampler, has_source):
        super().__init__()
        self.chain = sampler.chain
        self.table = Tensor(sampler.table)
        self.num_steps = sampler.num_steps
        self.has_source, self.is_noisy = has_source, any(sampler.noisy)
        self.inputs = ["y_T", *["cond", "mask", "y_0"] * has_source, *["noise"] * self.is_noisy]

    def construct(self, y_T, *rest):
        zeros, nothing = ops.zeros_like(y_T), ops.zeros((1, 1, 1, 1), y_T.dtype)
        cond, mask, known = None, ops.ones_like(nothing), nothing
        if self.has_source:
            cond, mask, known = rest[:3]
        noise = rest[-1] if self.is_noisy else ops.zeros((self.num_steps, 1, 1, 1, 1), y_T.dtype)
        finished = ops.zeros((y_T.shape[0], 1, 1, 1), y_T.dtype)
        count = ops.zeros((), mstype.int32) + self.num_steps
        return self.chain(y_T, y_T, zeros, zeros, finished, cond, mask, known, None, noise, self.table, count)[0]
