"""MXNet's RecordIO as InsightFace ships its training sets: the format, and a reader that trusts no byte of it.

A .rec file is a row of parts, each at a multiple of 4 bytes:

    uint32 0xced7230a (magic) | uint32: part kind in the upper 3 bits, length in the lower 29 | data | zeros to 4 bytes

Part kinds: 0 a whole record; 1, 2, 3 the first, a middle and the last part of one whose data held the magic at a
multiple of 4, where it was cut and the magic left out. The data of a face's record:

    uint32 flag | float32 label | uint64 id | uint64 id2 | flag x float32 | the image's file

With flag 0 the label is the float32 of the header; above 0 the first of the floats that follow (both layouts are in
use). All numbers are little-endian. Source: dmlc-core's recordio.h and MXNet's recordio.py.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from attfc_cuda.data.limits import TooLarge, require_bytes
from attfc_cuda.data.sources.checked_file import CheckedFile, DamagedFile

MAGIC = struct.pack("<I", 0xCED7230A)
MAX_LENGTH = 2**29 - 1
# float32 holds every whole number up to here, so a label above it may be another one rounded.
MAX_LABEL = 2**24
_LENGTH = struct.Struct("<I")
HEADER = struct.Struct("<IfQQ")
WHOLE, FIRST, MIDDLE, LAST = range(4)


class FaceRecord(NamedTuple):
    """The data of one record, taken apart. labels: the floats, one with flag 0. image: empty for a record without."""

    flag: int
    labels: tuple[float, ...]
    image: bytes


class RecordFile:
    """Random access to the records of a .rec file, each read checked.

    Raises:
        DamagedFile: Naming file and offset for whatever is not a record.
        OSError: For a file that cannot be opened.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.file = CheckedFile(path)

    def read(self, offset: int) -> tuple[bytes, int]:
        """The data of the record at `offset` and the offset behind it. A record, all its parts together, is at most as
        large as one image may be."""
        kind, data, offset_behind = self._part(offset)
        if kind == WHOLE:
            return data, offset_behind
        if kind != FIRST:
            raise self.file.damaged(offset, "be the start of a record", f"part kind {kind}")
        parts, size = [data], len(data)
        while kind != LAST:
            here = offset_behind
            kind, data, offset_behind = self._part(here, size)
            if kind not in (MIDDLE, LAST):
                raise self.file.damaged(here, f"go on with the record of byte {offset}", f"part kind {kind}")
            parts.append(data)
            size += len(MAGIC) + len(data)
        return MAGIC.join(parts), offset_behind

    def face(self, offset: int) -> tuple[FaceRecord, int]:
        """The record at `offset` taken apart, and the offset behind it."""
        data, offset_behind = self.read(offset)
        if len(data) < HEADER.size:
            raise self.file.damaged(offset, f"hold a header of {HEADER.size} bytes", f"{len(data)} bytes")
        flag, label, _, _ = HEADER.unpack_from(data)
        start = HEADER.size + 4 * flag
        if len(data) < start:
            raise self.file.damaged(offset, f"hold the {flag} labels of its header", f"{len(data)} bytes")
        # Two are all that anyone here reads: a hostile flag must not make a tuple of 2^27 floats.
        labels = struct.unpack_from(f"<{min(flag, 2)}f", data, HEADER.size) if flag else (label,)
        return FaceRecord(flag, labels, data[start:]), offset_behind

    def scan(self, damage: Callable[[DamagedFile], None]) -> Iterator[int]:
        """The offset of each record from the start of the file on. What is no record is reported to `damage`, and the
        scan goes on at the next place that starts one. Only the heads of the parts are read."""
        offset, size = 0, self.file.size
        while offset < size:
            try:
                behind = self._behind(offset)
            except DamagedFile as cause:
                damage(cause)
                offset = self._next_start(offset + 4)
                continue
            yield offset
            offset = behind

    def _behind(self, offset: int) -> int:
        """The offset behind the record at `offset`, by its heads. Errors: as `read`."""
        kind, length, here = self._head(offset)
        size = length
        if kind == WHOLE:
            return here
        if kind != FIRST:
            raise self.file.damaged(offset, "be the start of a record", f"part kind {kind}")
        while kind != LAST:
            place = here
            kind, length, here = self._head(place, size)
            if kind not in (MIDDLE, LAST):
                raise self.file.damaged(place, f"go on with the record of byte {offset}", f"part kind {kind}")
            size += len(MAGIC) + length
        return here

    def _part(self, offset: int, before: int = 0) -> tuple[int, bytes, int]:
        """Kind, data and end of the part at `offset`, of a record with `before` bytes in earlier parts."""
        kind, length, behind = self._head(offset, before)
        return kind, self.file.read(offset + 8, length), behind

    def _head(self, offset: int, before: int = 0) -> tuple[int, int, int]:
        """Kind, length and end of the part at `offset`."""
        if offset % 4:
            raise self.file.damaged(offset, "start a record at a multiple of 4", offset)
        head = self.file.read(offset, 8)
        if head[:4] != MAGIC:
            raise self.file.damaged(offset, f"be the magic {MAGIC.hex()}", head[:4].hex())
        (word,) = _LENGTH.unpack_from(head, 4)
        kind, length = word >> 29, word & MAX_LENGTH
        if kind > LAST:
            raise self.file.damaged(offset + 4, "name a part kind of 0 to 3", kind)
        if offset + 8 + length > self.file.size:
            raise self.file.damaged(offset + 8, f"hold {length} bytes", f"a file that ends at byte {self.file.size}")
        try:
            require_bytes(before + length)
        except TooLarge as cause:
            raise self.file.damaged(offset, "belong to a record within the limit", cause) from cause
        return kind, length, offset + 8 + (length + 3) // 4 * 4

    def _next_start(self, offset: int) -> int:
        """The next multiple of 4 from `offset` on with the magic and a kind that starts a record, or the end."""
        while (found := self.file.find(MAGIC, offset)) >= 0:
            if (
                found % 4 == 0
                and found + 8 <= self.file.size
                and self.file.read(found + 4, 4)[3] >> 5 in (WHOLE, FIRST)
            ):
                return found
            offset = found + 1
        return self.file.size


def whole_label(value: float) -> int | None:
    """A label as an int, None for one that names no identity: NaN, infinite, negative, broken, above 2^24."""
    return int(value) if math.isfinite(value) and 0 <= value <= MAX_LABEL and value == int(value) else None
