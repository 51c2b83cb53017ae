"""Files that mean harm, or are merely broken, through every verb that reads files: seeded, bounded, one line each that
goes wrong.

    python scripts/fuzz_files.py --files 1000 --seed 0

A file is a valid one of its kind with a part cut off, bits flipped, bytes doubled or taken out, numbers in it made
huge, or another kind's suffix. Each goes to a verb's main() in this process, where a timer interrupts what takes too
long. What must come out is exit status 0 or 2 (3 or 4 of a training). Told are tracebacks, bugs of ours, hangs, files
written outside of the output folder, and the peak memory. Exit status 1: something went wrong.
"""

import argparse
import contextlib
import importlib
import io
import json
import pickle
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
HUGE = [struct.pack(form, number) for form, number in (
    (">I", 2**31 - 1), ("<I", 2**32 - 1), ("<Q", 2**62), (">H", 65535), ("<I", 10**9))]


class Hang(BaseException):
    """Not an Exception, which what hangs might catch."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=60, help="a file may take (default: 60)")
    parser.add_argument("--verbs", help="only these, such as split,convert")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        problems = fuzz(Path(folder), rng, args.files, args.seconds, args.verbs and args.verbs.split(","))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.files} files, {len(problems)} problems, peak memory {peak:.2f} GiB")
    sys.exit(bool(problems))


def fuzz(folder, rng, count, seconds=60, only=None):
    """Runs `count` files in a folder; returns the problems, a list of texts, each of which is printed too."""
    inputs, output = folder / "inputs", folder / "output"
    valid, problems = seeds(), []
    checkpoint = ROOT / "palette_ms/models/photo.safetensors"
    verbs = [verb for verb in VERBS if not only or verb[0] in only]
    for module in ("mindspore.mindrecord", "palette_ms.pipeline"):  # an import that is interrupted stays broken
        importlib.import_module(module)
    for number in range(count):
        for place in (inputs, output):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        verb, suffixes, command = verbs[number % len(verbs)]
        suffix = suffixes[rng.integers(len(suffixes))]
        content, how = mutated(valid[suffix], valid, rng)
        file = inputs / f"a{suffix}"
        file.write_bytes(content)
        (inputs / "good.png").write_bytes(valid[".png"])
        argv = [str(part) for part in command(file, output, checkpoint)]
        before = snapshot(folder, output)
        started = time.monotonic()
        problem = run(verb, argv, seconds)
        if snapshot(folder, output) != before:
            problem = f"{problem or ''} files outside of the output folder"
        if problem:
            text = f"{number}: {verb} {how} {suffix}: {problem}"
            problems.append(text)
            print(text, flush=True)
        elif time.monotonic() - started > seconds / 2:
            print(f"{number}: {verb} {how} {suffix}: slow, {time.monotonic() - started:.0f} s", flush=True)
    return problems


def snapshot(folder, output):
    """Names and sizes of all files but those of the output folder."""
    return {path: path.stat().st_size for path in folder.rglob("*") if output not in path.parents and path.is_file()}


def run(verb, argv, seconds):
    """What is wrong with a verb's end, a text, or None."""
    def too_long(*_):
        raise Hang

    said, problem = io.StringIO(), None
    module = importlib.import_module(f"palette_ms.{verb}")
    from palette_ms import errors

    previous, argv_before = signal.signal(signal.SIGALRM, too_long), sys.argv
    sys.argv = [verb, *argv]
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            errors.run(module.main)
    except SystemExit as end:
        if end.code not in (None, 0, 2, 3, 4):
            problem = f"status {end.code}: {said.getvalue().splitlines()[-1:]}"
    except Hang:
        problem = f"took more than {seconds} s"
    except BaseException:  # errors.run lets none through
        problem = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        sys.argv = argv_before
    if "Traceback" in said.getvalue() and not problem:
        problem = f"traceback: {said.getvalue()[-300:]}"
    return problem


def seeds():
    """A valid file of each kind, encoded, by suffix."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    files = {}
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".tif", "TIFF"), (".webp", "WEBP"), (".gif", "GIF"),
                         (".bmp", "BMP"), (".ppm", "PPM")):
        file = io.BytesIO()
        picture.save(file, kind)
        files[suffix] = file.getvalue()
    file = io.BytesIO()
    np.save(file, np.asarray(picture))
    files[".npy"] = file.getvalue()
    for suffix in (".zip", ".npz"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            name = "a.png" if suffix == ".zip" else "arr_0.npy"
            archive.writestr(name, files[name[-4:]])
        files[suffix] = file.getvalue()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("b/a.png")
        info.size = len(files[".png"])
        archive.addfile(info, io.BytesIO(files[".png"]))
    files[".tar"] = file.getvalue()
    files[".txt"] = b"good.png\n# a comment\na.png\n"
    files[".csv"] = b"source,target\ngood.png,good.png\n"
    files[".json"] = json.dumps({"model": {"which_networks": [{"args": {"unet": {
        "in_channel": 6, "out_channel": 3, "inner_channel": 8, "channel_mults": [1, 2], "res_blocks": 1,
        "attn_res": [2], "num_head_channels": 8, "image_size": 16}}}]}}).encode()
    files[".yaml"] = (ROOT / "configs/quickstart.yaml").read_bytes()
    files[".pth"] = (ROOT / "tests/data/palette_unet.pth").read_bytes()
    files[".pkl"] = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True},
                                                                 {"a.weight": 1}, []))
    files[".safetensors"] = (ROOT / "tests/data/model_before_preconditioning.safetensors").read_bytes()
    files[".steps.json"] = json.dumps({"sha256": "0" * 64, "tasks": {"colorization": {"2": [0, 1]}}}).encode()
    return files


def mutated(data, others, rng):
    """(bytes, what was done to them)."""
    data, how = bytearray(data), MUTATIONS[rng.integers(len(MUTATIONS))]
    place = int(rng.integers(len(data) + 1))
    near = int(rng.integers(min(len(data), 128) + 1))  # headers stand at the beginning
    if how == "cut":
        del data[place:]
    elif how == "flipped":
        for k in rng.integers(0, len(data), 1 + len(data) // 500):
            data[k] ^= 1 << int(rng.integers(8))
    elif how == "huge":
        number = HUGE[rng.integers(len(HUGE))]
        data[near:near + len(number)] = number
    elif how == "digits":
        digits = [k for k, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
        if digits:
            k = digits[rng.integers(len(digits))]
            data[k:k + 1] = b"9" * int(rng.choice([3, 10, 400]))
    elif how == "nested":
        data[place:place] = b"[" * 100_000
    elif how == "taken out":
        del data[near:near + int(rng.integers(1, 64))]
    elif how == "doubled":
        data[place:place] = data[near:]
    elif how == "empty":
        data.clear()
    elif how == "other kind":
        data = others[sorted(others)[rng.integers(len(others))]]
    elif how == "zeros":
        data[place:] = bytes(len(data) - place)
    return bytes(data), how


MUTATIONS = ("cut", "flipped", "huge", "digits", "nested", "taken out", "doubled", "empty", "other kind", "zeros")
PICTURES = (".png", ".jpg", ".tif", ".webp", ".gif", ".bmp", ".ppm")
ARRAYS = (".npy", ".npz", ".tif", ".png")
SOURCES = (".zip", ".tar", ".txt", ".csv")


def _steps(file, output, checkpoint):
    beside = file.with_name("m.safetensors")
    shutil.copy(checkpoint, beside)
    shutil.copy(file, file.with_name("m.steps.json"))
    return ["--ckpt", beside, "--input", file.with_name("good.png"), "--output", output, "--task", "nothing"]


# (verb, the suffixes of its files, what its arguments are); those that are slow to end well are asked for something
# that is refused after the file was read.
VERBS = (
    ("split", PICTURES, lambda file, output, _: [file.parent, output, "--validation", "0.5"]),
    ("split", ARRAYS, lambda file, output, _: [file.parent, output, "--arrays", "--validation", "0.5"]),
    ("split", SOURCES, lambda file, output, _: [file, output, "--validation", "0.5"]),
    ("pack", SOURCES + PICTURES, lambda file, output, _: [file if file.suffix in SOURCES else file.parent,
                                                         output / "a.mindrecord"]),
    ("evaluate", PICTURES + ARRAYS, lambda file, output, _: ["--reference", file.parent, "--restored", file.parent,
                                                             "--output", output / "report.json"]),
    ("convert", (".pth", ".pkl", ".safetensors"), lambda file, output, _: [
        "--input", file, "--output", output / "o.safetensors", "model.num_head_channels=8"]),
    ("convert", (".json", ".yaml", ".txt"), lambda file, output, _: [
        "--input", ROOT / "tests/data/palette_unet.pth", "--config", file, "--output", output / "o.safetensors"]),
    ("sample", (".safetensors", ".pth", ".yaml"), lambda file, output, _: [
        "--ckpt", file, "--input", file.with_name("good.png"), "--output", output, "--task", "nothing"]),
    ("sample", (".steps.json",), _steps),
    ("train", (".yaml", ".json"), lambda file, output, _: [
        "--config", file, "data.path=none", f"training.output={output}/run"]),
    ("estimate", (".yaml",), lambda file, output, _: ["--config", file]),
)

if __name__ == "__main__":
    main()
