"""Millions of file names in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np


class PackedNames:
    """Many file names in one block of bytes: a list of strings would be several times larger, and forked workers would
    copy it page by page, because reading a Python object writes its reference count."""

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.block = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]].tobytes())
