"""Algorithm 1: the training loss of the denoiser."""

from typing import Any, Callable

from mindspore import nn, ops

from palette_ms.diffusion.preconditioning import check_prediction, target


class DiffusionLoss(nn.Cell):
    """E ‖f(x, √γ y₀ + √(1−γ) ε, γ) − target‖ᵖ (Palette, eq. 3 and Algorithm 1), a pure function of its inputs.

    Args:
        unet: called as unet(source ‖ noisy (N, 6, H, W), gamma (N,)) → (N, 3, H, W).
        loss: "l2" (the paper's choice for diversity) or "l1".
        prediction: the target: "eps" (the paper's), "v" or "x0".

    Inputs:
        - y_0 (N, 3, H, W): clean pictures in [−1, 1].
        - cond (N, 3, H, W) or None: their sources.
        - noise (N, 3, H, W): ε, standard normal.
        - gamma (N,): noise levels.
        - mask (N, 1, H, W) or None: 1 in the hole. Outside it the network sees y_0 itself and nothing is counted;
            the mean is still over all elements, so that a batch's weight does not depend on how it was split.
        - label (N,) or None: for a denoiser with labels, int32.
        - weight (N,) or None: what each picture counts.
        - dropout (N, K) or None: the denoiser's, see `palette_ms.unet.layers.Dropout`.
        - text (N, L, C) or None: for a denoiser that takes texts, see `palette_ms.unet.text`.
        - source_noise (N,) or None: for a denoiser that is told how noisy its source is.

    Output: the loss, a float32 scalar.

    Raises:
        ValueError: an unknown loss or prediction.

    Examples:
        A new network says zero, and is wrong by the noise itself:

        >>> from palette_ms.unet import UNet
        >>> unet = UNet(base_channels=8, channel_mults=(1,), num_res_blocks=1, norm_groups=4, attention_resolutions=())
        >>> y_0, noise = ops.zeros((1, 3, 2, 2)), 2 * ops.ones((1, 3, 2, 2))
        >>> float(DiffusionLoss(unet)(y_0, y_0, noise, ops.ones((1,)) / 2))
        4.0
    """

    def __init__(self, unet: Callable[..., Any], loss: str = "l2", prediction: str = "eps") -> None:
        super().__init__()
        if loss not in ("l1", "l2"):
            raise ValueError(f"unknown loss {loss!r}: l1, l2")
        check_prediction(prediction)
        self.unet = unet
        self.squared = loss == "l2"
        self.prediction = prediction

    def construct(self, y_0, cond, noise, gamma, mask=None, label=None, weight=None, dropout=None, text=None,
                  source_noise=None):
        level = gamma.reshape((-1, 1, 1, 1))
        signal_rate, noise_rate = ops.sqrt(level), ops.sqrt(1 - level)
        y_t = signal_rate * y_0 + noise_rate * noise
        if mask is not None:
            y_t = mask * y_t + (1 - mask) * y_0
        output = self.unet(*denoiser_inputs(y_t, cond, gamma, label, dropout, text, source_noise))
        error = output - target(self.prediction, y_0, noise, signal_rate, noise_rate)
        if mask is not None:
            error = error * mask
        error = error * error if self.squared else ops.abs(error)
        if weight is not None:
            error = error * weight.reshape((-1, 1, 1, 1))
        return ops.mean(error)


def denoiser_inputs(y_t, cond, gamma, label=None, dropout=None, text=None, source_noise=None):
    """What a denoiser is called with: source ‖ y_t, gamma, and what else there is of label, dropout, text and
    source_noise."""
    x = y_t if cond is None else ops.concat((cond, y_t), 1)
    if text is not None or source_noise is not None:
        return x, gamma, label, dropout, text, source_noise
    if dropout is not None:
        return x, gamma, label, dropout
    return (x, gamma) if label is None else (x, gamma, label)
