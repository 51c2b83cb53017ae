"""Texts as T5's tokens, by the tokenizer that lies beside its weights."""

import importlib.util
import sys

import numpy as np

from palette_ms.data.files import expand
from palette_ms.errors import UserError

LIMIT = 256  # of tokens, as Imagen has it
_END, _PADDING = 1, 0  # T5's
# Which package reads which file; the first that is there is taken.
_KINDS = {"tokenizer.json": "tokenizers", "spiece.model": "sentencepiece"}


class Tokenizer:
    """T5's tokenizer.

    Args:
        folder: with `tokenizer.json` (read by the package tokenizers) or `spiece.model` (sentencepiece).

    Raises:
        UserError: neither is there, its package is not installed, or the file is damaged.
    """

    def __init__(self, folder):
        folder = expand(folder)
        found = {name: package for name, package in _KINDS.items() if (folder / name).is_file()}
        if not found:
            raise UserError(f"{folder} holds no tokenizer: neither {' nor '.join(_KINDS)}")
        usable = {name: package for name, package in found.items() if importlib.util.find_spec(package)}
        if not usable:
            name, package = next(iter(found.items()))
            raise UserError(f"{folder / name} is read by the package {package}: pip install 'palette_ms[text]'")
        name = next(iter(usable))
        try:
            self._encode = (_by_tokenizers if name == "tokenizer.json" else _by_sentencepiece)(folder / name)
        except Exception as error:  # the libraries throw Exception itself and RuntimeError
            raise UserError(f"{folder / name} is not a tokenizer: {error}") from None

    def __call__(self, texts, limit=LIMIT):
        """Tokens of texts, each with the token of the end.

        Args:
            texts: list of texts; an empty one is the end's token alone.
            limit: tokens at most; longer texts are cut, which a line on stderr says.

        Returns: ids (N, L), int32, filled up with 0 to the longest text; mask (N, L), int32, 1 for tokens.
        """
        rows = [self._encode(text) for text in texts]
        for text, row in zip(texts, rows):
            if len(row) >= limit:
                print(f"warning: {text[:60]!r} … has {len(row) + 1} tokens and is cut after {limit}", file=sys.stderr)
        rows = [row[:limit - 1] + [_END] for row in rows]
        ids = np.full((len(rows), max(map(len, rows), default=0)), _PADDING, np.int32)
        mask = np.zeros_like(ids)
        for row, values, shown in zip(rows, ids, mask):
            values[:len(row)], shown[:len(row)] = row, 1
        return ids, mask


def _by_tokenizers(path):
    from tokenizers import Tokenizer as Reader

    reader = Reader.from_file(str(path))
    reader.no_padding()
    reader.no_truncation()
    return lambda text: reader.encode(text, add_special_tokens=False).ids


def _by_sentencepiece(path):
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(path)).encode
