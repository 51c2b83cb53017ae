"""Checkpoints: one safetensors file with weights, their moving average and the full config.

Tensors are named `weights.*`, `ema.*`, `refiner.*` where the model has a refining network, and, in a training state,
`optimizer.*`. The metadata holds `format`
(palette_ms), `config` (JSON), `sha256` of the whole file with zeros in its own place, and what is known of `step`,
`pictures` (training pictures the model has seen), `source` (which file of another program it was converted from) and
`run` (JSON: what a training state's run has besides its config, see `palette_ms.training.loop`).
A file that the checksum does not fit is never loaded.

MindSpore's own `.ckpt` files are read too, with the config in a YAML file of the same name beside them.
"""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Union

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from palette_ms import runtime
from palette_ms.config import config_from_dict, load_config
from palette_ms.data.files import expand, replacing
from palette_ms.errors import UserError
from palette_ms.torch_weights.files import is_torch
from palette_ms.unet.cost import costs
from palette_ms.unet.lora_weights import is_adapted, merged
from palette_ms.unet.plan import check

if TYPE_CHECKING:
    from palette_ms.unet import UNet

FORMAT = "palette_ms"
_NO_DIGEST = "0" * 64
_MOST_BLOCKS = 10_000
_MOST_LEVELS = 16  # the coarsest sees a picture of 65 536 pixels a side as one
_HEADER_BYTES = 2**20  # more than the names and the config take
_SEAL = b'"sha256":"'  # as safetensors writes the metadata's key, before the 64 digits
MODELS = Path(__file__).parent / "models"  # those that ship with the package
_ALIASES = {"quickstart": "photo"}  # names of before


def check_model(config, where="model", most=None):
    """Raises UserError unless a network can be as a `ModelConfig` says, and has room.

    Args:
        config: `ModelConfig`.
        where: begins the error messages.
        most: parameters that it may have, as many as a file has bytes, so that one which asks for a gigantic network
            is told before that is built; None: as many as the machine's memory holds.
    """
    most = most or runtime.memory() // 4
    levels = len(config.channel_mults)
    side = config.patch_size * 2 ** min(levels, _MOST_LEVELS)  # of a picture; parameters do not depend on it
    blocks = levels * config.num_res_blocks if config.res_blocks is None else sum(config.res_blocks)
    # First what bounds the counting itself, then what can be counted.
    fits = levels <= _MOST_LEVELS and max(blocks, config.text_blocks) <= _MOST_BLOCKS
    if fits:
        try:
            check(config)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
    if not fits or sum(cost.parameters for cost in costs(config, side)) > most:
        raise UserError(f"{where}: a network as its config says has more parameters than there is room for ({most:,}): "
                        "base_channels, channel_mults or num_res_blocks are too large")


def build_unet(config, where="model", most=None):
    """`UNet` as a `ModelConfig` says, with its initial weights. Arguments and errors as of `check_model`."""
    from palette_ms.unet import UNet

    check_model(config, where, most)
    return UNet(config)


def unet_arrays(unet):
    """The U-Net's parameters by name, as arrays."""
    return {name: parameter.asnumpy() for name, parameter in unet.parameters_and_names()}


def save_checkpoint(path, config, step=None, pictures=None, weights=None, ema=None, optimizer=None, source=None,
                    run=None, refiner=None):
    """Write a checkpoint to a temporary name, flush it to the disk, then rename it: whatever comes between, a file of
    that name stays as it was.

    Args:
        path: the file to write.
        config: `Config`.
        step: training steps done, or None: not known.
        pictures: training pictures seen, or None: not known.
        weights, ema, optimizer, refiner: dicts of arrays by name, or None.
        source: where the weights came from, a text for the user, or None: trained here.
        run: of a training state, what its run has besides the config: a dict for JSON, or None.

    Raises:
        UserError: it cannot be written, such as for want of space, which is looked for first.
    """
    groups = {"weights": weights, "ema": ema, "optimizer": optimizer, "refiner": refiner}
    # order="C": safetensors writes the buffer as it lies in memory
    tensors = {f"{group}.{name}": np.asarray(value, order="C")
               for group, values in groups.items() for name, value in (values or {}).items()}
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict()), "sha256": _NO_DIGEST}
    known = {"step": step, "pictures": pictures, "source": source, "run": None if run is None else json.dumps(run)}
    metadata.update({name: str(value) for name, value in known.items() if value is not None})
    path = Path(path)
    size = sum(array.nbytes for array in tensors.values()) + _HEADER_BYTES
    try:
        with replacing(path) as temporary:
            free = shutil.disk_usage(path.parent).free
            if free < size:
                raise OSError(errno.ENOSPC, f"it takes {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free")
            save_file(tensors, temporary, metadata)
            temporary.chmod(0o644)  # safetensors writes files that only their owner can read
            place, digest = _digest(temporary)
            with open(temporary, "r+b") as file:
                file.seek(place)
                file.write(digest.encode())
                file.flush()
                os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, is to survive a loss of power
        finally:
            os.close(folder)
    except (OSError, SafetensorError) as error:  # of a write that fails, safetensors makes an error of its own
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write checkpoint {path}: {reason}") from None


def _digest(path):
    """(where the digits of a safetensors file's checksum begin, SHA-256 of the file with zeros in their place)."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = file.read(8)
        header = file.read(int.from_bytes(size, "little"))
        place = header.find(_SEAL) + len(_SEAL)
        digest.update(size + header[:place] + _NO_DIGEST.encode() + header[place + len(_NO_DIGEST):])
        while block := file.read(2**20):
            digest.update(block)
    return len(size) + place, digest.hexdigest()


class Checkpoint:
    """A checkpoint file, opened: the metadata is read, tensors as they are asked for.

    Args:
        path: the file, or the name of a model that ships with the package: "photo".

    Attributes:
        config: `Config`.
        step, pictures: training steps done and pictures seen, or None: not known.
        source: which file of another program it was converted from, or None.
        run: of a training state what `save_checkpoint` was given, or {}.
        sha256: the checksum that tells it from others.

    Raises:
        UserError: no such file, cut off or damaged, not a checkpoint of this project, a `.ckpt` without its config.

    Examples:
        >>> checkpoint = Checkpoint("photo")
        >>> checkpoint.config.data.image_size, checkpoint.step is None or checkpoint.step > 0
        (64, True)
        >>> sorted(checkpoint.tensors("ema"))[0], checkpoint.tensors("ema")["conv_out.bias"].shape
        ('conv_in.bias', (12,))
    """

    def __init__(self, path: Union[str, "os.PathLike[str]"]) -> None:
        path, shipped = expand(path), MODELS / f"{_ALIASES.get(str(path), path)}.safetensors"
        self.path = path = shipped if shipped.is_file() and not path.is_file() else path
        if not path.is_file():
            raise UserError(f"no such checkpoint: {path}")
        self.step = self.pictures = self.source = self._arrays = None
        self.run: Dict[str, Any] = {}
        if path.suffix == ".ckpt":
            self._open_ckpt()
        else:
            self._open_safetensors()

    def _open_ckpt(self):
        if is_torch(self.path):
            raise UserError(f"{self.path} is a PyTorch file: python -m palette_ms.convert takes it in")
        beside = [self.path.with_suffix(suffix) for suffix in (".yaml", ".yml")]
        config = next((path for path in beside if path.is_file()), None)
        if config is None:
            raise UserError(f"{self.path} is a MindSpore file, which holds no config: put the model's YAML beside it, "
                            f"as {beside[0].name}")
        self.config = load_config(config)
        self.source = f"MindSpore file {self.path.name}"
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        import mindspore as ms

        try:
            parameters = ms.load_checkpoint(str(self.path))
        # A damaged file is told by many kinds of error: ValueError, RuntimeError, TypeError …
        except Exception as error:
            raise UserError(f"{self.path} is not a whole MindSpore checkpoint: {str(error).splitlines()[0]}") from None
        arrays = {name: parameter.asnumpy() for name, parameter in parameters.items()}
        # Saved from a cell around it, the network's parameters have its path before their names.
        prefix = next((name[:-len("conv_in.weight")] for name in sorted(arrays, key=len)
                       if name.endswith("conv_in.weight")), "")
        self._arrays = {f"weights.{name[len(prefix):]}": array for name, array in arrays.items()
                        if name.startswith(prefix)}
        self._names = list(self._arrays)

    def _open_safetensors(self):
        path = self.path
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                self._names = list(file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is not a whole safetensors file (cut off or damaged?): {error}") from None
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} was not written by palette_ms: its metadata has no config")
        self.sha256 = metadata.get("sha256")
        if _digest(path)[1] != self.sha256:
            raise UserError(f"{path} is damaged: its checksum does not hold")
        try:
            self.step, self.pictures = (int(metadata[name]) if name in metadata else None
                                        for name in ("step", "pictures"))
            config, self.run = json.loads(metadata["config"]), json.loads(metadata.get("run", "{}"))
        except (ValueError, KeyError, RecursionError) as error:
            raise UserError(f"{path} is damaged: its metadata is not as palette_ms writes it ({error})") from None
        self.source = metadata.get("source")
        self.config = config_from_dict(config, str(path))

    def tensors(self, group: str) -> Dict[str, np.ndarray]:
        """The arrays of a group ("weights", "ema", "optimizer", "refiner") by name; empty where the file has none."""
        prefix = f"{group}."
        if self._arrays is not None:
            return {name[len(prefix):]: array for name, array in self._arrays.items() if name.startswith(prefix)}
        try:
            with safe_open(self.path, "numpy") as file:
                return {name[len(prefix):]: file.get_tensor(name) for name in self._names if name.startswith(prefix)}
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.path} cannot be read any more: {error}") from None

    def load_unet(self) -> "UNet":
        """The network alone, with the averaged weights where the file has them, ready to sample: a process calls it as
        `palette_ms.diffusion.preconditioning.precondition` makes it."""
        unet = build_unet(self.config.model, self.path, self.path.stat().st_size)
        self.fill(unet, self._sampled, self.without_adapters(self._sampled))
        unet.set_train(False)
        return unet

    def without_adapters(self, group):
        """What `fill` takes as changed, for a network that is not adapted, where the file is of a training that adapts
        one (see `palette_ms.unet.lora`): a dict, empty for other files."""
        arrays = self.tensors(group)
        return {**dict.fromkeys(arrays), **merged(arrays)} if is_adapted(arrays) else {}

    @property
    def _sampled(self):
        """The group of weights that pictures are made with."""
        return "ema" if any(name.startswith("ema.") for name in self._names) else "weights"

    def weights(self, shapes, group=None, changed=()):
        """A group's weights, float32 arrays by name, found to be all there, finite, and of the right shapes.

        Args:
            shapes: of the network's parameters, by name.
            group: None: those that `load_unet` takes.
            changed: as in `fill`.
        """
        if group is None:
            group, changed = self._sampled, self.without_adapters(self._sampled)
        arrays = {**self.tensors(group), **dict(changed)}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        missing, extra = shapes.keys() - arrays.keys(), arrays.keys() - shapes.keys()
        for problem, names in (("lacks", missing), ("has besides", extra)):
            if names:
                raise UserError(f"{self.path} does not fit its network: it {problem} {len(names)} tensors "
                                f"({', '.join(sorted(names)[:3])} …)")
        for name, shape in shapes.items():
            if arrays[name].shape != tuple(shape):
                raise UserError(f"{self.path} does not fit its network: {name} is {arrays[name].shape}, "
                                f"the network needs {tuple(shape)}")
            if arrays[name].dtype.kind == "c" or not np.isfinite(arrays[name]).all():
                raise UserError(f"{self.path}: its weights are not finite ({name}), so that it makes no pictures: a "
                                "training went astray; take an earlier state")
            arrays[name] = np.ascontiguousarray(arrays[name], np.float32)
        return arrays

    def fill(self, unet, group, changed=()):
        """Set the U-Net's parameters from a group of tensors; all must be there, finite, with the right shapes.

        Args:
            changed: dict of arrays that take the places of the file's; None: the network has no such parameter.
        """
        from mindspore import Tensor

        parameters = dict(unet.parameters_and_names())
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        for name, array in self.weights(shapes, group, changed).items():
            parameters[name].set_data(Tensor(array))
