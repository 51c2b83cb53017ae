"""python -m palette_ms.evaluate: how near restored pictures are to the originals, of two folders or of a model."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
from typing import NamedTuple, Optional

from palette_ms import __version__, errors, runtime
from palette_ms.data.files import expand, replacing
from palette_ms.errors import UserError
from palette_ms.evaluation import frechet
from palette_ms.evaluation.metrics import BETWEEN_SAMPLES, METRICS
from palette_ms.evaluation.networks import NETWORK_METRICS, Networks, OfSet, read_labels
from palette_ms.evaluation.page import check_page, write_page
from palette_ms.evaluation.report import alone, evaluate, match
from palette_ms.tasks.imports import add_import

KNOWN = [*METRICS, *BETWEEN_SAMPLES, *NETWORK_METRICS]
_NO_ORIGINALS = {"colourfulness"}  # of the metrics of pixels, those that need none


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.evaluate", description=__doc__)
    parser.add_argument("options", nargs="*", metavar="option=value",
                        help="with --ckpt: options of the task in place of the checkpoint's, such as quality=[10,10]")
    parser.add_argument("--reference", type=expand,
                        help="folder of the originals; may be left out for metrics that need none")
    parser.add_argument("--restored", type=expand,
                        help="folder of what was made of them, by the same names; NAME_0, NAME_1, … are samples of "
                             "NAME, whose values are averaged")
    parser.add_argument("--metrics", default="psnr,ssim", help=f"some of {', '.join(KNOWN)} (default: %(default)s)")
    parser.add_argument("--border", type=int, default=0, metavar="PIXELS",
                        help="leave out so many pixels at each edge, as papers on super-resolution do (default: 0); "
                             "networks look at whole pictures")
    parser.add_argument("--mask", type=expand, nargs="?", const=True,
                        help="folder of masks by the same names, or with --ckpt no name, for what the task leaves to "
                             "make: only their white pixels count; networks look at whole pictures")
    parser.add_argument("--range", type=limits, metavar="LOW,HIGH",
                        help="what the values span, such as 0,1 or, with =, --range=-1,1: needed for floats (default: "
                             "what 8 or 16 bits do)")
    parser.add_argument("--weights", type=expand, metavar="FOLDER",
                        help="where the published weights of the metrics' networks lie (default: PyTorch's cache, "
                             "~/.cache/torch/hub/checkpoints); what is missing is told with its address")
    parser.add_argument("--labels", type=expand, metavar="FILE", help="for accuracy: lines NAME CLASS")
    parser.add_argument("--statistics", type=expand, metavar="FILE.npz",
                        help="mu and sigma that FID is measured against in place of the originals")
    parser.add_argument("--save-statistics", type=expand, metavar="FILE.npz",
                        help="write mu and sigma of the restored pictures, by the one of --metrics, such as "
                             "fid, and end")
    parser.add_argument("--output", type=expand, help="JSON file for the report, with the values of each picture")
    parser.add_argument("--page", type=expand, metavar="FILE.html",
                        help="one file to look at all pictures with, the worst first")
    parser.add_argument("--source", type=expand, metavar="FOLDER",
                        help="for the page: what the pictures were restored from, by the same names")
    parser.add_argument("--device", default="auto", help="that networks run on, and over which ranks of msrun meet: "
                                                         "auto (default), Ascend, GPU or CPU")
    add = parser.add_argument_group("a model put to the test, in place of --reference and --restored").add_argument
    add("--ckpt", help="checkpoint (.safetensors), or photo: the model that ships")
    add("--task", help="such as colorization; needed where the model knows several")
    add("--input", type=expand, help="clean pictures, as data.path in training; the task makes sources of the squares "
                                     "in their middles")
    add("--made", type=expand, metavar="FOLDER", help="where sources, targets and results are kept, and where an "
                                                      "interrupted run goes on (default: --output without its suffix)")
    add("--size", type=int, metavar="PIXELS", help="side of the squares (default: as in training)")
    add("--num-samples", type=int, help="results for each picture (default: 1)")
    add("--sampler", help="default: what the checkpoint says is best")
    add("--steps", type=int, help="network calls a picture (default: what the checkpoint says)")
    add("--seed", type=int, help="decides damage and noise (default: 0)")
    add_import(parser)
    args = parser.parse_intermixed_args()
    runtime.check_launcher()
    metrics = list(dict.fromkeys(name.strip() for name in args.metrics.split(",")))
    for name in metrics:
        if name not in KNOWN:
            raise UserError(f"unknown metric {name!r}: {', '.join(KNOWN)}")
    if args.output:
        check_output(args.output)
    if args.page:
        check_page(args.page, "report.html")
    if args.save_statistics:
        check_statistics(args, metrics)
    if args.border < 0:
        raise UserError(f"--border must be at least 0, not {args.border}")
    check_sources(args)
    if not args.ckpt and not args.reference and not args.save_statistics:
        check_originals(args, metrics)
    given = open_networks(args, metrics)
    if args.ckpt:  # what a metric lacks is told before the model works for hours
        create_networks(args, given, metrics, [], args.num_samples)
    settings = {"settings": {name: str(value) for name, value in vars(args).items() if value not in (None, [], 0)}}
    if args.ckpt:
        settings["made"] = put_to_the_test(args)
    if args.save_statistics:
        save_statistics(args, metrics, given)
        return
    pairs = match(args.reference, args.restored, args.mask) if args.reference else alone(args.restored)
    samples = len(pairs[0].samples)
    networks = create_networks(args, given, metrics, pairs, samples)
    report = evaluate(pairs, metrics, args.range, args.border, networks)
    if runtime.rank() > 0:
        return
    run = {"pictures": len(pairs), "samples": samples, **settings, "versions": versions(),
           "weights": digests(given.views)}
    if args.output:
        write({**report, "run": run}, args.output)
    if args.page:
        write_page(args.page, pairs, report, run, args.source)
    print_table(report, run)


def check_sources(args):
    """Raises UserError where what is to be compared is not told, or in two ways."""
    of_model = ("task", "input", "made", "size", "num_samples", "sampler", "steps", "seed")
    given = [f"--{name.replace('_', '-')}" for name in of_model if getattr(args, name) is not None]
    if args.ckpt is None:
        if given or args.options or args.mask is True:
            raise UserError(f"{(given or args.options or ['--mask without a folder'])[0]} needs --ckpt")
        if args.restored is None:
            raise UserError("--restored FOLDER says which pictures, or --ckpt MODEL --input FOLDER which model to test")
        return
    if args.restored or args.reference or args.mask not in (None, True):
        raise UserError("--ckpt makes what is compared: leave --reference, --restored and the folder of --mask out")
    if args.input is None:
        raise UserError("--ckpt needs --input, a folder of clean pictures")
    args.made = args.made or (args.output and args.output.with_suffix(""))
    if args.made is None:
        raise UserError("--ckpt needs --made FOLDER, for what is made, or --output")
    args.num_samples, args.seed = (default if value is None else value
                                   for value, default in ((args.num_samples, 1), (args.seed, 0)))
    from palette_ms.pipeline import check_counts

    check_counts(args.num_samples, args.seed, 0)


def put_to_the_test(args):
    """Make the folders to compare; returns the settings."""
    from palette_ms.config import apply_override, config_from_dict
    from palette_ms.evaluation.trials import make_trials
    from palette_ms.pipeline import Palette

    palette = Palette.load(args.ckpt, args.device)
    if palette.makes_pictures:
        raise UserError("this model makes pictures from nothing: sample some, and compare them with --statistics")
    if args.task is None and len(palette.tasks) > 1:
        raise UserError(f"this model knows several tasks: add --task {' or --task '.join(palette.tasks)}")
    place = palette.config.place(args.task or palette.tasks[0])
    raw = palette.config.to_dict()
    for option in args.options:
        apply_override(raw["tasks"][place], option)
    palette.config = config_from_dict(raw, "option=value")
    sampling = palette.sampling(palette.config.tasks[place], args.sampler, args.steps, num_samples=args.num_samples)
    settings = make_trials(palette, place, args.input, args.made, sampling, args.num_samples, args.size, args.seed)
    args.reference, args.restored = args.made / "target", args.made / "restored"
    args.mask, args.source = args.made / "mask" if args.mask else None, args.made / "source"
    return settings


class Given(NamedTuple):
    """What a user brings for metrics by networks."""

    views: dict  # by name; empty: no metric needs one
    labels: Optional[dict]  # class by a picture's name, with suffix or without
    statistics: Optional[tuple]  # mean and covariance


def open_networks(args, metrics):
    """`Given` for the metrics that need some."""
    chosen = [NETWORK_METRICS[name] for name in metrics if name in NETWORK_METRICS]
    # One process does without MindSpore, where no network is needed.
    if chosen or runtime.started_by_msrun():
        runtime.setup(args.device)
    labels = read_labels(args.labels) if args.labels else None
    statistics = frechet.load_statistics(args.statistics) if args.statistics else None
    if not chosen:
        return Given({}, labels, statistics)
    from palette_ms.evaluation.views import VIEWS

    names = dict.fromkeys(metric.view for metric in chosen)
    return Given({name: VIEWS[name](args.weights) for name in names}, labels, statistics)


def create_networks(args, given, metrics, pairs, samples):
    """`Networks` of those metrics that need some, or None. Raises UserError: a metric needs more than there is."""
    if samples < 2 and set(metrics) & set(BETWEEN_SAMPLES):
        raise UserError("ssim_between needs two samples or more of each picture, and there is one")
    chosen = [name for name in metrics if name in NETWORK_METRICS]
    if not chosen:
        return None
    labels = given.labels
    if labels is not None:
        # By their names in a list as it is, which may have suffixes, or as the report has them.
        known = {**{os.path.splitext(name)[0]: label for name, label in labels.items()}, **labels}
        lacking = [pair.name for pair in pairs if pair.name not in known]
        if lacking:
            raise UserError(f"{args.labels} has no class for {len(lacking)} pictures, such as {lacking[0]}")
        labels = [known[pair.name] for pair in pairs]
    return Networks(chosen, given.views, len(pairs), samples, labels, given.statistics)


def check_originals(args, metrics):
    """Raises UserError: a metric needs the originals, which are not given."""
    for name in metrics:
        metric = NETWORK_METRICS.get(name)
        alone_too = name in _NO_ORIGINALS or getattr(metric, "needs", None) == "label" or (
            isinstance(metric, OfSet) and (args.statistics or not metric.compares))
        if not alone_too:
            raise UserError(f"{name} needs the originals: --reference FOLDER"
                            + (", or --statistics FILE.npz" if isinstance(metric, OfSet) else ""))
    if args.mask:
        raise UserError("--mask needs the originals: --reference FOLDER")


def check_statistics(args, metrics):
    """Raises UserError where statistics could not be saved, or would take the place of something else."""
    path = args.save_statistics
    if len(metrics) > 1 or not getattr(NETWORK_METRICS.get(metrics[0]), "compares", False):
        raise UserError("--save-statistics needs one metric that says of which features, such as --metrics fid")
    if args.output or args.page:
        raise UserError("--save-statistics writes statistics alone: leave --output and --page out"
                        + (", and say --made" if args.ckpt else ""))
    if path.suffix.lower() != ".npz":
        raise UserError(f"--save-statistics {path} must end in .npz")
    if os.path.lexists(path):
        try:
            frechet.load_statistics(path)
        except UserError:
            raise UserError(f"--save-statistics {path} is there and holds no statistics: choose another name") from None


def save_statistics(args, metrics, given):
    """Write mu and sigma of the features that the metric is about."""
    pairs, metric = alone(args.restored), NETWORK_METRICS[metrics[0]]
    networks = create_networks(args, given, metrics, pairs, 1)
    evaluate(pairs, [], args.range, 0, networks)
    if runtime.rank() == 0:
        rows = networks.restored(metric.view, metric.dim)
        frechet.save_statistics(args.save_statistics, *frechet.statistics(rows))
        print(f"{args.save_statistics}: {len(rows)} pictures, {metric.dim} features of {metrics[0]}")


def versions():
    """Of what the figures may depend on."""
    found = {"palette_ms": __version__, "python": platform.python_version()}
    for name in ("mindspore", "onnxruntime", "openvino", "numpy", "opencv-python-headless", "pillow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def digests(views):
    """SHA-256 of the weights that networks were made of, by file name."""
    return {name: digest for view in views.values() for name, digest in view.digests.items()}


def print_table(report, run):
    """The report, for a terminal."""
    each = f", each the mean of {run['samples']} samples" if run["samples"] > 1 else ""
    print(f"{run['pictures']} pictures{each}")
    wide = max([9, *map(len, report)]) + 1
    print(f"{'':{wide}}{'mean':>10}{'std':>10}")
    for name, figures in report.items():
        std = "" if figures["std"] is None else f"{figures['std']:10.4f}"
        of_all = f"{'' if std else ' ' * 10}  of {figures['samples']} samples" if "samples" in figures else ""
        print(f"{name:{wide}}{figures['mean']:10.4f}{std}{of_all}")
    print(f"settings: {', '.join(f'{name} {value}' for name, value in run['settings'].items())}")
    if "made" in run:
        made = run["made"]
        of_training = ("name", "weight", "loss_weight", "train_schedule", "usage")
        task, sampling = (", ".join(f"{name} {value}" for name, value in made[part].items()
                                    if value is not None and name not in of_training) for part in ("task", "sampling"))
        print(f"{made['task']['name']}: {task}")
        print(f"model: {made['model'][:16]}, {sampling}, size {made['size']}, seed {made['seed']}")
    print(f"versions: {', '.join(f'{name} {version}' for name, version in run['versions'].items())}")


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
            metrics = [figures for name, figures in held.items() if name != "run"]  # which earlier reports lack
            earlier = metrics and all({"mean", "pictures", "values"} <= figures.keys() for figures in metrics)
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
