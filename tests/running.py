"""Verbs and scripts in the tests' own process."""

import importlib
import sys

from palette_ms import errors


def status(verb, *arguments):
    """The exit status of a verb, a module with `main`, 0 where it ends by itself."""
    before, sys.argv = sys.argv, [verb.__name__.rpartition(".")[2], *map(str, arguments)]
    try:
        errors.run(verb.main)
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    return 0


def imported(path):
    """A script as a module, by its path; it may import those beside it."""
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.stem)
    finally:
        sys.path.pop(0)
