"""The command palette-ms, and what the package that is installed holds."""

import os
import shutil
import subprocess
import sys
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


def test_a_wheel_holds_models_configs_and_the_command(tmp_path, repository):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("palette_ms", "configs", "docs", "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        path = repository / name
        ignored = shutil.ignore_patterns("__pycache__", "*.onnx")
        shutil.copytree(path, source / name, True, ignored) if path.is_dir() else shutil.copy(path, source)
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                            "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True)
    wheels = [*tmp_path.glob("*.whl")]
    assert len(wheels) == 1, built.stderr
    names = zipfile.ZipFile(wheels[0]).namelist()
    assert {"palette_ms/models/photo.safetensors", "palette_ms/configs/photo.yaml"} <= {*names}
    assert {path.name for path in (repository / "configs").glob("*.yaml")} == {
        name.rpartition("/")[2] for name in names if name.startswith("palette_ms/configs/")}
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "palette-ms = palette_ms.__main__:command" in zipfile.ZipFile(wheels[0]).read(entry).decode()
    assert not any(name.startswith(("tests", "benchmarks", "scripts")) for name in names)


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
