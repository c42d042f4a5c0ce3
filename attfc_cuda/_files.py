"""Files that are whole or not there: written beside their place, then renamed over it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

ABANDONED_S = 24 * 3600
"""A part that nothing has touched for so long is that of a writer which was killed."""


@contextlib.contextmanager
def replacing(path: Path, *, cache: bool = False, shared: bool = False) -> Iterator[Path]:
    """A file to write beside `path`, synced and renamed over it at the end; after an error it is gone and what was at
    `path` stays. Two processes may write the same path at once: the last one stands.

    shared: Threads and machines may write it at once too.
    cache: For a file that its readers can do without, and check as a whole: it is shared, and not synced.
    """
    number = f"{os.getpid()}-{secrets.token_hex(8)}" if cache or shared else str(os.getpid())
    part = path.with_name(f".{path.name}.{number}.tmp")
    if not cache:  # of which a large data set has thousands in one folder, all of them small
        remove_abandoned(path)
    try:
        yield part
        if not cache:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove what killed writers of `path` have left beside it."""
    part = re.compile(re.escape(f".{path.name}.") + r"\d+(-[0-9a-f]{16})?\.tmp")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            # st_ctime moves with the times that a writer sets, too.
            if part.fullmatch(entry.name) and time.time() - entry.stat().st_ctime > ABANDONED_S:
                os.unlink(entry.path)


def write_text(path: Path, text: str) -> None:
    """`path.write_text(text)` in UTF-8, all of it or nothing."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Not every system can open one; then the files' own syncs have to do."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum(path: Path) -> int:
    """The CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
