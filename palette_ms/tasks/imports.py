"""Tasks of the user's own, in files of the user's: `--import my_tasks.py` on every command."""

import argparse
import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path

from palette_ms.errors import UserError

HELP = "a Python file with tasks of your own, which is run (docs/your_own_task.md); may be given several times"


def add_import(parser):
    """Add `--import` to a command's parser, and run the files that the command line names.

    At once, since the parser may have to know what their tasks ask. Only the command line can name files: configs and
    checkpoints never do, so that loading one runs no code.

    Raises:
        UserError: a file is missing, is no Python, or fails.
    """
    def add(to, **options):
        to.add_argument("--import", dest="imports", action="append", default=[], metavar="FILE.py", **options)

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=parser.prog)
    add(first)
    for path in first.parse_known_args()[0].imports:
        import_tasks(path)
    parser.allow_abbrev = False  # an abbreviated --import would not have been seen above
    add(parser, help=HELP)


def import_tasks(path):
    """Run a file of tasks, once a process. What lies beside it can be imported by it.

    Raises:
        UserError: as `add_import`.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise UserError(f"--import {path}: there is no such file")
    # A name of its own: the file's may be that of a module that is there, and two files may have one name.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError(f"--import {path}: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        del sys.modules[name]
        raise UserError(f"--import {path}: {error}") from None
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise UserError(f"--import {path}, line {line}: {type(error).__name__}: "
                        f"{' '.join(str(getattr(error, 'msg', error)).split())}") from None
