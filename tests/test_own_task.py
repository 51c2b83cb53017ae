"""Tasks of the user's own: the text of docs/your_own_task.md, run as it stands, and mistakes."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from palette_ms.errors import UserError
from palette_ms.tasks import TASKS
from palette_ms.tasks.imports import import_tasks

QUICK = ["training.steps=2", "training.batch_size=2", "training.sample_every=0"]


def run(words, folder):
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)


def test_the_page_leads_from_the_file_to_a_used_model(repository, tmp_path):
    text = (repository / "docs" / "your_own_task.md").read_text(encoding="utf-8")
    code = {language: [] for language in ("python", "yaml", "bash")}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
        code[language].append(block)
    task, use = code["python"]
    (tmp_path / "deraining.py").write_text(task, encoding="utf-8")
    (tmp_path / "use.py").write_text(use, encoding="utf-8")
    (tmp_path / "deraining.yaml").write_text(code["yaml"][0], encoding="utf-8")
    (tmp_path / "photos").mkdir()
    photo = Image.fromarray(data.astronaut()).resize((96, 80))
    photo.save(tmp_path / "photos" / "a.png")
    photo.save(tmp_path / "rainy.jpg")
    train, sample = (shlex.split(block) for block in code["bash"])
    done = run([*train[1:], *QUICK], tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(sample[1:], tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(["use.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    by_command, in_python = (np.asarray(Image.open(tmp_path / name)) for name in ("outputs/rainy.png", "dry.png"))
    np.testing.assert_array_equal(by_command, in_python)
    assert by_command.shape == (80, 96, 3)
    # The untrained task starts from a model of others, so that the picture is still there.
    assert np.abs(by_command.astype(float) - np.asarray(photo)).mean() < 40
    done = run(["-m", "palette_ms.tasks", "--import", "deraining.py"], tmp_path)
    assert "slant: 25.0  largest angle to the vertical, in degrees" in done.stdout, done.stderr
    # A checkpoint names its tasks and never brings code along.
    words = [word for word in sample[1:] if word not in ("--import", "deraining.py")]
    done = run(words, tmp_path)
    assert done.returncode == 2 and "there is no task 'deraining'" in done.stderr and "Traceback" not in done.stderr
    assert "--import FILE.py" in done.stderr


TASK = """
from dataclasses import dataclass
from palette_ms.tasks import Task

{decorator}
class Own(Task):
    name = "{name}"

    def pair(self, y_0, rng):
        return y_0, None
"""


@pytest.fixture
def own(tmp_path):
    def write(text, name="own.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    path = list(sys.path)
    yield write
    TASKS.pop("own", None)
    sys.path[:] = path


def test_a_file_may_be_imported_twice_and_have_the_name_of_a_module(own):
    path = own(TASK.format(decorator="@dataclass(frozen=True)", name="own"), "random.py")
    for _ in range(2):
        import_tasks(path)
    assert TASKS["own"]().to_dict()["name"] == "own"
    assert Path(importlib.import_module("random").__file__) != path  # still the standard library's


@pytest.mark.parametrize("text, message", [
    ("1 +", "own.py, line 1: SyntaxError"), ("\nimport nothing_of_that_name", "line 2: ModuleNotFoundError"),
    ("raise SystemExit(3)", "line 1: SystemExit: 3"),
    (TASK.format(decorator="@dataclass(frozen=True)", name="denoising"), "there is a task denoising already"),
])
def test_mistakes_in_a_file_are_told_with_their_line(own, text, message):
    with pytest.raises(UserError, match=message) as error:
        import_tasks(own(text))
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_python_is_told(own, tmp_path):
    for path, message in ((tmp_path / "none.py", "there is no such file"), (own("", "own.txt"), "must end in .py")):
        with pytest.raises(UserError, match=message):
            import_tasks(path)


def test_a_task_without_its_decorator_is_told(own):
    from palette_ms.config import config_from_dict

    import_tasks(own(TASK.format(decorator="", name="own")))
    with pytest.raises(UserError, match=r"needs @dataclass\(frozen=True\)"):
        config_from_dict({"tasks": [{"name": "own"}]}, "c.yaml")


def test_the_commands_take_the_option(own, tmp_path):
    for verb in ("train", "sample", "evaluate", "export", "search_steps", "estimate", "convert"):
        done = run(["-m", f"palette_ms.{verb}", "--import", "none.py"], tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: --import ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("line, message", [
    ("return y_0.astype(float)[:1], None", r"task own gives a source of the shape \(1, 4, 4\)"),
    ("return y_0", "must give a source and a mask"), ("return y_0, rng.random((4, 4))", "gives a mask of the shape"),
    ("return None, None", "gives a source of the shape"), ("return y_0 * float('nan'), None", "NaN or infinite"),
    ("return y_0, 2 + y_0[:1]", "a mask with values that are not from 0 to 1"),
    ("return [[1], [1, 2]], None", "gives a source of the shape"),
])
def test_what_a_task_gives_is_checked(own, line, message):
    import_tasks(own(TASK.format(decorator="@dataclass(frozen=True)", name="own").replace("return y_0, None", line)))
    with pytest.raises(UserError, match=message):
        TASKS["own"]().checked_pair(np.zeros((3, 4, 4), np.float32), np.random.default_rng(0), 3)


def test_a_task_may_work_in_place_and_in_doubles(own):
    text = TASK.format(decorator="@dataclass(frozen=True)", name="own")
    import_tasks(own(text.replace("return y_0, None", "y_0 *= 0.5; return y_0.astype(float), None")))
    y_0 = np.ones((3, 4, 4), np.float32)
    cond, _ = TASKS["own"]().checked_pair(y_0, np.random.default_rng(0), 3)
    assert (y_0 == 1).all() and (cond == 0.5).all() and cond.dtype == np.float32


@pytest.mark.parametrize("field, message", [
    ("k: int = 3", r"k must be an option"), ("steps = None; asks = (Ask('steps', ''),)", "which every task takes"),
    ("asks = (Ask('num-samples', ''),)", "cannot be the name of an ask"),
    ("required = ('nix',)", "for each name in required"),
    ("asks = (Ask('a', '', choices=[2]),)", "the type of the ask a"),
    ("k: int = option('x', 'no number')", "default.k must be"),
    ("k: dict = option({}.get('x'), 'of a kind that no config holds')", "which no config can hold"),
    ("k: 'Literal[2, 4]' = option(2, 'one of two')", "k is 3; it must be one of 2, 4"),
])
def test_options_and_asks_that_cannot_be_are_told(own, field, message):
    from palette_ms.config import config_from_dict

    text = TASK.format(decorator="@dataclass(frozen=True)", name="own")
    text = text.replace('name = "own"', f'name = "own"\n    {field}')
    text = text.replace("import Task", "import Task, option\nfrom palette_ms.tasks.asks import Ask\nfrom typing import "
                                       "Literal")
    with pytest.raises(UserError, match=message):
        import_tasks(own(text))
        config_from_dict({"tasks": [{"name": "own", "k": 3}]}, "c.yaml")


def test_attributes_of_a_task_are_no_options():
    from palette_ms.config import config_from_dict

    for task, message in (({"name": "denoising", "has_source": False}, "unknown key .*has_source"),
                          ({"name": ["a"]}, "name must be a text"), ({}, "name must be given")):
        with pytest.raises(UserError, match=message):
            config_from_dict({"tasks": [task]}, "c.yaml")


def test_what_a_task_says_of_sizes_holes_and_guesses_is_checked(own):
    text = TASK.format(decorator="@dataclass(frozen=True)", name="own") + """
    def size(self, height, width, asked):
        return 1.5 * height, width

    def holes(self, height, width, asked, rng):
        return [[[True] * width] * height]

    def guess(self, cond, hole):
        return cond[:1]
"""
    import_tasks(own(text))
    task, y = TASKS["own"](), np.zeros((3, 4, 5), np.float32)
    with pytest.raises(UserError, match=r"of the size 4×5: it must be two whole numbers"):
        task.checked_size(4, 5, {})
    with pytest.raises(UserError, match="gives a hole of the shape"):
        task.checked_holes(4, 5, {}, None)
    with pytest.raises(UserError, match=r"gives a source of the shape \(1, 4, 5\)"):
        task.checked_guess(y, y[:1])
