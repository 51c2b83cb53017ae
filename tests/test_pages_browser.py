"""The page of a report and that of a survey in headless Chromium: sorted, compared, a choice clicked, the answers read.

PALETTE_MS_SCREENSHOTS=FOLDER keeps a screenshot of each.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palette_ms.evaluation.page import write_page
from palette_ms.evaluation.report import evaluate, match
from palette_ms.evaluation.survey import fool_rate, write_survey

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright, which is not here")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium here (Debian: apt-get install chromium)", allow_module_level=True)

SHOTS = os.environ.get("PALETTE_MS_SCREENSHOTS")
LEVELS = [3, 40, 11, 25]  # how noisy the restored pictures are, whose originals are gray


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, level in enumerate(LEVELS):
        for kind, noise in (("reference", 0), ("restored", level)):
            (folder / kind).mkdir(exist_ok=True)
            values = 128 + np.random.default_rng(i).normal(0, noise, (24, 40, 3))
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / kind / f"p{i}.png")
    return match(folder / "reference", folder / "restored")


@pytest.fixture
def opened():
    """A function: a page from a file, without a network. It had no error in the end."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(20_000)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))

        def come(path):
            page.goto(path.as_uri())
            return page

        yield come
        browser.close()
        assert not errors


def keep(page, name):
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def test_a_report_is_sorted_filtered_and_compared(pairs, opened, tmp_path):
    write_page(tmp_path / "r.html", pairs, evaluate(pairs, ["psnr", "ab_error"]), {"seed": 5})
    page = opened(tmp_path / "r.html")
    page.wait_for_selector(".pair img")

    def names():
        page.wait_for_function("[...document.querySelectorAll('.row')].every(row => row.firstChild)")
        return page.locator(".about b").all_inner_texts()

    worst = [f"p{i}" for i in np.argsort(LEVELS)[::-1]]
    assert names() == worst
    page.select_option("#key", "ab_error")  # of which less is better
    assert names() == worst
    page.uncheck("#worst")
    assert names() == worst[::-1]
    assert page.evaluate("[...document.images].every(image => image.naturalWidth === 40)")
    page.locator(".pair input").first.fill("20")
    assert page.locator(".pair").first.evaluate("box => box.style.getPropertyValue('--cut')") == "20%"
    keep(page, "report")
    page.fill("#filter", "P1")
    assert names() == ["p1"] and page.inner_text("#count") == "1 of 4 pictures"


def test_a_surveys_choices_are_counted(pairs, opened, tmp_path):
    write_survey(tmp_path / "s.html", pairs, 0.5)
    page = opened(tmp_path / "s.html")
    page.click("#begin")
    assert page.is_hidden("#trial")  # nobody answers without a name
    page.fill("#person", "Ada")
    page.click("#begin")
    fooled = []
    for number in range(len(LEVELS)):
        page.wait_for_function("number => document.getElementById('progress').textContent.startsWith(number)",
                               arg=str(number + 1))
        noisy = page.evaluate("""() => ["left", "right"].map(id => {
            const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
            canvas.width = 40; canvas.height = 24;
            context.drawImage(document.querySelector(`#${id} img`), 0, 0);
            return new Set(context.getImageData(0, 0, 40, 24).data).size > 2;  // gray, and opaque
        })""")
        assert sum(noisy) == 1
        if number == 0:
            keep(page, "survey")
            page.wait_for_function("!document.querySelector('#left img, #right img')")  # the time is over
        side = number % 2  # by the button, and by the keys
        if number < 2:
            page.locator("#choices button").nth(side).click()
        else:
            page.keyboard.press(("ArrowLeft", "ArrowRight")[side])
        fooled.append(noisy[side])
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "answers_Ada.json"
    download.value.save_as(tmp_path / "ada.json")
    assert page.input_value("#text") == (tmp_path / "ada.json").read_text(encoding="utf-8")
    found = fool_rate([tmp_path / "ada.json"])
    assert found.rate == np.mean(fooled) and found.people == {"Ada": (np.mean(fooled), 4)}
    assert found.pictures.keys() == {"p0", "p1", "p2", "p3"}
