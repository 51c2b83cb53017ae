"""Tasks, one file each: see `palette_ms.tasks.task`. All files of this folder are read, so that a new one is known."""

import importlib
import pkgutil

from palette_ms.tasks.task import TASKS, Task, check_asked, known_asks, option, task_class

__all__ = ["TASKS", "Task", "check_asked", "known_asks", "option", "task_class"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
