"""Tasks and masks: pure functions of the picture and the generator."""

import numpy as np
import pytest
from PIL import Image

from palette_ms.config import TaskConfig
from palette_ms.data.images import to_float
from palette_ms.tasks import TASKS, create_task
from palette_ms.tasks.colorization import colorization
from palette_ms.tasks.inpainting import inpainting, smooth_fill
from palette_ms.tasks.masks import MASKS

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
Y_0 = to_float(PICTURE)


def test_colorization_source_is_pillows_gray():
    cond, mask = colorization(Y_0)
    expected = np.asarray(Image.fromarray(PICTURE).convert("L")).astype(float)
    assert mask is None and cond.dtype == np.float32
    assert np.abs((cond + 1) * 127.5 - expected).max() < 1  # Pillow rounds to whole numbers


def test_inpainting_source_is_noise_in_the_hole_and_the_picture_elsewhere():
    cond, mask = inpainting(Y_0, np.random.default_rng(0), ("center",))
    np.testing.assert_array_equal(np.where(mask > 0, 0, cond), np.where(mask > 0, 0, Y_0))
    inside = cond[:, mask[0] > 0]
    assert abs(inside.mean()) < 0.05 and inside.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", MASKS)
def test_a_smooth_fill_is_the_mean_of_its_neighbours_and_keeps_the_rest(kind):
    mask = MASKS[kind](np.random.default_rng(3), 48, 64)
    hole = mask[0] > 0
    filled = smooth_fill(np.where(mask > 0, np.float32(np.nan), Y_0), mask)
    np.testing.assert_array_equal(filled[:, ~hole], Y_0[:, ~hole])
    padded = np.pad(filled, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    neighbours = [padded[:, 1:-1, :-2], padded[:, 1:-1, 2:], padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]]
    np.testing.assert_allclose(filled[:, hole], np.nanmean(neighbours, 0)[:, hole], atol=1e-5)


def test_a_smooth_fill_continues_a_slope():
    y, x = np.mgrid[:20, :30] / 30
    slope = np.stack([x, y, x - y]).astype(np.float32)
    np.testing.assert_allclose(smooth_fill(slope, MASKS["center"](None, 20, 30)), slope, atol=1e-6)


def test_a_smooth_fill_of_nothing_known_is_gray():
    np.testing.assert_array_equal(smooth_fill(Y_0, np.ones_like(Y_0[:1])), 0 * Y_0)


def test_the_smooth_source_is_the_smooth_fill():
    cond, mask = create_task(TaskConfig(fill="smooth"))(Y_0, np.random.default_rng(0))
    np.testing.assert_array_equal(cond, smooth_fill(Y_0, mask))


@pytest.mark.parametrize("name", TASKS)
def test_tasks_depend_on_their_generator_alone(name):
    task = create_task(TaskConfig(name))
    np.random.seed(0)
    first = task(Y_0, np.random.default_rng(1))
    np.random.seed(1)
    for a, b in zip(first, task(Y_0, np.random.default_rng(1))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", [(256, 256), (40, 100), (5, 4), (1, 1)])
def test_masks_are_zeros_and_ones_of_the_pictures_size(kind, size):
    for seed in range(20):
        mask = MASKS[kind](np.random.default_rng(seed), *size)
        assert mask.shape == (1, *size) and mask.dtype == np.float32
        assert set(np.unique(mask)) <= {0, 1}


def test_center_is_the_papers():
    mask = MASKS["center"](None, 256, 256)[0]
    assert mask.sum() == 128 * 128 and mask[64:192, 64:192].all()


def test_rectangles_are_whole_and_within_their_bounds():
    areas = []
    for seed in range(300):
        mask = MASKS["rectangle"](np.random.default_rng(seed), 100, 100)[0]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        sides = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == sides[0] * sides[1]
        assert min(sides) >= 20 and max(sides) <= 50
        areas.append(sides)
    assert np.min(areas) == 20 and np.max(areas) == 50


def test_free_form_strokes_vary_and_never_cover_nothing():
    cover = [MASKS["free_form"](np.random.default_rng(seed), 256, 256).mean() for seed in range(200)]
    assert min(cover) > 0 and max(cover) < 0.8
    assert 0.1 < np.mean(cover) < 0.4 and np.std(cover) > 0.05


def test_inpainting_draws_its_kinds_of_mask_evenly():
    rng = np.random.default_rng(0)
    center = MASKS["center"](None, 48, 64)
    count = sum(np.array_equal(inpainting(Y_0, rng, ("center", "free_form"))[1], center) for _ in range(300))
    assert 110 < count < 190
