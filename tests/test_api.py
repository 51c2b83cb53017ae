"""The public API, as docs/api.md lists it: each entry has types and an example, and the examples hold."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
LISTED = re.findall(r"^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?", PAGE.read_text(encoding="utf-8"), re.M)
# The methods that a page shows, beside what has its examples at its class.
MEMBERS = {name: [member.strip() for member in members.split(",") if member] for name, members in LISTED}


def found(name):
    """The object of a dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            there = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            there = inspect.getattr_static(there, part, None) or getattr(there, part)
        return there
    raise AssertionError(f"no {name}")


def unwrapped(member):
    """What is behind a class method or property."""
    return getattr(member, "__func__", None) or getattr(member, "fget", None) or member


def examples(name):
    module = sys.modules[unwrapped(found(name)).__module__]
    finder = doctest.DocTestFinder(recurse=False)
    return [test for test in finder.find(unwrapped(found(name)), name, module) if test.examples]


@pytest.fixture
def without_graphs(graph_mode):
    """Examples hold in graph mode as well, by far more slowly."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize("name", MEMBERS)
def test_what_is_public_has_an_example_that_holds(name, without_graphs):
    shown = [test for part in [name, *(f"{name}.{member}" for member in MEMBERS[name])] for test in examples(part)]
    assert shown, f"{name} has no example"
    for test in shown:
        told = []
        failed, _ = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS).run(
            test, out=told.append)
        assert not failed, "".join(told)


def signatures(name):
    there = found(name)
    if inspect.isclass(there):
        if "__init__" in vars(there) and "__dataclass_fields__" not in vars(there):
            yield f"{name}.__init__", there.__init__
        for member in MEMBERS[name]:
            yield f"{name}.{member}", unwrapped(found(f"{name}.{member}"))
    else:
        yield name, there


@pytest.mark.parametrize("name", MEMBERS)
def test_what_is_public_has_types(name):
    for called, function in signatures(name):
        signature = inspect.signature(function)
        untyped = [parameter.name for parameter in signature.parameters.values()
                   if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")]
        assert not untyped and signature.return_annotation is not signature.empty, f"{called}: {untyped}"


USE = """
from typing import List
from palette_ms import Palette
from palette_ms.evaluation.metrics import psnr
from palette_ms.unet import ModelConfig, UNet

palette = Palette.load("photo")
reveal_type(palette)
reveal_type(palette.tasks)
reveal_type(palette.restore)
reveal_type(psnr)
UNet(ModelConfig(base_channels="wide"))
palette.restore("photo.jpg", steps="many")
"""


def test_a_type_checker_finds_no_mistake_here_and_finds_its_users(tmp_path, repository):
    pytest.importorskip("mypy", reason="types are checked by mypy (pip install mypy)")
    user = tmp_path / "user.py"
    user.write_text(USE)
    command = [sys.executable, "-m", "mypy", "--config-file", str(repository / "pyproject.toml"), "--cache-dir",
               str(tmp_path / "cache"), "palette_ms", str(user)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    mistakes = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(mistakes) == 2 and all("user.py" in line for line in mistakes), done.stdout + done.stderr
    assert '"base_channels"' in mistakes[0] or "ModelConfig" in mistakes[0], mistakes[0]
    assert '"steps"' in mistakes[1] or "restore" in mistakes[1], mistakes[1]
    told = [line.partition("Revealed type is ")[2] for line in done.stdout.splitlines() if "Revealed" in line]
    assert len(told) == 4 and "Any" not in told[0], told
    assert "palette_ms.pipeline.Palette" in told[0] and "tuple" in told[1].lower() and "float" in told[3], told


def test_the_package_says_that_it_has_types(repository):
    assert (repository / "palette_ms" / "py.typed").is_file()
