"""Models, one in memory at a time, and one line of jobs for all who use the page."""

import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from palette_ms.checkpoint import Checkpoint
from palette_ms.data.forms import Photo, forms
from palette_ms.errors import UserError


class Models:
    """The models that were named when the server was started. A browser chooses one by its name, never by a path.

    Args:
        paths: as `palette_ms.Palette.load` takes them.
        load: function of such a path → `Palette`.

    Attributes:
        tasks: {name: {task's name: `Task`}}, in the order of the paths and of the models' tasks.

    Raises:
        UserError: as `Palette.load`; or a model that makes pictures from nothing, or is not one of photos.
    """

    def __init__(self, paths, load):
        self._load = load
        self._paths, self.tasks = {}, {}
        self._loaded = None, None
        for path in dict.fromkeys(map(str, paths)):
            config = Checkpoint(path).config
            if not config.tasks[0].has_source:
                raise UserError(f"{path} makes pictures from nothing; the page restores some")
            if forms(config.data) != (Photo(), Photo()):
                raise UserError(f"{path} is for arrays; the page is for photos: python -m palette_ms.sample takes both")
            name = stem = Path(path).stem
            while name in self.tasks:
                name = f"{stem}~{len(self.tasks) + 1}"
            self._paths[name] = path
            self.tasks[name] = {task.name: config.tasks[config.place(task.name)] for task in config.tasks}

    def get(self, name):
        """The `Palette` of a name. The one before is forgotten first. To be called from one thread."""
        if self._loaded[0] != name:
            self._loaded = None, None
            self._loaded = name, self._load(self._paths[name])
        return self._loaded[1]


class Cancelled(Exception):
    """A job was stopped."""


@dataclass(eq=False)
class Job:
    """A piece of work in line. It is the `progress` of `Palette.restore`, and that is where it can be stopped: between
    two network calls.

    Attributes:
        total, done: network calls; total None: they have not begun.
        shown: a PIL image of what there is so far, or None.
        result: what the work returned, once `ended`.
        problem: why there is none, in a line or two.
        ended: threading.Event.
    """

    total: Optional[int] = None
    done: int = 0
    shown: Optional[object] = None
    result: object = None
    problem: Optional[str] = None
    ended: threading.Event = field(default_factory=threading.Event)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self):
        self._stopped.set()

    def reset(self, total):
        self.total, self.done = total, 0
        self.update(0)

    def preview(self, image):
        self.shown = image

    def update(self, n=1):
        self.done += n
        if self._stopped.is_set():
            raise Cancelled


class Line:
    """Jobs are done one after the other, in the order they came, by one thread: the network has the machine's cores, or
    the card, to itself, and whoever serves the page does not wait for it.

    Args:
        longest: jobs in it at most, the one at work included.
    """

    def __init__(self, longest):
        self.longest = longest
        self._jobs, self._lock = [], threading.Lock()
        self._thread = ThreadPoolExecutor(1, "work")

    def add(self, work):
        """A `Job` at the end of the line.

        Args:
            work: function of the job → its result.

        Raises:
            UserError: the line is full.
        """
        with self._lock:
            if len(self._jobs) >= self.longest:
                raise UserError(f"{len(self._jobs)} pictures are in line already: try again in a while")
            job = Job()
            self._jobs.append(job)
        self._thread.submit(self._do, job, work)
        return job

    def ahead(self, job):
        """How many jobs come before it."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    def close(self):
        """Stop all jobs, and take no more."""
        with self._lock:
            for job in self._jobs:
                job.stop()
        self._thread.shutdown(cancel_futures=True)

    def _do(self, job, work):
        try:
            job.update(0)  # it may have been stopped while it waited
            job.result = work(job)
        except Cancelled:
            job.problem = "stopped"
        except UserError as error:
            job.problem = str(error)
        except Exception as error:
            if isinstance(error, MemoryError) or "alloc" in str(error):
                job.problem = "there is not enough memory for it: a smaller picture or fewer samples take less"
            else:
                traceback.print_exc(file=sys.stderr)
                job.problem = "this is a bug of palette_ms; the server's terminal shows where"
        finally:
            with self._lock:
                self._jobs.remove(job)
            job.ended.set()
