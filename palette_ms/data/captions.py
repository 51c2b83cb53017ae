"""Texts beside pictures: where captions are found, and texts as a network takes them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from palette_ms.data.files import expand
from palette_ms.errors import UserError

METADATA = "metadata.jsonl"  # of Hugging Face's imagefolder
_MOST_BYTES = 2**16  # of a caption's file


class Text(NamedTuple):
    """A text with what a frozen encoder makes of it, see `palette_ms.text.encoder.TextEncoder`."""

    caption: str
    tokens: np.ndarray  # float16 (L, C), the end's token the last
    encoder: str  # its fingerprint


def filled_up(tokens, length):
    """Tokens (L, C) as a network takes them: float32 (length, C), cut, or filled up with zeros, which are padding."""
    filled = np.zeros((length, tokens.shape[1]), np.float32)
    filled[:len(tokens)] = tokens[:length]
    return filled


class Captions:
    """The captions of a folder's or a list's pictures: those of a file of lines {"file_name": …, "text": …} (JSON), as
    Hugging Face's imagefolder has it, or else NAME.txt beside each picture.

    Args:
        path: of the pictures: a folder, or a list of them.
        table: the file of lines; None: metadata.jsonl in the folder, where it is there. Its names are relative to it.

    Raises:
        UserError: the file is missing or damaged.
    """

    def __init__(self, path, table=None):
        path = expand(path)
        beside = (path if path.is_dir() else path.parent) / METADATA
        self.table = expand(table) if table else beside if beside.is_file() else None
        self._texts = None if self.table is None else _read_table(self.table)

    def of(self, name):
        """The caption of a picture by its path. Raises UserError: it has none, an empty one, or one that is no text in
        UTF-8."""
        if self._texts is not None:
            text = self._texts.get(Path(name).resolve())
            if not text:
                raise UserError(f"{name} has no caption in {self.table}")
            return text
        beside = Path(name).with_suffix(".txt")
        try:
            with open(beside, "rb") as file:
                data = file.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise ValueError("it is too large for one")
            text = " ".join(data.decode("utf-8-sig").split())
            if not text:
                raise ValueError("it is empty")
            return text
        except (OSError, ValueError) as error:
            raise UserError(f"{name} has no caption: {beside} cannot be read "
                            f"({getattr(error, 'strerror', None) or error})") from None


def _read_table(path):
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read captions {path}: {getattr(error, 'strerror', None) or error}") from None
    texts = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
            text.encode()  # JSON can hold what UTF-8 cannot
            texts[(path.parent / name).resolve()] = " ".join(text.split())
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            raise UserError(f'{path}: line {number} is not of the form {{"file_name": …, "text": …}}') from None
    if not texts:
        raise UserError(f"{path} holds no captions")
    return texts
