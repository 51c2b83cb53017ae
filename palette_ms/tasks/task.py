"""What a task is: one frozen dataclass, in one file.

Its fields are its options in a config. It says how a clean picture becomes a training pair, what a user may ask with a
picture, and how that picture goes into the chain and comes out again. A subclass is known by its `name` from then on.

Pictures are float32 (C, H, W) in [−1, 1] with any number of channels C, masks float32 (1, H, W), 1 where pixels are to
be made. Randomness comes from the generator that is handed in, so that the same one gives the same.
"""

import dataclasses
import inspect
import typing
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Callable, ClassVar, Dict, List, Mapping, Optional, Tuple, Type

import numpy as np
from PIL import Image

from palette_ms.data.forms import cast
from palette_ms.diffusion.schedule import ScheduleConfig
from palette_ms.diffusion.usage import Usage
from palette_ms.errors import UserError, did_you_mean
from palette_ms.tasks.asks import Ask

TASKS: Dict[str, Type["Task"]] = {}  # by name


class Request(dict):
    """What a user asks with a picture: the value of each of the task's asks by name, None where nothing was asked.

    Attributes:
        trained: side of the pictures that the model was trained with.
        form: of its sources, see `palette_ms.data.forms`.
        tiled: whether the user named tiles, and so wants a picture at its own size.
    """

    def __init__(self, asked: Mapping[str, Any], trained: int, form: Any, tiled: bool = False) -> None:
        super().__init__(asked)
        self.trained = trained
        self.form = form
        self.tiled = tiled


def option(default: Any, help: str, least: Optional[float] = None, most: Optional[float] = None,
           above: Optional[float] = None) -> Any:
    """A field of a task: an option in the config.

    Args:
        default: its value where a config says nothing.
        help: what it means, in a line.
        least, most: what its number, or each number of its tuple, must be at least and at most.
        above: what it must be above.

    Examples:
        >>> from palette_ms.tasks import task_class
        >>> task_class("denoising").__dataclass_fields__["sigma"].metadata["help"]
        "its deviation, in 255ths of the pictures' range, drawn evenly"
        >>> task_class("denoising")(sigma=(5.0, -1.0))
        Traceback (most recent call last):
        ValueError: sigma must be at least 0, not (5.0, -1.0)
    """
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "most": most, "above": above})


def bounds(field):
    """The range of an `option` in words, empty where it has none."""
    ends = (("at least", "least"), ("at most", "most"), ("above", "above"))
    return " and ".join(f"{word} {field.metadata[key]}" for word, key in ends if field.metadata.get(key) is not None)


@dataclass(frozen=True)
class Task:
    """The options that all tasks have, and what a task can say of itself; every subclass is a task.

    Attributes:
        name: in configs and commands, such as "denoising".
        asks: what a user may ask with a picture, see `palette_ms.tasks.asks`.
        required: names of those that the task cannot do without.
        has_source: False: the model takes no source.
        needs_pairs: the data give the sources, and `pair` takes them.
        needs_rgb: it is about photos in RGB of 8 bits, not about any channels.
        keeps_gray: of a gray photo the result is gray, too.
        looks_far: what is right for a pixel depends on what is far from it, so that what is too large to be restored
            at once is taken in tiles as large as they may be.
        filter: Pillow's, by which a user's picture is resized to the result's size.

    Raises:
        ValueError: an option out of its range, which the message begins with.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Negative(Task):
        ...     name = "negative"
        ...     strength: float = option(1.0, "1 is the whole negative", least=0, most=1)
        ...
        ...     def pair(self, y_0, rng):
        ...         return (1 - 2 * self.strength) * y_0, None
        >>> cond, mask = Negative().pair(np.full((3, 2, 2), 0.5, np.float32), np.random.default_rng(0))
        >>> float(cond[0, 0, 0])
        -0.5
        >>> Negative(strength=0.25).options()
        {'strength': 0.25}
        >>> del TASKS["negative"]  # a subclass is known from then on
    """

    name: ClassVar[str]
    asks: ClassVar[Tuple[Ask, ...]] = ()
    required: ClassVar[Tuple[str, ...]] = ()
    has_source: ClassVar[bool] = True
    needs_pairs: ClassVar[bool] = False
    needs_rgb: ClassVar[bool] = False
    keeps_gray: ClassVar[bool] = True
    looks_far: ClassVar[bool] = False
    filter: ClassVar[Any] = Image.Resampling.BICUBIC

    weight: float = option(1.0, "share of the training pictures, beside the other tasks' weights", above=0)
    loss_weight: float = option(1.0, "what a picture counts in the loss", above=0)
    train_schedule: Optional[ScheduleConfig] = option(None, "noise levels in training, if not the diffusion section's")
    test_schedule: Optional[ScheduleConfig] = option(None, "the chain's, if not the diffusion section's")
    usage: Optional[Usage] = option(None, "sampler and network calls by default; python -m palette_ms.tune measures "
                                          "them")
    recolor: float = option(0.0, "share of the training pictures given other colours, where there are so few that the "
                                 "model would learn their palettes by heart; not for colorization, which is to learn "
                                 "them", least=0, most=1)

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        if "name" not in cls.__dict__:
            return  # a base of tasks
        known = TASKS.get(cls.name)
        # The same file may be imported twice, by another name, and a notebook's cell run twice.
        if known and (known.__qualname__, _file(known)) != (cls.__qualname__, _file(cls)):
            raise UserError(f"there is a task {cls.name} already, {known.__qualname__}: choose another name")
        for ask in cls.asks:
            _check_name(cls, ask)
        names = [ask.name for ask in cls.asks]
        if len(names) > len(set(names)) or not set(cls.required) <= set(names):
            raise UserError(f"{cls.name} must have an ask for each name in required, and one of each name in asks")
        TASKS[cls.name] = cls

    @property
    def has_classes(self) -> bool:
        """Whether the network's labels are classes of pictures, which the user names, rather than tasks."""
        return False

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == ():
                raise ValueError(f"{field.name} must name at least one")
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(number, (int, float)) for number in numbers):
                continue
            arguments = typing.get_args(hints[field.name])
            is_range = isinstance(value, tuple) and len(arguments) == 2 and Ellipsis not in arguments
            least, most, above = (field.metadata.get(key) for key in ("least", "most", "above"))
            if any((least is not None and number < least) or (most is not None and number > most)
                   or (above is not None and number <= above) for number in numbers):
                raise ValueError(f"{field.name} must be {bounds(field)}, not {value}")
            if is_range and value[0] > value[1]:
                raise ValueError(f"{field.name} must be two numbers, the smaller first, not {value}")

    def options(self) -> Dict[str, Any]:
        """The values of the task's own fields, beside those that all tasks have, by name."""
        common = {field.name for field in dataclasses.fields(Task)}
        return {name: value for name, value in vars(self).items() if name not in common}

    def to_dict(self) -> Dict[str, Any]:
        """As a config holds it."""
        return {"name": self.name, **dataclasses.asdict(self)}

    # Training

    def pair(self, y_0: np.ndarray, rng: np.random.Generator) -> Tuple[Optional[np.ndarray], Optional[np.ndarray]]:
        """A training pair: (cond, mask) of a clean picture.

        Args:
            y_0: (C, H, W).
            rng: numpy.random.Generator.
            source, mask: further arguments of tasks that `needs_pairs`: what the data give, mask or None.

        Returns: a tuple of the source, as y_0, or None without one, and the mask (1, H, W), or None: everything is to
            be made.
        """
        raise UserError(f"the task {self.name}, {type(self).__qualname__}, needs a method pair")

    def checked_pair(self, y_0, rng, channels, **given):
        """What `pair` gives, float32.

        Args:
            y_0, rng, given: the arguments of `pair`, which may change its y_0 as it likes.
            channels: of the sources.

        Raises:
            UserError: something else than a source and a mask of the picture's size.
        """
        made = self.pair(y_0.copy(), rng, **given)
        if not isinstance(made, tuple) or len(made) != 2:
            raise UserError(f"the task {self.name} must give a source and a mask, or None in place of the mask")
        cond, mask = made
        if self.has_source:
            cond = _checked(self, "source", cond, (channels, *y_0.shape[1:]))
        elif cond is not None:
            raise UserError(f"the task {self.name} has no source, and its pair gives one")
        return cond, None if mask is None else _checked(self, "mask", mask, (1, *y_0.shape[1:]))

    # Use

    def size(self, height: int, width: int, asked: Request) -> Tuple[int, int]:
        """The result's (height, width); the user's picture is resized to it before anything else.

        Args:
            height, width: of the user's picture.
            asked: `Request`.

        Raises UserError: what is asked does not fit the options.
        """
        return height, width

    def holes(self, height: int, width: int, asked: Request, rng: np.random.Generator) -> List[np.ndarray]:
        """The chains that a picture takes: for each, the mask (1, h, w) of what it makes: all above 0. Values between 0
        and 1 say how much of it comes into the result, see `put_back`.

        Args:
            height, width: of the result.
            asked: `Request`.
            rng: numpy.random.Generator.

        Raises UserError: a mask that cannot be used.
        """
        return [np.ones((1, height, width), np.float32)]

    def source(self, picture: np.ndarray, hole: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What the network is given as the source of a chain; here the picture, which already is what `pair` makes.

        Args:
            picture: (C, h, w).
            hole: (1, h, w).
            rng: numpy.random.Generator.

        Returns: as picture.
        """
        return picture

    def checked_source(self, picture, hole, rng):
        """What `source` gives, float32. Raises UserError: something else than a source of the picture's size."""
        return _checked(self, "source", self.source(picture, hole, rng), picture.shape)

    def checked_size(self, height, width, asked):
        """What `size` gives. Raises UserError: something else than a size, too."""
        size = self.size(height, width, asked)
        if not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(n, Integral) and n > 0 for n in size):
            raise UserError(f"the task {self.name} makes {size!r} of the size {height}×{width}: it must be two whole "
                            "numbers above 0")
        return size

    def checked_holes(self, height, width, asked, rng):
        """What `holes` gives, float32. Raises UserError: something else than masks, too."""
        holes = self.holes(height, width, asked, rng)
        if not isinstance(holes, list) or not holes:
            raise UserError(f"the task {self.name} must give a list of holes, one a chain")
        return [_checked(self, "hole", hole, (1, *np.shape(hole)[-2:])) for hole in holes]

    def checked_guess(self, cond, hole):
        """What `guess` gives, float32. Raises UserError: something else than a picture of the source's size."""
        return _checked(self, "source", self.guess(cond, hole), cond.shape)

    def guess(self, cond: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """What a chain below the full strength starts from: a source (C, h, w) without the noise that a task put in."""
        return cond

    def restore(self, pictures: np.ndarray, asked: Request, run: Callable[..., np.ndarray]) -> np.ndarray:
        """The chains' work put together.

        Args:
            pictures: (N, C, H, W) of the result's size, samples of one picture or pictures of one size.
            asked: `Request`.
            run: `run(pictures, number=0, stream=None)` → what the chain of that number in `holes` makes of pictures of
                that hole's size, (N · samples, C, h, w) of N pictures or of all samples. stream: a number for a chain
                that is to have noise of its own.

        Returns: (N · samples, C, H, W).
        """
        return run(pictures)

    def put_back(self, result: np.ndarray, picture: np.ndarray, hole: np.ndarray, asked: Request) -> np.ndarray:
        """A result with what was known before as it was. Asked only where results are of the source's channels.

        Args:
            result, picture: arrays (H, W, C) of the files' own values, in the results' dtype.
            hole: (1, h, w), the first of `holes`, which leaves something out: 1 where pixels were made, between 0 and 1
                where they are laid over the known ones.
            asked: `Request`.

        Returns: as result.
        """
        weight = hole[0][..., None]
        if ((weight > 0) & (weight < 1)).any():
            return cast(picture + weight * np.subtract(result, picture, dtype=np.float64), result.dtype)
        return np.where(weight > 0, result, picture)


def task_class(name: str) -> Type[Task]:
    """The task of a name.

    Raises:
        UserError: there is none, or it is no frozen dataclass.

    Examples:
        >>> task_class("jpeg_restoration")(quality=(10, 10)).options()
        {'quality': (10, 10)}
        >>> task_class("jpeg_restauration")
        Traceback (most recent call last):
        palette_ms.errors.UserError: there is no task 'jpeg_restauration'; did you mean jpeg_restoration? (one of your \
own comes with --import FILE.py)
    """
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}{did_you_mean(name, TASKS)} (one of your own comes with --import "
                        "FILE.py)")
    if "__dataclass_fields__" not in TASKS[name].__dict__:
        raise UserError(f"the task {name}, {TASKS[name].__qualname__}, needs @dataclass(frozen=True) before its class")
    plain = [field.name for field in dataclasses.fields(TASKS[name]) if "help" not in field.metadata]
    if plain:
        raise UserError(f"the task {name}: {plain[0]} must be an option(default, help, …), or have no type if it is "
                        "none")
    return TASKS[name]


def known_asks():
    """What users may ask: dict from each `Ask` to the names of the tasks that take it."""
    takers = {}
    for task in TASKS.values():
        for ask in task.asks:
            takers.setdefault(ask, []).append(task.name)
    return takers


def check_asked(task, asked, trained, form, tiled=False):
    """What is asked of a task, checked against its declarations.

    Args:
        task: `Task`.
        asked: values by name; None: not asked.
        trained, form, tiled: as of `Request`.

    Returns: `Request`.

    Raises:
        UserError: something that the task does not take or that is out of range, or nothing where it is needed.
    """
    own = {ask.name: ask for ask in task.asks}
    for name, value in asked.items():
        if name not in own and value is not None:
            takers = [taker for ask, takers in known_asks().items() if ask.name == name for taker in takers]
            raise UserError(f"{task.name} takes no {name}" + (f": it is for {', '.join(takers)}" if takers else ""))
    for name, ask in own.items():
        if asked.get(name) is not None:
            ask.check(asked[name])
        elif name in task.required:
            raise UserError(f"{task.name} needs {name}: {ask.help}")
    return Request({name: asked.get(name) for name in own}, trained, form, tiled)


def _checked(task, what, array, shape):
    try:
        array = np.asarray(array)
    except ValueError:  # lists of several lengths
        array = np.array(None)
    if array.shape != shape or array.dtype.kind not in "buif":
        raise UserError(f"the task {task.name} gives a {what} of the shape {array.shape} and type {array.dtype}, where "
                        f"numbers of the shape {shape} are needed")
    if not np.isfinite(array).all():
        raise UserError(f"the task {task.name} gives a {what} with values that are NaN or infinite")
    if what != "source" and not 0 <= array.min() <= array.max() <= 1:
        raise UserError(f"the task {task.name} gives a {what} with values that are not from 0 to 1")
    return array.astype(np.float32, copy=False)


def _file(cls):
    """Where a class stands; of one that stands in no file, its module."""
    try:
        return inspect.getfile(cls)
    except (OSError, TypeError):
        return cls.__module__


# What `Palette.restore` and the commands take for every task.
_TAKEN = {"image", "task", "sampler", "steps", "num_samples", "seed", "tile", "overlap", "progress", "spacing", "eta",
          "dynamic_threshold", "strength", "detail", "tolerance", "guidance", "guidance_schedule", "guidance_interval",
          "reuse", "ckpt", "input", "output",
          "class", "label", "device", "runtime", "precision", "import", "imports", "help", "start", "repeats", "jump",
          "rounds", "round_noise", "best", "score", "mix", "blend", "resample", "resample_regions", "confidence",
          "border_rounds", "refine", "details", "weights", "text", "source_noise"}


def _check_name(cls, ask):
    """One name means one thing."""
    if ask.name in _TAKEN:
        raise UserError(f"{cls.name} asks for {ask.name}, which every task takes: give it another name")
    for other, takers in known_asks().items():
        if other.name == ask.name and other != ask and takers != [cls.name]:
            raise UserError(f"{cls.name} asks for another {ask.name} than {', '.join(takers)}: give it another name")
