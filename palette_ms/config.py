"""The YAML's typed form. Every mistake is told with file, key and the nearest valid neighbour."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import re
import reprlib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Literal, Optional, Tuple, Union

import yaml

from palette_ms.data.files import expand
from palette_ms.data.forms import Channels, FileKind, Photo, Ranges, can_hold, forms
from palette_ms.data.readers import can_write
from palette_ms.diffusion.schedule import ScheduleConfig
from palette_ms.errors import UserError, did_you_mean
from palette_ms.tasks import Task, task_class
from palette_ms.tasks.inpainting import Inpainting
from palette_ms.unet.config import ModelConfig

_CONFIGS = Path(__file__).parent / "configs"
_UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))  # Python 3.10's X | None
# What only a user who means harm writes: read no further, and build no more of a few lines that name each other.
_YAML_BYTES, _YAML_NODES = 2**24, 10**6
_LARGEST = 2**63  # of whole numbers
_PATHS = {"data": ("path", "validation"), "training": ("output", "init_from"), "validation": ("weights",),
          "distillation": ("teacher",), "refiner": ("of",)}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
# Keys of the section model that are now the process's: YAMLs and checkpoints of before still have them there.
_MOVED_TO_DIFFUSION = ("from_source", "noise_input")


@dataclass(frozen=True)
class DiffusionConfig:
    """The process: what the network predicts, how it is trained to, and the chain that samples by default."""

    # What the network says and is told, see palette_ms.diffusion.preconditioning.
    process: Literal["palette", "resshift", "i2sb"] = "palette"
    prediction: Literal["eps", "v", "x0"] = "eps"
    from_source: bool = False
    noise_input: Literal["value", "angle"] = "value"
    # Of the error of the prediction; or, see palette_ms.diffusion.bound, with the bound for a learned variance, the
    # bound alone, or that of continuous time, with a noise schedule that is learned.
    loss: Literal["l2", "l1", "hybrid", "vlb", "vdm"] = "l2"
    noise_levels: Literal["schedule", "cosine"] = "schedule"  # γ in training: drawn from train_schedule, or cosine
    # Share of the training pictures at the chain's first level instead, from which one call makes the whole picture.
    first_call: float = 0.0
    train_schedule: ScheduleConfig = ScheduleConfig()
    test_schedule: ScheduleConfig = ScheduleConfig(num_steps=1000, start=1e-4, end=0.09)
    variance: Literal["posterior", "beta", "learned_range"] = "posterior"
    clip: bool = True
    # What the network is told of the noise: its level γ (Palette), or the step of train_schedule (guided-diffusion).
    time_input: Literal["gamma", "t"] = "gamma"
    # Of a distilled model: the steps of test_schedule that its chain consists of, ascending. Training writes it.
    distilled: Optional[Tuple[int, ...]] = None

    @property
    def whole_steps(self):
        """Whether it is trained at the steps of train_schedule, not at levels in between."""
        return self.time_input == "t" or self.variance == "learned_range" or self.loss in ("hybrid", "vlb")


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures are and how a training picture is cut out of one."""

    path: str = "data/train"  # see palette_ms.data.sources for the kinds
    validation: Optional[str] = None  # where the pictures shown during training come from; None: those trained on
    image_size: int = 256
    # A crop's side is drawn (log-uniformly) between this share of the picture's shorter side, but not below
    # image_size, and the whole of it, then resized to image_size. 1: always the largest square.
    min_scale: float = 1.0
    flip: bool = True
    workers: int = 4  # threads; at most as many as the machine has cores are used
    cache_mb: int = 1024  # decoded pictures kept in memory
    # Other channels than 3 and 3, or ranges, if only {}, make it a model of arrays: of the files' own values, not of
    # 8-bit RGB. What ranges and result leave out is found when a training starts, and its model carries it.
    channels: Channels = Channels()
    ranges: Optional[Ranges] = None
    result: Optional[FileKind] = None
    # Of a model with texts: what tells its encoder from others. Training finds it in the data, its model carries it.
    text_encoder: Optional[str] = None


@dataclass(frozen=True)
class LoraConfig:
    """Small matrices beside some layers of a trained network are trained, and end up in the model's weights: see
    `palette_ms.unet.lora`."""

    rank: int = 8
    targets: Tuple[Literal["attention", "residual"], ...] = ("attention", "residual")


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation and what it writes."""

    output: str = "runs/palette"
    steps: int = 1_000_000
    max_minutes: float = 0.0  # end after so many, as if at the last step; 0: no limit
    batch_size: int = 8
    accumulation: int = 1  # batches whose gradients make one step
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    decay_steps: int = 0  # of steps the last so many, over which the learning rate falls to 0
    max_grad_norm: float = 1.0  # 0: no clipping
    # So many steps in a row whose gradients are not finite end the run. Under loss scaling it can take 24 to come down
    # from the largest scale.
    max_skipped: int = 30
    ema_decay: float = 0.9999
    source_dropout: float = 0.0  # share of the pictures trained on without their source, for guidance
    text_dropout: float = 0.1  # of a model with texts: share of the pictures trained on without theirs, for guidance
    source_noise: Tuple[float, float] = (0.0, 1.0)  # of a model with model.source_noise: its levels, drawn evenly
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    # Blocks of so many levels, from the finest, are computed again in the backward pass rather than kept in memory.
    recompute: int = 0
    shard_optimizer: bool = False  # each rank keeps its share of Adam's moments and of gathered gradients
    jit_level: Optional[Literal["O0", "O1", "O2"]] = None  # of MindSpore's compiler; O2: of old configs
    seed: int = 0
    init_from: Optional[str] = None  # a checkpoint whose weights to start from
    lora: Optional[LoraConfig] = None  # None: all weights are trained
    log_every: int = 50
    sample_every: int = 5000  # 0: never
    sample_steps: int = 50
    save_every: int = 5000
    keep: int = 3  # newest training states kept
    # [first, last] of the steps that MindSpore's profiler records, into training.output/profile: docs/ascend.md.
    profile: Optional[Tuple[int, ...]] = None


@dataclass(frozen=True)
class ValidationConfig:
    """What is measured while training, on data.validation, see `palette_ms.training.validation`."""

    every: int = 0  # steps; 0: never
    pictures: int = 24
    # By the first of them the best model is kept, as best.safetensors.
    metrics: Tuple[str, ...] = ("psnr", "ssim")
    weights: Optional[str] = None  # folder of the published weights of metrics by networks


@dataclass(frozen=True)
class DistillationConfig:
    """Progressive distillation: a student of half its teacher's steps, see `palette_ms.diffusion.distillation`."""

    teacher: str  # a checkpoint, or "photo"
    steps: int  # network calls of the student, of the teacher twice as many
    # Of the teacher's steps in the test schedule, where it is not distilled itself.
    spacing: Literal["uniform", "quadratic", "log_snr", "karras"] = "uniform"


@dataclass(frozen=True)
class RefinerConfig:
    """A network of its own that sharpens what a model makes, see `palette_ms.training.refiner`. In a training's config
    the sections model, diffusion and tasks are that model's, and are left out."""

    of: str  # the model's checkpoint, or "photo"
    # The refiner's network. It sees what was made, its source, and where it was made: its channels follow from these.
    network: ModelConfig = ModelConfig(base_channels=32, channel_mults=(1, 2), num_res_blocks=1,
                                       attention_resolutions=(), norm_groups=8, patch_size=2, attention="none")
    pairs: int = 4000  # that the model makes, and training.output/pairs keeps
    adversarial: float = 0.01  # what the discriminator's judgement counts beside the mean absolute error; 0: nothing
    judge_channels: int = 32  # the discriminator's width
    judge_rate: float = 2e-4  # its learning rate


@dataclass(frozen=True)
class Config:
    """All of it: the YAML's sections, as a checkpoint carries them too."""

    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    tasks: Tuple[Task, ...] = (Inpainting(),)
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = ValidationConfig()
    distillation: Optional[DistillationConfig] = None  # None: training from pictures alone
    refiner: Optional[RefinerConfig] = None  # of a model that carries one, and of its training

    def place(self, task: str) -> int:
        """Where the first task of a name stands in `tasks`. Raises UserError: there is none."""
        names = [known.name for known in self.tasks]
        if task not in names:
            raise UserError(f"this model does not know the task {task!r}: it was trained for "
                            f"{', '.join(dict.fromkeys(names))}")
        return names.index(task)

    def to_dict(self) -> Dict[str, Any]:
        """As nested dicts and lists that YAML and JSON can hold."""
        return {**dataclasses.asdict(self), "tasks": [task.to_dict() for task in self.tasks]}


def load_config(path: Union[str, os.PathLike[str]], overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file.

    Args:
        path: the file.
        overrides: see `apply_override`.

    Returns: `Config`, in its paths ~ replaced by the home folder.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value of the wrong type or out of range.

    Examples:
        >>> config = load_config("photo", ["training.steps=7", "data.path=my photos"])
        >>> config.training.steps, config.data.path, config.tasks[0].name
        (7, 'my photos', 'jpeg_restoration')
    """
    raw = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    config = config_from_dict(raw, str(path))
    for section, names in _PATHS.items():
        values = getattr(config, section)
        given = {name: str(expand(getattr(values, name))) for name in names if getattr(values, name, None)}
        if values:
            config = dataclasses.replace(config, **{section: dataclasses.replace(values, **given)})
    return config


def read_yaml(path):
    """The sections and keys of a YAML file as a dict: of one that ships with the package also by its name, such as
    photo or configs/photo.yaml, from any folder. Raises UserError: no such file, not YAML, no keys."""
    path = expand(path)
    shipped = _CONFIGS / f"{path.stem}.yaml"
    if not path.exists() and str(path.parent) in (".", "configs") and shipped.is_file():
        path = shipped
    data = read_config(path)
    try:
        raw = parse_yaml(data.decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if raw is not None and not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections or keys with values")
    return raw or {}


def read_config(path):
    """The bytes of a config's file, or of a pipe. Raises UserError: it cannot be read, or is too large for one."""
    try:
        with open(path, "rb") as file:
            data = file.read(_YAML_BYTES + 1)
    except (OSError, ValueError) as error:  # of a name that none can be, such as one with a null byte, a ValueError
        raise UserError(f"cannot read config {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _YAML_BYTES:
        raise UserError(f"{path} is not a config: it is larger than {_YAML_BYTES // 2**20} MiB")
    return data


def parse_yaml(text):
    """What a YAML text says. Raises ValueError: it cannot be read, or grows without measure by its aliases."""
    loader = None
    # The reader takes minutes for what it would refuse for its depth in the end.
    if max(itertools.accumulate((1 if sign in "[{" else -1 for sign in re.findall(r"[][{}]", text)), initial=0)) > 500:
        raise ValueError("it is nested too deeply")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > _YAML_NODES:
            raise ValueError("its aliases make far more of it than is written")
        return loader.construct_document(node)
    # Dates, numbers and tags that are none are told by many kinds of error, and nesting by the depth of Python's calls.
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    finally:
        if loader is not None:
            loader.dispose()


def _written_out(node, sizes):
    """How many nodes a YAML node would be with its aliases written out; one within itself has no end."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        parts = () if isinstance(node, yaml.ScalarNode) else node.value
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for item in parts
                                  for part in (item if isinstance(item, tuple) else (item,)))
    return sizes[id(node)]


def _quote(value):
    """A value for a message, shortened."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxtuple = 2, 4, 4, 4
    short.maxstring, short.maxlong, short.maxother = 80, 40, 80
    try:
        return short.repr(value)
    except ValueError:  # of whole numbers with thousands of digits, which Python does not print
        return "a number of thousands of digits"


def config_from_dict(raw, where):
    """A `Config` from nested dicts; `where` begins every error message.

    Where the model's `in_channels` or `out_channels` are not given, they follow from the data's.
    """
    config = from_dict(Config, _move_keys(raw, where), where)
    given = raw.get("model", {})
    channels = {name: number for name, number in _network_channels(config).items() if name not in given}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **channels))
    if config.refiner:
        made = config.data.channels.target
        network = dataclasses.replace(config.refiner.network, out_channels=made, num_classes=None,
                                      in_channels=made + config.data.channels.source + 1)
        config = dataclasses.replace(config, refiner=dataclasses.replace(config.refiner, network=network))
    _check_ranges(config, where)
    return config


def _move_keys(raw, where):
    """Nested dicts with what stood in the section model before where it belongs now."""
    model, diffusion = raw.get("model"), raw.get("diffusion") or {}
    if not isinstance(model, dict) or not isinstance(diffusion, dict):
        return raw  # which will be told
    moved = {name: model[name] for name in _MOVED_TO_DIFFUSION if name in model}
    for name, value in moved.items():
        if diffusion.get(name, value) != value:
            raise UserError(f"{where}: diffusion.{name} is {diffusion[name]!r}, and model.{name}, its old place, says "
                            f"{value!r}: leave the old one out")
    model = {name: value for name, value in model.items() if name not in moved}
    return {**raw, "model": model, "diffusion": {**diffusion, **moved}}


def from_dict(kind, raw, where):
    """A dataclass from nested dicts, with types checked; `where` begins every error message."""
    return _build(kind, raw, where, "")


def apply_override(raw, override):
    """Set one value of a config's nested dicts by a string `section.key=value`.

    The value is YAML; of a key that holds a text it is the text as it stands, but for `null`, where it may be left out.

    Raises:
        UserError: another form, not YAML, a section that is none.
    """
    key, equals, value = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise UserError(f"{_quote(override)} is not of the form section.key=value")
    for name in names[:-1]:
        if raw.get(name) is None:
            raw[name] = {}  # a section without keys, too
        raw = raw[name]
        if not isinstance(raw, dict):
            raise UserError(f"{_quote(override)}: {name} has no keys of its own")
    text, optional = _holds_text(names)
    if text:
        raw[names[-1]] = None if optional and value in ("", "null", "~") else value
        return
    try:
        raw[names[-1]] = parse_yaml(value)
    except ValueError as error:
        raise UserError(f"{_quote(override)}: the value is not YAML: {error}") from None


def _holds_text(names):
    """(whether a config's key, by its names from the section on, holds a text; whether it may be left out)."""
    kind, optional = Config, False
    for name in names:
        kind = typing.get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
        arguments = typing.get_args(kind)
        optional = typing.get_origin(kind) in _UNIONS and type(None) in arguments
        if optional:
            kind = next(argument for argument in arguments if argument is not type(None))
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else (0,)
    return kind is str or all(isinstance(choice, str) for choice in choices), optional


def _build(kind, value, where, key):
    """`value` as YAML gave it, as `kind`: a dataclass, or one of the types its fields are annotated with."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where, key)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in _UNIONS and type(None) in arguments and len(arguments) == 2:  # Optional
        wanted, = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _build(wanted, value, where, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: {key} must be a list, not {_quote(value)}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise UserError(f"{where}: {key} must be a list of {len(arguments)}, not {_quote(value)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_build(wanted, item, where, f"{key}[{i}]") for i, (wanted, item) in enumerate(zip(kinds, value)))
    if origin is Literal:
        if value not in arguments:
            choices = list(map(str, arguments))
            raise UserError(f"{where}: {key} is {_quote(value)}; it must be one of {', '.join(choices)}"
                            f"{did_you_mean(value if isinstance(value, str) else '', choices, '')}")
        return value
    if kind not in _WORDS:
        raise UserError(f"{where}: {key} is declared as {kind}, which no config can hold: use int, float, bool, str, "
                        "Literal, Optional, or a Tuple of these")
    if kind is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            value = float(value)  # YAML 1.1 reads 1e-4, which has no dot, as a string
    if (type(value) is not kind or (kind is float and not math.isfinite(value))
            or (kind is int and abs(value) >= _LARGEST)):
        raise UserError(f"{where}: {key} must be {_WORDS[kind]}, not {_quote(value)}")
    return value


def _build_dataclass(kind, value, where, key):
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key} must be a section with keys, not {_quote(value)}")
    if kind is Task:
        return _build_task(value, where, key)
    if kind is Ranges:  # [low, high] stands for [[low, high]]
        value = {side: [limits] if isinstance(limits, (list, tuple)) and not any(isinstance(limit, (list, tuple))
                                                                                 for limit in limits) else limits
                 for side, limits in value.items()}
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    prefix, names = f"{key}." if key else "", [field.name for field in fields]
    for name in value:
        if name not in names:
            raise UserError(f"{where}: unknown key {prefix}{_quote(name) if not isinstance(name, str) else name[:80]}"
                            f"{did_you_mean(str(name)[:80], names)}")
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in value:
            raise UserError(f"{where}: {prefix}{field.name} must be given")
    return kind(**{name: _build(hints[name], item, where, prefix + name) for name, item in value.items()})


def _build_task(value, where, key):
    """A task by its name."""
    value = dict(value)
    if "name" not in value:
        raise UserError(f"{where}: {key}.name must be given")
    name = _build(str, value.pop("name"), where, f"{key}.name")
    try:
        kind = task_class(name)
    except UserError as error:
        raise UserError(f"{where}: {key}.name: {error}") from None
    try:
        # The defaults too, which in a user's own task may be anything.
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        _build_dataclass(kind, defaults, f"the task {name}", "default")
        return _build_dataclass(kind, value, where, key)
    except ValueError as error:
        raise UserError(f"{where}: {key}.{error}") from None


def _check_ranges(config, where):
    """What types cannot say."""
    if not config.tasks:
        raise UserError(f"{where}: tasks needs at least one task")
    _check_data(config, where)
    positive = {
        "model": ("in_channels", "out_channels", "base_channels", "num_res_blocks", "num_heads", "norm_groups",
                  "patch_size"),
        "data": ("image_size", "workers"),
        "training": ("steps", "batch_size", "accumulation", "learning_rate", "log_every", "sample_steps", "save_every",
                     "keep", "max_skipped"),
        "validation": ("pictures",),
    }
    for section, names in positive.items():
        for name in names:
            if getattr(getattr(config, section), name) <= 0:
                raise UserError(f"{where}: {section}.{name} must be above 0")
    for section, name in (("model", "dropout"), ("diffusion", "first_call"), ("training", "ema_decay"),
                          ("training", "source_dropout"), ("training", "text_dropout")):
        if not 0 <= getattr(getattr(config, section), name) < 1:
            raise UserError(f"{where}: {section}.{name} must be at least 0 and below 1")
    for section, name in (("data", "cache_mb"), ("training", "max_minutes"), ("training", "warmup_steps"),
                          ("training", "decay_steps"), ("training", "max_grad_norm"), ("training", "sample_every"),
                          ("training", "seed"), ("validation", "every")):
        if getattr(getattr(config, section), name) < 0:
            raise UserError(f"{where}: {section}.{name} must not be negative")
    if config.refiner:
        for name in ("pairs", "judge_channels", "judge_rate"):
            if getattr(config.refiner, name) <= 0:
                raise UserError(f"{where}: refiner.{name} must be above 0")
        if config.refiner.adversarial < 0:
            raise UserError(f"{where}: refiner.adversarial must not be negative")
    if not config.validation.metrics:
        raise UserError(f"{where}: validation.metrics needs at least one metric")
    if not 0 <= config.training.recompute <= len(config.model.channel_mults):
        raise UserError(f"{where}: training.recompute must be from 0 to {len(config.model.channel_mults)}, the number "
                        "of levels in model.channel_mults")
    profile = config.training.profile
    if profile is not None and (len(profile) != 2 or not 1 <= profile[0] <= profile[1] <= config.training.steps):
        raise UserError(f"{where}: training.profile must be [first, last], two steps from 1 to training.steps, not "
                        f"{list(profile)}")
    lora = config.training.lora
    if lora and (lora.rank < 1 or not lora.targets):
        raise UserError(f"{where}: training.lora.rank must be above 0, and training.lora.targets name at least one")
    if lora and not config.training.init_from:
        raise UserError(f"{where}: training.lora adapts a trained model: name it as training.init_from")
    levels = config.training.source_noise
    if not 0 <= levels[0] <= levels[1] <= 1:
        raise UserError(f"{where}: training.source_noise must be two numbers from 0 to 1, the smaller first, not "
                        f"{list(levels)}")
    _check_text(config.model, where)
    if not 0 < config.data.min_scale <= 1:
        raise UserError(f"{where}: data.min_scale must be above 0 and at most 1")
    if not config.model.channel_mults or min(config.model.channel_mults) * config.model.base_channels < 1:
        raise UserError(f"{where}: model.channel_mults needs at least one number above 0")
    _check_attention(config.model, where)
    _check_schedules(config.diffusion, f"{where}: diffusion")
    for i, task in enumerate(config.tasks):
        _check_schedules(task, f"{where}: tasks[{i}]")
    _check_source(config, where)
    _check_distillation(config, where)
    multiple = config.model.patch_size * 2 ** (len(config.model.channel_mults) - 1)
    if config.data.image_size % multiple:
        raise UserError(f"{where}: data.image_size {config.data.image_size} must be a multiple of {multiple} "
                        "(model.patch_size times 2 for each level after the first)")


def _check_schedules(section, where):
    for name in ("train_schedule", "test_schedule"):
        schedule = getattr(section, name)
        if schedule and (not 1 <= schedule.num_steps <= 10**6 or not 0 < schedule.start <= schedule.end < 1):
            raise UserError(f"{where}.{name} needs num_steps from 1 to a million and 0 < start ≤ end < 1")


def _network_channels(config):
    """The channels that the network must have by its config's data and tasks."""
    channels = config.data.channels
    source = channels.source if all(task.has_source for task in config.tasks) else 0
    return {"in_channels": source + channels.target,
            "out_channels": channels.target * (2 if config.diffusion.variance == "learned_range" else 1)}


def _check_data(config, where):
    """Do channels, ranges, results and tasks go together?"""
    data = config.data
    for side in ("source", "target"):
        count, limits = getattr(data.channels, side), getattr(data.ranges or Ranges(), side)
        if count < 1:
            raise UserError(f"{where}: data.channels.{side} must be above 0")
        if limits is not None and len(limits) not in (1, count):
            raise UserError(f"{where}: data.ranges.{side} must be one [low, high], or one for each of the {count} "
                            f"channels, not {len(limits)}")
        if any(low > high for low, high in limits or ()):
            raise UserError(f"{where}: data.ranges.{side} must be of the form [[low, high]], the smaller first")
    photos = isinstance(forms(data)[1], Photo)
    if data.result and photos:
        raise UserError(f"{where}: data.result is for arrays, and photos are written as PNG of 8 bits: add "
                        "data.ranges, if only {}")
    if data.result and None not in vars(data.result).values() and not can_write(**vars(data.result),
                                                                               channels=data.channels.target):
        raise UserError(f"{where}: data.result: no {data.result.suffix} can hold {data.channels.target} channels of "
                        f"{data.result.dtype}; .npy can")
    given = data.ranges or Ranges()
    if given.source and given.target and given.source != given.target and not any(
            task.needs_pairs for task in config.tasks):
        raise UserError(f"{where}: data.ranges.source must be that of target, or left out: the tasks make their "
                        "sources of the targets")
    if data.result and data.result.dtype and given.target and not can_hold(data.result.dtype, given.target):
        raise UserError(f"{where}: data.result: {data.result.dtype} cannot hold the values of data.ranges.target")
    for i, task in enumerate(config.tasks):
        if task.needs_rgb and not photos:
            raise UserError(f"{where}: tasks[{i}]: {task.name} needs RGB of 8 bits: leave data.channels and "
                            "data.ranges out")
        if task.has_source and not task.needs_pairs and data.channels.source != data.channels.target:
            raise UserError(f"{where}: data.channels.source must be {data.channels.target}, as target is, for "
                            f"{task.name}: its source is made of the target")


def _check_source(config, where):
    """Does the network have what the tasks need: a source or none, a label each?"""
    model, names = config.model, [task.name for task in config.tasks]
    without = [task.name for task in config.tasks if not task.has_source]
    unconditional = bool(without)
    if unconditional and len(names) > 1:
        raise UserError(f"{where}: a network that takes no source makes pictures only: {without[0]} must be the only "
                        "task")
    for name, channels in _network_channels(config).items():
        # A network that also learned its variance may be used without.
        fitting = (channels, 2 * config.data.channels.target) if name == "out_channels" else (channels,)
        if getattr(model, name) not in fitting:
            what = "the noisy picture" + ("" if unconditional else " and the source") if name == "in_channels" else \
                   "the picture" + (" and its variance" if config.diffusion.variance == "learned_range" else "")
            raise UserError(f"{where}: model.{name} must be {channels} for {', '.join(names)}: {what}")
    if unconditional and model.source_noise:
        raise UserError(f"{where}: model.source_noise must be false for {names[0]}: there is no source")
    if unconditional and config.training.source_dropout:
        raise UserError(f"{where}: training.source_dropout must be 0 for {names[0]}: there is no source")
    diffusion = config.diffusion
    for name, usual in (("from_source", False), ("process", "palette")):
        value = getattr(diffusion, name)
        if value != usual and (diffusion.prediction != "x0" or model.in_channels != 2 * model.out_channels):
            raise UserError(f"{where}: diffusion.{name} needs diffusion.prediction: x0 and tasks with a source, of as "
                            "many channels as the picture")
    if diffusion.first_call and diffusion.prediction == "eps":
        raise UserError(f"{where}: diffusion.first_call needs diffusion.prediction: x0 or v: at the noisiest level ε "
                        "says next to nothing of the picture")
    if diffusion.time_input != "gamma" and (diffusion.from_source or diffusion.noise_input != "value"
                                            or diffusion.process != "palette"):
        raise UserError(f"{where}: diffusion.from_source, diffusion.process: {diffusion.process} and "
                        f"diffusion.noise_input: {diffusion.noise_input} need diffusion.time_input: gamma, from which "
                        "they are reckoned")
    special = diffusion.loss in ("hybrid", "vlb", "vdm")
    if (diffusion.loss == "hybrid" and diffusion.variance != "learned_range") or (
            diffusion.loss == "vdm" and diffusion.whole_steps):
        raise UserError(f"{where}: diffusion.loss: {diffusion.loss} " + (
            "needs diffusion.variance: learned_range" if diffusion.loss == "hybrid" else
            "needs diffusion.time_input: gamma and a variance that is not learned"))
    if special and (diffusion.first_call or diffusion.noise_levels != "schedule"
                    or any(task.train_schedule for task in config.tasks)):
        raise UserError(f"{where}: diffusion.loss: {diffusion.loss} draws its own noise levels: leave out first_call, "
                        "noise_levels and the tasks' train_schedule")
    if model.num_classes is not None and not unconditional and model.num_classes < len(names):
        raise UserError(f"{where}: model.num_classes must be at least {len(names)}: each task has its own embedding")


def _check_distillation(config, where):
    diffusion, distillation = config.diffusion, config.distillation
    kept, length = diffusion.distilled, diffusion.test_schedule.num_steps
    if kept is not None and (not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= length):
        raise UserError(f"{where}: diffusion.distilled needs steps of test_schedule, from 0 to {length - 1}, ascending")
    if distillation:
        if diffusion.prediction == "eps":
            raise UserError(f"{where}: diffusion.prediction must be v or x0 for distillation: at the noisiest "
                            "levels ε says next to nothing of the picture")
        if diffusion.loss != "l2":
            raise UserError(f"{where}: diffusion.loss must be l2 for distillation, whatever its teacher's was")
        if not 1 <= distillation.steps <= length // 2:
            raise UserError(f"{where}: distillation.steps must be from 1 to {length // 2}, half of the test "
                            "schedule's")
    if distillation or kept:
        for i, task in enumerate(config.tasks):
            if task.test_schedule:
                raise UserError(f"{where}: tasks[{i}].test_schedule must be left out: a distilled model has one chain "
                                "for all tasks")


def _check_text(model, where):
    if model.res_blocks is not None and len(model.res_blocks) != len(model.channel_mults):
        raise UserError(f"{where}: model.res_blocks must name {len(model.channel_mults)} numbers, one for each level "
                        "in model.channel_mults")
    if model.res_blocks is not None and min(model.res_blocks) < 0:
        raise UserError(f"{where}: model.res_blocks must not be negative")
    for name in ("text_channels", "text_length", "text_width"):
        if getattr(model, name) is not None and getattr(model, name) < 1:
            raise UserError(f"{where}: model.{name} must be above 0")
    if model.text_blocks < 0:
        raise UserError(f"{where}: model.text_blocks must not be negative")
    if model.text_channels is None and (model.text_blocks or model.text_resolutions is not None):
        raise UserError(f"{where}: model.text_blocks and model.text_resolutions are for a network with "
                        "model.text_channels")


def _check_attention(model, where):
    ways = ("attention_blocks", "attention_block_size")
    given = [name for name in ways if getattr(model, name) is not None]
    if model.attention == "local" and len(given) != 1:
        raise UserError(f"{where}: model.attention local needs either model.attention_blocks (how many a side) "
                        "or model.attention_block_size (positions a side)")
    if model.attention != "local" and given:
        raise UserError(f"{where}: model.{given[0]} is for model.attention local, not for {model.attention}")
    if any(getattr(model, name) < 1 for name in given):
        raise UserError(f"{where}: model.{given[0]} must be above 0")
