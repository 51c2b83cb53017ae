"""OBS, by way of moxing, which comes with ModelArts' images. Local paths are taken as they are."""

import re
from pathlib import Path

from palette_ms.data.files import replacing
from palette_ms.errors import UserError


def is_remote(path):
    """Whether a path is one in OBS."""
    return path.startswith(("obs://", "s3://"))


def _files(url):
    try:
        import moxing

        return moxing.file
    except (ImportError, AttributeError):  # the package of that name on PyPI has no `file`
        raise UserError(f"{url} needs moxing, which comes with ModelArts' images (the package of that name on PyPI is "
                        "another one): give a local path, or take an image that has it") from None


def fetch(path, folder):
    """What is at a path, as a local one: a local path itself, or a copy below `folder` of a file or folder in OBS.

    A whole copy from an earlier start is used again.

    Raises:
        UserError: there is nothing, or no moxing to fetch it with.
    """
    if not is_remote(path):
        if not Path(path).exists():
            raise UserError(f"no such file or folder: {path}")
        return Path(path)
    files, url = _files(path), path.rstrip("/")
    folder = local_folder(folder, url)
    target, whole = folder / url.rpartition("/")[2], folder / "fetched"
    if whole.exists():
        return target
    if not files.exists(url):
        raise UserError(f"there is nothing at {path}")
    folder.mkdir(parents=True, exist_ok=True)
    if files.is_directory(url):
        files.copy_parallel(url, str(target))
    else:
        files.copy(url, str(target))
    whole.touch()
    return target


def local_folder(folder, url):
    """Where what belongs to one path in OBS has its place below a folder, apart from what belongs to others."""
    return Path(folder) / re.sub(r"\W+", "_", url).strip("_")


class Mirror:
    """Keeps a folder in OBS as a local one is.

    Args:
        folder: local; created.
        url: in OBS.
    """

    def __init__(self, folder, url):
        self.folder, self.url = Path(folder), url.rstrip("/")
        self._files = _files(url)
        self._sent = {}  # name → (size, time) of what lies in OBS
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, patterns, exactly=False):
        """Copy files that are there and not here.

        Args:
            patterns: which, as in `Path.glob`, in the folder itself.
            exactly: remove here what is not there.
        """
        there = self._files.list_directory(self.url) if self._files.exists(self.url) else ()
        for name in there:
            path = self.folder / name
            if any(path.match(pattern) for pattern in patterns):
                if not path.exists():
                    with replacing(path) as part:
                        self._files.copy(f"{self.url}/{name}", str(part))
                self._sent[name] = _state(path)
        if exactly:
            for path in [path for pattern in patterns for path in self.folder.glob(pattern)]:
                if path.name not in there:
                    path.unlink()

    def send(self):
        """Copy what is new or has changed, then remove there what was removed here.

        Files whose names end in .part are being written and are left alone.
        """
        here = {path.relative_to(self.folder).as_posix(): path
                for path in sorted(self.folder.rglob("*")) if path.is_file() and path.suffix != ".part"}
        for name, path in here.items():
            try:
                state = _state(path)
                if self._sent.get(name) != state:
                    self._files.copy(str(path), f"{self.url}/{name}")
                    self._sent[name] = state
            except FileNotFoundError:  # an old training state, removed meanwhile
                continue
        for name in self._sent.keys() - here.keys():
            self._files.remove(f"{self.url}/{name}")
            del self._sent[name]


def _state(path):
    status = path.stat()
    return status.st_size, status.st_mtime_ns
