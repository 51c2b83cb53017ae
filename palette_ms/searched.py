"""The file beside a checkpoint that holds the steps searched for it: MODEL.steps.json."""

import json
import sys
from pathlib import Path

from palette_ms.data.files import replacing
from palette_ms.errors import UserError

_LARGEST = 2**24  # characters; what is longer does not end as JSON does


def steps_file(path):
    """Where the steps searched for a checkpoint at a path are kept."""
    return Path(path).with_suffix(".steps.json")


def load_steps(checkpoint):
    """The steps searched for a `Checkpoint`: task → number of steps → steps of the test schedule, ascending.

    Empty where there are none, or only some for another checkpoint that had this name before, which is said on stderr.

    Raises:
        UserError: the file is damaged.
    """
    path = steps_file(checkpoint.path)
    if not path.is_file():
        return {}
    lengths = {task.name: (task.test_schedule or checkpoint.config.diffusion.test_schedule).num_steps
               for task in checkpoint.config.tasks}
    try:
        with open(path, encoding="utf-8") as file:
            held = json.loads(file.read(_LARGEST))
        digest, found = held["sha256"], {}
        for task, ways in held["tasks"].items() if digest == checkpoint.sha256 else ():
            found[task] = {int(count): _checked(steps, int(count), lengths[task]) for count, steps in ways.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:100]}): remove it, or search the steps again") from None
    if digest != checkpoint.sha256:
        print(f"not used: {path} was searched for another checkpoint", file=sys.stderr)
        return {}
    return found


def _checked(steps, count, length):
    if (len(steps) != count or any(type(step) is not int or not 0 <= step < length for step in steps)
            or sorted(set(steps)) != steps):
        raise ValueError(f"not {count} steps from 0 to {length - 1}, ascending")
    return steps


def save_steps(checkpoint, found):
    """Write them, beside those found earlier for the same `Checkpoint`. Returns the path."""
    path = steps_file(checkpoint.path)
    tasks = load_steps(checkpoint)
    for task, ways in found.items():
        tasks[task] = {**tasks.get(task, {}), **ways}
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"sha256": checkpoint.sha256, "tasks": tasks}) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path
