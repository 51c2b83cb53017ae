"""Reference numbers of the PyTorch programs, and their networks in this project's form."""

from pathlib import Path

import numpy as np
from mindspore import Tensor

from palette_ms.checkpoint import build_unet
from palette_ms.torch_weights.conversion import convert

DATA = Path(__file__).parent / "data"


def golden_network():
    """The PyTorch Palette port's network in this project's form, `palette_ms.torch_weights.conversion.Converted`."""
    return convert(DATA / "palette_unet.pth", overrides=["model.num_head_channels=16"])


def golden_unet():
    """The PyTorch Palette port's network, with the reference weights."""
    converted = golden_network()
    unet = build_unet(converted.config.model)
    for name, parameter in unet.parameters_and_names():
        parameter.set_data(Tensor(converted.weights[name]))
    return unet


def load_arrays(name):
    """All arrays of a file in tests/data."""
    with np.load(DATA / name) as data:
        return {key: data[key] for key in data.files}


def relative_error(a, b):
    a = a.asnumpy() if isinstance(a, Tensor) else np.asarray(a)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
