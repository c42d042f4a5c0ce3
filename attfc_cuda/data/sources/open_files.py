"""Files that are kept open between reads, but never more than a process may open: a data set may have more shards."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO

try:
    import resource
except ImportError:  # no such limits on this system
    resource = None  # type: ignore[assignment]

_open: OrderedDict[int, KeptOpen] = OrderedDict()  # by id; those used last come last
_lock = threading.RLock()


class KeptOpen:
    """A file that is opened when it is used, and that others may close between two uses: `with kept as file`.

    Entering gives the open file, which stays open in there, or raises what `opening` does. A class and no generator:
    millions of headers are read through it.

    Args:
        opening: Opens it.
    """

    def __init__(self, opening: Callable[[], BinaryIO]) -> None:
        self._opening = opening
        self._file: BinaryIO | None = None
        self._users = 0

    def __enter__(self) -> BinaryIO:
        with _lock:
            if self._file is None:
                self._file = _with_room(self._opening)
            self._users += 1
            _open[id(self)] = self
            _open.move_to_end(id(self))
            return self._file

    def __exit__(self, *_: object) -> None:
        with _lock:
            self._users -= 1

    def close(self) -> None:
        """Close it until it is used again."""
        _open.pop(id(self), None)
        if self._file is not None:
            self._file.close()
            self._file = None

    def close_if_unused(self) -> bool:
        """Whether nobody is using it, so that it was closed."""
        if self._users:
            return False
        self.close()
        return True


def most_open() -> int:
    """How many are kept open: a quarter of what the process may open, so that there is room for all else."""
    limit = 2**16 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(4, (limit if 0 < limit < 2**16 else 2**16) // 4)  # a negative one: no limit


def _with_room(opening: Callable[[], BinaryIO]) -> BinaryIO:
    """What `opening` gives, for which others are closed where too many are open."""
    while len(_open) >= most_open() and _close_one():
        pass
    while True:
        try:
            return opening()
        except OSError as cause:  # of a process that has opened other files too
            if cause.errno not in (errno.EMFILE, errno.ENFILE) or not _close_one():
                raise


def _close_one() -> bool:
    """Close that which was not used for longest; False where all are in use."""
    for _ in range(len(_open)):
        with contextlib.suppress(KeyError):  # the last one went meanwhile
            key, kept = _open.popitem(last=False)
            if kept.close_if_unused():
                return True
            _open[key] = kept
    return False


def _unlocked() -> None:
    """A forked process has none of the threads that may have held the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked)
