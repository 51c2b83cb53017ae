"""The page: its layout, and what its buttons do."""

import asyncio
import itertools
import json
import shutil
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import gradio as gr
import numpy as np
from PIL import Image

from palette_ms.data.files import result_names
from palette_ms.data.forms import Photo
from palette_ms.data.images import SUFFIXES
from palette_ms.errors import UserError
from palette_ms.tasks.asks import Ask
from palette_ms.web import uploads
from palette_ms.web.fields import MaskField, create_field
from palette_ms.web.uploads import Picture, problem, told

SEED = Ask("seed", "the same one gives the same result", int, 0, 2**31 - 1)
SAMPLES = Ask("samples", "different results", int, 1, 8)
STEPS = Ask("steps", "0: what suits the model", int, 0, 1000)
HISTORY = 24  # results that a session keeps
KEPT = 3600  # seconds that it is kept after its page was closed, or a phone was put away
POLL = 0.2  # seconds between looks at a job

CSS = """
.gradio-container { max-width: 1200px !important; margin: auto }
.compare .two { display: block; position: relative; max-height: 75vh; max-width: 100%; margin: auto; overflow: hidden }
.compare img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0 }
.compare img + img { clip-path: inset(0 0 0 var(--at)) }
.compare .two::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px;
    background: #fff; box-shadow: 0 0 3px #000; pointer-events: none }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; cursor: ew-resize;
    touch-action: pan-y; background: none; appearance: none; -webkit-appearance: none }
.compare input::-webkit-slider-thumb { -webkit-appearance: none; width: 34px; height: 34px; border-radius: 50%;
    background: #fffc; border: 2px solid #333 }
.compare input::-moz-range-thumb { width: 30px; height: 30px; border-radius: 50%; background: #fffc;
    border: 2px solid #333 }
.compare input:focus-visible { outline: 3px solid #2563eb; outline-offset: -3px }
.beside { display: flex; flex-wrap: wrap; gap: 8px; justify-content: center; align-items: center }
.beside img { max-width: calc(50% - 4px); max-height: 75vh; margin: 0 }
.beside figcaption { width: 100% }
.gallery-container, .grid-wrap { height: auto !important; min-height: 0 !important }
.grid-wrap { padding-top: 30px !important }
.grid-container { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)) !important }
figcaption { text-align: center; padding-top: 4px; overflow-wrap: anywhere }
.preview { display: block; margin: 8px auto 0; max-width: 100% }
[role=status] progress { width: 100%; accent-color: #2563eb }
.problem { color: #b91c1c; font-weight: 600 }
.dark .problem { color: #fca5a5 }
"""


@dataclass(frozen=True)
class Result:
    """A restored picture: its file, views of it and of the picture it was made of, as files too, and what it is."""

    path: Path
    view: Path
    before: Path
    caption: str


@dataclass
class Session:
    """What one page in a browser has. All of it stays here: a browser names nothing but places in these lists."""

    folder: Path
    picture: Optional[Picture] = None
    results: list = field(default_factory=list)
    history: list = field(default_factory=list)
    chosen: Optional[Result] = None
    job: object = None
    busy: bool = False
    stopped: bool = False
    left: Optional[float] = None  # when its page was closed


@dataclass(frozen=True)
class Order:
    """What is to be done with a picture."""

    model: str
    task: str
    seed: int
    samples: int
    steps: Optional[int]
    asked: dict

    def caption(self):
        asked = [f"{name} {Path(value).name if isinstance(value, str) else value}" for name, value in self.asked.items()
                 if value is not None and not isinstance(value, np.ndarray)]
        return ", ".join([self.task.replace("_", " "), *asked, f"seed {self.seed}"])


class Page:
    """Restores what browsers send.

    Args:
        models: `palette_ms.web.work.Models`.
        line: `palette_ms.web.work.Line`.
        folder: for results; the server's own, removed when it ends.
        megapixels: of an upload, at most.
        files: of a batch, at most.
    """

    def __init__(self, models, line, folder, megapixels=50, files=100):
        self.models, self.line, self.folder = models, line, Path(folder)
        self.megapixels, self.files = megapixels, files
        self.sessions = {}
        self._numbers = itertools.count()

    def session(self, request):
        """The `Session` of a browser's page."""
        now = time.monotonic()
        for name, session in list(self.sessions.items()):
            if session.left is not None and now - session.left > KEPT and not session.busy:
                del self.sessions[name]
                shutil.rmtree(session.folder, ignore_errors=True)
        if request.session_hash not in self.sessions:
            folder = self.folder / f"session_{next(self._numbers)}"
            folder.mkdir()
            self.sessions[request.session_hash] = Session(folder)
        session = self.sessions[request.session_hash]
        session.left = None
        return session

    def leave(self, request: gr.Request):
        if request.session_hash in self.sessions:
            self.stop(request)
            self.sessions[request.session_hash].left = time.monotonic()

    # What is done with pictures

    def order(self, picture, model, task, seed, samples, steps, *given):
        """`Order` of what the form holds. Raises UserError: something in it cannot be asked."""
        for ask, value in ((SEED, seed), (SAMPLES, samples), (STEPS, steps)):
            if value is None:
                raise UserError(f"{ask.name} is empty: it must be {ask.range()}")
            ask.check(value)
        asks, asked, given = self.models.tasks[model][task].asks, {}, iter(given)
        for one in self.fields:
            values = [*itertools.islice(given, len(one.parts))]
            if one.ask in asks:
                asked[one.ask.name] = one.value(*values, picture)
        return Order(model, task, seed, samples, steps or None, asked)

    def add(self, order, path):
        """A job that restores an uploaded picture; its result is a list of images."""
        def work(job):
            uploads.check_size(path, self.megapixels)
            palette, files = self.models.get(order.model), [path]
            files += [value for value in order.asked.values() if isinstance(value, str)]
            try:
                images = palette.restore(path, order.task, num_samples=order.samples, seed=order.seed,
                                         steps=order.steps, progress=job, **order.asked)
            except UserError as error:
                raise UserError(uploads.without_folders(error, *files)) from None
            about = {"model": palette.sha256, "task": order.task, "seed": order.seed, "steps": order.steps,
                     **{name: value for name, value in order.asked.items() if not isinstance(value, (np.ndarray, str))}}
            for number, image in enumerate(images):
                image.info["text"] = {**image.info.get("text", {}), "palette_ms": json.dumps({**about, "of": number})}
            return images

        return self.line.add(work)

    async def follow(self, session, job, what=""):
        """HTML of how far a job is, whenever that changes, until it has ended."""
        session.job, last = job, None
        while not job.ended.is_set():
            now = uploads.status(job, self.line.ahead(job), what)
            if now != last:
                yield now
            last = now
            await asyncio.sleep(POLL)

    def look(self, path, request: gr.Request):
        """A picture was chosen, or taken away."""
        session = self.session(request)
        session.picture, said = None, ""
        if path is not None:
            try:
                session.picture = uploads.read(path, self.megapixels)
                said = told("{} × {} pixels".format(*session.picture.size), 0)
            except UserError as error:
                path, said = None, problem(str(error))
        return {self.picture: path, self.status: said, **self._painters(session.picture)}

    def _painters(self, picture):
        return {one.painter: picture and picture.view for one in self.fields if isinstance(one, MaskField)}

    async def restore(self, request: gr.Request, *form):
        """Restore one picture, saying how far that is."""
        session = self.session(request)
        if session.busy:
            yield {self.status: problem("a picture of this page is at work: stop it first")}
            return
        session.busy, session.stopped, session.job = True, False, None
        try:
            if session.picture is None:
                raise UserError("choose a picture first")
            order = await asyncio.to_thread(self.order, session.picture, *form)
            job = self.add(order, session.picture.path)
            async for now in self.follow(session, job):
                yield {self.status: now}
            if job.problem:
                raise UserError(job.problem)
            await asyncio.to_thread(self._keep, session, order, job.result)
            caption = uploads.html.escape(session.results[0].caption)
            yield {self.status: told(f"done: {caption}"), **self._shown(session),
                   self.samples: gr.update(value=_gallery(session.results), visible=len(session.results) > 1),
                   self.history: gr.update(value=_gallery(session.history), visible=True)}
        except UserError as error:
            yield {self.status: problem(str(error))}
        finally:  # also where the browser has gone
            session.busy = False
            if session.job:
                session.job.stop()

    def _keep(self, session, order, images):
        """Write results, and put them at the head of the history."""
        folder, picture = session.folder / str(next(self._numbers)), session.picture
        folder.mkdir()
        picture.view.save(folder / "before.jpg", quality=92)
        session.results = []
        for number, image in enumerate(images):
            name = f"{picture.path.stem}_{order.task}_{order.seed}" + f"_{number}" * (len(images) > 1)
            path = Photo().save(image, Photo().path(folder / name))
            view = folder / f"view_{number}.jpg"
            uploads.view(image).save(view, quality=92)
            caption = f"{picture.name}, {order.caption()}" + f", sample {number}" * (len(images) > 1)
            session.results.append(Result(path, view, folder / "before.jpg", caption))
        session.history = session.results + session.history
        for old in session.history[HISTORY:]:
            old.path.unlink(missing_ok=True)
        del session.history[HISTORY:]
        session.chosen = session.results[0]

    def _shown(self, session):
        """The chosen result, to look at, to download and to go on with."""
        result = session.chosen
        with Image.open(result.before) as before, Image.open(result.view) as after:
            shown = uploads.compare(before, after, result.caption)
        return {self.compare: shown, self.download: gr.update(value=str(result.path), visible=True),
                self.again: gr.update(visible=True)}

    def choose(self, which, request, event):
        """A sample, or an earlier result, was chosen."""
        session = self.session(request)
        results = getattr(session, which)
        if not isinstance(event.index, int) or not 0 <= event.index < len(results):
            raise gr.Error("this result is not kept any more")
        session.chosen = results[event.index]
        return self._shown(session)

    def restore_again(self, request: gr.Request):
        """The chosen result becomes the picture."""
        session = self.session(request)
        if session.chosen is None:
            raise gr.Error("there is no result yet")
        session.picture = uploads.read(session.chosen.path, np.inf)
        return {self.picture: str(session.chosen.path), self.tabs: gr.update(selected="one"),
                self.status: told("{} × {} pixels: the result is the picture now".format(*session.picture.size), 0),
                **self._painters(session.picture)}

    def stop(self, request: gr.Request):
        session = self.session(request)
        session.stopped = True
        if session.job:
            session.job.stop()

    async def restore_all(self, request: gr.Request, paths, *form):
        """Restore several pictures, each a place in line, and put the results in a zip."""
        session = self.session(request)
        if session.busy:
            yield {self.status: problem("a picture of this page is at work: stop it first")}
            return
        session.busy, session.stopped, session.job = True, False, None
        folder = session.folder / str(next(self._numbers))
        try:
            if not paths or len(paths) > self.files:
                raise UserError(f"choose pictures first, {self.files} at most" if not paths else
                                f"these are {len(paths)} files; {self.files} at once are taken")
            order = await asyncio.to_thread(self.order, None, *form)
            paths, problems, count = [Path(path) for path in paths], [], 0
            names = result_names([Path(path.name) for path in paths], SUFFIXES)
            folder.mkdir()
            archive = folder / f"{order.task}_{order.seed}.zip"
            with zipfile.ZipFile(archive, "w") as zipped:  # PNG is compressed
                for number, (path, name) in enumerate(zip(paths, names)):
                    if session.stopped:
                        break
                    job = self.add(order, path)
                    async for now in self.follow(session, job, f"{number + 1} of {len(paths)}, {path.name}: "):
                        yield {self.status: now}
                    if job.problem:
                        problems.append(job.problem if path.name in job.problem else f"{path.name}: {job.problem}")
                        continue
                    for k, image in enumerate(job.result):
                        target = folder / (str(name) + f"_{k}" * (len(job.result) > 1))
                        file = await asyncio.to_thread(Photo().save, image, Photo().path(target))
                        await asyncio.to_thread(zipped.write, file, file.name)
                        file.unlink()
                    count += 1
            said = told(f"{count} of {len(paths)} pictures are restored" + ", then stopped" * session.stopped)
            yield {self.status: said + "".join(map(problem, problems)),
                   self.zip: gr.update(value=str(archive), visible=count > 0)}
        except UserError as error:
            yield {self.status: problem(str(error))}
        finally:
            session.busy = False
            if session.job:
                session.job.stop()

    # How it looks

    def blocks(self):
        """The page, `gradio.Blocks`."""
        names = [*self.models.tasks]
        first = self.models.tasks[names[0]]
        asks = dict.fromkeys(ask for tasks in self.models.tasks.values() for task in tasks.values()
                             for ask in task.asks)
        with gr.Blocks(title="palette_ms", analytics_enabled=False, delete_cache=(KEPT, 24 * KEPT)) as page:
            gr.Markdown("# palette_ms: restore pictures")
            with gr.Row():
                with gr.Column(min_width=300):
                    with gr.Tabs() as self.tabs:
                        with gr.Tab("One picture", id="one") as one:
                            self.picture = gr.File(label="picture: drop it here, or choose a file", elem_id="picture",
                                                   file_types=[*SUFFIXES], height=150)
                        with gr.Tab("Several", id="several") as several:
                            pictures = gr.File(label="pictures: drop them here, or choose files", elem_id="pictures",
                                               file_types=[*SUFFIXES], file_count="multiple")
                    model = gr.Dropdown(names, value=names[0], label="model", visible=len(names) > 1)
                    task = gr.Dropdown(_choices(first), value=next(iter(first)), label="task", elem_id="task")
                    self.fields, boxes = [], []
                    for ask in asks:
                        takes = ask in next(iter(first.values())).asks
                        with gr.Column(visible=takes, elem_id=f"ask-{ask.name}") as box:
                            self.fields.append(create_field(ask, self.megapixels))
                        boxes.append(box)
                    with gr.Row():
                        # A gr.Number that bounds tells of it beside the page, naming no field, and in the log.
                        seed, samples, steps = [gr.Number(ask.least, label=ask.name, info=ask.help, precision=0,
                                                          min_width=130, elem_id=ask.name)
                                                for ask in (SEED, SAMPLES, STEPS)]
                    with gr.Row():
                        go = gr.Button("Restore", variant="primary", elem_id="restore", min_width=130)
                        go_all = gr.Button("Restore all", variant="primary", elem_id="restore-all", min_width=130,
                                           visible=False)
                        stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=130)
                with gr.Column(min_width=300):
                    self.status = gr.HTML(elem_id="status", min_height=70)
                    self.zip = gr.DownloadButton("Download all (zip)", visible=False, elem_id="zip")
                    self.compare = gr.HTML(elem_id="result")
                    with gr.Row():
                        self.download = gr.DownloadButton("Download", visible=False, elem_id="download", min_width=130)
                        self.again = gr.Button("Restore this again", visible=False, elem_id="again", min_width=130)
                    gallery = {"visible": False, "columns": 4, "height": "auto", "fit_columns": False,
                               "allow_preview": False, "buttons": []}
                    self.samples = gr.Gallery(label="samples: choose one", elem_id="samples-made", **gallery)
                    self.history = gr.Gallery(label="history of this session", elem_id="history", **gallery)

            form = [model, task, seed, samples, steps, *(part for one in self.fields for part in one.parts)]
            painters = [one.painter for one in self.fields if isinstance(one, MaskField)]
            plain = {"show_progress": "hidden", "api_visibility": "private"}
            looked = [self.picture, self.status, *painters]
            self.picture.upload(self.look, self.picture, looked, **plain)
            self.picture.clear(self.look, self.picture, looked, **plain)
            model.change(lambda name: gr.update(choices=_choices(self.models.tasks[name]),
                                                value=next(iter(self.models.tasks[name]))), model, task, **plain)
            def ask_for(model, task, request: gr.Request):
                wanted = getattr(self.models.tasks[model].get(task), "asks", ())
                shown = {box: gr.update(visible=ask in wanted) for ask, box in zip(asks, boxes)}
                return {**shown, **self._painters(self.session(request).picture)}  # hidden, they forget it

            gr.on([task.change, model.change], ask_for, [model, task], [*boxes, *painters], **plain)
            for tab, alone in ((one, True), (several, False)):
                tab.select(lambda alone=alone: (gr.update(visible=alone), gr.update(visible=not alone)), None,
                           [go, go_all], **plain)
            shown = [self.compare, self.download, self.again]
            waits = {"concurrency_limit": None, **plain}  # the line has its own limit
            go.click(self.restore, form, [self.status, *shown, self.samples, self.history], **waits)
            go_all.click(self.restore_all, [pictures, *form], [self.status, self.zip], **waits)
            stop.click(self.stop, queue=False, **plain)

            def choose_sample(event: gr.SelectData, request: gr.Request):
                return self.choose("results", request, event)

            def choose_earlier(event: gr.SelectData, request: gr.Request):
                return self.choose("history", request, event)

            self.samples.select(choose_sample, None, shown, **plain)
            self.history.select(choose_earlier, None, shown, **plain)
            self.again.click(self.restore_again, None, [*looked, self.tabs], **plain)
            page.unload(self.leave)
        return page.queue(max_size=4 * self.line.longest, default_concurrency_limit=4, api_open=False)


def _choices(tasks):
    return [(name.replace("_", " "), name) for name in tasks]


def _gallery(results):
    return [(str(result.view), result.caption) for result in results]
