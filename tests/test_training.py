"""The compiled training step and the run around it."""

import dataclasses
import json
import os
import resource
import shutil
import signal

import mindspore as ms
import numpy as np
import pytest
from golden import DATA, golden_unet, relative_error
from mindspore import Parameter, Tensor, nn
from PIL import Image

from palette_ms import runtime
from palette_ms.checkpoint import Checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.data.forms import Photo
from palette_ms.data.loader import Batch, TrainingBatches, crop, recolor
from palette_ms.data.sources import Row
from palette_ms.diffusion.cells import precondition
from palette_ms.diffusion.loss import DiffusionLoss
from palette_ms.errors import Stopped, UserError
from palette_ms.training import buffers, loop
from palette_ms.training.step import TrainStep, Trapezoid
from palette_ms.unet.deepen import can_deepen
from palette_ms.unet.layers import DROPOUT_MODULUS

FORMS = Photo(), Photo()


def test_five_adam_steps_give_the_ports_losses():  # in graph mode, as training always is
    with np.load(DATA / "palette_unet.npz") as arrays:
        unet = golden_unet()
        step = TrainStep(DiffusionLoss(unet), nn.Adam(unet.trainable_params(), Trapezoid(1e-4, 0)),
                         [p.clone() for p in unet.trainable_params()], max_grad_norm=0)
        y_0, cond = Tensor(arrays["y0"]), Tensor(arrays["cond"])
        losses = [float(step(y_0, cond, Tensor(noise), Tensor(gamma))[0].asnumpy())
                  for noise, gamma in zip(arrays["train_noise"], arrays["train_gamma"])]
        np.testing.assert_allclose(losses, arrays["train_losses"], rtol=1e-5)


class Distance(nn.Cell):
    """‖w − target‖²/2, whose gradient is w − target."""

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor(np.array([3.0, 4.0], np.float32)), name="w")

    def construct(self, target):
        return 0.5 * ((self.w - target) ** 2).sum()


def sgd_step(rate=0.5, **kwargs):
    cell = Distance()
    average = Parameter(Tensor(np.array([3.0, 4.0], np.float32)), name="ema.w", requires_grad=False)
    return TrainStep(cell, nn.SGD(cell.trainable_params(), rate), [average], **kwargs), cell.w, average


def call(step, *target):
    return [out.asnumpy() for out in step(Tensor(np.array(target, np.float32)))]


@pytest.fixture(params=["each", "joined"])
def both_forms(request, monkeypatch):
    """Steps on each weight by itself, as on a CPU, and on one buffer of all, as on an NPU."""
    monkeypatch.setattr(runtime, "wants_few_kernels", lambda: request.param == "joined")


def test_gradients_are_clipped_by_their_global_norm(both_forms):
    step, w, _ = sgd_step(max_grad_norm=1.0)
    loss, norm, finite = call(step, 0, 0)
    assert (loss, norm, finite) == (pytest.approx(12.5), pytest.approx(5.0), True)
    np.testing.assert_allclose(w.asnumpy(), [3 - 0.5 * 0.6, 4 - 0.5 * 0.8], rtol=1e-5)


def test_small_gradients_are_not_clipped(both_forms):
    step, w, _ = sgd_step(max_grad_norm=10.0)
    call(step, 0, 0)
    np.testing.assert_allclose(w.asnumpy(), [1.5, 2.0], rtol=1e-5)


def test_average_follows_its_recursion(both_forms):
    step, w, average = sgd_step(max_grad_norm=0, ema_decay=0.2)
    expected = average.asnumpy().copy()  # asnumpy shares the parameter's memory
    for t in range(4):
        call(step, 1, -1)
        decay = min(0.2, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * w.asnumpy()
        step.give_average()
        np.testing.assert_allclose(average.asnumpy(), expected, rtol=1e-6)


def test_accumulated_gradients_are_the_mean_of_their_calls(both_forms):
    step, w, _ = sgd_step(max_grad_norm=0, accumulation=3)
    for number, target in enumerate([(0, 0), (3, 0), (0, 6)] * 2):
        before = w.asnumpy().copy()
        call(step, *target)
        if number % 3 < 2:
            np.testing.assert_array_equal(w.asnumpy(), before)
        else:  # the mean target is (1, 2)
            np.testing.assert_allclose(w.asnumpy(), before - 0.5 * (before - [1, 2]), rtol=1e-5)


def test_a_step_that_overflows_changes_nothing_but_the_loss_scale(both_forms):
    step, w, average = sgd_step(loss_scaling=True, max_grad_norm=0)
    scale = float(step.loss_scale.asnumpy())
    _, _, finite = call(step, np.inf, 0)
    assert not finite
    step.give_average()
    np.testing.assert_array_equal(w.asnumpy(), [3, 4])
    np.testing.assert_array_equal(average.asnumpy(), [3, 4])
    assert float(step.loss_scale.asnumpy()) == scale / 2
    loss, norm, finite = call(step, 0, 0)
    assert (loss, norm, finite) == (pytest.approx(12.5), pytest.approx(5.0), True)
    np.testing.assert_allclose(w.asnumpy(), [1.5, 2.0], rtol=1e-5)


def test_loss_scale_doubles_after_enough_good_steps(monkeypatch):
    monkeypatch.setattr("palette_ms.training.step._GROWTH_INTERVAL", 3)
    step, _, _ = sgd_step(loss_scaling=True)
    scales = []
    for _ in range(7):
        call(step, 0, 0)
        scales.append(float(step.loss_scale.asnumpy()) / 2**16)
    assert scales == [1, 1, 2, 2, 2, 4, 4]


@pytest.mark.parametrize("decay, expected", [
    (0, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1]), (4, [0.025, 0.05, 0.075, 0.1, 0.075, 0.05, 0.025, 0])])
def test_the_learning_rate_rises_stays_and_falls_linearly(decay, expected):
    rate = Trapezoid(0.1, 4, steps=7, decay=decay)
    rates = [float(rate(Tensor(t, ms.int32)).asnumpy()) for t in range(8)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


# The run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    from skimage import data

    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "rocket"):
        Image.fromarray(getattr(data, name)()).resize((80, 64)).save(folder / f"{name}.png")
    return folder


def tiny_config(photos, output, **training):
    return config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": []},
        "diffusion": {"prediction": "v", "noise_levels": "cosine", "test_schedule": {"num_steps": 8}},
        "tasks": [{"name": "inpainting"}, {"name": "colorization"}],
        "data": {"path": str(photos), "image_size": 16, "min_scale": 0.5, "workers": 2},
        "training": {"output": str(output), "steps": 6, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 2,
                     "log_every": 2, "sample_every": 3, "sample_steps": 2, "save_every": 2, "seed": 4, **training},
    }, "test")


def run(config, resume=None):
    ms.set_seed(config.training.seed)
    loop.train(config, resume)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    ms.set_context(mode=ms.GRAPH_MODE)
    config = tiny_config(photos, tmp_path_factory.mktemp("runs") / "whole")
    run(config)
    return config


def test_a_run_leaves_model_states_log_and_samples(finished):
    from pathlib import Path

    output = Path(finished.training.output)
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert {name for name in names if "tensorboard" not in name} == {
        "model.safetensors", "log.jsonl", "samples/step_0000003.png", "samples/step_0000006.png",
        "state_0000002.safetensors", "state_0000004.safetensors", "state_0000006.safetensors"}
    records = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6]
    assert all(record["loss"] > 0 and record["steps_per_second"] > 0 for record in records)
    model = Checkpoint(output / "model.safetensors")
    assert (model.config, model.step, model.pictures) == (finished, 6, 12)
    assert model.tensors("weights").keys() == model.tensors("ema").keys() and not model.tensors("optimizer")
    assert Image.open(output / "samples" / "step_0000006.png").size == (3 * 16 + 2 * 2, 6 * 16 + 5 * 2)


def test_tensorboard_gets_the_numbers_of_the_log(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"{finished.training.output}/tensorboard")
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [2, 4, 6]


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(photos, tmp_path):
    whole = tiny_config(photos, tmp_path / "whole", accumulation=2, steps=4, sample_every=0)
    whole = with_tasks(whole, whole.to_dict()["tasks"], dropout=0.3)
    run(whole)
    parts = dataclasses.replace(whole, training=dataclasses.replace(whole.training, output=str(tmp_path / "parts")))
    run(dataclasses.replace(parts, training=dataclasses.replace(parts.training, steps=2)))
    (tmp_path / "parts" / "state_0000003.safetensors").write_bytes(b"cut off")
    (tmp_path / "parts" / ".palette_ms.9.1.part").write_bytes(b"killed while it was written")
    (tmp_path / "parts" / "film.mkv.part").write_bytes(b"a download under way")
    run(parts, resume="auto")
    assert [path.name for path in (tmp_path / "parts").glob("*.part")] == ["film.mkv.part"]
    for group in ("weights", "ema", "optimizer"):
        expected = Checkpoint(tmp_path / "whole" / "state_0000004.safetensors").tensors(group)
        actual = Checkpoint(tmp_path / "parts" / "state_0000004.safetensors").tensors(group)
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(actual[name], value, name)


def test_a_state_of_before_goes_on_to_the_weights_of_before(photos):
    """The files were written when `from_source` and `noise_input` were the network's: a state after two steps, and the
    model after two more on these batches."""
    state, model = (Checkpoint(DATA / f"{name}_before_preconditioning.safetensors") for name in ("state", "model"))
    assert state.config.diffusion.from_source and state.config.diffusion.noise_input == "angle"
    data = dataclasses.replace(state.config.data, path=str(photos))
    trainer = loop.Trainer(dataclasses.replace(state.config, data=data))
    trainer.load(state)
    numbers = trainer.unet.dropout_numbers(8, 8)
    for step in (2, 3):
        rng = np.random.default_rng(step)
        y_0, cond, noise = (rng.standard_normal((2, 3, 8, 8), np.float32) for _ in range(3))
        mask = (rng.random((2, 1, 8, 8)) < 0.5).astype(np.float32)
        gamma, weight = rng.random(2, np.float32), np.array([1, 2], np.float32)
        dropout = rng.integers(1, DROPOUT_MODULUS, (2, numbers)).astype(np.float32)
        trainer.train_on(Batch(y_0, cond, noise, gamma, mask, None, weight, dropout))
    for group, network in (("weights", trainer.unet), ("ema", trainer.ema)):
        before, after = model.tensors(group), unet_arrays(network)
        assert before.keys() == after.keys()
        # The same to the bit on one machine; kernels of another processor may round otherwise, and Adam, which divides
        # each gradient by its size, carries that into the weights. Without the state's moments it is above 1e-2.
        before, after = (np.concatenate([arrays[name].ravel() for name in before]) for arrays in (before, after))
        assert relative_error(after, before) < 1e-5


def test_in_one_buffer_a_run_goes_on_from_a_state_of_the_other_form_to_the_same_weights(photos, tmp_path, monkeypatch):
    whole = tiny_config(photos, tmp_path / "whole", accumulation=2, steps=4, sample_every=1, save_every=2)
    run(whole)
    joined = dataclasses.replace(whole, training=dataclasses.replace(whole.training, output=str(tmp_path / "joined")))
    monkeypatch.setattr(runtime, "wants_few_kernels", lambda: True)
    run(joined, resume=str(tmp_path / "whole" / "state_0000002.safetensors"))
    for group in ("weights", "ema", "optimizer"):
        expected, actual = (Checkpoint(tmp_path / name / "state_0000004.safetensors").tensors(group)
                            for name in ("whole", "joined"))
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            # The norm is summed in another order, and Adam divides each gradient by its size.
            np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    # The second of the run's grids shows the average of its time, too.
    last, same, before = (np.asarray(Image.open(tmp_path / path), int) for path in (
        "whole/samples/step_0000004.png", "joined/samples/step_0000004.png", "joined/samples/step_0000003.png"))
    assert 5 * np.abs(same - last).mean() < np.abs(before - last).mean()


@pytest.mark.parametrize("joined, ranks", [(True, 1), (True, 3), (False, 3), (False, 1)])
def test_buffers_hold_every_value_and_give_it_back(monkeypatch, joined, ranks):
    monkeypatch.setattr(runtime, "wants_few_kernels", lambda: joined)
    monkeypatch.setattr(buffers, "_VALUES", 8)
    shapes = [(2, 3), (1,), (4, 5), (), (2,)]
    arrays = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)]
    layout = buffers.Buffers([Parameter(Tensor(array), name=str(i)) for i, array in enumerate(arrays)], ranks)
    joint = layout.join(tuple(map(Tensor, arrays)))
    assert len(joint) == (3 if joined else 5)
    if layout.flat:
        assert all(buffer.size % ranks == 0 for buffer in joint)
        for i, buffer in enumerate(joint):
            np.testing.assert_array_equal(buffer.asnumpy(), layout.array(i, arrays))
            for place, array in layout.arrays(i, buffer.asnumpy()).items():
                np.testing.assert_array_equal(array, arrays[place])
    for one, array in zip(layout.part(joint), arrays):
        np.testing.assert_array_equal(one.asnumpy(), array)


@pytest.mark.parametrize("joined", [True, False])
def test_more_weights_than_calls_may_lie_within_each_other_are_compiled(monkeypatch, joined):
    monkeypatch.setattr(runtime, "wants_few_kernels", lambda: joined)
    weights = [Parameter(Tensor(np.full(1 + i % 3, i, np.float32)), name=str(i)) for i in range(450)]
    layout = buffers.Buffers(weights, ranks=2)

    class Both(nn.Cell):
        def construct(self, *tensors):
            return layout.part(layout.join(tensors))

    given_back = Both()(*(Tensor(weight.asnumpy()) for weight in weights))
    for weight, one in zip(weights, given_back):
        np.testing.assert_array_equal(one.asnumpy(), weight.asnumpy())


@pytest.fixture(scope="module")
def compiled(photos, tmp_path_factory):
    return loop.Trainer(tiny_config(photos, tmp_path_factory.mktemp("compiled"), sample_every=0, save_every=1))


@pytest.fixture
def trainer(compiled, tmp_path, monkeypatch):
    """A trainer whose step need not be compiled again, at the beginning of a run of six steps."""
    training = dataclasses.replace(compiled.config.training, output=str(tmp_path), keep=2, max_skipped=3)
    monkeypatch.setattr(compiled, "config", dataclasses.replace(compiled.config, training=training))
    compiled.step = 0
    return compiled


def states(folder):
    return [int(path.stem[-7:]) for path in sorted(folder.glob("state_*.safetensors"))]


def test_gradients_that_stay_infinite_end_the_run_and_change_nothing(trainer, tmp_path, monkeypatch):
    iterate = trainer.batches.iterate
    monkeypatch.setattr(trainer.batches, "iterate", lambda first: (
        batch._replace(y_0=batch.y_0 * np.nan) if number in (1, 3, 4, 5) else batch
        for number, batch in enumerate(iterate(first))))
    with pytest.raises(Stopped, match="step 6: the gradients of the last 3 steps were not finite") as stopped:
        trainer.run()
    assert stopped.value.status == 3
    # All that two steps back from the first bad one may be needed for is still there.
    assert states(tmp_path) == [2, 3, 4, 5, 6]
    good, last = (Checkpoint(tmp_path / f"state_000000{step}.safetensors") for step in (3, 6))
    for group in ("weights", "ema", "optimizer"):
        for name, value in good.tensors(group).items():
            np.testing.assert_array_equal(last.tensors(group)[name], value, name)


def test_flags_are_read_where_they_are_logged_saved_or_may_be_too_many_and_the_run_ends_at_the_same_step(
        trainer, tmp_path, monkeypatch):
    training = dataclasses.replace(trainer.config.training, steps=40, log_every=7, save_every=11, max_skipped=5)
    monkeypatch.setattr(trainer, "config", dataclasses.replace(trainer.config, training=training))
    reads = []

    class Flag:
        def __init__(self, step):
            self.step = step

        def asnumpy(self):
            reads.append((self.step, trainer.step))
            return np.array(self.step not in (8, 9, 13, *range(17, 30)))

    number = Tensor(1.0)
    monkeypatch.setattr(trainer, "train_on", lambda batch: (number, number, Flag(trainer.step + 1)))
    with pytest.raises(Stopped, match="stopped at step 21: the gradients of the last 5 steps were not finite"):
        trainer.run()
    assert [step for step, _ in reads] == list(range(1, 22))
    assert sorted({at for _, at in reads}) == [5, 7, 11, 14, 19, 21]
    assert [json.loads(line)["skipped"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [0, 3, 5]


@pytest.mark.parametrize("first, last, recorded", [(2, 3, (2, 3)), (5, 9, (5, 6)), (7, 9, ())])
def test_the_steps_asked_for_are_profiled(trainer, tmp_path, monkeypatch, capsys, first, last, recorded):
    training = dataclasses.replace(trainer.config.training, save_every=6, profile=(first, last))
    monkeypatch.setattr(trainer, "config", dataclasses.replace(trainer.config, training=training))
    trainer.run()
    found = list(tmp_path.glob("profile/*_ascend_ms/ASCEND_PROFILER_OUTPUT/trace_view.json"))
    assert len(found) == bool(recorded) and (tmp_path / "model.safetensors").is_file()
    if recorded:
        assert f"steps {first} to {last} are profiled" in capsys.readouterr().err
        events = [event["name"] for event in json.loads(found[0].read_text()) if "dur" in event]
        assert sum("/Adam-op" in name for name in events) == 2 * len(trainer.step_cell.weights)


def test_ranks_vote_about_once_a_second_and_one_process_is_always_heard(monkeypatch):
    seconds, asked = [0.0], []

    def sum_over_ranks(values):
        asked.append(round(seconds[0], 3))
        return np.float32(values) * runtime.ranks()

    monkeypatch.setattr(runtime, "sum_over_ranks", sum_over_ranks)
    monkeypatch.setattr(loop.time, "monotonic", lambda: seconds[0])
    for ranks, expected in ((1, list(range(1, 41))), (2, [1, 2, 6, 10, 14, 18, 22, 26, 30, 34, 38])):
        monkeypatch.setattr(runtime, "ranks", lambda number=ranks: number)
        seconds[0], asked[:] = 0.0, []
        votes, heard = loop._Votes(0), []
        for step in range(1, 41):
            seconds[0] += 60 if step == 1 else 0.24  # the first one is compiled
            heard.append(votes.count(step, [step > 20], Tensor(True))[0] > 0)
        assert len(asked) == len(expected)
        assert heard.index(True) + 1 == next(step for step in expected if step > 20)


def test_weights_that_are_not_finite_are_never_saved(trainer, tmp_path):
    bias = trainer.unet.conv_in.bias
    before = bias.asnumpy().copy()
    bias.set_data(Tensor(np.full_like(before, np.nan)))
    try:
        with pytest.raises(Stopped, match="conv_in.bias is not finite") as stopped:
            trainer.save(tmp_path / "state_0000001.safetensors", trainer.optimizer_arrays())
    finally:
        bias.set_data(Tensor(before))
    assert stopped.value.status == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("full, kept", [((2, 3), [5, 6]), ((5, 6, 7), [3, 4])])
def test_a_full_disk_leaves_the_last_states_and_training_goes_on_until_the_end(trainer, tmp_path, monkeypatch, capsys,
                                                                                full, kept):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000) if trainer.step in full else usage)
    if 6 in full:
        with pytest.raises(Stopped, match="cannot write checkpoint.*state_0000006.*0 MB are free") as stopped:
            trainer.run()
        assert stopped.value.status == 4
    else:
        trainer.run()
    assert trainer.step == 6 and states(tmp_path) == kept
    assert capsys.readouterr().err.count("training goes on") == len({2, 3, 4, 5} & set(full))
    assert [Checkpoint(tmp_path / f"state_{step:07d}.safetensors").step for step in kept] == kept


def test_a_write_that_fails_half_way_leaves_the_old_file(trainer, tmp_path):
    path = tmp_path / "model.safetensors"
    trainer.save(path)
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write checkpoint.*File too large"):
            trainer.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at_terminal, status", [(False, 143), (True, 130)])
def test_sigterm_saves_and_ends_with_its_status_and_ctrl_c_with_its_own(trainer, tmp_path, monkeypatch, at_terminal,
                                                                       status):
    # MindSpore turns Ctrl-C into SIGTERM.
    monkeypatch.setattr(os, "isatty", lambda fd: at_terminal)
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
    train_on = trainer.train_on

    def terminated(batch):
        if trainer.step == 2:
            # As the signal would. Sent to this process, it has ended the process beside other tests, once in many runs;
            # with processes of their own, the tests of the commands send it.
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
        return train_on(batch)

    monkeypatch.setattr(trainer, "train_on", terminated)
    with pytest.raises(Stopped, match="interrupted at step 3; --resume auto") as stopped:
        trainer.run()
    assert stopped.value.status == status and states(tmp_path) == [2, 3]


def test_an_earlier_run_is_not_overwritten(finished):
    with pytest.raises(UserError, match="earlier run.*--resume auto"):
        loop.train(finished)


def test_a_model_file_starts_a_run_but_cannot_be_resumed(finished, photos, tmp_path):
    model = f"{finished.training.output}/model.safetensors"
    with pytest.raises(UserError, match="no optimizer state.*init_from"):
        loop.train(tiny_config(photos, tmp_path), resume=model)
    trainer = loop.Trainer(tiny_config(photos, tmp_path, init_from=model))
    trained = Checkpoint(model).tensors("weights")
    for name, parameter in trainer.unet.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), trained[name])
    other = dataclasses.replace(finished, model=dataclasses.replace(finished.model, base_channels=16),
                                training=dataclasses.replace(finished.training, init_from=model))
    with pytest.raises(UserError, match="another network"):
        loop.Trainer(other)
    other = dataclasses.replace(other, model=finished.model,
                                diffusion=dataclasses.replace(finished.diffusion, noise_input="angle"))
    with pytest.raises(UserError, match="another diffusion.noise_input"):
        loop.Trainer(other)


def test_half_precision_run_trains(photos, tmp_path):
    trainer = loop.Trainer(tiny_config(photos, tmp_path, precision="float16"))
    batch = trainer.batches.batch(0)
    losses = [float(trainer.train_on(batch)[0].asnumpy()) for _ in range(12)]
    assert losses[-1] < losses[0]
    assert all(p.dtype == ms.float32 for p in trainer.unet.get_parameters())


def test_bfloat16_on_a_cpu_is_refused(photos, tmp_path):
    with pytest.raises(UserError, match="bfloat16 on CPU"):
        loop.Trainer(tiny_config(photos, tmp_path, precision="bfloat16"))


def test_a_level_of_the_compiler_that_mindspore_gives_up_is_refused(photos, tmp_path):
    with pytest.raises(UserError, match="jit_level O2 .* take O1"):
        loop.Trainer(tiny_config(photos, tmp_path, jit_level="O2"))


def test_recomputation_and_the_compilers_level_reach_what_they_are_for(photos, tmp_path):
    trainer = loop.Trainer(tiny_config(photos, tmp_path, recompute=1, jit_level="O1"))
    assert trainer.unet.down[0].residual.get_scope().startswith("recompute_")
    assert trainer.ema.down[0].residual.get_scope() is None  # it only makes pictures
    assert trainer.step_cell.jit_config_dict["jit_level"] == "O1"


def test_too_short_runs_are_told_what_to_expect(photos, tmp_path):
    config = tiny_config(photos, tmp_path)
    assert "12 pictures" in loop.advice(config, 0) and "training.steps" in loop.advice(config, 0)
    eps = dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, prediction="eps"))
    assert "expect noise" in loop.advice(eps, 0) and "diffusion.prediction=v" in loop.advice(eps, 0)
    assert loop.advice(config, 10**6) is None


# Batches


def test_batches_do_not_depend_on_the_workers_and_start_anywhere(photos, tmp_path):
    config = tiny_config(photos, tmp_path)
    one = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=1))
    several = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=5))
    first, second = TrainingBatches(one).iterate(0), TrainingBatches(several).iterate(2)
    batches = [next(first) for _ in range(4)]
    for batch in batches[2:]:
        for a, b in zip(batch, next(second)):
            np.testing.assert_array_equal(a, b)
    assert np.abs(batches[0].y_0 - batches[1].y_0).max() > 0.1


def test_every_picture_comes_once_an_epoch(photos, tmp_path, monkeypatch):
    batches = TrainingBatches(tiny_config(photos, tmp_path))
    seen = []
    read = batches.pictures.read
    monkeypatch.setattr(batches.pictures, "read", lambda index: seen.append(index) or read(index))
    for number in range(60):
        batches.sample(number)
    epochs = [tuple(seen[i:i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_batches_have_the_declared_shapes_and_ranges(photos, tmp_path):
    batch = TrainingBatches(tiny_config(photos, tmp_path, batch_size=16)).batch(0)
    arrays = [array for array in batch if array is not None]
    assert [array.shape for array in arrays] == [(16, 3, 16, 16)] * 3 + [(16,), (16, 1, 16, 16), (16,)]
    assert all(array.dtype == np.float32 for array in arrays) and batch.label is None
    config = with_tasks(tiny_config(photos, tmp_path, batch_size=16), [{"name": "denoising"}] * 3, num_classes=3)
    label = TrainingBatches(config).batch(0).label
    assert label.dtype == np.int32 and set(label) == {0, 1, 2}
    assert np.abs(batch.y_0).max() <= 1 and set(np.unique(batch.mask)) == {0, 1}
    colorized = batch.mask.all((1, 2, 3))
    assert 0 < colorized.sum() < 16  # both tasks are in the batch
    gray = batch.cond[colorized]
    np.testing.assert_array_equal(gray[:, 0], gray[:, 2])


def test_unreadable_pictures_are_left_out_and_counted_once(photos, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((photos / "rocket.png").read_bytes()[:900])
    batches = TrainingBatches(tiny_config(folder, tmp_path, batch_size=5))
    for number in range(6):
        assert np.isfinite(batches.batch(number).y_0).all()
    assert batches.pictures.complaint().startswith("2 of 5 pictures cannot be read and are left out; the first: ")
    assert batches.pictures.complaint() is None


def test_a_folder_without_a_readable_picture_stops_the_run(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(UserError, match="none of the 1 pictures can be read.*broken.jpg"):
        next(TrainingBatches(tiny_config(tmp_path, tmp_path)).iterate(0))


def test_crops_cover_the_scales_asked_for():
    ramp = np.broadcast_to(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (100, 200, 3))
    rng = np.random.default_rng(0)
    spans = [np.ptp(crop(Row(ramp), FORMS, 20, 0.3, False, rng).target) * 127.5 / 255 * 200 for _ in range(300)]
    # 20 pixel centres span 19/20 of the square
    assert min(spans) == pytest.approx(0.95 * 30, abs=3) and max(spans) == pytest.approx(0.95 * 100, abs=3)


def test_every_octave_of_scale_is_cropped_equally_often():
    ramp = np.broadcast_to(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (400, 400, 3))
    rng = np.random.default_rng(0)
    crops = [crop(Row(ramp), FORMS, 20, 0.25, False, rng).target for _ in range(400)]
    spans = np.array([np.ptp(square) * 127.5 / 255 * 400 / 0.95 for square in crops])
    assert ((spans < 200).mean()) == pytest.approx(0.5, abs=0.08)


def test_recolored_pictures_keep_their_shapes_and_range():
    y_0 = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8)).astype(np.float32)
    for seed in range(20):
        other = recolor(y_0, np.random.default_rng(seed))
        assert np.abs(other).max() <= 1 + 1e-6 and other.dtype == np.float32
        correlations = np.corrcoef(np.concatenate([y_0, other]).reshape(6, -1))[:3, 3:]
        np.testing.assert_allclose(np.sort(correlations.max(0)), 1, atol=1e-5)  # each channel is one of the old ones


def test_colours_are_changed_for_the_tasks_that_ask_for_it(photos, tmp_path):
    config = tiny_config(photos, tmp_path)
    for share in (0.0, 1.0):
        tasks = (dataclasses.replace(config.tasks[0], recolor=share),)
        batches = TrainingBatches(dataclasses.replace(config, tasks=tasks))
        plain = TrainingBatches(dataclasses.replace(config, tasks=config.tasks[:1]))
        changed = [not np.array_equal(batches.sample(i)[0], plain.sample(i)[0]) for i in range(20)]
        assert np.mean(changed) == share


def test_sources_are_left_out_as_often_as_asked_and_nothing_else_changes(photos, tmp_path):
    whole, batches = (TrainingBatches(tiny_config(photos, tmp_path, batch_size=200, source_dropout=share))
                      for share in (0.0, 0.3))
    whole, part = whole.batch(0), batches.batch(0)
    dropped = (part.cond == 0).all((1, 2, 3))
    # 200 draws: a standard error is 0.03
    assert dropped.mean() == pytest.approx(0.3, abs=0.1)
    assert len(set(whole.mask[dropped].all((1, 2, 3)))) == 2  # pictures of both tasks
    np.testing.assert_array_equal(part.cond[~dropped], whole.cond[~dropped])
    for ours, theirs, name in zip(part, whole, whole._fields):
        if name != "cond":
            np.testing.assert_array_equal(ours, theirs)
    # what is shown keeps its source
    np.testing.assert_array_equal(batches.sample(int(dropped.argmax())).cond, whole.cond[dropped.argmax()])


def test_without_a_source_there_is_none_to_leave_out(photos, tmp_path):
    with pytest.raises(UserError, match="training.source_dropout must be 0 for unconditional"):
        with_tasks(tiny_config(photos, tmp_path, source_dropout=0.1), [{"name": "unconditional"}], in_channels=3)


def test_crops_of_pictures_smaller_than_the_size_are_enlarged():
    row = crop(Row(np.zeros((7, 9, 3), np.uint8)), FORMS, 16, 0.5, True, np.random.default_rng(0))
    assert row.target.shape == (3, 16, 16)


# What the tasks ask of a run


class Unmoved(nn.Cell):
    """Takes y_t for ŷ₀."""

    def construct(self, x, gamma):
        return x[:, 3:]


def with_tasks(config, tasks, **model):
    raw = config.to_dict()
    raw["model"].update(model)
    return config_from_dict({**raw, "tasks": tasks}, "test")


def test_each_task_trains_at_its_own_noise_levels(photos, tmp_path):
    config = with_tasks(tiny_config(photos, tmp_path, batch_size=64), [
        {"name": "colorization", "train_schedule": {"name": "const", "num_steps": 1, "start": 0.5, "end": 0.5}},
        {"name": "denoising", "train_schedule": {"name": "const", "num_steps": 1, "start": 0.1, "end": 0.1}},
        {"name": "deblurring"}], num_classes=3)
    batch = TrainingBatches(config).batch(0)
    lowest, highest = np.array([(g.min(), g.max()) for g in (batch.gamma[batch.label == k] for k in range(3))]).T
    # a chain of one step: γ uniform between 1 − β and 1; the third draws from the cosine, over all of (0, 1)
    assert 0.5 <= lowest[0] < 0.6 and 0.9 <= lowest[1] < 0.93 and lowest[2] < 0.1
    assert highest.min() > 0.9


def test_a_share_of_the_pictures_is_trained_on_where_a_chain_begins(photos, tmp_path):
    config = with_tasks(tiny_config(photos, tmp_path, batch_size=400), [
        {"name": "denoising"}, {"name": "deblurring", "test_schedule": {"name": "const", "num_steps": 2, "start": 0.5,
                                                                        "end": 0.5}}], num_classes=2)
    usual = TrainingBatches(config).batch(0)
    config = dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, first_call=0.7))
    batch = TrainingBatches(config).batch(0)
    first = batch.gamma != usual.gamma
    assert abs(first.mean() - 0.7) < 0.07  # three deviations of the share among 400
    assert (batch.gamma[first & (batch.label == 1)] == 0.25).all()  # (1 − 0.5)²
    np.testing.assert_array_equal(batch.noise, usual.noise)


def test_pictures_count_in_the_loss_by_their_tasks_weight(photos, tmp_path):
    config = with_tasks(tiny_config(photos, tmp_path, batch_size=8), [
        {"name": "colorization", "loss_weight": 3}, {"name": "denoising", "loss_weight": 0.5}], num_classes=2)
    batch = TrainingBatches(config).batch(0)
    np.testing.assert_array_equal(batch.weight, np.where(batch.label == 0, 3, 0.5))
    loss = DiffusionLoss(Unmoved(), prediction="x0")
    arrays = [Tensor(array) for array in batch[:5]]
    each = [float(loss(*(array[i:i + 1] for array in arrays)).asnumpy()) for i in range(8)]
    total = float(loss(*arrays, weight=Tensor(batch.weight)).asnumpy())
    assert total == pytest.approx(np.mean(batch.weight * each), rel=1e-5)


def test_a_task_embedding_learns_its_own_row_and_tells_tasks_apart(photos, tmp_path):
    tasks = [{"name": "colorization"}, {"name": "inpainting"}, {"name": "denoising", "weight": 1e-9}]
    config = with_tasks(tiny_config(photos, tmp_path, steps=4), tasks, num_classes=3)
    trainer = loop.Trainer(config)
    before = trainer.unet.label_embedding.asnumpy().copy()
    model = Checkpoint(trainer.run())
    assert (tmp_path / "samples" / "step_0000003.png").is_file()
    moved = np.abs(model.tensors("weights")["label_embedding"] - before).max(1)
    assert moved[0] > 0 and moved[1] > 0 and moved[2] == 0


def test_tasks_begin_with_their_own_embedding_in_another_model_and_new_ones_with_the_mean(photos, tmp_path):
    tasks = [{"name": "colorization"}, {"name": "inpainting"}]
    trainer = loop.Trainer(with_tasks(tiny_config(photos, tmp_path / "a"), tasks, num_classes=3))
    for parameter in trainer.unet.get_parameters():
        parameter.set_data(Tensor(0.1 * np.random.default_rng(0).standard_normal(parameter.shape, np.float32)))
    trainer.save(tmp_path / "model.safetensors")
    rows = trainer.unet.label_embedding.asnumpy()
    start = tiny_config(photos, tmp_path / "b", init_from=str(tmp_path / "model.safetensors"))
    other = loop.Trainer(with_tasks(start, [{"name": "denoising"}, *tasks[::-1]], num_classes=4)).unet
    mean = (rows[0] + rows[1]) / 2
    np.testing.assert_allclose(other.label_embedding.asnumpy(), [mean, rows[1], rows[0], mean], rtol=1e-6)
    np.testing.assert_array_equal(other.conv_in.weight.asnumpy(), trainer.unet.conv_in.weight.asnumpy())
    # A model of one task needs no embedding, and answers as the other one did for it.
    alone = loop.Trainer(with_tasks(start, tasks[1:], num_classes=None)).unet
    x, gamma = Tensor(np.random.default_rng(0).standard_normal((1, 6, 16, 16), np.float32)), Tensor([0.3], ms.float32)
    np.testing.assert_allclose(alone(x, gamma).asnumpy(), trainer.unet(x, gamma, Tensor([1], ms.int32)).asnumpy(),
                               atol=1e-6)


@pytest.mark.parametrize("process, other", [("palette", "i2sb"), ("resshift", "palette")])
def test_a_process_begins_with_the_answers_of_another(photos, tmp_path, process, other):
    def trainer(process, **changed):
        base = tiny_config(photos, tmp_path / process, **changed)
        diffusion = dataclasses.replace(base.diffusion, prediction="x0", from_source=True, process=process)
        return loop.Trainer(dataclasses.replace(base, diffusion=diffusion))

    first = trainer(process)
    for parameter in first.unet.get_parameters():
        parameter.set_data(Tensor(0.1 * np.random.default_rng(0).standard_normal(parameter.shape, np.float32)))
    first.save(tmp_path / "model.safetensors")
    second = trainer(other, init_from=str(tmp_path / "model.safetensors"))
    x, gamma = Tensor(np.random.default_rng(1).standard_normal((1, 6, 16, 16), np.float32)), Tensor([0], ms.float32)
    if "resshift" in (process, other):  # whose noise stays where nothing but the source is known
        x[:, 3:] = 0
    one, other = (precondition(of.unet, of.config.diffusion)(x, gamma).asnumpy() for of in (first, second))
    np.testing.assert_allclose(one, other, atol=1e-5)  # of nothing but the source, beside noise


def test_a_deeper_network_begins_with_the_answers_of_a_shallower_one(photos, tmp_path):
    def trainer(name, blocks, **changed):
        base = tiny_config(photos, tmp_path / name, **changed)
        model = dataclasses.replace(base.model, num_res_blocks=blocks, channel_mults=(1, 2), attention_resolutions=(2,))
        return loop.Trainer(dataclasses.replace(base, model=model))

    first = trainer("a", 1)
    for parameter in first.unet.get_parameters():
        parameter.set_data(Tensor(0.1 * np.random.default_rng(0).standard_normal(parameter.shape, np.float32)))
    first.save(tmp_path / "model.safetensors")
    second = trainer("b", 3, init_from=str(tmp_path / "model.safetensors"))
    x, gamma = Tensor(np.random.default_rng(1).standard_normal((1, 6, 16, 16), np.float32)), Tensor([0.3], ms.float32)
    np.testing.assert_allclose(second.unet(x, gamma).asnumpy(), first.unet(x, gamma).asnumpy(), atol=2e-5)
    assert not can_deepen(second.config.model, first.config.model)


def test_a_model_without_source_is_trained_and_makes_pictures(photos, tmp_path):
    from palette_ms import Palette

    config = with_tasks(tiny_config(photos, tmp_path), [{"name": "unconditional"}], in_channels=3)
    assert TrainingBatches(config).batch(0).cond is None
    run(config)
    assert Image.open(tmp_path / "samples" / "step_0000006.png").size == (16, 6 * 16 + 5 * 2)
    palette = Palette.load(tmp_path / "model.safetensors", "CPU")
    assert palette.generate(steps=2)[0].size == (16, 16)


def test_classes_of_pictures_cannot_be_trained(photos, tmp_path):
    config = with_tasks(tiny_config(photos, tmp_path), [{"name": "unconditional"}], in_channels=3, num_classes=5)
    with pytest.raises(UserError, match="no classes of pictures"):
        loop.Trainer(config)
