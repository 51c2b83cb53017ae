"""Palette: a checkpoint, ready to restore pictures."""

import functools
import sys

import numpy as np
from mindspore import nn
from PIL import Image
from tqdm import tqdm

from palette_ms.checkpoint import Checkpoint
from palette_ms.data.images import load_image, to_float, to_uint8
from palette_ms.diffusion.denoisers import GuidedUNet, LabelledUNet, ReusingUNet
from palette_ms.diffusion.preconditioning import precondition
from palette_ms.diffusion.samplers import Sampling, WholeChain, create_chain, create_sampler
from palette_ms.diffusion.tiles import TiledUNet
from palette_ms.errors import UserError
from palette_ms.runtime import setup, takes_onnx
from palette_ms.searched import load_steps
from palette_ms.seeds import generator
from palette_ms.tasks.colorization import colorization, with_lightness
from palette_ms.tasks.degradations import enlarge
from palette_ms.tasks.inpainting import fill_hole, smooth_fill
from palette_ms.tasks.masks import MASKS
from palette_ms.unet.onnx import OnnxCell
from palette_ms.unet.unet import DeepFeatures, FinestLevel

# Bytes of the largest attention matrix for one picture, above which pictures are restored in tiles.
ATTENTION_LIMIT = 2**30


class Palette:
    """A denoiser with its config. `Palette.load` makes one from a file.

    Attributes:
        network: the network alone, `palette_ms.unet.UNet`.
        unet: the denoiser, called as unet(x (N, 6, H, W), gamma (N,)) → (N, 3, H, W): the network as its process calls
            it, see `palette_ms.diffusion.preconditioning`.
        config: what it was built and trained with, a `palette_ms.config.Config`.
        pictures: how many training pictures it has seen, or None: not known.
        source: which file of another program it was converted from, or None.
        searched: the steps that were searched for it, see `palette_ms.searched.load_steps`.
        onnx: the same network in ONNX Runtime, which chains call instead, or None.
    """

    def __init__(self, network, config, pictures=None, source=None, searched=None):
        self.network = network
        self.unet = precondition(network, config.diffusion)
        self.config = config
        self.pictures = pictures
        self.source = source
        self.searched = searched or {}
        self.onnx = None
        self._denoisers = {}
        self._compiled = {}
        self._reused = None

    @classmethod
    def load(cls, path, device="auto", runtime="auto"):
        """Load a checkpoint; the averaged weights are used where it has them.

        Args:
            path: a file (`.safetensors`, or MindSpore's `.ckpt` with its config beside it), or the name of a model
                that ships with the package: "quickstart".
            device: "auto", "Ascend", "GPU" or "CPU".
            runtime: what runs the network when pictures are made: "mindspore"; "onnx", ONNX Runtime, on a CPU (see
                `palette_ms.unet.onnx`); or "auto", ONNX Runtime where it is installed and can take the network. The
                pictures are the same but for rounding.

        Raises:
            UserError: no such file, a damaged one or one of another program, no such device, or ONNX Runtime cannot be
                used.
        """
        checkpoint = Checkpoint(path)
        setup(device)
        if checkpoint.source:
            print(f"model: {checkpoint.source}", file=sys.stderr)
        config = checkpoint.config
        palette = cls(checkpoint.load_unet(), config, checkpoint.pictures, checkpoint.source, load_steps(checkpoint))
        if takes_onnx(runtime, palette.network.num_bytes):
            identity = f"{config.model} {config.diffusion} {checkpoint.sha256}"
            palette.onnx = OnnxCell(palette.unet, checkpoint.path, identity)
        return palette

    @property
    def tasks(self):
        """Names of the tasks that the model was trained for."""
        return tuple(dict.fromkeys(task.name for task in self.config.tasks))

    def restore(self, image, task="colorization", mask=None, sampler=None, steps=None, num_samples=1, seed=0,
                scale=None, extend=None, tile=None, overlap=None, progress=None, **sampling):
        """Restore a picture of any size.

        The sizes that the network does not divide are padded by reflection and cropped back. What the mask leaves
        out comes back unchanged.

        In tiles (see `palette_ms.diffusion.tiles.TiledUNet`) each sees what is inside it alone. They are blended at
        every step, so that neighbours agree; what is a matter of the whole picture, such as its colours, can still
        differ between tiles far apart. Tiles without a pixel to make cost nothing.

        Args:
            image: path, PIL image or uint8 array (H, W), (H, W, 3) or (H, W, 4); for the task paired, the source.
            task: one of `tasks`.
            mask: for inpainting: path, PIL image or array of the picture's size, white (above half) where pixels
                are to be made, or the name of a kind of mask (`palette_ms.tasks.masks.MASKS`).
            sampler: "ddpm" (None), "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun" or "unipc".
            steps: network calls. None: the whole chain of the checkpoint's test schedule; a distilled model's own.
            num_samples: different results, made in one batch.
            seed: decides all noise, and the mask where a kind is named.
            scale: for super-resolution: the factor; None: the one that the model was trained for, if it is one.
            extend: for uncropping: pixels to add, a dict with some of left, right, top, bottom. More than half of the
                training size on a side is made in several goes, each continuing the one before.
            tile: side of tiles in pixels, a multiple of `network.multiple`. None: the whole picture at once, unless the
                network's largest attention matrix would take more than `ATTENTION_LIMIT` (1 GiB) for it; then tiles
                of the training size, said on stderr.
            overlap: the least overlap of neighbouring tiles in pixels; None: a quarter of the tile.
            progress: a `tqdm` bar, or anything with its `reset(total)` and `update(n)`: network calls, of all tiles.
            sampling: spacing, eta, dynamic_threshold, strength, tolerance, guidance, reuse: see
                `palette_ms.diffusion.samplers.Sampling`.

        Returns: list of `num_samples` PIL images, RGB, of the picture's size (times the scale, plus the extension).

        Raises:
            UserError: an unreadable picture, an unknown task or sampler, a mask that is missing, empty or of
                another size, a number out of range, an argument of another task.
        """
        place = self._place(task)
        trained = self.config.tasks[place]
        if task == "unconditional":
            raise UserError("this model makes pictures from nothing and restores none: use generate")
        _check_counts(num_samples, seed)
        for name, value, user in (("mask", mask, "inpainting"), ("scale", scale, "super_resolution"),
                                  ("extend", extend, "uncropping")):
            if value is not None and task != user:
                raise UserError(f"{task} takes no {name}: it is for {user}")
        self._check_tiles(tile, overlap)
        sampling = self._sampling(sampler=sampler, steps=steps, **sampling)
        labels = None if self.config.model.num_classes is None else (place,) * num_samples
        chains = functools.partial(self._chains, labels, trained, sampling, tile, overlap, progress)
        original = load_image(image)
        if task == "uncropping":
            return self._uncrop(original, _margins(extend), trained, chains, sampling, num_samples, seed)
        if task == "super_resolution":
            scale = _scale(scale, trained.scales)
            original = to_uint8(enlarge(original, scale * original.shape[0], scale * original.shape[1]))
        if task == "inpainting":
            hole = self._hole(mask, original.shape[:2], seed)
        else:
            hole = np.ones((1, *original.shape[:2]), np.float32)
        y_0, padded_hole = self._pad(to_float(original)), self._pad(hole)
        chain, = chains([padded_hole])
        if task == "inpainting":
            cond = fill_hole(y_0, padded_hole, generator(seed, "source"), trained.fill)
        elif task == "colorization":
            cond, _ = colorization(y_0, gray=trained.gray)
        else:
            cond = y_0  # the picture is already what the task would make of it
        guess = _first_guess(cond, padded_hole, trained) if sampling.strength < 1 else None
        cond, y_0 = (np.repeat(array[None], num_samples, 0) for array in (cond, y_0))
        made = _run(chain, cond, y_0, padded_hole, seed, guess)
        if task == "colorization" and trained.gray == "lightness":
            made = np.stack([with_lightness(np.clip(picture, -1, 1), source) for picture, source in zip(made, cond)])
        height, width = original.shape[:2]
        keep = hole[0][..., None] == 0
        return [Image.fromarray(np.where(keep, original, to_uint8(picture[:, :height, :width]))) for picture in made]

    def _uncrop(self, original, margins, trained, chains, sampling, num_samples, seed):
        """Side after side, at most half of the training size at a go: the model learned to make half of a picture from
        the other half, so each go shows it as much of what is next to the new strip."""
        size = self.config.data.image_size
        pictures = np.repeat(to_float(original)[None], num_samples, 0)
        goes = _goes(margins, size, original.shape[:2])
        holes = [self._pad(hole) for *_, hole in goes]
        for number, ((side, pixels, _), padded_hole, chain) in enumerate(zip(goes, holes, chains(holes))):
            axis = 3 if side in ("left", "right") else 2
            before = side in ("left", "top")
            near, new = [slice(None)] * 4, [slice(None)] * 4
            near[axis] = slice(size - pixels) if before else slice(-(size - pixels), None)
            canvas = np.pad(pictures[tuple(near)], ((0, 0), (0, 0), *_margin(side, pixels)))
            y_0 = np.stack([self._pad(picture) for picture in canvas])
            cond = np.stack([fill_hole(picture, padded_hole, generator(seed, "source", number), trained.fill)
                             for picture in y_0])
            round_seed = int(generator(seed, "go", number).integers(2**31))
            guess = None
            if sampling.strength < 1:
                guess = np.stack([_first_guess(source, padded_hole, trained) for source in cond])
            made = _run(chain, cond, y_0, padded_hole, round_seed, guess)
            new[axis] = slice(pixels) if before else slice(canvas.shape[axis] - pixels, canvas.shape[axis])
            strip = made[:, :, :canvas.shape[2], :canvas.shape[3]][tuple(new)]
            pictures = np.concatenate((strip, pictures) if before else (pictures, strip), axis)
        results = [to_uint8(picture) for picture in pictures]
        top, left = margins["top"], margins["left"]
        for result in results:
            result[top:top + original.shape[0], left:left + original.shape[1]] = original
        return [Image.fromarray(result) for result in results]

    def generate(self, num_samples=1, size=None, label=None, sampler=None, steps=None, seed=0, progress=None,
                 **sampling):
        """Pictures from nothing, with an unconditional or class-conditional model.

        Args:
            num_samples: how many, made in one batch.
            size: (height, width), multiples of `network.multiple`; None: the square that the model was trained at.
            label: class of a class-conditional model, or None: each picture draws one.
            sampler, steps, seed, progress, sampling: as in `restore`; there is no source to start from or to guide by.

        Returns: list of `num_samples` PIL images, RGB.

        Raises:
            UserError: a model that restores, an unknown class or sampler, a size that the network does not divide, a
                number out of range.
        """
        if "unconditional" not in self.tasks:
            raise UserError(f"this model restores pictures ({', '.join(self.tasks)}) and needs one: use restore")
        _check_counts(num_samples, seed)
        height, width = size or (self.config.data.image_size,) * 2
        if height < 1 or width < 1 or height % self.network.multiple or width % self.network.multiple:
            raise UserError(f"height and width must be multiples of {self.network.multiple}, not {height}×{width}")
        sampling = self._sampling(sampler=sampler, steps=steps, **sampling)
        if sampling.strength < 1 or sampling.guidance > 1:
            raise UserError("strength and guidance need a source, and this model takes none")
        chain = self._sampler(self._labels(label, num_samples, seed), self.config.tasks[0], sampling)
        update = None
        if progress is not None:
            progress.reset(chain.num_steps)
            update = progress.update
        y_T = _start(seed, num_samples, (self.config.model.in_channels, height, width))
        return [Image.fromarray(to_uint8(picture)) for picture in chain(None, y_T, seed, progress=update).asnumpy()]

    def chain(self, task=None, batch=1, sampler=None, steps=None):
        """A whole chain as one Cell, to be exported: see `palette_ms.diffusion.samplers.WholeChain`.

        Args:
            task: one of `tasks`; None: the only one.
            batch: pictures at once.
            sampler, steps: as in `restore`.

        Raises:
            UserError: an unknown task or sampler, a number out of range, a model that makes pictures of classes.
        """
        if "unconditional" in self.tasks and self.config.model.num_classes is not None:
            raise UserError("the chain of a class-conditional model cannot be exported, only its network, which takes "
                            "the class as an input")
        if task is None and len(self.tasks) > 1:
            raise UserError(f"this model knows several tasks: name one of {', '.join(self.tasks)}")
        task = task or self.tasks[0]
        place = self._place(task)
        labels = None if self.config.model.num_classes is None else (place,) * batch
        sampler = self._sampler(labels, self.config.tasks[place], self._sampling(sampler=sampler, steps=steps))
        return WholeChain(sampler, task != "unconditional").set_train(False)

    def _place(self, task):
        """Of a task among those of the config."""
        if task not in self.tasks:
            raise UserError(f"this model does not know the task {task!r}: it was trained for {', '.join(self.tasks)}")
        return [config.name for config in self.config.tasks].index(task)

    def _sampling(self, **options):
        try:
            sampling = Sampling(**options)
        except ValueError as error:
            raise UserError(str(error)) from None
        if sampling.guidance > 1 and not self.config.training.source_dropout:
            raise UserError("this model cannot be guided: it was trained with training.source_dropout 0, and has never "
                            "seen a picture without its source")
        return sampling

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

    def _check_tiles(self, tile, overlap):
        multiple = self.network.multiple
        if tile is None and overlap is not None:
            raise UserError("overlap is for tiles: name their side too, as tile")
        if tile is not None and (tile < 1 or tile % multiple):
            raise UserError(f"tile must be a multiple of {multiple} pixels, which this network divides, not {tile}")
        if overlap is not None and not 0 <= overlap <= tile - multiple:
            raise UserError(f"overlap must be from 0 to {tile - multiple} pixels for tiles of {tile}, not {overlap}")

    def _chains(self, labels, trained, sampling, tile, overlap, progress, holes):
        """For each hole (1, H, W) the sampler that fills it, and what it reports its network calls to.

        Args:
            labels: of the pictures, a tuple, or None.
            trained: the task's config.
            sampling: `Sampling`.
            tile, overlap, progress: as in `restore`.
        """
        size = self.config.data.image_size
        too_large = max(self.network.attention_bytes(*hole.shape[1:]) for hole in holes) > ATTENTION_LIMIT
        if tile is None and too_large and max(max(hole.shape) for hole in holes) > size:
            tile = size
            # Unlike print, this leaves a progress bar whole.
            tqdm.write(f"tiles of {tile}×{tile} pixels: the whole picture's attention would take more than "
                       f"{ATTENTION_LIMIT // 2**20} MiB", file=sys.stderr)
        update = None if progress is None else progress.update
        chains, calls = [], 0
        for hole in holes:
            if tile is None or max(hole.shape) <= tile:
                sampler = self._sampler(labels, trained, sampling)
                chains.append((sampler, update))
                calls += sampler.num_steps
            elif sampling.reuse > 1:
                raise UserError("reuse is for whole pictures: it would take one tile's features for the next")
            else:
                unet = TiledUNet(self._denoiser(labels, sampling), hole, self.network.multiple, tile, overlap, update)
                sampler = self._create_sampler(create_chain(unet, self.config.diffusion, sampling), trained, sampling)
                chains.append((sampler, None))  # the tiles report
                calls += sampler.num_steps * unet.num_tiles
        if progress is not None:
            progress.reset(calls)
        return chains

    def _denoiser(self, labels, sampling):
        """The network with its labels and guidance. Kept from picture to picture, since compiled graphs hang on it; but
        not one that remembers its chain."""
        if sampling.reuse > 1:
            return self._around(ReusingUNet(*self._parts(), sampling.reuse), labels, sampling.guidance)
        key = labels, sampling.guidance
        if key not in self._denoisers:
            self._denoisers[key] = self._around(self.onnx or self.unet, labels, sampling.guidance)
        return self._denoisers[key]

    def _parts(self):
        """The two kinds of call of a `ReusingUNet`."""
        if self._reused is None:
            parts = {"whole": DeepFeatures(self.unet), "finest": FinestLevel(self.unet)}
            self._reused = [self.onnx.part(cell, name) if self.onnx else cell for name, cell in parts.items()]
        return self._reused

    @staticmethod
    def _around(unet, labels, guidance):
        """A Cell around the network to compile with it; around one that is no Cell, plain lines."""
        compiled = isinstance(unet, nn.Cell)
        if labels is not None:
            cell = LabelledUNet(unet, labels * 2 if guidance > 1 else labels)
            unet = cell if compiled else cell.construct
        if guidance > 1:
            cell = GuidedUNet(unet, guidance)
            unet = cell if compiled else cell.construct
        return unet

    def _sampler(self, labels, trained, sampling):
        """With the chain that samplers of the same graph have compiled."""
        key = labels, sampling.guidance, sampling.dynamic_threshold is None, sampling.tolerance > 0
        chain = self._compiled.get(key) if sampling.reuse == 1 else None
        if chain is None:
            chain = create_chain(self._denoiser(labels, sampling), self.config.diffusion, sampling)
        if sampling.reuse == 1:
            self._compiled[key] = chain
        return self._create_sampler(chain, trained, sampling)

    def _create_sampler(self, chain, trained, sampling):
        try:
            return create_sampler(chain, self.config.diffusion, sampling, trained.test_schedule,
                                  self.searched.get(trained.name))
        except ValueError as error:
            raise UserError(str(error)) from None

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
        bottom, right = (-side % self.network.multiple for side in array.shape[1:])
        return np.pad(array, ((0, 0), (0, bottom), (0, right)), "symmetric")


def _check_counts(num_samples, seed):
    if num_samples < 1 or seed < 0:
        raise UserError("the number of samples must be at least 1, the seed at least 0")


def _run(chain, cond, y_0, hole, seed, guess=None):
    """A chain of `_chains` over a batch: cond and y_0 (N, 3, H, W), hole (1, H, W); returns (N, 3, H, W).

    guess: what it starts from, where that is not noise alone.
    """
    sampler, progress = chain
    hole = np.repeat(hole[None], len(y_0), 0)
    y_T = _start(seed, len(y_0), y_0.shape[1:])
    if guess is not None:
        y_T = sampler.start(guess, y_T)
    return sampler(cond, hole * y_T + (1 - hole) * y_0, seed, hole, y_0, progress).asnumpy()


def _first_guess(cond, hole, trained):
    """The source (3, H, W), or a smooth one where its hole holds noise."""
    return smooth_fill(cond, hole) if getattr(trained, "fill", None) == "noise" else cond


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


def _goes(margins, size, shape):
    """The strips of uncropping in the order they are made in: (side, pixels, hole).

    The hole (1, h, w) is that of the window which the model is shown: the strip and what is next to it, `size` pixels
    together.
    """
    shape, goes = list(shape), []
    for side, margin in margins.items():
        axis = 1 if side in ("left", "right") else 0
        for done in range(0, margin, size // 2):
            pixels = min(size // 2, margin - done)
            near = list(shape)
            near[axis] = min(shape[axis], size - pixels)
            hole = np.pad(np.zeros(near, np.float32), _margin(side, pixels), constant_values=1)
            goes.append((side, pixels, hole[None]))
            shape[axis] += pixels
    return goes


def _margin(side, pixels):
    """Pixels on one side, as `np.pad` takes them for (H, W)."""
    return {"left": ((0, 0), (pixels, 0)), "right": ((0, 0), (0, pixels)),
            "top": ((pixels, 0), (0, 0)), "bottom": ((0, pixels), (0, 0))}[side]
