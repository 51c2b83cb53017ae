"""What comes after the chain: calls added to it, seams and blending, mixing, choosing and confidence."""

import sys

import numpy as np
import pytest
from gaussian import MEAN, VARIANCE, even_levels, gaussian_answer, moments
from mindspore import Tensor
from PIL import Image

import palette_ms.sample
from palette_ms import Palette
from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays
from palette_ms.config import DiffusionConfig, ScheduleConfig, config_from_dict
from palette_ms.data.images import to_float
from palette_ms.diffusion.rounds import from_estimate, refined, resampled
from palette_ms.diffusion.samplers import Chain, Sampling, create_sampler
from palette_ms.diffusion.schedule import make_gamma_schedule, strength_of
from palette_ms.diffusion.solvers import SOLVERS, Y_0, Call, ddim, ddpm
from palette_ms.errors import UserError
from palette_ms.evaluation.views import VIEWS
from palette_ms.pipeline import _scores
from palette_ms.quality.blend import BAD, blend, border, seam
from palette_ms.quality.confidence import OF_MIX, OF_SAMPLE, WITHIN, calibrated, confidence, spread, unsure
from palette_ms.quality.mix import MIXES, mix
from palette_ms.quality.nearest import by_lpips
from palette_ms.seeds import generator

# Calls added to a chain, against what theory says of Gaussian data


def test_a_level_gone_back_to_has_its_own_moments():
    """q(y_s | y_t) of the forward process takes the moments of the cleaner level to those of the noisier one."""
    gammas = even_levels(801)
    gammas, calls = resampled(gammas, ddpm(gammas), jump=100, repeats=3)
    levels = [call.level for call in calls]
    assert levels.count(50) == 3 and levels[100] == 0 and levels[:100] == list(range(100))
    start = np.sqrt(gammas[0]) * MEAN, gammas[0] * VARIANCE + 1 - gammas[0]
    for end, level in ((100, 0), (300, 100), (600, 200), (len(calls), 800)):
        mean, variance = moments(calls[:end], gammas, *start)
        expected = np.sqrt(gammas[level]) * MEAN, gammas[level] * VARIANCE + 1 - gammas[level]
        assert mean == pytest.approx(expected[0], abs=2e-3)  # of the steps: half of it with twice as many
        assert variance == pytest.approx(expected[1], abs=4e-3)


def test_one_repeat_and_no_jump_over_the_end_leave_a_chain_as_it_is():
    gammas = even_levels(6)
    calls = ddim(gammas)
    _, same = resampled(gammas, calls, jump=2, repeats=1)
    assert all(np.array_equal(a.y, b.y) and a.level == b.level for a, b in zip(calls, same)) and len(same) == len(calls)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_start_from_an_estimate_is_the_first_answer_with_the_noise_of_its_level(name):
    gammas = even_levels(9, 0.3)
    levels, calls = from_estimate(1e-3, gammas, SOLVERS[name].calls(gammas))
    assert levels[0] == 1e-3 and np.array_equal(levels[1:], gammas)
    # From y at the first level, whatever it is, to the second.
    mean, variance = moments(calls[:1], levels, 0.7, 0.0)
    gain, offset = gaussian_answer(1e-3)
    assert mean == pytest.approx(np.sqrt(0.3) * (gain * 0.7 + offset))
    assert variance == pytest.approx(0.7)
    # And then as the solver alone would go on from there.
    assert moments(calls, levels, 0.7, 0.0) == pytest.approx(
        moments(SOLVERS[name].calls(gammas), gammas, mean, variance))


def test_refinement_is_noise_added_and_one_answer_each_time():
    gammas = even_levels(9)
    level = 0.9
    levels, calls = refined(gammas, ddim(gammas), level, 2)
    assert levels[-1] == level and [call.level for call in calls[-2:]] == [8, 9]
    gain, offset = gaussian_answer(level)
    mean, variance = moments([*calls, Call(9, Y_0)], levels, 0.0, 1.0)
    before_mean, before_variance = moments([*ddim(gammas), Call(8, Y_0)], gammas, 0.0, 1.0)
    for _ in range(2):
        before_mean = gain * np.sqrt(level) * before_mean + offset
        before_variance = gain**2 * (level * before_variance + 1 - level)
    assert (mean, variance) == pytest.approx((before_mean, before_variance))


SCHEDULE = ScheduleConfig("linear", 200, start=1e-4, end=0.06)
GAMMAS = make_gamma_schedule(**vars(SCHEDULE))


@pytest.mark.parametrize("options, calls, last_gamma", [
    ({"steps": 5}, 5, GAMMAS[0]),
    ({"steps": 5, "rounds": 3, "round_noise": 0.2}, 8, 1 / (1 + 0.2**2)),
    ({"steps": 5, "start": "estimate", "strength": 0.5}, 5, GAMMAS[0]),
    ({"steps": 6, "sampler": "ddim", "repeats": 3, "jump": 2}, 5 * 3 + 1, GAMMAS[0]),
])
def test_a_sampler_makes_the_calls_that_are_asked_for(options, calls, last_gamma):
    seen = []

    def denoiser(x, gamma):
        seen.append(float(gamma[0]))
        return x[:, 3:]

    diffusion = DiffusionConfig(prediction="x0", clip=False, test_schedule=SCHEDULE)
    sampler = create_sampler(Chain(denoiser, False), diffusion, Sampling(**{"sampler": "dpmpp_2m", **options}))
    y = sampler(np.zeros((1, 3, 2, 2), np.float32), np.ones((1, 3, 2, 2), np.float32))
    assert len(seen) == sampler.num_steps == calls and np.isfinite(y).all()
    assert seen[0] == pytest.approx(GAMMAS[-1], rel=1e-5) and seen[-1] == pytest.approx(last_gamma, rel=0.05)
    if "start" in options:
        assert seen[1] == pytest.approx(GAMMAS[99], rel=1e-5)


def test_a_learned_variance_does_not_scale_the_noise_of_a_refinement():
    """The network answers with the least variance there is: with noise alone, the last but one call decides."""
    diffusion = DiffusionConfig(prediction="x0", clip=False, variance="learned_range", test_schedule=SCHEDULE)
    sampling = Sampling(sampler="ddpm", steps=4, rounds=1, round_noise=0.5, start="estimate", strength=0.5)
    seen = []

    def denoiser(x, gamma):
        seen.append(x)
        return np.concatenate((np.zeros_like(x), -np.ones_like(x)), 1)

    sampler = create_sampler(Chain(denoiser, False, learned=True), diffusion, sampling)
    sampler(None, np.zeros((1, 3, 64, 64), np.float32))
    assert seen[-1].std() == pytest.approx(0.5 / np.sqrt(1.25), rel=0.05)
    assert seen[1].std() == pytest.approx(np.sqrt(1 - GAMMAS[99]), rel=0.05)


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_the_strength_of_a_noise_is_where_the_chain_has_it(noise):
    top = round(strength_of(GAMMAS, noise) * len(GAMMAS))
    assert np.sqrt(1 / GAMMAS[top - 1] - 1) == pytest.approx(noise, rel=0.06)


@pytest.mark.parametrize("options", [
    {"start": "nowhere"}, {"start": "estimate"}, {"start": "estimate", "strength": 0.5, "steps": 1}, {"rounds": -1},
    {"repeats": 0}, {"jump": 0}, {"repeats": 2, "sampler": "unipc"}, {"round_noise": 0.0}, {"rounds": 1.5},
])
def test_what_a_chain_cannot_add_is_told(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**{"sampler": "ddim", **options})


# Seams


def textured(seed=0, size=96):
    """A picture that is smooth over a few pixels, with a slope and grain."""
    rng = np.random.default_rng(seed)
    y = np.stack([np.add.outer(np.linspace(-0.4, 0.4, size), np.linspace(0, 0.3, size))] * 3)
    return np.float32(y + rng.normal(0, 0.02, y.shape))


def holes(size=96):
    square, spot = np.zeros((1, size, size), np.float32), np.zeros((1, size, size), np.float32)
    square[:, 30:60, 20:70] = 1
    rows, columns = np.mgrid[:size, :size]
    spot[0] = (rows - 50) ** 2 + (columns - 60) ** 2 < 20**2
    return square, spot


@pytest.mark.parametrize("hole", holes())
@pytest.mark.parametrize("size", [10, 20, 40])
def test_a_seams_step_is_as_large_as_it_was_made(hole, size):
    y = textured()
    assert seam(y, hole).step < 2 and seam(y, hole).score == pytest.approx(1, abs=0.15)
    found = seam(y + np.float32(size / 127.5) * hole, hole)
    assert found.step == pytest.approx(size, rel=0.12)
    assert found.score > BAD
    assert seam(y - np.float32(size / 127.5) * hole, hole).step == pytest.approx(size, rel=0.12)


def test_a_slope_across_the_border_is_no_seam():
    y, (hole, _) = np.float32(np.tile(np.linspace(-1, 1, 96), (3, 96, 1))), holes()
    found = seam(y, hole)
    assert found.step < 0.01 and found.score == pytest.approx(1, abs=0.35)  # along the border's rows nothing changes


def test_a_seams_score_is_that_of_counting():
    rng = np.random.default_rng(0)
    y, hole = np.float32(rng.uniform(-1, 1, (2, 9, 11))), np.zeros((1, 9, 11), np.float32)
    hole[0, 3:6, 4:8] = 1
    made, across, beside = hole[0] > 0, [], []
    for i in range(9):
        for j in range(11):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < 9 and m < 11:
                    gradient = np.abs(y[:, i, j] - y[:, k, m])
                    if made[i, j] != made[k, m]:
                        across.append(gradient)
                        continue
                    away = [min(abs(i2 - p) + abs(j2 - q) for p in range(9) for q in range(11)
                                if made[p, q] != made[i2, j2]) for i2, j2 in ((i, j), (k, m))]
                    if max(away) <= 3:
                        beside.append(gradient)
    assert seam(y, hole).score == pytest.approx(np.mean(across) / np.mean(beside), rel=1e-5)


def test_without_a_border_there_is_no_seam():
    y = textured()
    assert seam(y, np.ones_like(y[:1])) is None and seam(y, np.zeros_like(y[:1])) is None
    assert blend(y, np.ones_like(y[:1]), "poisson") is y


@pytest.mark.parametrize("hole", holes())
def test_poisson_takes_a_step_away_and_keeps_what_is_inside(hole):
    y = textured()
    z = y + np.float32(25 / 127.5) * hole
    blended = blend(z, hole, "poisson")
    assert np.array_equal(blended[:, hole[0] == 0], y[:, hole[0] == 0])
    assert 127.5 * np.abs(blended - y).max() < 5 and seam(blended, hole).step < 2
    slight = blend(y, hole, "poisson")
    assert 127.5 * np.abs(slight - y).max() < 5  # what fits stays about as it is


@pytest.mark.parametrize("hole", holes())
def test_feathering_fades_at_the_border_and_leaves_the_middle(hole):
    y = textured()
    z = y + np.float32(25 / 127.5) * hole
    blended = blend(z, hole, "feather")
    assert np.array_equal(blended[:, hole[0] == 0], y[:, hole[0] == 0])
    assert np.array_equal(blended[:, 44:48, 50:55], z[:, 44:48, 50:55])
    # A fifth of the way over the first pixel, a fifth of the step is left.
    assert seam(blended, hole).score < seam(z, hole).score / 3 and seam(blended, hole).step < 5.5


# Mixing and confidence


def test_mixes_are_those_of_numpy():
    samples = np.float32(np.random.default_rng(0).uniform(-1, 1, (5, 3, 8, 9)))
    assert np.allclose(mix(samples, "mean"), np.mean(samples, 0))
    assert np.allclose(mix(samples, "median"), np.median(samples, 0))
    weights = np.array([1, 2, 4, 1, 1])
    assert np.allclose(mix(samples, "score", 10 * np.log10(weights)), np.average(samples, 0, weights), atol=1e-6)
    for how in MIXES:
        assert np.allclose(mix(np.repeat(samples[:1], 3, 0), how, [1, 1, 1]), samples[0], atol=1e-6)


def test_a_sample_that_is_alone_counts_little_by_agreement():
    samples = np.zeros((5, 3, 20, 20), np.float32)
    samples[4, :, :, 10:] = 1
    mixed = mix(samples, "agreement")
    assert mixed[:, :, 14:].max() < 0.5 * mix(samples, "mean")[:, :, 14:].max() and np.abs(mixed[:, :, :3]).max() < 1e-6


def test_the_spread_is_the_deviation_of_the_samples():
    samples = np.random.default_rng(0).normal(0, 0.1, (200, 3, 16, 16)).astype(np.float32)
    assert np.allclose(spread(samples), 12.75, rtol=0.05)


def test_confidence_is_the_share_of_laplaces_distribution():
    errors_ = np.random.default_rng(0).laplace(0, 12, 100_000)  # of which the mean absolute one is 12
    said = confidence(np.array([[9.0]]), law=(4, 0.5))[0, 0]
    assert said == pytest.approx(np.mean(np.abs(errors_) <= WITHIN), abs=0.005)


def test_the_calibrated_law_is_the_one_that_errors_were_drawn_by():
    rng = np.random.default_rng(0)
    spreads = np.exp(rng.normal(1, 1, 400_000))
    right = np.abs(rng.laplace(0, 3 * spreads**0.7)) <= WITHIN
    assert calibrated(spreads, right) == pytest.approx((3, 0.7), rel=0.05)
    scale, power = calibrated(np.full(1000, 4.0), np.arange(1000) % 2)
    assert power == 0 and confidence(4.0, (scale, 0)) == pytest.approx(0.5, abs=0.01)
    assert OF_SAMPLE[1] > 0 < OF_MIX[1]
    deep = rng.uniform(1, 30, len(spreads))
    right = np.abs(rng.laplace(0, 3 * spreads**0.7 * deep**0.3)) <= WITHIN
    found = calibrated(spreads, right, deep)
    # Of four layers of depth each has one depth, the logarithm of its mean, which is above the logarithms' mean.
    assert found[0] == pytest.approx(3, rel=0.1) and found[1:] == pytest.approx((0.7, 0.3), abs=0.04)
    said = confidence(spreads, found, deep)
    assert said[deep > 20].mean() == pytest.approx(right[deep > 20].mean(), abs=0.01)


def test_doubtful_is_what_is_far_apart_in_the_hole():
    apart, hole = np.zeros((30, 30), np.float32), np.zeros((1, 30, 30), np.float32)
    apart[10:14, 10:14], apart[20:, 20:], hole[:, :18, :18] = 20, 20, 1
    region = unsure(apart, hole)
    assert region[0, 8:16, 8:16].all() and region.sum() == 64


# As a user asks for it, with a tiny network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2],
                  "norm_groups": 4},
        "diffusion": {"prediction": "x0", "test_schedule": {"name": "cosine", "num_steps": 50}},
        "tasks": [{"name": "inpainting", "fill": "smooth"}, {"name": "denoising"}], "data": {"image_size": 16}}, "test")
    unet = build_unet(config.model)
    rng = np.random.default_rng(0)
    for parameter in unet.get_parameters():
        parameter.set_data(Tensor(0.2 * rng.standard_normal(parameter.shape, np.float32)))
    path = tmp_path_factory.mktemp("quality") / "tiny.safetensors"
    save_checkpoint(path, config, 7, 10**6, unet_arrays(unet))
    return path


@pytest.fixture(scope="module")
def palette(checkpoint):
    return Palette.load(checkpoint, "cpu")


PICTURE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
MASK = np.zeros((20, 24), np.uint8)
MASK[6:14, 8:16] = 255
ALL = {"num_samples": 4, "steps": 2, "sampler": "ddim"}


def of(images):
    return np.stack([np.asarray(image) for image in images])


def test_the_record_has_what_restore_gives(palette):
    plain = palette.restore(PICTURE, "inpainting", MASK, **ALL)
    details = palette.restore(PICTURE, "inpainting", MASK, **ALL, confidence=True, details=True)
    assert np.array_equal(of(details.samples), of(plain)) and details.numbers == (0, 1, 2, 3) and details.seconds > 0
    assert details.confidence.shape == MASK.shape and (details.confidence[MASK == 0] == 1).all()
    assert (details.confidence[MASK > 0] < 1).all() and len(details.seams) == 4 and details.scores is None
    alone = palette.restore(PICTURE, "denoising", steps=1, details=True)
    assert alone.seams is None and alone.confidence is None and len(alone.samples) == 1


def test_samples_too_much_alike_to_say_how_sure_they_are_are_told(palette, monkeypatch, capsys):
    palette.restore(PICTURE, "inpainting", MASK, **ALL, confidence=True, details=True)
    assert "hardly differ" not in capsys.readouterr().err
    monkeypatch.setattr("palette_ms.quality.stage.ALIKE", 1000)
    palette.restore(PICTURE, "inpainting", MASK, **ALL, confidence=True, details=True)
    assert "hardly differ" in capsys.readouterr().err


def test_the_best_are_those_of_the_scores(palette):
    plain = of(palette.restore(PICTURE, "inpainting", MASK, **ALL))
    details = palette.restore(PICTURE, "inpainting", MASK, **ALL, best=2, details=True)
    assert list(details.numbers) == np.argsort(np.negative(details.scores), kind="stable")[:2].tolist()
    assert np.array_equal(of(details.samples), plain[list(details.numbers)])
    dark = palette.restore(PICTURE, "inpainting", MASK, **ALL, best=1,
                           score=lambda images: [-np.asarray(image).mean() for image in images])
    assert np.array_equal(of(dark)[0], plain[plain.mean((1, 2, 3)).argmin()])


@pytest.mark.parametrize("given", [None, [1], [1, 2, float("nan"), 3], "best"])
def test_a_function_that_does_not_say_a_number_for_each_sample_is_told(given):
    with pytest.raises(UserError, match="a number for each of the 4 samples"):
        _scores(given, 4)


def test_the_sample_nearest_to_the_others_has_the_highest_score(monkeypatch):
    monkeypatch.setitem(VIEWS, "alex", lambda folder: lambda pictures: [picture.mean((0, 1)) for picture in pictures])
    score = by_lpips("lpips_alex")
    pictures = [np.full((32, 40, 3), value, np.uint8) for value in (10, 20, 22, 60)]
    assert score(pictures) == pytest.approx([-3 * (100 + 144 + 2500) / 3, -3 * (100 + 4 + 1600) / 3,
                                             -3 * (144 + 4 + 1444) / 3, -3 * (2500 + 1600 + 1444) / 3])
    with pytest.raises(UserError, match="32 pixels"):
        score([picture[:20] for picture in pictures])


def test_the_score_is_the_denoising_error_by_hand(palette):
    """Recomputed with the network itself, at the noise that the chain has."""
    details = palette.restore(PICTURE, "denoising", num_samples=2, steps=2, sampler="ddim", best=2, details=True)
    order = np.argsort(np.negative(details.scores), kind="stable")
    gammas = make_gamma_schedule("cosine", 50, 0, 0)
    # The samples are rounded to 8 bits here, which moves scores by far less than 0.2 dB.
    source = to_float(PICTURE)
    scores = []
    for image in details.samples:
        y, decibels = to_float(np.asarray(image)), []
        for noise in (0.1, 0.3, 1.0):
            step = round(strength_of(gammas, noise) * 50) - 1
            seed = int(generator(0, "go", 2**20 - 1).integers(2**31))
            eps = generator(seed, "start", 0).standard_normal(y.shape, np.float32)
            y_t = np.sqrt(gammas[step]) * y + np.sqrt(1 - gammas[step]) * eps
            x = np.float32(np.concatenate((source, y_t))[None])
            answer = np.clip(palette.chains.network(x, np.float32([gammas[step]]))[0], -1, 1)
            decibels.append(10 * np.log10(4 / np.mean((answer - y) ** 2)))
        scores.append(np.mean(decibels))
    assert scores == pytest.approx([details.scores[k] for k in order], abs=0.2)


@pytest.mark.parametrize("task, mask", [("inpainting", MASK), ("denoising", None)])
@pytest.mark.parametrize("how", MIXES)
def test_a_mix_is_of_the_samples(palette, task, mask, how):
    samples = of(palette.restore(PICTURE, task, mask, **ALL)).astype(float)
    mixed = palette.restore(PICTURE, task, mask, **ALL, mix=how)
    assert len(mixed) == 1
    mixed = of(mixed)[0]
    assert (mixed >= samples.min(0) - 1).all() and (mixed <= samples.max(0) + 1).all()
    if how == "mean":
        assert np.abs(mixed - samples.mean(0)).max() <= 1


def test_what_is_known_stays_whatever_is_done(palette):
    made = palette.restore(PICTURE, "inpainting", MASK, **ALL, mix="agreement", resample=1, resample_regions=1,
                           blend="poisson")
    result = of(made)[0]
    assert np.array_equal(result[MASK == 0], PICTURE[MASK == 0]) and (result[MASK > 0] != PICTURE[MASK > 0]).any()


def test_regions_are_made_again_where_the_samples_are_apart(palette, monkeypatch):
    monkeypatch.setattr("palette_ms.quality.stage.unsure", lambda spread, hole: hole * np.float32(
        np.arange(24)[None, None] < 12))
    plain = of(palette.restore(PICTURE, "denoising", **ALL))
    again = of(palette.restore(PICTURE, "denoising", **ALL, resample_regions=1))
    assert np.array_equal(again[:, :, 12:], plain[:, :, 12:])
    assert (again[:, :, :12] != plain[:, :, :12]).any((1, 2, 3)).all()


def test_mindspore_makes_the_same(checkpoint, palette):
    options = {**ALL, "mix": "mean", "resample_regions": 1, "confidence": True, "details": True, "rounds": 1}
    made = [one.restore(PICTURE, "inpainting", MASK, **options)
            for one in (palette, Palette.load(checkpoint, "cpu", "mindspore"))]
    assert np.abs(of(made[0].samples).astype(int) - of(made[1].samples)).max() <= 1
    assert np.allclose(made[0].confidence, made[1].confidence, atol=1e-3)


def test_a_bad_seam_is_sampled_again_and_the_better_one_kept(palette, monkeypatch):
    options = {"sampler": "ddim", "steps": 2, "details": True}
    first = palette.restore(PICTURE, "inpainting", MASK, **options)
    monkeypatch.setattr("palette_ms.quality.stage.BAD", 100.0)
    kept = palette.restore(PICTURE, "inpainting", MASK, **options, resample=3)
    assert np.array_equal(of(kept.samples), of(first.samples))
    monkeypatch.setattr("palette_ms.quality.stage.BAD", 0.0)
    best = palette.restore(PICTURE, "inpainting", MASK, **options, resample=3)
    assert best.seams[0].score < first.seams[0].score


def test_several_pictures_are_each_as_alone(palette):
    other, options = PICTURE[::-1].copy(), {**ALL, "best": 1, "resample_regions": 1, "details": True}
    together = palette.restore([PICTURE, other], "inpainting", MASK, **options)
    for picture, record in zip((PICTURE, other), together):
        alone = palette.restore(picture, "inpainting", MASK, **options)
        assert alone.numbers == record.numbers
        # One batch is another than two halves: its sums round otherwise.
        assert np.abs(of(alone.samples).astype(int) - of(record.samples)).max() <= 1


@pytest.mark.parametrize("options, words", [
    ({"mix": "mean"}, "num_samples"), ({"best": 2}, "best must be at most"), ({"confidence": True}, "several samples"),
    ({"mix": "sum"}, "mix must be"), ({"blend": "smear"}, "blend must be"), ({"score": "beauty"}, "score must be"),
    ({"resample": -1}, "resample must be"), ({"best": 1, "mix": "mean", "num_samples": 2}, "cannot be had together"),
])
def test_what_cannot_be_done_is_told(palette, options, words):
    with pytest.raises(UserError, match=words):
        palette.restore(PICTURE, "denoising", **options)


def test_the_command_writes_the_best_and_its_confidence(checkpoint, tmp_path, monkeypatch, capsys):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    Image.fromarray(MASK).save(tmp_path / "m.png")
    arguments = ["sample", "--ckpt", str(checkpoint), "--input", str(tmp_path / "a.png"), "--output",
                 str(tmp_path / "out"), "--mask", str(tmp_path / "m.png"), "--device", "cpu", "--steps", "2",
                 "--sampler", "ddim", "--num-samples", "3", "--best", "1", "--confidence", "--blend", "poisson",
                 "--rounds", "1"]
    for _ in range(2):  # the second time, both are known as its own
        monkeypatch.setattr(sys, "argv", arguments)
        palette_ms.sample.main()
        assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "a_confidence.png"]
    sure = np.asarray(Image.open(tmp_path / "out" / "a_confidence.png"))
    assert sure.shape == MASK.shape and (sure[MASK == 0] == 255).all() and (sure[MASK > 0] < 255).any()
    monkeypatch.setattr(sys, "argv", [*arguments, "--num-samples", "1", "--best", "1"])
    with pytest.raises(UserError, match="several samples"):
        palette_ms.sample.main()


def test_a_holes_border_is_what_is_near_to_what_is_known():
    hole = np.zeros((1, 40, 40), np.float32)
    hole[0, 5:35, 5:35] = 1
    near = border(hole)[0]
    expected = np.zeros((40, 40))
    expected[5:35, 5:35] = 1
    expected[13:27, 13:27] = 0
    assert np.array_equal(near, expected)
    assert not border(np.ones_like(hole)).any() and not border(0 * hole).any()


def test_border_rounds_change_the_border_alone(palette):
    hole = np.zeros((48, 48), np.uint8)
    hole[8:40, 8:40] = 255
    picture = np.random.default_rng(1).integers(0, 256, (48, 48, 3), np.uint8)
    plain, refined = (of(palette.restore(picture, "inpainting", hole, steps=2, sampler="ddim", border_rounds=rounds))[0]
                      for rounds in (0, 2))
    near = border(np.float32(hole > 0)[None])[0] > 0
    assert np.array_equal(plain[~near], refined[~near]) and (plain != refined)[near].any(-1).mean() > 0.9
    whole = [of(palette.restore(PICTURE, "denoising", steps=1, border_rounds=rounds)) for rounds in (0, 1)]
    assert np.array_equal(*whole)
