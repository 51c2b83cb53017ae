"""Training a refining network on what a checkpoint makes of training pictures, against a discriminator.

The run is `palette_ms.training.loop.Trainer`'s, with two steps in place of one: the discriminator's, then the
refiner's.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from palette_ms import runtime
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.data.files import replacing
from palette_ms.data.images import grid, save_atomically
from palette_ms.data.loader import TrainingBatches
from palette_ms.data.sources import fingerprint
from palette_ms.errors import NOT_FINITE, Stopped, UserError
from palette_ms.searched import load_steps, save_steps
from palette_ms.seeds import generator
from palette_ms.training.adversarial import (
    HALVINGS,
    DiscriminatorLoss,
    PatchDiscriminator,
    PowerIteration,
    Refined,
    RefinerLoss,
)
from palette_ms.training.loop import MODEL_FILE, Trainer, freeze, name_after
from palette_ms.training.step import TrainStep, Trapezoid

_FILE_PAIRS = 256  # in a file of theirs
_SHOWN = 6
_LEFT_OUT = {"training.init_from": None, "training.lora": None, "training.shard_optimizer": False,
             "training.recompute": 0, "validation.every": 0, "distillation": None}


class Pairs:
    """What a model makes of training pictures, beside the originals, kept on the disk by files of `_FILE_PAIRS` pairs.

    A pair is what `palette_ms.Palette.restore` makes by default of a picture damaged as in the model's training. It
    depends on the model, the pictures and the options that the folder's name is the checksum of, and on its number.

    Args:
        config: `Config` of the training: with the model's tasks.
        checkpoint: the model's.
        load: function of its path and a device → `palette_ms.Palette`.
        rank, ranks: which of how many processes that train together this one is.

    Attributes:
        pictures, forms: as of `palette_ms.data.loader.TrainingBatches`.
        folder: where they are.
    """

    def __init__(self, config, checkpoint, load, rank=0, ranks=1):
        self.config, self.checkpoint, self.load = config, checkpoint, load
        self.rank, self.ranks = rank, ranks
        self.samples = TrainingBatches(config)
        self.pictures, self.forms = self.samples.pictures, self.samples.forms
        data = config.data
        told = {"model": checkpoint.sha256, "pictures": fingerprint(self.pictures.source), "size": data.image_size,
                "min_scale": data.min_scale, "flip": data.flip, "seed": config.training.seed}
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(config.training.output) / "pairs" / key

    def make(self):
        """Make those that are missing, each rank its share.

        Raises:
            UserError: they cannot be written, or a picture cannot be read.
        """
        numbers = range(-(-self.config.refiner.pairs // _FILE_PAIRS))
        missing = [number for number in numbers if not self._is_whole(number)]
        if missing:
            palette = self.load(self.checkpoint.path, runtime.device())
            for number in missing[self.rank::self.ranks]:
                first = number * _FILE_PAIRS
                pairs = np.stack([self._pair(palette, first + k) for k in tqdm(
                    range(_FILE_PAIRS), desc=f"pairs {first} to {first + _FILE_PAIRS - 1}", disable=None, leave=False)])
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    with replacing(self._file(number)) as temporary, open(temporary, "wb") as file:
                        np.save(file, pairs)
                except OSError as error:
                    # NumPy says nothing of a full disk but how much it wrote.
                    raise UserError(f"cannot write {self._file(number)}: "
                                    f"{error.strerror or f'is the disk full? ({error})'}") from None
        runtime.sum_over_ranks(0)  # all are there

    def _file(self, number):
        return self.folder / f"{number:05d}.npy"

    def _is_whole(self, number):
        """Whether a file of pairs is there, and as it was written: one that was cut off is made again."""
        data = self.config.data
        depth = 2 * data.channels.target + data.channels.source + 1
        try:
            pairs = np.load(self._file(number), mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return pairs.dtype == np.float16 and pairs.shape == (_FILE_PAIRS, depth, data.image_size, data.image_size)

    def _pair(self, palette, number):
        """made ‖ source ‖ original ‖ mask, float16: a picture of 8 bits loses nothing."""
        sample = self.samples.sample(number)
        sampling = palette.sampling(palette.config.tasks[sample.task])
        made = palette.make(sample.task, sample.cond, sample.mask, sampling, number)[0]
        return np.concatenate((made, sample.cond, sample.y_0, sample.mask)).astype(np.float16)

    def take(self, numbers):
        """(made, source, original, mask) of pairs by number, float32 arrays."""
        pairs = np.stack([np.load(self._file(number // _FILE_PAIRS), mmap_mode="r")[number % _FILE_PAIRS]
                          for number in numbers]).astype(np.float32)
        channels = self.config.data.channels
        ends = np.cumsum([channels.target, channels.source, channels.target])
        return tuple(np.ascontiguousarray(part) for part in np.split(pairs, ends, 1))

    def batch(self, number):
        """The batch of this number: drawn from all pairs by the seed and the number alone."""
        training = self.config.training
        rng = generator(training.seed, "pairs", number * self.ranks + self.rank)
        return self.take(rng.integers(self.config.refiner.pairs, size=training.batch_size))

    def iterate(self, first):
        """Batches from number `first` on, without end, once all pairs are made."""
        self.make()
        return (self.batch(number) for number in iter(range(first, sys.maxsize)))


class RefinerTrainer(Trainer):
    """A run that trains a refining network and its discriminator; its states and its model hold the model too that it
    was trained for, whose files it writes with the refiner in them.

    Args:
        config: `Config` with a section `refiner`.
        load: see `Pairs`.

    Raises:
        UserError: no such model or one that makes pictures from nothing, options that are not for this, no pictures.
    """

    def __init__(self, config, load):
        training, refiner = config.training, config.refiner
        for key, value in _LEFT_OUT.items():
            given = config
            for name in key.split("."):
                given = getattr(given, name)
            if given != value:
                raise UserError(f"{key} must be left out where a refiner is trained")
        obstacle = runtime.precision_obstacle(training.precision)
        if obstacle:
            raise UserError(f"{obstacle}. Choose another training.precision than {training.precision}")
        self.checkpoint = checkpoint = Checkpoint(refiner.of)
        self.theirs = theirs = checkpoint.config
        if not theirs.tasks[0].has_source:
            raise UserError(f"refiner.of: {checkpoint.path} makes pictures from nothing, and a refiner is for models "
                            "that restore")
        if theirs.data.image_size % 2**HALVINGS:
            raise UserError(f"refiner.of: {checkpoint.path} was trained at {theirs.data.image_size} pixels a side; the "
                            f"discriminator needs a multiple of {2**HALVINGS}")
        data = {name: getattr(theirs.data, name) for name in ("image_size", "channels", "ranges", "result")}
        made, given = theirs.data.channels.target, theirs.data.channels.source
        network = dataclasses.replace(refiner.network, out_channels=made, in_channels=made + given + 1)
        self.config = config = dataclasses.replace(
            config, model=theirs.model, diffusion=theirs.diffusion, tasks=theirs.tasks,
            data=dataclasses.replace(config.data, **data), refiner=dataclasses.replace(refiner, network=network),
            training=dataclasses.replace(training, source_dropout=theirs.training.source_dropout))
        self.batches = Pairs(config, checkpoint, load, runtime.rank(), runtime.ranks())
        self.network, self.ema = (build_unet(network, "refiner.network") for _ in range(2))
        judge = PatchDiscriminator(made + given, refiner.judge_channels)
        if training.precision != "float32":
            self.network.use_precision(getattr(ms, training.precision))
        freeze(self.ema, "ema")
        for name, parameter in self.ema.parameters_and_names():
            parameter.set_data(dict(self.network.parameters_and_names())[name].value())
        refined = Refined(self.network)
        losses = RefinerLoss(refined, judge, refiner.adversarial), DiscriminatorLoss(refined, judge)
        name_after(self.network, "refiner")
        name_after(judge, "judge")

        def step(loss, weights, averages, learning_rate):
            rate = Trapezoid(learning_rate, training.warmup_steps, training.steps, training.decay_steps)
            # Less momentum than Adam has by default, since the other network moves meanwhile (Isola et al. 2017).
            cell = TrainStep(loss, nn.Adam(weights, rate, beta1=0.5), averages, training.ema_decay,
                             training.max_grad_norm, training.accumulation, training.precision == "float16",
                             runtime.ranks())
            return cell.set_train()

        self.step_cell = step(losses[0], self.network.trainable_params(), self.ema.get_parameters(),
                              training.learning_rate)
        unused = ms.ParameterTuple(judge.trainable_params()).clone("unused")
        self.judge_cell = step(losses[1], judge.trainable_params(), unused, refiner.judge_rate)
        self.iterate = PowerIteration(judge)
        self.refined_by_average = Refined(self.ema).set_train(False)
        self.judged = []  # its losses since the last record
        self.step, self.best, self.validation, self.pictures_before = 0, None, None, None

    # The state

    def _optimizer_parameters(self):
        """All that is trained and that training needs, but the average, by the names they have in a training state."""
        left_out = {id(parameter) for parameter in self.ema.get_parameters()}
        found = {}
        for part, cell in (("refiner", self.step_cell), ("judge", self.judge_cell)):
            left_out.update(map(id, (*cell.averages, *cell.gathered, *cell.ema_weights)))
            for parameter in cell.get_parameters():
                if id(parameter) not in left_out:
                    left_out.add(id(parameter))
                    found[f"{part}:{parameter.name}"] = parameter
        return found

    def optimizer_arrays(self):
        return {name: parameter.asnumpy() for name, parameter in self._optimizer_parameters().items()}

    def save(self, path, optimizer=None):
        """The model with the refiner in it; with what `optimizer_arrays` returns, a training state. Raises as
        `Trainer.save`."""
        self.step_cell.give_average()
        average = unet_arrays(self.ema)
        for arrays in (average, optimizer or {}):
            for name, array in arrays.items():
                if not np.isfinite(array).all():
                    raise Stopped(f"stopped at step {self.step}: {name} is not finite any more, so that no state was "
                                  "written; --resume auto goes on from the last one", NOT_FINITE)
        checkpoint = self.checkpoint
        config = self.config if optimizer else dataclasses.replace(self.theirs, refiner=self.config.refiner)
        groups = {name: arrays for name in ("weights", "ema") for arrays in [checkpoint.tensors(name)] if arrays}
        save_checkpoint(path, config, self.step if optimizer else checkpoint.step, checkpoint.pictures, **groups,
                        optimizer=optimizer, source=checkpoint.source, run=self.surroundings() if optimizer else None,
                        refiner=average)
        steps = load_steps(checkpoint)
        if steps and path.name == MODEL_FILE:  # which are known by the file's checksum
            save_steps(Checkpoint(path), steps)

    def surroundings(self):
        return {**super().surroundings(), "of": self.checkpoint.sha256}

    def load(self, checkpoint):
        """Go on from a training state. Raises UserError where it is none of this config."""
        arrays, parameters = checkpoint.tensors("optimizer"), self._optimizer_parameters()
        if arrays.keys() != parameters.keys() or any(array.shape != parameters[name].shape
                                                     for name, array in arrays.items()):
            raise UserError(f"{checkpoint.path} cannot be resumed: it is no state of such a refiner's training")
        checkpoint.fill(self.ema, "refiner")
        self.step_cell.take_average()
        for name, parameter in parameters.items():
            parameter.set_data(Tensor(arrays[name]))
        self.step = checkpoint.step

    # The run

    def train_on(self, batch):
        """The discriminator's step, then the refiner's, on a batch of `Pairs`; returns what `TrainStep` does of the
        refiner's, and whether the gradients of both were finite."""
        inputs = [Tensor(array) for array in batch]
        self.iterate()
        judged, _, finite = self.judge_cell(*inputs)
        self.judged.append(judged)
        loss, norm, also_finite = self.step_cell(*inputs)
        return loss, norm, finite & also_finite

    def further_numbers(self):
        told = {"judge_loss": round(float(np.mean([one.asnumpy() for one in self.judged])), 6)} if self.judged else {}
        self.judged = []
        return told

    def _sample(self, path):
        """A grid to look at, always of the same pairs: source, what was made, refined, original."""
        self.step_cell.give_average()
        made, cond, y_0, mask = self.batches.take(range(min(_SHOWN, self.config.refiner.pairs)))
        refined = self.refined_by_average(*map(Tensor, (made, cond, mask))).asnumpy()
        source, target = self.batches.forms
        rows = zip(*([form.to_show(picture) for picture in pictures]
                     for form, pictures in ((source, cond), (target, made), (target, refined), (target, y_0))))
        save_atomically(grid(list(rows)), path)
