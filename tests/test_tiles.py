"""Pictures larger than the training size, restored in tiles."""

import dataclasses
import sys
import tracemalloc

import numpy as np
import pytest
from mindspore import Tensor, nn
from PIL import Image

import palette_ms.sample
from palette_ms import Palette, chains, errors, runtime
from palette_ms.checkpoint import build_unet
from palette_ms.config import config_from_dict
from palette_ms.diffusion.samplers import DDPMSampler
from palette_ms.diffusion.schedule import make_beta_schedule
from palette_ms.diffusion.tiles import TiledUNet
from palette_ms.errors import UserError
from palette_ms.tasks.denoising import Denoising
from palette_ms.tasks.old_photo import OldPhoto
from palette_ms.unet.cost import attention_bytes

SIZE = 16  # of training
HEIGHT, WIDTH = 48, 80
TIMES = np.ones(2, np.float32)
CONFIG = config_from_dict({
    "model": {"base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]},
    "diffusion": {"prediction": "x0", "test_schedule": {"num_steps": 3, "start": 0.1, "end": 0.5}},
    "tasks": [{"name": name} for name in ("colorization", "inpainting", "uncropping", "denoising")],
    "data": {"image_size": SIZE}}, "test")


def smooth_random_unet():
    """Random weights everywhere, but the convolutions blur: what it makes is smooth inside of a tile. Normalisation
    and attention run over all of a tile, and its edges are padded, so that tiles differ: with this seed by much."""
    unet, rng = build_unet(CONFIG.model), np.random.default_rng(4)
    for parameter in unet.get_parameters():
        shape = parameter.shape
        value = rng.standard_normal((*shape[:2], 1, 1) if len(shape) == 4 else shape, np.float32)
        if len(shape) > 1:
            value = value / np.sqrt(shape[1]) / np.prod(shape[2:])
        parameter.set_data(Tensor(np.broadcast_to(value, shape).astype(np.float32)))
    return unet


@pytest.fixture(scope="module")
def palette():
    runtime.setup("cpu")
    return Palette(smooth_random_unet(), CONFIG, pictures=10**6)


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.stack([np.sin(x / 9 + y / 14), np.cos(x / 17 - y / 11), np.sin(y / 8)], 2)
    return (128 + 60 * waves + rng.normal(0, 4, waves.shape)).clip(0, 255).astype(np.uint8)


class Bar:
    """As `tqdm`, so far as it is used."""

    total = done = 0

    def reset(self, total):
        self.total, self.done = total, 0

    def update(self, n):
        self.done += n


def array(images):
    image, = images
    return np.asarray(image)


def everywhere(height, width):
    return np.ones((1, height, width), np.float32)


# Tiles


@pytest.mark.parametrize("height, width, tile, overlap, multiple", [
    (48, 80, 16, None, 2), (48, 48, 16, 0, 8), (40, 72, 32, 24, 8), (64, 8, 16, 4, 4), (18, 34, 16, 15, 1),
    (192, 256, 64, 16, 8), (66, 66, 64, 5, 2), (16, 16, 16, None, 4), (24, 32, 8, None, 8), (8, 12, 16, None, 4)])
def test_tiles_cover_the_picture_with_weights_that_sum_to_one(height, width, tile, overlap, multiple):
    tiled = TiledUNet(None, everywhere(height, width), multiple, tile, overlap)
    total = np.zeros((height, width))
    for place, weight in tiled.tiles:
        assert weight.shape == total[place].shape == (min(tile, height), min(tile, width)) and weight.min() > 0
        total[place] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)  # float32
    for axis, side in ((1, height), (2, width)):
        spans = sorted({(place[axis].start, place[axis].stop) for place, _ in tiled.tiles})
        assert spans[0][0] == 0 and spans[-1][1] == side
        assert all(start % multiple == 0 for start, _ in spans)
        least = min(tile // 4, tile - multiple) if overlap is None else overlap
        assert all(end - start >= least for (_, end), (start, _) in zip(spans, spans[1:]))
        stride = (tile - least) // multiple * multiple
        assert len(spans) == 1 + np.ceil(max(0, side - tile) / stride)  # no more than needed


def test_weights_fade_to_nothing_at_a_tiles_border():
    place, weight = TiledUNet(None, everywhere(160, 160), 8, 64, 16).tiles[4]
    assert place == np.s_[..., 48:112, 48:112]  # the one in the middle of nine
    assert max(weight[0].max(), weight[-1].max(), weight[:, 0].max(), weight[:, -1].max()) < 0.01
    assert np.abs(np.diff(weight, axis=0)).max() < 2 / 16  # a straight ramp over the overlap: 1/16


def test_a_network_that_looks_at_single_pixels_is_not_changed_by_tiling():
    class Pixelwise(nn.Cell):
        def construct(self, x, time):
            return 0.5 * x[:, :3] - x[:, 3:] * x[:, :3]

    rng = np.random.default_rng(0)
    cond, y_T = rng.standard_normal((2, 2, 3, 20, 36), np.float32)
    betas = make_beta_schedule("linear", 4, 0.1, 0.5)
    whole, tiled = (np.asarray(DDPMSampler(unet, betas)(cond, y_T, 5))
                    for unet in (Pixelwise(), TiledUNet(Pixelwise(), everywhere(20, 36), 4, 8)))
    np.testing.assert_allclose(tiled, whole, atol=1e-5)  # weights and products rounded to float32


def test_further_channels_are_blended_too():
    def unet(x, time):
        return np.concatenate([x, np.ones_like(x)], 1)

    x = np.random.default_rng(0).standard_normal((2, 3, 12, 20), np.float32)
    output = TiledUNet(unet, everywhere(12, 20), 2, 8, 3)(x, TIMES)
    np.testing.assert_allclose(output, np.concatenate([x, np.ones_like(x)], 1), atol=1e-5)


def test_tiles_without_a_pixel_to_make_are_left_out_and_change_nothing(palette):
    hole = np.zeros((1, HEIGHT, WIDTH), np.float32)
    hole[0, 20:30, 30:45] = 1
    rng = np.random.default_rng(0)
    cond, y_0, noise = rng.standard_normal((3, 1, 3, HEIGHT, WIDTH), np.float32)
    results, calls = [], []
    for needed in (hole, np.ones_like(hole)):
        counted = []
        unet = TiledUNet(palette.unet, needed, 2, SIZE, progress=counted.append)
        chain = DDPMSampler(unet, make_beta_schedule("linear", 2, 0.1, 0.5), prediction="x0")
        results.append(chain(cond, hole * noise + (1 - hole) * y_0, 0, hole[None], y_0))
        calls.append(len(counted))
        assert len(counted) == 2 * unet.num_tiles
    np.testing.assert_array_equal(results[0], results[1])
    assert calls[0] < calls[1] / 2
    assert (results[0] != y_0)[:, :, hole[0] > 0].mean() > 0.9


# Pictures


def steps_between_pixels(picture, borders, axis):
    """Mean absolute difference of neighbouring pixels at each line between network patches along an axis, (K,), and
    which of these lines are `borders`. Other lines run through 2×2 patches of one value that the network doubled."""
    steps = np.abs(np.diff(picture.astype(float), axis=axis)).mean((1 - axis, 2))[1::2]
    return steps, np.isin(np.arange(2, picture.shape[axis], 2), borders)


def test_there_are_no_seams_where_tiles_meet(palette, photo):
    tiled = array(palette.restore(photo, tile=SIZE))
    places = [place for place, _ in TiledUNet(None, everywhere(HEIGHT, WIDTH), 2, SIZE).tiles]
    touching, apart = array(palette.restore(photo, tile=SIZE, overlap=0)), np.zeros_like(photo)
    for number, (top, left) in enumerate(np.ndindex(HEIGHT // SIZE, WIDTH // SIZE)):
        place = np.s_[SIZE * top:SIZE * (top + 1), SIZE * left:SIZE * (left + 1)]
        apart[place] = array(palette.restore(photo[place], seed=number))
    for axis in (0, 1):
        borders = sorted({end for place in places for end in (place[axis + 1].start, place[axis + 1].stop)})
        steps, at = steps_between_pixels(tiled, borders, axis)
        # The lines elsewhere tell how much a mean over as many lines varies by chance: two of its standard errors.
        chance = 2 * steps[~at].std() / np.sqrt(at.sum())
        assert at.sum() >= 6 and steps[at].mean() < steps[~at].mean() + chance
        # The same measure does see the seams of tiles that do not overlap, or were each restored for themselves.
        for picture in (touching, apart):
            steps, at = steps_between_pixels(picture, range(0, WIDTH, SIZE), axis)
            assert steps[at].mean() > 1.5 * steps[~at].mean()


@pytest.mark.parametrize("height, width", [(48, 48), (33, 21), (17, 16)])
def test_pictures_of_any_size_keep_it(palette, photo, height, width):
    image = array(palette.restore(photo[:height, :width], tile=SIZE))
    assert image.shape == (height, width, 3)


def test_one_tile_is_the_whole_picture(palette, photo):
    for picture in (photo[:16, :16], photo[:13, :15]):
        whole = array(palette.restore(picture))
        for tile in (16, 64):
            np.testing.assert_array_equal(array(palette.restore(picture, tile=tile)), whole)


def test_the_seed_decides_a_tiled_picture(palette, photo):
    first, again, other = (array(palette.restore(photo, tile=SIZE, overlap=2, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.1


def test_a_hole_across_tiles_is_filled_and_the_rest_kept(palette, photo):
    hole = np.zeros(photo.shape[:2], bool)
    hole[10:40, 30:34] = True
    bar = Bar()
    image = array(palette.restore(photo, "inpainting", hole, tile=SIZE, progress=bar))
    np.testing.assert_array_equal(image[~hole], photo[~hole])
    assert (image[hole] != photo[hole]).mean() > 0.9
    assert bar.done == bar.total == 3 * TiledUNet(None, hole[None], 2, SIZE).num_tiles


def test_a_picture_is_extended_in_tiles(palette, photo):
    bar = Bar()
    image = array(palette.restore(photo[:32, :32], "uncropping", extend={"right": 10, "top": 3}, tile=SIZE, overlap=0,
                                  progress=bar))
    np.testing.assert_array_equal(image[3:, :32], photo[:32, :32])
    # Of three rows and three columns of tiles, the first row and the last column.
    assert image.shape == (35, 42, 3) and bar.done == bar.total == 3 * 5


def test_the_bar_reaches_its_total_without_tiles_too(palette, photo):
    bar = Bar()
    palette.restore(photo[:16, :16], steps=2, progress=bar)
    assert bar.done == bar.total == 2


def test_what_a_chain_has_made_so_far_is_shown(palette, photo):
    class Watching(Bar):
        def __init__(self):
            self.seen = []

        def preview(self, image):
            self.seen.append((self.done, np.asarray(image)))

    hole, bar = np.zeros((16, 16)), Watching()
    hole[4:9, 3:8] = 1
    made = array(palette.restore(photo[:16, :16], "inpainting", hole, steps=3, progress=bar))
    assert [done for done, _ in bar.seen] == [1, 2, 3]
    assert all((image[hole < 1] == photo[:16, :16][hole < 1]).all() for _, image in bar.seen)
    np.testing.assert_array_equal(bar.seen[-1][1], made)
    assert (bar.seen[0][1] != made).any()


def test_a_picture_whose_attention_is_too_large_is_tiled(palette, photo, monkeypatch, capsys):
    tiled = array(palette.restore(photo, "denoising", tile=SIZE))
    assert capsys.readouterr().err == ""
    limit = attention_bytes(CONFIG.model, HEIGHT, WIDTH)
    monkeypatch.setattr(chains, "ATTENTION_LIMIT", limit - 1)
    np.testing.assert_array_equal(array(palette.restore(photo, "denoising")), tiled)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("tiles of 16×16 pixels: ")
    palette.restore(photo[:16, :16], "denoising")
    assert capsys.readouterr().err == ""


class Echo:
    """A network that answers the source, whatever it is given beside it, and keeps the sizes that it was asked for."""

    def __init__(self):
        self.sizes = []

    def __call__(self, x, time):
        self.sizes.append(x.shape[2:])
        return x[:, :3]


def test_tiles_of_a_task_that_looks_far_are_as_large_as_they_may_be(photo, monkeypatch):
    config = dataclasses.replace(CONFIG, tasks=(OldPhoto(), Denoising()))
    palette, limit = Palette(lambda: None, config), attention_bytes(CONFIG.model, 2 * SIZE, 2 * SIZE)
    palette.chains.network = Echo()
    for allowed, task, side in ((limit, "old_photo", 2 * SIZE), (limit - 1, "old_photo", SIZE),
                                (limit, "denoising", SIZE)):
        monkeypatch.setattr(chains, "ATTENTION_LIMIT", allowed)
        palette.restore(photo, task, sampler="ddim", steps=1)
        assert set(palette.chains.network.sizes) == {(side, side)}
        palette.chains.network.sizes.clear()


@pytest.fixture
def echoing():
    palette = Palette(lambda: None, CONFIG, pictures=10**6)
    palette.chains.network = Echo()
    return palette


def test_a_picture_too_large_for_the_memory_is_made_in_bands_of_rows(echoing, photo, monkeypatch):
    tall, hole, bar = np.tile(photo, (5, 1, 1))[:-1], np.zeros((239, WIDTH)), Bar()
    hole[20:30, 10:70] = hole[230:, :40] = 1
    whole = array(echoing.restore(tall, "denoising"))
    assert echoing.chains.network.sizes == 3 * [(240, 80)]
    monkeypatch.setenv("PALETTE_MS_MAX_MEMORY", "2M")
    banded = Echo()
    echoing.chains.network, echoing.chains._denoisers = banded, {}
    # Wherever the bands lie, what they say adds up to the picture.
    np.testing.assert_array_equal(array(echoing.restore(tall, "denoising", progress=bar)), whole)
    np.testing.assert_array_equal(whole, tall)
    assert set(banded.sizes) == {(SIZE, SIZE)} and bar.done == bar.total == len(banded.sizes)
    # Bands without a hole are left alone.
    asked = len(banded.sizes)
    np.testing.assert_array_equal(array(echoing.restore(tall, "inpainting", hole, tile=SIZE))[hole < 1],
                                  tall[hole < 1])
    rows = [(0, 64), (44, 108), (88, 152), (132, 196), (176, 240)]  # of 64, over 16 and more, evenly
    calls = [3 * TiledUNet(None, np.pad(hole, ((0, 1), (0, 0)), "edge")[None, top:bottom], 2, SIZE).num_tiles
             for top, bottom in rows if hole[top:bottom].any()]
    assert len(calls) == 2 and len(banded.sizes) - asked == sum(calls)


def test_where_graphs_take_long_to_compile_few_sizes_are_given_and_tiles_in_one_number(palette, photo, monkeypatch):
    tiled = array(palette.restore(photo, "inpainting", "center", tile=SIZE))
    asked, network, bar = [], palette.unet, Bar()

    class Counted(nn.Cell):
        def construct(self, x, time):
            return network(x, time)

        def __call__(self, x, time):
            asked.append(x.shape)
            return network(x, time)

    slow = Palette(lambda: None, CONFIG, pictures=10**6)
    slow.chains.build = Counted
    monkeypatch.setattr(chains, "wants_few_graphs", lambda: True)
    np.testing.assert_array_equal(array(slow.restore(photo, "inpainting", "center", tile=SIZE, progress=bar)), tiled)
    assert set(asked) == {(8, 6, SIZE, SIZE)} and len(asked) == 3 * -(-bar.total // 3 // 8)  # at each of three steps
    sides = range(2, 1025)
    padded = [slow.chains._padded(side) for side in sides]
    assert all(side <= wide <= 1.25 * side + 2 and wide % 2 == 0 for side, wide in zip(sides, padded))
    assert len(set(padded)) <= 4 * 10  # of an octave
    assert slow.chains.pad(np.ones((1, 3, 90, 600))).shape == (1, 3, 96, 640)


@pytest.mark.parametrize("task", ["denoising", "colorization"])
def test_a_large_picture_takes_no_more_memory_than_was_allowed(echoing, task, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (1200, 1000, 3), np.uint8)
    monkeypatch.setenv("PALETTE_MS_MAX_MEMORY", "90M")
    tracemalloc.start()
    try:
        echoing.restore(picture, task, **({"tile": 64} if task == "denoising" else {}))
        assert tracemalloc.get_traced_memory()[1] < 90 * 2**20
    finally:
        tracemalloc.stop()
    monkeypatch.setenv("PALETTE_MS_MAX_MEMORY", "50M")
    with pytest.raises(UserError, match="1000×1200 pixels.*more than the 50 "):
        echoing.restore(picture, task)


def test_a_picture_that_would_take_the_network_too_much_memory_is_tiled(echoing, photo, capsys):
    echoing.chains.network.memory = lambda height, width: 2**50 * (height * width > SIZE**2)
    echoing.restore(photo, "denoising")
    assert set(echoing.chains.network.sizes) == {(SIZE, SIZE)}
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("tiles of 16×16 pixels: ")
    echoing.restore(photo[:16, :16], "denoising")
    assert capsys.readouterr().err == ""


def test_mistakes_about_tiles_are_told(palette, photo):
    for message, arguments in {
        "tile must be a multiple of 2 pixels, .* not 15": dict(tile=15), "not 0": dict(tile=0),
        "overlap must be from 0 to 14 pixels for tiles of 16, not 15": dict(tile=16, overlap=15),
        "not -1": dict(tile=16, overlap=-1), "name their side": dict(overlap=4),
    }.items():
        with pytest.raises(UserError, match=message):
            palette.restore(photo, **arguments)


def test_the_command_restores_in_tiles(palette, photo, tmp_path, monkeypatch, capsys):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    arguments = ["sample", "--ckpt", "any", "--input", "photo.png", "--output", "out", "--task", "colorization",
                 "--tile", "16", "--overlap"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Palette, "load", lambda *_: palette)
    monkeypatch.setattr(sys, "argv", [*arguments, "6"])
    errors.run(palette_ms.sample.main)
    made = np.asarray(Image.open(tmp_path / "out" / "photo.png"))
    np.testing.assert_array_equal(made, array(palette.restore(photo, sampler="dpmpp_2m", tile=SIZE, overlap=6)))
    monkeypatch.setattr(sys, "argv", [*arguments, "16"])
    with pytest.raises(SystemExit) as end:
        errors.run(palette_ms.sample.main)
    assert end.value.code == 2 and "error: overlap must be from 0 to 14" in capsys.readouterr().err
