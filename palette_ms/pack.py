"""python -m palette_ms.pack: pack pictures or pairs into MindRecord, for large sets on a cluster."""

import argparse
import itertools
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from palette_ms import errors
from palette_ms.data.files import expand
from palette_ms.data.forms import Arrays, Photo
from palette_ms.data.sources import TARGET, decode, map_rows, mindrecord_files, open_source, reason
from palette_ms.errors import UserError

_PAGE = 64 * 2**20  # bytes; MindRecord cannot hold a row that is larger than its page


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.pack", description=__doc__,
        epilog="The pictures' files are kept as they are; those that cannot be read are left out and counted. Do not "
               "rename what is written, which holds its own names; moving all of it to another folder does no harm.")
    parser.add_argument("source", help="a folder, .txt, .csv, .zip, .tar or .mindrecord, as data.path")
    parser.add_argument("--arrays", action="store_true",
                        help="for a model of arrays (data.channels, data.ranges): .npy and .npz count too")
    add_output(parser)
    args = parser.parse_args()
    pack(args.source, args.output, args.shards, args.overwrite, args.arrays)
    print(args.output)


def add_output(parser):
    """The arguments that say where MindRecord is written."""
    parser.add_argument("output", metavar="OUTPUT.mindrecord")
    parser.add_argument("--shards", type=int, default=1,
                        help="files to share the pictures among: OUTPUT.mindrecord0, OUTPUT.mindrecord1, ...")
    parser.add_argument("--overwrite", action="store_true", help="replace an OUTPUT that is there")


def pack(path, output, shards=1, overwrite=False, arrays=False, describe=None):
    """Write what a source holds as MindRecord, first under a temporary name.

    The columns are `name` (relative to the source), `target` and, for pairs, `source` and perhaps `mask`: the encoded
    files. One file keeps the source's order; several have an order of their own.

    Args:
        path: see `palette_ms.data.sources.open_source`.
        output: NAME.mindrecord.
        shards: number of files, 1 to 1000.
        overwrite: replace an earlier output.
        arrays: the pictures are those of a model of arrays, see `palette_ms.data.forms.Arrays`.
        describe: what is written beside the pictures, such as `palette_ms.encode.Descriptions`, or None.

    Raises:
        UserError: see `open_source`; no readable picture, an output that is there, has another ending or cannot be
            written, or another number of shards.
    """
    from mindspore.mindrecord import FileWriter

    path, output = expand(path), expand(output)
    if not re.fullmatch(r"(?! )[^\\:*?\"<>|`&';]+\.mindrecord", output.name):
        raise UserError(f"output {output} must end in .mindrecord, with none of \\ : * ? \" < > | ` & ' ; in its name")
    if not 1 <= shards <= 1000:
        raise UserError(f"the number of shards must be from 1 to 1000, not {shards}")
    earlier = [file for name in mindrecord_files(output) for file in (name, name.with_name(name.name + ".db"))]
    if earlier and not overwrite:
        raise UserError(f"{earlier[0]} is there: choose another name, or add --overwrite")
    form = Arrays() if arrays else Photo()
    source = open_source(path, form.suffixes)
    if describe and not source.columns == TARGET:
        raise UserError(f"{path} holds pairs, where captioned pictures are needed")
    base = path if path.is_dir() else path.parent

    def row(pictures):
        decode(pictures, (form, form))
        values = {column: data for column, (_, data) in zip(source.columns, pictures)}
        name = pictures[source.columns.index("target")][0]
        if sum(len(data) for _, data in pictures) > _PAGE - 1024:  # room for their lengths
            raise UserError(f"{name} is larger than {_PAGE / 2**20:g} MB, the most that can be packed")
        if describe:
            values.update(describe.row(name))
        name = os.path.relpath(name, base).encode("utf-8", "backslashreplace").decode()  # it may not be UTF-8
        return {"name": name, **values}

    columns = {"name": {"type": "string"}, **{column: {"type": "bytes"} for column in source.columns}}
    if describe:
        columns.update(describe.columns)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of their own, since the files hold their names.
        with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            writer = FileWriter(f"{folder}/{output.name}", shards)
            writer.set_page_size(_PAGE)
            writer.add_schema(columns, "palette_ms")
            rows = (result for _, result in map_rows(source, row, "pack"))
            rows = describe.finished(rows) if describe else rows
            # As many rows as files: each gets one. Of fewer, MindSpore draws which get them.
            for some in iter(lambda: list(itertools.islice(rows, shards)), []):
                writer.write_raw_data(some)
            writer.commit()
            for file in earlier:
                file.unlink(missing_ok=True)
            for file in Path(folder).iterdir():
                file.chmod(0o644)  # MindSpore's can be read by their owner alone
                file.replace(output.parent / file.name)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {output}: {reason(error)}") from None


if __name__ == "__main__":
    errors.run(main)
