"""A frozen T5 with its tokenizer: texts → tokens."""

import hashlib
from typing import List, Sequence

import numpy as np
from mindspore import Tensor

from palette_ms.data.captions import Text
from palette_ms.errors import UserError
from palette_ms.text.tokens import LIMIT, Tokenizer
from palette_ms.text.weights import load_encoder

_TOGETHER = 16  # texts at once, where there are several
_SHORTEST = 8  # tokens that texts are filled up to; then twice as many and so on: each length is compiled by itself
_PROBED = 1024  # values of each weight that the fingerprint is made of


class TextEncoder:
    """Texts → what a network with `text_channels` is told.

    Args:
        folder: with a T5's `config.json`, its weights and its tokenizer, see `palette_ms.text.weights.load_encoder` and
            `palette_ms.text.tokens.Tokenizer`.
        precision: a MindSpore type, see `palette_ms.text.t5.T5Encoder.use_precision`; None: float32.

    Attributes:
        width: C, of the tokens.
        fingerprint: what tells its weights from others', 16 hexadecimal digits, whatever form they are kept in.

    Raises:
        UserError: a file is missing or damaged, or a package that reads it.
    """

    def __init__(self, folder, precision=None):
        self._tokenize = Tokenizer(folder)  # first, since it is soon found missing
        self._encoder = load_encoder(folder)
        self.width = self._encoder.config.d_model
        digest = hashlib.sha256(repr(self._encoder.config).encode())
        for name, parameter in self._encoder.parameters_and_names():
            some = parameter.asnumpy().reshape(-1)[:_PROBED].astype(np.float16)
            digest.update(f"{name} {parameter.shape}".encode() + some.tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        if precision is not None:
            self._encoder.use_precision(precision)

    def __call__(self, texts: Sequence[str], limit: int = LIMIT) -> List[Text]:
        """`Text` of each.

        Args:
            texts: an empty one is the end's token alone.
            limit: tokens at most; of a longer text, which is cut, a line is said on stderr.

        Raises:
            UserError: the tokenizer knows tokens that the weights do not.
        """
        made = []
        for start in range(0, len(texts), _TOGETHER):
            some = texts[start:start + _TOGETHER]
            ids, mask = self._tokenize(some, limit)
            known = self._encoder.config.vocab_size
            if ids.size and ids.max() >= known:
                raise UserError(f"the tokenizer beside these weights is of another T5: it has a token {ids.max()}, and "
                                f"they know {known}")
            counts, length = mask.sum(1), _SHORTEST
            while length < ids.shape[1]:
                length *= 2
            missing = (0, (_TOGETHER if len(texts) > 1 else 1) - len(some)), (0, length - ids.shape[1])
            hidden = self._encoder(*(Tensor(np.pad(array, missing)) for array in (ids, mask))).asnumpy()
            made += [Text(text, tokens[:count].astype(np.float16), self.fingerprint)
                     for text, tokens, count in zip(some, hidden, counts)]
        return made
