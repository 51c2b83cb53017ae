"""What a photo is besides RGB of 8 bits: depth, gray, transparency, profile, EXIF, and what people mean by masks."""

import functools
import io
import struct

import cv2
import numpy as np
import pytest
import tifffile
from mindspore import Tensor
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from palette_ms import Palette
from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.data.exif import upright, write_tiff
from palette_ms.data.forms import Arrays, Photo
from palette_ms.data.images import load_image
from palette_ms.data.masks import weights
from palette_ms.data.originals import read_original, same_format
from palette_ms.errors import UserError

RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(RNG.integers(0, 256, (3, 4, 3), np.uint8), (24, 16), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def palette(tmp_path_factory):
    """A model whose chains give what they start from, so that nothing is compiled."""
    config = config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [],
                  "norm_groups": 4},
        "diffusion": {"prediction": "x0"}, "data": {"image_size": 8},
        "tasks": [{"name": "inpainting", "fill": "smooth"}, {"name": "denoising"}, {"name": "colorization"},
                  {"name": "super_resolution", "scales": [2]}, {"name": "uncropping"}]}, "test")
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, config, 1, 10**6, unet_arrays(build_unet(config.model)))
    return Palette.load(path, "cpu", "mindspore")


@pytest.fixture(autouse=True)
def chains_give_the_source(monkeypatch):
    monkeypatch.setattr("palette_ms.diffusion.samplers.Sampler.__call__",
                        lambda self, cond, *_, **__: Tensor(np.asarray(cond, np.float32)))


def hole(height=16, width=24):
    mask = np.zeros((height, width), np.uint8)
    mask[4:8, 6:12] = 255
    return mask


def saved(palette, image, folder, **options):
    form = palette.forms[1]
    return form.save(image, form.path(folder / "result", options.get("format", "png")), **options)


# Depth


@pytest.mark.parametrize("shape", [(16, 24, 3), (16, 24), (16, 24, 4)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_come_back_and_known_pixels_exactly(palette, tmp_path, shape, suffix):
    values = RNG.integers(0, 65536, shape, np.uint16)
    cv2.imwrite(str(tmp_path / f"p{suffix}"), values)
    result, = palette.restore(tmp_path / f"p{suffix}", "inpainting", hole())
    for format in ("png", "tiff"):
        back = cv2.imread(str(saved(palette, result, tmp_path, format=format)), cv2.IMREAD_UNCHANGED)
        assert back.dtype == np.uint16 and back.shape == shape
        np.testing.assert_array_equal(back[hole() == 0], values[hole() == 0])
        assert (back[hole() > 0] != values[hole() > 0]).any()


def test_of_pages_with_sixteen_bits_the_first_is_taken_whole(palette, tmp_path):
    pages = RNG.integers(0, 65536, (2, 16, 24, 3), np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", pages, photometric="rgb")
    np.testing.assert_array_equal(read_original(tmp_path / "p.tif").values, pages[0])


def test_floating_point_is_told(tmp_path):
    for shape in ((16, 24), (16, 24, 3)):
        photometric = "rgb" if len(shape) == 3 else "minisblack"
        tifffile.imwrite(tmp_path / "p.tif", np.zeros(shape, np.float32), photometric=photometric)
        for read in (read_original, load_image):
            with pytest.raises(UserError, match="p.tif.*floating-point.*save it with 8 or 16 bits|^floating-point"):
                read(tmp_path / "p.tif")


def test_made_pixels_have_sixteen_bits_too(palette, tmp_path):
    ramp = np.linspace(20000, 20400, 24 * 16).reshape(16, 24).astype(np.uint16)  # less than two steps of 8 bits
    cv2.imwrite(str(tmp_path / "p.png"), ramp)
    result, = palette.restore(tmp_path / "p.png", "denoising")
    eight = np.asarray(result).astype(int)
    assert result.mode == "I;16" and np.abs(eight - ramp).max() < 257  # the model sees 8 bits
    assert palette.restore(SMOOTH, "denoising")[0].mode == "RGB"


def test_twelve_bits_in_sixteen_are_noticed(capsys, tmp_path):
    values = np.linspace(0, 4095, 24 * 16).reshape(16, 24).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "scan.png"), values)
    told = []
    original = read_original(tmp_path / "scan.png", show=told.append)
    assert original.white == 4095 and len(told) == 1 and "12 bits" in told[0] and "4095" in told[0]
    np.testing.assert_allclose(original.rgb[..., 0], values / 4095 * 255, atol=0.51)
    assert original.values_of(np.ones((3, 2, 2)), True).max() == 4095


# Gray, transparency


@pytest.mark.parametrize("task", ["denoising", "inpainting", "super_resolution", "uncropping"])
def test_gray_in_gray_out(palette, task):
    gray = Image.fromarray(SMOOTH[..., 0])
    asked = {"inpainting": {"mask": hole()}, "uncropping": {"extend": {"left": 4}}}.get(task, {})
    result, = palette.restore(gray, task, **asked)
    assert result.mode == "L"
    assert palette.restore(gray, "colorization")[0].mode == "RGB"


def test_transparency_comes_back_and_what_is_made_is_opaque(palette):
    rgba = np.dstack([SMOOTH, RNG.integers(0, 255, (16, 24), np.uint8)])
    result = np.asarray(palette.restore(Image.fromarray(rgba), "inpainting", hole())[0])
    np.testing.assert_array_equal(result[hole() == 0], rgba[hole() == 0])
    assert (result[hole() > 0][:, 3] == 255).all()
    whole = np.asarray(palette.restore(Image.fromarray(rgba), "denoising")[0])
    np.testing.assert_array_equal(whole, rgba)
    large = palette.restore(Image.fromarray(rgba), "super_resolution")[0]
    expected = Image.fromarray(rgba[..., 3]).resize((48, 32), Image.BICUBIC)
    np.testing.assert_array_equal(np.asarray(large)[..., 3], np.asarray(expected))
    extended = np.asarray(palette.restore(Image.fromarray(rgba), "uncropping", extend={"right": 4})[0])
    np.testing.assert_array_equal(extended[:, :24], rgba)
    assert (extended[:, 24:, 3] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_known_pixels_come_back_in_every_mode(palette, mode):
    image = Image.fromarray(SMOOTH[..., 1].astype(np.uint16) * 200) if mode == "I;16" else \
        Image.fromarray(SMOOTH).convert(mode)
    result, = palette.restore(image, "inpainting", hole())
    back = np.asarray(image.convert("L" if mode == "1" else "RGB" if mode == "P" else mode))
    np.testing.assert_array_equal(np.asarray(result)[hole() == 0], back[hole() == 0])


# Profiles and metadata


@functools.lru_cache(None)  # its header holds the second that it was made in
def wide_profile():
    """One made of sRGB's by exchanging its colorant tags: red and green swapped."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[red:red + 4], data[green:green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def test_the_model_sees_srgb_and_the_result_is_in_the_files_profile(palette, tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "p.png", icc_profile=wide_profile())
    swapped = SMOOTH[..., [1, 0, 2]]
    assert np.abs(load_image(tmp_path / "p.png").astype(int) - swapped).max() <= 1
    assert np.abs(read_original(tmp_path / "p.png").rgb.astype(int) - swapped).max() <= 1
    result, = palette.restore(tmp_path / "p.png", "denoising")
    assert np.abs(np.asarray(result).astype(int) - SMOOTH).max() <= 2  # there and back again in 8 bits
    assert Image.open(saved(palette, result, tmp_path)).info["icc_profile"] == wide_profile()
    filled = np.asarray(palette.restore(tmp_path / "p.png", "inpainting", hole())[0])
    np.testing.assert_array_equal(filled[hole() == 0], SMOOTH[hole() == 0])


def test_a_damaged_profile_is_passed_over(palette, tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "p.png", icc_profile=b"no profile at all")
    np.testing.assert_array_equal(load_image(tmp_path / "p.png"), SMOOTH)
    np.testing.assert_array_equal(np.asarray(palette.restore(tmp_path / "p.png", "denoising")[0]), SMOOTH)


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff"])
def test_exif_dpi_and_orientation(palette, tmp_path, format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a camera"
    Image.fromarray(SMOOTH).save(tmp_path / "p.jpg", exif=exif, dpi=(300, 300), quality=100, subsampling=0)
    result, = palette.restore(tmp_path / "p.jpg", "denoising")
    assert result.size == (16, 24)
    back = Image.open(saved(palette, result, tmp_path, format=format))
    assert back.size == (16, 24)
    assert back.getexif()[ExifTags.Base.Make] == "a camera"
    assert back.getexif().get(ExifTags.Base.Orientation, 1) == 1
    if format != "webp":
        assert round(back.info["dpi"][0]) == 300


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_cameras_exif_comes_along_whole(palette, tmp_path, format, deep):
    exif, owner = Image.Exif(), "© Jürgen"
    exif[ExifTags.Base.Copyright], exif[ExifTags.Base.Orientation] = owner.encode(), 6
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (48.0, 8.0, 0.5)}
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.MakerNote: b"note" * 50}
    file = io.BytesIO()
    Image.fromarray(SMOOTH).save(file, "PNG", exif=exif, dpi=(300, 300))
    if deep:
        pixels = cv2.imencode(".png", SMOOTH.astype(np.uint16) * 200)[1].tobytes()
        begin, data = 33, file.getvalue()  # behind signature and IHDR
        file = io.BytesIO(pixels[:begin] + data[begin:data.index(b"IDAT") - 4] + pixels[begin:])
    (tmp_path / "p.png").write_bytes(file.getvalue())
    result, = palette.restore(tmp_path / "p.png", "denoising")
    path = saved(palette, result, tmp_path, format=format)
    back = Image.open(path).getexif()
    assert back[ExifTags.Base.Copyright].encode("latin-1").decode() == owner
    assert back[ExifTags.Base.Orientation] == 1
    assert back.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (48.0, 8.0, 0.5)
    assert back.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] == b"note" * 50
    if format in ("png", "tiff"):
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == (np.uint16 if deep else np.uint8)
        assert round(Image.open(path).info["dpi"][0]) == 300


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_many_strips_is_read_by_others(order):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif.endian = "a camera", order
    values = RNG.integers(0, 65536, (700, 800, 4), np.uint16)
    for dtype, channels in ((np.uint8, 2), (np.uint16, 1), (np.uint16, 4)):
        part, file = values[..., :channels].astype(dtype), io.BytesIO()
        write_tiff(part, file, exif.tobytes(), b"<x/>", b"profile", (300, 72.5))
        with tifffile.TiffFile(io.BytesIO(file.getvalue())) as read:
            np.testing.assert_array_equal(read.asarray().reshape(part.shape), part)
            tags = read.pages[0].tags
            assert tags["Make"].value == "a camera" and tags[700].value == b"<x/>" and tags[34675].value == b"profile"
        assert Image.open(file).info["dpi"] == (300, 72.5)


def test_of_a_tiffs_tags_those_of_its_pixels_stay_behind(palette, tmp_path):
    tifffile.imwrite(tmp_path / "p.tif", SMOOTH, photometric="rgb", compression="zlib", description="a scan",
                     metadata=None,  # which would be a second description
                     extratags=[(ExifTags.Base.Artist, 2, 0, "Jürgen".encode(), True)], resolution=(300, 300),
                     resolutionunit="inch")
    data = (tmp_path / "p.tif").read_bytes()
    assert data.count(struct.pack("<II", 300, 1)) == 2
    (tmp_path / "p.tif").write_bytes(data.replace(struct.pack("<II", 300, 1), bytes(8)))  # 0/0 dots an inch
    back = Image.open(saved(palette, palette.restore(tmp_path / "p.tif", "denoising")[0], tmp_path)).getexif()
    assert back[ExifTags.Base.ImageDescription] == "a scan" and ExifTags.Base.StripOffsets not in back
    assert back[ExifTags.Base.Artist].encode("latin-1").decode() == "Jürgen"


def test_what_a_jpeg_cannot_hold_is_told_and_its_comment_kept(palette, tmp_path, capsys):
    exif = Image.Exif()
    exif[ExifTags.Base.MakerNote] = bytes(90_000)
    Image.fromarray(SMOOTH).save(tmp_path / "p.png", exif=exif)
    path = saved(palette, palette.restore(tmp_path / "p.png", "denoising")[0], tmp_path, format="jpg")
    assert "EXIF of 90" in capsys.readouterr().err and not Image.open(path).getexif()
    Image.fromarray(SMOOTH).save(tmp_path / "q.jpg", comment="mine")
    result, = palette.restore(tmp_path / "q.jpg", "denoising")
    assert Image.open(saved(palette, result, tmp_path, format="jpg")).info["comment"] == b"mine"
    assert Image.open(saved(palette, result, tmp_path)).text["Comment"] == "mine"


def test_text_and_xmp_come_along_in_a_png(palette, tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "somebody")
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6" dc:rights="mine"/>')
    Image.fromarray(SMOOTH).save(tmp_path / "p.png", pnginfo=text)
    back = Image.open(saved(palette, palette.restore(tmp_path / "p.png", "denoising")[0], tmp_path))
    back.load()
    assert back.text["Author"] == "somebody"
    assert back.info["xmp"] == b'<x tiff:Orientation="1" dc:rights="mine"/>'


@pytest.mark.parametrize("format", ["jpg", "webp", "tiff"])
def test_texts_of_a_png_become_exif_elsewhere_and_others_are_told(palette, tmp_path, format, capsys):
    text = PngImagePlugin.PngInfo()
    for name, value in {"Author": "Jürgen", "Description": "a scan", "parameters": "steps: 20"}.items():
        text.add_itxt(name, value)
    Image.fromarray(SMOOTH).save(tmp_path / "p.png", pnginfo=text)
    result, = palette.restore(tmp_path / "p.png", "denoising")
    back = Image.open(saved(palette, result, tmp_path, format=format)).getexif()
    assert back[ExifTags.Base.ImageDescription] == "a scan"
    assert back[ExifTags.Base.Artist].encode("latin-1").decode() == "Jürgen"
    assert capsys.readouterr().err.splitlines()[-1].endswith("text is left out, which a PNG alone holds: parameters")


def test_damaged_exif_does_not_refuse_sound_pixels(palette, tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "p.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffrubbish")
    np.testing.assert_array_equal(load_image(tmp_path / "p.png"), SMOOTH)
    np.testing.assert_array_equal(np.asarray(palette.restore(tmp_path / "p.png", "denoising")[0]), SMOOTH)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_pillow_turns_it(orientation, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(SMOOTH).save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(upright(SMOOTH, orientation), load_image(tmp_path / "p.png"))
    np.testing.assert_array_equal(read_original(tmp_path / "p.png").rgb, load_image(tmp_path / "p.png"))
    deep = SMOOTH.astype(np.uint16) * 257
    for values in (SMOOTH, deep, deep[..., 0]):  # in evaluation, in masks and in models of arrays too
        tifffile.imwrite(tmp_path / "p.tif", values, photometric="rgb" if values.ndim == 3 else "minisblack",
                         extratags=[(ExifTags.Base.Orientation, 3, 1, orientation, True)])
        turned = upright(values.reshape(16, 24, -1), orientation)
        np.testing.assert_array_equal(Arrays().read(tmp_path / "p.tif"), turned)
        np.testing.assert_array_equal(read_original(tmp_path / "p.tif").values, turned)
    np.testing.assert_array_equal(Arrays().read(tmp_path / "p.png"), load_image(tmp_path / "p.png"))


def test_formats_follow_the_pictures_and_quality_counts(palette, tmp_path):
    result, = palette.restore(SMOOTH.repeat(8, 0).repeat(8, 1), "denoising")
    sizes = [saved(palette, result, tmp_path, format="jpg", quality=quality).stat().st_size for quality in (20, 95)]
    assert sizes[0] < sizes[1]
    assert [same_format(Image.registered_extensions()[suffix]) for suffix in (".jpeg", ".tif", ".webp", ".gif")] == [
        "jpg", "tiff", "webp", "png"]
    clear = Image.fromarray(np.zeros((8, 8, 4), np.uint8))
    np.testing.assert_array_equal(np.asarray(Image.open(saved(palette, clear, tmp_path, format="jpg"))), 255)


# Masks


def test_transparent_is_known_and_what_is_painted_is_to_be_made():
    stroke = hole()
    for colour in ((255, 255, 255), (0, 0, 0), (200, 30, 30)):
        mask = np.dstack([np.broadcast_to(np.uint8(colour), (16, 24, 3)), stroke])
        np.testing.assert_array_equal(weights(mask, "m"), stroke / 255)
    opaque = np.dstack([stroke] * 3 + [np.full_like(stroke, 255)])
    np.testing.assert_array_equal(weights(opaque, "m"), stroke / 255)


@pytest.mark.parametrize("low, high, dtype", [(0, 1, np.uint8), (0, 255, np.uint8), (0, 65535, np.uint16),
                                              (0, 100, np.uint8), (50, 200, np.uint8), (0, 1, np.float32)])
def test_of_two_values_the_greater_marks(low, high, dtype):
    mask = np.where(hole() > 0, high, low).astype(dtype)[..., None]
    np.testing.assert_array_equal(weights(mask, "m"), hole() / 255)


def test_palettes_and_colours_mark_what_is_not_black():
    image = Image.fromarray(hole() // 255).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    np.testing.assert_array_equal(Photo().read_mask(image), hole() / 255)
    red = np.dstack([hole(), 0 * hole(), 0 * hole()])
    np.testing.assert_array_equal(weights(red, "m"), hole() / 255)


def test_a_faint_brush_paints_too():
    faint = np.dstack([np.full((16, 24, 3), 200, np.uint8), hole() // 3])
    np.testing.assert_array_equal(weights(faint, "m"), hole() / 255)


def test_brightness_marks_in_cmyk_too(tmp_path):
    for name in ("m.tif", "m.jpg"):
        Image.fromarray(np.dstack([hole()] * 3)).convert("CMYK").save(tmp_path / name, quality=100)
        np.testing.assert_allclose(Photo().read_mask(tmp_path / name), hole() / 255, atol=0.1)


def test_what_is_no_mask_is_told_with_what_it_holds():
    with pytest.raises(UserError, match="m.png is transparent everywhere: nothing to make"):
        weights(np.full((4, 4, 4), (255, 255, 255, 0), np.uint8), "m.png")
    red_and_blue = np.where(hole()[..., None] > 0, np.uint8([255, 0, 0]), np.uint8([0, 0, 255]))
    with pytest.raises(UserError, match=r"do not tell what is to be made: it holds \(0, 0, 255\), \(255, 0, 0\)"):
        weights(red_and_blue, "m.png")
    with pytest.raises(UserError, match="no white pixel.*It holds 0; white"):
        weights(np.zeros((4, 4, 1), np.uint8), "m.png")
    with pytest.raises(UserError, match="no white pixel.*It holds 3, 5, 9"):
        weights(np.uint8([[3, 5, 9]])[..., None], "m.png")
    with pytest.raises(UserError, match="many colours, and not a mask"):
        weights(RNG.integers(0, 256, (32, 32, 3), np.uint8), "m.png")


def test_soft_edges_are_blended(palette):
    soft = np.full((16, 24), 0, np.uint8)
    soft[4:12, 6:18] = 255
    soft[:, 12:18] //= 2  # half
    picture = np.full((16, 24, 3), 100, np.uint8)
    picture[8:, :] = 200
    made = np.asarray(palette.restore(picture, "inpainting", soft)[0]).astype(float)
    full = np.asarray(palette.restore(picture, "inpainting", np.where(soft > 0, 255, 0).astype(np.uint8))[0])
    share = weights(soft[..., None], "m")[..., None]
    assert 0.4 < share[6, 14, 0] < 0.6
    np.testing.assert_allclose(made, picture + share * (full.astype(float) - picture), atol=0.51)


def test_feather_fades_over_its_width_and_leaves_the_rest(palette):
    picture = RNG.integers(0, 256, (16, 24, 3), np.uint8)
    result = np.asarray(palette.restore(picture, "inpainting", hole(), feather=2)[0])
    away = cv2.distanceTransform(255 - hole(), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    np.testing.assert_array_equal(result[away >= 3], picture[away >= 3])
    assert (result[(away > 0) & (away < 3)] != picture[(away > 0) & (away < 3)]).any()


def test_a_mask_for_the_raw_pixels_of_a_turned_picture_is_told(palette, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(SMOOTH).save(tmp_path / "p.jpg", exif=exif)
    with pytest.raises(UserError, match="mask is 24×16, the picture 16×24.*turned as its EXIF orientation says"):
        palette.restore(tmp_path / "p.jpg", "inpainting", hole())


def test_a_file_cut_short_is_told_by_name(tmp_path):
    file = io.BytesIO()
    Image.fromarray(SMOOTH).save(file, "PNG")
    (tmp_path / "p.png").write_bytes(file.getvalue()[:60])
    for read in (read_original, load_image):
        with pytest.raises(UserError, match="cannot read picture .*p.png"):
            read(tmp_path / "p.png")
