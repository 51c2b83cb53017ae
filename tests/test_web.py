"""The page in the browser (python -m palette_ms.web), without one: jobs, uploads, the form, what the server refuses."""

import argparse
import asyncio
import base64
import io
import re
import struct
import threading
import weakref
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from palette_ms import errors
from palette_ms.checkpoint import build_unet, save_checkpoint, unet_arrays
from palette_ms.config import config_from_dict
from palette_ms.errors import UserError
from palette_ms.tasks import TASKS, check_asked
from palette_ms.tasks.asks import Ask, MarginsAsk, MaskAsk
from palette_ms.web import __main__ as command
from palette_ms.web import uploads
from palette_ms.web.work import Job, Line, Models

MODEL = {"base_channels": 8, "channel_mults": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]}


def save_model(path, **sections):
    config = config_from_dict({"model": MODEL, "data": {"image_size": 16}, "tasks": [
        {"name": "colorization"}, {"name": "inpainting"}], **sections}, "test")
    save_checkpoint(path, config, step=1, pictures=10**6, weights=unet_arrays(build_unet(config.model)))
    return path


def png(width, height):
    """A PNG that says it has so many pixels, and ends there."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


# The line


@pytest.fixture
def line():
    line = Line(3)
    yield line
    line.close()


def test_jobs_are_done_one_by_one_in_their_order(line):
    go, done = threading.Event(), []
    first = line.add(lambda job: done.append(1) if go.wait(10) else None)
    second, third = (line.add(lambda job, k=k: done.append(k) or k) for k in (2, 3))
    assert [line.ahead(job) for job in (first, second, third)] == [0, 1, 2] and not done
    with pytest.raises(UserError, match="3 pictures are in line"):
        line.add(print)
    go.set()
    assert third.ended.wait(10) and done == [1, 2, 3] and third.result == 3 and third.problem is None


def test_a_job_is_stopped_between_calls_and_one_that_waits_never_begins(line):
    begun, calls = threading.Event(), []

    def work(job):
        job.reset(5)
        begun.set()
        other.stop()
        job.stop()
        calls.append(1)
        job.update(1)
        calls.append(2)

    gate = threading.Event()
    line.add(lambda job: gate.wait(10))
    job, other = line.add(work), line.add(lambda job: calls.append(3))
    gate.set()
    assert job.ended.wait(10) and other.ended.wait(10)
    assert calls == [1] and (job.done, job.total) == (1, 5)
    assert job.problem == other.problem == "stopped"


@pytest.mark.parametrize("error, told", [
    (UserError("too wide"), "too wide"), (MemoryError(), "not enough memory"), (ValueError("x"), "this is a bug")])
def test_what_goes_wrong_in_a_job_is_told_and_the_next_is_done(line, capfd, error, told):
    def fail(job):
        raise error

    job, after = line.add(fail), line.add(lambda job: "done")
    assert after.ended.wait(10) and after.result == "done"
    assert told in job.problem
    assert ("Traceback" in capfd.readouterr().err) == (type(error) is ValueError)


# Models


def test_one_model_is_in_memory(tmp_path):
    class Loaded:
        def __init__(self, path):
            self.path = path

    paths = [save_model(tmp_path / "a" / "m.safetensors"), save_model(tmp_path / "b" / "m.safetensors")]
    models = Models(paths, Loaded)
    assert [*models.tasks] == ["m", "m~2"]
    assert {name: [*tasks] for name, tasks in models.tasks.items()} == dict.fromkeys(
        models.tasks, ["colorization", "inpainting"])
    first = models.get("m")
    assert models.get("m") is first and first.path == str(paths[0])
    first = weakref.ref(first)
    assert models.get("m~2").path == str(paths[1]) and first() is None
    with pytest.raises(KeyError):
        models.get(str(paths[0]))  # a browser names no path


@pytest.mark.parametrize("sections, message", [
    ({"model": {**MODEL, "in_channels": 3}, "tasks": [{"name": "unconditional"}]}, "from nothing"),
    ({"model": {**MODEL, "in_channels": 2, "out_channels": 1}, "tasks": [{"name": "denoising"}],
      "data": {"image_size": 16, "channels": {"source": 1, "target": 1}}}, "is for arrays"),
])
def test_models_of_no_photos_are_refused(tmp_path, sections, message):
    with pytest.raises(UserError, match=message):
        Models([save_model(tmp_path / "m.safetensors", **sections)], None)


# Uploads


@pytest.mark.parametrize("content, message", [
    (b"not a picture at all", "no picture"), (b"", "no picture"),
    (png(30_000, 30_000), "more than 50 megapixels"), (png(8000, 8000), "more than 50 megapixels"),
    (png(200, 100), "cannot read picture evil.png"),
])
def test_hostile_uploads_are_refused_before_they_take_memory(tmp_path, content, message):
    path = tmp_path / "evil.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        uploads.read(path, 50)
    assert str(tmp_path) not in str(refused.value)


def test_a_picture_is_seen_upright_and_small(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "a.jpg", exif=exif)
    picture = uploads.read(tmp_path / "a.jpg", 50)
    assert picture.size == (1500, 3000) and picture.view.size == (512, 1024) and picture.name == "a.jpg"


def test_a_painted_mask_has_the_pictures_size():
    layer = np.zeros((10, 20, 4), np.uint8)
    layer[2:5, 4:10] = 255, 0, 0, 255
    mask = uploads.mask_of([layer], (200, 100))
    expected = np.zeros((100, 200), np.uint8)
    expected[20:50, 40:100] = 255
    assert mask.shape == expected.shape and np.mean(mask != expected) < 0.005  # corners are rounded
    for layers in ([], [np.zeros((10, 20, 4), np.uint8)]):
        with pytest.raises(UserError, match="nothing is painted"):
            uploads.mask_of(layers, (200, 100))


def test_before_and_after_have_a_slider_where_their_shapes_agree():
    small, large, wide = (Image.new("RGB", size) for size in ((40, 30), (80, 60), (90, 60)))
    page = uploads.compare(small, large, "<script>.jpg")
    assert 'type="range"' in page and "aria-label" in page and "&lt;script&gt;" in page and "<script>" not in page
    assert 'type="range"' not in uploads.compare(small, wide, "")


def test_progress_is_told_to_screen_readers():
    job = Job()
    assert "preparing" in uploads.status(job, 0) and "value=" not in uploads.status(job, 0)
    assert "2 before this one" in uploads.status(job, 2)
    job.reset(4)
    job.update()
    assert "<img" not in uploads.status(job, 0)
    job.preview(Image.fromarray(np.full((600, 300, 3), 9, np.uint8)))
    file = io.BytesIO(base64.b64decode(re.search('src="data:image/jpeg;base64,([^"]+)"', uploads.status(job, 0))[1]))
    assert Image.open(file).size == (160, 320) and Image.open(file).getpixel((5, 5)) == (9, 9, 9)
    assert "step 2 of 4" in uploads.status(job, 0) and 'value="0.250"' in uploads.status(job, 0)
    assert 'role="status"' in uploads.status(job, 0) and "&lt;b&gt;" in uploads.status(job, 0, "<b>")


# The form


def test_every_tasks_declarations_make_a_form():
    gr = pytest.importorskip("gradio", reason="the page is made with Gradio (pip install palette_ms[web])")
    from palette_ms.web import fields

    picture = SimpleNamespace(size=(8, 6))
    paint = {"layers": [np.full((6, 8, 4), 255, np.uint8)]}
    numbers = (Ask("share", "a share", float, 0, 1), Ask("kind", "a kind", choices=("x", "y")))
    with gr.Blocks(analytics_enabled=False):
        for task in [*TASKS.values(), SimpleNamespace(asks=numbers, required=(), name="other")]:
            asked = {}
            for ask in task.asks:
                field = fields.create_field(ask, 50)
                if isinstance(ask, MaskAsk):
                    given = (fields.PAINTED, paint, None)
                elif isinstance(ask, MarginsAsk):
                    given = (0, 7, None, 3)
                    assert field.value(0, 0, 0, 0, picture) is None
                else:
                    given = (ask.choices[0] if ask.choices else str(ask.least or 0),)
                    assert field.value("", picture) is None
                assert len(field.parts) == len(given)
                asked[ask.name] = field.value(*given, picture)
            check_asked(task, asked, 16, None)
            assert all(value is not None for value in asked.values())
        assert asked == {"share": 0.0, "kind": "x"}
        margins = fields.create_field(MarginsAsk("extend", "sides"), 50)
        assert margins.value(1, 2, 0, 4, picture) == {"left": 1, "right": 2, "bottom": 4}
        share = fields.create_field(numbers[0], 50)
        for wrong in ("2", "nan", "much"):
            with pytest.raises(UserError, match="share"):
                share.value(wrong, picture)
        mask = fields.create_field(TASKS["inpainting"].asks[0], 50)
        assert mask.value("center", None, None, None) == "center"
        with pytest.raises(UserError, match="for one picture"):
            mask.value(fields.PAINTED, paint, None, None)
        with pytest.raises(UserError, match="choose a mask file"):
            mask.value(fields.FILE, None, None, picture)


@pytest.mark.parametrize("numbers, message", [
    ((None, 1, 0), "seed is empty"), ((0, None, 0), "samples is empty"), ((0, 1, None), "steps is empty"),
    ((2**31, 1, 0), "seed must be .* to 2147483647, not 2147483648"), ((0, 9, 0), "samples must be .* from 1 to 8"),
    ((0, 1, -1), "steps must be"), ((0, 1, 10**9), "steps must be"),
])
def test_a_number_that_cannot_be_is_told_by_its_name(tmp_path, line, numbers, message):
    gr = pytest.importorskip("gradio", reason="the page is made with Gradio (pip install palette_ms[web])")
    from palette_ms.web.page import Page

    page = Page(Models([save_model(tmp_path / "model.safetensors")], None), line, tmp_path)
    boxes = {one.elem_id: one for one in page.blocks().blocks.values() if isinstance(one, gr.Number)}
    given = [boxes[name].preprocess(number) for name, number in zip(("seed", "samples", "steps"), numbers)]
    with pytest.raises(UserError, match=message):
        page.order(None, "model", "colorization", *given)


# The server


@pytest.fixture
def server(tmp_path, line, monkeypatch):
    """The application, as `python -m palette_ms.web` makes it, without a network; a function: request → response."""
    pytest.importorskip("gradio", reason="the page is made with Gradio (pip install palette_ms[web])")
    import httpx

    from palette_ms.web.page import Page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    models = Models([save_model(tmp_path / "model.safetensors")], None)
    app = command.app(Page(models, line, tmp_path), argparse.Namespace(host="127.0.0.1", max_mb=1))

    def ask(method, path, **options):
        async def asked():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:1") as client:
                return await client.request(method, path, **options)
        return asyncio.run(asked())

    return ask


def test_the_server_bounds_what_comes_in_and_reads_nothing_else(server, tmp_path):
    page = server("GET", "/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    config = server("GET", "/config").json()
    assert not config["analytics_enabled"]
    assert server("GET", "/", headers={"host": "elsewhere.example"}).status_code == 400

    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    stored = server("POST", "/gradio_api/upload", files={"files": ("../../../evil.png", image.getvalue())})
    (path,) = stored.json()
    assert path.startswith(str(tmp_path / "uploads")) and path.endswith("/evil.png") and ".." not in path
    assert server("GET", f"/gradio_api/file={path}").content == image.getvalue()
    large = server("POST", "/gradio_api/upload", files={"files": ("large.png", bytes(2_000_000))})
    assert large.status_code == 413

    secret = tmp_path / "model.safetensors"
    for path in (secret, f"{tmp_path}/uploads/../model.safetensors", "/etc/passwd", "README.md"):
        assert server("GET", f"/gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize("words, message", [
    (["--ckpt", "missing.safetensors"], "missing.safetensors"), (["--port", "70000"], "cannot serve on 127.0.0.1"),
    (["--host", "no.such.address.invalid"], "cannot serve on no.such"), (["--max-mb", "0"], "at least 1"),
])
def test_what_is_wrong_at_the_start_is_told_in_a_line(monkeypatch, capsys, words, message):
    pytest.importorskip("gradio", reason="the page is made with Gradio (pip install palette_ms[web])")
    monkeypatch.setattr("sys.argv", ["web", *words])
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # to have them as they were, afterwards
    with pytest.raises(SystemExit) as stop:
        errors.run(command.main)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and message in told and "Traceback" not in told
