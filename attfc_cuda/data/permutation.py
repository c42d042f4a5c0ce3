"""The order of an epoch as a function: position -> image, for any place at once and with nothing stored.

A permutation of 42 million images as an array takes seconds to draw and a third of a gigabyte to hold. Here a keyed
Feistel network permutes the numbers of the smallest power of two that holds them, and a result beyond the last one is
permuted again until it lies within (cycle walking; under two rounds on average). Below `SMALL` numbers, where a network
of so few bits would be biased and a sort costs nothing, the order is that of random keys.

Source: Luby and Rackoff (1988), Black and Rogaway (2002) on cycle walking; the mixing function is MurmurHash3's
finalizer, the number of rounds our choice.
"""

from __future__ import annotations

import numpy as np

from attfc_cuda.data._random import random_words

SMALL = 2**16
_ROUNDS = 8
_MULTIPLY = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


class EpochOrder:
    """A permutation of 0..count-1 for each epoch.

    Args:
        count: How many numbers.
        seed, stream: What the permutations depend on besides the epoch.
        stored: Draw whole orders by sorting random keys, as for small counts; None: where `count` is at most `SMALL`.
    """

    def __init__(self, count: int, seed: int, stream: int, stored: bool | None = None) -> None:
        self.count, self._seed, self._stream = count, seed, stream
        self.stored = count <= SMALL if stored is None else stored
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The numbers at these positions (int64, each below `count`) of the epoch's order, int64."""
        if self.stored:
            if self._epoch != epoch:
                words = random_words(self._seed, self._stream, self.count, major=epoch)
                self._epoch, self._order = epoch, np.argsort(words, kind="stable")
            return self._order[positions]
        keys = random_words(self._seed, self._stream, _ROUNDS, major=epoch)
        values = positions.astype(np.uint64)
        beyond = np.arange(len(values))
        while len(beyond):
            values[beyond] = self._permuted(values[beyond], keys)
            beyond = beyond[values[beyond] >= self.count]
        return values.astype(np.int64)

    def _permuted(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        bits = (self.count - 1).bit_length()
        low_bits = np.uint64(bits // 2)
        low_mask, high_mask = np.uint64(2 ** (bits // 2) - 1), np.uint64(2 ** (bits - bits // 2) - 1)
        low, high = values & low_mask, values >> low_bits
        for number, key in enumerate(keys):
            if number % 2:
                low = low ^ (_mixed(high ^ key) & low_mask)
            else:
                high = high ^ (_mixed(low ^ key) & high_mask)
        return high << low_bits | low


def hashed(values: np.ndarray, key: np.ndarray | np.uint64) -> np.ndarray:
    """uint64 words that look random, from whole numbers and a random key (or one for each)."""
    return _mixed(values.astype(np.uint64) ^ key)


def _mixed(values: np.ndarray) -> np.ndarray:
    for factor in _MULTIPLY:
        values = (values ^ (values >> _SHIFT)) * factor
    return values ^ (values >> _SHIFT)
