"""Restored pictures beside their references: which belong together, and what the metrics say of each and of all."""

import re
import sys
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image
from tqdm import tqdm

from palette_ms import runtime
from palette_ms.data.files import by_name, find, tell_left_out
from palette_ms.data.forms import Arrays, OtherChannels, Photo, Unfit
from palette_ms.data.images import SUFFIXES, no_pictures
from palette_ms.data.readers import ARRAY_SUFFIXES
from palette_ms.data.results import Results
from palette_ms.errors import UserError
from palette_ms.evaluation.metrics import BETWEEN_SAMPLES, METRICS
from palette_ms.evaluation.networks import SMALLEST

# Pictures that networks look at together, with their samples, and how many pixels these have: of each, LPIPS keeps
# hundreds of numbers.
_TOGETHER, _PIXELS = 8, 2**20


class Pair(NamedTuple):
    """A picture to compare."""

    name: str  # its path below the folder, without suffix
    reference: Optional[Path]  # None: there is no original
    samples: list  # paths of what was restored of it
    mask: Optional[Path]  # white where the two are compared; None: everywhere


def match(reference, restored, masks=None):
    """The `Pair`s of two folders, in the order of their names.

    Pictures belong together by their paths below the folders without suffixes. `NAME_0`, `NAME_1`, … are samples of
    NAME, unless every reference has a result of its very name. In a folder that `sample` wrote, its record says what is
    of what, and which results are left over from earlier runs. Those and pictures without a counterpart are left out,
    which a line on stderr says.

    Args:
        reference, restored: folders.
        masks: a folder with masks for the references, or None.

    Raises:
        UserError: a folder is missing or empty, no picture has its counterparts, or one has more samples than another.
    """
    folders = [folder for folder in (reference, restored, masks) if folder is not None]
    references, results, *masks_of = (_by_name(folder, folders) for folder in folders)
    lines = Results(restored).lines
    plain = references.keys() <= results.keys()
    samples, surplus, earlier = {}, [], []
    for name, path in results.items():
        line = lines.get(str(path.relative_to(restored)), {})
        numbered = re.fullmatch(r"(.+)_\d+", name, re.S)
        if line.get("left_over"):
            earlier.append(path.relative_to(restored))
        elif line.get("of") in references:
            samples.setdefault(line["of"], []).append(path)
        elif not plain and numbered and numbered[1] in references:
            samples.setdefault(numbered[1], []).append(path)
        elif name in references:
            samples.setdefault(name, []).append(path)
        else:
            surplus.append(path.relative_to(restored))
    lacking = f"of the {len(references)} pictures of {reference}"
    problems = [(f"{restored} lacks", lacking, sorted(references.keys() - samples.keys())),
                (f"{restored} has", f"that {reference} lacks", surplus),
                (f"{restored} has", "left over from earlier runs", earlier)]
    if masks_of:
        problems.append((f"{masks} lacks", lacking, sorted(references.keys() - masks_of[0].keys())))
    told = "; ".join(f"{who} {len(names)} {what}: {', '.join(map(str, names[:3]))}{', …' if len(names) > 3 else ''}"
                     for who, what, names in problems if names)
    names = [name for name in sorted(samples) if not masks_of or name in masks_of[0]]
    if not names:
        raise UserError(f"no picture to compare: {told}")
    if told:
        print(f"left out: {told}", file=sys.stderr)
    fewest, most = (choose(names, key=lambda name: len(samples[name])) for choose in (min, max))
    if len(samples[fewest]) < len(samples[most]):
        raise UserError(f"{restored} has {len(samples[most])} samples of {most} and {len(samples[fewest])} of "
                        f"{fewest}: restore again into an empty folder")
    return [Pair(name, references[name], samples[name], masks_of[0][name] if masks_of else None) for name in names]


def alone(restored):
    """The `Pair`s of a folder of pictures without originals, each picture one of its own; those that `sample`'s record
    calls left over do not count. Raises UserError: see `match`."""
    lines, pairs = Results(restored).lines, []
    for name, path in sorted(_by_name(restored, [restored]).items()):
        if not lines.get(str(path.relative_to(restored)), {}).get("left_over"):
            pairs.append(Pair(name, None, [path], None))
    if not pairs:
        raise UserError(f"no picture in {restored} but results left over from earlier runs")
    return pairs


def named(pairs, folder):
    """dict of each `Pair`'s name → the picture of that name in a folder. Raises UserError: one is not there."""
    found = _by_name(folder, [folder])
    lacking = [pair.name for pair in pairs if pair.name not in found]
    if lacking:
        raise UserError(f"{folder} lacks {len(lacking)} of the {len(pairs)} pictures: {', '.join(lacking[:3])}")
    return found


def _by_name(folder, folders):
    """The pictures of a folder, or of one without any its arrays; not those of the others below it."""
    folder, others = Path(folder), [other for other in folders if Path(other) != Path(folder)]
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    files, left_out = find(folder, SUFFIXES, others)
    if not files:
        files, left_out = find(folder, ARRAY_SUFFIXES, others)
    tell_left_out(folder, left_out)
    if not files:
        raise no_pictures(folder, ARRAY_SUFFIXES)
    return by_name(folder, ARRAY_SUFFIXES, files)


class Opened(NamedTuple):
    """The arrays (H, W, C) of a `Pair`."""

    original: Optional[np.ndarray]
    samples: list
    where: Optional[np.ndarray]  # bool (H, W), what counts
    span: float  # how far apart the least and the greatest value are


def read(pair, limits=None):
    """`Opened`, of RGB of 8 bits where one of the pictures has no more, else of their own values.

    Args:
        pair: `Pair`.
        limits: (low, high), what the values span, also in files of 8 bits; None: what the dtype does.

    Raises:
        UserError: an unreadable picture, sizes or channels that differ, an empty mask, values of more than 16 bits
            without limits.
    """
    form, span = _form_and_span(pair, limits)
    original, where = None if pair.reference is None else form.read(pair.reference), None
    if pair.mask is not None:
        where = form.read_mask(pair.mask) > 0.5
        _check_size(pair.mask, where, pair.reference, original)
    samples = []
    for path in pair.samples:
        restored = form.read(path)
        if original is not None:
            _check_size(path, restored, pair.reference, original)
            if restored.shape[2] != original.shape[2]:
                raise OtherChannels(path, restored.shape[2], original.shape[2])
        samples.append(restored)
    return Opened(original, samples, where, span)


def measure(pair, opened, metrics, border=0):
    """The value of each metric (names in `METRICS` and `BETWEEN_SAMPLES`), the mean over its samples.

    Args:
        pair: `Pair`, for messages.
        opened: `Opened`.
        border: pixels left out at each edge.

    Raises:
        UserError: nothing is left to compare, or a metric has no value.
    """
    height, width = opened.samples[0].shape[:2]
    if 2 * border >= min(height, width):
        raise UserError(f"nothing of {pair.reference or pair.samples[0]}, {width}×{height}, is left without a border "
                        f"of {border} pixels")
    inner = np.s_[border:height - border, border:width - border]
    where = None if opened.where is None else opened.where[inner]
    if where is not None and not where.any():
        raise UserError(f"{pair.mask} is white in the border alone: nothing to compare")
    original = None if opened.original is None else opened.original[inner]
    samples, values = [sample[inner] for sample in opened.samples], []
    for name in metrics:
        if name in METRICS:
            of_each = [METRICS[name](sample, original, where, opened.span) for sample in samples]
        else:
            of_each = [BETWEEN_SAMPLES[name](a, b, where, opened.span) for a, b in combinations(samples, 2)]
        values.append(np.mean(of_each))
    return values


def _form_and_span(pair, limits):
    """How the pictures of a pair are read, and how far apart the least and the greatest value are."""
    if limits is not None:
        return Arrays(), limits[1] - limits[0]
    paths, found = [*filter(None, (pair.reference, *pair.samples))], {}
    pictures = all(path.suffix.lower() in SUFFIXES for path in paths)
    for path in paths:
        try:
            array = Arrays().read(path)
        except UserError as error:
            if pictures and not isinstance(error, Unfit):
                return Photo(), 255  # some more files are read so, and of others it is said what is wrong
            raise
        found[path] = array.dtype, array.shape[2]
    # Photos may differ in what comes beside their colours: gray and RGB, with alpha and without, and in their depth.
    # Two or four channels of 8 bits in all of them are those of a model of arrays.
    eight = [channels for dtype, channels in found.values() if dtype.itemsize == 1]
    if pictures and eight and max(eight) <= 4 and (len(eight) < len(found) or set(eight) not in ({2}, {4})):
        return Photo(), 255
    spans = [2 ** (8 * dtype.itemsize) - 1 if dtype.kind in "iu" and dtype.itemsize <= 2 else None
             for dtype, _ in found.values()]
    for (path, (dtype, _)), span in zip(found.items(), spans):
        if span is None or span != spans[0]:
            raise UserError(f"{path} holds {dtype.name}: say what the values to compare span, as --range LOW,HIGH")
    return Arrays(), spans[0]


def _check_size(path, array, reference, original):
    (height, width), (wanted_height, wanted_width) = array.shape[:2], original.shape[:2]
    if (height, width) != (wanted_height, wanted_width):
        raise UserError(f"{path} is {width}×{height}, {reference} {wanted_width}×{wanted_height} (width × height): "
                        "they must be the same")


def evaluate(pairs, metrics, limits=None, border=0, networks=None):
    """The report on all `Pair`s, spread over the ranks; every rank gets it whole.

    Args:
        pairs: from `match`, the same on all ranks.
        metrics: names in `METRICS`, `BETWEEN_SAMPLES` and, with networks, `NETWORK_METRICS`.
        limits: see `read`.
        border: pixels left out at each edge; networks look at whole pictures.
        networks: `palette_ms.evaluation.networks.Networks` of the metrics by networks, or None.

    Returns: dict of metric → {"mean", "std" (of the pictures as a population; None where a value is infinite),
        "pictures" (their number), "values" (of each name)}. The values are those of float32, which ranks exchange.
        Metrics of all pictures together have their value as "mean", no "values", "samples", how many pictures it is of,
        and as "std" the Inception score's over its parts.

    Raises:
        UserError: pictures cannot be compared; which, and why, is said on stderr.
    """
    columns = [name for name in metrics if networks is None or name not in networks.chosen]
    seen = networks.of_pictures if networks else []
    values, failed = np.zeros((len(pairs), len(columns) + len(seen)), np.float32), 0
    mine = list(range(runtime.rank(), len(pairs), runtime.ranks()))
    sizes = {}
    if networks:
        sizes = {i: _size(pairs[i].samples[0]) for i in mine}
        mine.sort(key=sizes.get)  # a network is compiled for one size after the other
    with tqdm(total=len(mine), desc="evaluate", unit="picture", disable=None, leave=False) as bar:
        for group in _groups(mine, lambda i: np.prod(sizes.get(i, 0)) * (1 + len(pairs[i].samples))):
            ready = {}
            for i in group:
                try:
                    opened = read(pairs[i], limits)
                    values[i, :len(columns)] = measure(pairs[i], opened, columns, border)
                    if networks:
                        _check_rgb(opened)
                        ready[i] = opened
                except UserError as error:
                    failed += 1
                    tqdm.write(f"{pairs[i].name} was not compared: {error}", file=sys.stderr)
            if ready:
                opened = list(ready.values())
                values[list(ready), len(columns):] = networks.add(
                    list(ready), [one.original for one in opened], [one.samples for one in opened])
            bar.update(len(group))
    failed = int(runtime.sum_over_ranks(failed))
    if failed:
        raise UserError(f"{failed} of {len(pairs)} pictures could not be compared, so there is no report")
    values, names = runtime.sum_over_ranks(values), [pair.name for pair in pairs]
    report = {metric: _summary(names, column) for metric, column in zip([*columns, *seen], values.T)}
    if networks:
        networks.kept = {key: runtime.sum_over_ranks(kept) for key, kept in networks.kept.items()}
        for metric, (value, std) in networks.of_all(metrics).items():
            report[metric] = {"mean": value, "std": std, "pictures": len(pairs),
                              "samples": len(pairs) * len(pairs[0].samples), "values": {}}
    return {metric: report[metric] for metric in metrics}


def _groups(numbers, pixels):
    """Numbers of pictures, as lists of those that networks look at together; `pixels` says how many one has."""
    group, total = [], 0
    for number in numbers:
        own = pixels(number)
        if group and (len(group) == _TOGETHER or total + own > _PIXELS):
            yield group
            group, total = [], 0
        group.append(number)
        total += own
    if group:
        yield group


def _size(path):
    """(height, width) as a picture's file has it."""
    try:
        with Image.open(path) as image:
            return image.size[::-1]
    except Exception:  # which is told when it is read
        return 0, 0


def _check_rgb(opened):
    if opened.span != 255 or any(np.shape(sample)[2] != 3 or sample.dtype != np.uint8 for sample in opened.samples):
        raise UserError("metrics by networks need RGB of 8 bits")
    if min(opened.samples[0].shape[:2]) < SMALLEST:
        raise UserError(f"metrics by networks need pictures of {SMALLEST} pixels a side or more")


def _summary(names, values):
    wide = values.astype(np.float64)
    return {"mean": float(wide.mean()), "std": float(wide.std()) if np.isfinite(wide).all() else None,
            "pictures": len(names),
            "values": {name: float(str(value)) for name, value in zip(names, values)}}  # the digits that float32 has
