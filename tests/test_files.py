"""People's files: what is found and left out, what results are called, and that nothing which is there gets lost."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

import palette_ms.sample
from palette_ms import Palette, errors, runtime
from palette_ms.checkpoint import Checkpoint, build_unet, save_checkpoint, unet_arrays
from palette_ms.config import apply_override, config_from_dict, load_config, parse_yaml
from palette_ms.data.files import at_work, clear_parts, find, replacing, result_names
from palette_ms.data.images import SUFFIXES, list_images
from palette_ms.data.results import RECORD, Results
from palette_ms.data.sources import fingerprint, open_source
from palette_ms.diffusion.samplers import NoiseStream
from palette_ms.errors import UserError
from palette_ms.evaluation.report import match
from palette_ms.split import split
from palette_ms.training import loop

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PICTURE).save(folder / name)
    return folder


def below(folder):
    """All files but records, with their contents."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != RECORD}


# What is found


def test_links_are_followed_and_what_is_left_out_is_counted(tmp_path):
    photos = write(tmp_path / "photos", "a.png", "b.jfif", "c.tga", ".hidden.png", "@eaDir/a.png", "__MACOSX/a.png",
                   ".thumbnails/x.png", "out/a.png")
    write(tmp_path / "elsewhere", "d.png", "deeper/e.png")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "circle").symlink_to(photos)
    (tmp_path / "elsewhere" / "back").symlink_to(photos)
    (photos / "broken.png").symlink_to("nowhere")
    os.mkfifo(photos / "pipe.png")
    for name in ("raw.heic", "notes.txt", "plain"):
        (photos / name).write_bytes(b"")
    files, left_out = find(photos, SUFFIXES, [photos / "out"])
    assert [path.relative_to(photos).as_posix() for path in files] == [
        "a.png", "b.jfif", "c.tga", "linked/d.png", "linked/deeper/e.png"]
    assert left_out == {"links to folders that are there already": 2, "broken links": 1, "pipes or devices": 1,
                        "files that end in .heic": 1, "files without a suffix": 1}


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch, capsys):
    photos, scandir = write(tmp_path, "a.png", "locked/b.png"), os.scandir

    def refuse(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(list_images(photos)) == 1
    assert "folders that cannot be read (Permission denied): 1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_links_in_archives_stand_for_what_they_name(tmp_path, kind, capsys):
    write(tmp_path / "t", "a.png")
    (tmp_path / "t" / "in").mkdir()
    (tmp_path / "t" / "in" / "b.png").symlink_to("../a.png")
    (tmp_path / "t" / "lost.png").symlink_to("/etc/none.png")
    path = tmp_path / f"t.{kind}"
    if kind == "tar":
        os.link(tmp_path / "t" / "a.png", tmp_path / "t" / "c.png")
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "t", ".")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "t" / "a.png", "a.png")
            for name, target in (("in/b.png", "../a.png"), ("lost.png", "/etc/none.png")):
                link = zipfile.ZipInfo(name)
                link.create_system, link.external_attr = 3, 0o120777 << 16
                archive.writestr(link, target)
    source = open_source(path)
    assert [str(name) for name, _ in source.members] == ["a.png", *["c.png"] * (kind == "tar"), "in/b.png"]
    assert {source.read(i)[0][1] for i in range(len(source))} == {(tmp_path / "t" / "a.png").read_bytes()}
    assert "links that lead to no file in it: 1" in capsys.readouterr().err


def test_a_pipe_in_a_list_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "l.txt").write_text("x.png\n")
    with pytest.raises(UserError, match="x.png.: it is a pipe or a device"):
        open_source(tmp_path / "l.txt").read(0)


def test_names_that_no_list_can_hold_are_left_out_of_it(tmp_path, capsys):
    photos = write(tmp_path / "photos", *(f"{k}.png" for k in range(12)))
    os.rename(os.fsencode(photos / "0.png"), os.fsencode(photos) + b"/\xe9.png")
    for k in range(1, 12):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8)).save(photos / f"{k}.png")
    lists = split(photos, tmp_path / "lists", 0.4)
    assert sum(len(path.read_text().splitlines()) for path in lists) == 11
    assert "1 pictures whose names are not UTF-8" in capsys.readouterr().err


# Names, and writing


def test_no_two_results_have_one_name():
    names = ["a.jpg", "a.png", "a_jpg.png", "a_jpg.bmp", "photo.v1.png", "photo.v2.png", "B.png", "b.png", "no.suffix",
             unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")]
    results = [path.as_posix() for path in result_names(list(map(Path, names)), SUFFIXES)]
    assert results[4:6] == ["photo.v1", "photo.v2"] and results[8] == "no.suffix" and results[:2] == ["a_jpg", "a_png"]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in results}) == len(names)


def test_temporary_files_are_nobody_elses(tmp_path):
    for name in ("a.png.part", ".palette_ms.mine.part"):
        (tmp_path / name).write_bytes(b"mine")
    with replacing(tmp_path / ("x" * 251 + ".png")) as first, replacing(tmp_path / "b.png") as second:
        assert first != second
    (tmp_path / ".palette_ms.99.1.part").write_bytes(b"left")
    clear_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.part")) == [".palette_ms.mine.part", "a.png.part"]


def test_a_folder_in_use_is_refused_until_its_process_is_gone(tmp_path):
    lock = tmp_path / "new" / "log"
    code = f"from palette_ms.data.files import at_work\nwith at_work({str(lock)!r}): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another run is writing into"), at_work(lock):
            pass
        other.kill()
    with at_work(lock):
        assert lock.exists()
    assert not lock.exists()


# The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = config_from_dict({
        "model": {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [],
                  "norm_groups": 4},
        "diffusion": {"test_schedule": {"num_steps": 2}}, "tasks": [{"name": "inpainting"}, {"name": "denoising"}],
        "data": {"image_size": 8}}, "test")
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, config, 1, 10**6, unet_arrays(build_unet(config.model)))
    return path


@pytest.fixture
def sample(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the command in a folder, without its network: (status, lines of stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("palette_ms.diffusion.samplers.Sampler.__call__", lambda self, cond, y_T, *_, **__: Tensor(y_T))

    def run(*arguments):
        task = [] if "--task" in arguments else ["--task", "denoising"]
        monkeypatch.setattr(sys, "argv", ["sample", "--ckpt", str(checkpoint), "--device", "cpu", "--runtime",
                                          "mindspore", "--steps", "1", *task, *map(str, arguments)])
        status = 0
        try:
            errors.run(palette_ms.sample.main)
        except SystemExit as stop:
            status = stop.code
        told = capsys.readouterr()
        return status, told.out.splitlines(), told.err

    return run


@pytest.mark.parametrize("there, arguments", [
    (["d/photo.v1.png"], ["--input", "d/photo.v1.png"]),
    (["d/a.jpg", "d/a_0.png"], ["--input", "d/a.jpg", "--num-samples", 2]),
    (["d/a.jpg", "d/a.png"], ["--input", "d/a.jpg", "--task", "inpainting", "--mask", "d/a.png"]),
    (["e/x/a.jpg", "d/x/a.png"], ["--input", "e", "--task", "inpainting", "--mask", "d"]),
    (["a.jpg", "d/b.png"], ["--input", "a.jpg", "--output", "d/b.png"]),
    (["d/a.jpg", "d/b.jpg", "d/b.png"], ["--input", "d/a.jpg", "d/b.jpg"]),
])
def test_what_is_there_is_never_overwritten(sample, tmp_path, there, arguments):
    before = below(write(tmp_path, *there))
    status, _, told = sample("--output", "d", *arguments)
    assert status == 2 and told.count("would be overwritten") == 1 and below(tmp_path) == before
    assert not (tmp_path / "d" / RECORD).exists()


def test_earlier_results_are_replaced_unless_they_were_changed_since(sample, tmp_path):
    write(tmp_path, "d/a.png")
    for seed in (1, 2):
        assert sample("--input", "d", "--output", "d/out", "--seed", seed)[:2] == (0, ["d/out/a.png"])
    assert list(below(tmp_path / "d")) == ["a.png", "out/a.png"]
    Image.fromarray(PICTURE).save("d/out/a.png")
    status, _, told = sample("--input", "d", "--output", "d/out")
    assert status == 2 and "or was changed since" in told
    write(tmp_path, "e/a.jpg", "b/a.png", "c/a.png")
    Image.fromarray(255 - PICTURE).save("c/a.png")
    assert sample("--input", "b", "--output", "o")[0] == 0
    assert "the result of another picture" in sample("--input", "c", "--output", "o")[2]
    (tmp_path / "b").rename(tmp_path / "moved")
    assert sample("--input", "moved", "--output", "o", "--seed", 1)[0] == 0
    for _ in range(2):  # beside the originals too, results are no input
        assert sample("--input", "e", "--output", "e")[:2] == (0, ["e/a.png"])


def test_one_pictures_trouble_is_its_own(sample, tmp_path, monkeypatch):
    write(tmp_path, *(f"d/{name}.png" for name in ("a", "memory", "opencv", "way", "z", "x" * 250)), "d/deep/b.png")
    (tmp_path / "o" / "way.png").mkdir(parents=True)
    (tmp_path / "o" / "deep").write_bytes(b"")
    restore, troubles = Palette.restore, {"memory": MemoryError(), "opencv": cv2.error("Insufficient memory")}

    def fail(self, image, *rest, **options):
        if image.stem in troubles:
            raise troubles[image.stem]
        return restore(self, image, *rest, **options)

    monkeypatch.setattr(Palette, "restore", fail)
    status, made, told = sample("--input", "d", "--output", "o", "--num-samples", 1)
    assert status == 2 and told.splitlines()[-1] == "error: 4 of 7 pictures could not be restored"
    assert sorted(os.listdir("o")) == sorted([RECORD, "deep", "way.png", "z.png", "a.png", "x" * 250 + ".png"])
    assert len(made) == 3 and told.count("not enough memory") == 2 and told.count("cannot write") == 2
    status, _, told = sample("--input", "d/" + "x" * 250 + ".png", "d/z.png", "--output", "o2", "--num-samples", 2)
    assert status == 2 and "File name too long" in told and len(below(tmp_path / "o2")) == 2


def test_pipes_and_devices_are_not_waited_for(sample, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    write(tmp_path, "a.png", "b.png")
    for format in ([], ["--format", "same"]):
        status, made, told = sample("--input", "pipe.png", "/dev/zero", "a.png", "--output", "o", *format)
        assert (status, made) == (2, ["o/a.png"]) and told.count("it is a pipe or a device") == 2
    for path in ("pipe.png", "/dev/zero"):
        status, _, told = sample("--input", "a.png", "--output", "o", "--task", "inpainting", "--mask", path)
        assert status == 2 and "it is a pipe or a device" in told


def test_a_mask_that_is_missing_is_told_once_and_one_of_another_size_with_its_picture(sample, tmp_path):
    write(tmp_path, "d/a.png", "d/b.png")
    inpaint = "--input", "d", "--output", "o", "--task", "inpainting", "--mask"
    assert sample(*inpaint, "centr")[2].splitlines()[-1] == "error: no such mask: centr; did you mean center?"
    Image.fromarray(np.full((8, 9), 255, np.uint8)).save("m.png")
    told = sample(*inpaint, "m.png")[2]
    assert "skipped: d/a.png: the mask is 9×8" in told and "skipped: d/b.png: the mask is 9×8" in told


@pytest.mark.parametrize("arguments", [["--input", "", "--output", "o"], ["--input", "a.png", "--output", ""]])
def test_an_empty_name_is_not_the_folder_where_one_stands(sample, tmp_path, arguments):
    write(tmp_path, "a.png")
    status, _, told = sample(*arguments)
    assert status == 2 and "the name of a file or folder is empty" in told and os.listdir(".") == ["a.png"]


def test_a_record_that_is_no_record_says_nothing(sample, tmp_path):
    write(tmp_path, "d/a.png")
    sample("--input", "d", "--output", "o")
    whole = (tmp_path / "o" / RECORD).read_text()
    strange = '[]', 'null', '{"file": 3}', '{"file": "a.png"}', '{"file": "b.png", "of": [1], "run": {}, "made_of": 1}'
    (tmp_path / "o" / RECORD).write_text(whole + "\n".join(strange) + "\n")
    assert sample("--input", "d", "--output", "o", "--resume")[1] == []
    assert len(match(Path("d"), Path("o"))) == 1


def test_masks_are_found_by_their_path_below_the_folder(sample, tmp_path):
    write(tmp_path, "d/x/1.jpg", "d/y/1.jpg", "d/y/2.jpg", "d/" + unicodedata.normalize("NFD", "é.jpg"))
    for name in ("m/x/1.png", "m/y/1.bmp", "m/2.png", "m/" + unicodedata.normalize("NFC", "é.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(255 * np.eye(8))).save(tmp_path / name)
    status, made, told = sample("--input", "d", "--output", "o", "--task", "inpainting", "--mask", "m")
    assert len(made) == 3 and status == 2 and "m holds 0 masks for y/2.jpg" in told


def test_several_inputs_and_a_file_for_an_output(sample, tmp_path):
    write(tmp_path, "d/a.jpg", "e/a.jpg", "a.jpg", "b.jpg")
    assert sample("--input", "d", "e", "a.jpg", "a.jpg", "--output", "o")[:2] == (
        0, ["o/d/a.png", "o/e/a.png", "o/a.png"])
    assert sample("--input", "a.jpg", "--output", "p/result.png")[:2] == (0, ["p/result.png"])
    status, made, told = sample("--input", "a.jpg", "--output", "p/result.webp", "--quality", 50)
    assert (status, made) == (0, ["p/result.webp"]) and "left over" not in told  # the other one has a name of its own
    for name, format in {"p/b.JPG": "JPEG", "p/c.jpeg": "JPEG", "p/d.tiff": "TIFF"}.items():
        assert sample("--input", "a.jpg", "--output", name)[:2] == (0, [name])
        with Image.open(name) as image:
            assert image.format == format
    for wrong in (["p/result.bmp"], ["p/result.jpg", "--format", "png"], ["p/result.jpg", "--format", "same"]):
        assert sample("--input", "a.jpg", "--output", *wrong)[0] == 2
    write(tmp_path, "f/a.jpg", "f/b.bmp")
    assert sample("--input", "f", "--output", "o2", "--format", "same")[1] == ["o2/a.jpg", "o2/b.png"]
    assert Image.open("o2/a.jpg").format == "JPEG"
    for pictures in (["d"], ["a.jpg", "b.jpg"]):
        status, _, told = sample("--input", *pictures, "--output", "p/result.png")
        assert status == 2 and "is the name of one picture" in told


def test_a_run_goes_on_with_what_is_not_done(sample, tmp_path, monkeypatch):
    write(tmp_path, "d/a.png", "d/b.png")
    run = "--input", "d", "--output", "o", "--resume"
    assert len(sample(*run)[1]) == 2
    status, made, told = sample(*run)
    assert (status, made) == (0, []) and "2 pictures were made before" in told
    Image.fromarray(255 - PICTURE).save("d/a.png")  # another content, by the same name
    assert sample(*run)[1] == ["o/a.png"]
    assert len(sample(*run, "--seed", 1)[1]) == 2
    with open("o/" + RECORD, "a") as file:  # killed while it wrote
        file.write('{"file": "a.png", "sh')
    (tmp_path / "o" / "b.png").unlink()
    assert sample(*run, "--seed", 1)[1] == ["o/b.png"]
    assert sample(*run, "--seed", 1)[1] == []


def test_results_of_earlier_runs_are_told_and_not_evaluated(sample, tmp_path):
    write(tmp_path, "d/a.png", "d/a_0.png")
    sample("--input", "d", "--output", "o", "--num-samples", 3)
    status, made, told = sample("--input", "d", "--output", "o", "--num-samples", 2)
    assert status == 0 and len(made) == 4 and "left over in o from earlier runs: 2 results" in told
    assert [[path.name for path in pair.samples] for pair in match(Path("d"), Path("o"))] == [
        ["a_0.png", "a_1.png"], ["a_0_0.png", "a_0_1.png"]]
    before = below(tmp_path / "o")
    sample("--input", "d", "--output", "o", "--num-samples", 1, "--first-sample", 2)
    assert [len(pair.samples) for pair in match(Path("d"), Path("o"))] == [3, 3]
    assert below(tmp_path / "o") == before  # the third of three is the same alone
    assert all(json.loads(line)["file"] for line in (tmp_path / "o" / RECORD).read_text().splitlines())
    assert Results("o").holds(Path("o/a_2.png"))


def test_samples_have_their_noise_by_number():
    whole = NoiseStream(3, (8, 1, 2, 2), 4).draw()
    np.testing.assert_array_equal(NoiseStream(3, (4, 1, 2, 2), range(1, 3)).draw(), whole[[1, 2, 5, 6]])


def test_further_frames_are_counted(sample, tmp_path):
    frames = [Image.fromarray(np.roll(PICTURE, k, 0)) for k in range(3)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    assert "not restored: 2 further frames" in sample("--input", "a.gif", "--output", "o")[2]


def test_a_reader_that_goes_ends_it_quietly():
    code = ("from palette_ms import errors\n"
            "def main():\n    for _ in range(10**5): print('a line that fills the buffer of a pipe')\n"
            "errors.run(main)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("encoding, expected", [("utf-8:strict", b"\xe9 \xc3\xa9\n"), ("ascii", b"\xe9 \\xe9\n")])
def test_names_of_any_bytes_are_written(encoding, expected):
    code = "import os\nfrom palette_ms import errors\nerrors.run(lambda: print(os.fsdecode(b'\\xe9'), '\\xe9'))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": encoding},
                          capture_output=True)
    assert (done.stdout, done.stderr) == (expected, b"")


def test_sigterm_leaves_nothing_half_written(tmp_path):
    code = ("import time\nfrom palette_ms import errors\nfrom palette_ms.data.files import replacing\n"
            f"def main():\n    with replacing({str(tmp_path / 'a')!r}): print(flush=True); time.sleep(60)\n"
            "errors.run(main)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.terminate()
    assert process.returncode == 143 and not list(tmp_path.iterdir())


def test_what_a_file_refuses_is_told_with_its_name(capsys):
    with pytest.raises(SystemExit) as stop:
        errors.run(lambda: os.stat("none/a"))
    assert stop.value.code == 2 and capsys.readouterr().err == "error: none/a: No such file or directory\n"


def test_another_launcher_is_told_of_msrun(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    runtime.check_launcher()  # some set it for all of a machine
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="torchrun.*WORLD_SIZE.*msrun"):
        runtime.check_launcher()
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    runtime.check_launcher()


# Training


@pytest.fixture
def runs(checkpoint, tmp_path):
    """Folders of a run with two states, of a finished model without any, and an empty one."""
    model = Checkpoint(checkpoint)
    for step in (2, 4):
        save_checkpoint(tmp_path / "run" / f"state_{step:07}.safetensors", model.config, step, 8 * step,
                        model.tensors("weights"), optimizer={"global_step": np.zeros(1)},
                        run={"ranks": 2, "pictures": {"number": 4, "names": "a"}})
    for folder in ("run", "done"):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(checkpoint, tmp_path / folder / "model.safetensors")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_what_a_run_can_go_on_from(runs, monkeypatch):
    monkeypatch.chdir(runs)
    for resume, step in (("auto", 4), ("latest", 4), ("run", 4), ("run/state_0000002", 2),
                         ("run/state_0000002.safetensors", 2)):
        assert loop.open_state(resume, runs / "run", print).step == step
    assert loop.open_state("auto", runs / "empty", print) is None
    for wrong in ("latest", "empty", "2", "true", "run/model.safetensors"):
        with pytest.raises(UserError, match="--resume takes auto, latest, a folder"):
            loop.open_state(wrong, runs / "empty", print)


def test_a_finished_model_is_not_trained_over(runs):
    state = Checkpoint(runs / "run" / "state_0000002.safetensors")
    loop.refuse_earlier(runs / "run", state, "run")
    for folder in ("empty", "new"):
        loop.refuse_earlier(runs / folder, None, None)
        loop.refuse_earlier(runs / folder, state, "run")
    for folder, found, resume in (("run", None, None), ("done", None, None), ("done", None, "auto"),
                                  ("done", state, "run")):
        with pytest.raises(UserError, match="another training.output"):
            loop.refuse_earlier(runs / folder, found, resume)


def test_what_changed_since_a_state_is_told(runs):
    state = Checkpoint(runs / "run" / "state_0000004.safetensors")
    assert state.run["ranks"] == 2
    config = state.config

    def told(ranks=2, number=4, names="a", weight=1.0, **training):
        changed = dataclasses.replace(config, training=dataclasses.replace(config.training, **training),
                                      tasks=(dataclasses.replace(config.tasks[0], weight=weight), *config.tasks[1:]))
        return loop.changes(state, SimpleNamespace(config=changed, surroundings=lambda: {
            "ranks": ranks, "pictures": {"number": number, "names": names}}))

    assert told() is None and told(steps=5, output="elsewhere", log_every=1) is None
    text = told(1, 5, "b", batch_size=4, learning_rate=1e-3)
    for part in ("training.batch_size 8 → 4", "training.learning_rate 0.0001 → 0.001", "ranks 2 → 1",
                 "pictures 4 → 5", "no longer the one"):
        assert part in text
    assert ": tasks[0].weight 1.0 → 2.0. The run" in told(weight=2.0)
    assert "as many as before but others" in told(names="b") and "training.steps" in told(steps=5, decay_steps=2)


def test_a_set_of_pictures_is_told_from_others_wherever_it_lies(tmp_path):
    folders = [write(tmp_path / name, "a.png", "in/b.png") for name in ("one", "two")]
    (tmp_path / "l.txt").write_text("one/a.png\none/in/b.png\n")
    one, two, listed = (fingerprint(open_source(path)) for path in (*folders, tmp_path / "l.txt"))
    assert one == two == listed and one["number"] == 2
    assert fingerprint(open_source(write(tmp_path / "two", "c.png"))) != one


# Texts


@pytest.mark.parametrize("override, value", [
    ("data.path=set #2", "set #2"), ("data.path=2024", "2024"), ("data.path=null", "null"),
    ("data.path=[a]: {b", "[a]: {b"), ("data.validation=null", None), ("data.validation=1_0", "1_0"),
    ("training.steps=0x10", 16), ("diffusion.loss=l1", "l1"), ("model.channel_mults=[1, 2]", [1, 2]),
])
def test_a_text_is_taken_as_it_stands(override, value):
    raw = {"data": None}
    apply_override(raw, override)
    section, name = override.partition("=")[0].split(".")
    assert raw[section][name] == value


def test_the_home_folder_stands_for_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("data: {path: ~/photos}")
    config = load_config("~/c.yaml", ["training.output=~/run", "training.init_from=photo"])
    assert (config.data.path, config.training.output) == (str(tmp_path / "photos"), str(tmp_path / "run"))
    assert config.training.init_from == "photo" and config.data.validation is None


@pytest.mark.parametrize("text", [
    "2024-13-45", "9" * 5000, "!!int x", "!!timestamp abc", "[" * 5000 + "]" * 5000, "&a [*a]", "{a: b: c}",
    "[" + ", ".join(["&a0 [x]"] + [f"&a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)]) + "]",
    "[" + ", ".join(["&a0 {x: 1}"] + [f"&a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 10)}]}}" for k in range(1, 9)]) + "]",
], ids=range(9))
def test_yaml_that_means_harm_is_an_error(text):
    with pytest.raises(ValueError) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("value", [10**400, 10**5000, [[["x"] * 100] * 100] * 100, "x" * 10**5], ids=range(4))
def test_values_are_quoted_shortened(value):
    with pytest.raises(UserError) as error:
        config_from_dict({"training": {"learning_rate": value}}, "c.yaml")
    assert "c.yaml: training.learning_rate must be a number, not" in str(error.value) and len(str(error.value)) < 400
