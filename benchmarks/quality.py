"""What each part of what comes after the chain does to photos that a model never saw, alone and together.

    python benchmarks/quality.py PHOTOS MADE --docs docs [--ckpt photo] [--size 96] [--samples 4] [--kinds …]
        [--pictures 21] [--numbers 0] [--lpips alex --weights FOLDER]

writes the tables into docs/quality.md, and docs/confidence.png and docs/quality.png beside it; without --docs it tells
them alone.

PHOTOS is a folder (`scripts/photo_data.py` makes one, OUTPUT/held_out); of each photo the square of SIZE pixels in its
middle is damaged, as `scripts/damage.py` does it; "hole" is a square of a third of SIZE, anywhere. For each way the
table has the mean over the photos of PSNR in dB and SSIM over what was made and of the seam score of holes, and the
median of the seconds, of the fine detail over the original's (`palette_ms.evaluation.detail`) and, where the published
weights are at hand, of LPIPS; of PSNR and SSIM the difference from plain, and of PSNR that from one of the samples,
photo by photo, with its 95 % interval by Student's t: where that holds 0, nothing was found. What is measured of a
photo with a checkpoint is kept in the folder MADE, and not measured again. A checkpoint with a refining network has a
line for it.

First come the seam scores of the originals themselves, with holes drawn in 256×256 of them, and the steps found where
some of known size were put in. The law from spread to error is calibrated twice, each time for holes and for whole
pictures by themselves: on all photos, which is what `palette_ms.quality.confidence` has, and on the even ones, by which
the reliability of the odd ones is drawn (needs matplotlib).
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
from palette_ms.data.images import grid, list_images, load_image, save_atomically, to_float, to_uint8
from palette_ms.evaluation.detail import detail
from palette_ms.evaluation.metrics import psnr, ssim
from palette_ms.quality.blend import BAD, blend, depth, seam
from palette_ms.quality.confidence import WITHIN, calibrated, confidence, law, spread
from palette_ms.quality.mix import MIXES, mix
from palette_ms.seeds import generator
from palette_ms.tasks.masks import MASKS

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
from damage import damaged, resized, title  # noqa: E402

KINDS = "hole", "scratches", "jpeg 10", "noise 25", "enlarged 4", "color", "blur 1.5", "old"
IN_HOLES = "hole", "scratches"
BEGIN, END = "<!-- tables by benchmarks/quality.py -->\n", "<!-- end of the tables -->\n"
PLAIN, ALL = "plain", "regions again, agreement, poisson"
# By the model's default calls, unless they say others.
ALONE = {
    "rounds=1": {"rounds": 1},
    "rounds=4": {"rounds": 4},
    "rounds=1, round_noise=0.5": {"rounds": 1, "round_noise": 0.5},
    "start=estimate, strength=0.5, 3 calls": {"start": "estimate", "strength": 0.5, "steps": 3},
    "ddim, 8 calls": {"sampler": "ddim", "steps": 8},
    "ddim, 8 calls, repeats=2": {"sampler": "ddim", "steps": 8, "repeats": 2},
}
# Of several samples, where those of the checkpoint's calls do not differ.
DIFFER = {kind: {"sampler": "ddim", "steps": 8} for kind in ("noise 25", "color")}
OF_HOLES = {
    "blend=feather": {"blend": "feather"},
    "blend=poisson": {"blend": "poisson"},
    "resample=3": {"resample": 3},
    "border_rounds=1": {"border_rounds": 1},
    "border_rounds=4": {"border_rounds": 4},
}


def taken(photo, size):
    """uint8 (size, size, 3), the middle of a photo."""
    top, left = ((side - size) // 2 for side in photo.shape[:2])
    return photo[top:top + size, left:left + size]


def given(kind, original, number):
    """(task, picture, bool (H, W) hole or None, further arguments of `restore`) of a kind of damage."""
    rng = generator(number, kind)
    if kind != "hole":
        return damaged(kind, original, rng)
    hole, side = np.zeros(original.shape[:2], bool), original.shape[0] // 3
    top, left = rng.integers(8, original.shape[0] - side - 7, 2)
    hole[top:top + side, left:left + side] = True
    return "inpainting", np.where(hole[..., None], np.uint8(255), original), hole, {}


def results(palette, kind, original, number, samples):
    """{way: (result, seconds)}, and the samples as float32 (S, 3, H, W)."""
    task, picture, hole, asked = given(kind, original, number)
    where = np.ones(original.shape[:2], bool) if hole is None else hole
    found = {}

    def restored(**options):
        start = time.perf_counter()
        details = palette.restore(picture, task, hole, seed=number, details=True, **asked, **options)
        return details, time.perf_counter() - start

    of_holes, refined = OF_HOLES if kind in IN_HOLES else {}, {"refine": {"refine": True}} if palette.refiner else {}
    for name, options in {PLAIN: {}, **refined, **ALONE, **of_holes}.items():
        details, seconds = restored(**options)
        found[name] = np.asarray(details.samples[0]), seconds
    details, seconds = restored(num_samples=samples, best=samples, **DIFFER.get(kind, {}))  # all, the best first
    arrays = np.stack([to_float(np.asarray(image)) for image in details.samples])
    scores = sorted(details.scores, reverse=True)
    found[f"one of {samples}"] = np.asarray(details.samples[details.numbers.index(0)]), seconds / samples
    found[f"best=1 of {samples}"] = np.asarray(details.samples[0]), seconds
    for how in MIXES:
        found[f"mix={how} of {samples}"] = to_uint8(mix(arrays, how, scores)), seconds
    details, seconds = restored(num_samples=samples, resample_regions=1, **DIFFER.get(kind, {}))
    again = np.stack([to_float(np.asarray(image)) for image in details.samples])
    found[f"one of {samples}, regions again"] = np.asarray(details.samples[0]), seconds / samples
    found[f"mix=mean of {samples}, regions again"] = to_uint8(again.mean(0)), seconds
    found[ALL] = to_uint8(blend(mix(again, "agreement"), where[None], "poisson")), seconds
    return picture, where, found, arrays


def interval(values):
    """(mean, half of its 95 % interval)."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def table(scores):
    """Markdown of {kind: {way: [[PSNR, SSIM, seam score or None, detail, LPIPS or None, seconds] of each photo]}}."""
    lines = []
    for kind, ways in scores.items():
        name = title(kind) if kind != "hole" else "A hole of a third of the side"
        plain = np.array(ways[PLAIN], float)
        sample = np.array(next(values for way, values in ways.items() if way.startswith("one of")), float)
        has_seams, has_lpips = (not np.isnan(plain[:, column]).any() for column in (2, 4))
        lines += [f"{name}, {len(plain)} photos:", "",
                  "| | PSNR, dB | from plain | from one sample | SSIM | from plain | detail |"
                  + " seam score |" * has_seams + " LPIPS |" * has_lpips + " seconds |",
                  "| --- " * (8 + has_seams + has_lpips) + "|"]
        for way, values in ways.items():
            values = np.array(values, float)
            changes = [_change(values[:, column] - base[:, column], digits)
                       for column, base, digits in ((0, plain, 2), (0, sample, 2), (1, plain, 3))]
            lines.append(f"| {way} | {values[:, 0].mean():.2f} | {changes[0]} | {changes[1]} | "
                         f"{values[:, 1].mean():.3f} | {changes[2]} | {np.median(values[:, 3]):.2f} | "
                         + (f"{values[:, 2].mean():.2f} | " if has_seams else "")
                         + (f"{values[:, 4].mean():.3f} | " if has_lpips else "") + f"{np.median(values[:, 5]):.1f} |")
        if has_seams:
            bad = sum((np.array(values, float)[:, 2] > BAD).sum() for values in ways.values())
            lines += ["", f"Bad seams: {bad} of {sum(map(len, ways.values()))}."]
        lines.append("")
    return "\n".join(lines)


def _change(differences, digits):
    """A mean difference with its interval, bold where that is above 0."""
    if not differences.any():
        return ""
    mean, half = interval(differences)
    text = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return f"**{text}**" if mean > half else text


def pixels(arrays, original, where):
    """Of the pixels where something was made: the spread, the mean absolute error of a sample and of the mean, in
    255ths, and the shares of values within `WITHIN` of the original's, of both: float32 (5, N)."""
    truth = to_float(original)
    errors_ = 127.5 * np.abs(arrays - truth), 127.5 * np.abs(arrays.mean(0, keepdims=True) - truth)
    return np.stack([spread(arrays), *(error.mean((0, 1)) for error in errors_),
                     *((error <= WITHIN).mean((0, 1)) for error in errors_)])[:, where].astype(np.float32)


def reliability(measured, path):
    """The plot: how often values are right by how often they are said to be, of the odd photos by the law of the even
    ones. Returns a dict of each kind's and result's mean calibration error, the most that is said too much, and the
    rank correlation of spread and error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True)
    told = {}
    for place, (axis, name) in enumerate(zip(axes, ("a sample", "the mean of the samples"))):
        even = grouped({kind: of_kind[::2] for kind, of_kind in measured.items()})
        laws = {in_hole: calibrated(values[0], values[3 + place], values[5] if in_hole else None)
                for in_hole, values in even.items()}
        for kind, of_kind in measured.items():
            tested = np.concatenate(of_kind[1::2], 1)
            said, right = confidence(tested[0], laws[kind in IN_HOLES], tested[5]), tested[3 + place]
            order = np.array_split(np.argsort(said, kind="stable"), 12)
            x, y = ([values[part].mean() for part in order] for values in (said, right))
            axis.plot(x, y, "o-", label=kind)
            told[f"{kind}, {name}"] = (float(np.mean(np.abs(np.subtract(x, y)))), float(np.max(np.subtract(x, y))),
                                       float(stats.spearmanr(tested[0], tested[1 + place])[0]))
        axis.plot([0, 1], [0, 1], color="gray", linewidth=1)
        axis.set(title=f"confidence in {name}", xlabel=f"said: within {WITHIN} of 255 of the original", xlim=(0, 1),
                 ylim=(0, 1))
    axes[0].set_ylabel("share of values that are")
    axes[0].legend()
    figure.tight_layout()
    if path:
        figure.savefig(path, dpi=90)
    return told


def grouped(measured):
    """{whether in holes: the pixels of all such kinds}."""
    groups = {}
    for kind, of_kind in measured.items():
        groups.setdefault(kind in IN_HOLES, []).extend(of_kind)
    return {in_hole: np.concatenate(values, 1) for in_hole, values in groups.items()}


def shown(picture, found, original):
    """Of the sheet: given, plain, refined, a sample, one whose doubtful regions were made again, all together, the
    original."""
    names = PLAIN, "rounds=4", *(way for way in found if way.startswith("one of")), ALL
    return [picture, *(found[name][0] for name in names), original]


def row(pictures, apart, where):
    """A row of the sheet: what `shown` has, with the confidence before the sample."""
    sure = confidence(apart, law(False, not where.all()), depth(where[None]))
    sure = np.uint8(255 * np.where(where, sure, 1))
    return [*pictures[:3], np.repeat(sure[..., None], 3, 2), *pictures[3:]]


def seams(photos):
    """Lines on the seam score of originals, and on the step that is found where one was put into them."""
    found = {}
    for number, photo in enumerate(photos):
        y = to_float(taken(photo, 256))
        for kind in ("rectangle", "free_form", "scratches"):
            hole = MASKS[kind](generator(number, kind), *y.shape[1:])
            found.setdefault(kind, []).append([seam(y + np.float32(step / 127.5) * hole, hole)
                                               for step in (0, 10, 20, 40)])
    for kind, values in found.items():
        scores, steps = np.moveaxis(np.array(values), -1, 0)
        yield (f"{kind}: 95 % of the originals score below {np.quantile(scores[:, 0], 0.95):.2f}; steps of 0, 10, 20, "
               f"40 are found as {', '.join(f'{step:.1f}' for step in np.median(steps, 0))} (medians), with scores of "
               f"{', '.join(f'{score:.2f}' for score in np.median(scores, 0))}")


def measured(palette, kind, photos, folder, samples, lpips):
    """{way: [scores of each photo]}, `pixels` of each photo, and a row of pictures of each; see `table`."""
    ways, sure, rows = {}, [], []
    for number, original in enumerate(photos):
        path = folder / f"{kind.replace(' ', '_')}_{number:02}.npz"
        if not path.is_file():
            picture, where, found, arrays = results(palette, kind, original, number, samples)
            fits = {way: seam(to_float(result), where[None]) for way, (result, _) in found.items()}
            sharp = detail(to_float(original), where[None]) + 1e-6
            values = {way: [psnr(result, original, where), ssim(result, original, where),
                            fits[way] and fits[way].score, detail(to_float(result), where[None]) / sharp,
                            lpips and lpips(result, original), seconds] for way, (result, seconds) in found.items()}
            np.savez_compressed(path, values=json.dumps(values), pixels=pixels(arrays, original, where), where=where,
                                pictures=shown(_of_size(picture, original), found, original), apart=spread(arrays))
            print(kind, number, flush=True)
        with np.load(path) as made:
            for way, values in json.loads(str(made["values"])).items():
                ways.setdefault(way, []).append(values)
            sure.append(np.vstack((made["pixels"], depth(made["where"][None])[made["where"]])))
            rows.append(row(made["pictures"], made["apart"], made["where"]))
    return ways, sure, rows


def _of_size(picture, original):
    height, width = original.shape[:2]
    return picture if picture.shape == original.shape else resized(picture, height, width, Image.NEAREST)


def _lpips(network, folder):
    """Function of two pictures → their LPIPS distance; None: not asked for."""
    if network is None:
        return None
    from palette_ms.evaluation.views import VIEWS

    view = VIEWS[network](folder)
    return lambda *pictures: float(np.square(np.subtract(*view(list(pictures)))).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("made", type=Path)
    parser.add_argument("--ckpt", default="photo")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--pictures", type=int, help="how many (default: all)")
    parser.add_argument("--docs", type=Path, help="folder of quality.md, which the tables are written into")
    parser.add_argument("--numbers", default="0", help="of the photos on the sheet")
    parser.add_argument("--lpips", choices=("alex", "vgg"))
    parser.add_argument("--weights", help="folder of the published weights of LPIPS")
    args = parser.parse_args()
    whole = list(map(load_image, list_images(args.photos)))[:args.pictures]
    for line in seams(whole):
        print(line, flush=True)
    photos = [taken(photo, args.size) for photo in whole]
    palette = Palette.load(args.ckpt, "CPU")
    made = args.made / f"{palette.sha256[:12]}_{args.size}_{args.samples}_{args.lpips}"
    made.mkdir(parents=True, exist_ok=True)
    lpips = _lpips(args.lpips, args.weights)
    scores, sure, rows = {}, {}, []
    for kind in args.kinds.split(","):
        scores[kind], sure[kind], pictures = measured(palette, kind, photos, made, args.samples, lpips)
        rows += [pictures[int(number)] for number in args.numbers.split(",")]
    print(table(scores))
    for in_hole, values in grouped(sure).items():
        for name, right in (("OF_SAMPLE", values[3]), ("OF_MIX", values[4])):
            print(name + "_IN_HOLES" * in_hole, calibrated(values[0], right, values[5] if in_hole else None))
    for name, (error, most, correlation) in reliability(sure, args.docs and args.docs / "confidence.png").items():
        print(f"{name}: calibration error {error:.3f}, at the most {most:.2f} too sure, rank correlation of spread and "
              f"error {correlation:.2f}")
    if args.docs:
        page = args.docs / "quality.md"
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{table(scores)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
        save_atomically(grid(rows, 4), args.docs / "quality.png")


if __name__ == "__main__":
    errors.run(main)
