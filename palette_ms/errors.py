"""Mistakes of the user and runs that end early, told in one or two lines, and the exit statuses for them."""

import codecs
import difflib
import os
import signal
import sys
import threading
import traceback

# Exit statuses beside 0, and 128 plus the number of a signal: 130 for Ctrl-C, 143 for SIGTERM.
BUG = 1
MISTAKE = 2
NOT_FINITE = 3
NOT_WRITTEN = 4


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and how to mend it, in one or two lines.

    Examples:
        >>> from palette_ms.config import load_config
        >>> try:
        ...     load_config("photo", ["training.stepz=7"])
        ... except UserError as error:
        ...     print(error)
        photo: unknown key training.stepz; did you mean steps?
    """


class Stopped(Exception):
    """A run that ends early through no mistake of the user: what is to be said, and the process's exit status."""

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


def did_you_mean(word, choices, otherwise=None):
    """The end of a message about a name that is none of the choices: the nearest of them, or else all (or what is to
    stand there otherwise)."""
    near = difflib.get_close_matches(str(word), list(choices), 1, 0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(choices)}" if otherwise is None else otherwise


def run(main):
    """Run a verb's `main()`: a UserError, Stopped or Ctrl-C ends it with its message alone and its exit status, as does
    any other error, which is our own. `--debug`, among the arguments of any verb, shows where an error is from.

    What a file or folder refuses is told with its name, wherever that was found.

    SIGTERM ends it so that what is half-written is removed. Where the reader of its output has gone, it ends quietly,
    as by SIGPIPE. Names that are not UTF-8, or not in the terminal's alphabet, are written all the same.
    """
    debug = "--debug" in sys.argv[1:]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--debug"]
    codecs.register_error("palette_ms", _somehow)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="palette_ms")
    previous = None
    if threading.current_thread() is threading.main_thread():
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        try:
            main()
            sys.stdout.flush()
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            text, status = _told(error)
            print(text, file=sys.stderr)
            sys.exit(status)
    except BrokenPipeError:
        # What waits to be written would fail once more when Python ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(nowhere, stream.fileno())
        sys.exit(128 + signal.SIGPIPE)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _told(error):
    """What is said of an error, and the exit status."""
    if isinstance(error, UserError):
        return f"error: {error}", MISTAKE
    if isinstance(error, Stopped):
        return str(error), error.status
    if isinstance(error, OSError) and error.filename is not None:  # no right to it, a disk that is full or gone
        return f"error: {os.fsdecode(error.filename)}: {error.strerror}", MISTAKE
    if isinstance(error, MemoryError):
        return (f"error: memory is full ({error or 'it was asked for more than there is'}): smaller tiles, fewer "
                "samples or a smaller batch take less"), MISTAKE
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "mindspore":
        return ("error: this needs MindSpore, which is not installed: pip install 'mindspore>=2.7,<2.11' (restoring on "
                "a CPU does without)"), MISTAKE
    return (f"this is a bug of palette_ms: {type(error).__name__}: {' '.join(str(error).split())[:300]}; --debug shows "
            "where"), BUG


def _somehow(error):
    """How to write what a stream's encoding lacks: the bytes that a file name has, or else an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
