"""A folder of pictures → training batches, each a pure function of the seed and the batch's number."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image

from palette_ms.data.images import list_images, load_image, to_float
from palette_ms.diffusion.schedule import draw_gammas, make_beta_schedule
from palette_ms.errors import UserError
from palette_ms.seeds import generator
from palette_ms.tasks import create_task


class Batch(NamedTuple):
    """The inputs of `DiffusionLoss`, in its order, as float32 arrays."""

    y_0: np.ndarray  # (N, 3, H, W)
    cond: Optional[np.ndarray]  # (N, 3, H, W); None: the model takes no source
    noise: np.ndarray  # (N, 3, H, W)
    gamma: np.ndarray  # (N,)
    mask: np.ndarray  # (N, 1, H, W); ones for tasks that make the whole picture
    label: Optional[np.ndarray]  # (N,), int32, each picture's task by its place in the config; None: without labels
    weight: np.ndarray  # (N,), what each picture counts


class Sample(NamedTuple):
    """A training picture."""

    y_0: np.ndarray  # (3, H, W)
    cond: Optional[np.ndarray]  # (3, H, W)
    mask: np.ndarray  # (1, H, W)
    task: int  # its place in the config


class Pictures:
    """The pictures of a folder, decoded as they are asked for and kept while the cache has room.

    An unreadable file is left out from then on, and told by `complaint`.
    """

    def __init__(self, folder, cache_mb):
        self.files = list_images(folder)
        self.unreadable = {}
        self._cache = {}
        self._room = cache_mb * 2**20
        self._lock = Lock()
        self._told = 0

    def __len__(self):
        return len(self.files)

    def read(self, index):
        """uint8 (H, W, 3), of the next readable file where this one is not. Raises UserError if none is."""
        for offset in range(len(self.files)):
            i = (index + offset) % len(self.files)
            if i in self._cache:
                return self._cache[i]
            if i in self.unreadable:
                continue
            try:
                picture = load_image(self.files[i])
            except UserError as error:
                self.unreadable[i] = str(error)
                continue
            with self._lock:
                if i not in self._cache and picture.nbytes <= self._room:
                    self._room -= picture.nbytes
                    self._cache[i] = picture
            return picture
        raise UserError(f"none of the {len(self.files)} pictures can be read; the first: {self.unreadable[0]}")

    def complaint(self):
        """One line that counts the unreadable files, where there are more than at the last call; else None."""
        count = len(self.unreadable)
        if count == self._told:
            return None
        self._told = count
        first = next(iter(self.unreadable.values()))
        return f"{count} of {len(self.files)} pictures cannot be read and are left out; the first: {first}"


def crop(picture, size, min_scale, flip, rng):
    """A random square of a picture, resized to (size, size).

    Args:
        picture: uint8 (H, W, 3).
        size: pixels.
        min_scale: the square's side is drawn from here to 1, as a share of the shorter side, not below `size`;
            log-uniformly, since photos look alike at every scale.
        flip: mirror every other one.
        rng: numpy.random.Generator.

    Returns: float32 (3, size, size) in [−1, 1].
    """
    height, width = picture.shape[:2]
    shorter = min(height, width)
    smallest = min(shorter, max(size, round(min_scale * shorter)))
    side = round(np.exp(rng.uniform(np.log(smallest), np.log(shorter))))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    square = picture[top:top + side, left:left + side]
    if side != size:
        square = np.asarray(Image.fromarray(square).resize((size, size), Image.LANCZOS))
    if flip and rng.random() < 0.5:
        square = square[:, ::-1]
    return to_float(square)


def recolor(y_0, rng):
    """Other colours for the same picture: channels permuted, each with a random contrast and brightness.

    Args:
        y_0: float32 (3, H, W) in [−1, 1].
        rng: numpy.random.Generator.

    Returns: as y_0.
    """
    gain = rng.uniform(0.5, 1, (3, 1, 1)).astype(np.float32)
    offset = (1 - gain) * rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32)
    return gain * y_0[rng.permutation(3)] + offset


def train_betas(diffusion, task):
    """β to draw a task's training γ from: its own schedule or the common one; None: cosine-distributed levels."""
    if task.train_schedule is None and diffusion.noise_levels == "cosine":
        return None
    return make_beta_schedule(**vars(task.train_schedule or diffusion.train_schedule))


class TrainingBatches:
    """Batches by number: what batch i holds depends on the config, the folder and i alone.

    Pictures come in a new random order every epoch. Iterating prefetches with threads; the order is the same for
    any number of them.

    Args:
        config: `Config`.

    Raises:
        UserError: no such folder, no pictures in it, or none readable.
    """

    def __init__(self, config):
        self.config = config
        self.pictures = Pictures(config.data.path, config.data.cache_mb)
        self.tasks = [create_task(task) for task in config.tasks]
        weights = np.array([task.weight for task in config.tasks])
        self.task_probabilities = weights / weights.sum()
        self.betas = [train_betas(config.diffusion, task) for task in config.tasks]
        self.loss_weights = np.array([task.loss_weight for task in config.tasks], np.float32)

    def batch(self, number):
        """The batch of this number, from 0."""
        size = self.config.training.batch_size
        rng = generator(self.config.training.seed, "batch", number)
        samples = [self.sample(number * size + i) for i in range(size)]
        y_0, mask = (np.stack([getattr(sample, name) for sample in samples]) for name in ("y_0", "mask"))
        cond = None if samples[0].cond is None else np.stack([sample.cond for sample in samples])
        noise = rng.standard_normal(y_0.shape, np.float32)
        tasks = np.array([sample.task for sample in samples], np.int32)
        gamma = np.concatenate([draw_gammas(rng, 1, self.betas[task]) for task in tasks])
        label = None if self.config.model.num_classes is None else tasks
        return Batch(y_0, cond, noise, gamma, mask, label, self.loss_weights[tasks])

    def sample(self, number, task=None):
        """The training picture of this number, counted over all epochs, with the task drawn or the one asked for."""
        data, seed = self.config.data, self.config.training.seed
        rng = generator(seed, "sample", number)
        epoch, position = divmod(number, len(self.pictures))
        index = self._order(epoch)[position]
        y_0 = crop(self.pictures.read(index), data.image_size, data.min_scale, data.flip, rng)
        drawn = int(rng.choice(len(self.tasks), p=self.task_probabilities))
        task = drawn if task is None else task
        if self.config.tasks[task].recolor > rng.random():
            y_0 = recolor(y_0, rng)
        cond, mask = self.tasks[task](y_0, rng)
        return Sample(y_0, cond, np.ones_like(y_0[:1]) if mask is None else mask, task)

    def _order(self, epoch):
        cached = getattr(self, "_last_order", (None, None))
        if cached[0] != epoch:
            rng = generator(self.config.training.seed, "order", epoch)
            cached = self._last_order = (epoch, rng.permutation(len(self.pictures)))
        return cached[1]

    def iterate(self, first):
        """Batches from number `first` on, without end."""
        workers = self.config.data.workers
        with ThreadPoolExecutor(workers) as pool:
            pending = deque(pool.submit(self.batch, first + i) for i in range(workers + 1))
            number = first + len(pending)
            try:
                while True:
                    batch = pending.popleft().result()
                    pending.append(pool.submit(self.batch, number))
                    number += 1
                    yield batch
            finally:
                for future in pending:
                    future.cancel()
