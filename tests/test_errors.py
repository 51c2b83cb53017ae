"""What goes wrong ends in a line: mistakes, errors of our own, and files that mean harm."""

import subprocess
import sys

import pytest

from palette_ms import errors
from palette_ms.errors import UserError


def test_hostile_files_end_every_verb_in_a_line(repository):
    # In a process of its own, whose signals and streams it may take.
    script = [sys.executable, str(repository / "scripts/fuzz_files.py"), "--files", "60", "--seed", "1"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "60 files, 0 problems, peak memory" in done.stdout, done.stdout + done.stderr


def run_with(monkeypatch, capsys, error, *arguments):
    def fail():
        assert "--debug" not in sys.argv
        raise error

    monkeypatch.setattr(sys, "argv", ["verb", *arguments])
    with pytest.raises(SystemExit) as end:
        errors.run(fail)
    return end.value.code, capsys.readouterr().err


def test_an_error_of_our_own_is_one_line_and_debug_shows_where(monkeypatch, capsys):
    status, said = run_with(monkeypatch, capsys, KeyError("x"))
    assert status == 1 and said == "this is a bug of palette_ms: KeyError: 'x'; --debug shows where\n"
    status, said = run_with(monkeypatch, capsys, KeyError("x"), "--debug")
    assert status == 1 and "Traceback" in said and "in fail" in said
    status, said = run_with(monkeypatch, capsys, UserError("no such file"))
    assert status == 2 and said == "error: no such file\n"
    status, said = run_with(monkeypatch, capsys, ModuleNotFoundError("No module", name="mindspore.nn"))
    assert status == 2 and "pip install 'mindspore" in said and said.count("\n") == 1
    status, said = run_with(monkeypatch, capsys, MemoryError())
    assert status == 2 and said.startswith("error: memory is full") and said.count("\n") == 1
