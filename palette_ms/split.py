"""python -m palette_ms.split: divide pictures or pairs into a training and a validation list."""

import argparse
import csv
import hashlib
import io
import os
import sys

import numpy as np

from palette_ms import errors
from palette_ms.data.duplicates import group_duplicates, perceptual_hashes
from palette_ms.data.files import expand, replacing
from palette_ms.data.forms import Arrays, Photo
from palette_ms.data.sources import Files, map_rows, open_source
from palette_ms.errors import UserError


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.split", description=__doc__,
        epilog="Copies of a picture, re-encoded, resized or mirrored ones too, come to one side together. A picture's "
               "content decides its side: adding others moves none. Set data.path and data.validation to the lists.")
    parser.add_argument("source", help="a folder, .txt or .csv, as data.path")
    parser.add_argument("output", help="folder for train.txt and validation.txt, or .csv for pairs")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the pictures (default: 0.1)")
    parser.add_argument("--arrays", action="store_true",
                        help="for a model of arrays (data.channels, data.ranges): .npy and .npz count too")
    parser.add_argument("--overwrite", action="store_true", help="replace lists that are there")
    args = parser.parse_args()
    for path in split(args.source, args.output, args.validation, args.overwrite, args.arrays):
        print(path)


def split(path, output, validation=0.1, overwrite=False, arrays=False):
    """Write two lists of a source's pictures such that no picture has copies of itself in both.

    Pictures that cannot be read are in neither.

    Args:
        path: a folder, .txt or .csv, see `palette_ms.data.sources.open_source`.
        output: folder for the lists.
        validation: share of the pictures, about, that the validation list gets; between 0 and 1.
        overwrite: replace earlier lists.
        arrays: the pictures are those of a model of arrays, see `palette_ms.data.forms.Arrays`.

    Returns: the paths of the training and the validation list.

    Raises:
        UserError: see `open_source`; an archive or MindRecord; a share out of range; lists that are there or cannot be
            written; a side that would be empty.
    """
    path, output = expand(path), expand(output)
    if not 0 < validation < 1:
        raise UserError(f"--validation must be between 0 and 1, not {validation}")
    form = Arrays() if arrays else Photo()
    source = open_source(path, form.suffixes)
    if not isinstance(source, Files):
        raise UserError(f"a list cannot name what is in {path}: unpack it and split the folder (palette_ms.pack packs "
                        "lists too)")
    fitting = [row for row in source.rows if all(_can_stand(str(name), source.columns) for name in row)]
    if len(fitting) < len(source):
        print(f"left out of the lists: {len(source) - len(fitting)} pictures whose names are not UTF-8, have line "
              "breaks or end in blanks; rename them", file=sys.stderr)
    source = Files(fitting, source.columns)
    ending = ".csv" if source.paired else ".txt"
    lists = [output / f"{name}{ending}" for name in ("train", "validation")]
    for file in lists:
        if file.exists() and (not overwrite or file.samefile(path)):
            raise UserError(f"{file} is there: choose another folder" + ("" if overwrite else ", or add --overwrite"))
    rows, digests, hashes, owners = [], [], [], []
    for i, (digest, found) in map_rows(source, lambda row: _fingerprints(row, source.columns, form), "split"):
        owners += [len(rows)] * len(found)
        hashes += found
        digests.append(digest)
        rows.append(source.rows[i])
    groups = group_duplicates(np.array(hashes), np.array(owners))
    sides = choose_sides(groups, digests, validation)
    if len(set(sides)) == 1:
        raise UserError(f"all {len(rows)} would come to one side: too few, or too much alike, for --validation "
                        f"{validation}")
    chosen = [[row for row, side in zip(rows, sides) if side == wanted] for wanted in (False, True)]
    _write(lists, chosen, source.columns)
    print(f"{len(chosen[0])} to train on, {len(chosen[1])} to validate with; {len(rows) - len(set(groups))} are copies",
          file=sys.stderr)
    return lists


def _fingerprints(row, columns, form):
    """Of a row: the hash of its files' bytes, and the perceptual hashes of its pictures. Masks may well be alike."""
    digest = hashlib.blake2b(b"".join(data for _, data in row), digest_size=16).digest()
    pictures = [form.read(io.BytesIO(data), name, enough=256)
                for column, (name, data) in zip(columns, row) if column != "mask"]
    return digest, [perceptual_hashes(_to_see(picture, form)) for picture in pictures]


def _to_see(picture, form):
    """uint8 RGB (H, W, 3); of an array, its own values from the least to the greatest."""
    if isinstance(form, Photo):
        return picture
    form = Arrays(ranges=((picture.min(), picture.max()),))
    return form.to_show(form.to_float(picture))


def choose_sides(groups, digests, validation):
    """For each row, whether it is to validate with.

    Args:
        groups: the number of each row's group; a group goes to the side that its smallest digest decides.
        digests: bytes that the row's content decides.
        validation: share of the groups, about.
    """
    smallest = {}
    for group, digest in zip(groups, digests):
        smallest[group] = min(digest, smallest.get(group, digest))
    # Hashed once more: the smallest of several digests is no longer an evenly drawn number.
    draws = {group: int.from_bytes(hashlib.blake2b(digest, digest_size=8).digest(), "big")
             for group, digest in smallest.items()}
    return [draws[group] < validation * 2**64 for group in groups]


def _write(lists, chosen, columns):
    """The lists, with paths relative to their folder, under temporary names first."""
    try:
        folder = lists[0].parent.resolve()
        with replacing(lists[0]) as first, replacing(lists[1]) as second:
            for path, rows in zip((first, second), chosen):
                rows = [[os.path.relpath(file, folder) for file in row] for row in rows]
                with open(path, "w", encoding="utf-8", newline="") as file:
                    if len(columns) > 1:
                        csv.writer(file).writerows([columns, *rows])
                    else:
                        file.writelines(_line(name) for name, in rows)
    except OSError as error:
        raise UserError(f"cannot write {lists[0]} and {lists[1].name}: {error}") from None


def _can_stand(name, columns):
    """Whether a file's name can stand in a list or table."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(columns) > 1 or ("\n" not in name and name == name.rstrip())


def _line(name):
    if name.startswith("#") or name != name.lstrip():
        name = f"./{name}"
    return f"{name}\n"


if __name__ == "__main__":
    errors.run(main)
