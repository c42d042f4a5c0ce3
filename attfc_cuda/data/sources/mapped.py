"""A file mapped into memory, read within its bounds only."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Any


class DamagedFile(ValueError):
    """A file that does not hold what its format demands; the message names the file and the offset in bytes."""


class MappedFile:
    """Read-only bytes of a regular file: any place at once, nothing read before it is asked for.

    Processes share the mapping: it survives a fork, and is made again after pickling. Reading past the end is an error,
    also when the file has been cut since it was opened (the bare mapping would end the process there).
    Attributes: path, size, mtime_ns (as they were at the opening).
    Errors: `DamagedFile` for an empty file or a read outside of it; OSError for a file that cannot be opened.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._open()
        info = os.fstat(self._file.fileno())
        self.size, self.mtime_ns = info.st_size, info.st_mtime_ns

    def _open(self) -> None:
        # Without waiting, or a named pipe would block here for ever.
        self._file = open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
        info = os.fstat(self._file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise OSError(f"{self.path} is not a regular file")
        if info.st_size == 0:
            raise self.damaged(0, "hold data", "an empty file")
        self._map = mmap.mmap(self._file.fileno(), info.st_size, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def view(self, start: int, length: int) -> memoryview:
        """`length` bytes from `start` on, not copied."""
        there = os.fstat(self._file.fileno()).st_size
        if start < 0 or length < 0 or start + length > min(there, len(self._view)):
            raise self.damaged(start, f"hold {length} bytes", f"a file that ends at byte {there}")
        return self._view[start : start + length]

    def find(self, what: bytes, start: int) -> int:
        """The first place of `what` at or after `start`, or -1."""
        self.view(0, self.size)
        return self._map.find(what, start)

    def damaged(self, offset: int, rule: str, got: Any) -> DamagedFile:
        """The error for something wrong at `offset`."""
        return DamagedFile(f"{self.path}: byte {offset} must {rule}, got {got}")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "mtime_ns": self.mtime_ns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
