"""Picture files of every kind come in as RGB; broken ones are told in one line."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from palette_ms.data.images import grid, list_images, load_image, open_picture, save_atomically, to_float, to_uint8
from palette_ms.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_comes_back_as_it_is(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "a.png")
    for source in (path, str(path), Image.fromarray(RGB), RGB):
        np.testing.assert_array_equal(load_image(source), RGB)


def test_gray_is_repeated(tmp_path):
    gray = RGB[..., 0]
    for source in (saved(tmp_path, Image.fromarray(gray), "a.png"), gray):
        np.testing.assert_array_equal(load_image(source), np.repeat(gray[..., None], 3, 2))


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.array([[0, 257 * 7, 65535], [100, 257 * 200, 128]], np.uint16)
    for name in ("a.png", "a.tif"):
        image = load_image(saved(tmp_path, Image.fromarray(values), name))
        np.testing.assert_array_equal(image[..., 1], [[0, 7, 255], [0, 200, 0]])


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_image(saved(tmp_path, image, "a.png")), expected)


def test_alpha_is_laid_over_white(tmp_path):
    alpha = np.zeros((6, 5), np.uint8)
    alpha[0] = 255
    image = Image.fromarray(np.dstack([RGB, alpha]))
    loaded = load_image(saved(tmp_path, image, "a.png"))
    np.testing.assert_array_equal(loaded[0], RGB[0])
    assert (loaded[1:] == 255).all()
    transparent = Image.fromarray(RGB).quantize(4)
    transparent.info["transparency"] = 0
    loaded = load_image(saved(tmp_path, transparent, "b.png"))
    assert (loaded[np.asarray(transparent) == 0] == 255).all()


def test_cmyk_comes_as_rgb(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 30, 90))
    loaded = load_image(saved(tmp_path, flat.convert("CMYK"), "a.jpg", quality=95))
    assert loaded.shape == (16, 16, 3)
    assert np.abs(loaded.astype(int) - (200, 30, 90)).max() < 8


def test_lab_tiff_comes_as_rgb(tmp_path):
    assert load_image(saved(tmp_path, Image.new("LAB", (4, 4), (128, 0, 0)), "a.tif")).shape == (4, 4, 3)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 90° clockwise puts it right
    path = saved(tmp_path, Image.fromarray(RGB), "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(path), np.rot90(RGB, -1))


def cut_ico():
    file = io.BytesIO()
    Image.fromarray(RGB).resize((16, 16)).save(file, "ICO")
    return file.getvalue()[:40]  # Pillow opens none, and tells by another error than of what it does not know


def cut_png():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()[:2000]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", cut_png(), cut_ico()],
                         ids=["empty", "web page", "header alone", "cut off", "cut off before it is opened"])
def test_a_broken_file_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read picture .*broken.png") as error:
        load_image(path)
    assert "\n" not in str(error.value)


def test_missing_files_folders_and_wrong_arrays_are_told(tmp_path):
    with pytest.raises(UserError, match="no such picture"):
        load_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)
    for array in (RGB.astype(np.float32), RGB[..., :2], RGB[0, 0]):
        with pytest.raises(UserError, match="must be uint8"):
            load_image(array)


def test_float_and_back_is_exact():
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    y = to_float(every_value)
    assert y.min() == -1 and y.max() == 1
    np.testing.assert_array_equal(to_uint8(y), every_value)
    np.testing.assert_array_equal(to_uint8(np.full((3, 1, 1), 1.7)), 255)


def test_folders_are_searched_to_the_bottom_in_order(tmp_path):
    for name in ("b.JPG", "sub/deeper/a.png", "notes.txt", "a.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.webp", "b.JPG", "sub/deeper/a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures in"):
        list_images(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        list_images(tmp_path / "none")


def test_grid_places_pictures_by_row_and_column():
    black, gray = np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 100, np.uint8)
    sheet = np.asarray(grid([[black, gray], [None, black]], gap=1))
    assert sheet.shape == (5, 7, 3)
    assert (sheet[:2, :3] == 0).all() and (sheet[:2, 4:] == 100).all() and (sheet[3:, 4:] == 0).all()
    assert (sheet[3:, :3] == 255).all() and (sheet[2] == 255).all()


def test_a_failed_write_leaves_nothing(tmp_path):
    class Broken:
        def save(self, path, kind):
            path.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError):
        save_atomically(Broken(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("behind", [False, True])
def test_a_large_or_damaged_text_says_nothing_against_a_pngs_pixels(tmp_path, behind):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    content = saved(tmp_path, Image.fromarray(RGB), "a.png", pnginfo=text).read_bytes()
    if behind:  # the pixels
        begin = content.index(b"zTXt") - 4
        end = begin + 12 + int.from_bytes(content[begin:begin + 4], "big")
        content = content[:begin] + content[end:-12] + content[begin:end] + content[-12:]
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), RGB)
    saved(tmp_path, Image.fromarray(RGB), "a.png", pnginfo=text, icc_profile=b"a profile")
    with open_picture(tmp_path / "a.png") as (image, _):
        assert image.info["icc_profile"] == b"a profile"  # which the text says nothing against, either
    saved(tmp_path, Image.fromarray(RGB), "b.png", icc_profile=bytes(1_500_000))
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), RGB)


def test_a_jpeg_with_damage_in_its_midst_is_no_sound_picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "a.jpg")
    data = bytearray(path.read_bytes())
    data[len(data) // 2:len(data) // 2 + 2] = b"\xff\xd8"  # a marker that does not belong there
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot read picture .*a.jpg"):
        load_image(path)


def test_a_jpeg_that_is_cut_off_is_told_how_much_is_whole(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (256, 64, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "a.jpg")
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"truncated.*about \d+ of its 256 rows are whole"):
        load_image(path)


def test_a_scan_of_a_hundred_megapixels_is_read_and_what_claims_more_than_is_sane_is_not(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("1", (10_000, 9_500)), "scan.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(path, enough=1).shape == (9_500, 10_000, 3)
    monkeypatch.setattr("palette_ms.data.images.MOST_PIXELS", 90_000_000)
    with pytest.raises(UserError, match="95 megapixels, more than the 90 .* PALETTE_MS_MEGAPIXELS=N"):
        load_image(path)
