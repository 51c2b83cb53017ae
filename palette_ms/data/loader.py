"""Pictures of a source → training batches, each a pure function of the seed and the batch's number."""

import functools
import io
import itertools
import math
import os
from threading import Lock
from typing import NamedTuple, Optional

import mindspore.dataset as ds
import numpy as np
from PIL import Image

from palette_ms.data.captions import filled_up
from palette_ms.data.forms import Photo, forms
from palette_ms.data.images import further_frames
from palette_ms.data.sources import Row, complaint, decode, open_source
from palette_ms.diffusion.process import noised
from palette_ms.diffusion.schedule import draw_gammas, make_beta_schedule, make_gamma_schedule
from palette_ms.errors import UserError
from palette_ms.seeds import generator
from palette_ms.unet.layers import DROPOUT_MODULUS


class Batch(NamedTuple):
    """The inputs of `DiffusionLoss` or `DistillationLoss`, in their order, as float32 arrays."""

    y_0: np.ndarray  # (N, C, H, W)
    cond: Optional[np.ndarray]  # (N, channels of a source, H, W); None: the model takes no source
    noise: np.ndarray  # (N, C, H, W)
    # (N,); for `DistillationLoss` and `SteppedLoss`, int32: the step; for `ContinuousLoss` the time, in [0, 1)
    gamma: np.ndarray
    mask: np.ndarray  # (N, 1, H, W); ones for tasks that make the whole picture
    label: Optional[np.ndarray]  # (N,), int32, each picture's task by its place in the config; None: without labels
    weight: np.ndarray  # (N,), what each picture counts
    dropout: Optional[np.ndarray] = None  # (N, K), see `palette_ms.unet.layers.Dropout`; None: without dropout
    text: Optional[np.ndarray] = None  # (N, L, C), see `palette_ms.unet.text`; None: the model takes no text
    source_noise: Optional[np.ndarray] = None  # (N,), level of the noise in cond; None: the model is not told it


class Sample(NamedTuple):
    """A training picture."""

    y_0: np.ndarray  # (C, H, W)
    cond: Optional[np.ndarray]  # (channels of a source, H, W)
    mask: np.ndarray  # (1, H, W)
    task: int  # its place in the config
    text: Optional[np.ndarray] = None  # (L, C), filled up with zeros; None: the model takes no text


class Pictures:
    """The pictures of a source, decoded as they are asked for and kept while the cache has room.

    An unreadable one is left out from then on, and told by `complaint`.

    Args:
        source: from `palette_ms.data.sources.open_source`.
        forms: those of source and target, see `palette_ms.data.forms.forms`.
        cache_mb: room for decoded pictures.
        enough: pixels of the shorter side, see `palette_ms.data.images.load_image`.
        texts: read the captions' tokens, too.
    """

    def __init__(self, source, forms, cache_mb, enough=None, texts=False):
        self.source = source
        self.texts = texts
        self.forms = forms
        self.enough = enough
        self.unreadable = {}
        self._cache = {}
        self._room = cache_mb * 2**20
        self._lock = Lock()
        self._with_frames = None  # the name of the first found with more than one
        self._told = 0, None

    def __len__(self):
        return len(self.source)

    def read(self, index):
        """The `Row` of this number (see `decode`), or the next readable one where this one is not.

        Raises:
            UserError: none can be read.
        """
        for offset in range(len(self)):
            i = (index + offset) % len(self)
            if i in self._cache:
                return self._cache[i]
            if i in self.unreadable:
                continue
            try:
                encoded = self.source.read(i)
                row = decode(encoded, self.forms, self.enough)
                if self.texts:
                    row = row._replace(text=self.source.text(i))
            except UserError as error:
                self.unreadable[i] = str(error)
                continue
            size = sum(array.nbytes for array in row if array is not None)
            name, data = encoded[-1]
            if not self._with_frames and isinstance(self.forms[1], Photo) and further_frames(io.BytesIO(data)):
                self._with_frames = name
            with self._lock:
                if i not in self._cache and size <= self._room:
                    self._room -= size
                    self._cache[i] = row
            return row
        raise UserError(f"none of the {len(self)} pictures can be read; the first: {self.unreadable[0]}")

    def complaint(self):
        """One line that counts the unreadable ones and names the first with further frames, where there are more than
        at the last call; else None."""
        reasons = list(self.unreadable.values())
        if (len(reasons), self._with_frames) == self._told:
            return None
        lines = [complaint(reasons, self.source)] if reasons else []
        if self._with_frames:
            lines.append(f"some pictures have further frames or pages, of which the first alone counts; the first such "
                         f"picture: {self._with_frames}")
        self._told = len(reasons), self._with_frames
        return "; ".join(lines)


def crop(row, forms, size, min_scale, flip, rng):
    """A random square of a picture, resized to (size, size); of a pair, the same of each.

    Args:
        row: `Row`.
        forms: those of source and target, see `palette_ms.data.forms.forms`.
        size: pixels.
        min_scale: the square's side is drawn from here to 1, as a share of the shorter side, not below `size`;
            log-uniformly, since photos look alike at every scale.
        flip: mirror every other one.
        rng: numpy.random.Generator.

    Returns: `Row` of float32 (C, size, size) in [−1, 1]; its mask (1, size, size), 1 in every pixel that some of the
        row's falls into.
    """
    height, width = row.target.shape[:2]
    shorter = min(height, width)
    smallest = min(shorter, max(size, round(min_scale * shorter)))
    side = round(np.exp(rng.uniform(np.log(smallest), np.log(shorter))))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    mirrored = flip and rng.random() < 0.5

    def square(array, resize):
        part = array[top:top + side, left:left + side]
        part = part if side == size else resize(part, size, size)
        return part[:, ::-1] if mirrored else part

    def to_float(array, form):
        return form.to_float(square(array, functools.partial(form.resize, filter=Image.LANCZOS)))

    source_form, target_form = forms
    return Row(to_float(row.target, target_form),
               None if row.source is None else to_float(row.source, source_form),
               None if row.mask is None else square(row.mask, _resize_mask).transpose(2, 0, 1).astype(np.float32))


def _resize_mask(mask, height, width):
    """bool (H, W, 1) → bool (height, width, 1)."""
    share = Image.fromarray(np.float32(mask[..., 0])).resize((width, height), Image.BOX)
    return np.asarray(share)[..., None] > 0


def recolor(y_0, rng):
    """Other colours for the same picture: channels permuted, each with a random contrast and brightness.

    Args:
        y_0: float32 (C, H, W) in [−1, 1].
        rng: numpy.random.Generator.

    Returns: as y_0.
    """
    gain = rng.uniform(0.5, 1, (len(y_0), 1, 1)).astype(np.float32)
    offset = (1 - gain) * rng.uniform(-1, 1, (len(y_0), 1, 1)).astype(np.float32)
    return gain * y_0[rng.permutation(len(y_0))] + offset


def train_betas(diffusion, task):
    """β to draw a task's training γ from: its own schedule or the common one; None: cosine-distributed levels."""
    if task.train_schedule is None and diffusion.noise_levels == "cosine":
        return None
    return make_beta_schedule(**vars(task.train_schedule or diffusion.train_schedule))


def first_gamma(diffusion, task):
    """γ of the first level of a task's chain: its own test schedule's or the common one's."""
    return np.float32(make_gamma_schedule(**vars(task.test_schedule or diffusion.test_schedule))[-1])


def check_texts(source, config):
    """Raises UserError unless a source has the texts that a config's network takes."""
    data, wanted = config.data, config.model.text_channels
    encoder = getattr(source, "encoder", None)
    if encoder is None:
        raise UserError(f"{data.path} has no captions that an encoder has told, and model.text_channels is {wanted}: "
                        "python -m palette_ms.encode writes such a set")
    if source.text_channels != wanted:
        raise UserError(f"{data.path} has tokens of {source.text_channels} channels, told by another encoder than that "
                        f"of model.text_channels, {wanted}")
    if data.text_encoder not in (None, encoder):
        raise UserError(f"{data.path} has captions told by the encoder {encoder}, and this model was trained with "
                        f"those of {data.text_encoder}")


class TrainingBatches:
    """Batches by number: what batch i holds depends on the config, the pictures and i alone.

    Pictures come in a new random order every epoch. Samples are numbered over all ranks, so that several ranks together
    make the batches that one process with as much larger ones would.

    Args:
        config: `Config`.
        rank, ranks: which of how many processes that train together this one is.

    Attributes:
        dropout_numbers: K, how many random numbers each picture brings for the network's dropout; 0: none.

    Raises:
        UserError: see `open_source`; or pairs without the task `paired`, or this task without pairs.
    """

    def __init__(self, config, rank=0, ranks=1):
        data = config.data
        self.config = config
        self.rank, self.ranks = rank, ranks
        self.dropout_numbers = 0
        self.forms = forms(data)
        source = open_source(data.path, self.forms[1].suffixes, [config.training.output])
        pairs = [task.name for task in config.tasks if task.needs_pairs]
        if source.paired != bool(pairs):
            raise UserError(f"{data.path} holds pairs: they need the task paired, or another for pairs"
                            if source.paired else
                            f"the task {pairs[0]} needs pairs, and {data.path} holds single pictures: use a CSV "
                            "with the columns source and target, or such pairs packed")
        # A JPEG need not be decoded finer than its smallest crop is shrunk to.
        takes_text = config.model.text_channels is not None
        if takes_text:
            check_texts(source, config)
        self.pictures = Pictures(source, self.forms, data.cache_mb, math.ceil(data.image_size / data.min_scale),
                                 takes_text)
        weights = np.array([task.weight for task in config.tasks])
        self.task_probabilities = weights / weights.sum()
        self.betas = [train_betas(config.diffusion, task) for task in config.tasks]
        self.first_gammas = np.array([first_gamma(config.diffusion, task) for task in config.tasks])
        self.loss_weights = np.array([task.loss_weight for task in config.tasks], np.float32)

    def batch(self, number):
        """The batch of this number, from 0."""
        size = self.config.training.batch_size
        first = (number * self.ranks + self.rank) * size
        samples = [self.sample(first + i) for i in range(size)]
        y_0, mask = (np.stack([getattr(sample, name) for sample in samples]) for name in ("y_0", "mask"))
        cond = None if samples[0].cond is None else np.stack([sample.cond for sample in samples])
        tasks = np.array([sample.task for sample in samples], np.int32)
        # Each sample has a stream of its own, so that its noise is the same in whichever batch it stands.
        rngs = [generator(self.config.training.seed, "training noise", first + i) for i in range(size)]
        noise = np.stack([rng.standard_normal(y_0.shape[1:], np.float32) for rng in rngs])
        if self.config.distillation:
            gamma = np.array([rng.integers(self.config.distillation.steps) for rng in rngs], np.int32)
        elif self.config.diffusion.whole_steps:
            steps = self.config.diffusion.train_schedule.num_steps
            gamma = np.array([rng.integers(steps) for rng in rngs], np.int32)
        elif self.config.diffusion.loss == "vdm":
            gamma = np.array([rng.random() for rng in rngs], np.float32)
        else:
            gamma = np.concatenate([draw_gammas(rng, 1, self.betas[task]) for rng, task in zip(rngs, tasks)])
        if self.config.diffusion.first_call and not self.config.distillation:
            first_call = np.array([rng.random() < self.config.diffusion.first_call for rng in rngs])
            gamma = np.where(first_call, self.first_gammas[tasks], gamma)
        if self.config.training.source_dropout:
            cond[[rng.random() < self.config.training.source_dropout for rng in rngs]] = 0
        text = source_noise = None
        if samples[0].text is not None:
            text = np.stack([sample.text for sample in samples])
            text[[rng.random() < self.config.training.text_dropout for rng in rngs]] = 0
        if self.config.model.source_noise:
            source_noise = np.float32([rng.uniform(*self.config.training.source_noise) for rng in rngs])
            cond = noised(cond, np.stack([rng.standard_normal(cond.shape[1:], np.float32) for rng in rngs]),
                          source_noise)
        label = None if self.config.model.num_classes is None else tasks
        return Batch(y_0, cond, noise, gamma, mask, label, self.loss_weights[tasks], self._dropout(first, size), text,
                     source_noise)

    def _dropout(self, first, size):
        if not self.dropout_numbers:
            return None
        rngs = (generator(self.config.training.seed, "dropout", first + i) for i in range(size))
        return np.stack([rng.integers(1, DROPOUT_MODULUS, self.dropout_numbers) for rng in rngs]).astype(np.float32)

    def sample(self, number, task=None):
        """The training picture of this number, counted over all epochs, with the task drawn or the one asked for."""
        data, seed = self.config.data, self.config.training.seed
        rng = generator(seed, "sample", number)
        epoch, position = divmod(number, len(self.pictures))
        index = self._order(epoch)[position]
        whole = self.pictures.read(index)
        row = crop(whole, self.forms, data.image_size, data.min_scale, data.flip, rng)
        y_0 = row.target
        drawn = int(rng.choice(len(self.config.tasks), p=self.task_probabilities))
        place = drawn if task is None else task
        task = self.config.tasks[place]
        if task.recolor > rng.random():
            y_0 = recolor(y_0, rng)
        given = {"source": row.source, "mask": row.mask} if task.needs_pairs else {}
        cond, mask = task.checked_pair(y_0, rng, data.channels.source, **given)
        text = None if whole.text is None else filled_up(whole.text, self.config.model.text_length)
        return Sample(y_0, cond, np.ones_like(y_0[:1]) if mask is None else mask, place, text)

    def _order(self, epoch):
        cached = getattr(self, "_last_order", (None, None))
        if cached[0] != epoch:
            rng = generator(self.config.training.seed, "order", epoch)
            cached = self._last_order = (epoch, rng.permutation(len(self.pictures)))
        return cached[1]

    def iterate(self, first):
        """Batches from number `first` on, without end; `data.workers` threads of mindspore.dataset work ahead.

        Threads, since Pillow, OpenCV and NumPy let go of Python's lock where the time is spent, and share one cache.

        Raises:
            UserError: no picture can be read.
        """
        failures, nothing = [], {}
        if not self.config.tasks[0].has_source:
            nothing["cond"] = None
        if self.config.model.num_classes is None:
            nothing["label"] = None
        if not self.dropout_numbers:
            nothing["dropout"] = None
        if self.config.model.text_channels is None:
            nothing["text"] = None
        if not self.config.model.source_noise:
            nothing["source_noise"] = None
        names = [name for name in Batch._fields if name not in nothing]  # a dataset holds arrays only

        def numbers():
            return ((np.int64(number),) for number in itertools.count(first))

        def make(number):
            try:
                batch = self.batch(int(number))
                return tuple(getattr(batch, name) for name in names)
            except Exception as error:
                failures.append(error)  # MindSpore would tell of it in thirty lines
                raise

        workers = min(self.config.data.workers, os.cpu_count())  # mindspore.dataset refuses more
        batches = ds.GeneratorDataset(numbers, ["number"], shuffle=False, python_multiprocessing=False)
        batches = batches.map(make, ["number"], names, num_parallel_workers=workers)
        # A global setting says how long queues are when they are made: by default 16 batches at each of several places.
        usual = ds.config.get_prefetch_size()
        ds.config.set_prefetch_size(2)
        try:
            iterator = batches.create_tuple_iterator(num_epochs=1, output_numpy=True)
        finally:
            ds.config.set_prefetch_size(usual)
        try:
            while True:
                yield Batch(**{**nothing, **dict(zip(names, next(iterator)))})
        except RuntimeError:
            if failures:
                raise failures[0] from None
            raise
        finally:
            iterator.stop()
