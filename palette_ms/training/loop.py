"""The training run: batches through the compiled step, states written, samples looked at."""

import dataclasses
import json
import os
import signal
import sys
import time
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from palette_ms import runtime
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.data.files import at_work, clear_parts, expand
from palette_ms.data.forms import Photo, Ranges, forms
from palette_ms.data.images import grid, save_atomically
from palette_ms.data.loader import TrainingBatches
from palette_ms.data.readers import read_array
from palette_ms.data.scan import find_ranges
from palette_ms.data.sources import fingerprint
from palette_ms.diffusion.bound import ContinuousLoss, SteppedLoss
from palette_ms.diffusion.cells import LabelledUNet, ToldUNet, precondition
from palette_ms.diffusion.distillation import DistillationLoss, halved
from palette_ms.diffusion.loss import DiffusionLoss
from palette_ms.diffusion.preconditioning import bridged
from palette_ms.diffusion.samplers import Sampling, create_chain, create_sampler
from palette_ms.diffusion.schedule import make_gamma_schedule
from palette_ms.errors import NOT_FINITE, NOT_WRITTEN, Stopped, UserError
from palette_ms.seeds import generator
from palette_ms.training.log import TrainingLog
from palette_ms.training.profiling import StepProfiler
from palette_ms.training.sharding import ShardedOptimizer, names, own, whole
from palette_ms.training.step import TrainStep, Trapezoid
from palette_ms.training.teacher import open_teacher
from palette_ms.training.validation import Validation
from palette_ms.unet.deepen import can_deepen, deepened
from palette_ms.unet.lora import adapt
from palette_ms.unet.lora_weights import merged

MODEL_FILE, BEST_FILE = "model.safetensors", "best.safetensors"
_LABELS = "label_embedding"  # of a network's parameters
_STATE_PATTERN = "state_*.safetensors"
# Of a config, what may change in a run without a word: where it writes and how often, not what is computed.
_FREE = {"data.path", "data.validation", "data.workers", "data.cache_mb", "data.ranges", "data.result",
         "training.output", "training.steps", "training.max_minutes", "training.log_every", "training.sample_every",
         "training.sample_steps", "training.save_every", "training.keep", "training.profile", "training.init_from",
         "training.max_skipped", "training.recompute", "validation.every", "validation.pictures", "validation.metrics",
         "validation.weights", "training.shard_optimizer", "training.jit_level",
         "distillation.teacher"}
_SAMPLE_PICTURES = 6
_VOTE_SECONDS, _MOST_STEPS = 1.0, 100  # between two votes of the ranks, whichever is sooner; but never below one step


class Trainer:
    """A run: the denoiser, its moving average (a denoiser of its own), the compiled step and the batches.

    In a distillation the denoiser is the student. It starts from the teacher's averaged weights, and its config says
    which steps it is made for.

    Args:
        config: `Config`.

    Raises:
        UserError: the network's sizes do not fit, no pictures, a precision that the device has not, a teacher that does
            not fit (see `palette_ms.training.teacher.open_teacher`).
    """

    def __init__(self, config):
        training, diffusion = config.training, config.diffusion
        obstacle = runtime.precision_obstacle(training.precision)
        if obstacle:
            raise UserError(f"{obstacle}. Choose another training.precision than {training.precision}")
        if training.jit_level == "O2":
            raise UserError("training.jit_level O2 is about to leave MindSpore: take O1, or leave it out")
        self.makes_pictures = not config.tasks[0].has_source
        if config.tasks[0].has_classes or (self.makes_pictures and config.model.num_classes is not None):
            raise UserError("training knows no classes of pictures: such networks can only be sampled from")
        if diffusion.variance == "learned_range" and diffusion.loss not in ("hybrid", "vlb"):
            raise UserError("diffusion.variance: learned_range is learned by the bound: take diffusion.loss: hybrid")
        if diffusion.whole_steps and (config.distillation or diffusion.loss == "l1" or diffusion.first_call):
            raise UserError("what is trained at whole steps (time_input: t, a learned variance, loss: vlb) takes no "
                            "distillation, no loss l1 and no first_call")
        if diffusion.distilled:
            raise UserError("diffusion.distilled is what a distillation writes into its model's config: leave it out")
        if config.distillation:
            if training.init_from:
                raise UserError("training.init_from must be left out in a distillation: the student starts from its "
                                "teacher")
            checkpoint, steps, gammas = open_teacher(config)
            diffusion = dataclasses.replace(diffusion, distilled=halved(steps))
            config = dataclasses.replace(config, diffusion=diffusion)
        self.batches = self.shown = TrainingBatches(config, runtime.rank(), runtime.ranks())
        if config.model.text_channels is not None:
            encoder = self.batches.pictures.source.encoder
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, text_encoder=encoder))
        self.config = config
        if config.data.validation:
            data = dataclasses.replace(config.data, path=config.data.validation)
            self.shown = TrainingBatches(dataclasses.replace(config, data=data))
            self.shown.pictures.read(0)  # where none can be read, tell it now
        self.unet = checkpoint.load_unet() if config.distillation else build_unet(config.model)
        self.batches.dropout_numbers = self.unet.dropout_numbers(config.data.image_size, config.data.image_size)
        self.ema = build_unet(config.model)
        self.teacher = None
        self.pictures_before = 0
        if training.init_from:
            self._start_from(Checkpoint(training.init_from))
        if training.lora:
            try:
                for network in (self.unet, self.ema):
                    adapt(network, training.lora.rank, training.lora.targets, generator(training.seed, "lora"))
            except ValueError as error:
                raise UserError(f"training.lora.targets: {error}") from None
        if config.distillation:
            self._check_encoder(checkpoint)
            self.teacher = checkpoint.load_unet()
            self.pictures_before = checkpoint.pictures
            freeze(self.teacher, "teacher")
        freeze(self.ema, "ema")
        for name, parameter in self.ema.parameters_and_names():
            parameter.set_data(dict(self.unet.parameters_and_names())[name].value())
        if training.precision != "float32":
            for network in filter(None, (self.unet, self.teacher)):
                network.use_precision(getattr(ms, training.precision))
        self.unet.recompute_blocks(training.recompute)
        if config.distillation:
            loss = DistillationLoss(precondition(self.unet, diffusion), precondition(self.teacher, diffusion), gammas,
                                    diffusion.prediction, diffusion.clip)
        else:
            loss = create_loss(precondition(self.unet, diffusion), diffusion, runtime.ranks())
        name_after(self.unet, "unet")  # whatever is around it: training states have Adam's moments by these names
        self.optimizer = self._create_optimizer()
        averages = dict(self.ema.parameters_and_names())
        averages = [averages[name] for name, weight in self.unet.parameters_and_names() if weight.requires_grad]
        self.step_cell = TrainStep(loss, self.optimizer, averages, training.ema_decay,
                                   training.max_grad_norm, training.accumulation, training.precision == "float16",
                                   runtime.ranks())
        self.step_cell.set_train()
        if training.jit_level:
            self.step_cell.set_jit_config(ms.JitConfig(jit_level=training.jit_level))
        if self.teacher:
            self.teacher.set_train(False)  # no dropout
        self.step = 0
        self.chain = self.told = None  # of the grids and the validation, compiled, and what it is told
        self.best = None  # value of the first of validation.metrics
        self.validation = self._create_validation() if config.validation.every and runtime.rank() == 0 else None

    def _create_validation(self):
        diffusion = self.config.diffusion
        cell = None
        if not self.config.distillation:  # of the prediction, whatever it is trained with besides
            if diffusion.loss not in ("l1", "l2"):
                diffusion = dataclasses.replace(diffusion, loss="l2")
            cell = create_loss(precondition(self.ema, diffusion), diffusion)
        gammas = make_gamma_schedule(**vars(diffusion.train_schedule))
        name_after(self.ema, "ema")  # a Cell around it names its parameters anew

        def loss(samples, noise, gamma):
            y_0, cond, mask = self._stacked(samples)
            label = None if self.config.model.num_classes is None else np.array([one.task for one in samples], np.int32)
            levels = np.full(len(samples), gamma, np.float32)
            if diffusion.whole_steps:
                levels = np.full(len(samples), np.argmin(np.abs(gammas - gamma)), np.int32)
            text, source_noise = self._told(samples)
            inputs = y_0, cond, noise, levels, mask, label, None, None, text, source_noise
            return float(cell(*(array if array is None else Tensor(array) for array in inputs)).asnumpy())

        return Validation(self.config, self.shown, _SAMPLE_PICTURES, self._restore, cell and loss)

    def _create_optimizer(self):
        training, weights = self.config.training, self.unet.trainable_params()

        def adam(parameters):
            return nn.Adam(parameters, Trapezoid(training.learning_rate, training.warmup_steps, training.steps,
                                                 training.decay_steps))

        if training.shard_optimizer and runtime.ranks() > 1:
            return ShardedOptimizer(weights, adam, runtime.rank(), runtime.ranks())
        return adam(weights)

    def _start_from(self, checkpoint):
        theirs = dataclasses.replace(checkpoint.config.model, num_classes=self.config.model.num_classes)
        deepens = can_deepen(theirs, self.config.model)
        if theirs != self.config.model and not deepens:
            raise UserError(f"training.init_from: {checkpoint.path} holds another network than the model section "
                            "describes; copy its model section (num_res_blocks alone may be more)")
        self._check_encoder(checkpoint)
        was, ours = checkpoint.config.diffusion, self.config.diffusion
        for name in ("from_source", "noise_input") + (() if ours.from_source else ("process",)):
            if getattr(was, name) != getattr(ours, name):
                raise UserError(f"training.init_from: {checkpoint.path} has another diffusion.{name} than this config: "
                                "copy its")
        group = "weights" if checkpoint.tensors("weights") else "ema"
        changed = checkpoint.without_adapters(group)
        arrays = {**checkpoint.tensors(group), **changed}
        changed.update(self._embeddings(checkpoint.config, arrays))
        if was.process != ours.process:
            changed["conv_in.weight"] = bridged(arrays["conv_in.weight"], was.process, ours.process)
        if deepens:
            arrays = {name: array for name, array in {**arrays, **changed}.items() if array is not None}
            made = deepened(arrays, theirs, self.config.model, unet_arrays(self.unet))
            changed = {**dict.fromkeys(arrays), **made}
        checkpoint.fill(self.unet, group, changed)
        self.pictures_before = checkpoint.pictures

    def _check_encoder(self, checkpoint):
        """Raises UserError where a checkpoint's texts were told by another encoder."""
        theirs, ours = checkpoint.config.data.text_encoder, self.config.data.text_encoder
        if theirs != ours:
            raise UserError(f"{checkpoint.path} was trained with the texts of the encoder {theirs}, and "
                            f"{self.config.data.path} has those of {ours}")

    def _embeddings(self, theirs, arrays):
        """What takes the place of another model's arrays where it does not know the same tasks in the same order: a
        task that it knows begins with its embedding there, another one with their mean."""
        table, bias = arrays.get(_LABELS), "time_embedding.dense2.bias"
        names = [task.name for task in theirs.tasks]
        rows = {} if table is None else dict(zip(names[::-1], table[len(names) - 1::-1]))  # the first of a name counts
        mean = np.mean(list(rows.values()), 0) if rows else 0 * arrays[bias]
        ours = [rows.get(task.name, mean) for task in self.config.tasks]
        if self.config.model.num_classes is None:
            # Without embeddings of tasks, what they would add stands in the bias before them.
            return {} if table is None else {_LABELS: None, bias: arrays[bias] + np.mean(ours, 0)}
        return {_LABELS: np.stack(ours + [mean] * (self.config.model.num_classes - len(ours)))}

    # The state

    def _optimizer_parameters(self):
        """What a training state holds of each step's state, beside the networks."""
        others = {id(p) for net in filter(None, (self.unet, self.ema, self.teacher)) for p in net.get_parameters()}
        others.update(map(id, (*self.step_cell.averages, *self.step_cell.gathered)))
        return [p for p in self.step_cell.get_parameters() if id(p) not in others and names(self.optimizer, p)]

    def _nothing_gathered(self):
        """What a training state holds of the gradients of the calls that make a step: zeros, since steps are whole."""
        weights = self.step_cell.weights if self.config.training.accumulation > 1 else ()
        return {f"gathered.{weight.name}": np.zeros(weight.shape, np.float32) for weight in weights}

    def optimizer_arrays(self):
        """What a training state holds besides the networks, whole: all ranks must call it."""
        arrays = self._nothing_gathered()
        for parameter in self._optimizer_parameters():
            arrays.update(whole(self.optimizer, parameter))
        return arrays

    def pictures_seen(self):
        """How many training pictures the model has seen, or None where those of its first weights are not known."""
        if self.pictures_before is None:
            return None
        training = self.config.training
        return self.pictures_before + self.step * training.batch_size * training.accumulation * runtime.ranks()

    def save(self, path, optimizer=None):
        """Write a checkpoint; with what `optimizer_arrays` returns it is a training state that a run can go on from.

        Raises:
            UserError: it cannot be written.
            Stopped: the weights, their average or the optimizer's state are not finite.
        """
        self.step_cell.give_average()
        weights, ema = unet_arrays(self.unet), unet_arrays(self.ema)
        if not optimizer:  # a model is one like others, whichever part of it was trained
            weights, ema = merged(weights), merged(ema)
        for arrays in (weights, ema, optimizer or {}):
            for name, array in arrays.items():
                if not np.isfinite(array).all():
                    raise Stopped(f"stopped at step {self.step}: {name} is not finite any more, so that no state was "
                                  "written; --resume auto goes on from the last one", NOT_FINITE)
        save_checkpoint(path, self.config, self.step, self.pictures_seen(), weights, ema, optimizer,
                        run=self.surroundings() if optimizer else None)

    def surroundings(self):
        """What the run has besides its config, for training states: a dict for JSON."""
        return {"ranks": runtime.ranks(), "pictures": fingerprint(self.batches.pictures.source), "best": self.best}

    def load(self, checkpoint):
        """Go on from a training state. Raises UserError where it is none or of another network."""
        arrays, parameters = checkpoint.tensors("optimizer"), self._optimizer_parameters()
        # Between steps, what is gathered of gradients is zeros, whatever the accumulation was.
        held = {name for parameter in parameters for name in names(self.optimizer, parameter)}
        if {name for name in arrays if not name.startswith("gathered.")} != held:
            raise UserError(f"{checkpoint.path} cannot be resumed: it holds no optimizer state for this config; "
                            "to start from its weights, set training.init_from")
        if checkpoint.config.diffusion.distilled != self.config.diffusion.distilled:
            raise UserError(f"{checkpoint.path} cannot be resumed: it is not of a distillation to these steps")
        self._check_encoder(checkpoint)
        checkpoint.fill(self.unet, "weights")
        checkpoint.fill(self.ema, "ema")
        self.step_cell.take_average()
        for parameter in parameters:
            parameter.set_data(Tensor(own(self.optimizer, parameter, arrays)))
        self.step, self.best = checkpoint.step, checkpoint.run.get("best")
        self.pictures_before = 0
        self.pictures_before = None if checkpoint.pictures is None else checkpoint.pictures - self.pictures_seen()

    # The run

    def further_numbers(self):
        """What else the log is to have, by name, since it was last asked."""
        return {}

    def train_on(self, batch):
        """One call of the compiled step on a `palette_ms.data.loader.Batch`; returns what `TrainStep` does."""
        return self.step_cell(*(array if array is None else Tensor(array) for array in batch))

    def run(self):
        """Train to `training.steps` or `training.max_minutes`, whichever comes first.

        Of several ranks, rank 0 alone writes. All leave the loop at the same step, whichever was interrupted.

        Writes states, `model.safetensors`, `log.jsonl`, `samples/` and, where asked, `profile/` into `training.output`.

        Returns: path of the model.

        Raises:
            Stopped: by Ctrl-C or SIGTERM; too many steps in a row had gradients that are not finite, or the weights
                are not; the last state or the model could not be written. Of a state before the last that cannot be
                written only a warning is given.
        """
        training = self.config.training
        output = Path(training.output)
        end = time.monotonic() + 60 * training.max_minutes if training.max_minutes else float("inf")
        losses, norms, unread, skipped, skipped_in_a_row = [], [], [], 0, 0
        batches = self.batches.iterate(self.step * training.accumulation)
        writes = runtime.rank() == 0
        log = TrainingLog(output if writes else None, self.step, training.steps, end)
        profiler = StepProfiler(training.profile, output / "profile")
        with closing(batches), _interrupts() as signals, log, closing(profiler):
            log.say("the first step is compiled, which takes from seconds to minutes ...")
            done, votes = self.step >= training.steps, _Votes(self.step)
            while not done:
                if profiler.before(self.step + 1):
                    log.say(f"steps {self.step + 1} to {training.profile[1]} are profiled: {output / 'profile'}")
                for _ in range(training.accumulation):
                    loss, norm, finite = self.train_on(next(batches))
                    losses.append(loss)
                norms.append(norm)
                unread.append(finite)
                self.step += 1
                profiler.after(self.step)
                log.advance(self.step)
                # Read once: they may come at any line below, and the ranks must agree.
                told = [signal.SIGTERM in signals, signal.SIGINT in signals, time.monotonic() > end]
                terminated, interrupted, late = votes.count(self.step, told, finite) > 0
                stop = terminated or interrupted
                done = self.step >= training.steps or late or stop
                logs, saves = self.step % training.log_every == 0, self.step % training.save_every == 0
                # Reading waits for the device: only where it is asked for, or where there may be too many in a row.
                if done or logs or saves or skipped_in_a_row + len(unread) >= training.max_skipped:
                    for flag in unread:
                        skip = not flag.asnumpy()
                        skipped += skip
                        skipped_in_a_row = skipped_in_a_row + 1 if skip else 0
                    unread = []
                diverged = skipped_in_a_row == training.max_skipped
                done = done or diverged
                if done or logs:
                    log.record(self.step, loss=_mean(losses), grad_norm=_mean(norms), skipped=int(skipped),
                               **self.further_numbers())
                    losses, norms, skipped = [], [], 0
                    complaint = self.batches.pictures.complaint()
                    if complaint:
                        log.say(f"warning: {complaint}")
                # Before the state is written, which says what is best so far; not where a run was interrupted, since an
                # undisturbed one would not have measured there.
                if self.validation and (self.step % self.config.validation.every == 0 or (done and not stop)):
                    with log.aside():
                        self._validate(output, log)
                if done or saves:
                    # Where gradients are not finite, older states may be needed, however often this is tried.
                    problem = self._save_state(output, keep_all=skipped_in_a_row > 0)
                    if problem and done:
                        raise Stopped(f"{problem}; --resume auto goes on from the last state that was written",
                                      NOT_WRITTEN)
                    if problem:
                        log.say(f"warning: {problem}; training goes on, and the next state is tried as usual")
                if diverged:
                    raise Stopped(f"stopped at step {self.step}: the gradients of the last {skipped_in_a_row} steps "
                                  "were not finite. They changed nothing, and the last state holds the weights from "
                                  "before them; try a lower training.learning_rate", NOT_FINITE)
                if stop:
                    raise Stopped(f"interrupted at step {self.step}; --resume auto goes on from here",
                                  128 + (signal.SIGTERM if terminated else signal.SIGINT))
                if writes and training.sample_every and (done or self.step % training.sample_every == 0):
                    try:
                        with log.aside():
                            self._sample(output / "samples" / f"step_{self.step:07d}.png")
                    except UserError as error:
                        log.say(f"warning: {error}")
        if writes:
            try:
                self.save(output / MODEL_FILE)
            except UserError as error:
                raise Stopped(f"{error}; the last state is whole, and --resume auto tries again", NOT_WRITTEN) from None
        return output / MODEL_FILE

    def _save_state(self, output, keep_all=False):
        """Rank 0 writes; then all return, or raise `Stopped`, together. Returns why it could not be written, or None.

        None may end before the state is whole, since msrun kills all ranks once one has ended interrupted.
        """
        problem, optimizer = None, self.optimizer_arrays()
        if runtime.rank() == 0:
            try:
                self.save(output / f"state_{self.step:07d}.safetensors", optimizer)
                for old in [] if keep_all else sorted(output.glob(_STATE_PATTERN))[:-self.config.training.keep]:
                    old.unlink()
            except (UserError, Stopped) as error:
                problem = error
        failed, not_finite = runtime.sum_over_ranks([problem is not None, isinstance(problem, Stopped)]) > 0
        if not_finite:
            raise problem or Stopped("stopped: see the output of rank 0", NOT_FINITE)
        return problem or (failed and "rank 0 cannot write the training state") or None

    def _sampler(self, samples):
        """One batch, one chain: that of the common test schedule, also for tasks with their own, or a student's."""
        diffusion = self.config.diffusion
        unet = precondition(self.ema, diffusion)
        text, source_noise = self._told(samples)
        if text is not None or source_noise is not None:
            unet = self.told = ToldUNet(unet, text, source_noise)
        if self.config.model.num_classes is not None:
            unet = LabelledUNet(unet, [sample.task for sample in samples])
        steps = min(self.config.training.sample_steps, diffusion.test_schedule.num_steps)
        sampling = Sampling(steps=None if diffusion.distilled else steps)
        return create_sampler(create_chain(unet, diffusion, sampling), diffusion, sampling)

    def _validate(self, output, log):
        """Measure, note it, and keep the model where it is the best so far."""
        self.step_cell.give_average()
        found = self.validation.measure()
        log.note(self.step, **{f"validation/{name}": value for name, value in found.items()})
        log.say(f"step {self.step}  validation: "
                + "  ".join(f"{name} {found[name]:.4f}" for name in self.config.validation.metrics))
        value = found[self.config.validation.metrics[0]]
        if np.isfinite(value) and self.validation.is_better(value, self.best):
            try:
                self.save(output / BEST_FILE)
                self.best = value
            except UserError as error:
                log.say(f"warning: {error}")

    def _stacked(self, samples):
        """(y_0, cond or None, mask) of some `Sample`s, as arrays."""
        y_0, mask = (np.stack([getattr(sample, name) for sample in samples]) for name in ("y_0", "mask"))
        return y_0, None if self.makes_pictures else np.stack([sample.cond for sample in samples]), mask

    def _told(self, samples):
        """(text or None, source_noise or None) of some `Sample`s, whose sources are without noise, as arrays."""
        text = None if samples[0].text is None else np.stack([sample.text for sample in samples])
        return text, np.zeros(len(samples), np.float32) if self.config.model.source_noise else None

    def _restore(self, samples, noise):
        """What the averaged weights make of as many samples as the grids show, of the same tasks."""
        if self.chain is None:
            self.chain = self._sampler(samples)
        elif self.told:
            self.told.tell(*self._told(samples))
        y_0, cond, mask = self._stacked(samples)
        return self.chain(cond, mask * noise + (1 - mask) * y_0, mask=mask, y_0=y_0).asnumpy()

    def _sample(self, path):
        """A grid to look at, always of the same pictures: a row of source, sample and original for each, the tasks in
        turn; without a source, samples alone."""
        chosen = [self.shown.sample(i, i % len(self.config.tasks)) for i in range(_SAMPLE_PICTURES)]
        self.step_cell.give_average()
        y_0, cond, _ = self._stacked(chosen)
        made = self._restore(chosen, generator(0, "start").standard_normal(y_0.shape, np.float32))
        source, target = self.shown.forms
        columns = [(target, made)] if self.makes_pictures else [(source, cond), (target, made), (target, y_0)]
        rows = zip(*([form.to_show(picture) for picture in pictures] for form, pictures in columns))
        save_atomically(grid(list(rows)), path)


def create_loss(unet, diffusion, ranks=1):
    """The loss that a `palette_ms.config.DiffusionConfig` describes, of a network as its process calls it."""
    if diffusion.whole_steps:
        return SteppedLoss(unet, make_gamma_schedule(**vars(diffusion.train_schedule)), diffusion.loss,
                           diffusion.prediction, diffusion.variance, diffusion.time_input == "t")
    if diffusion.loss == "vdm":
        return ContinuousLoss(unet, diffusion.prediction, ranks=ranks)
    return DiffusionLoss(unet, diffusion.loss, diffusion.prediction)


class _Votes:
    """What the ranks are told, such as to stop, counted so that all of them learn it at the same step.

    A vote waits for the device and for the slowest rank: there is one about every `_VOTE_SECONDS`. One process alone
    is always heard.

    Args:
        step: where the run begins.
    """

    def __init__(self, step):
        self._last, self._time, self._next = step, time.monotonic(), step + 1

    def count(self, step, told, outcome):
        """How many ranks are told each of some things (bools), as an array; zeros between votes. All must call it.

        outcome: a Tensor of the step.
        """
        if runtime.ranks() > 1:
            if step < self._next:
                return np.zeros(len(told))
            # Ends the step: its gradients are summed over the ranks by the graph, which runs beside this, and two sums
            # that the ranks begin in another order would wait for each other.
            outcome.asnumpy()
        now = time.monotonic()
        *counts, seconds = runtime.sum_over_ranks([*told, now - self._time])
        of_a_step = seconds / runtime.ranks() / (step - self._last)  # on all ranks the same number, as the sum is
        self._next = step + max(1, min(_MOST_STEPS, int(_VOTE_SECONDS / max(of_a_step, 1e-6))))
        self._last, self._time = step, now
        return np.array(counts)


def freeze(network, prefix):
    """Nothing is learned, and the parameters' names leave room for another network's in one graph."""
    name_after(network, prefix)
    for parameter in network.get_parameters():
        parameter.requires_grad = False
    network.set_train(False)


def name_after(network, prefix):
    for name, parameter in network.parameters_and_names():
        parameter.name = f"{prefix}.{name}"


@contextmanager
def _interrupts():
    """A list that Ctrl-C and SIGTERM are put on, so that the step under way is finished; a second Ctrl-C ends at once.

    A second SIGTERM does not: it may come both from a scheduler that tells all processes and from `palette_ms.launch`.
    Once a graph has run, MindSpore takes SIGINT itself and sends its own process SIGTERM instead: SIGTERM counts as
    Ctrl-C where the process stands in the foreground of a terminal.
    """
    signals = []

    def interrupt(number, _):
        at_terminal = os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
        signals.append(signal.SIGINT if at_terminal else signal.Signals(number))
        if signals.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _mean(scalars):
    """Over all ranks."""
    mean = np.mean([scalar.asnumpy() for scalar in scalars])
    return round(float(runtime.sum_over_ranks(mean) / runtime.ranks()), 6)


def find_state(output, say):
    """The newest whole training state in a folder, or None; damaged ones are skipped with a line."""
    for path in sorted(Path(output).glob(_STATE_PATTERN), reverse=True):
        try:
            return Checkpoint(path)
        except UserError as error:
            say(f"skipped: {error}")
    return None


def open_state(resume, output, say):
    """The training state that a user's `--resume` stands for.

    Args:
        resume: "auto" (the newest state in a folder, or None), "latest" (the newest one), another folder (the newest
            in it), or the path of a state, also without its suffix.
        output: the folder.
        say: function of a text, for the user.

    Raises:
        UserError: there is none.
    """
    takes = ("--resume takes auto, latest, a folder of training states, or one of these, "
             f"{output / _STATE_PATTERN}")
    if resume == "auto":
        return find_state(output, say)
    path = output if resume == "latest" else expand(resume)
    if path.is_dir():
        state = find_state(path, say)
        if state is None:
            raise UserError(f"{path} holds no training state: {takes}")
        return state
    if not path.exists():
        path = path.with_name(f"{path.name}.safetensors")
    if not path.exists():
        raise UserError(f"no such training state: {resume}; {takes}")
    state = Checkpoint(path)
    if not any(state.tensors("optimizer")):
        raise UserError(f"{path} holds no optimizer state, and so is no training state: {takes}; training.init_from "
                        "starts from a model's weights")
    return state


def changes(state, trainer):
    """What of a run is not as it was when a training state was written, as a text, or None."""
    before, now = _flat(state.config.to_dict()), _flat(trainer.config.to_dict())
    told = [f"{key} {json.dumps(before.get(key))} → {json.dumps(now.get(key))}"
            for key in sorted(before.keys() | now.keys()) if key not in _FREE and before.get(key) != now.get(key)]
    if trainer.config.training.decay_steps and before["training.steps"] != now["training.steps"]:
        told.append(f"training.steps {before['training.steps']} → {now['training.steps']}")
    was, is_now = state.run, trainer.surroundings()
    if was and was["ranks"] != is_now["ranks"]:
        told.append(f"ranks {was['ranks']} → {is_now['ranks']}")
    if was and was["pictures"] != is_now["pictures"]:
        counts = [found["pictures"]["number"] for found in (was, is_now)]
        told.append(f"pictures {counts[0]} → {counts[1]}" if counts[0] != counts[1] else
                    "the set of pictures, as many as before but others")
    if was and was.get("of", is_now.get("of")) != is_now.get("of"):
        told.append("the model that the refiner is for")
    if not told:
        return None
    return (f"changed since {state.path.name} was written: {', '.join(told)}. The run goes on, but is no longer the "
            "one that an undisturbed training would be")


def _flat(raw, key=""):
    """Nested dicts and lists of dicts as one dict, with keys such as data.path and tasks[0].weight."""
    if isinstance(raw, dict):
        parts = {f"{key}.{part}" if key else part: inner for part, inner in raw.items()}
    elif isinstance(raw, list) and raw and all(isinstance(inner, dict) for inner in raw):
        parts = {f"{key}[{place}]": inner for place, inner in enumerate(raw)}
    else:
        return {key: raw}
    return {name: value for part, inner in parts.items() for name, value in _flat(inner, part).items()}


def refuse_earlier(output, state, resume):
    """Raises UserError where a folder holds a run that this one, going on from a state or None, would write over."""
    if state and state.path.parent.resolve() == output.resolve():
        return
    if any(output.glob(_STATE_PATTERN)) and (state or not resume):  # else all of them are damaged
        raise UserError(f"{output} holds an earlier run: --resume auto goes on with it; "
                        "or give this one another training.output")
    if (output / MODEL_FILE).exists():
        raise UserError(f"{output} holds a finished model and no state to go on from: give this run another "
                        "training.output")


def advice(config, pictures_before):
    """What keeps this run from giving a good picture, as a text, or None.

    Measured on a CPU with 2 M parameters at 32×32: after 13 000 pictures v-prediction was soft and blotchy,
    ε-prediction coloured noise. The paper's models saw a thousand million.
    """
    if pictures_before is None or config.distillation:  # a student begins with what its teacher knows
        return None
    training = config.training
    pictures = pictures_before + training.steps * training.batch_size * training.accumulation * runtime.ranks()
    eps = config.diffusion.prediction == "eps"
    enough = 1_000_000 if eps else 50_000
    if pictures < enough:
        return (f"this run ends after {pictures:,} pictures ({training.steps} steps of {training.batch_size}"
                f"{f' × {training.accumulation}' if training.accumulation > 1 else ''}): too few for a new model with "
                f"{config.diffusion.prediction}-prediction; expect {'noise' if eps else 'soft and blotchy pictures'}. "
                f"Raise training.steps{', or use diffusion.prediction=v' if eps else ''}, "
                "or start from a trained model with training.init_from")
    return None


def with_ranges(config, state, say):
    """The config's `DataConfig` with the ranges and the kind of results that this training is to have.

    A run that goes on has those it began with, a student its teacher's; others find in the files what is not given.
    Photos have none.

    Args:
        config: `Config`.
        state: the training state to go on from, a `Checkpoint`, or None.
        say: function of a text, for the user.

    Raises:
        UserError: see `TrainingBatches` and `palette_ms.data.scan.find_ranges`; a state or teacher of other channels.
    """
    if not state and not config.distillation:
        if isinstance(forms(config.data)[1], Photo):
            return config.data
        source = TrainingBatches(config).pictures.source  # what does not go together is told before all files are read
        if "mask" in source.columns and config.data.channels.source != config.data.channels.target:
            say(f"warning: {config.data.path} has masks, outside of which the targets are known. When a picture is "
                "restored they are not, since its channels are others: the model will have to make all of it")
        return find_ranges(config.data, source, say)
    earlier = state or Checkpoint(config.distillation.teacher)
    theirs, ours = earlier.config.data, config.data
    if theirs.channels != ours.channels:
        raise UserError(f"{earlier.path} has data.channels {_in_words(theirs.channels)}, this config "
                        f"{_in_words(ours.channels)}: they must be the same")
    for name in ("ranges", "result"):
        given = vars(getattr(ours, name) or Ranges())
        if any(value not in (None, getattr(getattr(theirs, name), part, None)) for part, value in given.items()):
            say(f"warning: data.{name} stays as it is in {earlier.path}, where this config has another")
    return dataclasses.replace(ours, ranges=theirs.ranges, result=theirs.result)


def depth_warning(source):
    """What is lost of deeper files by a model of photos, as a text, or None; told by the first of them."""
    try:
        name, data = source.read(0)[-1]
        dtype = read_array(data, name).dtype
    except UserError:
        return None  # it is left out and counted
    if dtype.itemsize == 1:
        return None
    return (f"{name} holds {dtype.name}, of which a model of photos takes 8 bits: data.ranges={{}} takes files as they "
            "are")


def _in_words(channels):
    return f"{channels.source} → {channels.target}"


def train(config, resume=None, load=None):
    """Run a training.

    Args:
        config: `Config`.
        resume: None (refuse to overwrite an earlier run), or see `open_state`.
        load: for a refiner's training, see `palette_ms.training.refiner.Pairs`.

    Returns: path of the model.

    Raises:
        UserError: see `Trainer`, `with_ranges` and `open_state`, or the output folder holds another run or is in use,
            or other ranks find another state.
    """
    def say(text):
        print(text, file=sys.stderr)

    output = Path(config.training.output)
    state = open_state(resume, output, say) if resume else None
    refuse_earlier(output, state, resume)
    if config.refiner:
        from palette_ms.training.refiner import RefinerTrainer

        trainer = RefinerTrainer(config, load)
    else:
        config = dataclasses.replace(config, data=with_ranges(config, state, say))
        trainer = Trainer(config)
    if state:
        trainer.load(state)
    if runtime.sum_over_ranks(trainer.step) != runtime.ranks() * trainer.step:
        raise UserError(f"the ranks start from different states, this one from step {trainer.step}: training.output "
                        "must be one folder for all hosts, or the same on each of them")
    if state:
        say(f"resumed from {state.path} at step {trainer.step}")
        changed = changes(state, trainer)
        if changed:
            say(f"warning: {changed}")
    if runtime.ranks() > 1:
        say(f"a step is {config.training.batch_size} × {config.training.accumulation} pictures on each of "
            f"{runtime.ranks()} ranks")
    photos = isinstance(trainer.batches.forms[1], Photo)
    for warning in (advice(config, trainer.pictures_before),
                    photos and not state and depth_warning(trainer.batches.pictures.source)):
        if warning:
            say(f"warning: {warning}")
    with at_work(output / "log.jsonl") if runtime.rank() == 0 else nullcontext():
        if runtime.rank() == 0:
            refuse_earlier(output, state, resume)  # by a run that ended meanwhile
            clear_parts(output)
        return trainer.run()
