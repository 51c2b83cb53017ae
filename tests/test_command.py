"""The command palette-ms, and what the package that is installed holds."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import zipfile

import pytest
from PIL import Image

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


@pytest.fixture(scope="module")
def packages(tmp_path_factory, repository):
    """(a copy of the repository, its sdist, its wheel)."""
    folder = tmp_path_factory.mktemp("packages")
    source, output = folder / "source", folder / "dist"
    source.mkdir()
    output.mkdir()
    for name in ("palette_ms", "configs", "docs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md",
                 "README.zh-CN.md", "CHANGELOG.md", "LICENSE", "NOTICE"):
        path = repository / name
        ignored = shutil.ignore_patterns("__pycache__", "*.onnx")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source)
    return source, build("sdist", source, output), build("wheel", source, output)


def test_wheel_and_source_hold_models_configs_and_the_command_and_are_the_same_bytes_again(packages, tmp_path,
                                                                                           repository):
    source, sdist, wheel = packages
    (tmp_path / "second").mkdir()
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


def test_what_is_installed_from_the_wheel_restores_and_serves_from_any_folder(packages, tmp_path):
    """A fresh environment, but for the packages that palette_ms needs, which are those of this one."""
    pytest.importorskip("pip")
    pytest.importorskip("onnxruntime", reason="pip install palette_ms[onnx]")
    pytest.importorskip("gradio", reason="pip install palette_ms[web]")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    there, = (tmp_path / "env").glob("lib/python*/site-packages")
    (there / "others.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    python, command = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "palette-ms"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
                    "--no-compile", packages[2]], check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    here = tmp_path / "here"
    here.mkdir()

    def run_there(*words):
        done = subprocess.run(words, cwd=here, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run_there(python, "-c", "import palette_ms; print(palette_ms.__file__)").startswith(str(tmp_path / "env"))
    assert run_there(command, "--version") == f"palette_ms {palette_ms.__version__}\n"
    Image.new("RGB", (32, 24), "teal").save(here / "photo.png")
    assert run_there(command, "restore", "photo.png", "--task", "denoising", "--runtime", "onnx",
                     "--device", "cpu").split() == ["outputs/photo.png"]
    assert Image.open(here / "outputs" / "photo.png").size == (32, 24)
    with subprocess.Popen([command, "web", "--port", "0", "--runtime", "onnx", "--device", "cpu"], cwd=here, env=env,
                          stdout=subprocess.PIPE, text=True) as served:
        try:
            address = served.stdout.readline().split()[0]
            with urllib.request.urlopen(address, timeout=30) as page:
                assert b"palette_ms" in page.read()
        finally:
            served.terminate()


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
