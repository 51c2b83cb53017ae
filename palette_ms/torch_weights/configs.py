"""What a PyTorch checkpoint's config, or else its tensors, tell about the network and its process.

Each function returns nested dicts in the form of this project's YAML, of just those keys that are told.
"""

import contextlib
import json
import re

import numpy as np

from palette_ms.config import parse_yaml, read_config
from palette_ms.data.files import expand
from palette_ms.diffusion.schedule import SCHEDULES, make_beta_schedule
from palette_ms.errors import UserError

# guided-diffusion's flags (its script_util.py) and their defaults, where a config names only some.
_ADM_DEFAULTS = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_head_channels": -1,
    "num_heads_upsample": -1, "attention_resolutions": "16,8", "channel_mult": "", "dropout": 0.0, "class_cond": False,
    "use_scale_shift_norm": True, "resblock_updown": False, "use_new_attention_order": False, "learn_sigma": False,
    "diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False, "rescale_timesteps": False,
    "sigma_small": False,  # improved-diffusion's, whose flags are else the same
    "large_size": None, "small_size": None,  # the upsamplers' alone, in place of image_size
}
_ADM_CHANNEL_MULTS = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
_ADM_UPSAMPLER_CHANNEL_MULTS = {512: (1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4)}
_ADM_CLASSES = 1000
# Flags of its scripts that do not change what the network computes.
_ADM_OTHER = {
    "use_fp16", "use_checkpoint", "timestep_respacing", "use_kl", "rescale_learned_sigmas",
    "batch_size", "num_samples", "model_path", "use_ddim", "clip_denoised", "classifier_path", "classifier_scale", "lr",
    "save_interval", "weight_decay", "data_dir", "ema_rate", "schedule_sampler", "microbatch", "log_interval",
    "resume_checkpoint", "fp16_scale_growth", "lr_anneal_steps", "conv_resample", "dims",
}
# UNetModel's own arguments have other defaults than the flags, and some have other names or no flag at all (None).
_ADM_CONSTRUCTOR_DEFAULTS = {"num_heads": 1, "use_scale_shift_norm": False, "channel_mult": (1, 2, 4, 8)}
_ADM_CONSTRUCTOR = {"model_channels": "num_channels", "out_channels": None, "in_channels": None, "num_classes": None}

_PORT_DATASETS = {"InpaintDataset": "inpainting", "UncroppingDataset": "uncropping",
                  "ColorizationDataset": "colorization"}
_PORT_MASKS = {"bbox": ("rectangle",), "center": ("center",), "irregular": ("free_form",), "free_form": ("free_form",),
               "hybrid": ("free_form", "rectangle")}
_PORT_SIDES = {"onedirection": ("left", "right", "top", "bottom"), "fourdirection": ("all",)}


def read_foreign_config(text):
    """A config of another program as a dict.

    Args:
        text: path of a JSON or YAML file (the port's // comments are left out) or of a text with flags somewhere in
            it, such as a shell script or a notebook, or the flags themselves ("--image_size 256 --num_channels 256 …").

    Raises:
        UserError: no such file, or none of these forms.
    """
    text, name = str(text), "the config"
    if not text.lstrip().startswith("--"):
        name, data = text, read_config(expand(text))
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read config {name}: {error}") from None
    # The port cuts every line at //, which breaks addresses; comments stand after a blank or a bracket nearly always.
    uncommented = re.sub(r"(^|[\s,\[\]{}])//.*", r"\1", text, flags=re.M)
    for candidate in (uncommented, re.sub(r"//.*", "", text)):
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(candidate)
            break
    else:
        flags = _flags(text)
        if flags:
            return flags
        try:
            content = parse_yaml(uncommented)
        except ValueError as error:
            raise UserError(f"{name} is neither JSON, YAML nor flags: {error}") from None
    if isinstance(content, dict) and isinstance(content.get("cells"), list):  # a notebook
        sources = [cell.get("source", "") for cell in content["cells"] if isinstance(cell, dict)]
        return _flags("\n".join("".join(map(str, source)) for source in sources))
    if not isinstance(content, dict):
        raise UserError(f"{name} is neither JSON, YAML nor flags")
    return content


def _flags(text):
    """The flags in a text (--name value, --name=value), wherever they stand; comments and continued lines are the
    shell's."""
    text = re.sub(r"(^|\s)#.*", "", re.sub(r"\\\r?\n", " ", text), flags=re.M)
    found = re.findall(r"""(?<![\w-])--(\w+)(?:(?:=|[ \t]+)(?!--)["']?([^\s"';&|]*))?""", text)
    return dict(found)


def palette_config(content):
    """From the PyTorch Palette port's JSON, or from its part `unet` (and `beta_schedule`) alone.

    Args:
        content: dict.

    Raises:
        UserError: not such a config, or of a network that is none of ours.
    """
    arguments = content
    for key in ("model", "which_networks", 0, "args"):
        try:
            arguments = arguments[key]
        except (KeyError, IndexError, TypeError):
            arguments = content
            break
    if arguments.get("module_name", "guided_diffusion") != "guided_diffusion":
        raise UserError(f"the config is of the port's {arguments['module_name']} network, which is another one: its "
                        "time embedding enters the blocks without an activation. guided_diffusion can be converted")
    unet = arguments.get("unet", arguments)
    if "inner_channel" not in unet:
        raise UserError("this is not a config of the PyTorch Palette port: it has no unet with inner_channel")
    model = {}
    for theirs, ours in (("in_channel", "in_channels"), ("out_channel", "out_channels"), ("dropout", "dropout"),
                         ("inner_channel", "base_channels"), ("channel_mults", "channel_mults"),
                         ("res_blocks", "num_res_blocks"), ("attn_res", "attention_resolutions")):
        if theirs in unet:
            model[ours] = unet[theirs]
    model.update(_heads(unet, 1))
    model["scale_shift"] = unet.get("use_scale_shift_norm", True)
    model["resblock_updown"] = unet.get("resblock_updown", True)
    config = {"model": model, "diffusion": {"prediction": "eps"}}
    config["split_in_heads"] = not unet.get("use_new_attention_order", False)
    size = unet.get("image_size")
    if size:
        config["data"] = {"image_size": size}
    for phase, schedule in (arguments.get("beta_schedule") or {}).items():
        if phase in ("train", "test"):
            config["diffusion"][f"{phase}_schedule"] = _port_schedule(schedule)
    task = _port_task(content)
    if task:
        config["tasks"] = [task]
    return config


def _port_schedule(schedule):
    names = {"schedule": "name", "n_timestep": "num_steps", "linear_start": "start", "linear_end": "end"}
    return {names[key]: value for key, value in schedule.items() if key in names}


def _port_task(content):
    try:
        dataset = content["datasets"]["train"]["which_dataset"]
        name = dataset["name"] if isinstance(dataset["name"], str) else dataset["name"][-1]
        task = {"name": _PORT_DATASETS[name]}
    except (KeyError, TypeError, IndexError):
        return None
    arguments = dataset.get("args") or {}
    mode = (arguments.get("mask_config") or arguments).get("mask_mode")
    if name == "InpaintDataset" and mode in _PORT_MASKS:
        task["masks"] = _PORT_MASKS[mode]
    if name == "UncroppingDataset" and mode in _PORT_SIDES:
        task["sides"] = _PORT_SIDES[mode]
    return task


def adm_config(content):
    """From guided-diffusion's flags, or `UNetModel`'s own arguments (attention_resolutions a list of downsampling
    factors, where the flag is a text of resolutions).

    Args:
        content: dict.

    Raises:
        UserError: an unknown flag, or a network that is none of ours.
    """
    unknown = content.keys() - _ADM_DEFAULTS.keys() - _ADM_CONSTRUCTOR.keys() - _ADM_OTHER
    if unknown:
        raise UserError(f"this is not a config of guided-diffusion: it has no {', '.join(sorted(unknown)[:3])}")
    flags = dict(_ADM_DEFAULTS)
    if "model_channels" in content:
        flags.update(_ADM_CONSTRUCTOR_DEFAULTS)
    for name, value in content.items():
        name = _ADM_CONSTRUCTOR.get(name, name)
        if name in flags:
            default = _ADM_DEFAULTS[name]
            flags[name] = parse_yaml(value) if isinstance(value, str) and not isinstance(default, str) else value
    if flags["rescale_timesteps"] and flags["diffusion_steps"] != 1000:
        raise UserError(f"this network of improved-diffusion was trained with rescale_timesteps: it is told the time "
                        f"t · 1000 / {flags['diffusion_steps']}, and here networks are told whole steps t alone. With "
                        "1000 diffusion_steps, where both are the same, it can be converted")
    size, mults, attention = flags["image_size"], flags["channel_mult"], flags["attention_resolutions"]
    known, upsampler = _ADM_CHANNEL_MULTS, {"large_size", "small_size"} <= content.keys()
    if upsampler:
        size, known = flags["large_size"], _ADM_UPSAMPLER_CHANNEL_MULTS
    if mults == "":
        if size not in known:
            raise UserError(f"guided-diffusion has no channel_mult for image_size {size}: name it in the config")
        mults = known[size]
    if isinstance(mults, str):
        mults = [float(mult) for mult in mults.split(",")]
    if isinstance(attention, (str, int)):
        attention = [size // int(resolution) for resolution in str(attention).split(",")]
    out_channels = content.get("out_channels", 6 if flags["learn_sigma"] else 3)
    classes = content.get("num_classes", _ADM_CLASSES if flags["class_cond"] else None)
    in_channels = content.get("in_channels", 3) * (2 if upsampler else 1)  # SuperResModel doubles them
    model = {
        "in_channels": in_channels, "out_channels": out_channels, "base_channels": flags["num_channels"],
        "channel_mults": mults, "num_res_blocks": flags["num_res_blocks"], "attention_resolutions": attention,
        "dropout": flags["dropout"], "scale_shift": flags["use_scale_shift_norm"],
        "resblock_updown": flags["resblock_updown"], "num_classes": classes, **_heads(flags, 4),
    }
    schedule = adm_schedule(flags["noise_schedule"], flags["diffusion_steps"])
    diffusion = {
        "prediction": "x0" if flags["predict_xstart"] else "eps", "train_schedule": schedule, "test_schedule": schedule,
    }
    if flags["sigma_small"] and not flags["learn_sigma"]:
        diffusion["variance"] = "posterior"
    config = {"model": model, "diffusion": diffusion, "data": {"image_size": size},
              "split_in_heads": not flags["use_new_attention_order"]}
    if upsampler:
        config["tasks"] = [adm_upsampling(size // flags["small_size"], classes)]
    return config


def adm_upsampling(scale, classes):
    """The task of guided-diffusion's upsamplers: small pictures are block means, made large bilinearly."""
    return {"name": "super_resolution", "scales": [scale], "interpolation": "bilinear", "classes": classes is not None}


def adm_schedule(name="linear", num_steps=1000):
    """guided-diffusion's noise schedule: linear from 1e-4 to 0.02 for 1000 steps, scaled for others; or cosine."""
    scale = 1000 / num_steps
    return {"name": name, "num_steps": num_steps, "start": scale * 1e-4, "end": scale * 0.02}


def _heads(flags, default):
    channels = flags.get("num_head_channels", -1)
    heads = flags.get("num_heads", default)
    if flags.get("num_heads_upsample", -1) not in (-1, heads) and channels == -1:
        raise UserError(f"num_heads_upsample ({flags['num_heads_upsample']}) other than num_heads ({heads}) is not "
                        "supported")
    return {"num_heads": heads} if channels in (-1, None) else {"num_head_channels": channels}


def read_off_tensors(shapes, embedding):
    """What the shapes of the tensors tell of the network.

    Args:
        shapes: dict by name, without the architecture's prefix.
        embedding: the time embedding's name, "cond_embed" or "time_embed".

    Returns: dict of `ModelConfig`'s values, without the number of heads and the dropout, which shapes do not tell.

    Raises:
        UserError: the tensors are not those of such a network.
    """
    try:
        base = shapes[f"{embedding}.0.weight"][1]
        first = shapes["input_blocks.0.0.weight"]
        out_channels = shapes["out.2.weight"][0]
        num_classes = shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None
        scale_shift = (shapes["middle_block.0.emb_layers.1.weight"][0]
                       == 2 * shapes["middle_block.0.in_layers.2.weight"][0])
        levels, attention, resblock_updown = [[]], set(), True
        count = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
        for i in range(1, count):
            block = f"input_blocks.{i}"
            strided = f"{block}.0.op.weight" in shapes
            if strided or _halves(shapes, i, levels):
                resblock_updown = not strided
                levels.append([])
                continue
            levels[-1].append(shapes[f"{block}.0.in_layers.2.weight"][0])
            if f"{block}.1.qkv.weight" in shapes:
                attention.add(2 ** (len(levels) - 1))
        blocks = {len(level) for level in levels}
        if len(blocks) != 1:
            raise KeyError("residual blocks")
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"its tensors are not those of a guided-diffusion U-Net ({error} not found)") from None
    return {
        "in_channels": first[1], "out_channels": out_channels, "base_channels": base,
        "channel_mults": [level[0] / base for level in levels], "num_res_blocks": blocks.pop(),
        "attention_resolutions": sorted(attention), "scale_shift": scale_shift, "resblock_updown": resblock_updown,
        "num_classes": num_classes,
    }


def _halves(shapes, i, levels):
    """Whether input block i is a residual block that halves the size: such blocks look like any other.

    The way up has one block more a level than the way down, and its last but for the finest level doubles; so the
    number of output blocks is that of the input blocks, and each level has as many blocks on the way down.
    """
    outputs = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("output_blocks."))
    doubling = sum(1 for j in range(outputs) if any(
        f"output_blocks.{j}.{k}.{part}" in shapes for k in (1, 2) for part in ("in_layers.2.weight", "conv.weight")))
    per_level = outputs // (doubling + 1) - 1
    return len(levels[-1]) == per_level


def schedule_of_gammas(gammas):
    """The named schedule that a float32 buffer of γ was made with, as a dict of `ScheduleConfig`'s values.

    Raises:
        UserError: no schedule of ours gives these values.
    """
    gammas = np.asarray(gammas, np.float64)
    steps = np.append(1.0, gammas)
    if not (steps > 0).all() or not (np.diff(steps) < 0).all():
        raise UserError("its buffer of noise levels does not fall from 1 towards 0: not one of the port's")
    betas = 1 - steps[1:] / steps[:-1]
    # float32 leaves few digits of a small β: the ends are the roundest numbers that give the buffer's values again.
    for digits in range(1, 7):
        start, end = (float(f"{beta:.{digits - 1}e}") for beta in (betas[0], betas[-1]))
        for name in SCHEDULES:
            if not 0 < start <= end < 1 and name not in ("cosine", "jsd"):
                continue
            made = np.cumprod(1 - make_beta_schedule(name, len(gammas), start, end))
            if np.allclose(made, gammas, rtol=1e-5, atol=1e-7):
                ends = {"start": start, "end": end} if 0 < start <= end < 1 else {}
                return {"name": name, "num_steps": len(gammas), **ends}
    raise UserError(f"its buffer of {len(gammas)} noise levels is of no schedule that is known; give the --config")
