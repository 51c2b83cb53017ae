"""From text to picture, stage by stage: data and detector, guidance, thresholds, upsamplers, the cascade."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image
from running import imported, status

import palette_ms.imagine
from palette_ms import Palette
from palette_ms.cascade import Cascade
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint
from palette_ms.config import ModelConfig, config_from_dict
from palette_ms.data.captions import Text
from palette_ms.diffusion.cells import GuidedUNet, Update
from palette_ms.diffusion.denoisers import guided
from palette_ms.diffusion.guidance import Guidance
from palette_ms.diffusion.samplers import Chain, Sampler, Sampling
from palette_ms.diffusion.schedule import make_gamma_schedule
from palette_ms.errors import UserError
from palette_ms.seeds import generator
from palette_ms.tasks.super_resolution import SuperResolution
from palette_ms.torch_weights.conversion import convert, export
from palette_ms.torch_weights.files import read_tensors, write_pth
from palette_ms.torch_weights.names import to_torch

# guided-diffusion's published flags of 64_256_upsampler.pt, and of the other one
FLAGS_64_256 = ("--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --large_size 256 "
                "--small_size 64 --learn_sigma True --noise_schedule linear --num_channels 192 --num_heads 4 "
                "--num_res_blocks 2 --resblock_updown True --use_fp16 True --use_scale_shift_norm True")
FLAGS_128_512 = ("--attention_resolutions 32,16 --class_cond True --diffusion_steps 1000 --large_size 512 --small_size "
                 "128 --learn_sigma True --noise_schedule linear --num_channels 192 --num_head_channels 64 "
                 "--num_res_blocks 2 --resblock_updown True --use_fp16 True --use_scale_shift_norm True")


# Pictures of shapes


@pytest.fixture(scope="module")
def shapes(repository):
    return imported(repository / "benchmarks" / "shapes.py")


@pytest.mark.parametrize("small, side", [(16, 64), (32, 32), (64, 64)])
def test_the_detector_tells_what_is_in_true_pictures(shapes, small, side):
    scenes = shapes.held_out_scenes(250, 5)
    right = shapes.shares(list(shapes.true_pictures(scenes, 6, side, small)), scenes)
    assert min(right.values()) >= 0.99, right


def test_the_detector_is_not_pleased_with_another_scene(shapes):
    scenes = [scene for scene in shapes.held_out_scenes(200, 7) if scene.relation]
    turned = [scene._replace(relation={"above": "below", "below": "above", "left of": "right of",
                                       "right of": "left of"}[scene.relation]) for scene in scenes]
    pictures = list(shapes.true_pictures(scenes, 8, 64, 64))
    right = shapes.shares(pictures, turned)
    assert right["relation"] == 0 and right["both"] == 1
    others = [scene._replace(things=scene.things[:1], relation=None) for scene in scenes]
    assert shapes.shares(pictures, others)["colour"] == 0
    swapped = [scene._replace(things=(scene.things[0]._replace(colour=scene.things[1].colour),
                                      scene.things[1]._replace(colour=scene.things[0].colour)))
               for scene in scenes if len({thing.colour for thing in scene.things}) == 2
               and len({thing.shape for thing in scene.things}) == 2]
    assert swapped and shapes.shares(
        list(shapes.true_pictures(swapped, 8, 64, 64)), swapped)["both"] == 1


def test_what_is_held_out_is_never_trained_on_however_it_is_said(shapes):
    from shapes_data import draw_scene

    rng = np.random.default_rng(0)
    trained = {draw_scene(rng, False) for _ in range(2000)}
    reverse = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
    meanings = {(frozenset([(scene.things[0][1:], scene.relation), (scene.things[1][1:], reverse[scene.relation])]))
                for scene in trained if scene.relation}
    held_out = [scene for scene in shapes.held_out_scenes(300, 0) if scene.relation]
    assert held_out and not any(frozenset([(scene.things[0][1:], scene.relation),
                                           (scene.things[1][1:], reverse[scene.relation])]) in meanings
                                for scene in held_out)
    words = {word for scene in trained for word in scene.caption.split()}
    assert {word for scene in held_out for word in scene.caption.split()} <= words


def test_the_script_writes_captions_and_an_encoder_that_reads_words_in_their_order(shapes, tmp_path):
    from shapes_data import write_encoder, write_pictures

    from palette_ms.text import Tokenizer, load_encoder

    write_pictures(tmp_path / "train", 3, 32, 0, False)
    write_encoder(tmp_path / "t5", 0)
    assert Image.open(tmp_path / "train" / "000002.png").size == (32, 32)
    assert (tmp_path / "train" / "000002.txt").read_text().startswith(("a ", "two ", "three "))
    ids, mask = Tokenizer(tmp_path / "t5")(["a red circle above a blue square", "a blue square above a red circle"])
    assert 2 not in ids and mask.all()  # no word is unknown
    ms.set_context(mode=ms.PYNATIVE_MODE)
    said = load_encoder(tmp_path / "t5")(Tensor(ids), Tensor(mask)).asnumpy()
    circles = said[ids == ids[0, 2]]  # the same word in the one and in the other
    # Beside that of two words, their difference is what tells the network which of them is above.
    assert np.linalg.norm(circles[0] - circles[1]) > 0.3 * np.linalg.norm(said[0, 2] - said[0, 6])


# guided-diffusion's upsamplers


@pytest.mark.parametrize("flags, mults, attention, scale", [
    (FLAGS_64_256, (1, 1, 2, 2, 4, 4), (8, 16, 32), 4), (FLAGS_128_512, (1, 1, 2, 2, 4, 4), (16, 32), 4)])
def test_the_upsamplers_published_flags_are_understood(flags, mults, attention, scale):
    from palette_ms.torch_weights.configs import adm_config, read_foreign_config
    from palette_ms.torch_weights.conversion import _complete_adm

    raw = adm_config(read_foreign_config(flags))
    assert raw.pop("split_in_heads")
    _complete_adm(raw, [])
    config = config_from_dict(raw, "flags")
    model, task = config.model, config.tasks[0]
    assert (model.in_channels, model.out_channels, model.base_channels, model.num_classes) == (6, 6, 192, 1000)
    assert (model.channel_mults, model.attention_resolutions) == (mults, attention)
    assert (task.scales, task.interpolation, task.classes) == ((scale,), "bilinear", True)
    assert config.diffusion.variance == "learned_range" and config.diffusion.time_input == "t"


@pytest.fixture(scope="module")
def upsampler(tmp_path_factory):
    """(the file with the published names, its tensors, what it was converted to)."""
    folder = tmp_path_factory.mktemp("upsampler")
    unet = build_unet(ModelConfig(out_channels=6, base_channels=32, channel_mults=(1, 2), num_res_blocks=1,
                                  attention_resolutions=(2,), num_heads=4, num_classes=5))
    rng = np.random.default_rng(0)
    tensors = to_torch({name: np.float32(0.1 * rng.standard_normal(parameter.shape))
                        for name, parameter in unet.parameters_and_names()}, unet, "adm")
    write_pth(folder / "8_32_upsampler.pt", tensors)
    (folder / "flags.json").write_text(json.dumps({
        "attention_resolutions": "16", "large_size": 32, "small_size": 8, "learn_sigma": True, "num_channels": 32,
        "channel_mult": "1,2", "num_heads": 4, "num_res_blocks": 1, "resblock_updown": True,
        "use_scale_shift_norm": True, "num_classes": 5}))
    return folder, tensors, convert(folder / "8_32_upsampler.pt", None, folder / "flags.json")


def test_an_upsampler_takes_the_source_where_its_program_puts_it(upsampler):
    folder, tensors, converted = upsampler
    unet = build_unet(converted.config.model)
    for name, parameter in unet.parameters_and_names():
        parameter.set_data(Tensor(converted.weights[name]))
    rng = np.random.default_rng(1)
    small, noisy = rng.uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32), rng.standard_normal((1, 3, 16, 16), np.float32)
    source = np.stack([np.stack([bilinear(channel, 16) for channel in small[0]])])
    # F.conv2d of torch.cat([x, upsampled], 1), by its definition at one inner position
    first, bias = tensors["input_blocks.0.0.weight"], tensors["input_blocks.0.0.bias"]
    theirs = np.concatenate((noisy, source), 1)
    expected = (first * theirs[0, :, 4:7, 8:11]).sum((1, 2, 3)) + bias
    said = unet.conv_in(Tensor(np.concatenate((source, noisy), 1).astype(np.float32))).asnumpy()[0, :, 5, 9]
    np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)


def bilinear(picture, side):
    """F.interpolate(…, mode="bilinear") by its definition: pixel centres, and the border repeated."""
    at = np.clip((np.arange(side) + 0.5) * len(picture) / side - 0.5, 0, len(picture) - 1)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, len(picture) - 1), at - low
    rows = (1 - share)[:, None] * picture[low] + share[:, None] * picture[high]
    return (1 - share) * rows[:, low] + share * rows[:, high]


def test_an_upsamplers_source_is_small_by_the_mean_and_large_bilinearly():
    picture = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    source, mask = SuperResolution(interpolation="bilinear").pair(picture, np.random.default_rng(0))
    small = picture.reshape(3, 4, 4, 4, 4).mean((2, 4))
    np.testing.assert_allclose(source, [bilinear(channel, 16) for channel in small], atol=1e-6)
    assert mask is None


def test_an_upsampler_goes_back_to_the_file_it_came_from(upsampler, tmp_path):
    folder, tensors, converted = upsampler
    save_checkpoint(tmp_path / "sr.safetensors", converted.config, weights=converted.weights)
    export(Checkpoint(tmp_path / "sr.safetensors"), tmp_path / "back.pt")
    back = read_tensors(tmp_path / "back.pt")
    assert back.keys() == tensors.keys()
    assert all((back[name] == tensors[name]).all() for name in tensors)


def test_an_upsampler_is_told_the_class(upsampler, tmp_path):
    save_checkpoint(tmp_path / "sr.safetensors", upsampler[2].config, weights=upsampler[2].weights)
    palette = Palette.load(tmp_path / "sr.safetensors", "cpu")
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))

    def made(**asked):
        return np.asarray(palette.restore(small, sampler="ddim", steps=2, **asked)[0]).astype(int)

    assert made(label=1).shape == (32, 32, 3)
    assert (made(label=1) != made(label=2)).any() and (made(label=1) == made(label=1)).all()
    with pytest.raises(UserError, match="0 to 4"):
        made(label=5)


# Guidance by schedule, and thresholds


def network(x, time):
    """Of a source that is there it says 1, of one that is not 0, in the picture's channels; beside it the time."""
    given = (abs(x[:, :3]).sum((1, 2, 3)) > 0).astype(np.float32)[:, None, None, None]
    return np.concatenate((np.broadcast_to(given, (len(x), 3, 2, 2)),
                           np.broadcast_to(time[:, None, None, None], (len(x), 3, 2, 2))), 1).astype(np.float32)


@pytest.mark.parametrize("schedule, interval", [("constant", None), ("linear", None), ("cosine", (0.2, 3.0)),
                                                ("constant", (0.5, 1.0))])
@pytest.mark.parametrize("tells_step", [False, True])
def test_guidance_by_schedule_is_what_it_is_in_numpy(schedule, interval, tells_step):
    schedule_gammas = make_gamma_schedule("cosine", 10)
    steps = np.array([0, 3, 5, 8, 9])
    gammas, w = schedule_gammas[steps], 4.0
    share = 2 / np.pi * np.arccos(np.sqrt(gammas))  # t/T of the continuous cosine schedule
    f = {"constant": np.ones(5), "linear": 2 * (1 - share), "cosine": 1 + np.cos(np.pi * share)}[schedule]
    if interval:
        sigma = np.sqrt((1 - gammas) / gammas)
        f = f * (sigma >= interval[0]) * (sigma <= interval[1])
    # 1 with the source and 0 without: guided, it is the weight itself
    x, told = np.ones((5, 6, 2, 2), np.float32), (steps if tells_step else gammas).astype(np.float32)
    levels = schedule_gammas if tells_step else None
    made = guided(network, Guidance(w, schedule, interval), 3, gammas=levels)(x, told)
    np.testing.assert_allclose(made[:, 0, 0, 0], 1 + (w - 1) * f, rtol=1e-5)
    np.testing.assert_array_equal(made[:, 3, 0, 0], told)  # a learned variance is that with the source

    class Saying(ms.nn.Cell):
        def construct(self, x, time):
            given = ms.ops.cast(ms.ops.abs(x[:, :3]).sum((1, 2, 3), keepdims=True) > 0, ms.float32)
            return ms.ops.broadcast_to(given, (x.shape[0], 3, 2, 2))

    ms.set_context(mode=ms.PYNATIVE_MODE)
    compiled = GuidedUNet(Saying(), Guidance(w, schedule, interval), 3, gammas=levels)(Tensor(x), Tensor(told))
    np.testing.assert_allclose(compiled.asnumpy()[:, 0, 0, 0], 1 + (w - 1) * f, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_of_guidance_has_the_constants_mean_over_the_chain(schedule):
    gammas = np.cos(np.pi / 2 * (np.arange(1000) + 0.5) / 1000) ** 2
    assert Guidance(3.0, schedule).at(gammas).mean() == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize("wrong, message", [
    ({"guidance_schedule": "cubic"}, "unknown guidance_schedule"), ({"guidance_interval": (2.0, 1.0)}, "smaller first"),
    ({"guidance_interval": (1.0,)}, "two numbers"), ({"guidance_interval": 3}, "two numbers")])
def test_guidance_out_of_range_is_told(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(guidance=2.0, **wrong)


def imagens_pseudo_code(x, p=99.5, method=None):
    """Imagen's appendix: static thresholding without p's `method`, else dynamic, at one step."""
    if method is None:
        return np.clip(x, -1.0, 1.0)
    s = np.percentile(np.abs(x), p, axis=tuple(range(1, x.ndim)), method=method)
    s = np.max([s, np.ones_like(s)], 0)
    s = s.reshape(-1, 1, 1, 1)
    return np.clip(x, -s, s) / s


def test_thresholding_is_imagens():
    x = (np.array([0.2, 1.0, 3.0])[:, None, None, None]
         * np.random.default_rng(0).standard_normal((3, 3, 8, 8))).astype(np.float32)
    everywhere, rank = np.ones((1, 1, 1, 1), np.float32), Sampler(None, np.array([0.5]), [], dynamic_threshold=0.995)
    for make in (Chain(None, True, True).bound, lambda *given: Update(True, True, False, False).bound(
            *map(Tensor, given)).asnumpy()):
        made = make(x, np.broadcast_to(everywhere, x[:, :1].shape).copy(), rank._rank(None, x.shape))
        # The quantile is one of the values, the next below where it falls between two.
        np.testing.assert_allclose(made, imagens_pseudo_code(x, 99.5, "lower"), rtol=1e-5)
        # Between two of 192 values lies little: Imagen's own interpolation gives nearly the same.
        np.testing.assert_allclose(made, imagens_pseudo_code(x, 99.5, "linear"), atol=0.06)
    np.testing.assert_array_equal(Chain(None, True).bound(x, everywhere, None), imagens_pseudo_code(x))


# The cascade


TINY = {"base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2],
        "num_head_channels": 8, "norm_groups": 4}
DIFFUSION = {"prediction": "x0", "noise_input": "angle", "test_schedule": {"name": "cosine", "num_steps": 50}}
ENLARGING = {"name": "super_resolution", "scales": [2]}


@pytest.fixture(scope="module")
def files(shapes, tmp_path_factory):
    """A folder with a tiny T5, t5, and two stages that were trained with it, base.safetensors and sr.safetensors."""
    from shapes_data import write_encoder

    from palette_ms.text.encoder import TextEncoder

    folder = tmp_path_factory.mktemp("cascade")
    write_encoder(folder / "t5", 0, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ms.set_context(mode=ms.GRAPH_MODE)
    fingerprint = TextEncoder(folder / "t5").fingerprint
    for name, tasks, size in (("base", [{"name": "unconditional"}], 8), ("sr", [ENLARGING], 16)):
        config = config_of(tasks, size, fingerprint)
        weights = {name: parameter.asnumpy() for name, parameter in build_unet(config.model).parameters_and_names()}
        save_checkpoint(folder / f"{name}.safetensors", config, weights=weights)
    return folder


class Words:
    """In place of an encoder: random tokens for each word."""

    fingerprint = "words"

    def __init__(self):
        self.limits = []

    def __call__(self, texts, limit):
        self.limits.append(limit)
        return [Text(text, np.float16([np.random.default_rng(list(word.encode())).standard_normal(16)
                                       for word in text.split()]), self.fingerprint) for text in texts]


def says(x, time, label=None, dropout=None, text=None, source_noise=None):
    """In place of a network: an answer that hangs on all that it is told."""
    told = 0.5 * np.tanh(x[:, -3:])
    if x.shape[1] > 3:
        told = told + 0.4 * x[:, :3]
    for one in (text, source_noise, label):
        if one is not None:
            told = told + 0.3 * np.sin(np.reshape(one, (len(x), -1)).sum(1))[:, None, None, None]
    return told.astype(np.float32)


def stage(tasks, size, with_text=True, **model):
    """A model with `says` for a network."""
    palette = Palette(lambda: None, config_of(tasks, size, "words" if with_text else None, **model))
    palette.chains.network, palette.sha256 = says, "-"
    return palette


def config_of(tasks, size, encoder, **model):
    text = {"text_channels": 16, "text_length": 12} if encoder else {}
    return config_from_dict({"model": {**TINY, **text, **model}, "diffusion": DIFFUSION, "tasks": tasks,
                             "data": {"image_size": size, "text_encoder": encoder},
                             "training": {"source_noise": [0, 0.8]}}, "tiny")


@pytest.fixture
def cascade():
    return Cascade([stage([{"name": "unconditional"}], 8), stage([ENLARGING], 16, source_noise=True)], Words())


FEW = ({"sampler": "ddim", "steps": 2}, {"sampler": "ddim", "steps": 2})


def test_a_cascade_makes_pictures_of_the_last_size_that_prompt_and_seed_decide(cascade):
    def made(prompt="a red circle", **asked):
        return [np.asarray(image).astype(int) for image in cascade.generate(prompt, options=FEW, **asked)]

    first, second = made(num_samples=2)
    assert first.shape == (16, 16, 3) and (first != second).any()
    assert (made(num_samples=2)[1] == second).all() and (made(first_sample=1)[0] == second).all()
    assert (made("a blue square")[0] != first).any() and (made(seed=1)[0] != first).any()


def test_a_cascade_is_its_stages_one_after_the_other(cascade):
    text, = cascade.encoder(["two red circles"], 12)
    base, enlarging = cascade.stages
    options = ({**FEW[0], "guidance": 2.0, "dynamic_threshold": 0.95}, {**FEW[1], "source_noise": 0.2})
    small, = base.generate(1, text=text, seed=3, **options[0])
    seed = int(generator(3, "stage", 1).integers(2**31))
    large, = enlarging.restore(small, scale=2, text=text, seed=seed, **options[1])
    made, = cascade.generate("two red circles", seed=3, options=options)
    np.testing.assert_array_equal(np.asarray(made), np.asarray(large))


def test_every_sample_is_made_in_as_many_calls(cascade):
    tuned = stage([{**ENLARGING, "usage": {"sampler": "ddim", "steps": 1, "detailed_steps": 4}}], 16)
    steps = []
    sampler = tuned.chains.sampler
    tuned.chains.sampler = lambda *rest: steps.append(rest[2].steps) or sampler(*rest)
    Cascade([cascade.stages[0], tuned], Words()).generate("red", num_samples=3, options=(FEW[0], {}))
    assert steps == [1, 1, 1]


def test_of_a_sweep_of_noise_the_best_is_taken(cascade):
    levels = (0.0, 0.3, 0.6)
    each = [np.asarray(cascade.generate("a red circle", options=(FEW[0], {**FEW[1], "source_noise": level}))[0])
            for level in levels]
    asked = []

    def bright(pictures):
        asked.append(len(pictures))
        return [float(np.asarray(picture).mean()) for picture in pictures]

    swept = (FEW[0], {**FEW[1], "source_noise": levels})
    made, = cascade.generate("a red circle", options=swept, score=bright)
    np.testing.assert_array_equal(np.asarray(made), max(each, key=np.mean))
    assert asked == [1, 1, 1]
    made = np.asarray(cascade.generate("a red circle", options=swept)[0])  # by the stage's own denoising error
    scores = []
    for level in levels:
        small = cascade.stages[0].generate(1, text=cascade.encoder(["a red circle"], 12)[0], **FEW[0])[0]
        scores.append(cascade.stages[1].restore(
            small, scale=2, text=cascade.encoder(["a red circle"], 12)[0], source_noise=level, best=1, details=True,
            seed=int(generator(0, "stage", 1).integers(2**31)), **FEW[1]).scores[0])
    np.testing.assert_array_equal(made, each[int(np.argmax(scores))])


def test_every_sample_has_the_noise_in_its_source(cascade):
    for noise in (0.5, (0.2, 0.7)):
        options = (FEW[0], {**FEW[1], "source_noise": noise})
        both = cascade.generate("a red circle", num_samples=2, options=options)
        alone, = cascade.generate("a red circle", first_sample=1, options=options)
        np.testing.assert_array_equal(np.asarray(both[1]), np.asarray(alone))


@pytest.mark.parametrize("of_last, message", [
    ({"steps": 1000}, "steps must be from 1 to 50"), ({"source_noise": 2}, "source_noise must be from 0 to 1"),
    ({"source_noise": 0.9}, "source_noise must be at most 0.8, up to which"),
    ({"source_noise": []}, "one or several to choose from"), ({"source_noise": [0, 0.5]}, "score must be"),
    ({"guidance": 0.5}, "guidance must be at least 1"), (None, "not None")])
def test_what_is_wrong_with_the_last_stage_is_told_before_the_first_is_run(cascade, of_last, message):
    cascade.stages[0].generate = None  # not called
    with pytest.raises(UserError, match=message):
        cascade.generate("a red circle", options=(FEW[0], of_last), score="lpips")


@pytest.mark.parametrize("prompt", [" ", 5, ["a red circle"], "caf\udce9"])
def test_a_prompt_is_a_text(cascade, prompt):
    with pytest.raises(UserError, match="the prompt"):
        cascade.generate(prompt, options=FEW)


def test_where_there_is_no_text_a_network_is_told_none(cascade):
    x, time = np.random.default_rng(0).standard_normal((2, 6, 8, 8)).astype(np.float32), np.float32([0.2, 0.7])
    base, enlarging = (one.chains.silent(says) for one in cascade.stages)
    none = np.zeros((2, 12, 16), np.float32)
    np.testing.assert_array_equal(base(x[:, 3:], time), says(x[:, 3:], time, text=none))
    np.testing.assert_array_equal(enlarging(x, time), says(x, time, text=none, source_noise=np.zeros(2, np.float32)))
    with pytest.raises(UserError, match="2 texts: restore takes one"):
        cascade.stages[1].restore(Image.new("RGB", (8, 8)), scale=2, text=cascade.encoder(["red", "blue"], 12))
    with pytest.raises(UserError, match="text is not for restoring by prior"):
        cascade.stages[0].restore(Image.new("RGB", (8, 8)), "denoising", text=cascade.encoder(["red"], 12)[0])


def test_a_class_conditional_cascade_tells_all_stages_one_class():
    cascade = Cascade([stage([{"name": "unconditional"}], 8, False, num_classes=3),
                       stage([{**ENLARGING, "classes": True}], 16, False, num_classes=3)])
    told = []
    for one in cascade.stages:
        sampler = one.chains.sampler
        one.chains.sampler = lambda labels, *rest, sampler=sampler: told.append(labels) or sampler(labels, *rest)
    cascade.generate(label=2, options=FEW)
    assert told == [(2,), (2,)]
    told.clear()
    cascade.generate(num_samples=2, options=FEW, seed=4)
    (drawn, first, second) = told
    assert first == drawn[:1] and second == drawn[1:]


def test_stages_that_do_not_fit_are_told_with_their_sizes():
    base, far = stage([{"name": "unconditional"}], 8), stage([ENLARGING], 64)
    for stages, message in (([], "at least one model"),
                            ([base, far], "64×64; what comes before it makes 8×8, which becomes 16×16"),
                            ([far], "begins with a model that makes some from nothing"),
                            ([base, base], "models for super_resolution alone")):
        with pytest.raises(UserError, match=message):
            Cascade(stages)


def test_a_cascade_without_texts_refuses_one():
    with pytest.raises(UserError, match="none of these models takes a text"):
        Cascade([stage([{"name": "unconditional"}], 8, False)]).generate("a red circle", options=FEW[:1])


def test_the_verb_writes_a_picture_for_each_prompt(cascade, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Cascade, "load", lambda *_: cascade)
    (tmp_path / "prompts.txt").write_text("a red circle\n\nthree green triangles\n")
    common = ("--cascade", "a,b", "--sampler", "ddim", "--steps", "2", "--guidance", "1,1", "--source-noise", "0.1")
    assert status(palette_ms.imagine, *common, "--prompts", tmp_path / "prompts.txt", "--num-samples", 2,
                   "--output", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names[0] == "0000_a_red_circle_0.png" and len(names) == 4
    assert "8×8 → 16×16" in capsys.readouterr().err and set(cascade.encoder.limits) == {12}
    made, = cascade.generate("a red circle", options=({**FEW[0]}, {**FEW[1], "source_noise": 0.1}))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / names[0])), np.asarray(made))
    (tmp_path / "prompts.txt").write_text("a red circle\na green triangle\na blue square\n")
    asked = []
    monkeypatch.setattr(cascade, "generate", lambda prompt, *_, **__: asked.append(prompt) or [made, made])
    assert status(palette_ms.imagine, *common, "--prompts", tmp_path / "prompts.txt", "--num-samples", 2,
                  "--output", tmp_path / "out", "--resume") == 0
    assert asked == ["a green triangle", "a blue square"]  # what was made of another text stays, and is told


@pytest.mark.parametrize("change, message", [
    (["--prompt", " "], "the prompt is empty"), ([], "give one as --prompt"),
    (["--prompt", "a", "--source-noise", "0.1"], "--source-noise is for stages after the first"),
    (["--prompt", "a", "--steps", "1,2,3"], "3 values, and the cascade 2 stages"),
    (["--prompt", "a", "--encoder", "nowhere"], "nowhere"), (["--prompts", "nowhere.txt"], "cannot read --prompts"),
    (["--prompt", "a", "--encoder", "OTHER"], "another T5"), (["--prompt", "a", "--encoder", "BARE"], "no tokenizer"),
    (["--prompt", "a", "--encoder", None], "name the folder of the T5"), (["--prompt", "a", "--class", "1"], "classes"),
    (["--prompt", "a", "--cascade", "gone.safetensors"], "gone.safetensors")])
def test_what_is_wrong_is_told_in_a_line_or_two(files, tmp_path, capsys, shapes, change, message):
    from shapes_data import write_encoder

    arguments = {"--cascade": f"{files / 'base.safetensors'},{files / 'sr.safetensors'}", "--encoder": files / "t5",
                 "--runtime": "mindspore", "--output": tmp_path / "out", **dict(zip(change[::2], change[1::2]))}
    if arguments["--encoder"] in ("OTHER", "BARE"):
        write_encoder(tmp_path / "other", 1, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        if arguments["--encoder"] == "BARE":
            (tmp_path / "other" / "tokenizer.json").unlink()
        arguments["--encoder"] = tmp_path / "other"
    given = [part for name, value in arguments.items() if value is not None for part in (name, value)]
    assert status(palette_ms.imagine, *given) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "  "))]
    assert 1 <= len(said) <= 2 and message in said[0]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
