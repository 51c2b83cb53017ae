"""Palette: a checkpoint, ready to restore pictures."""

import dataclasses
import functools
import sys
import time
from inspect import isfunction
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Literal, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from palette_ms.chains import CHAIN_BYTES, Chains
from palette_ms.checkpoint import Checkpoint, check_model
from palette_ms.config import Config
from palette_ms.data.captions import Text, filled_up
from palette_ms.data.forms import can_hold, forms
from palette_ms.diffusion.preconditioning import around_network
from palette_ms.diffusion.process import noised
from palette_ms.diffusion.samplers import Sampling
from palette_ms.diffusion.schedule import make_gamma_schedule, strength_of
from palette_ms.diffusion.usage import Usage
from palette_ms.diffusion.worth import features
from palette_ms.errors import UserError
from palette_ms.holes import around, fill, inside, whole_pass
from palette_ms.priors.restorations import calls
from palette_ms.quality.refiner import Refiner
from palette_ms.quality.stage import QUALITY, Details, Quality, Stage
from palette_ms.runtime import max_memory, setup, setup_sampling
from palette_ms.searched import load_steps
from palette_ms.seeds import generator
from palette_ms.tasks import check_asked
from palette_ms.tasks.task import Request
from palette_ms.unet.plan import multiple

if TYPE_CHECKING:
    from palette_ms.diffusion.cells import WholeChain
    from palette_ms.unet import UNet

Picture = Union[str, "PathLike[str]", Image.Image, np.ndarray]
Result = Any  # a PIL image, or of models of arrays an array

# Bytes that each value of a picture takes from its file to the result, beside the chain's.
_PICTURE_BYTES = 17

SAMPLING = {field.name for field in dataclasses.fields(Sampling)}


class Palette:
    """A denoiser with its config. `Palette.load` makes one from a file.

    Attributes:
        network: the network alone, `palette_ms.unet.UNet`, built when it is first asked for.
        unet: the denoiser, called as unet(x (N, 6, H, W), gamma (N,)) → (N, 3, H, W) of photos, else with as many
            channels as `config.model` says: the network as its process calls it, see
            `palette_ms.diffusion.preconditioning`.
        config: what it was built and trained with, a `palette_ms.config.Config`.
        pictures: how many training pictures it has seen, or None: not known.
        source: which file of another program it was converted from, or None.
        path, sha256: of the file it was loaded from, and what tells it from others; None: of none.
        forms: how pictures of its source and target are read and written, see `palette_ms.data.forms`.
        chains: its samplers, see `palette_ms.chains`.

    Examples:
        >>> from PIL import Image
        >>> palette = Palette.load("photo")
        >>> palette.tasks[:3]
        ('jpeg_restoration', 'denoising', 'super_resolution')
        >>> small, = palette.restore(Image.new("RGB", (16, 12), "teal"), task="super_resolution", scale=2)
        >>> small.size
        (32, 24)
    """

    def __init__(self, network: Union["UNet", Callable[[], "UNet"]], config: Config, pictures: Optional[int] = None,
                 source: Optional[str] = None, searched: Optional[Dict[int, List[int]]] = None) -> None:
        """network: `palette_ms.unet.UNet`, or a function that builds it."""
        self._network = network
        self.config = config
        self.pictures = pictures
        self.source = source
        self.path: Optional[Path] = None
        self.sha256: Optional[str] = None
        self.forms = forms(config.data)
        self.chains = Chains(lambda: self.unet, config, searched or {})
        self._prior = None
        self._build_refiner: Optional[Callable[[], Refiner]] = None

    @classmethod
    def load(cls, path: Union[str, "PathLike[str]"], device: str = "auto", runtime: str = "auto",
             precision: str = "auto", jit_level: Optional[str] = None) -> "Palette":
        """Load a checkpoint; the averaged weights are used where it has them.

        Args:
            path: a file (`.safetensors`, or MindSpore's `.ckpt` with its config beside it), or the name of a model
                that ships with the package: "photo".
            device: "auto", "Ascend", "GPU" or "CPU".
            runtime: what runs the network when pictures are made: "mindspore"; on a CPU "openvino" or "onnx", ONNX
                Runtime (see `palette_ms.unet.runtimes`); or "auto": on a CPU the first of OpenVINO, ONNX Runtime and
                MindSpore that is installed. The pictures are the same but for rounding.
            precision: of convolutions, dense layers and attention when pictures are made: "float32"; "float16", of
                MindSpore alone; "bfloat16", of MindSpore on Ascend and of OpenVINO on processors that compute in it; or
                "auto": float16 on Ascend from the Atlas A2 series on; bfloat16 where OpenVINO and the processor can and
                the checkpoint says that it was measured to be near enough (see `palette_ms.diffusion.usage.Usage`);
                else float32.
            jit_level: of MindSpore's compiler: "O0", one operator after the other; "O1", which makes one kernel of
                neighbouring operators; or None, its own choice for the device.

        Raises:
            UserError: no such file, a damaged one or one of another program, no such device, or a runtime, precision or
                level that cannot be had.

        Examples:
            >>> Palette.load("photo", device="CPU").makes_pictures
            False
            >>> Palette.load("foto")
            Traceback (most recent call last):
            palette_ms.errors.UserError: no such checkpoint: foto
        """
        checkpoint = Checkpoint(path)
        measured = all(task.usage and task.usage.bfloat16 for task in checkpoint.config.tasks)
        if jit_level not in (None, "O0", "O1"):
            raise UserError(f"jit_level must be O0 or O1, not {jit_level!r}")
        runtime, precision = setup_sampling(device, runtime, precision, measured)
        if jit_level and runtime != "mindspore":
            raise UserError(f"jit_level is of MindSpore's compiler, and {runtime} runs the network: take the runtime "
                            "mindspore, too")
        if checkpoint.source:
            print(f"model: {checkpoint.source}", file=sys.stderr)
        config = checkpoint.config

        def build():
            if runtime != "mindspore":
                setup("CPU", quiet=True)
            network = checkpoint.load_unet()
            if runtime == "mindspore" and precision != "float32":
                import mindspore as ms

                network.use_precision(getattr(ms, precision))
            return network

        check_model(config.model, checkpoint.path, checkpoint.path.stat().st_size)
        palette = cls(build() if runtime == "mindspore" else build, config, checkpoint.pictures, checkpoint.source,
                      load_steps(checkpoint))
        palette.path, palette.sha256 = checkpoint.path, checkpoint.sha256
        palette.chains.jit_level = jit_level
        if runtime != "mindspore":
            from palette_ms.unet.onnx import shapes
            from palette_ms.unet.runtimes import Network

            around = around_network(config.diffusion, config.model.out_channels)
            palette.chains.network = Network(config.model, checkpoint.weights(shapes(config.model)), runtime, precision,
                                             around)
        if config.refiner:
            check_model(config.refiner.network, checkpoint.path, checkpoint.path.stat().st_size)
            palette._build_refiner = functools.partial(_build_refiner, checkpoint, runtime)
        return palette

    @functools.cached_property
    def network(self):
        return self._network() if isfunction(self._network) else self._network

    @functools.cached_property
    def unet(self):
        from palette_ms.diffusion.cells import precondition

        return precondition(self.network, self.config.diffusion)

    @functools.cached_property
    def refiner(self):
        """`palette_ms.quality.refiner.Refiner`, or None: the model carries none."""
        return self._build_refiner and self._build_refiner()

    @property
    def tasks(self) -> Tuple[str, ...]:
        """Names of the tasks that the model was trained for.

        Examples:
            >>> "colorization" in Palette.load("photo").tasks
            True
        """
        return tuple(dict.fromkeys(task.name for task in self.config.tasks))

    @property
    def makes_pictures(self) -> bool:
        """Whether it makes pictures from nothing, rather than restoring some.

        Examples:
            >>> Palette.load("photo").makes_pictures
            False
        """
        return not self.config.tasks[0].has_source

    def restore(self, image: Union[Picture, Sequence[Picture]], task: Optional[str] = None,
                mask: Union[Picture, Sequence[Picture], None] = None, sampler: Optional[str] = None,
                steps: Union[int, Literal["auto"], None] = None, num_samples: int = 1, seed: int = 0,
                tile: Optional[int] = None, overlap: Optional[int] = None, detail: Optional[float] = None,
                progress: Any = None, first_sample: int = 0, details: bool = False, **options: Any) -> List[Result]:
        """Restore a picture of any size, or several of one size together.

        The sizes that the network does not divide are padded by reflection and cropped back. What the mask leaves
        out comes back unchanged, and where that is much, the network sees what is around the hole alone; holes that are
        larger than in training are made from coarse to fine (see `palette_ms.holes`), unless `tile` or `strength` is
        given.

        In tiles (see `palette_ms.diffusion.tiles.TiledUNet`) each sees what is inside it alone. They are blended at
        every step, so that neighbours agree; what is a matter of the whole picture, such as its colours, can still
        differ between tiles far apart. Tiles without a pixel to make cost nothing.

        Args:
            image: path, PIL image or array, as the model's source form reads it (see `palette_ms.data.forms`): of a
                model of photos any picture, uint8 where it is an array; or a list of pictures of one size, which are
                restored in one batch, each as it would be alone.
            task: one of `tasks`. None: the only one, or colorization.
            mask: see `palette_ms.tasks.asks.MASK`, for the tasks that take one; for a list of pictures also a list.
            sampler: "ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun" or "unipc". None: what the checkpoint says is
                best for the task, see `palette_ms.diffusion.usage.Usage`; a distilled model's own.
            steps: network calls. None: as many as the checkpoint says; the whole chain of its test schedule for ddpm,
                where that is asked for; 20 for another sampler. "auto": for each picture as many as it is worth, where
                the checkpoint has learned that, see `palette_ms.diffusion.worth`.
            num_samples: different results, made in one batch.
            first_sample: the number of the first of them: 2 of 1 sample is the third that 0 of 4 samples gives.
            seed: decides all noise, and the mask where a kind is named.
            tile: side of tiles in pixels, a multiple of what the network divides. None: the whole picture at once,
                unless the network's largest attention matrix would take more than `ATTENTION_LIMIT` (1 GiB) for it;
                then tiles of the training size, said on stderr. With a number the picture is also taken as a whole,
                whatever its holes, and at its own size, where a task would work at another.
            overlap: the least overlap of neighbouring tiles in pixels; None: a quarter of the tile.
            detail: in place of steps, from 0, the most faithful result, to 1, one with as much detail as photos have,
                for models that were tuned. None: 0; for several samples 1, since those of one call hardly differ.
            progress: a `tqdm` bar, or anything with its `reset(total)` and `update(n)`: network calls, of all tiles. If
                it has a method `preview`, that is given what a chain has so far made of the first sample (ŷ₀), as a
                result of its form: of a hole, what the network sees around it.
            details: whether a record comes back in place of each list of results.
            options: of a model that makes pictures from nothing: see `palette_ms.priors.restore`. Else what else the
                task takes, by the names of its `asks` (scale, extend, …); spacing, eta, dynamic_threshold, strength,
                tolerance, guidance, guidance_schedule, guidance_interval, reuse, flips, start, repeats, jump, rounds,
                round_noise, source_noise: see `palette_ms.diffusion.samplers.Sampling`; text, for models that take
                one: a `palette_ms.data.captions.Text`, for all pictures; label, the class of the pictures, for models
                that are told one (None: each sample draws one); and best, score, mix, blend, resample,
                resample_regions, border_rounds, refine, confidence: see `palette_ms.quality.stage.Quality`.

        Returns: list of `num_samples` results, or of those that `best` and `mix` make of them, as the target's form
            makes them, PIL images of a model of photos, of the size that the task makes of the picture's; with
            `details` a `palette_ms.quality.stage.Details`; for a list of pictures, a list of such.

        Raises:
            UserError: an unreadable picture, an unknown task or sampler, a mask that is missing, empty or of
                another size, a number out of range, an argument of another task, pictures of several sizes.

        Examples:
            What the mask leaves out comes back as it was:

            >>> import numpy as np
            >>> photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
            >>> hole = np.zeros((16, 16), np.uint8)
            >>> hole[4:8, 4:8] = 255
            >>> first, second = Palette.load("photo").restore(photo, "inpainting", hole, num_samples=2, seed=7)
            >>> bool((np.asarray(first) == photo)[hole == 0].all()), first == second
            (True, False)
        """
        begun = time.perf_counter()
        several = isinstance(image, (list, tuple))
        images: Sequence[Any] = image if isinstance(image, (list, tuple)) else [image]
        masks = mask if several and isinstance(mask, (list, tuple)) else [mask] * len(images)
        if len(masks) != len(images):
            raise UserError(f"{len(images)} pictures and {len(masks)} masks: there must be a mask for each picture")
        if self.makes_pictures:
            if details or QUALITY & options.keys():
                raise UserError("details, and what is done after the chain, are for models trained to restore")
            if steps == "auto":
                raise UserError("steps auto is for models trained to restore")
            results: List[Any] = self._restore_by_prior(
                images, masks, task, sampler, steps, range(first_sample, first_sample + num_samples), seed, tile=tile,
                overlap=overlap, progress=progress, detail=detail, **options)
            return results if several else results[0]
        place = self.config.place(task or (self.tasks[0] if len(self.tasks) == 1 else "colorization"))
        task = self.config.tasks[place]
        check_counts(num_samples, seed, first_sample)
        worth = None
        if steps == "auto":
            worth, steps = self._worth(task, sampler), 1
            if several:  # each has its own number
                return [self.restore(one, task.name, its, sampler, "auto", num_samples, seed, tile, overlap, detail,
                                     progress, first_sample, details, **options) for one, its in zip(images, masks)]
        label = options.pop("label", None)
        tiled = tile is not None
        if task.usage and not tiled:
            tile = task.usage.tile
        self.chains.check_tiles(tile, overlap)
        chosen = {name: options.pop(name) for name in SAMPLING & options.keys()}
        quality = self.quality({name: options.pop(name) for name in QUALITY & options.keys()}, num_samples)
        # Samples of one call hardly differ, neither beside each other nor where one is made again.
        sampling = self.sampling(task, sampler, steps, detail, first_sample + num_samples + quality.resample, **chosen)
        if sampling.text is not None and len(sampling.text) > 1:
            raise UserError(f"there are {len(sampling.text)} texts: restore takes one, for all pictures")
        source, target = self._forms(task)
        asked = [check_asked(task, {"mask": mask, **options}, self.config.data.image_size, source, tiled)
                 for mask in masks]
        originals = self._read(images, source)
        height, width = source.shown(originals[0]).shape[:2]
        size = height, width = task.checked_size(height, width, asked[0])
        originals = [source.resized(original, *size, task.filter) for original in originals]
        pictures = [source.shown(original) for original in originals]
        softened = [_batch(masks) for masks in zip(*(
            task.checked_holes(height, width, request, generator(seed, "mask")) for request in asked))]
        holes = [np.ceil(hole) for hole in softened]
        labels = None if self.config.model.num_classes is None else (place,) * num_samples
        if label is not None or task.has_classes:
            if not task.has_classes:
                raise UserError("label is for models of classes of pictures, and this one knows none")
            labels = self._labels(label, range(first_sample, first_sample + num_samples), seed)
        channels = self.config.data.channels
        if channels.source != channels.target and not all(hole.all() for hole in holes):
            raise UserError(f"a mask needs results of as many channels as their sources, and this model makes "
                            f"{channels.target} of {channels.source}: what lies outside of it would not be known")
        known = [(picture.min(), picture.max()) for picture in pictures]
        if target.kind and not can_hold(target.kind.dtype, known) and not all(hole.all() for hole in holes):
            raise UserError(f"results of this model are {target.kind.dtype}, which cannot hold what is known of the "
                            "picture: save it with the values that the model was trained with")
        chains = self.chains.of_holes(labels, num_samples, task, sampling, tile, overlap, progress, holes, tiled)
        _check_memory(size, num_samples, len(originals), channels.target, chains)
        numbers = range(first_sample, first_sample + num_samples)
        run, stage = self._runs(worth, chains, task, labels, sampling, numbers, seed, tile, overlap, tiled, holes), None
        if details or quality != Quality():
            how = task, labels, sampling, numbers, seed, tile, overlap
            stage = Stage(run, functools.partial(self._rerun, worth, *how, tiled, holes),
                          functools.partial(self._again, *how),
                          functools.partial(self._refine, task, seed), quality, holes)
        made = task.restore(_batch([source.to_float(picture) for picture in pictures]), asked[0], stage or run)
        results = [[] for _ in pictures]
        _check_finite(made)
        for number, y in enumerate(made):
            k = number * len(pictures) // len(made)
            put_back = None
            if (softened[0][k] < 1).any():
                put_back = functools.partial(task.put_back, hole=softened[0][k], asked=asked[k])
            results[k].append(target.finish(y, originals[k], put_back, task.keeps_gray))
        if stage:
            size = made.shape[2:]
            results = [_detailed(one, told, quality, numbers, size, time.perf_counter() - begun)
                       for one, told in zip(results, stage.made)]
            results = results if details else [record.samples for record in results]
        return results if several else results[0]

    def quality(self, options: Dict[str, Any], samples: int) -> Quality:
        """`palette_ms.quality.stage.Quality` of options by name, for so many samples of a picture.

        Raises:
            UserError: one that is out of range or not for this model, or needs more samples.
        """
        try:
            quality = Quality(**options)
            quality.check(samples)
        except ValueError as error:
            raise UserError(str(error)) from None
        if quality.refine and not self._build_refiner:
            raise UserError("this model carries no refining network: python -m palette_ms.train --config "
                            "refiner_small refiner.of=MODEL trains one")
        channels = self.config.data.channels
        if quality.again and (self.config.diffusion.distilled or channels.source != channels.target):
            why = ("it was distilled to steps that begin with noise" if self.config.diffusion.distilled
                   else "its sources have other channels")
            raise UserError("resample_regions, border_rounds and the score denoising begin chains with what was made, "
                            f"and this model cannot: {why}")
        return quality

    def _worth(self, task, sampler):
        """What says how many calls a picture is worth. Raises UserError: nothing does."""
        usage = task.usage
        if not usage or not usage.worth or sampler not in (None, usage.sampler):
            raise UserError("steps auto is for models that learned how many calls a picture is worth, with the sampler "
                            "that they learned it for: python -m palette_ms.tune --predict-steps")
        return usage.worth

    def _runs(self, worth, chains, task, labels, sampling, numbers, seed, tile, overlap, tiled, holes):
        """`_run` of all but the pictures, or `_run_as_worth` where there is a `worth`."""
        run = functools.partial(self._run, task, chains, holes, sampling, numbers, seed)
        if not worth:
            return run
        return functools.partial(self._run_as_worth, run, worth, task, labels, sampling, numbers, seed, tile, overlap,
                                 tiled, holes)

    def _run_as_worth(self, run, worth, task, labels, sampling, numbers, seed, tile, overlap, tiled, holes, pictures,
                      number=0, stream=None):
        """`_run` of a picture by one call, and again by as many as it then is said to be worth."""
        first, hole = run(pictures, number, stream), holes[number][0]
        cond = task.checked_source(pictures[0], hole, generator(seed, "source"))
        count = worth.calls(features(cond, first[0], hole))
        if count == 1:
            return first
        sampling = dataclasses.replace(sampling, steps=count)
        chains = self.chains.of_holes(labels, len(numbers), task, sampling, tile, overlap, None, holes, tiled)
        return self._run(task, chains, holes, sampling, numbers, seed, pictures, number, stream)

    def _rerun(self, worth, task, labels, sampling, numbers, seed, tile, overlap, tiled, holes, turn, *what):
        """`_runs` with other noise; turn: which. The chains are set up anew, since some remember theirs."""
        chains = self.chains.of_holes(labels, len(numbers), task, sampling, tile, overlap, None, holes, tiled)
        seed = int(generator(seed, "again", turn).integers(2**31))
        return self._runs(worth, chains, task, labels, sampling, numbers, seed, tile, overlap, tiled, holes)(*what)

    def _again(self, task, labels, sampling, numbers, seed, tile, overlap, sources, made, guess, hole, noise, calls,
               alike, turn):
        """A hole of a picture's samples made again, see `palette_ms.quality.stage.Stage`, by what is around it."""
        gammas = make_gamma_schedule(**vars(task.test_schedule or self.config.diffusion.test_schedule))
        strength = strength_of(gammas, noise)
        sampling = Sampling("ddim", min(calls, round(strength * len(gammas))), strength=strength,
                            dynamic_threshold=sampling.dynamic_threshold, tolerance=sampling.tolerance,
                            guidance=sampling.guidance, guidance_schedule=sampling.guidance_schedule,
                            guidance_interval=sampling.guidance_interval,
                            text=sampling.text, source_noise=sampling.source_noise)
        view = inside(around(hole, self.config.data.image_size, self.chains.multiple))
        holes, key = hole[view][None], 2**20 + turn
        if alike:  # so many pictures of one sample each, which has the first one's noise
            holes, numbers, key = np.repeat(holes, len(made), 0), range(1), 2**20 - 1
            labels = None if labels is None else labels[:1]
        chains = self.chains.of_holes(labels, len(numbers), task, sampling, tile, overlap, None, [holes])
        result = np.array(made)
        result[view] = self._run(task, chains, [holes], sampling, numbers, seed, sources[view], stream=key,
                                 begun=(made[view], guess[view]))
        return result

    def _refine(self, task, seed, sources, made, hole):
        """Results of a picture refined, see `palette_ms.quality.stage.Stage`."""
        cond = task.checked_source(sources[0], hole, generator(seed, "source"))
        return self.refiner(made, np.broadcast_to(cond, (len(made), *cond.shape)), hole)

    def _restore_by_prior(self, images, masks, task, sampler, steps, numbers, seed, detail=None, **options):
        """`restore` of a model that makes pictures from nothing, by guidance: see `palette_ms.priors.restore`."""
        check_counts(len(numbers), seed, numbers.start)
        if detail is not None:
            raise UserError("detail is for models that were trained to restore")
        chosen = {name: options.pop(name) for name in SAMPLING & options.keys()}
        if any(chosen.get(name) not in (None, off) for name, off in (("guidance", 1), ("reuse", 1), ("flips", 1),
                                                                     ("tolerance", 0))):
            raise UserError("guidance, reuse, flips and tolerance are for models that were trained to restore; how "
                            "strongly a picture guides is guidance_scale")
        for name in ("dynamic_threshold", "text"):
            if chosen.get(name) is not None:
                raise UserError(f"{name} is not for restoring by prior")
        if self._prior is None:
            from palette_ms.priors.restore import PriorRestorer

            self._prior = PriorRestorer(self.chains, self.forms[1])
        # The solver is chosen there, since one method has its own.
        sampling = self.sampling(self.config.tasks[0], sampler or "ddpm", calls(steps, self.config.diffusion),
                                 **chosen)
        sampling = dataclasses.replace(sampling, sampler=sampler)
        return [self._prior.restore(image, task, sampling, numbers, seed, mask=mask, **options)
                for image, mask in zip(images, masks)]

    def _forms(self, task):
        """Of a task's sources and targets: what it makes of a target is of the target's form."""
        return self.forms if task.needs_pairs else self.forms[1:] * 2

    def _read(self, images, form):
        """The pictures' originals, of one size. Of values that had to be clipped a line is said."""
        if not images:
            raise UserError("there is no picture to restore: the list is empty")
        originals = [form.original(image) for image in images]
        pictures = [form.shown(original) for original in originals]
        sizes = sorted({picture.shape[:2] for picture in pictures})
        if len(sizes) > 1:
            raise UserError("pictures that are restored together must have one size; these have "
                            + ", ".join(f"{width}×{height}" for height, width in sizes))
        outside = sum(map(form.outside, pictures))
        if outside:
            names = ", ".join(str(image) for image in images if isinstance(image, (str, PathLike)))
            tqdm.write(f"warning: {names}{': ' * bool(names)}{outside} values are outside the range that this model "
                       "was trained with, and are clipped", file=sys.stderr)
        return originals

    def _run(self, task, chains, holes, sampling, numbers, seed, pictures, number=0, stream=None,
             begun=None):
        """A chain over a batch, as `palette_ms.tasks.Task.restore` runs it, in the passes that its holes take.

        Args:
            chains, holes: of all numbers; see `palette_ms.chains.Chains.of_holes`, holes (P, 1, h, w).
            numbers: of the samples, a range; `num_samples` of them.
            pictures: (P, C, h, w), or (P · num_samples, C, h, w).
            begun: None, or what the samples are outside the holes and what they start from, (P · num_samples, C', h, w)
                each, where `sampling` starts below the full strength.

        Returns: float32 (P · num_samples, C, h, w).
        """
        hole_of = np.arange(len(pictures)) * len(holes[number]) // len(pictures)
        samples = len(numbers) * len(holes[number]) // len(pictures)  # of each of these pictures
        groups, results = [], []
        for members, passes, chained in chains[number]:
            group = np.flatnonzero(np.isin(hole_of, members))
            some, hole = _rows(pictures, group), _rows(holes[number], hole_of[group])
            chain = functools.partial(self._chain, task, sampling, numbers, samples, seed, stream, chained)
            if begun is not None:
                rows = (group[:, None] * samples + np.arange(samples)).ravel()
                known, guess = (_rows(array, rows) for array in begun)
                results.append(chain(0, some, hole, guess, known))
            elif passes == whole_pass(hole[0]):
                results.append(chain(0, some, hole, None))
            else:
                results.append(fill(passes, some, hole, np.repeat(self._as_targets(task, some), samples, 0), chain))
            groups.extend(group[:, None] * samples + np.arange(samples))
        made = np.concatenate(results) if len(results) > 1 else results[0]
        return _rows(made, np.argsort(np.concatenate(groups)))

    def _chain(self, task, sampling, numbers, samples, seed, stream, chains, number, pictures, hole, guess,
               known=None):
        """One pass over a batch, band by band.

        Args:
            numbers: of the samples, a range.
            samples: to be made of each of these pictures.
            chains, number: the bands of all passes that are run one after the other, and which of them it is.
            pictures: (N, C, h, w), a picture each or a sample each.
            hole: (N, 1, h, w).
            guess: (N · samples, C', h, w), what it starts from, or None: what the user's strength says.
            known: alike, what it is outside the hole, or None: what the pictures are.

        Returns: float32 (N · samples, C', h, w).
        """
        # What is alone has the noise of the seed itself.
        own = [n for n in (stream, number if len(chains) > 1 else None) if n is not None]
        if len(chains[number]) == 1:
            return self._band(task, sampling, numbers, samples, seed, own, chains[number][0], pictures, hole, guess,
                              known)
        made = None
        for k, band in enumerate(chains[number]):
            parts = [None if array is None else array[:, :, band.rows] for array in (pictures, hole, guess, known)]
            if band.sampler:
                y = self._band(task, sampling, numbers, samples, seed, [*own, k], band, *parts)
            else:
                y = np.repeat(self._as_targets(task, parts[0]), samples, 0) if known is None else parts[3]
            if made is None:
                made = np.zeros((*y.shape[:2], *pictures.shape[2:]), np.float32)
            made[:, :, band.rows] += band.weight * y
        return made

    def _band(self, task, sampling, numbers, samples, seed, own, band, pictures, hole, guess, known=None):
        """`_chain` of a band's rows; own: what tells its noise from that of others with this seed."""
        sampler, progress = band.sampler, band.progress
        height, width = pictures.shape[2:]
        pictures, hole = self.chains.pad(pictures), self.chains.pad(hole)
        chain_seed = int(generator(seed, "go", *own).integers(2**31)) if own else seed
        cond = [task.checked_source(picture, one, generator(seed, "source", *own))
                for picture, one in zip(pictures, hole)]
        known = np.repeat(self._as_targets(task, pictures), samples, 0) if known is None else self.chains.pad(known)
        if guess is not None:
            guess = self.chains.pad(guess)
        elif sampling.starts_from_source:
            guess = self._as_targets(task, [task.checked_guess(source, one) for source, one in zip(cond, hole)])
        cond, hole = np.repeat(cond, samples, 0), np.repeat(hole, samples, 0)
        if sampling.source_noise:
            noise = _normal(chain_seed, "source noise", numbers, cond.shape[1:])
            cond = noised(cond, np.tile(noise, (len(cond) // len(numbers), 1, 1, 1)), sampling.source_noise)
        y_T = np.tile(_start(chain_seed, numbers, known.shape[1:]), (len(known) // len(numbers), 1, 1, 1))
        if guess is not None:
            y_T = sampler.start(np.repeat(guess, len(known) // len(guess), 0), y_T)
        watch = None
        if band.preview:
            form = self._forms(task)[1]

            def watch(y):
                y = hole[:1] * y[:1] + (1 - hole[:1]) * known[:1]
                band.preview(form.image(form.from_float(y[0, :, :height, :width])))

        made = np.asarray(sampler(cond, hole * y_T + (1 - hole) * known, chain_seed, hole, known, progress, numbers,
                                  watch))
        return made[:, :, :height, :width]

    def _as_targets(self, task, pictures):
        """Sources (N, C, H, W) as what is known of the targets: the same values by the targets' range. Where there are
        other channels, nothing is, and zeros stand for it."""
        source, target = self._forms(task)
        if source == target:
            return np.asarray(pictures)
        if source.channels != target.channels:
            return np.zeros((len(pictures), target.channels, *pictures[0].shape[1:]), np.float32)
        return np.stack([target.to_float(source.values(picture)) for picture in pictures])

    def generate(self, num_samples: int = 1, size: Optional[Tuple[int, int]] = None, label: Optional[int] = None,
                 sampler: Optional[str] = None, steps: Optional[int] = None, seed: int = 0, progress: Any = None,
                 first_sample: int = 0, **sampling: Any) -> List[Result]:
        """Pictures from nothing, with an unconditional or class-conditional model.

        Args:
            num_samples: how many, made in one batch.
            size: (height, width), multiples of `chains.multiple`; None: the square that the model was trained at.
            label: class of a class-conditional model, or None: each picture draws one.
            sampler, steps, seed, progress, first_sample, sampling: as in `restore`; there is no source to start from.
                text, for models that take one: a `palette_ms.data.captions.Text`, or a list of them, one for each
                picture; None: no text. guidance is by the text.

        Returns: list of `num_samples` results as in `restore`.

        Raises:
            UserError: a model that restores, an unknown class or sampler, a size that the network does not divide, a
                number out of range.

        Examples:
            >>> from palette_ms.config import load_config
            >>> from palette_ms.unet import UNet
            >>> tiny = ["model.base_channels=8", "model.norm_groups=4", "model.num_head_channels=8"]
            >>> config = load_config("prior", tiny)
            >>> untrained = Palette(UNet(config.model), config)
            >>> [image.size for image in untrained.generate(2, size=(16, 16), sampler="ddim", steps=1)]
            [(16, 16), (16, 16)]
        """
        if not self.makes_pictures:
            raise UserError(f"this model restores pictures ({', '.join(self.tasks)}) and needs one: use restore")
        check_counts(num_samples, seed, first_sample)
        numbers = range(first_sample, first_sample + num_samples)
        height, width = size or (self.config.data.image_size,) * 2
        if height < 1 or width < 1 or height % self.chains.multiple or width % self.chains.multiple:
            raise UserError(f"height and width must be multiples of {self.chains.multiple}, not {height}×{width}")
        sampling = self.sampling(self.config.tasks[0], sampler, steps, **sampling)
        if sampling.strength < 1 or sampling.guidance > 1 and sampling.text is None:
            raise UserError("strength and guidance need a source, and this model takes none")
        if sampling.text is not None and len(sampling.text) not in (1, num_samples):
            raise UserError(f"there are {len(sampling.text)} texts for {num_samples} pictures: there must be one, or "
                            "one for each")
        chain = self.chains.sampler(self._labels(label, numbers, seed), self.config.tasks[0], sampling)
        update = None
        if progress is not None:
            progress.reset(chain.num_steps)
            update = progress.update
        y_T = _start(seed, numbers, (self.config.model.in_channels, height, width))
        form = self.forms[1]
        made = _check_finite(np.asarray(chain(None, y_T, seed, progress=update, samples=numbers)))
        return [form.image(form.from_float(y)) for y in made]

    def chain(self, task: Optional[str] = None, batch: int = 1, sampler: Optional[str] = None,
              steps: Optional[int] = None) -> "WholeChain":
        """A whole chain as one Cell, to be exported: see `palette_ms.diffusion.samplers.WholeChain`.

        Args:
            task: one of `tasks`; None: the only one.
            batch: pictures at once.
            sampler, steps: as in `restore`.

        Raises:
            UserError: an unknown task or sampler, a number out of range, a model that makes pictures of classes.

        Examples:
            >>> import mindspore as ms
            >>> chain = Palette.load("photo").chain("denoising", sampler="ddim", steps=1)
            >>> isinstance(chain, ms.nn.Cell)
            True
        """
        from palette_ms.diffusion.cells import WholeChain

        if self.makes_pictures and self.config.model.num_classes is not None:
            raise UserError("the chain of a class-conditional model cannot be exported, only its network, which takes "
                            "the class as an input")
        if self.config.model.text_channels is not None or self.config.model.source_noise:
            raise UserError("the chain of a model that takes a text or a noisy source cannot be exported, only its "
                            "network, which takes them as inputs")
        if task is None and len(self.tasks) > 1:
            raise UserError(f"this model knows several tasks: name one of {', '.join(self.tasks)}")
        task = task or self.tasks[0]
        place = self.config.place(task)
        labels = None if self.config.model.num_classes is None else (place,) * batch
        chosen = self.config.tasks[place]
        sampler = self.chains.sampler(labels, chosen, self.sampling(chosen, sampler, steps))
        return WholeChain(sampler, not self.makes_pictures).set_train(False)

    def make(self, place, cond, mask, sampling, seed=0, num_samples=1, tile=None):
        """What `restore` makes of a training pair's source, before it becomes a picture: for measuring.

        Args:
            place: of the task in the config.
            cond, mask: (C, H, W) and (1, H, W) as `palette_ms.tasks.Task.pair` gives them, H and W multiples of
                `chains.multiple`.
            sampling: from `sampling`.
            seed, num_samples: as in `restore`.
            tile: side of tiles in pixels, as a checkpoint says it; None: the whole picture, as far as it fits.

        Returns: float32 (num_samples, C', H, W), in about [−1, 1].
        """
        task = self.config.tasks[place]
        request = Request({ask.name: None for ask in task.asks}, self.config.data.image_size, self._forms(task)[0])
        holes = [mask]
        if not (mask < 1).any() and not task.required:  # the task says at which sizes it works
            holes = task.checked_holes(*cond.shape[1:], request, generator(seed, "mask"))
        holes = [hole[None] for hole in holes]
        labels = None if self.config.model.num_classes is None else (place,) * num_samples
        chains = self.chains.of_holes(labels, num_samples, task, sampling, tile, None, None, holes)
        run = functools.partial(self._run, task, chains, holes, sampling, range(num_samples), seed)
        return run(cond[None]) if task.required else task.restore(cond[None], request, run)

    def sampling(self, task, sampler=None, steps=None, detail=None, num_samples=1, flips=None, text=None, **options):
        """How a chain of a task is run: what is not asked for is as the checkpoint says is best.

        Args:
            task: `palette_ms.tasks.Task`.
            sampler, steps, detail, num_samples, options: as in `restore`.
            flips: see `Sampling`; None: what the checkpoint says, where sampler and steps are as it says too.
            text: a `palette_ms.data.captions.Text`, or a list of them, one for each picture; None: none.

        Returns: `palette_ms.diffusion.samplers.Sampling`.

        Raises:
            UserError: a number out of range or of another model.
        """
        diffusion, usage = self.config.diffusion, task.usage or Usage()
        if detail is not None:
            if not isinstance(detail, Real) or not 0 <= detail <= 1:
                raise UserError(f"detail must be a number from 0 to 1, not {detail!r}")
            if steps is not None or sampler not in (None, usage.sampler):
                raise UserError("detail stands for sampler and steps: leave those out")
            if detail and task.usage and not diffusion.distilled and not usage.detailed_steps:
                raise UserError(f"detail must be 0 for {task.name}, for which this model knows no number of calls that "
                                "brings more: python -m palette_ms.tune measures it")
            if diffusion.distilled or not task.usage:
                raise UserError("detail is for models that say how many steps it takes, and this one does not: python "
                                "-m palette_ms.tune measures it")
        text = self._text(text)
        try:
            sampling = Sampling(sampler, steps, flips=flips or 1, text=text, **options)
            if not diffusion.distilled:
                sampler, length = sampler or usage.sampler, (task.test_schedule or diffusion.test_schedule).num_steps
                if steps is None:
                    detail = num_samples > 1 if detail is None else detail
                    steps = usage.calls(sampler, detail, max(1, round(sampling.strength * length)))
                if flips is None:
                    as_measured = (sampler, steps, sampling.reuse) == (usage.sampler, usage.steps, 1)
                    flips = usage.flips if as_measured else 1
                sampling = Sampling(sampler, steps, flips=flips, text=text, **options)
        except ValueError as error:
            raise UserError(str(error)) from None
        channels = self.config.data.channels
        if sampling.starts_from_source and channels.source != channels.target:
            raise UserError("strength must be 1: this model's sources, which the chain would start from, have other "
                            "channels than its results")
        model, training = self.config.model, self.config.training
        if sampling.source_noise and not model.source_noise:
            raise UserError("source_noise is for models that were trained with model.source_noise")
        if sampling.source_noise > self.config.training.source_noise[1]:
            raise UserError(f"source_noise must be at most {self.config.training.source_noise[1]:g}, up to which this "
                            f"model was trained, not {sampling.source_noise:g}")
        if sampling.guidance > 1 and model.text_channels is not None:
            if text is None:
                raise UserError("guidance is by a text, and there is none")
            if not training.text_dropout:
                raise UserError("this model cannot be guided: it was trained with training.text_dropout 0, and has "
                                "never seen a picture without its text")
        elif sampling.guidance > 1 and not training.source_dropout:
            raise UserError("this model cannot be guided: it was trained with training.source_dropout 0, and has never "
                            "seen a picture without its source")
        return sampling

    def _text(self, text):
        """Texts as `Sampling` takes them. Raises UserError: they are not for this model."""
        model = self.config.model
        if text is None:
            return None
        if model.text_channels is None:
            raise UserError("this model takes no text")
        texts = [text] if isinstance(text, Text) else list(text)
        for one in texts:
            if not isinstance(one, Text):
                raise UserError("a text must be told by palette_ms.text.encoder.TextEncoder, the encoder that the "
                                "model was trained with")
            if one.encoder != self.config.data.text_encoder or one.tokens.shape[1] != model.text_channels:
                raise UserError(f"this model was trained with the texts of the encoder {self.config.data.text_encoder} "
                                f"({model.text_channels} channels), not with those of {one.encoder} "
                                f"({one.tokens.shape[1]} channels): these are weights of another T5")
        return np.stack([filled_up(one.tokens, model.text_length) for one in texts])

    def _labels(self, label, numbers, seed):
        """The class of each picture, a tuple; None for a model without classes."""
        classes = self.config.model.num_classes
        if classes is None:
            if label is not None:
                raise UserError("this model knows no classes")
            return None
        if label is None:
            return tuple(generator(seed, "label", k).integers(classes) for k in numbers)
        if not 0 <= label < classes:
            raise UserError(f"there is no class {label}: this model knows 0 to {classes - 1}")
        return (label,) * len(numbers)


def _build_refiner(checkpoint, runtime):
    """A checkpoint's `Refiner`. runtime: as of `Palette.load`, but not "auto"."""
    network = checkpoint.config.refiner.network
    if runtime == "mindspore":
        from palette_ms.checkpoint import build_unet

        unet = build_unet(network, checkpoint.path)
        checkpoint.fill(unet, "refiner")
        return Refiner(unet.set_train(False), multiple(network))
    from palette_ms.unet.onnx import shapes
    from palette_ms.unet.runtimes import Network

    return Refiner(Network(network, checkpoint.weights(shapes(network), "refiner"), runtime), multiple(network))


def check_counts(num_samples, seed, first_sample):
    """Raises UserError unless so many samples can be made, and by that seed."""
    if not all(isinstance(number, Integral) for number in (num_samples, seed, first_sample)):
        raise UserError("the number of samples, that of the first and the seed must be whole numbers, not "
                        f"{num_samples!r}, {first_sample!r} and {seed!r}")
    if not 1 <= num_samples <= 10_000 or not 0 <= first_sample < 2**31 or not 0 <= seed < 2**63:
        raise UserError("the number of samples must be at least 1 and at most 10000, that of the first and the seed at "
                        "least 0 and below 2**31 and 2**63")


def _check_memory(size, samples, pictures, channels, work):
    """Raises UserError: what pictures of a size and the largest of their chains (see `Chains.of_holes`) hold, without
    the network, is too much."""
    chain = max(len(members) * len(band.weight) * -(-(step.box[3] - step.box[2]) // step.factor)
                for groups in work for members, passes, chains in groups
                for step, bands in zip(passes, chains) for band in bands)
    needed = samples * channels * (pictures * size[0] * size[1] * _PICTURE_BYTES + chain * CHAIN_BYTES)
    if needed > max_memory():
        raise UserError(f"{size[1]}×{size[0]} pixels, {samples * pictures} times, take about {needed / 2**20:.0f} MiB, "
                        f"more than the {max_memory() / 2**20:.0f} that may be used: fewer samples or a smaller "
                        "picture take less, and --max-memory (PALETTE_MS_MAX_MEMORY) allows more")


def _detailed(results, told, quality, numbers, size, seconds):
    """`Details` of a picture's results, of which `quality.best` are kept. told: `palette_ms.quality.stage.Made`."""
    scores, seams, kept = told.scores, told.seams, range(len(results))
    if quality.best is not None:
        if callable(quality.score):
            scores = _scores(quality.score(results), len(results))
        kept = np.argsort(np.negative(scores), kind="stable")[:quality.best].tolist()
        seams = seams and [seams[k] for k in kept]
    sure = told.confidence
    if sure is not None and sure.shape != size:
        sure = cv2.resize(sure, size[::-1], interpolation=cv2.INTER_LINEAR)
    return Details([results[k] for k in kept], None if quality.mix else tuple(numbers[k] for k in kept),
                   scores and tuple(scores), sure, seams and tuple(seams), seconds)


def _scores(given, count):
    """What a user's function says of `count` samples, as floats. Raises UserError: it is not a number for each."""
    try:
        scores = np.array(given, float).ravel().tolist()
    except (TypeError, ValueError):
        scores = []
    if len(scores) != count or np.isnan(scores).any():
        raise UserError(f"the score's function must return a number for each of the {count} samples, not {given!r}")
    return scores


def _batch(arrays):
    """Arrays stacked; one alone without a copy of it, which a large picture would take too much memory for."""
    return np.stack(arrays) if len(arrays) > 1 else arrays[0][None]


def _rows(array, places):
    """The given places of an array, without a copy where they are all of it."""
    return array if np.array_equal(places, np.arange(len(array))) else array[places]


def _check_finite(made):
    """What chains made. Raises UserError: it is no picture."""
    if not np.isfinite((made.min(), made.max())).all():
        raise UserError("the network made values that are not finite: its weights are damaged, or too large for the "
                        "precision; --precision float32 and --runtime mindspore tell which")
    return made


def _start(seed, numbers, shape):
    """The noise that chains start from, float32 (samples, *shape): each sample, by its number, has a stream of its own.
    """
    return _normal(seed, "start", numbers, shape)


def _normal(seed, purpose, numbers, shape):
    return np.stack([generator(seed, purpose, k).standard_normal(shape, np.float32) for k in numbers])
