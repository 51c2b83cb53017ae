"""Reference numbers of the PyTorch Palette port, and its weights in this project's U-Net."""

import re
from pathlib import Path

import numpy as np
from mindspore import Tensor

from palette_ms.unet import UNet

DATA = Path(__file__).parent / "data"
UNET = dict(base_channels=32, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_head_channels=16)

_SUBMODULES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "skip",
    "norm": "norm", "qkv": "qkv", "proj_out": "proj",
}


def _our_name(key):
    """The name in UNet(**UNET) of a parameter of the port's network, for this configuration."""
    prefix, parameter = key.rsplit(".", 1)
    for theirs, ours in (("cond_embed.0", "time_embedding.dense1"), ("cond_embed.2", "time_embedding.dense2"),
                         ("input_blocks.0.0", "conv_in"), ("out.0", "norm_out"), ("out.2", "conv_out")):
        if prefix == theirs:
            return f"{ours}.{parameter}"
    path, index, rest = re.match(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.*)", prefix).groups()
    index = int(index)
    if path == "middle_block":
        stage = ("middle1.residual", "middle1.attention", "middle2")[index]
        return f"{stage}.{_SUBMODULES[rest]}.{parameter}"
    position, rest = rest.split(".", 1)
    if path == "input_blocks":
        is_resampling = index == 2
        slot = "" if is_resampling else ("residual.", "attention.")[int(position)]
        return f"down.{index - 1}.{slot}{_SUBMODULES[rest]}.{parameter}"
    return f"up.{index}.{('residual', 'attention', 'resample')[int(position)]}.{_SUBMODULES[rest]}.{parameter}"


def _our_layout(key, value):
    """The port keeps q, k, v together within each head; here all q come first, then all k, then all v."""
    if ".qkv." in key:
        heads = value.shape[0] // 3 // UNET["num_head_channels"]
        value = value.reshape(heads, 3, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
    return value[..., None] if value.ndim == 3 else value


def golden_unet():
    """UNet(**UNET) with the reference weights."""
    unet = UNet(**UNET)
    parameters = {name: parameter for name, parameter in unet.parameters_and_names()}
    with np.load(DATA / "palette_unet_weights.npz") as weights:
        names = {_our_name(key): key for key in weights.files}
        assert names.keys() == parameters.keys()
        for name, key in names.items():
            value = _our_layout(key, weights[key])
            assert value.shape == parameters[name].shape, name
            parameters[name].set_data(Tensor(value))
    return unet


def relative_error(a, b):
    a = a.asnumpy() if isinstance(a, Tensor) else np.asarray(a)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
