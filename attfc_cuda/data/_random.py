"""Random words by address: the same (seed, stream, counter) gives the same numbers whatever was drawn before.

Philox is a counter-based generator, so any place in any stream is reached at once, and streams with different addresses
never overlap. Only raw 64-bit words are used: unlike NumPy's distributions, they are the same in every NumPy version.
"""

from __future__ import annotations

import numpy as np

# What a stream is for. Together with the seed it is Philox's key; a number here must never be used for two things.
PROBE_ORDER, NEGATIVE_ORDER, PICKS, NEGATIVE_FLIPS, IDENTITY, SHOT, AUGMENTATION, NEGATIVE_AUGMENTATION = range(1, 9)
GROUP_ORDER, IMAGE_ORDER, RELATIVES, MISLABELLED = 9, 10, 11, 12


def random_words(seed: int, stream: int, count: int, *, start: int = 0, minor: int = 0, major: int = 0) -> np.ndarray:
    """`count` uint64 words; `start` counts blocks of four words within the sequence (minor, major)."""
    key, counter = np.array([seed, stream], dtype=np.uint64), np.array([start, 0, minor, major], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def unit_interval(words: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the words' upper 53 bits."""
    return (words >> np.uint64(11)) * 2.0**-53
