"""Texts as tensors: the frozen encoder that Imagen conditions on (Saharia et al. 2022, arXiv 2205.11487)."""

from palette_ms.text.t5 import T5Config, T5Encoder
from palette_ms.text.tokens import Tokenizer
from palette_ms.text.weights import load_encoder

__all__ = ["T5Config", "T5Encoder", "Tokenizer", "load_encoder"]
