"""The headers of all records of a .rec file at once, in arrays: 5 million of them in seconds instead of minutes."""

from __future__ import annotations

import mmap

import numpy as np

from attfc_cuda.data.limits import max_image_bytes
from attfc_cuda.data.sources.checked_file import DamagedFile
from attfc_cuda.data.sources.recordio import HEADER, MAGIC, MAX_LABEL, MAX_LENGTH, RecordFile, whole_label
from attfc_cuda.data.sources.skipped import Skipped

_BYTES = 8 + HEADER.size + 8  # a part's head, the record's header, two labels
_CHUNK = 2**16
_HEAD = np.dtype(
    [("magic", "<u4"), ("word", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("labels", "<f4", 2)]
)
_MAGIC = int.from_bytes(MAGIC, "little")


def read_headers(records: RecordFile, offsets: np.ndarray, found: Skipped) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the records at ascending `offsets` (int64 [N]) say of themselves; damage is counted in `found`.

    Returns:
        The label of each, int32 [N], -1 for one without an image or a label; the places within `offsets` of the records
        of ranges (no image, two labels or more), int64 [R]; and those two labels, float32 [R, 2].
    """
    labels = np.full(len(offsets), -1, dtype=np.int32)
    behind, is_range = np.zeros(len(offsets), dtype=np.int64), np.zeros(len(offsets), dtype=bool)
    plain = np.zeros(len(offsets), dtype=bool)
    ranges = [np.empty((0, 2), np.float32)]
    for first, heads in _heads(records, offsets):
        own, here = slice(first, first + len(heads)), offsets[first : first + len(heads)]
        length, flag = (heads["word"] & MAX_LENGTH).astype(np.int64), heads["flag"].astype(np.int64)
        end, image = here + 8 + (length + 3) // 4 * 4, length - HEADER.size - 4 * flag
        value = np.where(flag == 0, heads["label"], heads["labels"][:, 0])
        sound = (heads["magic"] == _MAGIC) & (heads["word"] >> 29 == 0) & (here % 4 == 0)
        sound &= (here + 8 + length <= records.file.size) & (length <= max_image_bytes())
        face = sound & (image > 0) & (value >= 0) & (value <= MAX_LABEL) & (value == np.floor(value))
        pair = sound & (image == 0) & (flag >= 2)
        labels[own] = np.where(face, value, -1)
        plain[own], is_range[own], behind[own] = face | pair, pair, end
        ranges.append(heads["labels"][pair])
    others = np.flatnonzero(~plain)
    overlap = len(offsets) > 1 and bool((behind[:-1] > offsets[1:])[plain[:-1]].any())
    if overlap or len(others) > _CHUNK:
        return _one_by_one(records, offsets, found)
    if len(others):
        damage = Skipped()
        # Records in several parts, and damage: each by itself, between neighbours that are known.
        for place in others.tolist():
            before = behind[place - 1] if place and plain[place - 1] else 0
            label, end, pair = _read(records, int(offsets[place]), int(before), damage)
            labels[place] = label
            if pair is not None or (place + 1 < len(offsets) and end > offsets[place + 1]):
                return _one_by_one(records, offsets, found)
        for what, count in damage.counts.items():
            found.add(what, damage.examples[what], count)
    return labels, np.flatnonzero(is_range), np.concatenate(ranges)


def _heads(records: RecordFile, offsets: np.ndarray):  # noqa: ANN202 (an iterator of places and structured arrays)
    """The first bytes of each record, a stretch of records at a time; zeros where the file does not hold them."""
    file = records.file
    for first in range(0, len(offsets), _CHUNK):
        part = offsets[first : first + _CHUNK]
        raw = np.zeros((len(part), _BYTES), dtype=np.uint8)
        inside = (part >= 0) & (part + _BYTES <= file.size) & (part % 4 == 0)
        file.read(file.size - 1, 1)  # a file that was cut is an error before its mapping is touched
        with file.descriptor() as opened, mmap.mmap(opened, file.size, access=mmap.ACCESS_READ) as view:
            # Records start at multiples of 4: a word at a time is a quarter of the work.
            content = np.frombuffer(view, dtype="<u4", count=file.size // 4)
            words = content[part[inside][:, None] // 4 + np.arange(_BYTES // 4)]
            raw[inside] = words.astype("<u4", copy=False).view(np.uint8)
            del content
        for place in np.flatnonzero(~inside & (part >= 0) & (part < file.size)).tolist():
            rest = file.read(int(part[place]), int(min(_BYTES, file.size - part[place])))
            raw[place, : len(rest)] = np.frombuffer(rest, dtype=np.uint8)
        yield first, raw.view(_HEAD)[:, 0]


def _one_by_one(records: RecordFile, offsets: np.ndarray, found: Skipped) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `read_headers`, each record after the one before it: where they overlap, or most are damaged."""
    labels, behind, places, ranges = np.full(len(offsets), -1, dtype=np.int32), 0, [], []
    for place, offset in enumerate(offsets.tolist()):
        labels[place], end, pair = _read(records, offset, behind, found)
        behind = max(behind, end)
        if pair is not None:
            places.append(place)
            ranges.append(pair)
    return labels, np.array(places, dtype=np.int64), np.array(ranges, dtype=np.float32).reshape(-1, 2)


def _read(records: RecordFile, offset: int, behind: int, found: Skipped) -> tuple[int, int, tuple[float, ...] | None]:
    """Label (or -1), end (0 where there is none) and the two labels of a record of ranges."""
    try:
        if offset < behind:
            raise records.file.damaged(offset, f"lie behind the record before it, from {behind} on", offset)
        face, end = records.face(offset)
    except DamagedFile as cause:
        found.add("damaged records", str(cause))
        return -1, 0, None
    if len(face.image) == 0:
        if face.flag >= 2:  # the header record, or an identity's range of keys
            return -1, end, face.labels
        found.add("records without an image", str(records.file.damaged(offset, "hold an image", "no bytes")))
        return -1, end, None
    label = whole_label(face.labels[0])
    if label is None:
        got = f"{face.labels[0]:g}"
        found.add("records whose label names no identity", str(records.file.damaged(offset, "have a label", got)))
        return -1, end, None
    return label, end, None
