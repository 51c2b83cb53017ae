"""What the files of a model of arrays hold, found once, when a training starts."""

import dataclasses

import numpy as np

from palette_ms import runtime
from palette_ms.data.forms import FileKind, OtherChannels, Ranges, Unfit, can_hold, forms
from palette_ms.data.readers import can_write, kind_of
from palette_ms.data.sources import decode, map_rows
from palette_ms.errors import UserError

_ENOUGH = 32  # files that are looked at after one of other channels than it should have, for one that differs


def find_ranges(data, source, say):
    """A `DataConfig` with the ranges and the kind of results that it leaves out.

    All files are read; several ranks share the work. The range of a channel is from its least to its greatest value, or
    that of the dtype in files of 8 bits and less. Results are written as the first target is, or as float32 where some
    target has fractions, or deep enough for the range, where such a file can be (a PNG of 16 bits has no two channels),
    or else as TIFF or .npy. Sources that a task makes of the target have its
    range.

    Args:
        data: `DataConfig` of a model of arrays.
        source: what is at its path, from `palette_ms.data.sources.open_source`.
        say: function of a text, for the user: what was found, and how many files hold values outside given ranges.

    Raises:
        UserError: nothing can be read.
        Unfit: see `decode`; of files of other channels, two that differ are named, where there are.
    """
    if not source.paired and data.ranges and data.ranges.source and not data.ranges.target:
        # Sources that tasks make of the targets have their range, so that one is both.
        data = dataclasses.replace(data, ranges=Ranges(data.ranges.source, data.ranges.source))
    wanted = forms(data)
    parts = runtime.share(_look(source, wanted, range(runtime.rank(), len(source), runtime.ranks())))
    unreadable = [part["unreadable"] for part in parts if part["unreadable"]]
    first = min((part["first"] for part in parts if part["first"]), default=None)
    if first is None:
        raise UserError(f"none of the {len(source)} pictures of {data.path} can be read; the first: {unreadable[0]}")
    ranges = {}
    for side, form in zip(("source", "target"), wanted):
        seen = [part[side] for part in parts if part[side]]
        outside = sum(found["outside"] for found in seen)
        if outside:
            _, name = min(found["first_outside"] for found in seen if found["outside"])
            say(f"warning: {outside} of {len(source)} files hold values outside data.ranges.{side}, which are clipped; "
                f"the first: {name}")
        ranges[side] = form.ranges
        if seen and not form.ranges:
            low, high = np.min([found["low"] for found in seen], 0), np.max([found["high"] for found in seen], 0)
            ranges[side] = tuple(zip(low.tolist(), high.tolist()))
            say(f"found data.ranges.{side}: {', '.join(f'{least:g} to {most:g}' for least, most in ranges[side])}")
    if not source.paired and data.channels.source == data.channels.target:
        ranges["source"] = ranges["target"]
    _, suffix, dtype = first
    if any(part["floats"] for part in parts):
        dtype = "float32"
    given = data.result or FileKind()
    if not can_hold(dtype, ranges["target"]):  # files of several depths, or ranges that were given
        dtype = next(wider for wider in ("uint16", "int16", "uint32", "int32", "float32")
                     if can_hold(wider, ranges["target"]))
    if given.dtype and not can_hold(given.dtype, ranges["target"]):
        raise UserError(f"data.result: {given.dtype} cannot hold the targets' values, "
                        f"{', '.join(f'{least:g} to {most:g}' for least, most in ranges['target'])}")
    dtype = given.dtype or dtype
    suffix = next(choice for choice in (given.suffix or suffix, ".tif", ".npy")
                  if can_write(choice, dtype, data.channels.target))
    if given.suffix not in (None, suffix):
        raise UserError(f"data.result: no {given.suffix} can hold {data.channels.target} channels of {dtype}; .npy can")
    return dataclasses.replace(data, ranges=Ranges(**ranges), result=FileKind(suffix, dtype))


def _look(source, wanted, numbers):
    """What the rows of these numbers hold, as JSON can hold it.

    Returns: dict with, for "source" and "target", None or a dict of low and high (lists, of each channel), outside (how
        many files hold values out of their range) and first_outside (the number and name of the first of these);
        "first", None or the number, suffix and dtype of the first target; "floats", whether some target has these;
        "unreadable", why the first that is cannot be
        read, or None.
    """
    found = {"source": None, "target": None, "first": None, "floats": False, "unreadable": None}
    files = {"source": {}, "target": {}}  # the first of each number of channels
    wrong = None
    for i, (names, row) in map_rows(source, lambda row: _look_at(row, wanted), "read all files", numbers):
        names = dict(zip(source.columns, names))
        if isinstance(row, OtherChannels):
            side = next(side for side, name in names.items() if name == row.name)
            files[side].setdefault(row.count, row.name)
            wrong = wrong or (i, side, row)
        elif isinstance(row, Unfit):
            raise row
        elif isinstance(row, UserError):
            found["unreadable"] = found["unreadable"] or str(row)
        else:
            suffix, dtype, sides = row
            found["first"] = found["first"] or [i, suffix, dtype]
            found["floats"] = found["floats"] or dtype.startswith("float")
            for side, (low, high, outside) in sides.items():
                files[side].setdefault(len(low), names[side])
                so_far = found[side] or {"low": low, "high": high, "outside": 0, "first_outside": None}
                found[side] = {"low": np.minimum(low, so_far["low"]).tolist(),
                               "high": np.maximum(high, so_far["high"]).tolist(),
                               "outside": so_far["outside"] + outside,
                               "first_outside": so_far["first_outside"] or ([i, names[side]] if outside else None)}
        if wrong and (len(files[wrong[1]]) > 1 or i - wrong[0] >= _ENOUGH * numbers.step):
            break
    if wrong:
        _, side, error = wrong
        other = next((f"; {name} has {count}" for count, name in files[side].items() if count != error.count), "")
        raise Unfit(f"{error} by data.channels.{side}{other}")
    return found


def _look_at(row, wanted):
    """(names, what is wrong, an error, or (suffix, dtype, of each side the channels' least and greatest values and
    whether some are out of its range)) of a row."""
    names = [name for name, _ in row]
    try:
        decoded = decode(row, wanted)
    except UserError as error:
        return names, error
    sides = {}
    for side, form in zip(("source", "target"), wanted):
        array = getattr(decoded, side)
        if array is not None:
            ends = {"bool": (0, 1), "uint8": (0, 255), "int8": (-128, 127)}.get(array.dtype.name)
            low, high = ((array.min((0, 1)), array.max((0, 1))) if ends is None else
                         np.repeat([ends], array.shape[2], 0).T)
            outside = form.ranges is not None and form.outside(array) > 0
            sides[side] = low.astype(np.float64).tolist(), high.astype(np.float64).tolist(), outside
    encoded = row[0 if len(row) == 1 else 1][1]
    return names, (kind_of(encoded).suffix, decoded.target.dtype.name, sides)
