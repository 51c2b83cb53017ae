"""Mistakes of the user, told in one or two lines."""

import difflib
import sys


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and how to mend it, in one or two lines."""


def did_you_mean(word, choices):
    """The end of a message about a name that is none of the choices: the nearest of them, or all."""
    near = difflib.get_close_matches(str(word), list(choices), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(choices)}"


def run(main):
    """Run a verb's `main()`: a UserError or Ctrl-C ends it with its message alone, exit status 2 or 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
