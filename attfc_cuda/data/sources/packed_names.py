"""Millions of file names in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np


class PackedNames:
    """Many file names in one block of bytes: a list of strings would be several times larger, and forked workers would
    copy it page by page, because reading a Python object writes its reference count.

    Attributes:
        ends: Where each name ends in the block, int64 [N].
        block: uint8.
    """

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self.ends: np.ndarray = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.block: np.ndarray = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @staticmethod
    def of_arrays(ends: np.ndarray, block: np.ndarray) -> PackedNames:
        """From the attributes of another one. ValueError for arrays that are not those of names."""
        last = int(ends[-1]) if len(ends) else 0
        if ends.dtype != np.int64 or block.dtype != np.uint8 or last != len(block):
            raise ValueError("no packed names")
        if len(ends) and (ends[0] < 0 or (ends[1:] < ends[:-1]).any()):
            raise ValueError("packed names that overlap")
        names = object.__new__(PackedNames)
        names.ends, names.block = ends, block
        return names

    def followed_by(self, more: PackedNames) -> PackedNames:
        """These names and then those of another one."""
        if not len(self):
            return more
        return PackedNames.of_arrays(
            np.concatenate([self.ends, self.ends[-1] + more.ends]), np.concatenate([self.block, more.block])
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]].tobytes())
