"""Brings the figures of the model of whole photos up to date in the model card and the README.

    python scripts/photo_card.py docs/photo_model.md README.md [--ckpt photo] [--log docs/photo_log.jsonl]
        [--scores docs/photo_scores.json] [--data docs/photo_data.csv]

What stands between a line `<!-- NAME: … -->` and the next `<!-- end -->` is replaced, for each NAME of `BLOCKS`: from
the checkpoint, its training's log (several runs one after the other), the report of benchmarks/restoration.py and the
table of scripts/photo_data.py.
"""

import argparse
import csv
import dataclasses
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from palette_ms import errors
from palette_ms.checkpoint import Checkpoint
from palette_ms.data.files import replacing
from palette_ms.diffusion.usage import Usage
from palette_ms.errors import UserError
from palette_ms.tasks import Task

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from damage import title  # noqa: E402
from restoration import OURS, table  # noqa: E402


def facts(args):
    checkpoint = Checkpoint(args.ckpt)
    parameters, size = sum(map(np.size, checkpoint.tensors("ema").values())), checkpoint.config.data.image_size
    lines = [f"{parameters / 1e6:.1f} M parameters, {checkpoint.path.stat().st_size / 1e6:.1f} MB, trained at "
             f"{size}×{size} pixels, {checkpoint.pictures:,} pictures seen.", "",
             "| task | trained on | calls by default |", "| --- | --- | --- |"]
    common = {field.name for field in dataclasses.fields(Task)}
    for task in checkpoint.config.tasks:
        own = {field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.name not in common}
        usage = task.usage or Usage()
        lines.append(f"| `{task.name}` | {'; '.join(f'{name} {_plain(value)}' for name, value in own.items())} | "
                     f"{usage.steps} of {usage.sampler}"
                     + f", over {usage.flips} mirror images" * (usage.flips > 1)
                     + f", in tiles of {usage.tile}" * bool(usage.tile) + " |")
    return lines


def _plain(value):
    return ", ".join(map(str, dict.fromkeys(value))) if isinstance(value, tuple) else str(value)


def training(args):
    lines, run = ["| run | steps | hours | loss, mean of the last tenth |", "| --- | --- | --- | --- |"], []
    records = [json.loads(line) for line in args.log.read_text(encoding="utf-8").splitlines()]
    runs = [run]
    for record in records:
        if run and record["step"] <= run[0]["step"]:
            run = []
            runs.append(run)
        # A run that was stopped goes on from its last state, which may lie before its last records.
        run[:] = [before for before in run if before["step"] < record["step"]] + [record]
    for number, run in enumerate(runs):
        steps = np.diff([0] + [record["step"] for record in run])
        hours = sum(steps / [record.get("steps_per_second", np.inf) for record in run]) / 3600
        hours = f"{hours:.1f}" if any("steps_per_second" in record for record in run) else "not logged"
        loss = np.mean([record["loss"] for record in run[-max(1, len(run) // 10):]])
        lines.append(f"| {number + 1} | {run[-1]['step']:,} | {hours} | {loss:.4f} |")
    return lines


def licences(args):
    with open(args.data, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["| licence | to train on | held out |", "| --- | --- | --- |"]
    counts = {part: Counter(row["licence"] for row in rows if row["set"] == part) for part in ("train", "held_out")}
    for licence, _ in Counter(row["licence"] for row in rows).most_common():
        lines.append(f"| {licence} | {counts['train'][licence] or ''} | {counts['held_out'][licence] or ''} |")
    singly = sum(row["copyright"].startswith("not noted singly") for row in rows)
    train, held_out = (sum(counts[part].values()) for part in ("train", "held_out"))
    return [*lines, f"| all | {train} | {held_out} |", "",
            f"{singly} of them are not noted singly: their licence is the one that the package's copyright file gives "
            "for all files that it does not name."]


def scores(args):
    report = _report(args)
    return [_made_of(report), "", *table(report).splitlines()]


def claims(args):
    report = _report(args)
    ahead, even, behind = [], [], []
    for kind, methods in report["kinds"].items():
        if OURS in methods:
            best = min((name for name in methods if name != OURS), key=lambda name: methods[name]["lead"][0])
            lead, half = methods[best]["lead"]
            side = even if half is not None and abs(lead) <= half else ahead if lead > 0 else behind
            side.append(f"{title(kind)} ({lead:+.2f} on {best})")
    told = {"ahead of all methods compared": ahead, "no difference that so many photos could tell": even,
            "behind the best of them": behind}
    return [_made_of(report), "", *(f"- {side}: {'; '.join(kinds)}" for side, kinds in told.items() if kinds)]


def _report(args):
    return json.loads(args.scores.read_text(encoding="utf-8"))


def _made_of(report):
    return f"{len(report['photos'])} held-out photos, the model after {report['pictures_seen']:,} pictures:"


BLOCKS = {"facts": facts, "training": training, "licences": licences, "scores": scores, "claims": claims}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--ckpt", default="photo")
    parser.add_argument("--log", type=Path, default=ROOT / "docs" / "photo_log.jsonl")
    parser.add_argument("--scores", type=Path, default=ROOT / "docs" / "photo_scores.json")
    parser.add_argument("--data", type=Path, default=ROOT / "docs" / "photo_data.csv")
    args = parser.parse_args()
    for path in (*args.texts, args.log, args.scores, args.data):
        if not path.is_file():
            raise UserError(f"no such file: {path}")

    def filled(match):
        if match[2] not in BLOCKS:
            raise UserError(f"there is no block {match[2]}; there are {', '.join(BLOCKS)}")
        return f"{match[1]}\n{chr(10).join(BLOCKS[match[2]](args))}\n{match[3]}"

    for path in args.texts:
        text = path.read_text(encoding="utf-8")
        text, count = re.subn(r"(<!-- (\w+): [^\n]*-->)\n.*?(<!-- end -->)", filled, text, flags=re.S)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{path}: {count} blocks")


if __name__ == "__main__":
    errors.run(main)
