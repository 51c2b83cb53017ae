"""A PyTorch checkpoint → config and weights of this project's U-Net, and back."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from palette_ms.checkpoint import build_unet, unet_arrays
from palette_ms.config import Config, apply_override, config_from_dict
from palette_ms.diffusion.schedule import make_beta_schedule
from palette_ms.errors import UserError
from palette_ms.torch_weights.configs import (
    adm_config,
    adm_schedule,
    adm_upsampling,
    palette_config,
    read_foreign_config,
    read_off_tensors,
    schedule_of_gammas,
)
from palette_ms.torch_weights.files import read_tensors, write_pth
from palette_ms.torch_weights.names import ARCHITECTURES, from_torch, to_torch

PROGRAMS = {"palette": "the PyTorch Palette port", "adm": "guided-diffusion"}
# What the port keeps in its state dict besides the network, all of one noise schedule.
_BUFFERS = ("gammas", "sqrt_recip_gammas", "sqrt_recipm1_gammas", "posterior_log_variance_clipped",
            "posterior_mean_coef1", "posterior_mean_coef2")
_FIRST = "input_blocks.0.0.weight"


class Converted(NamedTuple):
    """A network of another program in this one's form."""

    config: Config
    weights: dict  # arrays by the names of the U-Net's parameters
    source: str  # where it came from
    notes: list  # what the file did not tell and was assumed, lines for the user


def convert(path, arch=None, foreign_config=None, overrides=()):
    """Read a checkpoint of the PyTorch Palette port (guided_diffusion network) or of OpenAI's guided-diffusion.

    Args:
        path: `.pth`, `.pt` or `.safetensors`.
        arch: "palette", "adm", or None: by the names of the tensors.
        foreign_config: the program's own config, as `read_foreign_config` takes it, a YAML of this project, or None:
            what the tensors tell.
        overrides: strings `section.key=value` of this project's config, which win.

    Returns: `Converted`.

    Raises:
        UserError: a file, config or network that does not fit; heads of the attention that nothing tells.
    """
    path = Path(path)
    tensors = read_tensors(path)
    prefix = _network_prefix(tensors, path)
    network = {name[len(prefix):]: array for name, array in tensors.items() if name.startswith(prefix)}
    others = {name: array for name, array in tensors.items() if not name.startswith(prefix)}
    arch = arch or ("palette" if "cond_embed.0.weight" in network else "adm")
    official_prefix, embedding = ARCHITECTURES[arch]
    if f"{embedding}.0.weight" not in network:
        raise UserError(f"{path} is no network of {PROGRAMS[arch]}: it has no {embedding}.0.weight; try another --arch")
    extra = [name for name in others if arch != "palette" or name.rpartition(".")[2] not in _BUFFERS]
    if extra:
        raise UserError(f"{path} has {len(extra)} tensors besides the network ({', '.join(sorted(extra)[:3])}"
                        f"{', …' if len(extra) > 3 else ''})")
    notes = []
    raw = _foreign(arch, foreign_config) if foreign_config else _from_tensors(network, embedding, path, overrides)
    split_in_heads = raw.pop("split_in_heads", True)
    for override in overrides:
        apply_override(raw, override)
    if arch == "palette":
        buffers = {name.rpartition(".")[2]: array for name, array in others.items()}
        _complete_palette(raw, buffers, notes)
    else:
        _complete_adm(raw, notes)
    if "image_size" not in raw.get("data", {}):
        notes.append("the image size is not told: taken to be 256; data.image_size=N says otherwise")
    config = config_from_dict(raw, str(foreign_config or path))
    unet = build_unet(config.model, path, path.stat().st_size)
    if arch == "adm" and config.tasks[0].has_source:
        network[_FIRST] = _source_first(network[_FIRST])
    network = {official_prefix + name: array for name, array in network.items()}
    weights = from_torch(network, unet, arch, path, split_in_heads)
    return Converted(config, weights, f"converted from {path.name} of {PROGRAMS[arch]}", notes)


def _network_prefix(tensors, path):
    names = [name for name in tensors if name == _FIRST or name.endswith(f".{_FIRST}")]
    if not names:
        if any("noise_level_mlp" in name for name in tensors):
            raise UserError(f"{path} holds the port's sr3 network, which is another one than guided_diffusion: its "
                            "time embedding enters the blocks without an activation. It cannot be converted")
        raise UserError(f"{path} holds no U-Net of the PyTorch Palette port or of guided-diffusion: it has no {_FIRST} "
                        f"(but {', '.join(sorted(tensors)[:3])} …)")
    if len(names) > 1:
        raise UserError(f"{path} holds {len(names)} networks ({', '.join(sorted(names)[:3])}): save one by itself")
    return names[0][:-len(_FIRST)]


def _source_first(weight):
    """The first convolution of guided-diffusion's upsamplers, which take noisy ‖ source, as one that takes source ‖
    noisy; and the reverse."""
    return np.roll(weight, weight.shape[1] // 2, 1)


def _foreign(arch, foreign_config):
    content = read_foreign_config(foreign_config)
    if isinstance(content.get("model"), dict) and "which_networks" not in content["model"]:
        return content  # this project's own form
    try:
        return (palette_config if arch == "palette" else adm_config)(content)
    # Values of kinds that no such config has
    except (AttributeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"{foreign_config} is not a config of {PROGRAMS[arch]}: {error}") from None


def _from_tensors(network, embedding, path, overrides):
    model = read_off_tensors({name: array.shape for name, array in network.items()}, embedding)
    keys = {override.partition("=")[0] for override in overrides}
    if not keys & {"model.num_head_channels", "model.num_heads"}:
        raise UserError(f"{path}: the tensors do not tell how the attention is divided into heads: give the --config, "
                        "or add model.num_head_channels=N (32 in the port's configs, 64 in most of guided-diffusion's) "
                        "or model.num_heads=N")
    return {"model": model}


def _complete_palette(raw, buffers, notes):
    diffusion = raw.setdefault("diffusion", {})
    if "train_schedule" not in diffusion and "gammas" in buffers:
        diffusion["train_schedule"] = schedule_of_gammas(buffers["gammas"])
        notes.append(f"train_schedule read off the buffers: {_in_words(diffusion['train_schedule'])}")
    for phase in ("train", "test"):
        if f"{phase}_schedule" not in diffusion:
            notes.append(f"{phase}_schedule is not told: taken to be the paper's")
    if "tasks" not in raw:
        raw["tasks"] = [{"name": "inpainting"}, {"name": "colorization"}]
        notes.append("the task is not told: inpainting and colorization are both offered; tasks=[{name: …}] says which")


def _complete_adm(raw, notes):
    model, diffusion = raw["model"], raw.setdefault("diffusion", {})
    upsamples = model["in_channels"] == 6  # a source beside the noisy picture
    learned = model["out_channels"] == (1 if upsamples else 2) * model["in_channels"]
    diffusion.setdefault("variance", "learned_range" if learned else "beta")
    diffusion.setdefault("time_input", "t")
    if "test_schedule" not in diffusion:
        diffusion.update(train_schedule=adm_schedule(), test_schedule=adm_schedule())
        notes.append(f"the noise schedule is not told: taken to be {_in_words(adm_schedule())}")
    if upsamples and "tasks" not in raw:
        raw["tasks"] = [adm_upsampling(4, model.get("num_classes"))]
        notes.append("how much it enlarges is not told: taken to be 4 times")
    raw.setdefault("tasks", [{"name": "unconditional"}])


def _in_words(schedule):
    return " ".join(f"{key}={value}" for key, value in schedule.items())


def export(checkpoint, path):
    """Write a checkpoint's weights as the state dict that the PyTorch Palette port (or guided-diffusion) loads.

    The averaged weights are written where the checkpoint has them; for the port also the buffers of the training
    schedule, which it saves too.

    Args:
        checkpoint: `palette_ms.checkpoint.Checkpoint`.
        path: the `.pth` file to write.

    Raises:
        UserError: a network that the other programs have not, or the file cannot be written.
    """
    config, unet = checkpoint.config, checkpoint.load_unet()
    model, diffusion = config.model, config.diffusion
    if (model.patch_size != 1 or model.norm_groups != 32 or model.attention != "global"
            or diffusion.noise_input != "value" or diffusion.from_source):
        raise UserError(f"{checkpoint.path}: PyTorch's networks have no patch_size but 1, no norm_groups but 32, no "
                        "noise_input but value and no attention but global, and do not start from_source")
    arch = "adm" if diffusion.time_input == "t" else "palette"
    if arch == "palette" and (diffusion.prediction != "eps" or model.num_classes):
        raise UserError(f"{checkpoint.path}: the PyTorch Palette port knows no classes, and no prediction but eps")
    tensors = to_torch(unet_arrays(unet), unet, arch)
    if arch == "adm" and config.tasks[0].has_source:
        tensors[_FIRST] = _source_first(tensors[_FIRST])
    if arch == "palette":
        tensors.update(_buffers(make_beta_schedule(**vars(diffusion.train_schedule))))
    write_pth(path, tensors)


def _buffers(betas):
    """The port's buffers of a noise schedule, in its order."""
    gammas = np.cumprod(1 - betas)
    previous = np.append(1.0, gammas[:-1])
    values = (
        gammas,
        np.sqrt(1 / gammas),
        np.sqrt(1 / gammas - 1),
        np.log(np.maximum(betas * (1 - previous) / (1 - gammas), 1e-20)),
        betas * np.sqrt(previous) / (1 - gammas),
        (1 - previous) * np.sqrt(1 - betas) / (1 - gammas),
    )
    return dict(zip(_BUFFERS, values))
