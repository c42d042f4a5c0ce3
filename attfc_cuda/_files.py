"""Files that are whole or not there: written beside their place, then renamed over it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, synced and renamed over it at the end; after an error it is gone and what was at
    `path` stays. Two processes may write the same path at once: the last one stands."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`path.write_text(text)` in UTF-8, all of it or nothing."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
