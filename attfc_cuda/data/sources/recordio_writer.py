"""Writes a .rec file with its .idx in InsightFace's layout."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_attributes
from attfc_cuda._files import remove_abandoned
from attfc_cuda.data.sources.recordio import FIRST, LAST, MAGIC, MAX_LENGTH, MIDDLE, WHOLE

__getattr__ = renamed_attributes(__name__, {"pack": "data.packing.pack"})


class RecordWriter:
    """Writes records one after the other; both files appear under their names when all is written, or not at all.

    Use as a context manager: an exception inside leaves what was there before.

    Args:
        path: The .rec; its .idx is written beside it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._targets = [self.path, self.path.with_suffix(".idx")]
        self._parts = [target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in self._targets]

    def __enter__(self) -> RecordWriter:
        for target in self._targets:
            remove_abandoned(target)
        self._rec, self._idx = (open(part, "wb") for part in self._parts)  # noqa: SIM115
        return self

    def write(self, key: int, labels: Sequence[float], image: bytes = b"", layout: str = "scalar") -> None:
        """One record. layout "scalar": one label, in the header (flag 0); "vector": any number of labels behind it."""
        self._idx.write(b"%d\t%d\n" % (key, self._rec.tell()))
        self._put(key, labels, image, layout)

    def rewrite_first(self, key: int, labels: Sequence[float]) -> None:
        """Replace the first record, written with this key, as many labels, layout "vector" and no image."""
        self._rec.seek(0)
        self._put(key, labels, b"", "vector")
        self._rec.seek(0, os.SEEK_END)

    def _put(self, key: int, labels: Sequence[float], image: bytes, layout: str) -> None:
        if layout == "scalar":
            data = struct.pack("<IfQQ", 0, labels[0], key, 0) + image
        else:
            data = struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, key, 0, *labels) + image
        pieces = _cut_at_magic(data)
        for number, piece in enumerate(pieces):
            if len(piece) > MAX_LENGTH:
                raise error("RecordWriter", "image", f"be at most {MAX_LENGTH} bytes", len(piece))
            first, last = number == 0, number == len(pieces) - 1
            kind = WHOLE if first and last else FIRST if first else LAST if last else MIDDLE
            self._rec.write(MAGIC + struct.pack("<I", kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in (self._rec, self._idx):
                file.flush()
                os.fsync(file.fileno())
                file.close()
            if kind is None:
                # An .idx that belongs to another .rec would be worse than none, which is only slower to open.
                self._targets[1].unlink(missing_ok=True)
                for part, target in zip(self._parts, self._targets, strict=True):
                    os.replace(part, target)
        finally:
            for part in self._parts:
                part.unlink(missing_ok=True)


def _cut_at_magic(data: bytes) -> list[bytes]:
    """`data` cut where the magic stands at a multiple of 4: a reader that lost its way would take it for a start."""
    pieces, start, at = [], 0, data.find(MAGIC)
    while at >= 0:
        if at % 4 == 0:
            pieces.append(data[start:at])
            start = at + 4
        at = data.find(MAGIC, at + 4 if at % 4 == 0 else at + 1)
    return [*pieces, data[start:]]
