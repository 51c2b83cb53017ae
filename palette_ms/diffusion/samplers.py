"""Algorithm 2: from noise to a picture, step by step, conditioned on the source.

A sampler knows a denoiser, called as unet(source ‖ y_t, γ), and the β of its steps; nothing else. Without a source
the denoiser sees y_t alone. A Cell is compiled with its chain into one graph; another function, such as
`palette_ms.diffusion.tiles.TiledUNet`, is called step by step.
"""

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from palette_ms.diffusion import prediction as predictions
from palette_ms.diffusion.schedule import evenly_spaced, make_beta_schedule, respace
from palette_ms.seeds import generator

# Noise is drawn on the host, so that the seed alone decides it on every device, and handed to the compiled chain
# a block of steps at a time. The block bounds the memory, and progress is reported between blocks.
_NOISE_BLOCK_BYTES = 64 * 2**20
_REPORTS = 20

VARIANCES = ("posterior", "beta", "learned_range")


class NoiseStream:
    """Standard normal noise that a seed decides: picture k of a batch has a stream of its own, whatever the batch.

    Args:
        seed: a whole number ≥ 0.
        shape: (N, C, H, W).
    """

    def __init__(self, seed, shape):
        self.rngs = [generator(seed, "noise", k) for k in range(shape[0])]
        self.shape = tuple(shape[1:])

    def draw(self):
        """The next noise, float32 (N, C, H, W)."""
        return np.stack([rng.standard_normal(self.shape, np.float32) for rng in self.rngs])


class DDPMSampler(nn.Cell):
    """The ancestral chain (Ho et al. 2020, Algorithm 2; Palette, Algorithm 2), compiled as one loop.

    Each step predicts ŷ₀ and draws y_{t−1} from q(y_{t−1} | y_t, ŷ₀) (Ho et al. 2020, eqs. 6 and 7). Without
    clipping that mean is, for ε-prediction, (y_t − (1−α_t)/√(1−γ_t) ε̂)/√α_t, the line of Palette's Algorithm 2.

    Args:
        unet: the denoiser.
        betas: (T,), of the chain to run; respaced schedules have their own.
        variance: "posterior", (1−γ_{t−1})/(1−γ_t) β_t; "beta", β_t, which is Palette's Algorithm 2; or
            "learned_range": the network's second half of channels says where between the logarithms of these two
            it lies, −1 posterior and 1 β (Nichol & Dhariwal 2021, eq. 15).
        clip: keep ŷ₀ in [−1, 1].
        prediction: what the network says: "eps", "v" or "x0".
        times: (T,), what the network is told at each step, where it is not γ but the step of the chain it was
            trained with.

    Raises:
        ValueError: an unknown variance or prediction.
    """

    def __init__(self, unet, betas, variance="posterior", clip=True, prediction="eps", times=None):
        super().__init__()
        predictions.check(prediction)
        if variance not in VARIANCES:
            raise ValueError(f"unknown variance {variance!r}: {', '.join(VARIANCES)}")
        betas = np.asarray(betas, np.float64)
        # Floored: ε-prediction divides by √γ, and γ_T is 1e-20 in the paper's chain and 0 in jsd.
        gammas = np.maximum(np.cumprod(1 - betas), 1e-20)
        previous = np.append(1.0, gammas[:-1])
        posterior = betas * (1 - previous) / (1 - gammas)
        variances = {"posterior": posterior, "beta": betas, "learned_range": np.ones_like(betas)}[variance].copy()
        variances[0] = 0  # the last step adds no noise
        # The logarithms of the learned range's ends; at the last step, which uses neither, posterior is 0.
        ends = np.log([np.maximum(posterior, 1e-20), betas]) / 2
        a, b = predictions.y_0_coefficients(prediction, gammas)
        self.unet = unet
        self.num_steps = len(betas)
        self.clip = clip
        self.learned = variance == "learned_range"
        table = np.stack([
            gammas if times is None else times, a, b,
            betas * np.sqrt(previous) / (1 - gammas),
            (1 - previous) * np.sqrt(1 - betas) / (1 - gammas),
            np.sqrt(variances), *ends,
        ], 1)
        self.table = Tensor(table.astype(np.float32))

    def step(self, y_t, cond, t, noise):
        """One step of the chain, a pure function.

        Args:
            y_t, noise: (N, 3, H, W).
            cond: (N, 3, H, W), or None for a denoiser without a source.
            t: the step, from T − 1 (noisiest) down to 0; a number or an int32 scalar tensor.

        Returns: y_{t−1} (N, 3, H, W); at t = 0 the noise is not used.
        """
        row = self.table[t]
        x = y_t if cond is None else ops.concat((cond, y_t), 1)
        output = self.unet(x, ops.broadcast_to(row[0], (y_t.shape[0],)))
        deviation = row[5]
        if self.learned:
            output, place = ops.chunk(output, 2, 1)
            place = (place + 1) / 2
            deviation = deviation * ops.exp((1 - place) * row[6] + place * row[7])
        y_0 = row[1] * y_t + row[2] * output
        if self.clip:
            y_0 = ops.clamp(y_0, -1, 1)
        return row[3] * y_0 + row[4] * y_t + deviation * noise

    def construct(self, y_t, cond, mask, y_0, noise, t, count):
        """`count` steps from step t down, with noise[i] added at the i-th and the known pixels put back after it."""
        i = ops.zeros_like(t)
        while i < count:
            y_t = self.step(y_t, cond, t - i, noise[i])
            y_t = mask * y_t + (1 - mask) * y_0
            i = i + 1
        return y_t

    def __call__(self, cond, y_T, seed=0, mask=None, y_0=None, progress=None):
        """The whole chain.

        Args:
            cond: source (N, 3, H, W), or None for a denoiser without one.
            y_T: the noise it starts from (N, 3, H, W).
            seed: decides the noise of the steps.
            mask: (N, 1, H, W), 1 where pixels are to be made, or None: everywhere.
            y_0: (N, 3, H, W), needed with a mask: its pixels outside the mask are put back after every step.
            progress: called with the number of steps done since the last call; only where the chain is compiled.

        Returns: Tensor y_0 (N, 3, H, W), in about [−1, 1].

        Raises:
            ValueError: a mask without y_0.
        """
        if mask is not None and y_0 is None:
            raise ValueError("with a mask, y_0 must give the known pixels")
        stream = NoiseStream(seed, y_T.shape)
        cond, y_t = None if cond is None else Tensor(cond), Tensor(y_T)
        mask = ops.ones((1, 1, 1, 1), y_t.dtype) if mask is None else Tensor(mask)
        y_0 = ops.zeros((1, 1, 1, 1), y_t.dtype) if y_0 is None else Tensor(y_0)
        if not isinstance(self.unet, nn.Cell):
            for t in reversed(range(self.num_steps)):
                y_t = mask * self.step(y_t, cond, t, Tensor(stream.draw())) + (1 - mask) * y_0
            return y_t
        block = min(max(1, _NOISE_BLOCK_BYTES // (4 * y_t.size)), -(-self.num_steps // _REPORTS))
        for done in range(0, self.num_steps, block):
            count = min(block, self.num_steps - done)
            noise = np.zeros((block, *y_t.shape), np.float32)
            for i in range(count):
                noise[i] = stream.draw()
            t = self.num_steps - 1 - done
            y_t = super().__call__(y_t, cond, mask, y_0, Tensor(noise), Tensor(t, mstype.int32),
                                   Tensor(count, mstype.int32))
            if progress:
                y_t.asnumpy()  # execution is asynchronous: without this the bar would run ahead of the work
                progress(count)
        return y_t


class ClassConditional(nn.Cell):
    """A denoiser with its labels, classes or tasks, filled in: called as samplers call one.

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


SAMPLERS = {"ddpm": DDPMSampler}


def create_sampler(unet, diffusion, steps=None, name="ddpm"):
    """The sampler that a `palette_ms.config.DiffusionConfig` describes.

    Args:
        unet: the denoiser.
        diffusion: the config; its test schedule is the chain.
        steps: evenly respaced to so many; None: the whole chain.
        name: one of `SAMPLERS`.

    Raises:
        ValueError: an unknown name, or steps out of range.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: {', '.join(SAMPLERS)}")
    betas = make_beta_schedule(**vars(diffusion.test_schedule))
    kept = evenly_spaced(len(betas), len(betas) if steps is None else steps)
    times = kept if diffusion.time_input == "t" else None
    return SAMPLERS[name](unet, respace(betas, kept), diffusion.variance, diffusion.clip, diffusion.prediction, times)
