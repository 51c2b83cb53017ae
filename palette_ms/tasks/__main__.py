"""python -m palette_ms.tasks: what tasks there are, what a user may ask of them, and their options in a config."""

import argparse
import dataclasses
import textwrap

from palette_ms import errors
from palette_ms.tasks import TASKS, Task, task_class
from palette_ms.tasks.imports import add_import
from palette_ms.tasks.task import bounds


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.tasks", description=__doc__)
    add_import(parser)
    parser.parse_args()
    common = dataclasses.fields(Task)
    for name, task in [(name, task_class(name)) for name in sorted(TASKS)]:
        print(f"{name}: {' '.join((task.__doc__ or '').split())}")
        for ask in task.asks:
            _tell(f"--{ask.name}", f"{ask.help} ({ask.range()})")
        for field in dataclasses.fields(task):
            if field.name not in {other.name for other in common}:
                _tell_option(field)
    print("every task:")
    for field in common:
        _tell_option(field)


def _tell_option(field):
    _tell(f"{field.name}: {_yaml(field.default)}", field.metadata["help"] + f" ({bounds(field)})" * bool(bounds(field)))


def _tell(what, help):
    print(textwrap.fill(f"{what}  {help}", 120, initial_indent="  ", subsequent_indent="      "))


def _yaml(value):
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else "null" if value is None else value


if __name__ == "__main__":
    errors.run(main)
