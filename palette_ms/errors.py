"""Mistakes of the user and runs that end early, told in one or two lines, and the exit statuses for them."""

import difflib
import sys

# Exit statuses beside 0, and 128 plus the number of a signal: 130 for Ctrl-C, 143 for SIGTERM.
MISTAKE = 2
NOT_FINITE = 3
NOT_WRITTEN = 4


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and how to mend it, in one or two lines."""


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
    """Run a verb's `main()`: a UserError, Stopped or Ctrl-C ends it with its message alone and its exit status."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)
