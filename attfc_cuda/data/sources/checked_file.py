"""A file whose every read is checked: within its bounds, and as long as it was asked for."""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attfc_cuda._check import printable
from attfc_cuda.data.sources.open_files import KeptOpen

_CHUNK = 2**20


class DamagedFile(ValueError):
    """A file that does not hold what its format demands; the message names the file and the offset in bytes."""


class CheckedFile:
    """Read-only bytes of a regular file, from any place at any time.

    Reads go through the system call and not through a mapping: a mapping of a file that another process cuts ends the
    reader with SIGBUS, a read is only short and becomes an error that names the file. Survives a fork (no position is
    shared) and pickling. Where more files are in use than a process may open, it is closed between reads (`KeptOpen`).

    Args:
        path: The file.

    Attributes:
        path, size: As they were at the opening.
        refused: Whether the system has refused to read what should be there; it may not do so another time.

    Raises:
        DamagedFile: For an empty file, or a read outside of it.
        OSError: For a file that cannot be opened.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self.refused = Path(path), False
        self._begin(_Opening(self.path))
        with self._kept:
            self.size = self.info.st_size
        if self.size == 0:
            raise self.damaged(0, "hold data", "an empty file")

    def _begin(self, opening: _Opening) -> None:
        self._opening, self._kept = opening, KeptOpen(opening)
        weakref.finalize(self, self._kept.close).atexit = False

    @property
    def info(self) -> os.stat_result:
        """What the system said of the file when it was opened first."""
        assert self._opening.info is not None
        return self._opening.info

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """Of the open file, in here.

        Raises:
            DamagedFile: Where another file has taken its place.
            OSError: Where it cannot be opened (any more).
        """
        with self._kept as file:
            yield file.fileno()

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on.

        Raises:
            DamagedFile: Where the file does not hold them (any more).
        """
        if start >= 0 and length >= 0 and start + length <= self.size:  # else a hostile length would be allocated first
            try:
                with self._kept as file:
                    descriptor = file.fileno()
                    content = os.pread(descriptor, length, start)
                    while 0 < len(content) < length and (more := _more(descriptor, start, content, length)):
                        content += more
            except OSError as cause:
                self.refused = True
                raise self.damaged(start, f"hold {length} readable bytes", cause) from cause
            if len(content) == length:
                return content
        with self.descriptor() as descriptor:
            there = min(os.fstat(descriptor).st_size, self.size)
        raise self.damaged(start, f"hold {length} bytes", f"a file that ends at byte {there}")

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
        return _damaged(self.path, offset, rule, got)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "info": self.info, "refused": self.refused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.size, self.refused = state["path"], state["size"], state["refused"]
        self._begin(_Opening(self.path, state["info"]))


class _Opening:
    """Opens a file, each time the same one.

    Attributes:
        info: Of the system, when it was opened first; None before.
    """

    def __init__(self, path: Path, info: os.stat_result | None = None) -> None:
        self.path, self.info = path, info

    def __call__(self) -> BinaryIO:
        # Without waiting, or a named pipe would block here for ever.
        file = open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)  # noqa: SIM115
        try:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise OSError(f"{printable(str(self.path))} is not a regular file")
            if self.info is not None and not _same(info, self.info):
                raise _damaged(self.path, 0, "be of the file that was opened", "another: has it been replaced?")
        except BaseException:
            file.close()
            raise
        self.info = self.info or info
        return file


def _same(now: os.stat_result, then: os.stat_result) -> bool:
    """Whether it is the file of then, or one of its size and time, as another mount shows it."""
    return os.path.samestat(now, then) or (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)


def _more(descriptor: int, start: int, content: bytes, length: int) -> bytes:
    # The system gives at most 2 GiB at once, and less from some network file systems.
    return os.pread(descriptor, length - len(content), start + len(content))


def _damaged(path: Path, offset: int, rule: str, got: Any) -> DamagedFile:
    return DamagedFile(printable(f"{path}: byte {offset} must {rule}, got {got}"))
