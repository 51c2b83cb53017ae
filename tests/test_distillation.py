"""Progressive distillation: its loss against plain DDIM steps in float64, and runs that halve a teacher's steps."""

import dataclasses
import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from PIL import Image

from palette_ms import Palette
from palette_ms.checkpoint import Checkpoint, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict, load_config
from palette_ms.data.loader import TrainingBatches
from palette_ms.diffusion.distillation import DistillationLoss
from palette_ms.diffusion.schedule import make_beta_schedule, place_steps
from palette_ms.errors import UserError
from palette_ms.training import loop
from palette_ms.unet import UNet

GAMMAS = np.cumprod(1 - make_beta_schedule("cosine", 1000))[[3, 60, 300, 500, 800, 999]]  # from 0.9999 to 2e-9


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Mirroring(nn.Cell):
    """The exact denoiser of pixels N(0.2, 0.25), seen in a mirror, so that what is known tells of the hole."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def construct(self, x, gamma):
        g = gamma.reshape((-1, 1, 1, 1))
        y_t = x[:, 3:]
        mirrored = ops.flip(y_t, (3,))
        y_0 = 0.2 + ops.sqrt(g) * 0.25 / (g * 0.25 + 1 - g) * (mirrored - ops.sqrt(g) * 0.2)
        return y_0 if self.prediction == "x0" else (ops.sqrt(g) * y_t - y_0) / ops.sqrt(1 - g)


def mirrored_mean(y_t, gamma):
    """What `Mirroring` takes for y_0, in float64."""
    return 0.2 + np.sqrt(gamma) * 0.25 / (gamma * 0.25 + 1 - gamma) * (y_t[..., ::-1] - np.sqrt(gamma) * 0.2)


def ddim(y_t, y_0, gamma, following):
    eps = (y_t - np.sqrt(gamma) * y_0) / np.sqrt(1 - gamma)
    return np.sqrt(following) * y_0 + np.sqrt(1 - following) * eps


class Saying(nn.Cell):
    """Says what it is told to, whatever it sees."""

    def __init__(self, answer):
        super().__init__()
        self.answer = Parameter(Tensor(np.asarray(answer, np.float32)), name="answer")

    def construct(self, x, gamma):
        return self.answer


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_target_leads_in_one_step_to_where_the_teacher_is_after_two(step, clip):
    y_0, noise, cond = normal(2, 3, 4, 6), normal(2, 3, 4, 6, seed=1), normal(2, 3, 4, 6, seed=2)
    mask = np.zeros((2, 1, 4, 6), np.float32)
    mask[..., :4] = 1
    now, middle, following = (np.append(GAMMAS[::-1], 1.0)[2 * step + i] for i in range(3))
    bound = (lambda y: np.clip(y, -1, 1)) if clip else (lambda y: y)
    known = np.float64(y_0)

    # the teacher's chain as the sampler runs it, with the known pixels put back after the first step
    z = mask * (np.sqrt(now) * known + np.sqrt(1 - now) * noise) + (1 - mask) * known
    z_middle = mask * ddim(z, bound(mirrored_mean(z, now)), now, middle) + (1 - mask) * known
    landed = ddim(z_middle, bound(mirrored_mean(z_middle, middle)), middle, following)

    # the target is read off the gradient with respect to the student's answer, −2 max(SNR, 1)/elements · x̃ at 0
    student = Saying(np.zeros(y_0.shape))
    loss = DistillationLoss(student, Mirroring("x0"), GAMMAS, "x0", clip)
    inputs = [Tensor(array) for array in (y_0, cond, noise, np.full(2, step, np.int32), mask)]
    gradient = ms.grad(loss, None, student.trainable_params())(*inputs)[0].asnumpy()
    target = gradient * y_0.size / (-2 * max(now / (1 - now), 1))
    hole = np.broadcast_to(mask > 0, y_0.shape)
    assert not gradient[~hole].any()
    # γ = 0.9999 reaches the teacher in float32: 1 − γ has four digits
    np.testing.assert_allclose(ddim(z, target, now, following)[hole], landed[hole], atol=2e-4 if step == 2 else 2e-6)

    student.answer.set_data(Tensor(target.astype(np.float32)))
    assert float(loss(*inputs).asnumpy()) < 1e-10


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_loss_of_a_student_without_an_answer_is_that_of_its_clean_picture(prediction):
    """One step from the noisiest level to the picture: the target is the teacher's second ŷ₀."""
    gammas = np.array([0.7, 0.3])
    y_0, noise, weight = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1), np.array([1, 0, 2], np.float32)
    z = np.sqrt(0.3) * y_0 + np.sqrt(0.7) * noise
    target = mirrored_mean(ddim(z, mirrored_mean(z, 0.3), 0.3, 0.7), 0.7)
    said = np.sqrt(0.3) * z if prediction == "v" else 0  # by v̂ = 0 or x̂₀ = 0
    loss = DistillationLoss(Saying(np.zeros(y_0.shape)), Mirroring(prediction), gammas, prediction, clip=False)
    value = loss(*map(Tensor, (y_0, y_0, noise, np.zeros(3, np.int32))), weight=Tensor(weight))
    expected = np.mean(weight[:, None, None, None] * (said - target) ** 2)
    assert float(value.asnumpy()) == pytest.approx(expected, rel=1e-5)


def test_the_teacher_learns_nothing():
    networks = [UNet(base_channels=8, channel_mults=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4)
                for _ in range(2)]
    for seed, (network, prefix) in enumerate(zip(networks, ("student", "teacher"))):
        for name, parameter in network.parameters_and_names():
            parameter.name = f"{prefix}.{name}"
            parameter.set_data(Tensor(0.1 * normal(*parameter.shape, seed=seed)))
    loss = DistillationLoss(*networks, GAMMAS, "v")
    inputs = [Tensor(normal(2, 3, 8, 8, seed=i)) for i in range(3)] + [Tensor(np.array([0, 2], np.int32))]
    student, teacher = (network.trainable_params() for network in networks)
    gradients = ms.grad(loss, None, student + teacher)(*inputs)
    sizes = [float(np.abs(gradient.asnumpy()).max()) for gradient in gradients]
    assert min(sizes[:len(student)]) > 0 and not any(sizes[len(student):])


def test_unfit_predictions_and_chains_are_refused():
    with pytest.raises(ValueError, match="v or x0"):
        DistillationLoss(nn.Identity(), nn.Identity(), GAMMAS, "eps")
    with pytest.raises(ValueError, match="even"):
        DistillationLoss(nn.Identity(), nn.Identity(), GAMMAS[1:], "v")


# The run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        Image.fromarray((127 + 50 * normal(20, 24, 3, seed=i)).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def raw_config(photos, output):
    return {
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [],
                  "num_classes": 2},
        "diffusion": {"prediction": "v", "noise_levels": "cosine", "test_schedule": {"num_steps": 20}},
        "tasks": [{"name": "inpainting"}, {"name": "colorization"}],
        "data": {"path": str(photos), "image_size": 16, "workers": 1},
        "training": {"output": str(output), "steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0,
                     "log_every": 2, "sample_every": 4, "save_every": 2, "accumulation": 2},
    }


def write_teacher(photos, folder, **model):
    """A checkpoint of random weights, the average other than the weights."""
    raw = raw_config(photos, folder)
    raw["model"].update(model)
    config, path = config_from_dict(raw, "test"), folder / "teacher.safetensors"
    shapes = {name: array.shape for name, array in unet_arrays(UNet(config.model)).items()}
    arrays = [{name: 0.1 * normal(*shape, seed=seed + len(name)) for name, shape in shapes.items()}
              for seed in range(2)]
    save_checkpoint(path, config, 1, 1000, *arrays)
    return path


@pytest.fixture(scope="module")
def teacher(photos, tmp_path_factory):
    return write_teacher(photos, tmp_path_factory.mktemp("teacher"))


def student_config(photos, output, teacher, steps=2, spacing="quadratic", **changes):
    raw = raw_config(photos, output)
    for key, value in changes.items():
        section, name = key.split("__")
        raw[section][name] = value
    raw["distillation"] = {"teacher": str(teacher), "steps": steps, "spacing": spacing}
    return config_from_dict(raw, "test")


@pytest.fixture(scope="module")
def student(photos, teacher, tmp_path_factory):
    """The finished run's config."""
    ms.set_context(mode=ms.GRAPH_MODE)
    config = student_config(photos, tmp_path_factory.mktemp("student"), teacher)
    loop.train(config)
    return config


def kept_of_the_teacher():
    gammas = np.cumprod(1 - make_beta_schedule("linear", 20, 1e-4, 0.09))
    return place_steps(gammas, 4, "quadratic").tolist()


def test_a_run_leaves_a_student_that_knows_its_steps(student, teacher):
    output = student.training.output
    model, state = (Checkpoint(f"{output}/{name}.safetensors") for name in ("model", "state_0000004"))
    assert list(model.config.diffusion.distilled) == kept_of_the_teacher()[1::2]
    assert model.config.diffusion.distilled == state.config.diffusion.distilled
    assert dataclasses.replace(model.config, diffusion=student.diffusion) == student
    assert model.pictures == 1000 + 4 * 2 * 2
    assert not any("teacher" in name for name in state._names)
    start, weights, average = Checkpoint(teacher).tensors("ema"), model.tensors("weights"), model.tensors("ema")
    # Adam moves a weight by at most about the learning rate, 1e-3, in each of the four steps.
    assert max(np.abs(weights[name] - start[name]).max() for name in start) < 5e-3
    moved, followed = (np.abs(arrays["conv_out.weight"] - start["conv_out.weight"]).mean()
                       for arrays in (weights, average))
    assert 0 < followed < moved
    with open(f"{output}/log.jsonl") as log:
        assert all(0 < json.loads(line)["loss"] < np.inf for line in log)
    assert Image.open(f"{output}/samples/step_0000004.png").width == 3 * 16 + 2 * 2


class Counter:
    def __init__(self):
        self.total = self.done = 0

    def reset(self, total):
        self.total = total

    def update(self, count):
        self.done += count


def test_a_student_restores_by_its_own_steps_alone(student):
    palette = Palette.load(f"{student.training.output}/model.safetensors", "CPU")
    picture, counter = np.full((16, 16, 3), 90, np.uint8), Counter()
    palette.restore(picture, progress=counter)
    assert counter.total == counter.done == 2
    palette.restore(picture, sampler="ddim", steps=2)
    for options in ({"steps": 1}, {"steps": 4}, {"sampler": "ddpm"}, {"sampler": "heun", "steps": 2},
                    {"sampler": "ddim", "eta": 0.5}, {"spacing": "karras"}, {"strength": 0.5}):
        with pytest.raises(UserError, match="distilled to 2 steps"):
            palette.restore(picture, **options)


def test_a_student_is_the_next_teacher_and_halves_again(student, photos, tmp_path):
    model = f"{student.training.output}/model.safetensors"
    trainer = loop.Trainer(student_config(photos, tmp_path, model, steps=1, spacing="karras"))
    assert trainer.config.diffusion.distilled == (kept_of_the_teacher()[-1],)
    with pytest.raises(UserError, match="distilled to 2 steps; distillation.steps must be 1"):
        loop.Trainer(student_config(photos, tmp_path, model, steps=2))


def test_a_run_goes_on_where_it_stood(student, photos, teacher, tmp_path):
    """The undisturbed run, and one that starts from its second step."""
    parts = dataclasses.replace(student, training=dataclasses.replace(student.training, output=str(tmp_path)))
    loop.train(parts, f"{student.training.output}/state_0000002.safetensors")
    expected, resumed = (Checkpoint(f"{output}/state_0000004.safetensors")
                         for output in (student.training.output, tmp_path))
    for name in expected._names:
        group, _, rest = name.partition(".")
        np.testing.assert_array_equal(resumed.tensors(group)[rest], expected.tensors(group)[rest], name)
    other = student_config(photos, tmp_path / "other", teacher, spacing="uniform")
    with pytest.raises(UserError, match="not of a distillation to these steps"):
        loop.train(other, f"{tmp_path}/state_0000004.safetensors")


def test_half_precision_learns_from_a_teacher(photos, teacher, tmp_path):
    trainer = loop.Trainer(student_config(photos, tmp_path, teacher, training__precision="float16",
                                          training__accumulation=1, training__source_dropout=0.1))
    batch = trainer.batches.batch(0)
    losses = [float(trainer.train_on(batch)[0].asnumpy()) for _ in range(12)]
    assert losses[-1] < losses[0]


def test_a_teacher_drops_nothing_out(photos, tmp_path):
    teacher = write_teacher(photos, tmp_path, dropout=0.1)
    trainer = loop.Trainer(student_config(photos, tmp_path, teacher, model__dropout=0.1))
    assert trainer.unet.training
    assert not any(cell.training for _, cell in trainer.teacher.cells_and_names())


@pytest.mark.parametrize("changes, complaint", [
    ({"model__base_channels": 16}, "another model section"),
    ({"diffusion__prediction": "x0"}, "another diffusion.prediction"),
    ({"diffusion__test_schedule": {"num_steps": 30}}, "another diffusion.test_schedule"),
    ({"diffusion__clip": False}, "another diffusion.clip"),
    ({"diffusion__noise_input": "angle"}, "another diffusion.noise_input"),
    ({"training__init_from": "quickstart"}, "training.init_from must be left out"),
    ({"diffusion__distilled": [3, 7]}, "diffusion.distilled.*leave it out"),
    ({"diffusion__prediction": "eps"}, "diffusion.prediction must be v or x0"),
    ({"diffusion__loss": "l1"}, "diffusion.loss must be l2"),
    ({"diffusion__distilled": [7, 3]}, "diffusion.distilled needs steps.*from 0 to 19"),
    ({"steps": 11}, "distillation.steps must be from 1 to 10"),
    ({"teacher": "nowhere.safetensors"}, "no such checkpoint: nowhere"),
])
def test_what_does_not_fit_the_teacher_is_told_with_its_key(photos, teacher, tmp_path, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        loop.Trainer(student_config(photos, tmp_path, **{"teacher": teacher, **changes}))


def test_other_tasks_than_the_teachers_and_chains_of_their_own_are_refused(photos, teacher, tmp_path):
    raw = student_config(photos, tmp_path, teacher).to_dict()
    raw["tasks"][0]["fill"] = "smooth"
    with pytest.raises(UserError, match="another tasks"):
        loop.Trainer(config_from_dict(raw, "test"))
    raw["tasks"] = [{"name": "inpainting", "weight": 5}, {"name": "colorization", "weight": 0.1}]
    loop.Trainer(config_from_dict(raw, "test"))
    raw["tasks"][1]["test_schedule"] = {"num_steps": 20}
    with pytest.raises(UserError, match=r"tasks\[1\].test_schedule must be left out"):
        config_from_dict(raw, "test")


def test_the_recipe_distils_what_the_recipe_before_it_trains(repository):
    names = "quickstart", "quickstart_distill"
    first, then = (load_config(repository / "configs" / f"{name}.yaml") for name in names)
    assert Path(then.distillation.teacher) == Path(first.training.output, "model.safetensors")
    assert then.model == first.model
    for key in ("process", "prediction", "from_source", "noise_input", "test_schedule", "clip"):
        assert getattr(then.diffusion, key) == getattr(first.diffusion, key)
    assert [(task.name, task.options()) for task in then.tasks] == [(task.name, task.options()) for task in first.tasks]


def test_a_distillation_without_its_teacher_is_told():
    with pytest.raises(UserError, match="distillation.teacher must be given"):
        config_from_dict({"diffusion": {"prediction": "v"}, "distillation": {"steps": 4}}, "test")


def test_short_distillations_are_not_warned_of(student):
    assert loop.advice(student, 10) is None


def test_steps_are_drawn_evenly_and_nothing_else_is_drawn_anew(photos, teacher, tmp_path):
    config = student_config(photos, tmp_path, teacher, steps=4, training__batch_size=64)
    batches = TrainingBatches(config)
    plain = TrainingBatches(dataclasses.replace(config, distillation=None))
    steps = np.concatenate([batches.batch(number).gamma for number in range(8)])
    assert steps.dtype == np.int32
    # 512 draws: a standard error is 10
    assert np.abs(np.bincount(steps, minlength=4) - 128).max() < 40 and len(np.bincount(steps)) == 4
    for ours, theirs, name in zip(batches.batch(0), plain.batch(0), plain.batch(0)._fields):
        if name != "gamma":
            np.testing.assert_array_equal(ours, theirs)
