"""python -m palette_ms.evaluate: how near restored pictures are to the originals, for a folder of each."""

import argparse
import json
import os
import re

from palette_ms import errors, runtime
from palette_ms.data.files import expand, replacing
from palette_ms.errors import UserError
from palette_ms.evaluation.metrics import METRICS
from palette_ms.evaluation.report import evaluate, match
from palette_ms.tasks.imports import add_import


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.evaluate", description=__doc__)
    parser.add_argument("--reference", required=True, type=expand, help="folder of the originals")
    parser.add_argument("--restored", required=True, type=expand,
                        help="folder of what was made of them, by the same names; NAME_0, NAME_1, … are samples of "
                             "NAME, whose values are averaged")
    parser.add_argument("--metrics", default="psnr,ssim", help=f"some of {', '.join(METRICS)} (default: %(default)s)")
    parser.add_argument("--border", type=int, default=0, metavar="PIXELS",
                        help="leave out so many pixels at each edge, as papers on super-resolution do (default: 0)")
    parser.add_argument("--mask", type=expand, help="folder of masks by the same names: only their white pixels count")
    parser.add_argument("--range", type=limits, metavar="LOW,HIGH",
                        help="what the values span, such as 0,1 or, with =, --range=-1,1: needed for floats (default: "
                             "what 8 or 16 bits do)")
    parser.add_argument("--output", type=expand, help="JSON file for the report, with the values of each picture")
    parser.add_argument("--device", default="auto", help="over which ranks of msrun meet: auto (default), Ascend, GPU "
                                                         "or CPU; the metrics are computed by the CPU")
    add_import(parser)
    args = parser.parse_args()
    runtime.check_launcher()
    metrics = list(dict.fromkeys(name.strip() for name in args.metrics.split(",")))
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}: {', '.join(METRICS)}")
    if args.output:
        check_output(args.output)
    if args.border < 0:
        raise UserError(f"--border must be at least 0, not {args.border}")
    pairs = match(args.reference, args.restored, args.mask)

    if runtime.started_by_msrun():  # one process does without MindSpore
        runtime.setup(args.device)
    report = evaluate(pairs, metrics, args.range, args.border)
    if runtime.rank() > 0:
        return
    if args.output:
        write(report, args.output)
    samples = len(pairs[0].samples)
    print(f"{len(pairs)} pictures" + (f", each the mean of {samples} samples" if samples > 1 else ""))
    print(f"{'':10}{'mean':>10}{'std':>10}")
    for name, figures in report.items():
        std = "" if figures["std"] is None else f"{figures['std']:10.4f}"
        print(f"{name:10}{figures['mean']:10.4f}{std}")


def limits(text):
    """"0,1" as numbers."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0
    if not 0 < high - low < float("inf"):
        raise UserError(f"--range {text!r} is not of the form LOW,HIGH, such as 0,1 or --range=-1,1")
    return low, high


def check_output(path):
    """Raises UserError where a report would not be a JSON file, or take the place of something else than a report."""
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; it must be a file, such as report.json")
    if path.suffix.lower() != ".json":
        raise UserError(f"--output {path} must end in .json")
    if os.path.lexists(path):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            earlier = held and all({"mean", "pictures", "values"} <= figures.keys() for figures in held.values())
        except (OSError, ValueError, AttributeError, RecursionError):
            earlier = False
        if not earlier:
            raise UserError(f"--output {path} is there and no report: choose another name")


def write(report, path):
    """The report as JSON, whole or not at all."""
    text = json.dumps(report, indent=2)
    # JSON has no word for infinity, but a number too large for a double, which readers take for it.
    text = re.sub(r"(?<=: )Infinity(?=,?$)", "1e999", text, flags=re.M)
    try:
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


if __name__ == "__main__":
    errors.run(main)
