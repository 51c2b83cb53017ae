"""Random numbers that a seed decides alone, for every purpose its own stream."""

import zlib

import numpy as np


def generator(seed, purpose, *key):
    """A NumPy generator.

    Args:
        seed: a whole number ≥ 0, the user's.
        purpose: a word; other words give independent streams.
        key: whole numbers ≥ 0, such as the number of a batch.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *key)))
