"""Folders and file names: what is found, what results are called, how they are written whole, who is at work."""

import os
import re
import sys
import unicodedata
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from palette_ms.errors import UserError

# What other programs and systems keep beside a user's files, besides what is hidden.
_OTHERS = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"}
# Of files with other suffixes than pictures these are not worth a word.
TEXTS = {".txt", ".md", ".json", ".jsonl", ".csv", ".xml", ".yaml", ".yml", ".html", ".log", ".ini", ".db", ".py"}
_PART = re.compile(r"\.palette_ms\.\d+\.\d+\.part")
_parts = 0  # temporary names that this process has given


def expand(path):
    """A `Path` with ~ replaced, which a shell leaves after an equals sign. Raises UserError: it is empty, and would be
    the folder where the command is given."""
    if not str(path):
        raise UserError("the name of a file or folder is empty: is it a variable of the shell that has no value?")
    return Path(os.path.expanduser(path))


def is_others(name):
    """Whether a file or folder of this name is hidden, or what another program keeps beside the user's pictures."""
    return name.startswith(".") or name.lower() in _OTHERS


def find(folder, suffixes, leave_out=()):
    """All files below a folder that have some suffixes, but for hidden ones and those of `is_others`.

    Linked folders are followed, each once and never in a circle.

    Args:
        folder: a path.
        suffixes: in lower case.
        leave_out: folders below this one that do not count, such as the one for results.

    Returns: (list of paths, sorted; `Counter` of why others were left out).
    """
    found, left_out, linked = [], Counter(), set()
    leave_out = {None, *map(identity, leave_out)}

    def search(folder, above):
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            left_out[f"folders that cannot be read ({error.strerror})"] += 1
            return
        for entry in entries:
            suffix = Path(entry.name).suffix.lower()
            if is_others(entry.name):
                continue
            if _follow(entry.is_dir):
                place = identity(entry.path)
                if place in leave_out:
                    continue
                if entry.is_symlink() and (place in above or place in linked):
                    left_out["links to folders that are there already"] += 1
                    continue
                if entry.is_symlink():
                    linked.add(place)
                search(entry.path, above | {place})
            elif not _follow(entry.is_file):
                left_out["broken links" if entry.is_symlink() and not os.path.exists(entry.path)
                         else "pipes or devices"] += 1
            elif suffix in suffixes:
                found.append(Path(folder, entry.name))
            elif suffix not in TEXTS:
                left_out[other_files(suffix)] += 1

    search(folder, {identity(folder)})
    return sorted(found), left_out


def other_files(suffix):
    """Why a file of a suffix was left out."""
    return f"files that end in {suffix}" if suffix else "files without a suffix"


def _follow(question):
    """What `os.DirEntry.is_dir` or `is_file` says; False of a link that leads in a circle."""
    try:
        return question()
    except OSError:
        return False


def identity(path):
    """What two names of one folder or file have in common; None: there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def tell_left_out(place, left_out):
    """One line on stderr about what `find` left out, if anything."""
    if left_out:
        told = ", ".join(f"{why}: {count}" for why, count in left_out.most_common(6))
        tqdm.write(f"left out of {place}: {told}{', …' if len(left_out) > 6 else ''}", file=sys.stderr)


def resolve_links(links, members):
    """The members of an archive that its links stand for.

    Args:
        links: name → name of what it links to, both `PurePosixPath`s below the archive's root.
        members: name → anything, the archive's files.

    Returns: (name → what `members` has, of each link to a file; how many links lead elsewhere).
    """
    found = {}
    for link in links:
        name, steps = link, 0
        while name in links and name not in members and steps < 40:
            name, steps = links[name], steps + 1
        if name in members:
            found[link] = members[name]
    return found, len(links) - len(found)


def link_target(link, text):
    """Where a link in an archive leads, relative to it, as a `PurePosixPath` below the archive's root."""
    return PurePosixPath(os.path.normpath(str(link.parent / text)))


# Names

def same_name(name):
    """A name as file systems may compare it: Unicode composed or not, in small letters or capitals."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(name)).casefold())


def stem(path, suffixes):
    """A path without its suffix, if that is one of some: other dots are part of the name."""
    return path.with_name(path.name[:-len(path.suffix)]) if path.suffix.lower() in suffixes else path


def result_names(names, suffixes):
    """What a result made of each picture is called, without suffix: as the picture is.

    Where two would have one name, they keep their suffixes: `a.jpg` and `a.png` become `a_jpg` and `a_png`; where one
    of these is taken too, a number is added.

    Args:
        names: the pictures' relative paths.
        suffixes: of pictures, in lower case.

    Returns: list of relative paths, no two of which are one name in any file system.
    """
    stems = [stem(name, suffixes) for name in names]
    count = Counter(map(same_name, stems))
    taken = {name for name, number in count.items() if number == 1}
    results = []
    for name, short in zip(names, stems):
        result = short
        if count[same_name(short)] > 1:
            result = plain = short.with_name(name.name.replace(".", "_"))
            number = 2
            while same_name(result) in taken:
                result, number = plain.with_name(f"{plain.name}~{number}"), number + 1
            taken.add(same_name(result))
        results.append(result)
    return results


def by_name(folder, suffixes, files):
    """Files below a folder by what a result of each is called, see `plain_name`."""
    names = result_names([path.relative_to(folder) for path in files], suffixes)
    return dict(zip(map(plain_name, names), files))


def plain_name(path):
    """A relative path as a text, its Unicode composed, with slashes between folders."""
    return unicodedata.normalize("NFC", path.as_posix())


# Writing

@contextmanager
def replacing(path):
    """A temporary file beside a path, whose folder is made; what was written there takes the path's place at the end,
    and is removed where something fails."""
    global _parts
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        _parts += 1
        temporary = path.with_name(f".palette_ms.{os.getpid()}.{_parts}.part")
        with suppress(FileExistsError):
            # Made exclusively: whatever has this name already stays. Not by tempfile, whose files others cannot read.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            break
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_parts(folder):
    """Remove what `replacing` left in a folder of processes that were killed."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if _PART.fullmatch(entry.name):
                Path(entry.path).unlink(missing_ok=True)


@contextmanager
def at_work(path):
    """Holds the lock of a file, which is made where there is none, so that no two runs write into its folder.

    The lock goes with its process. A file that is still empty at the end is removed, with its folder where that is new
    and empty too.

    Raises:
        UserError: another process holds it, or the file cannot be written.
    """
    path = Path(path)
    new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()
                    if new:
                        path.parent.rmdir()


def _locked(path):
    try:
        import fcntl
    except ImportError:  # Windows
        return open(path, "ab")
    while True:
        file = open(path, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"another run is writing into {path.parent}: wait for it, or choose another "
                            "folder") from None
        except OSError as error:  # a file system that knows no locks
            print(f"warning: whether another run writes into {path.parent} cannot be told ({error.strerror})",
                  file=sys.stderr)
            return file
        if identity(path) == identity(file.fileno()):
            return file
        file.close()  # the run before removed it meanwhile
