"""Quality against network calls, for every sampler: what fewer calls than the paper's thousand cost.

    python benchmarks/samplers.py PHOTO [--ckpt quickstart] [--crops 8] [--samples 2] [--calls 4,8,12,20,50]
                                  [--chain 1000] [--distilled FILE …] [--log runs/samplers.jsonl] [--output PLOT.png]

Square crops of a photo that the model's training never saw are resized to its size, and a hole (centred, or free-form
strokes, in turn) is filled. PSNR (dB, over the hole) and SSIM (whole picture, scikit-image) are means over the crops'
samples. Diversity is the root mean square difference between two samples of a crop over the hole, in grey levels of
255. The ancestral chain of CHAIN steps is what the others are compared with: more PSNR than it has comes with less
diversity, since the mean of all that the picture may have been has the best PSNR of all.

`to the limit` is for the samplers without noise, which all approximate the same picture: the root mean square distance
over the hole, in grey levels, to what UniPC makes of the same noise in 200 calls.

Steps that were searched for the model (python -m palette_ms.search_steps) have rows of their own.

Prints a table in Markdown. What was measured is appended to LOG and not measured again, so that an interrupted run goes
on. Needs scikit-image, and matplotlib for the plot.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from heldout import crops_of
from skimage.metrics import structural_similarity

from palette_ms import Palette, errors
from palette_ms.evaluation.metrics import psnr
from palette_ms.tasks.masks import MASKS

SAMPLERS = {
    "ddpm": {"sampler": "ddpm", "spacing": "uniform"},
    "ddpm, log_snr": {"sampler": "ddpm", "spacing": "log_snr"},
    "ddim": {"sampler": "ddim", "spacing": "uniform"},
    "ddim, log_snr": {"sampler": "ddim", "spacing": "log_snr"},
    "dpmpp_2m": {"sampler": "dpmpp_2m", "spacing": "log_snr"},
    "dpmpp_2m_sde": {"sampler": "dpmpp_2m_sde", "spacing": "log_snr"},
    "heun": {"sampler": "heun", "spacing": "karras"},
    "unipc": {"sampler": "unipc", "spacing": "log_snr"},
}
SEARCHED = {f"{name}, searched": {"sampler": name} for name in ("ddpm", "dpmpp_2m_sde", "unipc")}
WITHOUT_NOISE = ("ddim", "ddim, log_snr", "dpmpp_2m", "heun", "unipc")
FIGURES = {"psnr": "PSNR in the hole, dB", "ssim": "SSIM", "diversity": "diversity, grey levels",
           "to_limit": "to the limit, grey levels"}


def rms(a, b, where):
    return float(np.sqrt(np.mean(np.subtract(a, b, dtype=float)[:, where] ** 2)))


def figures(images, picture, hole):
    """Of samples (N, H, W, 3) of a picture."""
    return {"psnr": float(np.mean([psnr(image, picture, hole) for image in images])),
            "ssim": float(np.mean([structural_similarity(image, picture, channel_axis=2) for image in images])),
            "diversity": rms(images[:1], images[1:2], hole)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--ckpt", default="quickstart")
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--calls", default="4,8,12,20,50")
    parser.add_argument("--chain", type=int, default=1000)
    parser.add_argument("--distilled", nargs="*", default=[])
    parser.add_argument("--log", type=Path, default=Path("runs/samplers.jsonl"))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    palette = Palette.load(args.ckpt)
    jobs = [(name, int(count), palette, {"steps": int(count), **options})
            for name, options in SAMPLERS.items() for count in args.calls.split(",")]
    jobs += [(name, count, palette, {"steps": count, **options})
             for name, options in SEARCHED.items() for count in palette.chains.searched.get("inpainting", [])]
    for student in map(Palette.load, args.distilled):
        jobs.append(("distilled", len(student.config.diffusion.distilled), student, {}))
    jobs.append(("ddpm", args.chain, palette, {"steps": args.chain, **SAMPLERS["ddpm"]}))

    args.log.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    if args.log.exists():
        for row in map(json.loads, args.log.read_text(encoding="utf-8").splitlines()):
            rows[row["sampler"], row["calls"], row["crop"]] = row
    size, kinds = palette.config.data.image_size, ("center", "free_form")
    for number, picture in enumerate(crops_of(args.photo, args.crops, size)):
        hole = MASKS[kinds[number % 2]](np.random.default_rng(number), size, size)[0] > 0
        given, limit = {"task": "inpainting", "mask": hole, "num_samples": args.samples, "seed": number}, None
        for name, count, model, options in jobs:
            if (name, count, number) in rows:
                continue
            images = np.stack(model.restore(picture, **given, **options))
            row = {"sampler": name, "calls": count, "crop": number, **figures(images, picture, hole)}
            if name in WITHOUT_NOISE:
                if limit is None:
                    limit = np.stack(palette.restore(picture, **given, sampler="unipc", steps=200))
                row["to_limit"] = rms(images, limit, hole)
            rows[name, count, number] = row
            with open(args.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    means = {}
    for name, count, _, _ in jobs:
        of_crops = [rows[name, count, number] for number in range(args.crops)]
        means.setdefault(name, {})[count] = {figure: np.mean([row[figure] for row in of_crops])
                                             for figure in FIGURES if figure in of_crops[0]}
    for figure, title in FIGURES.items():
        print_table(title, {name: {count: values[figure] for count, values in line.items() if figure in values}
                            for name, line in means.items()}, "{:.3f}" if figure == "ssim" else "{:.2f}")
    if args.output:
        plot(means, args.chain, args.output)


def print_table(title, lines, style):
    counts = sorted({count for line in lines.values() for count in line})
    print(f"\n| {title} | {' | '.join(f'{count} calls' for count in counts)} |")
    print("| --- |" + " --- |" * len(counts))
    for name, line in lines.items():
        if line:
            print(f"| {name} | {' | '.join(style.format(line[c]) if c in line else '' for c in counts)} |")


def plot(means, chain, path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(12, 8), constrained_layout=True)
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name.split(",")[0] for name in means))}
    for axes, (key, title) in zip(panels.flat, FIGURES.items()):
        shown = []
        for name, line in means.items():
            points = [(count, values[key]) for count, values in sorted(line.items())
                      if count != chain and key in values]
            sampler, _, spacing = name.partition(", ")
            if points:
                style = {"": "o-", "log_snr": "o--", "searched": "o:"}[spacing]
                axes.semilogx(*zip(*points), style, color=colours[sampler], markersize=3, label=name)
                shown += [value for _, value in points if sampler != "heun"]
        if key in means["ddpm"][chain]:
            axes.axhline(means["ddpm"][chain][key], color="black", linewidth=1, label=f"ddpm, {chain} calls")
            shown.append(means["ddpm"][chain][key])
            margin = 0.1 * (max(shown) - min(shown))
            axes.set_ylim(min(shown) - margin, max(shown) + margin)  # heun's few calls are far below
        ticks = sorted({count for line in means.values() for count in line} - {chain})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set(title=title, xlabel="network calls")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    panels[1, 1].set_yscale("log")
    figure.savefig(path, dpi=100)
    print(path)


if __name__ == "__main__":
    errors.run(main)
