"""Tasks and masks: pure functions of the picture and the generator."""

import io
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.color import rgb2lab

from palette_ms.data.images import resize, to_float, to_uint8
from palette_ms.errors import UserError
from palette_ms.tasks import TASKS, Task, fill
from palette_ms.tasks.asks import SIDES, Ask
from palette_ms.tasks.colorization import Colorization, guided_upsample, join_lab, with_lightness, working_size
from palette_ms.tasks.deblurring import Deblurring, gaussian_kernel, motion_kernel
from palette_ms.tasks.denoising import Denoising
from palette_ms.tasks.fill import smooth_fill
from palette_ms.tasks.inpainting import Inpainting
from palette_ms.tasks.jpeg_restoration import JpegRestoration, jpeg
from palette_ms.tasks.masks import MASKS
from palette_ms.tasks.old_photo import OldPhoto
from palette_ms.tasks.super_resolution import SuperResolution, bicubic
from palette_ms.tasks.task import Request
from palette_ms.tasks.uncropping import Uncropping, side_mask

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
Y_0 = to_float(PICTURE)


def test_colorization_source_is_pillows_gray():
    cond, mask = Colorization().pair(Y_0, None)
    expected = np.asarray(Image.fromarray(PICTURE).convert("L")).astype(float)
    assert mask is None and cond.dtype == np.float32
    assert np.abs((cond + 1) * 127.5 - expected).max() < 1  # Pillow rounds to whole numbers


def test_inpainting_source_is_noise_in_the_hole_and_the_picture_elsewhere():
    cond, mask = Inpainting(masks=("center",)).pair(Y_0, np.random.default_rng(0))
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


def large_holes():
    y, x = np.mgrid[:240, :300]
    rng = np.random.default_rng(3)
    yield "half of the picture, past its edge", x < 150
    yield "all but a pixel", (y != 120) | (x != 7)
    yield "dust left of a picture", rng.random(x.shape) < 0.97
    yield "every second pixel", rng.random(x.shape) < 0.5
    yield "scratches one pixel wide", (x % 3 == 0) | (np.abs(x - y) < 2)
    yield "a ring and a box at the corner", (np.abs(np.hypot(x - 150, y - 120) - 80) < 30) | ((x < 90) & (y < 130))


@pytest.mark.parametrize("hole", [pytest.param(hole, id=name) for name, hole in large_holes()])
def test_a_large_smooth_fill_is_that_of_a_direct_solver(monkeypatch, hole):
    y_0 = np.random.default_rng(1).uniform(-1, 1, (2, *hole.shape)).astype(np.float32)
    mask = hole[None].astype(np.float32)
    monkeypatch.setattr(fill, "_EXACT", 0)
    made = smooth_fill(y_0, mask)
    monkeypatch.setattr(fill, "_EXACT", hole.size)
    assert np.abs(made - smooth_fill(y_0, mask)).max() < 1e-3


def test_a_smooth_fill_takes_time_and_memory_for_the_hole_alone():
    y_0, mask = np.zeros((3, 1000, 2000), np.float32), np.zeros((1, 1000, 2000), np.float32)
    y_0[:, :, 1000:] = 1
    for top, left in ((10, 20), (900, 1900)):
        mask[0, top:top + 40, left:left + 50] = 1
    tracemalloc.start()
    filled = smooth_fill(y_0, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < y_0.nbytes + 3 * mask[0].size  # the result, and masks of bool
    np.testing.assert_allclose(filled, y_0, atol=1e-6)


def test_the_smooth_source_is_the_smooth_fill():
    cond, mask = Inpainting(fill="smooth").pair(Y_0, np.random.default_rng(0))
    np.testing.assert_array_equal(cond, smooth_fill(Y_0, mask))


@pytest.mark.parametrize("name", sorted(TASKS.keys() - {"paired"}))
def test_tasks_depend_on_their_generator_alone(name):
    task = TASKS[name]()
    np.random.seed(0)
    first = task.pair(Y_0, np.random.default_rng(1))
    np.random.seed(1)
    for a, b in zip(first, task.pair(Y_0, np.random.default_rng(1))):
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


def test_scratches_are_thin_at_any_size():
    for side in (64, 300):
        drawn = [MASKS["scratches"](np.random.default_rng(seed), side, side)[0] for seed in range(60)]
        widths = [2 * distance_transform_edt(np.pad(mask, 1)).max() for mask in drawn]
        assert 0.005 < np.mean([mask.mean() for mask in drawn]) < 0.15
        assert np.median(widths) <= 6 and max(widths) <= 16  # the widest are where lines cross


def test_inpainting_draws_its_kinds_of_mask_evenly():
    rng = np.random.default_rng(0)
    center = MASKS["center"](None, 48, 64)
    count = sum(np.array_equal(Inpainting(masks=("center", "free_form")).pair(Y_0, rng)[1], center) for _ in range(300))
    assert 110 < count < 190


# Uncropping


@pytest.mark.parametrize("side", [*SIDES, "all"])
@pytest.mark.parametrize("size", [(256, 256), (64, 96), (37, 53), (1, 7), (2, 2), (5, 1)])
def test_uncropping_masks_exactly_half(side, size):
    mask = side_mask(side, *size)
    assert mask.shape == (1, *size) and mask.sum() == size[0] * size[1] // 2


def test_uncropping_masks_lie_at_their_sides():
    left, right, top, bottom, around = (side_mask(side, 64, 64)[0] for side in (*SIDES, "all"))
    assert left[:, :32].all() and right[:, 32:].all() and top[:32].all() and bottom[32:].all()
    assert around[0].all() and around[-1].all() and around[:, 0].all() and around[:, -1].all()
    known = np.argwhere(around == 0)
    assert np.abs(known.mean(0) - 31.5).max() < 1 and not around[12:52, 12:52].any()


def test_uncropping_draws_its_sides_evenly():
    rng = np.random.default_rng(0)
    counts = np.zeros(5)
    masks = [side_mask(side, *Y_0.shape[1:]) for side in (*SIDES, "all")]
    for _ in range(1000):
        cond, mask = Uncropping().pair(Y_0, rng)
        counts += [np.array_equal(mask, known) for known in masks]
        assert (cond == Y_0)[:, mask[0] == 0].all()
    assert counts.sum() == 1000 and (np.abs(counts - 200) < 5 * np.sqrt(1000 * 0.2 * 0.8)).all()


# Masks that cover a band


@pytest.mark.parametrize("low, high", [(0.1, 0.2), (0.2, 0.3), (0.3, 0.4)])
def test_banded_masks_cover_what_they_say_in_a_thousand_draws(low, high):
    kind = MASKS[f"free_form_{low * 100:.0f}_{high * 100:.0f}"]
    rng = np.random.default_rng(0)
    cover = np.array([kind(rng, 64, 64).mean() for _ in range(1000)])
    assert (cover > low).all() and (cover <= high).all()
    assert cover.std() > 0.01  # they vary within the band


# Degradations


def test_jpeg_is_the_encoders_at_that_quality():
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "JPEG", quality=7)
    np.testing.assert_array_equal(to_uint8(jpeg(Y_0, 7)), np.asarray(Image.open(file)))


def test_jpeg_qualities_are_drawn_evenly_and_stand_in_the_bytes(monkeypatch):
    seen = []
    save = Image.Image.save

    def spy(image, file, *arguments, **options):
        save(image, file, *arguments, **options)
        seen.append(Image.open(file).quantization[0])

    monkeypatch.setattr(Image.Image, "save", spy)
    rng, small = np.random.default_rng(0), Y_0[:, :8, :8]
    for _ in range(2600):
        cond, mask = JpegRestoration().pair(small, rng)
        assert mask is None
    tables = {}
    monkeypatch.undo()
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.fromarray(PICTURE[:8, :8]).save(file, "JPEG", quality=quality)
        tables.setdefault(tuple(Image.open(file).quantization[0]), []).append(quality)
    qualities = [tables[tuple(table)] for table in seen]
    assert all(len(known) == 1 for known in qualities)
    counts = np.bincount(np.ravel(qualities), minlength=101)
    assert counts[5:31].sum() == 2600 and (np.abs(counts[5:31] - 100) < 5 * np.sqrt(100)).all()


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_super_resolution_is_pillows_bicubic_down_and_up(scale):
    cond, mask = SuperResolution(scales=(scale,)).pair(Y_0, np.random.default_rng(0))
    small = Image.fromarray(PICTURE).resize((64 // scale, 48 // scale), Image.BICUBIC)
    expected = np.asarray(small.resize((64, 48), Image.BICUBIC)).astype(int)
    # Pillow rounds 8-bit pictures after each of four passes, and these are floats, as those of other depths are.
    assert mask is None and np.abs(to_uint8(cond) - expected).max() <= 2


def test_super_resolution_takes_sizes_that_the_factor_does_not_divide():
    cond, _ = SuperResolution().pair(Y_0[:, :13, :9], np.random.default_rng(0))
    assert cond.shape == (3, 13, 9)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_consistent_result_made_small_again_is_what_was_given(interpolation):
    task = SuperResolution(scales=(2,), interpolation=interpolation, consistent=True)
    wrong, y_0 = (gaussian_filter(np.random.default_rng(k).uniform(-1, 1, (2, 3, 48, 64)).astype(np.float32),
                                  (0, 0, 1.5, 1.5)) for k in range(2))
    small = np.stack([[np.asarray(Image.fromarray(channel).resize((32, 24), task.smaller)) for channel in y]
                      for y in y_0])
    sources = np.stack([to_float(to_uint8(task.pair(y, np.random.default_rng(0))[0])) for y in y_0])

    def distance(made):
        again = [[np.asarray(Image.fromarray(channel).resize((32, 24), task.smaller)) for channel in y] for y in made]
        return np.abs(np.stack(again) - small).mean()

    made = task.restore(sources, {"scale": 2}, lambda pictures: wrong.copy())
    assert distance(made) < 0.05 * distance(wrong)
    assert np.abs(made - y_0).mean() < 0.7 * np.abs(wrong - y_0).mean()
    # What was right stays as it is, each sample of each picture.
    right = task.restore(sources, {"scale": None}, lambda pictures: np.repeat(y_0, 2, 0))
    assert np.abs(right - np.repeat(y_0, 2, 0)).mean() < 0.003  # the sources' 8 bits alone are off by 0.002


def test_a_consistent_result_stays_consistent_when_it_is_cut_to_the_range():
    task = SuperResolution(scales=(2,), consistent=True)
    y_0 = np.clip(4 * gaussian_filter(np.random.default_rng(0).normal(0, 1, (3, 48, 64)), (0, 2, 2)), -1, 1)
    given = bicubic(y_0.astype(np.float32), 24, 32)
    source = bicubic(given, 48, 64)
    made, = task.restore(source[None], {"scale": 2}, lambda pictures: 1.3 * pictures)
    wrong, left = (np.abs(bicubic(np.clip(y, -1, 1), 24, 32) - given).mean() for y in (1.3 * source, made))
    assert np.abs(made).max() <= 1 and left < 0.02 * wrong


def test_where_the_factor_is_not_known_no_result_is_fitted_to_another_one():
    task = SuperResolution(scales=(2, 4), consistent=True)
    y_0 = gaussian_filter(np.random.default_rng(0).uniform(-1, 1, (3, 48, 64)).astype(np.float32), (0, 1.5, 1.5))
    source = bicubic(bicubic(y_0, 12, 16), 48, 64)
    unknown, known, wrong = (task.restore(source[None], {"scale": scale}, lambda pictures: y_0[None].copy())[0]
                             for scale in (None, 4, 2))
    assert np.array_equal(unknown, y_0) and np.abs(known - y_0).mean() < 0.01
    assert np.abs(wrong - y_0).mean() > 10 * np.abs(known - y_0).mean()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_the_gaussian_blur_is_scipys(sigma):
    kernel = gaussian_kernel(sigma)
    point = np.zeros_like(kernel)
    point[len(kernel) // 2, len(kernel) // 2] = 1
    np.testing.assert_allclose(kernel, gaussian_filter(point, sigma, truncate=3, mode="constant"), atol=0.004)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("length", [1.0, 4.0, 11.0])
@pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2])
def test_the_motion_blur_is_a_line_of_its_length_and_angle(length, angle):
    kernel = motion_kernel(length, angle)
    y, x = np.mgrid[:len(kernel), :len(kernel)] - len(kernel) // 2
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert abs((kernel * along).sum()) < 1e-5 and abs((kernel * across).sum()) < 1e-5
    # A line of that length has a variance of (length − 1)²/12 along it; sharing among pixels adds less than 1/4.
    assert 0 <= (kernel * along**2).sum() - (length - 1) ** 2 / 12 < 0.35 + 0.1 * length
    assert (kernel * across**2).sum() < 0.3


def test_blur_keeps_flat_pictures_and_smooths_others():
    flat = np.full((3, 20, 30), 0.3, np.float32)
    for kind in ("gaussian", "motion"):
        blurred, mask = Deblurring(kinds=(kind,)).pair(flat, np.random.default_rng(0))
        np.testing.assert_allclose(blurred, flat, atol=1e-5)
        assert mask is None and Deblurring(kinds=(kind,)).pair(Y_0, np.random.default_rng(0))[0].std() < Y_0.std()


def test_noise_has_the_deviation_that_is_drawn():
    gray, rng = np.zeros((3, 64, 64), np.float32), np.random.default_rng(0)
    sigmas = np.array([Denoising().pair(gray, rng)[0].std() * 127.5 for _ in range(300)])
    assert 4.8 < sigmas.min() < 6 and 48 < sigmas.max() < 51 and sigmas.mean() == pytest.approx(27.5, abs=3)
    bright, _ = Denoising().pair(gray + 1, rng)
    assert bright.max() <= 1


# Colours


def test_an_old_photo_without_damage_is_the_photo_and_with_all_of_it_is_paper():
    y_0 = np.random.default_rng(0).uniform(-1, 1, (3, 64, 64)).astype(np.float32)
    y_0 = np.stack([gaussian_filter(channel, 4) for channel in y_0])  # which JPEG keeps
    none = {"fading": (0, 0), "cast": (0, 0), "grain": (0, 0), "scratched": 0, "quality": (95, 95), "blur": (0.1, 0.1)}
    cond, mask = OldPhoto(**none).pair(y_0, np.random.default_rng(0))
    assert mask is None and np.abs(cond - y_0).mean() < 0.02
    cond, _ = OldPhoto(**{**none, "fading": (1, 1)}).pair(y_0, np.random.default_rng(0))
    np.testing.assert_allclose(cond, 0.6, atol=0.02)
    cond, _ = OldPhoto(**{**none, "cast": (1, 1)}).pair(y_0, np.random.default_rng(0))
    assert cond[2].max() < -0.9 and np.abs(cond[0] - y_0[0]).mean() < 0.02
    cond, _ = OldPhoto(**{**none, "grain": (10, 10)}).pair(0 * y_0, np.random.default_rng(0))
    assert (cond * 127.5).std() == pytest.approx(10, rel=0.1)


def test_scratches_of_an_old_photo_are_told_by_no_mask_and_lie_over_it():
    flat = np.zeros((3, 64, 64), np.float32)
    options = {"fading": (0, 0), "cast": (0, 0), "grain": (0, 0), "quality": (95, 95)}
    for seed in range(8):
        whole, _ = OldPhoto(**options, scratched=0).pair(flat, np.random.default_rng(seed))
        marked, mask = OldPhoto(**options, scratched=1).pair(flat, np.random.default_rng(seed))
        assert mask is None and np.abs(whole).max() < 0.05
        assert 0 < (np.abs(marked) > 0.3).mean() < 0.5


def test_lightness_is_scikit_images_and_comes_back():
    lightness_source = Colorization(gray="lightness").source
    cond = lightness_source(Y_0)
    lightness = rgb2lab(PICTURE)[..., 0]
    # OpenCV interpolates the curves of sRGB and of the cube root: 0.18 of 100 was the most seen
    assert np.abs((cond[0] + 1) * 50 - lightness).max() < 0.25
    np.testing.assert_array_equal(cond[0], cond[2])
    # The colours of another picture with this one's lightness: within what sRGB can show
    mixed = with_lightness(0.5 * Y_0[::-1], lightness_source(0.5 * Y_0))
    inside = np.abs(mixed).max(0) < 0.99
    assert inside.mean() > 0.2
    difference = lightness_source(mixed)[0] - lightness_source(0.5 * Y_0)[0]
    assert np.abs(difference[inside]).max() < 0.01
    np.testing.assert_allclose(with_lightness(Y_0, cond), Y_0, atol=0.02)


def test_colours_that_do_not_fit_their_lightness_are_paler_and_keep_it():
    rng = np.random.default_rng(0)
    lab = np.stack([rng.uniform(2, 98, (20, 30)), *rng.uniform(-120, 120, (2, 20, 30))]).astype(np.float32)
    y = join_lab(lab[0] / 50 - 1, lab[1:])
    assert np.abs(y).max() <= 1
    found = rgb2lab((y.transpose(1, 2, 0) + 1) / 2).transpose(2, 0, 1)
    assert np.abs(found[0] - lab[0]).max() < 1
    # The same hue, no more colour, and where that is little all of it.
    turned = (found[1:] * lab[1:]).sum(0) / np.maximum(np.hypot(*found[1:]) * np.hypot(*lab[1:]), 1e-6)
    assert np.median(turned) > 0.999 and (np.hypot(*found[1:]) < np.hypot(*lab[1:]) + 3).all()
    pale = join_lab(lab[0] / 50 - 1, 0.01 * lab[1:])
    np.testing.assert_allclose(rgb2lab((pale.transpose(1, 2, 0) + 1) / 2)[..., 1:], 0.01 * lab[1:].transpose(1, 2, 0),
                               atol=0.6)


def test_a_guided_enlargement_follows_the_guide():
    rng = np.random.default_rng(0)
    guide = gaussian_filter(rng.standard_normal((48, 64)), 1.5).astype(np.float32)
    small = resize(guide[None, None], 12, 16)[0, 0]
    values = rng.standard_normal((2, 12, 16)).astype(np.float32)
    plain = np.stack([cv2.resize(value, (64, 48), interpolation=cv2.INTER_CUBIC) for value in values])
    # A guide without detail adds nothing.
    np.testing.assert_allclose(guided_upsample(values, 0 * small + 0.3, 0 * guide + 0.3), plain, atol=1e-5)
    # What is linear in the guide comes back as that, to the last detail.
    linear = np.stack([3 * small - 1, 0.5 - 2 * small])
    made = guided_upsample(linear, small, guide, epsilon=1e-9)
    np.testing.assert_allclose(made, np.stack([3 * guide - 1, 0.5 - 2 * guide]), atol=2e-3)
    # With the usual epsilon it comes nearer to an edge than cubics do.
    edge = np.where(np.arange(64) < 30, np.float32(-0.8), np.float32(0.8)) * np.ones((48, 1), np.float32)
    coarse = resize(edge[None, None], 12, 16)[0, 0]
    errors = [np.abs(colour - edge).mean() for colour in (guided_upsample(coarse[None], coarse, edge)[0],
                                                          cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC))]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("gray", ["luma", "lightness"])
def test_a_large_photo_is_coloured_small_and_keeps_its_gray(gray):
    task, asked = Colorization(gray=gray), Request({}, 16, None)
    assert [hole.shape for hole in task.holes(48, 64, asked, None)] == [(1, 16, 22)]
    seen = []

    def run(pictures):
        seen.append(pictures.shape)
        reddish = np.repeat(task.source(pictures[0])[None], 3, 0) + np.float32([0.3, -0.2, -0.2])[:, None, None]
        return np.clip(reddish, -1, 1).astype(np.float32)

    made = task.restore(Y_0[None], asked, run)
    assert seen == [(1, 3, 16, 22)] and made.shape == (3, *Y_0.shape) and np.abs(made).max() <= 1
    for y in made:
        gray_of = [rgb2lab((x.transpose(1, 2, 0) + 1) / 2)[..., 0] for x in (Y_0, y)] if gray == "lightness" else \
            [127.5 * np.tensordot([0.299, 0.587, 0.114], x, 1) for x in (Y_0, y)]
        assert np.abs(gray_of[0] - gray_of[1]).max() < (1 if gray == "lightness" else 0.01)
        assert (y[0] - y[1]).mean() > 0.2
    # In tiles, or where it is no larger than in training, the chain is of its own size.
    for request in (Request({}, 16, None, True), Request({}, 48, None)):
        assert task.holes(48, 64, request, None)[0].shape == (1, 48, 64)
    own = task.restore(Y_0[None], Request({}, 48, None), lambda pictures: pictures)
    np.testing.assert_allclose(own[0], Y_0, atol=0 if gray == "luma" else 0.02)


def test_a_photos_longer_side_keeps_its_share():
    for height, width, size in ((520, 800, (64, 96)), (800, 520, (96, 64)), (3000, 3000, (64, 64)),
                                (65, 4000, (64, 3936)), (64, 200, (64, 200)), (40, 50, (40, 50))):
        assert working_size(height, width, Request({}, 64, None)) == size


# What a task is


@pytest.mark.parametrize("name", ["inpainting", "uncropping", "super_resolution", "denoising", "deblurring",
                                  "unconditional"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_tasks_take_any_channels_each_as_if_it_were_alone(name, channels):
    y_0 = np.random.default_rng(0).uniform(-1, 1, (channels, 24, 32)).astype(np.float32)
    task = TASKS[name](**{"fill": "smooth"} if name in ("inpainting", "uncropping") else {})
    cond, mask = task.pair(y_0, np.random.default_rng(1))
    if cond is None:
        return
    assert cond.shape == y_0.shape and cond.dtype == np.float32 and np.abs(cond).max() <= 1
    assert mask is None or mask.shape == (1, 24, 32)
    if name != "denoising":  # whose noise is drawn for all of them
        first, _ = task.pair(y_0[:1], np.random.default_rng(1))
        np.testing.assert_allclose(first, cond[:1], atol=1e-6)


@pytest.mark.parametrize("task, options, message", [
    (JpegRestoration, {"quality": (30, 5)}, "quality must be two numbers, the smaller first"),
    (JpegRestoration, {"quality": (0, 5)}, "quality must be at least 1 and at most 100"),
    (JpegRestoration, {"quality": (5, 101)}, "quality must be at least 1 and at most 100"),
    (SuperResolution, {"scales": (4, 1)}, "scales must be at least 2"),
    (SuperResolution, {"scales": ()}, "scales must name at least one"),
    (Deblurring, {"sigma": (0.0, 1.0)}, "sigma must be above 0"),
    (Denoising, {"weight": 0.0}, "weight must be above 0"),
    (TASKS["paired"], {"recolor": 0.5}, "recolor would change the target"),
])
def test_options_are_checked_by_what_the_task_declares(task, options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_a_name_is_taken_once():
    with pytest.raises(UserError, match="there is a task denoising already"):
        type("Other", (Task,), {"name": "denoising", "__module__": __name__})
    with pytest.raises(UserError, match="asks for another scale than super_resolution"):
        type("Other", (Task,), {"name": "other", "asks": (Ask("scale", "in metres", float),), "__module__": __name__})
    assert "other" not in TASKS


@pytest.mark.parametrize("ask, good, bad", [
    (Ask("n", "", int, least=2, most=5), [2, 5], [1, 6, 2.0, True, "3"]),
    (Ask("x", "", float, least=0), [0, 0.5], [-1, float("nan"), "a", False]),
    (Ask("k", "", choices=("a", "b")), ["a"], ["c", 1]),
])
def test_asks_take_what_is_of_their_type_and_in_their_range(ask, good, bad):
    for value in good:
        ask.check(value)
    for value in bad:
        with pytest.raises(UserError, match=f"{ask.name} must be "):
            ask.check(value)
