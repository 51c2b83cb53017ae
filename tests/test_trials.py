"""A model put to the test: what is made of clean pictures, and that an interrupted evaluation goes on."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import metrics
from test_usage import save_tiny

from palette_ms import Palette, evaluate
from palette_ms.data.images import load_image
from palette_ms.errors import UserError
from palette_ms.seeds import generator

PICTURES = {"in/a.jpg": (40, 24), "b.png": (16, 16), "c.png": (30, 34)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clean pictures and a checkpoint, which knows two tasks."""
    folder, rng = tmp_path_factory.mktemp("trials"), np.random.default_rng(0)
    for name, size in PICTURES.items():
        (folder / "clean" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / "clean" / name)
    save_tiny(folder / "tiny.safetensors", tasks=[{"name": "jpeg_restoration"}, {"name": "inpainting"}])
    return folder


@pytest.fixture(scope="module")
def palette(folder):
    """Loaded once, and what it is asked to make."""
    palette = Palette.load(folder / "tiny.safetensors", "cpu")
    palette.asked = []
    make = palette.make

    def counted(*arguments):
        palette.asked.append(arguments)
        return make(*arguments)

    palette.make, palette.first_config = counted, palette.config
    return palette


@pytest.fixture
def run(folder, palette, monkeypatch, tmp_path):
    def run(*arguments):
        palette.asked, palette.config = [], palette.first_config
        argv = ["evaluate", "--ckpt", folder / "tiny.safetensors", "--input", folder / "clean", "--steps", "2",
                "--sampler", "ddim", "--output", tmp_path / "r.json", *arguments]
        monkeypatch.setattr("palette_ms.pipeline.Palette.load", lambda *_: palette)
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        evaluate.main()
        return json.loads((tmp_path / "r.json").read_text())
    return run


def test_sources_are_the_tasks_and_what_is_compared_is_what_was_restored(run, tmp_path, palette):
    made = run("--task", "jpeg_restoration", "quality=[7,7]", "--num-samples", "2", "--seed", "3", "--metrics", "psnr")
    size, values = 16, {}
    assert made["run"]["made"]["task"]["quality"] == [7, 7] and made["run"]["made"]["seed"] == 3
    for index, name in enumerate(["b", "c", "in/a"]):
        target, source = (load_image(tmp_path / "r" / kind / f"{name}.png") for kind in ("target", "source"))
        assert target.shape == (size, size, 3)
        cond = palette.asked[index][1]
        assert np.abs((cond.transpose(1, 2, 0) + 1) * 127.5 - source).max() < 0.51
        expected, _ = palette.config.tasks[0].pair(target.transpose(2, 0, 1) / np.float32(127.5) - 1,
                                                   generator(3, "damage", index))
        assert np.abs(expected - cond).max() < 1e-6  # the damage is that of the picture that is compared with
        values[name] = np.mean([metrics.peak_signal_noise_ratio(
            target, load_image(tmp_path / "r" / "restored" / f"{name}_{k}.png")) for k in range(2)])
    assert made["psnr"]["values"] == pytest.approx(values, rel=1e-6)


def test_an_interrupted_evaluation_goes_on_where_it_was(run, tmp_path, palette, capsys):
    arguments = ["--task", "jpeg_restoration"]
    whole, asked = run(*arguments), palette.asked
    assert len(asked) == 3
    first = {path: path.read_bytes() for path in (tmp_path / "r" / "restored").rglob("*.png")}
    (tmp_path / "r" / "restored" / "c.png").unlink()
    again = run(*arguments)
    assert again == whole and len(palette.asked) == 1
    assert {path: path.read_bytes() for path in first} == first
    assert "2 of 3 pictures were made before" in capsys.readouterr().err
    assert run(*arguments, "--metrics", "ssim")["ssim"]["pictures"] == 3 and not palette.asked
    with pytest.raises(UserError, match=r"holds results of other settings \(seed\): name another --made"):
        run(*arguments, "--seed", "1")
    with pytest.raises(UserError, match=r"other settings \(task\)"):
        run(*arguments, "quality=[9,9]")


def test_a_damaged_picture_is_told_and_the_others_are_made(run, folder, tmp_path, palette, capsys):
    whole = tmp_path / "clean"
    shutil.copytree(folder / "clean", whole)
    photo = (whole / "c.png").read_bytes()
    (whole / "b.png").write_bytes(photo[:100])
    arguments = ["--task", "jpeg_restoration", "--input", whole]
    with pytest.raises(UserError, match="1 of 3 pictures could not be restored"):
        run(*arguments)
    assert "b was not restored: cannot read" in capsys.readouterr().err and len(palette.asked) == 2
    (whole / "b.png").write_bytes(photo)
    mended = run(*arguments)
    assert len(palette.asked) == 1 and mended["psnr"]["pictures"] == 3
    shutil.copy(folder / "clean" / "b.png", whole / "c.png")  # another picture by the same name
    changed = run(*arguments)
    assert len(palette.asked) == 1
    assert [name for name in ("b", "c", "in/a") if changed["psnr"]["values"][name] != mended["psnr"]["values"][name]
            ] == ["c"]
    told = capsys.readouterr().out
    assert "jpeg_restoration: " in told and "quality [" in told and "seed 0" in told and "mindspore 2" in told


def test_what_a_metric_lacks_is_told_before_anything_is_made(run, tmp_path, palette):
    for arguments, message in ((["--metrics", "lpips_alex", "--weights", tmp_path], "has no alexnet"),
                               (["--metrics", "fid", "--statistics", tmp_path / "x.npz"], "no such file"),
                               (["--metrics", "psnr,ssim_between"], "needs two samples or more"),
                               (["--num-samples", "0"], "must be at least 1"), (["--size", "0"], "not 0")):
        with pytest.raises(UserError, match=message):
            run("--task", "jpeg_restoration", *arguments)
        assert not palette.asked


def test_a_mask_is_what_the_task_leaves_to_make(run, tmp_path):
    made = run("--task", "inpainting", "--mask", "--metrics", "psnr")
    for name in ("b", "c", "in/a"):
        target, restored, mask = (load_image(tmp_path / "r" / kind / f"{name}.png")
                                  for kind in ("target", "restored", "mask"))
        hole = mask[..., 0] > 127
        assert 0 < hole.mean() < 1 and (target == restored)[~hole].all()
        expected = metrics.peak_signal_noise_ratio(target[hole], restored[hole])
        assert made["psnr"]["values"][name] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("arguments, message", [
    ([], "knows several tasks: add --task jpeg_restoration or --task inpainting"),
    (["--task", "denoising"], "does not know the task 'denoising'"),
    (["--task", "inpainting", "--size", "17"], "--size must be a multiple of 2, not 17"),
    (["--task", "inpainting", "--reference", "x"], "leave --reference"),
    (["--task", "inpainting", "strokes=1"], "option=value: unknown key tasks\\[1\\].strokes"),
    (["--task", "inpainting", "--made", "clean"], "clean holds something else"),
])
def test_a_mistake_is_told(run, folder, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert not (tmp_path / "r.json").exists()


def test_options_of_a_test_need_a_model(monkeypatch):
    for arguments, message in ((["--seed", "1"], "--seed needs --ckpt"), (["a=1"], "a=1 needs --ckpt"),
                               ([], "--restored FOLDER says")):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
        with pytest.raises(UserError, match=message):
            evaluate.main()
