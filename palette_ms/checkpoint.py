"""Checkpoints: one safetensors file with weights, their moving average and the full config.

Tensors are named `weights.*`, `ema.*` and, in a training state, `optimizer.*`. The metadata holds `format`
(palette_ms), `config` (JSON), `step` and `pictures` (training pictures the model has seen).
"""

import json
import os
from pathlib import Path

import numpy as np
from mindspore import Tensor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from palette_ms.config import config_from_dict
from palette_ms.errors import UserError
from palette_ms.unet import UNet

FORMAT = "palette_ms"
MODELS = Path(__file__).parent / "models"  # those that ship with the package


def build_unet(config):
    """`UNet` as a `ModelConfig` says, with its initial weights.

    Raises:
        UserError: the sizes do not fit together.
    """
    try:
        return UNet(**vars(config))
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def unet_arrays(unet):
    """The U-Net's parameters by name, as arrays."""
    return {name: parameter.asnumpy() for name, parameter in unet.parameters_and_names()}


def save_checkpoint(path, config, step, pictures, weights=None, ema=None, optimizer=None):
    """Write a checkpoint to a temporary name, flush it to the disk, then rename it.

    Args:
        path: the file to write.
        config: `Config`.
        step: training steps done.
        pictures: training pictures seen.
        weights, ema, optimizer: dicts of arrays by name, or None.
    """
    groups = {"weights": weights, "ema": ema, "optimizer": optimizer}
    # order="C": safetensors writes the buffer as it lies in memory
    tensors = {f"{group}.{name}": np.asarray(value, order="C")
               for group, values in groups.items() for name, value in (values or {}).items()}
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict()), "step": str(step), "pictures": str(pictures)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)  # safetensors writes files that only their owner can read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write checkpoint {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


class Checkpoint:
    """A checkpoint file, opened: `config`, `step` and `pictures` are read, tensors as they are asked for.

    Args:
        path: the file, or the name of a model that ships with the package: "quickstart".

    Raises:
        UserError: no such file, cut off or damaged, not a checkpoint of this project.
    """

    def __init__(self, path):
        path, shipped = Path(path), MODELS / f"{path}.safetensors"
        self.path = path = shipped if shipped.is_file() and not path.exists() else path
        if not path.is_file():
            raise UserError(f"no such checkpoint: {path}")
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                self._names = list(file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is not a whole safetensors file (cut off or damaged?): {error}") from None
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} was not written by palette_ms: its metadata has no config")
        try:
            raw = json.loads(metadata["config"])
            self.step, self.pictures = int(metadata["step"]), int(metadata["pictures"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: its metadata is damaged ({error})") from None
        self.config = config_from_dict(raw, str(path))

    def tensors(self, group):
        """The arrays of a group ("weights", "ema", "optimizer") by name; empty where the file has none."""
        prefix = f"{group}."
        with safe_open(self.path, "numpy") as file:
            return {name[len(prefix):]: file.get_tensor(name) for name in self._names if name.startswith(prefix)}

    def load_unet(self):
        """The denoiser, with the averaged weights where the file has them, ready to sample."""
        unet = build_unet(self.config.model)
        self.fill(unet, "ema" if any(name.startswith("ema.") for name in self._names) else "weights")
        unet.set_train(False)
        return unet

    def fill(self, unet, group):
        """Set the U-Net's parameters from a group of tensors; all must be there, with the right shapes."""
        arrays = self.tensors(group)
        parameters = dict(unet.parameters_and_names())
        missing, extra = parameters.keys() - arrays.keys(), arrays.keys() - parameters.keys()
        for problem, names in (("lacks", missing), ("has besides", extra)):
            if names:
                raise UserError(f"{self.path} does not fit its network: it {problem} {len(names)} tensors "
                                f"({', '.join(sorted(names)[:3])} …)")
        for name, parameter in parameters.items():
            if arrays[name].shape != parameter.shape:
                raise UserError(f"{self.path} does not fit its network: {name} is {arrays[name].shape}, "
                                f"the network needs {tuple(parameter.shape)}")
        for name, parameter in parameters.items():
            parameter.set_data(Tensor(arrays[name].astype(np.float32)))
