"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512, Algorithm 2): one step of the student for two of the
teacher."""

import numpy as np
from mindspore import Tensor, nn, ops

from palette_ms.diffusion.loss import denoiser_inputs
from palette_ms.diffusion.preconditioning import y_0_coefficients
from palette_ms.diffusion.solvers import LEAST_GAMMA, rates


def halved(steps):
    """Every other of the teacher's steps, counted from the noisiest: those of the student.

    Args:
        steps: of the test schedule, ascending, an even number of them.
    """
    return tuple(steps[1::2])


class DistillationLoss(nn.Cell):
    """max(α²/σ², 1) ‖x̂_student(z_t) − x̃‖², a pure function of its inputs (Salimans & Ho 2022, Algorithm 2, with their
    "truncated SNR" as the weight).

    Two DDIM steps of the teacher lead from z_t by way of z_t′ to z_t″, with x̂₁ and x̂₂ for ŷ₀:

        z_t′ = σ′/σ z_t + (α′ − α σ′/σ) x̂₁        z_t″ = σ″/σ′ z_t′ + (α″ − α′ σ″/σ′) x̂₂

    x̃ is the ŷ₀ with which one step from z_t leads to z_t″. Put in, their x̃ = (z_t″ − σ″/σ z_t)/(α″ − α σ″/σ) is a mean
    of the teacher's answers, and is taken as such, since the differences would lose digits:

        x̃ = (1 − w) x̂₁ + w x̂₂                     w = (α″ − α′ σ″/σ′)/(α″ − α σ″/σ)

    Args:
        unet: the student, called as unet(source ‖ noisy (N, 6, H, W), gamma (N,)) → (N, 3, H, W).
        teacher: called likewise. It learns nothing.
        gammas: noise levels of the teacher's 2 K steps, the least noisy first. The student's are every other, from the
            noisiest on; after the last comes the clean picture.
        prediction: what both networks say: "v" or "x0".
        clip: the teacher's ŷ₀ are kept in [−1, 1].

    Inputs:
        y_0 (N, 3, H, W): clean pictures in [−1, 1].
        cond (N, 3, H, W) or None: their sources.
        noise (N, 3, H, W): standard normal.
        step (N,): int32, the student's step, from 0, the noisiest, to K − 1.
        mask (N, 1, H, W) or None: 1 in the hole. Outside it both networks see y_0 itself and nothing is counted; the
            mean is over all elements.
        label (N,) or None: for denoisers with labels, int32.
        weight (N,) or None: what each picture counts.
        dropout (N, K) or None: the student's, see `palette_ms.unet.layers.Dropout`.
        text, source_noise: as of `palette_ms.diffusion.loss.DiffusionLoss`.

    Output: the loss, a float32 scalar.

    Raises:
        ValueError: another prediction, or an odd number of levels.
    """

    def __init__(self, unet, teacher, gammas, prediction, clip=True):
        super().__init__()
        if prediction not in ("v", "x0"):
            raise ValueError(f"prediction must be v or x0, not {prediction!r}")
        if len(gammas) % 2:
            raise ValueError(f"the teacher's steps must be an even number, not {len(gammas)}")
        self.unet = unet
        self.teacher = teacher
        self.clip = clip
        gammas = np.maximum(gammas[::-1], LEAST_GAMMA)
        alpha, sigma, _ = rates(gammas)
        alpha, sigma = np.append(alpha, 1), np.append(sigma, 0)
        now = np.arange(0, len(gammas), 2)
        middle, following = now + 1, now + 2
        ratio = sigma[middle] / sigma[now]
        share = ((alpha[following] - alpha[middle] * sigma[following] / sigma[middle])
                 / (alpha[following] - alpha[now] * sigma[following] / sigma[now]))
        a, b = y_0_coefficients(prediction, gammas)
        # In float64 up to here: 1 − γ has few digits left in float32 where γ is near 1.
        table = np.stack([gammas[now], alpha[now], sigma[now], a[now], b[now],
                          gammas[middle], ratio, alpha[middle] - alpha[now] * ratio, a[middle], b[middle],
                          share, np.maximum((alpha[now] / sigma[now]) ** 2, 1)], 1)
        self.table = Tensor(table.astype(np.float32))

    def construct(self, y_0, cond, noise, step, mask=None, label=None, weight=None, dropout=None, text=None,
                  source_noise=None):
        rows = ops.gather(self.table, step, 0)
        gamma, gamma_middle = rows[:, 0], rows[:, 5]
        rows = rows.reshape((rows.shape[0], rows.shape[1], 1, 1, 1))
        _, alpha, sigma, a, b, _, ratio, gain, a_middle, b_middle, share, snr = ops.unbind(rows, 1)

        told = text, source_noise
        y_t = _with_known(alpha * y_0 + sigma * noise, y_0, mask)
        first = self.bound(a * y_t + b * self.teacher(*denoiser_inputs(y_t, cond, gamma, label, None, *told)))
        y_middle = _with_known(ratio * y_t + gain * first, y_0, mask)
        inputs = denoiser_inputs(y_middle, cond, gamma_middle, label, None, *told)
        second = self.bound(a_middle * y_middle + b_middle * self.teacher(*inputs))
        target = ops.stop_gradient((1 - share) * first + share * second)

        error = a * y_t + b * self.unet(*denoiser_inputs(y_t, cond, gamma, label, dropout, *told)) - target
        if mask is not None:
            error = error * mask
        error = snr * error * error
        if weight is not None:
            error = error * weight.reshape((-1, 1, 1, 1))
        return ops.mean(error)

    def bound(self, y_0):
        return ops.clamp(y_0, -1, 1) if self.clip else y_0


def _with_known(y_t, y_0, mask):
    return y_t if mask is None else mask * y_t + (1 - mask) * y_0
