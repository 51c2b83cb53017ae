"""How far a denoiser's answer is from the picture, at each noise level."""

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from palette_ms.data.loader import TrainingBatches
from palette_ms.diffusion.cells import LabelledUNet, ToldUNet
from palette_ms.diffusion.preconditioning import y_0_coefficients
from palette_ms.diffusion.schedule import make_gamma_schedule, place_steps
from palette_ms.seeds import generator

_BATCH = 16
_LEVELS = 50  # of noise, at which it is measured


def denoising_errors(unet, config, place, number, seed):
    """E‖y_0 − ŷ₀(y_t)‖² at every step of a task's test schedule.

    Measured at some steps, evenly in log-SNR, on the same pictures and noise; in between its logarithm is interpolated,
    and at noisier ones, which hide the picture, it is the last. It cannot fall as noise is added; what does is taken
    for chance.

    Args:
        unet: the network as the process calls it, see `palette_ms.diffusion.preconditioning.precondition`.
        config: `Config`, whose `data.path` the pictures are taken from, as in training.
        place: of the task in the config.
        number: of pictures; some more are used where 16 do not divide it.
        seed: decides pictures, masks and noise.

    Returns: (gammas, errors), float64 (T,), the least noisy first; errors are summed over the values to be made.
    """
    diffusion, task = config.diffusion, config.tasks[place]
    gammas = make_gamma_schedule(**vars(task.test_schedule or diffusion.test_schedule))
    steps = place_steps(gammas, min(_LEVELS, len(gammas)), "log_snr")
    batches = TrainingBatches(config)
    model = config.model
    if model.text_channels is not None or model.source_noise:  # without a text or noise in the source
        text = None if model.text_channels is None else np.zeros((1, model.text_length, model.text_channels))
        unet = ToldUNet(unet, text, np.zeros(1) if model.source_noise else None)
    if model.num_classes is not None:
        unet = LabelledUNet(unet, [place] * _BATCH)
    signal, deviation = np.sqrt(gammas[steps]), np.sqrt(1 - gammas[steps])
    a, b = y_0_coefficients(diffusion.prediction, gammas[steps])
    rng = generator(seed, "denoising")
    totals, groups = np.zeros(len(steps)), -(-number // _BATCH)
    for group in tqdm(range(groups), desc="denoising", unit="batch", disable=None, leave=False):
        samples = [batches.sample(group * _BATCH + i, place) for i in range(_BATCH)]
        y_0, mask = (np.stack([getattr(sample, name) for sample in samples]) for name in ("y_0", "mask"))
        source = [] if samples[0].cond is None else [np.stack([sample.cond for sample in samples])]
        noise = rng.standard_normal(y_0.shape, np.float32)
        for i, step in enumerate(steps):
            y_t = mask * (signal[i] * y_0 + deviation[i] * noise) + (1 - mask) * y_0
            told = step if diffusion.time_input == "t" else gammas[step]
            x, time = np.concatenate([*source, y_t], 1), np.full(_BATCH, told)
            output = unet(Tensor(x.astype(np.float32)), Tensor(time.astype(np.float32))).asnumpy()[:, :y_0.shape[1]]
            estimate = a[i] * y_t + b[i] * output
            estimate = np.clip(estimate, -1, 1) if diffusion.clip else estimate
            totals[i] += (mask * (estimate - y_0) ** 2).sum() / (groups * _BATCH)
    errors = np.exp(np.interp(np.arange(len(gammas)), steps, np.log(np.maximum.accumulate(totals))))
    return gammas, errors
