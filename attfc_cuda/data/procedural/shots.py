"""The random numbers of a photograph: the factors of its shot, and the noise of its pixels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from attfc_cuda.data._random import SHOT, random_words, unit_interval

Table = dict[str, tuple[float, float]]


def named(table: Table, positions: np.ndarray) -> SimpleNamespace:
    """The numbers of a table, each at its position (0 to 1) between its lowest and its highest."""
    ranges = zip(table.items(), positions.tolist(), strict=True)
    return SimpleNamespace(**{name: low + (high - low) * position for (name, (low, high)), position in ranges})


def shot_and_noise(table: Table, seed: int, identity: int, image: int, size: int) -> tuple[SimpleNamespace, np.ndarray]:
    """Factors of image number `image` of an identity, and noise of unit variance, float32 [3 size size]."""
    factors, values = len(table), 3 * size * size
    # A pixel's noise is the sum of four random bytes (near enough to a normal distribution): half a word.
    words = random_words(seed, SHOT, factors + (values + 1) // 2, minor=image, major=identity)
    parts = words[factors:].astype("<u8").view(np.uint8).reshape(4, -1)[:, :values]
    sums = parts[0].astype(np.float32)
    for part in parts[1:]:
        sums += part
    noise = (sums - 510.0) * (1 / 147.8)  # the mean and the standard deviation of such a sum
    return named(table, unit_interval(words[:factors])), noise
