"""A chain that is guided: between the network's ŷ₀ and the solver's next picture stands what the given picture says.

The network is called in its own runtime, and the correction of ŷ₀ (`palette_ms.priors.methods`) with the solver's step
is a compiled graph of MindSpore's; but for dps, whose gradient goes through the network: there all is one.
"""

from dataclasses import dataclass
from typing import Tuple

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from palette_ms.diffusion.denoisers import on_arrays
from palette_ms.diffusion.samplers import LIMIT, NEXT, TIME
from palette_ms.priors import methods
from palette_ms.priors.degradations import Whole
from palette_ms.priors.losses import LOSSES, QUALITIES, smoothness

REFERENCE = 256  # side of the pictures that weights of losses are given for, those of the published checkpoint
_RATES = LIMIT + 1  # where the rates of signal and noise stand, behind a sampler's own numbers
_AT_ONCE = 8  # windows that the network sees in one call


@dataclass(frozen=True)
class Guiding:
    """How a given picture guides a chain.

    Attributes:
        prior: one of `palette_ms.priors.methods.METHODS`.
        scale: s, for gdp, of the loss between pictures in [0, 1], for 256 × 256: what is compared at another size has
            another share of all pixels, and counts by its pixels over 256².
        loss: L, one of `palette_ms.priors.losses.LOSSES`.
        quality: (name, weight λ) of each of `palette_ms.priors.losses.QUALITIES` that counts, of ŷ₀ in [−1, 1].
        at: "x0" (GDP-x₀) or "xt" (GDP-x_t): where the gradient is taken.
        variance: whether the shift is multiplied by the step's variance; the paper finds that it is better not.
        sigma: deviation of the noise in what is given, in units of [−1, 1], for ddnm and diffpir.
        zeta: for dps ζ′; for diffpir, the share ζ of fresh noise.
        strength: for diffpir, λ. Of Gaussian data, 1 came nearest to the posterior (docs/priors.md); the paper has 1 to
            25, by task.
        factor_rate, mask_rate: of a blind degradation, by which f and M follow their own gradients of the unscaled
            loss; M's is for 256 × 256, too.
        smoothness: weight of the smoothness of M, beside the unscaled loss that M follows.
    """

    prior: str = "gdp"
    scale: float = 2000.0
    loss: str = "mse"
    quality: Tuple[Tuple[str, float], ...] = ()
    at: str = "x0"
    variance: bool = False
    sigma: float = 0.0
    zeta: float = 1.0
    strength: float = 1.0
    factor_rate: float = 1.0
    mask_rate: float = 1.0
    smoothness: float = 0.0


class Windows:
    """A picture of height × width as overlapping windows of side × side, which a network sees one by one.

    Their corners lie `stride` apart, and the last ones where they just fit, also where there is one already, as in the
    released code of Fei et al. 2023: what comes twice counts twice.
    """

    def __init__(self, height, width, side, stride):
        rows, columns = ([*range(0, length - side + 1, stride), length - side] for length in (height, width))
        corners = [row * width + column for row in rows for column in columns]
        inside = np.arange(side)[:, None] * width + np.arange(side)
        self.count, self.side, self.shape = len(corners), side, (height, width)
        indices = (np.array(corners)[:, None, None] + inside).reshape(-1)
        self.indices = Tensor(indices, mstype.int32)
        self.times = Tensor(np.bincount(indices, minlength=height * width)[:, None].astype(np.float32))

    def cut(self, x):
        """(N, C, H, W) → (count · N, C, side, side), all pictures of a window one after the other."""
        n, c, h, w = x.shape
        taken = ops.gather(x.reshape((n, c, h * w)), self.indices, 2)
        return taken.reshape((n, c, self.count, self.side, self.side)).transpose(2, 0, 1, 3, 4).reshape(
            (self.count * n, c, self.side, self.side))

    def sew(self, x):
        """(count · N, C, side, side) → (N, C, H, W): means where windows overlap."""
        n, c = x.shape[0] // self.count, x.shape[1]
        rows = x.reshape((self.count, n, c, -1)).transpose(0, 3, 1, 2).reshape((len(self.indices), n * c))
        sums = ops.unsorted_segment_sum(rows, self.indices, self.shape[0] * self.shape[1])
        return (sums / self.times).transpose(1, 0).reshape((n, c, *self.shape))


class Guidance(nn.Cell):
    """What becomes of ŷ₀.

    Args:
        guiding: `Guiding`.
        degradations: a `palette_ms.priors.degradations.Degradation` for each given picture.
        exposures: of so many of them, the first ones, the given pictures are f · D(x) + M, in [0, 1], with f and M to
            be learned on the way, the same for all of them.
        windows: `Windows`, or None: the whole picture at once. Exposures are compared window by window where D is
            `Whole`; other degradations do not end at a window's edges, and are compared in the whole picture.
    """

    def __init__(self, guiding, degradations, exposures=0, windows=None):
        super().__init__()
        self.guiding, self.exposures, self.windows = guiding, exposures, windows
        self.degradations = nn.CellList(degradations)
        loss, qualities = LOSSES[guiding.loss], [(QUALITIES[name], weight) for name, weight in guiding.quality]
        self.weighed = None
        if len(degradations) > exposures or qualities:
            self.weighed = methods.Weighed(degradations[exposures:], loss, guiding.scale, qualities)
        self.pixelwise = windows is not None and all(isinstance(part, Whole) for part in degradations[:exposures])
        self.blind = nn.CellList([methods.Blind(degradation, loss) for degradation in degradations[:exposures]])

    def construct(self, x_0, y_t, noise, scale, given, learned, row, rates):
        """(ŷ₀, noise, learned).

        Args:
            x_0: ŷ₀; of windows, theirs (count · N, C, side, side).
            y_t, noise: (N, C, H, W).
            scale: logarithm of what the noise is multiplied by, see `palette_ms.diffusion.cells.Update`.
            given: a tuple, what is given for each of the degradations.
            learned: (f (N, 1, 1, 1), M (N, 1, h, w)), or (None, None) without exposures.
            row: of the sampler's table.
            rates: of signal and noise in y_t.
        """
        guiding = self.guiding
        w = self.weight(row)
        added = row[NEXT + 5] * ops.exp(scale)
        whole = x_0 if self.windows is None else self.windows.sew(x_0)
        if guiding.prior == "gdp":
            shift, learned = self.shift(x_0, whole, y_t, given, learned)
            return whole + (added**2 if guiding.variance else 1) * shift / w, noise, learned
        for i in range(len(given) - 1, -1, -1):  # the user's picture after what was made of it, so that it is kept
            if guiding.prior == "ddnm":
                whole, noise = methods.ddnm(whole, self.degradations[i], given[i], noise, guiding.sigma, w, added)
            else:
                whole = methods.diffpir(whole, self.degradations[i], given[i], guiding.sigma, rates[0], rates[1],
                                        guiding.strength)
        return whole, noise, learned

    def weight(self, row):
        """What ŷ₀ counts in the next picture."""
        return row[NEXT + 2] + row[NEXT + 3] + row[NEXT + 4]

    def shift(self, x_0, whole, y_t, given, learned):
        """(what the mean is moved by, learned)."""
        point = whole if self.guiding.at == "x0" else y_t
        area = point.shape[2] * point.shape[3] / REFERENCE**2
        shift = ops.zeros_like(point)
        if self.exposures:
            points = point
            if self.pixelwise:
                points = x_0 if self.guiding.at == "x0" else self.cut(y_t)
            shift, learned = self.blind_shift(points, given, learned)
        if self.weighed is not None:
            shift = shift - area * ops.grad(self.weighed)(point, given[self.exposures:])
        return shift, learned

    def blind_shift(self, points, given, learned):
        """The same by the exposures; points: in windows."""
        factor, mask = learned
        area = points.shape[2] * points.shape[3] / REFERENCE**2
        shift, by_factor, by_mask = 0, 0, 0
        factors = ops.tile(factor, (points.shape[0] // factor.shape[0], 1, 1, 1))
        for i in range(self.exposures):
            m, y = (self.cut(mask), self.cut(given[i])) if self.pixelwise else (mask, given[i])
            by_x, by_f, by_m = ops.grad(self.blind[i], (0, 1, 2))(points, factors, m, y)
            if self.pixelwise:
                by_x, by_m = self.sew(by_x), self.sew(by_m)
            shift, by_mask = shift - area * self.guiding.scale * by_x, by_mask + by_m
            by_factor = by_factor + by_f.reshape((-1, factor.shape[0], 1, 1, 1)).mean(0)
        if self.guiding.smoothness:
            by_mask = by_mask + self.exposures * self.guiding.smoothness * ops.grad(self.unevenness)(mask)
        return shift, (factor - self.guiding.factor_rate / self.exposures * by_factor,
                       mask - area * self.guiding.mask_rate / self.exposures * by_mask)

    def unevenness(self, mask):
        return smoothness(mask).sum()

    def cut(self, x):
        return x if self.windows is None else self.windows.cut(x)

    def sew(self, x):
        return x if self.windows is None else self.windows.sew(x)


class Answer(nn.Cell):
    """(ŷ₀, logarithm of what the noise is multiplied by) of a whole picture, the network within.

    Inputs: y_t (N, C, H, W), row and rank as of `palette_ms.diffusion.cells.Update`.
    """

    def __init__(self, unet, update):
        super().__init__()
        self.unet, self.update = unet, update

    def construct(self, y, row, rank):
        row = ops.unbind(row)
        output = self.unet(y, ops.broadcast_to(row[TIME], (y.shape[0],)))
        return self.update.answer(output, y, 1, rank, row)


class GuidedStep(nn.Cell):
    """One call of the network and what follows.

    Args:
        unet: the denoiser, a Cell, for dps; of the others the answer is handed in.
        update: `palette_ms.diffusion.cells.Update`.
        guidance: `Guidance`.
    """

    def __init__(self, unet, update, guidance):
        super().__init__()
        self.update, self.guidance = update, guidance
        self.distance = None
        if guidance.guiding.prior == "dps":
            self.distance = methods.Distance(Answer(unet, update), guidance.degradations)

    def construct(self, output, y, base, last, older, finished, rank, noise, row, rates, factor, mask, *given):
        """(the next state, learned): arguments as of `palette_ms.diffusion.cells.Update` and of `Guidance`. The
        network's output is None where the network is within."""
        learned, numbers = (factor, mask), ops.unbind(row)
        if self.distance is not None:
            gradient, (x_0, scale) = ops.grad(self.distance, has_aux=True)(y, row, rank, given)
            x_0 = x_0 - self.guidance.guiding.zeta * gradient / self.guidance.weight(numbers)
        else:
            x_0, scale = self.update.answer(output, self.guidance.cut(y), 1, rank, numbers)
            if self.update.learned:
                scale = self.guidance.sew(scale)
            x_0, noise, learned = self.guidance(x_0, y, noise, scale, given, learned, numbers, ops.unbind(rates))
        everywhere = ops.ones((1, 1, 1, 1), y.dtype)
        state = self.update.move(x_0, scale, y, base, last, older, finished, everywhere, ops.zeros_like(everywhere),
                                 noise, numbers)
        return state, learned


class GuidedChain:
    """Called by a `palette_ms.diffusion.samplers.Sampler` in the place of its `Chain`.

    Args:
        unet: the denoiser: a Cell, or, but for dps, a function of arrays.
        update: `palette_ms.diffusion.cells.Update`.
        guidance: `Guidance`.

    Attributes:
        given, learned: of the next chain, and, after it, what f and M have become: see `Guidance.construct`.
    """

    block = 1
    stops = False

    def __init__(self, unet, update, guidance):
        self.windows = guidance.windows
        self.within = guidance.guiding.prior == "dps"
        self.unet = on_arrays(unet)
        self.step = GuidedStep(unet, update, guidance)
        self.given, self.learned = (), (None, None)

    @staticmethod
    def take(array):
        """An array as `launch` takes it."""
        return Tensor(np.ascontiguousarray(array))

    def launch(self, state, cond, mask, known, rank, noise, rows, count):
        """As of `Chain`; there is no source and no mask."""
        row, rates = rows[0, :_RATES], rows[0, _RATES:]
        output = None if self.within else self.answer(state[0], rows[0, TIME])
        # Not a tuple: MindSpore takes the Tensors of one for constants.
        state, self.learned = self.step(output, *state, rank, Tensor(noise[0]), Tensor(row), Tensor(rates),
                                        *self.learned, *self.given)
        return state

    def answer(self, y, time):
        """The network's answer to a picture, or to its windows."""
        if self.windows is None:
            return Tensor(self.unet(y.asnumpy(), np.full(len(y), time)))
        seen = self.windows.cut(y).asnumpy()
        padded = np.concatenate((seen, np.zeros((-len(seen) % _AT_ONCE, *seen.shape[1:]), np.float32)))
        answers = [self.unet(part, np.full(_AT_ONCE, time)) for part in np.split(padded, len(padded) // _AT_ONCE)]
        return Tensor(np.concatenate(answers)[:len(seen)])


def guide(sampler, chain):
    """A sampler that runs a `GuidedChain`."""
    sampler.chain = chain
    sampler.table = np.concatenate((sampler.table, sampler.rates.astype(np.float32)), 1)
    return sampler
