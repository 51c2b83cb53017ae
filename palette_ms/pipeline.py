"""Palette: a checkpoint, ready to restore pictures."""

import dataclasses
import sys

import numpy as np
from PIL import Image

from palette_ms import runtime
from palette_ms.checkpoint import Checkpoint
from palette_ms.data.images import load_image, to_float, to_uint8
from palette_ms.diffusion.samplers import ClassConditional, create_sampler
from palette_ms.errors import UserError
from palette_ms.seeds import generator
from palette_ms.tasks.colorization import colorization, with_lightness
from palette_ms.tasks.degradations import enlarge
from palette_ms.tasks.inpainting import fill_hole
from palette_ms.tasks.masks import MASKS


class Palette:
    """A denoiser with its config. `Palette.load` makes one from a file.

    Attributes:
        unet: the denoiser, called as unet(x (N, 6, H, W), gamma (N,)) → (N, 3, H, W).
        config: what it was built and trained with, a `palette_ms.config.Config`.
        pictures: how many training pictures it has seen, or None: not known.
        source: which file of another program it was converted from, or None.
    """

    def __init__(self, unet, config, pictures=None, source=None):
        self.unet = unet
        self.config = config
        self.pictures = pictures
        self.source = source
        self._samplers = {}

    @classmethod
    def load(cls, path, device="auto"):
        """Load a checkpoint; the averaged weights are used where it has them.

        Args:
            path: a file (`.safetensors`, or MindSpore's `.ckpt` with its config beside it), or the name of a model
                that ships with the package: "quickstart".
            device: "auto", "Ascend", "GPU" or "CPU".

        Raises:
            UserError: no such file, a damaged one or one of another program, or no such device.
        """
        checkpoint = Checkpoint(path)
        runtime.setup(device)
        if checkpoint.source:
            print(f"model: {checkpoint.source}", file=sys.stderr)
        return cls(checkpoint.load_unet(), checkpoint.config, checkpoint.pictures, checkpoint.source)

    @property
    def tasks(self):
        """Names of the tasks that the model was trained for."""
        return tuple(dict.fromkeys(task.name for task in self.config.tasks))

    def restore(self, image, task="colorization", mask=None, sampler="ddpm", steps=None, num_samples=1, seed=0,
                scale=None, extend=None, progress=None):
        """Restore a picture of any size.

        The sizes that the network does not divide are padded by reflection and cropped back. What the mask leaves
        out comes back unchanged.

        Args:
            image: path, PIL image or uint8 array (H, W), (H, W, 3) or (H, W, 4).
            task: one of `tasks`.
            mask: for inpainting: path, PIL image or array of the picture's size, white (above half) where pixels
                are to be made, or the name of a kind of mask (`palette_ms.tasks.masks.MASKS`).
            sampler: "ddpm".
            steps: network calls, evenly respaced; None: the whole chain of the checkpoint's test schedule.
            num_samples: different results, made in one batch.
            seed: decides all noise, and the mask where a kind is named.
            scale: for super-resolution: the factor; None: the one that the model was trained for, if it is one.
            extend: for uncropping: pixels to add, a dict with some of left, right, top, bottom. More than half of the
                training size on a side is made in several goes, each continuing the one before.
            progress: called with the number of steps done since the last call.

        Returns: list of `num_samples` PIL images, RGB, of the picture's size (times the scale, plus the extension).

        Raises:
            UserError: an unreadable picture, an unknown task or sampler, a mask that is missing, empty or of
                another size, a number out of range, an argument of another task.
        """
        if task not in self.tasks:
            raise UserError(f"this model does not know the task {task!r}: it was trained for {', '.join(self.tasks)}")
        place = [config.name for config in self.config.tasks].index(task)
        trained = self.config.tasks[place]
        if task == "unconditional":
            raise UserError("this model makes pictures from nothing and restores none: use generate")
        _check_counts(num_samples, seed)
        for name, value, user in (("mask", mask, "inpainting"), ("scale", scale, "super_resolution"),
                                  ("extend", extend, "uncropping")):
            if value is not None and task != user:
                raise UserError(f"{task} takes no {name}: it is for {user}")
        original = load_image(image)
        labels = None if self.config.model.num_classes is None else (place,) * num_samples
        chain = self._sampler(sampler, steps, labels, trained.test_schedule)
        if task == "uncropping":
            return self._uncrop(original, _margins(extend), trained, chain, num_samples, seed, progress)
        if task == "super_resolution":
            scale = _scale(scale, trained.scales)
            original = to_uint8(enlarge(original, scale * original.shape[0], scale * original.shape[1]))
        if task == "inpainting":
            hole = self._hole(mask, original.shape[:2], seed)
        else:
            hole = np.ones((1, *original.shape[:2]), np.float32)
        y_0, padded_hole = self._pad(to_float(original)), self._pad(hole)
        if task == "inpainting":
            cond = fill_hole(y_0, padded_hole, generator(seed, "source"), trained.fill)
        elif task == "colorization":
            cond, _ = colorization(y_0, gray=trained.gray)
        else:
            cond = y_0  # the picture is already what the task would make of it
        cond, y_0 = (np.repeat(array[None], num_samples, 0) for array in (cond, y_0))
        made = self._run(chain, cond, y_0, padded_hole, seed, progress)
        if task == "colorization" and trained.gray == "lightness":
            made = np.stack([with_lightness(np.clip(picture, -1, 1), source) for picture, source in zip(made, cond)])
        height, width = original.shape[:2]
        keep = hole[0][..., None] == 0
        return [Image.fromarray(np.where(keep, original, to_uint8(picture[:, :height, :width]))) for picture in made]

    def _uncrop(self, original, margins, trained, chain, num_samples, seed, progress):
        """Side after side, at most half of the training size at a go: the model learned to make half of a picture from
        the other half, so each go shows it as much of what is next to the new strip."""
        size = self.config.data.image_size
        pictures = np.repeat(to_float(original)[None], num_samples, 0)
        goes = [(side, min(size // 2, margin - done)) for side, margin in margins.items()
                for done in range(0, margin, size // 2)]
        for number, (side, pixels) in enumerate(goes):
            axis = 3 if side in ("left", "right") else 2
            before = side in ("left", "top")
            near, new, margin = [slice(None)] * 4, [slice(None)] * 4, [(0, 0)] * 4
            near[axis] = slice(size - pixels) if before else slice(-(size - pixels), None)
            margin[axis] = (pixels, 0) if before else (0, pixels)
            window = pictures[tuple(near)]
            canvas = np.pad(window, margin)
            hole = np.pad(np.zeros_like(window[0, :1]), margin[1:], constant_values=1)
            padded_hole = self._pad(hole)
            y_0 = np.stack([self._pad(picture) for picture in canvas])
            cond = np.stack([fill_hole(picture, padded_hole, generator(seed, "source", number), trained.fill)
                             for picture in y_0])
            round_seed = int(generator(seed, "go", number).integers(2**31))
            made = self._run(chain, cond, y_0, padded_hole, round_seed, progress)
            new[axis] = slice(pixels) if before else slice(canvas.shape[axis] - pixels, canvas.shape[axis])
            strip = made[:, :, :canvas.shape[2], :canvas.shape[3]][tuple(new)]
            pictures = np.concatenate((strip, pictures) if before else (pictures, strip), axis)
        results = [to_uint8(picture) for picture in pictures]
        top, left = margins["top"], margins["left"]
        for result in results:
            result[top:top + original.shape[0], left:left + original.shape[1]] = original
        return [Image.fromarray(result) for result in results]

    def generate(self, num_samples=1, size=None, label=None, sampler="ddpm", steps=None, seed=0, progress=None):
        """Pictures from nothing, with an unconditional or class-conditional model.

        Args:
            num_samples: how many, made in one batch.
            size: (height, width), multiples of `unet.multiple`; None: the square that the model was trained at.
            label: class of a class-conditional model, or None: each picture draws one.
            sampler, steps, seed, progress: as in `restore`.

        Returns: list of `num_samples` PIL images, RGB.

        Raises:
            UserError: a model that restores, an unknown class or sampler, a size that the network does not divide, a
                number out of range.
        """
        if "unconditional" not in self.tasks:
            raise UserError(f"this model restores pictures ({', '.join(self.tasks)}) and needs one: use restore")
        _check_counts(num_samples, seed)
        height, width = size or (self.config.data.image_size,) * 2
        if height < 1 or width < 1 or height % self.unet.multiple or width % self.unet.multiple:
            raise UserError(f"height and width must be multiples of {self.unet.multiple}, not {height}×{width}")
        chain = self._sampler(sampler, steps, self._labels(label, num_samples, seed))
        y_T = _start(seed, num_samples, (self.config.model.in_channels, height, width))
        return [Image.fromarray(to_uint8(picture)) for picture in chain(None, y_T, seed, progress=progress).asnumpy()]

    def _labels(self, label, num_samples, seed):
        """The class of each picture, a tuple; None for a model without classes."""
        classes = self.config.model.num_classes
        if classes is None:
            if label is not None:
                raise UserError("this model knows no classes")
            return None
        if label is None:
            return tuple(generator(seed, "label", k).integers(classes) for k in range(num_samples))
        if not 0 <= label < classes:
            raise UserError(f"there is no class {label}: this model knows 0 to {classes - 1}")
        return (label,) * num_samples

    def _run(self, chain, cond, y_0, hole, seed, progress):
        """Chains over a batch: cond and y_0 (N, 3, H, W), hole (1, H, W); returns (N, 3, H, W)."""
        hole = np.repeat(hole[None], len(y_0), 0)
        y_T = hole * _start(seed, len(y_0), y_0.shape[1:]) + (1 - hole) * y_0
        return chain(cond, y_T, seed, hole, y_0, progress).asnumpy()

    def _sampler(self, name, steps, labels, schedule=None):
        """The chain for pictures of these labels, by the test schedule given or the common one. Kept from picture to
        picture, since it holds the compiled graph."""
        key = name, steps, labels, schedule
        if key not in self._samplers:
            unet = self.unet if labels is None else ClassConditional(self.unet, labels)
            diffusion = self.config.diffusion
            if schedule:
                diffusion = dataclasses.replace(diffusion, test_schedule=schedule)
            try:
                self._samplers[key] = create_sampler(unet, diffusion, steps, name)
            except ValueError as error:
                raise UserError(str(error)) from None
        return self._samplers[key]

    def _hole(self, mask, size, seed):
        """The mask of inpainting as float32 (1, H, W)."""
        if mask is None:
            raise UserError(f"inpainting needs a mask: a picture that is white where pixels are to be made, "
                            f"or {', '.join(MASKS)}")
        if isinstance(mask, str) and mask in MASKS:
            return MASKS[mask](generator(seed, "mask"), *size)
        if isinstance(mask, np.ndarray) and mask.dtype == bool:
            mask = mask.astype(np.uint8) * 255
        hole = load_image(mask).mean(2) > 127
        if hole.shape != size:
            raise UserError(f"the mask is {hole.shape[1]}×{hole.shape[0]}, the picture {size[1]}×{size[0]} "
                            "(width × height): they must be the same")
        if not hole.any():
            raise UserError("the mask has no white pixel: nothing to make")
        return hole[None].astype(np.float32)

    def _pad(self, array):
        """(C, H, W) → height and width up to the next multiple that the network divides, by reflection."""
        bottom, right = (-side % self.unet.multiple for side in array.shape[1:])
        return np.pad(array, ((0, 0), (0, bottom), (0, right)), "symmetric")


def _check_counts(num_samples, seed):
    if num_samples < 1 or seed < 0:
        raise UserError("the number of samples must be at least 1, the seed at least 0")


def _start(seed, count, shape):
    """The noise that chains start from, float32 (count, *shape): each picture has a stream of its own."""
    return np.stack([generator(seed, "start", k).standard_normal(shape, np.float32) for k in range(count)])


def _scale(scale, trained):
    """The factor of super-resolution, the user's or else the only one trained for."""
    if scale is None:
        if len(trained) > 1:
            raise UserError(f"this model knows several factors: name scale, one of {', '.join(map(str, trained))}")
        return trained[0]
    if scale not in trained:
        raise UserError(f"this model was not trained to enlarge {scale} times, but {', '.join(map(str, trained))}")
    return scale


def _margins(extend):
    """The pixels to add on each side, in the order they are made in."""
    sides = ("left", "right", "top", "bottom")
    if not extend:
        raise UserError(f"uncropping needs extend: how many pixels to add on some of {', '.join(sides)}")
    for side, pixels in extend.items():
        if side not in sides or type(pixels) is not int or pixels < 0:
            raise UserError(f"extend: {side}={pixels!r} is not a number of pixels on one of {', '.join(sides)}")
    if not any(extend.values()):
        raise UserError("extend adds no pixel: nothing to make")
    return {side: extend.get(side, 0) for side in sides}
