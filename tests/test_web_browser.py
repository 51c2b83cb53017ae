"""The page in a real browser: headless Chromium does what users do, and what they should not.

PALETTE_MS_SCREENSHOTS=FOLDER keeps a screenshot of each state, as wide as a desktop and as a phone.
"""

import argparse
import io
import os
import re
import shutil
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_web import png, save_model

from palette_ms.web import __main__ as command
from palette_ms.web.work import Line, Models

gradio = pytest.importorskip("gradio", reason="the page is made with Gradio (pip install palette_ms[web])")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright, which is not here")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium here (Debian: apt-get install chromium)", allow_module_level=True)

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
SHOTS = os.environ.get("PALETTE_MS_SCREENSHOTS")
WIDTHS = {"desktop": 1280, "phone": 390}


class Slow:
    """Stands for a `Palette`, whose own tests are elsewhere: inverts what is to be made, in `steps` slow calls."""

    sha256 = "0" * 64

    def restore(self, path, task, num_samples, seed, steps, progress, mask=None, feather=None):
        image = Image.open(path)
        pixels = np.asarray(image.convert("RGB"))
        hole = np.ones(pixels.shape[:2]) if mask is None else mask if isinstance(mask, np.ndarray) else \
            np.asarray(Image.open(mask).convert("L"))
        progress.reset(steps or 2)
        for _ in range(steps or 2):
            time.sleep(0.05)
            progress.update(1)
        made = Image.fromarray(np.where(hole[..., None] > 0, 255 - pixels, pixels))
        made.info["text"] = {"Author": image.info.get("Author", "")}
        return [made.copy() for _ in range(num_samples)]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a server with a model that answers at once."""
    import uvicorn

    from palette_ms.web.page import Page

    folder = tmp_path_factory.mktemp("web")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    line = Line(5)
    models = Models([save_model(folder / "model.safetensors")], lambda path: Slow())
    app = command.app(Page(models, line, folder), argparse.Namespace(host="127.0.0.1", max_mb=1))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    line.close()
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def user(browser, address):
    """A function: a user with the page open, whose browser has asked nothing of any other machine at the end."""
    asked, contexts = [], []

    def come(width="desktop"):
        context = browser.new_context(viewport={"width": WIDTHS[width], "height": 900}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#restore")
        return page

    yield come
    for context in contexts:
        context.close()
    assert asked and not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


@pytest.fixture
def photo(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("Author", "A. Painter")
    Image.fromarray(PHOTO).save(tmp_path / "photo.png", pnginfo=about)
    return tmp_path / "photo.png"


def choose(page, path):
    page.set_input_files("#picture input[type=file]", path)


def says(page, text):
    page.locator("#status").get_by_text(re.compile(text)).first.wait_for()


def shoot(page, name):
    if SHOTS:
        before = page.viewport_size
        for kind, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(600)
            page.screenshot(path=Path(SHOTS, f"{name}_{kind}.png"), full_page=True)
        page.set_viewport_size(before)


def set_task(page, name):
    page.click("#task input")
    page.get_by_role("option", name=name).click()


def downloaded(page, button):
    with page.expect_download() as download:
        page.click(button)
    return download.value


def test_a_picture_is_painted_restored_compared_downloaded_and_restored_again(user, photo):
    page = user()
    shoot(page, "1_empty")
    page.click("#restore")
    says(page, "choose a picture first")
    choose(page, photo)
    says(page, "64 × 48 pixels")
    set_task(page, "inpainting")
    page.click("#restore")
    says(page, "nothing is painted")
    canvas = page.locator("#painter canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1500)  # the painter takes the picture in without a sign
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=4)
    page.mouse.up()
    shoot(page, "2_painted")
    page.fill("#seed input", "7")
    page.click("#restore")
    says(page, "done: photo.png, inpainting, seed 7")
    page.wait_for_selector("#result input[type=range]")
    shoot(page, "3_restored")

    file = downloaded(page, "#download")
    assert file.suggested_filename == "photo_inpainting_7.png"
    with Image.open(file.path()) as image:
        made, text = np.asarray(image), image.text
    changed = (made != PHOTO).any(-1)
    assert changed[24, 32] and 0.001 < changed.mean() < 0.7 and not changed[:, [0, -1]].any()
    np.testing.assert_array_equal(made[changed], 255 - PHOTO[changed])
    assert text["Author"] == "A. Painter" and '"seed": 7' in text["palette_ms"]

    slider = page.locator("#result input[type=range]")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    shown = page.eval_on_selector("#result .two", "two => two.style.getPropertyValue('--at')")
    assert (slider.input_value(), shown) == ("40", "40%")

    page.click("#again")
    says(page, "the result is the picture now")
    set_task(page, "colorization")
    page.click("#restore")
    says(page, "done: photo_inpainting_7.png, colorization")
    assert page.locator("#result input[type=range]").input_value() == "50"
    file = downloaded(page, "#download")
    np.testing.assert_array_equal(np.asarray(Image.open(file.path())), 255 - made)
    assert page.input_value("#seed input") == "7"
    entries = page.locator("#history button img")
    assert entries.count() == 2
    shoot(page, "4_history")
    entries.nth(1).click()
    page.locator("#result figcaption").get_by_text("photo.png, inpainting, seed 7").wait_for()


def test_several_samples_stand_side_by_side_and_a_mask_may_be_a_file(user, photo, tmp_path):
    page = user("phone")
    choose(page, photo)
    says(page, "64 × 48")
    set_task(page, "inpainting")
    page.click("#mask-kind input")
    page.get_by_role("option", name="a file").click()
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    page.set_input_files("#mask-file input[type=file]", tmp_path / "mask.png")
    page.locator("#mask-file").get_by_text("mask").first.wait_for()
    page.wait_for_timeout(500)
    page.fill("#samples input", "3")
    page.click("#restore")
    says(page, "done")
    samples = page.locator("#samples-made button img")
    samples.nth(2).wait_for()
    assert samples.count() == 3
    samples.nth(2).click()
    page.locator("#result figcaption").get_by_text("sample 2").wait_for()
    shoot(page, "5_samples")
    file = downloaded(page, "#download")
    changed = (np.asarray(Image.open(file.path())) != PHOTO).any(-1)
    np.testing.assert_array_equal(changed, mask > 0)
    wide = page.evaluate("""[...document.querySelectorAll('body *')].filter(
        one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 200))""")
    assert not wide  # nothing has to be scrolled sideways


def test_two_users_wait_for_each_other_and_see_their_own_alone(user, photo):
    one, other = user(), user("phone")
    for page in (one, other):
        choose(page, photo)
        says(page, "64 × 48")
    one.fill("#steps input", "900")
    one.click("#restore")
    says(one, "step .* of 900")
    shoot(one, "6_working")
    other.click("#restore")
    says(other, "in line: 1 before this one")
    shoot(other, "7_waiting")
    set_task(other, "inpainting")  # the page answers
    other.locator("#mask-kind").wait_for()
    one.click("#stop")
    says(one, "stopped")
    says(other, "done")
    history = other.locator("#history button img")
    history.first.wait_for()
    assert history.count() == 1
    assert one.locator("#history button img").count() == 0


def test_a_batch_ends_in_a_zip_and_tells_what_was_left_out(user, photo, tmp_path):
    page = user()
    (tmp_path / "text.png").write_text("no picture")
    shutil.copy(photo, tmp_path / "photo.bmp")
    page.get_by_role("tab", name="Several").click()
    page.set_input_files("#pictures input[type=file]", [photo, tmp_path / "text.png", tmp_path / "photo.bmp"])
    page.locator("#pictures").get_by_text("bmp").first.wait_for()
    page.wait_for_timeout(500)
    page.click("#restore-all")
    says(page, "2 of 3 pictures are restored")
    says(page, "text.png is no picture that can be read")
    shoot(page, "8_batch")
    with zipfile.ZipFile(downloaded(page, "#zip").path()) as zipped:
        assert sorted(zipped.namelist()) == ["photo_bmp.png", "photo_png.png"]
        made = Image.open(io.BytesIO(zipped.read("photo_png.png")))
        np.testing.assert_array_equal(np.asarray(made), 255 - PHOTO)


def test_hostile_uploads_are_told_and_nothing_else_is_read(user, address, tmp_path):
    page = user()
    for name, content, told in (("text.png", b"<script>alert(1)</script>", "text.png is no picture"),
                                ("bomb.png", png(30_000, 30_000), "bomb.png has more than 50 megapixels")):
        (tmp_path / name).write_bytes(content)
        choose(page, tmp_path / name)
        says(page, told)
        shoot(page, f"9_{name[:4]}")
    page.click("#restore")
    says(page, "choose a picture first")

    # What a program can send that pretends to be the page.
    config = page.request.get(f"{address}/config").json()
    look = next(one["id"] for one in config["dependencies"] if [event for _, event in one["targets"]] == ["upload"])
    file = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    page.request.post(f"{address}/gradio_api/queue/join",
                      data={"fn_index": look, "session_hash": "intruder", "data": [file]})
    told = page.request.get(f"{address}/gradio_api/queue/data?session_hash=intruder").text()
    assert '"success":false' in told and "not uploaded by a user" in told.replace("\\n", " ")
