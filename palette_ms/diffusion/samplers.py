"""Chains: from noise to a picture, call by call, conditioned on the source.

A chain knows a denoiser, called as unet(source ‖ y_t, γ), and the numbers that a solver makes of its noise levels;
nothing else. Without a source the denoiser sees y_t alone. It is a function of arrays, called step by step, or a Cell,
which is compiled with its chain into one graph (`palette_ms.diffusion.cells`).
"""

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Callable, Optional, Tuple, Union

import numpy as np

from palette_ms.diffusion.denoisers import is_cell
from palette_ms.diffusion.guidance import GUIDANCE_SCHEDULES, Guidance
from palette_ms.diffusion.preconditioning import check_prediction, y_0_coefficients
from palette_ms.diffusion.rounds import from_estimate, refined, resampled
from palette_ms.diffusion.schedule import SPACINGS, make_gamma_schedule, place_steps, strength_of
from palette_ms.diffusion.solvers import LEAST_GAMMA, NOISE, SOLVERS, Y_0, Call, ddpm, learned_ends, rates, resshift
from palette_ms.seeds import generator

_WORDS = {Integral: "a whole number", Real: "a number", str: "a text", tuple: "two numbers",
          np.ndarray: "an encoder's tokens"}
VARIANCES = ("posterior", "beta", "learned_range")
STARTS = ("source", "estimate")

# Noise is drawn on the host, so that the seed alone decides it on every device, and handed to the compiled chain for
# some calls at a time: at most so many bytes.
_BLOCK_BYTES = 64 * 2**20
_REPORTS = 20  # of progress, in a chain

# Columns of a chain's table: what the network is told, ŷ₀ = a·y + b·output, the weights of the next y (6) and of base
# (6), the ends of a learned variance, and the movement of ŷ₀ below which a picture is finished.
TIME, A, B, NEXT, BASE, ENDS, LIMIT = 0, 1, 2, 3, 9, 15, 17

_KINDS = {"steps": Integral, "reuse": Integral, "flips": Integral, "sampler": str, "spacing": str, "start": str,
          "jump": Integral, "repeats": Integral, "rounds": Integral, "guidance_schedule": str,
          "guidance_interval": tuple, "text": np.ndarray}


@dataclass(frozen=True)
class Sampling:
    """How a chain is run.

    Attributes:
        sampler: one of `palette_ms.diffusion.solvers.SOLVERS`. None: ddpm; ddim for a distilled model, which was made
            for it.
        steps: network calls (heun, which takes two a step, uses an odd number of them). None: those the model was
            distilled to, or the whole chain of its test schedule.
        spacing: where the chain's levels lie, see `palette_ms.diffusion.schedule.place_steps`. None: the steps that
            were searched for the model, else what suits the sampler: uniform for ddpm and ddim, karras for heun,
            log_snr for the others.
        eta: for ddim: the noise added, from 0 (none) to 1 (as much as ddpm).
        dynamic_threshold: None: ŷ₀ is clipped to [−1, 1] if the model's config says so. A share such as 0.995: ŷ₀ is
            clipped to this quantile of its absolute values in the hole, where that is above 1, and divided by it
            (Saharia et al. 2022, arXiv 2205.11487, section 2.3).
        strength: 1: start from noise. Below: start at that share of the chain, from the source (where it is noise, a
            smooth fill) with noise of that level added.
        tolerance: end a picture's chain early once ŷ₀ moves, over an e-fold of σ/α, by less than this root mean square
            over the hole (in units of [−1, 1]), and return ŷ₀. Looked at only where γ ≥ 0.5: before, ŷ₀ can stand still
            because the network sees nothing yet. 0: never.
        guidance: classifier-free guidance's weight w (Ho & Salimans 2022, arXiv 2207.12598): the network's answer is
            w times that with the source minus w − 1 times that without. 1: off. For models whose training left out
            sources (`training.source_dropout`). Of models with texts it is their text that guides, and what
            `training.text_dropout` left out.
        guidance_schedule: how that weight changes with the noise, see `palette_ms.diffusion.guidance`.
        guidance_interval: (least, most) σ/α between which there is guidance. None: everywhere.
        text: of a model with texts, what it is told: an array (1, L, C), or (N, L, C), a text for each picture, see
            `palette_ms.unet.text`. None: no text.
        source_noise: of a model with `model.source_noise`, the level of the noise that its source is given, from 0 to
            1, see `palette_ms.diffusion.process.noised`.
        reuse: calls that share what the network's coarser levels make, see
            `palette_ms.diffusion.denoisers.ReusingUNet`. 1: every call is the whole network's.
        flips: 2 or 4: each call is the mean over as many mirror images, see
            `palette_ms.diffusion.denoisers.FlippedUNet`, and takes as many times as long. 1: off.
        start: what a chain below the full strength starts from: "source", or "estimate", the answer ŷ₀ of a first call
            from noise alone, which counts among the steps.
        repeats: how often each `jump` levels are gone through, see `palette_ms.diffusion.rounds.resampled`; 1: once.
            For ddpm and ddim.
        jump: levels.
        rounds: how often noise is added to the result, and taken away by a call more each time, see
            `palette_ms.diffusion.rounds.refined`. 0: off.
        round_noise: that noise's deviation over the signal's, σ/α.

    Raises:
        ValueError: a value that is not as above.

    Examples:
        >>> Sampling("ddim", steps=8, eta=0.5).below(0.5).steps
        4
        >>> Sampling("dpmpp_2m", eta=0.5)
        Traceback (most recent call last):
        ValueError: eta must be from 0 to 1, for the sampler ddim alone, not 0.5 for dpmpp_2m
    """

    sampler: Optional[str] = None
    steps: Optional[int] = None
    spacing: Optional[str] = None
    eta: float = 0.0
    dynamic_threshold: Optional[float] = None
    strength: float = 1.0
    tolerance: float = 0.0
    guidance: float = 1.0
    guidance_schedule: str = "constant"
    guidance_interval: Optional[Tuple[float, float]] = None
    reuse: int = 1
    flips: int = 1
    start: str = "source"
    repeats: int = 1
    jump: int = 2
    rounds: int = 0
    round_noise: float = 0.1
    text: Optional[np.ndarray] = None
    source_noise: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            kind = _KINDS.get(field.name, Real)
            if not isinstance(value, kind) and not (value is None and field.default is None):
                raise ValueError(f"{field.name} must be {_WORDS[kind]}, not {value!r}")
        if self.sampler is not None and self.sampler not in SOLVERS:
            raise ValueError(f"unknown sampler {self.sampler!r}: {', '.join(SOLVERS)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be from 1 on, not {self.steps}")
        if self.spacing is not None and self.spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {self.spacing!r}: {', '.join(SPACINGS)}")
        if not 0 <= self.eta <= 1 or (self.eta and self.sampler != "ddim"):
            raise ValueError(f"eta must be from 0 to 1, for the sampler ddim alone, not {self.eta} for {self.sampler}")
        if self.dynamic_threshold is not None and not 0 < self.dynamic_threshold <= 1:
            raise ValueError(f"dynamic_threshold must be a share above 0 and at most 1, not {self.dynamic_threshold}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, not {self.strength}")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be at least 0 and finite, not {self.tolerance}")
        if not 1 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 1 (off) and finite, not {self.guidance}")
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(f"unknown guidance_schedule {self.guidance_schedule!r}: {', '.join(GUIDANCE_SCHEDULES)}")
        if self.guidance_interval is not None and not (
                len(self.guidance_interval) == 2 and all(isinstance(end, Real) for end in self.guidance_interval)
                and 0 <= self.guidance_interval[0] < self.guidance_interval[1] < math.inf):
            raise ValueError("guidance_interval must be two numbers from 0 on, the smaller first, not "
                             f"{self.guidance_interval}")
        if self.reuse < 1:
            raise ValueError(f"reuse must be from 1 (off) on, not {self.reuse}")
        if self.flips not in (1, 2, 4):
            raise ValueError(f"flips must be 1 (off), 2 or 4, not {self.flips}")
        if self.flips > 1 and self.reuse > 1:
            raise ValueError("reuse cannot be had with flips: a mirror image has other features")
        if self.start not in STARTS:
            raise ValueError(f"start must be {' or '.join(STARTS)}, not {self.start!r}")
        if self.start == "estimate" and (self.strength == 1 or (self.steps or 2) < 2):
            raise ValueError("start=estimate needs a strength below 1, to which the first call's answer is noised, and "
                             "two steps or more")
        if self.repeats < 1 or self.jump < 1 or self.rounds < 0:
            raise ValueError("repeats and jump must be from 1 on, and rounds from 0 on, not "
                             f"{self.repeats}, {self.jump} and {self.rounds}")
        if self.repeats > 1 and self.sampler not in ("ddpm", "ddim"):
            raise ValueError(f"repeats are for the samplers ddpm and ddim, whose steps look at one call, not "
                             f"{self.sampler}")
        if not 0 <= self.source_noise <= 1:
            raise ValueError(f"source_noise must be from 0 to 1, not {self.source_noise}")
        if not 0 < self.round_noise < math.inf:
            raise ValueError(f"round_noise must be above 0 and finite, not {self.round_noise}")

    @property
    def guided_by(self) -> Guidance:
        """The guidance of its calls."""
        return Guidance(self.guidance, self.guidance_schedule, self.guidance_interval)

    @property
    def starts_from_source(self):
        """Whether the chain starts from the source, with noise, rather than from noise alone."""
        return self.strength < 1 and self.start == "source"

    def below(self, strength: float) -> "Sampling":
        """The same with a start at a share of the chain, and that share of the steps, at least one."""
        steps = None if self.steps is None else max(1, round(strength * self.steps))
        return replace(self, strength=strength, steps=steps, start="source")


class NoiseStream:
    """Standard normal noise that a seed decides: sample k has a stream of its own, whatever the batch.

    Args:
        seed: a whole number ≥ 0.
        shape: (N, C, H, W).
        samples: how many there are of each picture, or a range, their numbers; the same noise comes again for the
            next picture. None: the batch is one picture's.
    """

    def __init__(self, seed, shape, samples=None):
        numbers = samples if isinstance(samples, range) else range(samples or shape[0])
        self.rngs = [generator(seed, "noise", k) for k in numbers]
        self.shape = tuple(shape[1:])
        self.groups = shape[0] // len(numbers)

    def draw(self):
        """The next noise, float32 (N, C, H, W)."""
        noise = np.stack([rng.standard_normal(self.shape, np.float32) for rng in self.rngs])
        return np.tile(noise, (self.groups, 1, 1, 1))


class Chain:
    """The loop over network calls around a denoiser that is a function of arrays: call by call. Of a Cell,
    `palette_ms.diffusion.cells.CompiledChain` has the same attributes and methods.

    Args:
        unet: the denoiser.
        clip: ŷ₀ is kept in [−1, 1].
        dynamic: ŷ₀ is thresholded dynamically instead, see `Sampling.dynamic_threshold`.
        learned: the network's second half of channels says where between the ends of its range the logarithm of the
            noise's variance lies, −1 lower and 1 upper (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15).
        stops: pictures whose ŷ₀ moves less than the table's limit are finished.

    Attributes:
        block: network calls a launch, at most.
    """

    block = 1

    def __init__(self, unet, clip=True, dynamic=False, learned=False, stops=False):
        self.unet = unet
        self.clip, self.dynamic, self.learned, self.stops = clip, dynamic, learned, stops

    @staticmethod
    def take(array):
        """An array as `launch` takes it."""
        return array

    def launch(self, state, cond, mask, known, rank, noise, rows, count):
        """One call, at the first of `rows`, with noise[0]; `state` moved on, see `update`."""
        x = state[0] if cond is None else np.concatenate((cond, state[0]), 1)
        output = self.unet(x, np.full(len(x), rows[0, TIME]))
        return self.update(output, *state, mask, known, rank, noise[0], rows[0])

    def step(self, y_t, cond, noise, row):
        """y_{t−1} of y_t alone, without a mask."""
        nothing = np.zeros_like(y_t)
        x = y_t if cond is None else np.concatenate((cond, y_t), 1)
        output = self.unet(x, np.full(len(x), row[TIME]))
        return self.update(output, y_t, nothing, nothing, nothing, None, np.float32(1), nothing, None, noise, row)[0]

    def update(self, output, y, base, last, older, finished, mask, known, rank, noise, row):
        """What follows a network call, by a row of a `Sampler`'s table; a pure function.

        output: the network's answer to y. finished (N, 1, 1, 1): 1 for pictures that stay as they are. mask and known
        (y_0): see `Sampler.__call__`. rank (N, 1): place of the dynamic threshold among a picture's values.

        Returns: the next y, base, last, older and finished, see `palette_ms.diffusion.solvers`.
        """
        if self.learned:
            output, place = np.split(output, 2, 1)
            place = (place + 1) / 2
            noise = noise * np.exp((1 - place) * row[ENDS] + place * row[ENDS + 1])
        y_0 = self.bound(row[A] * y + row[B] * output, mask, rank)
        parts = (y, base, y_0, last, older, noise)
        following, base = (sum(weight * part for weight, part in zip(weights, parts) if weight)
                           for weights in (row[NEXT:BASE], row[BASE:ENDS - 1]))  # no noise in base
        if self.stops:
            squares = np.sum(mask * (y_0 - last) ** 2, (1, 2, 3), keepdims=True)
            pixels = np.maximum(np.sum(np.broadcast_to(mask, y_0.shape), (1, 2, 3), keepdims=True), 1)
            still = (squares < row[LIMIT] * abs(row[LIMIT]) * pixels).astype(y.dtype)
            following = still * y_0 + (1 - still) * following
            following = finished * y + (1 - finished) * following
            finished = np.maximum(finished, still)
        return mask * following + (1 - mask) * known, base, y_0, last, finished

    def bound(self, y_0, mask, rank):
        """ŷ₀ clipped or thresholded."""
        if self.dynamic:
            sizes = np.where(mask > 0, abs(y_0), -1).reshape(len(y_0), -1)
            largest = np.take_along_axis(-np.sort(-sizes), rank, 1).reshape(-1, 1, 1, 1)
            largest = np.maximum(largest, 1)
            return np.clip(y_0, -largest, largest) / largest
        return np.clip(y_0, -1, 1) if self.clip else y_0


def _chain(unet, *how):
    """The chain that suits a denoiser. Arguments as of `Chain`."""
    if not is_cell(unet):
        return Chain(unet, *how)
    from palette_ms.diffusion.cells import CompiledChain

    return CompiledChain(unet, *how)


class Sampler:
    """A chain with the numbers of a solver.

    Args:
        chain: `Chain`, or several samplers' common one.
        gammas: noise levels, the noisiest first (n,).
        calls: what a solver makes of them.
        prediction: what the network says: "eps", "v" or "x0".
        times: (n,), what the network is told at each level, where it is not γ but the step it was trained with.
        ends: (2, n), of a learned variance, see `palette_ms.diffusion.solvers.learned_ends`; 0 where a level's noise is
            as its call says.
        dynamic_threshold, tolerance: see `Sampling`.

    Attributes:
        num_steps: network calls.
        rates: (num_steps, 2), of signal and noise in what each call sees.
    """

    def __init__(self, chain, gammas, calls, prediction="eps", times=None, ends=None, dynamic_threshold=None,
                 tolerance=0.0):
        calls = [*calls, Call(len(gammas) - 1, Y_0)]
        levels = np.array([call.level for call in calls])
        alpha, sigma, lambdas = rates(gammas)
        self.chain = chain
        self.num_steps = len(calls)
        self.share = dynamic_threshold
        self.rates = np.stack((alpha, sigma), 1)[levels]
        self.noisy = [call.y @ NOISE != 0 for call in calls]
        table = np.zeros((len(calls), LIMIT + 1))
        table[:, TIME] = (gammas if times is None else times)[levels]
        table[:, A], table[:, B] = y_0_coefficients(prediction, np.maximum(gammas, LEAST_GAMMA)[levels])
        table[:, NEXT:BASE], table[:, BASE:ENDS] = [call.y for call in calls], [call.base for call in calls]
        if ends is not None:
            table[:, ENDS:LIMIT] = ends.T[levels]
        passed = np.diff(lambdas[levels], prepend=lambdas[0])  # e-folds of σ/α since the call before
        table[:, LIMIT] = np.where(gammas[levels] >= 0.5, tolerance * passed, -1)
        self.table = table.astype(np.float32)

    def start(self, source, noise):
        """What the chain starts from below T: the source with the noise of its first level, (N, 3, H, W) arrays."""
        signal, deviation = self.rates[0]
        return np.float32(signal) * source + np.float32(deviation) * noise

    def __call__(self, cond: Any, y_T: Any, seed: int = 0, mask: Any = None, y_0: Any = None,
                 progress: Optional[Callable[[int], object]] = None,
                 samples: Optional[Union[int, range]] = None,
                 watch: Optional[Callable[[np.ndarray], object]] = None) -> Any:
        """The whole chain.

        Args:
            cond: source (N, 3, H, W), or None for a denoiser without one.
            y_T: what it starts from (N, 3, H, W): noise, or what `start` makes.
            seed: decides the noise of the steps.
            mask: (N, 1, H, W), 1 where pixels are to be made, or None: everywhere.
            y_0: (N, 3, H, W), needed with a mask: its pixels outside the mask are put back after every call.
            progress: called with the number of calls done since the last report.
            samples: of each picture in the batch, see `NoiseStream`; None: the batch is one picture's.
            watch: called with ŷ₀ (N, 3, H, W) after each report of progress.

        Returns: y_0 (N, 3, H, W), in about [−1, 1]: a Tensor where the denoiser is a Cell, else an array.

        Raises:
            ValueError: a mask without y_0.
        """
        if mask is not None and y_0 is None:
            raise ValueError("with a mask, y_0 must give the known pixels")
        stream, take = NoiseStream(seed, y_T.shape, samples), self.chain.take
        y_T = np.asarray(y_T)
        nothing = np.zeros((1, 1, 1, 1), y_T.dtype)
        rank = self._rank(mask, y_T.shape)
        y, zeros = take(y_T), take(np.zeros_like(y_T))
        cond = None if cond is None else take(cond)
        known, mask = take(nothing if y_0 is None else y_0), take(nothing + 1 if mask is None else mask)
        state = y, y, zeros, zeros, take(np.zeros((len(y_T), 1, 1, 1), y_T.dtype))
        size = min(max(1, _BLOCK_BYTES // (4 * y_T.size)), self.chain.block)
        block = min(size, -(-self.num_steps // _REPORTS)) if progress or watch else size
        for done in range(0, self.num_steps, block):
            count = min(block, self.num_steps - done)
            noise, rows = np.zeros((size, *y_T.shape), np.float32), np.zeros((size, self.table.shape[1]), np.float32)
            rows[:count] = self.table[done:done + count]
            for i in range(count):
                if self.noisy[done + i]:
                    noise[i] = stream.draw()
            state = self.chain.launch(state, cond, mask, known, take(rank), noise, rows, count)
            if progress:
                np.asarray(state[0])  # MindSpore is asynchronous: without this the bar would run ahead of the work
                progress(count)
            if watch:
                watch(np.asarray(state[2]))
            if self.chain.stops and np.asarray(state[4]).all():
                break
        return state[0]

    def _rank(self, mask, shape):
        """Where the dynamic threshold stands among a picture's values, the largest first, known pixels last: (N, 1)."""
        hole = (np.full((shape[0], 1), np.prod(shape[1:])) if mask is None
                else shape[1] * (np.asarray(mask) > 0).sum((2, 3)))
        last = np.maximum(hole - 1, 0)
        return np.int32(last - np.floor((self.share or 0) * last))


class DDPMSampler(Sampler):
    """The ancestral chain over given β, see `palette_ms.diffusion.solvers.ddpm`.

    Args:
        unet: the denoiser.
        betas: (T,), of the chain to run; respaced schedules have their own.
        variance: one of `VARIANCES`.
        clip: keep ŷ₀ in [−1, 1].
        prediction: what the network says: "eps", "v" or "x0".
        times: (T,), what the network is told at each step, where it is not γ but the step it was trained with.

    Raises:
        ValueError: an unknown variance or prediction.

    Examples:
        A denoiser may be a MindSpore Cell or any function of arrays. This one says that the picture is the source:

        >>> from palette_ms.diffusion.schedule import make_beta_schedule
        >>> betas = make_beta_schedule("linear", 10, 1e-4, 0.5)
        >>> sampler = DDPMSampler(lambda x, gamma: x[:, :3], betas, prediction="x0")
        >>> source = np.full((1, 3, 2, 2), 0.25, np.float32)
        >>> sampler(source, np.zeros((1, 3, 2, 2), np.float32), seed=0).max().item()
        0.25
    """

    def __init__(self, unet: Callable[..., Any], betas: np.ndarray, variance: str = "posterior", clip: bool = True,
                 prediction: str = "eps", times: Optional[np.ndarray] = None) -> None:
        check_prediction(prediction)
        if variance not in VARIANCES:
            raise ValueError(f"unknown variance {variance!r}: {', '.join(VARIANCES)}")
        learned = variance == "learned_range"
        gammas = np.cumprod(1 - np.asarray(betas, np.float64))[::-1]
        super().__init__(_chain(unet, clip, False, learned), gammas, ddpm(gammas, variance), prediction,
                         None if times is None else times[::-1], learned_ends(gammas) if learned else None)

    def step(self, y_t: Any, cond: Any, t: int, noise: Any) -> Any:
        """One step of the chain, a pure function.

        Args:
            y_t, noise: (N, 3, H, W).
            cond: (N, 3, H, W), or None for a denoiser without a source.
            t: the step, from T − 1 (noisiest) down to 0.

        Returns: y_{t−1} (N, 3, H, W); at t = 0 the noise is not used.
        """
        return self.chain.step(y_t, cond, noise, self.table[-1 - t])


def create_chain(unet, diffusion, sampling):
    """The loop that a sampler of `create_sampler` runs; `sampling`'s steps, sampler and spacing do not matter to it."""
    return _chain(unet, diffusion.clip, sampling.dynamic_threshold is not None, diffusion.variance == "learned_range",
                 sampling.tolerance > 0)


def create_sampler(chain, diffusion, sampling, schedule=None, searched=None):
    """The sampler that a `palette_ms.config.DiffusionConfig` and a `Sampling` describe.

    Args:
        chain: from `create_chain`, with as much as the same clipping, thresholding and stopping.
        schedule: the test schedule whose chain it is; None: the config's.
        searched: steps that were searched for the model, ascending, by their number; None: none were.

    Raises:
        ValueError: steps out of range, or not those that the model was distilled to.
    """
    gammas = make_gamma_schedule(**vars(schedule or diffusion.test_schedule))
    name = sampling.sampler or ("ddim" if diffusion.distilled else "ddpm")
    solver = SOLVERS[name]
    top = max(1, round(sampling.strength * len(gammas)))
    calls = (sampling.steps or top) - (sampling.start == "estimate")
    levels = 1 + (calls - 1) // solver.calls_a_step
    if diffusion.distilled:
        if sampling.rounds or sampling.repeats > 1:
            raise ValueError("this model was distilled to steps of its own: it cannot refine or repeat some")
        if (name != "ddim" or sampling.steps not in (None, len(diffusion.distilled)) or top < len(gammas)
                or sampling.eta or sampling.spacing):
            raise ValueError(f"this model was distilled to {len(diffusion.distilled)} steps of the sampler ddim and "
                             "makes pictures by these alone")
        kept = np.array(diffusion.distilled)
    elif searched and sampling.spacing is None and top == len(gammas) and levels in searched:
        kept = np.array(searched[levels])
    else:
        kept = place_steps(gammas[:top], levels, sampling.spacing or solver.spacing)
    kept = kept[::-1]
    if (name, diffusion.process) == ("ddpm", "resshift"):
        calls = resshift(gammas[kept])
    else:
        options = {"ddpm": {"variance": diffusion.variance}, "ddim": {"eta": sampling.eta}}.get(name, {})
        calls = solver.calls(gammas[kept], **options)
    learned = name == "ddpm" and diffusion.variance == "learned_range"
    ends = learned_ends(gammas[kept]) if learned else None
    levels = gammas[kept]
    if sampling.repeats > 1:
        if learned:
            raise ValueError("repeats are not for a learned variance, whose noise the network decides")
        levels, calls = resampled(levels, calls, sampling.jump, sampling.repeats)
    before, after = [], []  # steps of the further calls
    if sampling.start == "estimate":
        before = [len(gammas) - 1]
        levels, calls = from_estimate(gammas[-1], levels, calls)
    if sampling.rounds:
        after = [round(strength_of(gammas, sampling.round_noise) * len(gammas)) - 1]
        levels, calls = refined(levels, calls, gammas[after[0]], sampling.rounds)
    if ends is not None:
        ends = np.pad(ends, ((0, 0), (len(before), len(after))))
        if after:
            ends[:, -2] = 0  # the chain's last level is followed by the refinement's noise
    times = np.array([*before, *kept, *after]) if diffusion.time_input == "t" else None
    return Sampler(chain, levels, calls, diffusion.prediction, times, ends, sampling.dynamic_threshold,
                   sampling.tolerance)
