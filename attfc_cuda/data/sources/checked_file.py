"""A file whose every read is checked: within its bounds, and as long as it was asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from attfc_cuda._check import printable

_CHUNK = 2**20


class DamagedFile(ValueError):
    """A file that does not hold what its format demands; the message names the file and the offset in bytes."""


class CheckedFile:
    """Read-only bytes of a regular file, from any place at any time.

    Reads go through the system call and not through a mapping: a mapping of a file that another process cuts ends the
    reader with SIGBUS, a read is only short and becomes an error that names the file. Survives a fork (no position is
    shared) and pickling.

    Args:
        path: The file.

    Attributes:
        path, size, info (of the system): As they were at the opening.
        refused: Whether the system has refused to read what should be there; it may not do so another time.

    Raises:
        DamagedFile: For an empty file, or a read outside of it.
        OSError: For a file that cannot be opened.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self.refused = Path(path), False
        self.info = self._open()
        self.size = self.info.st_size

    def _open(self) -> os.stat_result:
        # Without waiting, or a named pipe would block here for ever.
        self._file = open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)  # noqa: SIM115
        self.descriptor = self._file.fileno()
        info = os.fstat(self.descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(f"{printable(str(self.path))} is not a regular file")
        if info.st_size == 0:
            raise self.damaged(0, "hold data", "an empty file")
        return info

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on.

        Raises:
            DamagedFile: Where the file does not hold them (any more).
        """
        if start >= 0 and length >= 0 and start + length <= self.size:  # else a hostile length would be allocated first
            try:
                content = os.pread(self.descriptor, length, start)
                while 0 < len(content) < length and (more := self._more(start, content, length)):
                    content += more
            except OSError as cause:
                self.refused = True
                raise self.damaged(start, f"hold {length} readable bytes", cause) from cause
            if len(content) == length:
                return content
        there = min(os.fstat(self.descriptor).st_size, self.size)
        raise self.damaged(start, f"hold {length} bytes", f"a file that ends at byte {there}")

    def _more(self, start: int, content: bytes, length: int) -> bytes:
        # The system gives at most 2 GiB at once, and less from some network file systems.
        return os.pread(self.descriptor, length - len(content), start + len(content))

    def find(self, what: bytes, start: int) -> int:
        """The first place of `what` at or after `start`, or -1."""
        overlap = len(what) - 1
        while start + len(what) <= self.size:
            chunk = self.read(start, min(_CHUNK, self.size - start))
            if (found := chunk.find(what)) >= 0:
                return start + found
            start += len(chunk) - overlap
        return -1

    def damaged(self, offset: int, rule: str, got: Any) -> DamagedFile:
        """The error for something wrong at `offset`."""
        return DamagedFile(printable(f"{self.path}: byte {offset} must {rule}, got {got}"))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "info": self.info, "refused": self.refused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
