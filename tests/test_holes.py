"""Holes larger than in training: crops, from coarse to fine."""

import dataclasses

import numpy as np
import pytest

from palette_ms import Palette
from palette_ms.checkpoint import build_unet
from palette_ms.config import config_from_dict
from palette_ms.data.images import resize
from palette_ms.holes import fill, inside, plan, shrink, whole_pass, widest

SIZE, MULTIPLE = 16, 4  # of training


def hole_of(shape, *boxes):
    hole = np.zeros((1, *shape), np.float32)
    for box in boxes:
        hole[inside(box)] = 1
    return hole


# Which crops


@pytest.mark.parametrize("height, width, side", [(7, 7, 7), (8, 8, 8), (3, 20, 3), (20, 6, 6), (1, 1, 1)])
@pytest.mark.parametrize("top, left", [(5, 4), (0, 0)])  # inside and in a corner
def test_the_widest_square_is_that_of_a_rectangle(height, width, side, top, left):
    assert widest(hole_of((30, 30), (top, top + height, left, left + width))[0].astype(np.uint8)) == side


def test_the_widest_square_is_that_of_counting():
    masks = np.random.default_rng(0).random((50, 9, 11)) < 0.9
    for mask in masks:
        largest = max((n for n in range(1, 10) for i in range(10 - n) for j in range(12 - n)
                       if mask[i:i + n, j:j + n].all()), default=0)
        assert widest(mask.astype(np.uint8)) == largest


@pytest.mark.parametrize("shape, box", [((16, 16), (4, 12, 4, 12)), ((40, 40), (16, 24, 4, 36)),
                                        ((20, 9), (0, 8, 0, 8)), ((30, 30), (0, 30, 0, 30))])
def test_what_fits_is_made_of_the_whole_picture_where_crops_save_little(shape, box):
    hole = hole_of(shape, box)
    assert plan(hole, SIZE, MULTIPLE) == whole_pass(hole)
    assert plan(0 * hole, SIZE, MULTIPLE) == whole_pass(hole)


def test_scratches_all_over_are_made_of_the_whole_picture():
    rng = np.random.default_rng(0)
    hole = (rng.random((1, 100, 150)) < 0.01).astype(np.float32)
    assert plan(hole, SIZE, MULTIPLE) == whole_pass(hole)


@pytest.mark.parametrize("seed", range(20))
def test_passes_cover_the_hole_with_context_and_share_no_pixel(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(60, 300, 2).tolist())
    boxes = []
    for _ in range(rng.integers(1, 5)):
        top, left = (int(rng.integers(0, side - 8)) for side in shape)
        boxes.append((top, top + int(rng.integers(1, 60)), left, left + int(rng.integers(1, 60))))
    hole = hole_of(shape, *boxes)
    passes = plan(hole, SIZE, MULTIPLE)
    if passes == whole_pass(hole):
        return
    owned = np.zeros(shape, int)
    for own in {step.own for step in passes}:
        owned[inside(own)] += 1
        steps = [step for step in passes if step.own == own]
        factors = [step.factor for step in steps]
        assert factors == [factors[0] >> k for k in range(len(factors))] and factors[-1] == 1
        assert [step.refines for step in steps] == [False] + [True] * (len(steps) - 1)
        mask = hole[inside(own)][0].astype(np.uint8)
        assert widest(mask) <= factors[0] * SIZE // 2 and (factors[0] == 1 or widest(mask) > factors[0] * SIZE // 4)
        rows, columns = (np.flatnonzero(mask.any(axis)) + own[place] for axis, place in ((1, 0), (0, 2)))
        for factor, (top, bottom, left, right), _, _, tile in steps:
            for low, high, first, last, end in ((top, bottom, rows[0], rows[-1] + 1, shape[0]),
                                                (left, right, columns[0], columns[-1] + 1, shape[1])):
                assert 0 <= low <= max(0, first - factor * SIZE // 2)
                assert min(end, last + factor * SIZE // 2) <= high <= end
                assert (high - low) % (factor * MULTIPLE) == 0 or high - low == end
            assert tile in (16, 24, 32)
    assert owned.max() == 1 and (owned[hole[0] > 0] == 1).all()


def test_the_network_is_shown_few_sizes():
    sizes = set()
    for side in range(1, 120):
        hole = hole_of((300, 400), (90, 90 + side, 100, 100 + side))
        for step in plan(hole, SIZE, MULTIPLE):
            top, bottom, left, right = step.box
            sizes.add((min(step.tile, (bottom - top) / step.factor), min(step.tile, (right - left) / step.factor)))
    assert len(sizes) <= 6, sizes  # three squares, and what the picture's edge leaves of it at the coarsest


# From coarse to fine


def test_a_shrunk_picture_holds_nothing_of_the_hole():
    hole = hole_of((12, 20), (2, 9, 3, 14))[None]
    pictures = np.where(hole > 0, np.float32(99), np.float32(0.25))
    small, coarse = shrink(pictures, hole, 4)
    assert small.shape == coarse.shape == (1, 1, 3, 5)
    np.testing.assert_allclose(small[coarse == 0], 0.25, atol=1e-5)
    # Known is what is known by half: of each 4×4 pixels at least 8.
    counts = hole[0, 0].reshape(3, 4, 5, 4).sum((1, 3))
    np.testing.assert_array_equal(coarse[0, 0], counts > 8)
    assert shrink(pictures, hole, 1) == (pictures, hole)


def test_what_a_picture_holds_in_the_hole_stays_there_for_tasks_that_see_it():
    pictures = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    hole = np.repeat(hole_of((16, 16), (4, 12, 4, 12))[None], 2, 0)
    small, coarse = shrink(pictures, hole, 2)
    np.testing.assert_allclose(small, pictures.reshape(2, 3, 8, 2, 8, 2).mean((3, 5)), atol=1e-6)
    assert coarse.sum() == 2 * 16


def test_passes_build_on_each_other_and_leave_no_seam():
    """A chain that answers a slope one too bright: what is made small is fitted to the known slope at its border."""
    rows, columns = np.mgrid[:80, :100].astype(np.float32)
    slope = (rows / 80 - columns / 100)[None, None]
    hole = hole_of((80, 100), (20, 60, 30, 66))[None]
    passes, seen = plan(hole[0], SIZE, MULTIPLE), []

    def chain(number, pictures, hole, guess):
        seen.append(guess)
        factor, (top, bottom, left, right), *_ = passes[number]
        y = resize(slope[..., top:bottom, left:right], *pictures.shape[2:]) if factor > 1 else \
            slope[..., top:bottom, left:right]
        return np.where(hole > 0, y, pictures) + (1 if factor > 1 else 0)

    made = fill(passes[:-1], slope * (1 - hole), hole, slope * (1 - hole), chain)
    np.testing.assert_array_equal(made[hole == 0], (slope * (1 - hole))[hole == 0])
    assert np.abs(made - slope).max() < 0.05
    fill(passes, slope * (1 - hole), hole, slope * (1 - hole), chain)
    assert len(passes) == 4 and len(seen) == 7 and [guess is None for guess in seen[3:]] == [True, False, False, False]
    top, bottom, left, right = passes[-1].box
    assert np.abs(seen[-1] - slope[..., top:bottom, left:right]).max() < 0.05


# Pictures


class Source:
    """Stands in for a network: answers its source, and keeps what it was given. No Cell, so nothing is compiled."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, time, label=None):
        self.calls.append((x, float(time[0])))
        return x[:, :3]


class Bar:
    total = done = 0

    def reset(self, total):
        self.total, self.done = total, 0

    def update(self, count):
        self.done += count


def config(**diffusion):
    return config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]},
        "diffusion": {"prediction": "x0", "test_schedule": {"num_steps": 10, "start": 0.01, "end": 0.5}, **diffusion},
        "tasks": [{"name": "inpainting", "fill": "smooth"}, {"name": "uncropping", "fill": "smooth"}],
        "data": {"image_size": SIZE}}, "test")


@pytest.fixture(scope="module")
def unet():
    return build_unet(config().model)


@pytest.fixture
def palette(unet):
    palette = Palette(unet, config())
    palette.chains.network = Source()
    return palette


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


ONE = dict(sampler="ddim", steps=1)


def test_a_hole_of_any_size_in_a_flat_picture_is_filled_flat(palette):
    flat = np.full((90, 120, 3), 70, np.uint8)
    for boxes in ([(20, 70, 30, 90)], [(0, 9, 0, 9), (60, 90, 80, 120)], [(0, 90, 0, 100)]):
        hole = hole_of((90, 120), *boxes)[0] > 0
        bar = Bar()
        for made in palette.restore(np.where(hole[..., None], 0, flat).astype(np.uint8), "inpainting", hole,
                                    num_samples=2, progress=bar, **ONE):
            assert np.abs(np.asarray(made).astype(int) - 70).max() <= 1
        assert bar.done == bar.total == len(palette.chains.network.calls)
        palette.chains.network.calls.clear()


def test_only_what_is_around_a_hole_is_seen_and_the_rest_kept(palette):
    picture, hole = photo(90, 120), hole_of((90, 120), (40, 47, 50, 58))[0] > 0
    made, = palette.restore(picture, "inpainting", hole, **ONE)
    (x, _), = palette.chains.network.calls
    assert x.shape == (1, 6, 24, 24)
    np.testing.assert_array_equal(np.asarray(made)[~hole], picture[~hole])


@pytest.mark.parametrize("diffusion, share", [
    ({}, 0.7), ({"process": "i2sb", "from_source": True, "test_schedule": {"name": "i2sb", "num_steps": 10}}, 0.3)])
def test_a_large_hole_is_begun_small_and_gone_on_with_at_less_noise(unet, diffusion, share):
    palette = Palette(unet, config(**diffusion))
    palette.chains.network = Source()
    picture, hole = photo(120, 120), hole_of((120, 120), (40, 70, 40, 70))[0] > 0
    made, = palette.restore(picture, "inpainting", hole, sampler="ddpm", steps=10, progress=None)
    np.testing.assert_array_equal(np.asarray(made)[~hole], picture[~hole])
    calls, gammas = palette.chains.network.calls, sorted({time for _, time in palette.chains.network.calls})
    assert len(gammas) == 10 and max(max(x.shape[2:]) for x, _ in calls) == 32
    assert sum(time == gammas[0] for _, time in calls) == 1  # the coarsest pass alone begins with noise
    assert [time for _, time in calls[:10]] == gammas
    assert calls[10][1] == gammas[10 - round(10 * share)]


def test_pictures_with_holes_of_their_own_come_out_as_alone(palette):
    pictures = [photo(60, 90, seed) for seed in range(3)]
    holes = [hole_of((60, 90), box)[0] > 0 for box in ((5, 45, 10, 50), (30, 34, 60, 64), (5, 45, 10, 50))]
    together = palette.restore(pictures, "inpainting", holes, num_samples=2, **ONE)
    for picture, hole, made in zip(pictures, holes, together):
        alone = palette.restore(picture, "inpainting", hole, num_samples=2, **ONE)
        np.testing.assert_array_equal(np.stack(made), np.stack(alone))


def test_tiles_and_a_strength_that_the_user_names_are_of_the_whole_picture(palette):
    picture, hole = photo(64, 96), hole_of((64, 96), (10, 50, 10, 50))[0] > 0
    palette.restore(picture, "inpainting", hole, strength=0.5, **ONE)
    assert [x.shape[2:] for x, _ in palette.chains.network.calls] == [(64, 96)]
    palette.chains.network.calls.clear()
    palette.restore(picture, "inpainting", hole, tile=16, **ONE)
    assert {x.shape[2:] for x, _ in palette.chains.network.calls} == {(16, 16)}


def test_a_distilled_model_makes_large_holes_small_and_no_more(unet):
    distilled = Palette(unet, dataclasses.replace(config(), diffusion=dataclasses.replace(
        config().diffusion, distilled=(4, 9))))
    distilled.chains.network = Source()
    picture, hole = photo(120, 120), hole_of((120, 120), (40, 70, 40, 70))[0] > 0
    made, = distilled.restore(picture, "inpainting", hole)
    assert len(distilled.chains.network.calls) == 2
    np.testing.assert_array_equal(np.asarray(made)[~hole], picture[~hole])


def test_a_wide_margin_is_made_from_coarse_to_fine(palette):
    flat, bar = np.full((40, 40, 3), 120, np.uint8), Bar()
    made, = palette.restore(flat, "uncropping", extend={"left": 64, "top": 10}, progress=bar, **ONE)
    assert made.size == (104, 50) and np.abs(np.asarray(made).astype(int) - 120).max() <= 1
    assert bar.done == bar.total == len(palette.chains.network.calls)
    gammas = [time for _, time in palette.chains.network.calls]
    assert gammas[0] < gammas[-1]
