"""The command palette-ms, and what the package that is installed holds."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import palette_ms
from palette_ms import __main__ as command
from palette_ms import doctor, errors, runtime
from palette_ms.config import load_config
from palette_ms.errors import UserError


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["palette-ms", *words])
    errors.run(command.main)


def test_all_that_can_be_called_is_a_verb(repository):
    package = repository / "palette_ms"
    called = {path.parent.name if path.stem == "__main__" else path.stem for path in package.rglob("*.py")
              if "errors.run(main)" in path.read_text(encoding="utf-8") and path != package / "__main__.py"}
    assert {verb.replace("-", "_") for verb in command.verbs()} == called
    assert {"train", "sample", "evaluate", "convert", "modelarts", "tasks"} <= called


@pytest.mark.parametrize("verb", ["sample", "restore"])
def test_a_verb_is_told_what_follows_it(monkeypatch, capsys, verb):
    monkeypatch.setattr("palette_ms.sample.main", lambda: print(sys.argv))
    run(monkeypatch, verb, "--ckpt", "a b", "--debugging")
    assert capsys.readouterr().out == f"{[f'palette-ms {verb}', '--ckpt', 'a b', '--debugging']}\n"


def test_a_verb_that_is_a_room_is_run(monkeypatch, capsys):
    run(monkeypatch, "tasks")
    assert "colorization:" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    (["reztore"], "no verb 'reztore'; did you mean restore?"), ([], "a verb is needed"),
    (["checkpoint"], "no verb 'checkpoint'"), (["../sample"], "no verb '../sample'"),
])
def test_what_is_no_verb_is_told(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_version_is_the_packages(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--version")
    assert stop.value.code == 0 and capsys.readouterr().out == f"palette_ms {palette_ms.__version__}\n"


@pytest.mark.parametrize("typed, found", [(["sam"], {"sample"}), (["res"], {"restore"}),
                                          (["tasks", "--im"], {"--import"})])
def test_bash_completes_verbs_and_options(tmp_path, typed, found):
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    called = tmp_path / "palette-ms"
    called.write_text(f'#!/bin/sh\nexec {sys.executable} -m palette_ms "$@"\n')
    called.chmod(0o755)
    words = " ".join(["palette-ms", *typed])
    script = (f'eval "$(palette-ms --completion)"; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _palette_ms; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert set(done.stdout.split()) == found, done.stderr


def test_configs_that_ship_are_found_by_their_names_from_any_folder(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    there = load_config(repository / "configs" / "photo.yaml")
    assert load_config("photo") == load_config("configs/photo.yaml") == there
    (tmp_path / "photo.yaml").write_text("training: {steps: 7}\n")
    assert load_config("photo.yaml").training.steps == 7  # one's own goes first
    for name in ("no_such", "elsewhere/photo.yaml"):
        with pytest.raises(UserError, match="cannot read config"):
            load_config(name)


def build(kind, source, output):
    """The sdist or wheel of a folder, built as on some day in 2023."""
    built = subprocess.run(
        [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"],
        cwd=source, capture_output=True, text=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"})
    assert built.returncode == 0, built.stderr
    made, = output.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


def test_wheel_and_source_hold_models_configs_and_the_command_and_are_the_same_bytes_again(tmp_path, repository):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("palette_ms", "configs", "docs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md",
                 "README.zh-CN.md", "CHANGELOG.md", "LICENSE", "NOTICE"):
        path = repository / name
        ignored = shutil.ignore_patterns("__pycache__", "*.onnx")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    sdist, wheel = (build(kind, source, tmp_path / "first") for kind in ("sdist", "wheel"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {"palette_ms/models/photo.safetensors", "palette_ms/configs/photo.yaml", "palette_ms/py.typed"} <= {*names}
    assert {path.name for path in (repository / "configs").glob("*.yaml")} == {
        name.rpartition("/")[2] for name in names if name.startswith("palette_ms/configs/")}
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "palette-ms = palette_ms.__main__:command" in zipfile.ZipFile(wheel).read(entry).decode()
    assert not any(name.startswith(("tests", "benchmarks", "scripts")) for name in names)
    # Neither the day nor the folder is in what comes out; and the source distribution is all that a wheel needs.
    again = build("sdist", shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copy), tmp_path / "second")
    assert again.read_bytes() == sdist.read_bytes()
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    again = build("wheel", tmp_path / sdist.name[:-len(".tar.gz")], tmp_path / "second")
    assert again.read_bytes() == wheel.read_bytes()


def test_the_doctor_says_what_is_there_and_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor"])
    monkeypatch.setattr(runtime, "setup", lambda device: print("device: CPU"))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: False)
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    with pytest.raises(SystemExit) as stop:
        errors.run(doctor.main)
    told = capsys.readouterr()
    assert stop.value.code == 0 and not told.err
    assert palette_ms.__version__ in told.out and "device: CPU" in told.out and "neither driver" in told.out

    monkeypatch.setattr(doctor, "version", lambda package: None if package in ("scipy", "onnxruntime") else "1.0")
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(doctor, "wanted_chips", lambda count: ([], []))
    monkeypatch.setattr(doctor, "cann_and_mindspore", lambda: iter(()))
    with pytest.raises(SystemExit) as stop:
        errors.run(doctor.main)
    told = capsys.readouterr()
    assert stop.value.code == 2 and told.err == "missing: scipy: pip install scipy\n"
    assert "palette_ms[onnx]" in told.out and "Ascend: no chip" in told.out

    there = {*doctor._NEEDED, "openvino"}
    monkeypatch.setattr(doctor, "version", lambda package: "1.0" if package in there else None)
    for further, status in ((set(), 2), ({"onnx"}, 0)):
        there |= further
        with pytest.raises(SystemExit) as stop:
            errors.run(doctor.main)
        told = capsys.readouterr()
        assert stop.value.code == status and "mindspore: not installed" in told.out
        assert ("missing: what computes" in told.err) == (status == 2)
