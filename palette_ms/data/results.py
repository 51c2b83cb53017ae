"""What `sample` makes in a folder: where it may be written, and the record by which a later run knows it.

The record is a hidden file of JSON lines in the folder. Of each result there is a line before it is written, its name
alone, and one after: what it was made of and its checksum. Whenever the process is killed, a file that the record names
is an earlier result or a new one, both whole; and what has another checksum by now is the user's.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple, Optional

from palette_ms.data.files import clear_parts, identity
from palette_ms.errors import UserError

RECORD = ".palette_ms.jsonl"


class Work(NamedTuple):
    """A picture and its results."""

    picture: Optional[Path]  # None: pictures are made from nothing
    path: Path  # the picture's relative one, which names it among all
    name: str  # that of the result, relative, without suffix and number
    folder: Path  # of the results
    target: Path  # of the result, without suffix and number


def digest(*things):
    """SHA-256, as hex digits, of texts, numbers and the contents of files (`Path`)."""
    whole = hashlib.sha256()
    for thing in things:
        part = hashlib.sha256()
        if isinstance(thing, Path):
            with open(thing, "rb") as file:
                while block := file.read(2**20):
                    part.update(block)
        else:
            part.update(json.dumps(thing, sort_keys=True, default=str).encode())
        whole.update(part.digest())
    return whole.hexdigest()


class Results:
    """The results in a folder, of earlier runs and of this one.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.lines = {}  # file, relative to the folder → its last line
        try:
            text = (self.folder / RECORD).read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.folder / RECORD}: {error}") from None
        for line in text.splitlines():
            try:
                line = json.loads(line)
                if all(isinstance(line[key], str) for key in ("file", "of", "run", "made_of")) and all(
                        isinstance(line.get(key), (str, type(None))) for key in ("from", "content", "sha256")):
                    self.lines[line["file"]] = line
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue  # cut off, or not ours
        self._whole = text.endswith("\n") or not text

    def note(self, path, **line):
        """Add a line on a result to the record."""
        line = {"file": self._name(path), **line}
        text = json.dumps(line) + "\n"
        with open(self.folder / RECORD, "ab") as file:
            file.write((text if self._whole else "\n" + text).encode())  # in one piece: ranks write side by side
        self._whole = True
        self.lines[line["file"]] = line

    def _name(self, path):
        return os.path.relpath(path, self.folder)

    def about(self, work, run):
        """What lines on a `Work` of a run say, besides what its results are made of."""
        picture = work.picture
        return {"of": work.name, "run": run, "from": picture and self._name(picture),
                "content": picture and digest(picture)}

    def holds(self, path):
        """Whether a file is a result of this or an earlier run, as it was written."""
        line = self.lines.get(self._name(path))
        return line is not None and line.get("sha256") in (None, digest(path))

    def is_done(self, path, made_of):
        """Whether a result is there that was made of the same (see `digest`), as it was written."""
        line = self.lines.get(self._name(path), {})
        return bool(line.get("sha256")) and line["made_of"] == made_of and path.is_file() and self.holds(path)

    def confirm(self, paths, run):
        """Results that are done count as those of a run."""
        for path in paths:
            line = self.lines[self._name(path)]
            if line["run"] != run or line.get("left_over"):
                self.note(path, **{**line, "run": run, "left_over": False})

    def is_of(self, path, picture):
        """Whether an earlier result is of a picture (None: of none), by its place or its content."""
        line = self.lines[self._name(path)]
        if picture is None or line.get("from") == self._name(picture):
            return (picture is None) == (line.get("from") is None)
        return picture.is_file() and line.get("content") == digest(picture)

    def check(self, picture, paths, inputs):
        """Why the results of a picture cannot be written, or None.

        Args:
            picture: its path, or None.
            paths: of the results.
            inputs: `identity` of each file that the run reads.

        Raises:
            UserError: a file that is an input, or no result of `sample`, would be overwritten.
        """
        for path in paths:
            try:
                os.lstat(path)
            except FileNotFoundError:
                continue
            except OSError as error:  # too long a name, a file where a folder is needed
                return f"cannot write {path}: {error.strerror}"
            if path.is_dir():
                return f"cannot write {path}: a folder has this name"
            if identity(path) in inputs:
                raise UserError(f"{path} would be overwritten, and is an input: choose another --output")
            if not path.is_file() or not self.holds(path):
                raise UserError(f"{path} would be overwritten, and is no result of this command, or was changed since: "
                                "move it away, or choose another --output")
            if not self.is_of(path, picture):
                raise UserError(f"{path} would be overwritten, and is the result of another picture: choose another "
                                "--output")
        return None

    def tell_left_overs(self, works, paths, run, also):
        """Mark what earlier runs made of the same pictures and this one does not, and say so in a line; remove what
        killed ones left half-written.

        Args:
            works: `Work`s of this run.
            paths: of all results of this run.
            run: `digest` of what all of the run's pictures have in common.
            also: results of other numbers, made in the same way, count as this run's.
        """
        for folder in {path.parent for path in paths}:
            clear_parts(folder)
        names, ours = {work.name for work in works}, {self._name(path) for path in paths}
        left = []
        for file, line in list(self.lines.items()):
            if (line.get("of") in names and not (line["run"] == run and (also or file in ours))
                    and os.path.exists(self.folder / file)):
                if not line.get("left_over"):
                    self.note(self.folder / file, **{**line, "left_over": True})
                if file not in ours:
                    left.append(file)
        if left:
            print(f"left over in {self.folder} from earlier runs: {len(left)} results of these pictures, such as "
                  f"{min(left)}; evaluate leaves them out", file=sys.stderr)

