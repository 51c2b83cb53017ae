"""Pictures to train on, by number: a folder, a list, a table of pairs, an archive read in place, or MindRecord.

A source has a length and `columns`: `TARGET`, or, where it is `paired`, `PAIR` or `MASKED_PAIR`. `read(i)` gives row i
as a list of (name, encoded bytes), one for each column. Files are opened for each row, so any number of threads and
processes may read at once.
"""

import csv
import hashlib
import io
import os
import re
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import PurePosixPath
from typing import NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from palette_ms.data.files import TEXTS, expand, is_others, link_target, other_files, resolve_links, tell_left_out
from palette_ms.data.forms import Arrays, Unfit
from palette_ms.data.images import SUFFIXES, is_picture, list_images, no_pictures
from palette_ms.data.readers import read_file
from palette_ms.errors import UserError, did_you_mean

TARGET, PAIR, MASKED_PAIR = ("target",), ("source", "target"), ("source", "target", "mask")

_UNPACKERS = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
_BLOCK = 32  # rows whose results wait in memory


def open_source(path, suffixes=SUFFIXES, leave_out=()):
    """The source that a path stands for.

    Args:
        path: a folder, searched to the bottom; a list (.txt): one path a line, where blank lines and those that begin
            with # do not count; a table (.csv) with a column `target` and, for pairs, `source`, also with `mask`, which
            is white where the target is to be made; an archive (.zip, .tar) with folders in it or without; MindRecord
            (.mindrecord), as `palette_ms.pack` writes it. Paths in lists and tables are relative to these.
        suffixes: of the files that count in folders and archives, in lower case.
        leave_out: folders below a folder that do not count.

    Raises:
        UserError: there is no such thing, it is of another kind or damaged, or has no pictures.
    """
    path = expand(path)
    if path.is_dir():
        return Files([(file,) for file in list_images(path, suffixes, leave_out)])
    if re.search(r"\.mindrecord\d*$", path.name):
        return MindRecord(path)
    if not path.is_file():
        raise UserError(f"no such folder or file: {path}")
    suffix = path.suffix.lower()
    if suffix in _UNPACKERS:
        raise UserError(f"{path} is compressed as a whole, so that no picture can be picked out of it: make it a plain "
                        f".tar with {_UNPACKERS[suffix]} (pictures hardly get smaller by it)")
    lists, archives = {".txt": _read_list, ".csv": _read_table}, {".zip": _open_zip, ".tar": _open_tar}
    if suffix in lists:
        return lists[suffix](path)
    if suffix in archives:
        return archives[suffix](path, suffixes)
    raise UserError(f"{path} is not a folder, .txt, .csv, .zip, .tar or .mindrecord of pictures")


class Files:
    """Picture files.

    Args:
        rows: tuples of paths, one for each column.
        columns: see above.
    """

    def __init__(self, rows, columns=TARGET):
        self.rows = rows
        self.columns = columns
        self.paired = columns != TARGET

    def __len__(self):
        return len(self.rows)

    def read(self, i):
        return [(str(path), read_file(path)) for path in self.rows[i]]


def _read_list(path):
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a text in UTF-8: {error}") from None
    rows = [(path.parent / expand(line),) for line in lines if line and not line.startswith("#")]
    if not rows:
        raise UserError(f"{path} names no pictures: it must hold one path a line")
    return Files(rows)


def _read_table(path):
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or []
            lines = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV in UTF-8: {error}") from None
    if "target" not in columns:
        raise UserError(f"{path} has no column target{did_you_mean('target', columns) if columns else ': it is empty'}")
    used = tuple(name for name in MASKED_PAIR if name in columns)
    if used not in (TARGET, PAIR, MASKED_PAIR):
        raise UserError(f"{path} has a column mask and no column source: masks are for pairs")
    for number, line in enumerate(lines, 1):
        if not all(line[name] for name in used):
            raise UserError(f"{path}: row {number} after the header lacks its {' or '.join(used)}")
    if not lines:
        raise UserError(f"{path} names no pictures below its header")
    return Files([tuple(path.parent / expand(line[name].strip()) for name in used) for line in lines], used)


class Archive:
    """The pictures of an archive, read in place.

    Args:
        path: the archive.
        members: what `unpack` needs to know of each picture, by its `PurePosixPath`.
        unpack: function (path, member) → encoded bytes.
    """

    columns, paired = TARGET, False

    def __init__(self, path, members, unpack):
        self.path = path
        self.members = sorted(members.items())
        self._unpack = unpack

    def __len__(self):
        return len(self.members)

    def read(self, i):
        name, member = self.members[i]
        name = f"{self.path}/{name}"
        try:
            return [(name, self._unpack(self.path, member))]
        except (zlib.error, struct.error, ValueError):
            raise UserError(f"cannot read picture {name}: the archive is damaged") from None


def _open_zip(path, suffixes):
    try:
        with zipfile.ZipFile(path) as archive:
            members = {PurePosixPath(member.filename): member for member in archive.infolist() if not member.is_dir()}
            # A link is kept as a file that holds what it leads to.
            links = {name: link_target(name, archive.read(member).decode()) for name, member in members.items()
                     if stat.S_ISLNK(member.external_attr >> 16) and member.file_size < 4096}
    # zipfile tells damage by many kinds of error
    except Exception as error:
        raise UserError(f"{path} is not a whole zip archive: {error}") from None
    members = {name: member for name, member in members.items() if name not in links}
    members.update(_linked(path, links, members))
    pictures = {name: (member.header_offset, member.compress_size, member.compress_type, member.CRC)
                for name, member in _pictures(path, members, suffixes).items()}
    if any(members[name].flag_bits & 1 or kind not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
           for name, (_, _, kind, _) in pictures.items()):
        raise UserError(f"{path} is encrypted, or compressed in a rare way, and cannot be read in place: unpack it")
    return Archive(path, pictures, _unzip)


def _unzip(path, member):
    offset, size, compression, checksum = member
    # The member's own header: 30 bytes, the last four of them the lengths of what stands before the data
    # (PKWARE's APPNOTE 6.3.10, section 4.3.7).
    name_length, extra_length = struct.unpack("<26xHH", read_file(path, offset, 30))
    data = read_file(path, offset + 30 + name_length + extra_length, size)
    if compression == zipfile.ZIP_DEFLATED:
        data = zlib.decompress(data, -zlib.MAX_WBITS)
    if zlib.crc32(data) != checksum:
        raise ValueError("another checksum")
    return data


def _open_tar(path, suffixes):
    try:
        with tarfile.open(path, "r:") as archive:
            members, links, others = {}, {}, Counter()
            for member in archive:
                name = PurePosixPath(member.name)
                if member.issym():
                    links[name] = link_target(name, member.linkname)
                elif member.islnk():
                    links[name] = PurePosixPath(member.linkname)
                elif member.isreg() and not member.issparse():
                    members[name] = member.offset_data, member.size
                elif not member.isdir():
                    others["sparse files, pipes or devices"] += 1
            end = archive.offset
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole tar archive (damaged, or compressed?): {error}") from None
    if any(read_file(path, end, tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
        raise UserError(f"{path} is damaged after its first {len(members)} files: make it anew")
    members.update(_linked(path, links, members))
    tell_left_out(path, others)
    return Archive(path, _pictures(path, members, suffixes), lambda path, member: read_file(path, *member))


def _linked(path, links, members):
    """The members that an archive's links stand for, by the links' names; of those that lead elsewhere a line is said.
    """
    found, elsewhere = resolve_links(links, members)
    tell_left_out(path, Counter({"links that lead to no file in it": elsewhere} if elsewhere else {}))
    return found


def _pictures(path, members, suffixes):
    """Those of an archive's members by their names; of others a line is said. Raises UserError: there are none."""
    pictures = {name: member for name, member in members.items() if is_picture(name, suffixes)}
    others = (name for name in members if name not in pictures and not any(map(is_others, name.parts)))
    tell_left_out(path, Counter(other_files(name.suffix.lower()) for name in others
                                if name.suffix.lower() not in (*TEXTS, *suffixes)))
    if not pictures:
        raise no_pictures(path, suffixes)
    return pictures


class MindRecord:
    """Rows of MindRecord with the columns `name`, `target` and, for pairs, `source`, perhaps `mask`, or beside
    captioned pictures `tokens`, `count` and `encoder` (see `palette_ms.encode`); in one file or several.

    Args:
        path: NAME.mindrecord, also of a set in several files (NAME.mindrecord0, NAME.mindrecord1, …).

    Attributes:
        encoder, text_channels: fingerprint of the encoder that told the captions, and width of its tokens; None: there
            are none.

    Raises:
        UserError: no such files, damaged ones, or other columns.
    """

    def __init__(self, path):
        # Only this source needs MindSpore, which is slow to import.
        from mindspore.dataset import MindDataset
        from mindspore.mindrecord import FileReader

        files = mindrecord_files(path)
        if not files:
            raise UserError(f"no such file: {path}")
        self.path = path
        try:
            reader = FileReader(str(files[0]), 1)
            columns = reader.schema()
            reader.close()
        except RuntimeError as error:
            raise UserError(f"{path} cannot be read as MindRecord: are all of its files there, whole, with their .db "
                            f"files, by the names they were written with? ({reason(error)})") from None
        if any(columns.get(name, {}).get("type") != kind for name, kind in (("name", "string"), ("target", "bytes"))):
            raise UserError(f"{path} has the columns {', '.join(columns)}, where name and target (an encoded picture) "
                            "are needed: write it with python -m palette_ms.pack")
        self.columns = tuple(name for name in MASKED_PAIR if name in columns) if "source" in columns else TARGET
        self.paired = self.columns != TARGET
        texts = ("tokens", "count", "encoder")
        texts = texts if all(name in columns for name in texts) else ()
        # Reading by number, which MindDataset does by itself, keeps the order ours.
        self._rows = MindDataset(str(files[0]), ["name", *self.columns, *texts], shuffle=False)
        self._size = self._rows.get_dataset_size()
        if not self._size:
            raise UserError(f"{path} holds no pictures")
        self.encoder = self.text_channels = None
        first = self._row(0)  # opens the files, which no two threads may do at once
        if texts:
            tokens, count, encoder = first[-3:]
            self.encoder, self.text_channels = encoder.item(), tokens.nbytes // 2 // max(int(count), 1)

    def __len__(self):
        return self._size

    def _row(self, i):
        try:
            return self._rows[int(i)]
        except RuntimeError as error:
            raise UserError(f"cannot read picture {i} of {self.path}: {reason(error)}") from None

    def read(self, i):
        name, *pictures = self._row(i)[:1 + len(self.columns)]
        return [(f"{self.path}: {name.item()}", picture.tobytes()) for picture in pictures]

    def text(self, i):
        """What the encoder said of a picture's caption, float16 (count, text_channels). Raises UserError: it cannot be
        read, or was told by another encoder than the first."""
        tokens, count, encoder = self._row(i)[-3:]
        if encoder.item() != self.encoder or tokens.nbytes != 2 * int(count) * self.text_channels:
            raise UserError(f"picture {i} of {self.path} has tokens of another encoder than the first")
        return np.frombuffer(tokens.tobytes(), np.float16).reshape(int(count), self.text_channels)


def mindrecord_files(path):
    """The file or files of a MindRecord set by its name, in order, without their .db files; [] where there are none."""
    numbered = re.compile(re.escape(path.name) + r"\d+")
    return [path] if path.is_file() else sorted(file for file in path.parent.glob(escape(path.name) + "*")
                                                if numbered.fullmatch(file.name))


def reason(error):
    """What matters of an error: of those of MindSpore's data engine, which have dozens of lines, one."""
    match = re.search(r"\[ERROR\] (.+)", str(error))
    return match.group(1) if match else getattr(error, "strerror", None) or str(error).partition("\n")[0]


class Row(NamedTuple):
    """A picture or a pair, its arrays of one height and width."""

    target: np.ndarray  # (H, W, C)
    source: Optional[np.ndarray] = None  # (H, W, C), of as many channels as its form has; None: no pair
    mask: Optional[np.ndarray] = None  # bool (H, W, 1), true where the target is to be made; None: everywhere
    text: Optional[np.ndarray] = None  # float16 (L, C), its caption's tokens; None: it has none, or none is asked for


def decode(row, forms, enough=None):
    """The picture or pair of a row.

    Args:
        row: from a source's `read`.
        forms: those of source and target, see `palette_ms.data.forms.forms`.
        enough: as in `load_image`; a pair, whose pictures must stay in line, is always decoded whole.

    Returns: `Row`, each array in the dtype that its form reads. The source of a pair of photos is resized to its
        target's size by bicubic interpolation.

    Raises:
        UserError: one cannot be read, or a mask has nothing to make.
        Unfit: one is not of its form, a pair of arrays or a mask is of another size.
    """
    source_form, target_form = forms
    if len(row) == 1:
        (name, data), = row
        return Row(target_form.read(io.BytesIO(data), name, enough))
    (source_name, source), (target_name, target), *masks = row
    source = source_form.read(io.BytesIO(source), source_name)
    target = target_form.read(io.BytesIO(target), target_name)
    if source.shape[:2] != target.shape[:2]:
        if isinstance(target_form, Arrays):
            raise _other_size(source_name, source, target_name, target)
        source = source_form.resize(source, *target.shape[:2])
    mask = None
    for name, data in masks:
        mask = target_form.read_mask(io.BytesIO(data), name)[..., None] > 0.5
        if mask.shape[:2] != target.shape[:2]:
            raise _other_size(name, mask, target_name, target)
    return Row(target, source, mask)


def _other_size(name, array, target_name, target):
    (height, width), (wanted_height, wanted_width) = array.shape[:2], target.shape[:2]
    return Unfit(f"{name} is {width}×{height}, {target_name} {wanted_width}×{wanted_height} (width × height): they "
                 "must be the same")


def fingerprint(source):
    """What tells a source's set of pictures from others: their number, and a digest of their names, wherever they lie.

    Returns: dict for JSON.
    """
    if isinstance(source, MindRecord):
        return {"number": len(source), "names": source.path.name}
    names = [str(name) for name, _ in source.members] if isinstance(source, Archive) else \
        [os.path.abspath(path) for row in source.rows for path in row]
    above = 0 if isinstance(source, Archive) else len(os.path.commonpath(map(os.path.dirname, names)))
    names = "\0".join(name[above:] for name in names).encode("utf-8", "surrogateescape")
    return {"number": len(source), "names": hashlib.sha256(names).hexdigest()[:16]}


def complaint(left_out, source):
    """One line about the rows that cannot be read, a list of reasons."""
    return f"{len(left_out)} of {len(source)} pictures cannot be read and are left out; the first: {left_out[0]}"


def map_rows(source, function, title, numbers=None):
    """`function` of every row that can be read, by threads, in order, with a progress bar; at the end, others are told.

    Args:
        source: from `open_source`.
        function: of a row; it raises UserError for one that cannot be read.
        title: the bar's.
        numbers: a range, which rows; None: all.

    Yields: (i, result) of each.

    Raises:
        UserError: none can be read.
    """
    numbers, left_out = range(len(source)) if numbers is None else numbers, []

    def attempt(i):
        try:
            return function(source.read(i)), None
        except UserError as error:
            return None, str(error)

    with ThreadPoolExecutor() as pool, tqdm(total=len(numbers), desc=title, unit="row", disable=None) as bar:
        for start in range(0, len(numbers), _BLOCK):
            block = numbers[start:start + _BLOCK]
            for i, (result, error) in zip(block, pool.map(attempt, block)):
                bar.update()
                if error is None:
                    yield i, result
                else:
                    left_out.append(error)
    if left_out:
        line = complaint(left_out, source)
        if len(left_out) == len(numbers):
            raise UserError(line)
        print(f"warning: {line}", file=sys.stderr)
