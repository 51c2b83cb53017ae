"""Mistakes of the user, told in one or two lines."""

import sys


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and how to mend it, in one or two lines."""


def run(main):
    """Run a verb's `main()`: a UserError or Ctrl-C ends it with its message alone, exit status 2 or 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
