"""Restoring by a prior: the released code's numbers, closed forms, other libraries."""

import json

import cv2
import mindspore as ms
import numpy as np
import pytest
from golden import DATA, load_arrays, relative_error
from mindspore import Tensor
from PIL import Image

from palette_ms import Palette, sample
from palette_ms.checkpoint import save_checkpoint
from palette_ms.data.forms import Arrays
from palette_ms.data.images import LUMA
from palette_ms.diffusion.cells import Update
from palette_ms.diffusion.samplers import Sampler, Sampling, create_sampler
from palette_ms.diffusion.solvers import ddpm
from palette_ms.errors import UserError
from palette_ms.priors.chain import REFERENCE, Guidance, GuidedChain, Guiding, Windows, guide
from palette_ms.priors.degradations import Bicubic, BlockMean, Blur, Composition, Gray, Known, Whole
from palette_ms.priors.jpeg import Jpeg
from palette_ms.priors.losses import colour_constancy, exposure, smoothness
from palette_ms.priors.methods import diffpir_calls
from palette_ms.priors.restorations import EXPOSURES, MOTION, aligned, kernels, read_kernel
from palette_ms.priors.restore import Enlarged, PriorRestorer
from palette_ms.tasks.deblurring import motion_kernel
from palette_ms.tasks.jpeg_restoration import jpeg
from palette_ms.tasks.super_resolution import bicubic
from palette_ms.torch_weights.conversion import convert


@pytest.fixture(scope="module")
def arrays():
    return load_arrays("gdp.npz")


@pytest.fixture(scope="module")
def adm(arrays, tmp_path_factory):
    """guided-diffusion's unconditional network, converted and loaded."""
    folder = tmp_path_factory.mktemp("converted")
    (folder / "adm.json").write_text(str(arrays["config"]))
    converted = convert(DATA / "adm_unet.pth", "adm", folder / "adm.json")
    save_checkpoint(folder / "adm.safetensors", converted.config, weights=converted.weights)
    return Palette.load(folder / "adm.safetensors", "cpu", runtime="mindspore")


# Against the released code


class FixedNoise:
    def __init__(self, noise):
        self.noises = iter(noise[1:])

    def draw(self):
        return next(self.noises)


@pytest.fixture
def restored(adm, arrays, monkeypatch):
    """Runs a case of the reference numbers; returns its picture and chain."""
    def run(name, guidance, given, learned=(None, None)):
        monkeypatch.setattr("palette_ms.diffusion.samplers.NoiseStream", lambda *_: FixedNoise(arrays[f"{name}_noise"]))
        diffusion = adm.config.diffusion
        sampling = Sampling("ddpm", len(json.loads(str(arrays["timesteps"]))))
        guided = GuidedChain(adm.unet, Update(diffusion.clip, False, True, False), guidance)
        guided.given, guided.learned = tuple(map(Tensor, given)), learned
        sampler = guide(create_sampler(None, diffusion, sampling), guided)
        return sampler(None, arrays[f"{name}_noise"][0]), guided
    return run


@pytest.mark.parametrize("name", ["sr4", "inpaint", "color", "blur"])
def test_known_degradations_give_the_released_codes_numbers(name, arrays, restored):
    given, pixels = arrays[f"{name}_given"], (REFERENCE / 32) ** 2
    degradation, given, scale, quality = {
        "sr4": lambda: (BlockMean(4), given[:, :, ::given.shape[2] // 8, ::given.shape[3] // 8], 2000, ()),
        "inpaint": lambda: (Known(arrays["inpaint_known"]), given * arrays["inpaint_known"], 4000, ()),
        "color": lambda: (Gray([1 / 3] * 3), given[:, :1], 6000, (("colour", 500 * pixels),)),
        "blur": lambda: (Blur(arrays["blur_kernel"], valid=True), given, 6000, ()),
    }[name]()
    guidance = Guidance(Guiding(scale=scale * pixels, quality=quality), [degradation])
    picture, _ = restored(name, guidance, [given])
    assert relative_error(picture, arrays[name]) < 1e-3


@pytest.mark.parametrize("name, times", [("lowlight", 2), ("hdr", 1)])
def test_blind_degradations_in_patches_give_the_released_codes_numbers(name, times, arrays, restored):
    given, pixels = arrays[f"{name}_given"], (REFERENCE / 16) ** 2
    guiding = Guiding(scale=2000 * times * pixels, mask_rate=pixels)
    guidance = Guidance(guiding, [Whole() for _ in given], len(given), Windows(24, 32, 16, 8))
    learned = Tensor(arrays[f"{name}_factor0"].reshape(1, 1, 1, 1)), Tensor(arrays[f"{name}_mask0"][None, None])
    picture, chain = restored(name, guidance, given, learned)
    assert relative_error(picture, arrays[name]) < 1e-3
    assert relative_error(chain.learned[0], arrays[f"{name}_factor"].reshape(1, 1, 1, 1)) < 1e-3
    assert relative_error(chain.learned[1], arrays[f"{name}_mask"][None, None]) < 1e-3


def test_losses_give_the_released_codes_numbers(arrays):
    picture = Tensor(arrays["loss_picture"])
    assert abs(float(exposure(picture)[0]) - arrays["loss_exposure"]) < 1e-6
    assert abs(float(colour_constancy(picture)[0]) - arrays["loss_colour"]) < 1e-6
    assert abs(float(smoothness(Tensor(arrays["loss_mask"][None, None]))[0]) - arrays["loss_smoothness"]) < 1e-6


# Degradations

KERNEL = motion_kernel(4, 0.5)


@pytest.fixture
def eager(graph_mode):
    """Operators are compiled within chains elsewhere; here each of many would be compiled alone."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


def degradations(rng):
    known = (rng.random((1, 1, 12, 16)) > 0.4).astype(np.float32)
    return [Whole(), BlockMean(4), Bicubic(2, 12, 16), Blur(KERNEL), Blur(KERNEL, valid=True), Known(known), Gray(),
            Composition(Blur(KERNEL), BlockMean(2), Gray()), Composition(Enlarged(2), Gray())]


def test_degradations_are_those_of_other_libraries_and_of_the_tasks(eager):
    x = np.random.default_rng(0).standard_normal((3, 12, 16)).astype(np.float32) / 4
    expected = {
        BlockMean(4): np.stack([cv2.resize(channel, (4, 3), interpolation=cv2.INTER_AREA) for channel in x]),
        Bicubic(2, 12, 16): bicubic(x, 6, 8),
        Blur(KERNEL): np.stack([cv2.filter2D(channel, -1, KERNEL, borderType=cv2.BORDER_REFLECT_101) for channel in x]),
        Gray(): np.tensordot(LUMA, x, 1)[None],
    }
    for degradation, y in expected.items():
        assert np.abs(degradation.degrade(x[None])[0] - y).max() < 1e-6


def matrix(degradation, shape):
    """A linear degradation of a picture (C, h, w) as (values of y, values of x)."""
    basis = np.eye(int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
    return degradation.degrade(basis).reshape(len(basis), -1).T.astype(np.float64)


def test_adjoints_and_fits_are_those_of_the_matrices(eager):
    rng = np.random.default_rng(1)
    for degradation in degradations(rng):
        shape = (3, 6, 8) if isinstance(degradation, Composition) and isinstance(degradation.parts[0], Enlarged) else \
            (3, 12, 16)
        a, x = matrix(degradation, shape), rng.standard_normal((1, *shape)).astype(np.float32)
        like = degradation.degrade(x)
        y = rng.standard_normal(like.shape).astype(np.float32)
        adjoint = degradation.adjoint(Tensor(y), Tensor(x)).asnumpy()
        assert np.abs(adjoint.ravel() - a.T @ y.ravel()).max() < 1e-5
        if degradation.gain:  # all singular values are that one, or 0
            values = np.linalg.svd(a, compute_uv=False)
            assert np.abs(values[values > 1e-6] - degradation.gain).max() < 1e-5
        damping = 0.0 if degradation.gain else 0.3
        fitted = degradation.fit(Tensor(x), Tensor(y), damping).asnumpy().ravel()
        inverse = np.linalg.pinv(a) if degradation.gain else a.T @ np.linalg.inv(a @ a.T + damping * np.eye(len(a)))
        assert np.abs(fitted - x.ravel() - inverse @ (y.ravel() - a @ x.ravel())).max() < 1e-3


def test_jpeg_is_about_the_encoders_and_is_fitted_by_projection(eager):
    rng = np.random.default_rng(6)
    gray, colours = (cv2.GaussianBlur(rng.standard_normal((48, 64, c)).astype(np.float32), (0, 0), sigma)
                     for c, sigma in ((1, 2), (3, 6)))
    x = (2 * gray[..., None] + colours * 3).transpose(2, 0, 1)
    x *= 0.9 / np.abs(x).max()
    for quality in (5, 30):
        degradation = Jpeg(quality)
        y = degradation.degrade(x[None])
        theirs = jpeg(x, quality)
        # About a grey level: the encoder takes and gives whole ones.
        assert np.abs(np.tensordot(LUMA, y[0] - theirs, 1)).mean() < 1 / 127.5
        assert np.abs(y[0] - theirs).mean() < 0.5 * np.abs(theirs - x).mean()  # the encoder interpolates the chroma
        blurred = cv2.blur(x.transpose(1, 2, 0), (5, 5)).transpose(2, 0, 1)[None]
        fitted = degradation.fit(Tensor(blurred), Tensor(y)).asnumpy()
        assert np.abs(degradation.degrade(fitted) - y).mean() < 0.5 * np.abs(degradation.degrade(blurred) - y).mean()


def test_windows_sewn_together_are_the_picture(eager):
    x = np.random.default_rng(2).standard_normal((2, 3, 20, 28)).astype(np.float32)
    windows = Windows(20, 28, 12, 8)
    cut = windows.cut(Tensor(x))
    assert np.array_equal(cut.asnumpy()[-1], x[1, :, 8:, 16:])
    assert np.abs(windows.sew(cut).asnumpy() - x).max() < 1e-6


def test_exposures_are_brought_to_lie_over_each_other():
    rng = np.random.default_rng(3)
    scene = cv2.GaussianBlur(rng.random((160, 200, 3)).astype(np.float32), (0, 0), 3)
    scene = np.uint8(255 * (scene - scene.min()) / np.ptp(scene))
    still, moved = scene[10:140, 10:180], np.uint8(scene[15:145, 4:174] * 0.5)
    back, = aligned([moved], still)
    inside = np.s_[10:-10, 10:-10]
    assert np.abs(back[inside] - still[inside] * 0.5).mean() < 1.5 < np.abs(moved - still * 0.5)[inside].mean() / 4


# Against the posterior in closed form: independent pixels N(0.2, 0.25), some of them given with noise

MEAN, VARIANCE, SIGMA = 0.2, 0.25, 0.3
GAMMAS = np.cumprod(1 - np.linspace(1e-3, 0.15, 80))[::-1]


def white_denoiser(y_t, gamma):
    g = gamma.reshape(-1, 1, 1, 1)
    gain = np.sqrt(g) * VARIANCE / (g * VARIANCE + 1 - g)
    return MEAN + gain * (y_t - np.sqrt(g) * MEAN)


def pixels(guiding, y):
    """What is made of the given and of the other pixels of pictures (64, 1, 8, 8)."""
    known = np.zeros((1, 1, 8, 8), np.float32)
    known[..., ::2] = 1
    calls = diffpir_calls(GAMMAS, 0.3) if guiding.prior == "diffpir" else ddpm(GAMMAS)
    chain = GuidedChain(white_denoiser, Update(False, False, False, False), Guidance(guiding, [Known(known)]))
    chain.given = (Tensor(np.full((64, 1, 8, 8), y, np.float32) * known),)
    sampler = guide(Sampler(None, GAMMAS, calls, "x0"), chain)
    made = sampler(None, np.random.default_rng(4).standard_normal((64, 1, 8, 8), np.float32)).asnumpy()
    return made[..., ::2], made[..., 1::2]


def test_what_is_not_given_stays_as_the_prior_has_it_and_the_rest_goes_to_the_posterior():
    y = 1.0
    precision = 1 / VARIANCE + 1 / SIGMA**2
    mean = (MEAN / VARIANCE + y / SIGMA**2) / precision
    for guiding in (Guiding("ddnm", sigma=SIGMA), Guiding("diffpir", sigma=SIGMA, strength=1.0)):
        given, others = pixels(guiding, y)
        assert abs(others.mean() - MEAN) < 0.06 and 0.7 < others.var() / VARIANCE < 1.15
        # Neither is the posterior itself (docs/priors.md), but both pass the prior's mean by far, and not y.
        assert abs(given.mean() - mean) < 0.35 * (y - MEAN) and given.var() < 0.7 * VARIANCE


def test_several_given_pictures_count_each_through_its_own_degradation():
    rng, s = np.random.default_rng(7), 3e4
    known = (rng.random((1, 1, 8, 8)) > 0.5).astype(np.float32)
    small, some = rng.standard_normal((1, 3, 2, 2), np.float32), rng.standard_normal((1, 3, 8, 8), np.float32) * known
    guidance = Guidance(Guiding(scale=s), [BlockMean(4), Known(known)])
    chain = GuidedChain(lambda y, gamma: 0 * y, Update(False, False, False, False), guidance)
    chain.given = Tensor(small), Tensor(some)
    sampler = guide(Sampler(None, GAMMAS[-1:], ddpm(GAMMAS[-1:]), "x0"), chain)
    made = sampler(None, np.zeros((1, 3, 8, 8), np.float32)).asnumpy()
    # ŷ₀ = 0 and the last step's mean is ŷ₀: what is left is the shift, −s d/dx mean(((D(x) − y)/2)²), by its pixels.
    enlarged = small.repeat(4, 2).repeat(4, 3) / 16
    expected = s * 8 * 8 / 256**2 * (enlarged / small.size + some / some.size) / 2
    assert np.abs(made - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_map_that_fits_is_moved_by_its_smoothness_alone():
    rng = np.random.default_rng(8)
    x, mask = rng.random((1, 3, 8, 8), np.float32), rng.random((1, 1, 8, 8), np.float32)
    guiding = Guiding(scale=1.0, smoothness=5.0, mask_rate=100.0)
    chain = GuidedChain(lambda y, gamma: x, Update(False, False, False, False), Guidance(guiding, [Whole()], 1))
    chain.given = (Tensor(2 * (0.7 * (x + 1) / 2 + mask) - 1),)
    chain.learned = Tensor(np.full((1, 1, 1, 1), 0.7, np.float32)), Tensor(mask)
    guide(Sampler(None, GAMMAS[-1:], ddpm(GAMMAS[-1:]), "x0"), chain)(None, np.zeros_like(x))

    def unevenness(m):
        return 2 * (np.square(np.diff(m, axis=0)).mean() + np.square(np.diff(m, axis=1)).mean())

    basis = np.eye(64).reshape(64, 8, 8) / 1000
    m = mask[0, 0].astype(np.float64)
    slope = np.reshape([unevenness(m + one) - unevenness(m - one) for one in basis], (8, 8)) * 500
    expected = m - 100 * 5 * 64 / 256**2 * slope
    assert np.abs(chain.learned[1].asnumpy()[0, 0] - expected).max() < 1e-5


# The command's and restore's answers


@pytest.fixture
def picture():
    return np.random.default_rng(5).integers(0, 255, (32, 32, 3), np.uint8)


@pytest.mark.parametrize("task, options, message", [
    (None, {}, "name a task, one of super_resolution"),
    ("uncropping", {}, "not uncropping"),
    ("deblurring", {}, "needs blur or motion or kernel"),
    ("deblurring", {"kernel": np.ones((4, 4))}, "odd side, not 4×4"),
    ("deblurring", {"kernel": np.zeros((3, 3))}, "sum above 0"),
    ("inpainting", {}, "needs mask"),
    ("inpainting", {"mask": np.full((32, 32), 255, np.uint8)}, "no pixel known"),
    ("inpainting", {"mask": np.full((16, 32), 255, np.uint8)}, "must be the same"),
    ("hdr", {"exposures": [np.zeros((16, 32, 3), np.uint8)]}, "exposures must have one size"),
    ("hdr", {"exposures": []}, "from 1 to 8 of them, not 0"),
    ("denoising", {"tile": 8.5}, "whole numbers"),
    ("low_light", {"prior": "ddnm"}, "needs a degradation that is known"),
    ("denoising", {"prior": "best"}, "prior must be one of gdp"),
    ("denoising", {"guidance_scale": -1}, "guidance_scale must be a number"),
    ("jpeg_restoration", {"jpeg_quality": 10, "prior": "gdp"}, "has no gradient"),
    ("denoising", {"scale": 2}, "takes no scale"),
    ("denoising", {"detail": 0.5}, "detail is for models"),
    ("denoising", {"guidance": 2.0}, "guidance_scale"),
    ("denoising", {"tile": 17}, "multiple of"),
    ("denoising", {"overlap": 8}, "overlap is for tiles"),
    ("denoising", {"dynamic_threshold": 0.9}, "dynamic_threshold is not for"),
    ("denoising", {"noise": 20.0, "prior": "gdp"}, "noise is for --prior ddnm and diffpir"),
    ("denoising", {"noise": 20.0, "guidance_scale": 100.0}, "guidance_scale is for --prior gdp"),
    ("denoising", {"zeta": 1.0}, "zeta is for --prior dps and diffpir"),
    ("denoising", {"zeta": 2.0, "prior": "diffpir"}, "from 0 to 1"),
    ("denoising", {"smoothness": 1.0}, "smoothness is of the map M"),
    ("low_light", {"noise": 20.0}, "takes no noise"),
    ("deblurring", {"motion": (0.5, 0)}, "pixels from 1 to 128 and degrees"),
    ("deblurring", {"kernel": np.array([["a"]])}, "must be numbers"),
    ("super_resolution", {"scale": 1000}, "that may be used"),
    ("deblurring", {"kernel": np.ones((3, 3)), "prior": "ddnm", "noise": 20.0}, "--prior diffpir"),
])
def test_mistakes_are_told(task, options, message, adm, picture):
    with pytest.raises(UserError, match=message) as error:
        adm.restore(picture, task=task, steps=2, **options)
    assert "\n" not in str(error.value)


def test_mistakes_of_numbers_files_and_forms_are_told(adm, picture, tmp_path):
    with pytest.raises(UserError, match="steps must be from 1 on"):
        adm.restore(picture, task="denoising", steps=0)
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "several.npz", np.ones((3, 3)))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    for name in ("empty", "several", "missing"):
        with pytest.raises(UserError, match=f"cannot read kernel .*{name}.npy: "):
            adm.restore(picture, task="deblurring", kernel=tmp_path / f"{name}.npy", steps=2)
    restorer = PriorRestorer(adm.chains, Arrays(1, ((0.0, 255.0),)))
    for task, options in (("colorization", {}), ("jpeg_restoration", {"jpeg_quality": 20}),
                          ("denoising", {"colour": 1.0})):
        with pytest.raises(UserError, match="for models of photos"):
            restorer.restore(picture[..., :1], task, Sampling(steps=2), range(1), **options)


@pytest.mark.parametrize("options, message", [
    (["--guidance-scale", "3"], "guidance_scale: for models that were not trained"),
    (["--flat"], "flat: for models"),
    (["--kernel", "k.npy", "--motion", "9,45"], "kernel, motion: for models"),
])
def test_a_model_that_was_trained_to_restore_takes_no_options_of_priors(options, message, monkeypatch, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("sys.argv", ["sample", "--ckpt", "photo", "--task", "denoising", "--device", "CPU", *options,
                                     "--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "made")])
    with pytest.raises(UserError, match=message):
        sample.main()
    assert not (tmp_path / "made").exists()


def test_files_of_the_command_are_told_apart():
    assert EXPOSURES.parse("a.png,,b.png") == ("a.png", "b.png")
    assert MOTION.parse("9,-45") == (9.0, -45.0)
    for ask, text in ((EXPOSURES, ","), (MOTION, "9,up")):
        with pytest.raises(UserError, match=ask.name):
            ask.parse(text)


def test_a_kernels_sum_is_told_where_it_is_taken(adm, picture, capsys):
    assert np.allclose(np.sum(read_kernel(np.ones((3, 3), np.int64))), 9)
    assert "have the sum 9: they are divided" in capsys.readouterr().err
    read_kernel(np.full((3, 3), 1 / 9))
    assert not capsys.readouterr().err


def test_motion_goes_counterclockwise_from_the_right():
    kernel, = kernels({"motion": (7, 45)})
    assert kernel[:4, 4:].sum() > 0.3 and kernel[4:, :4].sum() > 0.3 and kernel[:3, :3].sum() == 0
    line, = kernels({"motion": (5, 0)})
    assert (line[len(line) // 2, 1:-1] > 0.1).all() and np.isclose(line[len(line) // 2].sum(), 1)


def network(x, time):
    """One that says that there is no noise, at no cost."""
    return np.zeros((x.shape[0], 6, *x.shape[2:]), np.float32)


def test_known_pixels_come_back_and_another_mask_compiles_nothing(adm, picture, monkeypatch):
    monkeypatch.setattr(adm.chains, "network", network)
    restorer = PriorRestorer(adm.chains, adm.forms[1])
    monkeypatch.setattr(adm, "_prior", restorer)
    masks = [np.zeros((32, 30), np.uint8) for _ in range(2)]
    for corner, mask in zip((4, 12), masks):
        mask[corner:corner + 8, 4:20] = 255
    results = adm.restore([picture[:, :30]] * 2, task="inpainting", mask=masks, prior="ddnm", steps=2)
    for (made,), mask in zip(results, masks):
        assert made.size == (30, 32) and np.array_equal(np.asarray(made)[mask == 0], picture[:, :30][mask == 0])
        assert not np.array_equal(np.asarray(made)[mask > 0], picture[:, :30][mask > 0])
    chain, = restorer._compiled.values()
    assert len(chain.step.compile_cache) == 1


@pytest.mark.parametrize("prior", ["ddnm", "dps"])
def test_the_compilers_level_reaches_the_network_and_the_guided_step(adm, picture, monkeypatch, prior):
    monkeypatch.setattr(adm.chains, "jit_level", "O1")
    levels = []

    def compile_(cell, *args, **kwargs):
        levels.append(cell.jit_config_dict["jit_level"])
        raise InterruptedError

    monkeypatch.setattr(ms.nn.Cell, "compile", compile_)
    restorer = PriorRestorer(adm.chains, adm.forms[1])
    with pytest.raises(InterruptedError):
        restorer.restore(picture[:16, :16], "super_resolution", Sampling(steps=2), range(1), scale=2, prior=prior)
    chain, = restorer._compiled.values()
    assert levels == ["O1"] and chain.step.jit_config_dict["jit_level"] == "O1"


def test_a_large_dark_picture_is_made_small_first(adm, picture, monkeypatch):
    sizes = []

    def measured(x, time):
        sizes.append(x.shape)
        return network(x, time)

    monkeypatch.setattr(adm.chains, "network", measured)
    restorer = PriorRestorer(adm.chains, adm.forms[1])
    large = np.tile(picture // 4, (2, 2, 1))[:, :60]
    made, = restorer.restore(large, "low_light", Sampling(steps=2), range(1))
    assert made.size == (60, 64)
    assert sizes[:2] == [(1, 3, 32, 30)] * 2 and set(sizes[2:]) == {(8, 3, 32, 32)}  # the whole, then its windows
    small, whole = restorer._compiled.values()
    assert small.windows is None and whole.windows.shape == (64, 60) and len(whole.step.guidance.degradations) == 2


@pytest.fixture
def restorer(adm, monkeypatch):
    monkeypatch.setattr(adm.chains, "network", network)
    return PriorRestorer(adm.chains, adm.forms[1])


def test_pictures_of_several_sizes_keep_their_blocks_means(restorer, picture):
    """Both are made small by the same shape first, but by other factors."""
    for given in (picture, np.tile(picture, (2, 2, 1))):
        made, = restorer.restore(given, "super_resolution", Sampling(steps=2), range(1), scale=2, prior="ddnm")
        made = np.asarray(made, np.float64)
        means = made.reshape(len(given), 2, len(given), 2, 3).mean((1, 3))
        within = ((made > 0) & (made < 255)).reshape(len(given), 2, len(given), 2, 3).all((1, 3))  # none cut off
        assert within.mean() > 0.1 and np.abs(means - given)[within].max() <= 0.5


def test_what_starts_late_starts_from_the_picture_also_where_it_is_made_small_first(restorer):
    ramp = np.uint8(np.linspace(60, 200, 64))[None, :, None] + np.zeros((64, 1, 3), np.uint8)
    made, = restorer.restore(ramp, "denoising", Sampling(steps=2, strength=0.02), range(1), guidance_scale=1.0)
    assert np.abs(np.asarray(made, float) - ramp).mean() < 12  # noise of this level has a deviation of 5


def test_large_jpegs_are_made_whole_and_fit_the_file(restorer):
    across = np.linspace(-0.6, 0.6, 64, dtype=np.float32)
    y = jpeg(np.stack(np.broadcast_arrays(across, across[:, None], -across)), 30)
    given = np.uint8((y.transpose(1, 2, 0) + 1) * 127.5 + 0.5)
    made, = restorer.restore(given, "jpeg_restoration", Sampling(steps=2), range(1), jpeg_quality=30)
    chain, = restorer._compiled.values()
    assert chain.windows.shape == (64, 64)
    fitted = jpeg(np.asarray(made, np.float32).transpose(2, 0, 1) / 127.5 - 1, 30)
    assert np.abs(fitted - y).mean() < 0.3 * np.abs(y - y.mean((1, 2), keepdims=True)).mean()
