"""Where each face of a .rec file lies and whose it is: found once, then kept in a file.

The headers of all records are read at once, for label and extent; images are not touched (`check` reads them all, and a
record that was damaged since is named when it is read). The result is kept beside the .rec (or, where that folder
cannot be written, in the user's cache folder) and used again as long as size and time of the .rec and of its .idx are
the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attfc_cuda._files import replacing
from attfc_cuda.data.sources.checked_file import CheckedFile, DamagedFile
from attfc_cuda.data.sources.recordio import MAX_LABEL, RecordFile, whole_label
from attfc_cuda.data.sources.recordio_headers import read_headers
from attfc_cuda.data.sources.skipped import Skipped

_CACHE_MAGIC = b"ATTFCIX2"
_CACHE_HEAD = struct.Struct("<8sII")  # magic, length of the JSON, CRC-32 of everything behind this head
_MAX_JSON = 2**20
_LINE = re.compile(rb"\d{1,18}\t\d{1,18}\r?\n")
_LINES = re.compile(rb"(?:\d{1,18}\t\d{1,18}\r?\n)*")
_CHUNK = 2**22


class RecordIndex(NamedTuple):
    """N images in the order of their keys.

    Attributes:
        offsets: int64 [N].
        labels: int32 [N].
        facts: Lines for the start-up report.
        damage: Kind -> (count, first example), what had to be left out.
    """

    offsets: np.ndarray
    labels: np.ndarray
    facts: list[str]
    damage: dict[str, tuple[int, str]]


def load_index(records: RecordFile) -> RecordIndex:
    """The index of a .rec file, from the cache where it still fits, else built and put there."""
    rec = records.file
    idx = rec.path.with_suffix(".idx")
    identity = {"rec": [rec.size, rec.mtime_ns], "idx": _stamp(idx)}
    places = [rec.path.with_name(rec.path.name + ".attfc_index"), _user_cache(rec.path)]
    for place in places:
        with contextlib.suppress(OSError, DamagedFile):
            index = _read_cache(place, identity, rec.size)
            if index is not None:
                return index
    index = build_index(records, idx)
    for place in places:
        with contextlib.suppress(OSError):
            _write_cache(place, identity, index)
            break
    return index


def build_index(records: RecordFile, idx: Path) -> RecordIndex:
    """Visit every record, through the .idx where there is a usable one, else in the order of the file."""
    found, facts = Skipped(), []

    def damage(cause: DamagedFile) -> None:
        found.add("damaged stretches of the file", str(cause))

    keys = None
    if idx.exists():
        try:
            keys, offsets = read_idx(idx)
        except (DamagedFile, OSError) as cause:
            found.add("unusable index files (the records were searched for instead)", str(cause))
    if keys is None:
        offsets = np.fromiter(records.scan(damage), dtype=np.int64)
        keys = np.arange(len(offsets))
    intact = not found.counts

    # In the order of the file, so that two records that overlap are seen: the work is bounded by the file's size.
    by_place = np.argsort(offsets, kind="stable") if (offsets[1:] < offsets[:-1]).any() else np.arange(len(offsets))
    found_labels, range_places, ranges = read_headers(records, offsets[by_place], found)
    labels = np.full(len(keys), -1, dtype=np.int32)
    labels[by_place] = found_labels
    range_keys = keys[by_place[range_places]]
    if (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets, labels = keys[order], offsets[order], labels[order]
    taken = labels >= 0
    if intact and (range_keys == 0).any():
        facts.append(_compare_ranges(range_keys, ranges, keys[taken], labels[taken]))
    found_damage = {what: (count, found.examples[what]) for what, count in found.counts.items()}
    return RecordIndex(offsets[taken], labels[taken], facts, found_damage)


def read_idx(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of an .idx file, lines of `key<TAB>offset`, int64 [N] each.

    Raises:
        DamagedFile: Naming the line for anything else, for a key that comes twice.
        OSError: For a file that cannot be read.
    """
    file = CheckedFile(path)
    parts, start = [np.empty(0, np.int64)], 0
    while start < file.size:
        stop = min(start + _CHUNK, file.size)
        chunk = file.read(start, stop - start)
        if stop == file.size and not chunk.endswith(b"\n"):
            chunk += b"\n"
        chunk = chunk[: chunk.rfind(b"\n") + 1]
        match = _LINES.match(chunk)
        good = match.end() if match else 0
        if good < len(chunk) or not chunk:
            got = file.read(start + good, min(40, file.size - start - good))
            raise file.damaged(start + good, "be a line of key, tab and offset", repr(got))
        parts.append(np.fromstring(chunk, dtype=np.int64, sep=" "))
        start += len(chunk)
    numbers = np.concatenate(parts).reshape(-1, 2)
    keys, offsets = numbers[:, 0].copy(), numbers[:, 1].copy()
    ordered = np.sort(keys) if (keys[1:] <= keys[:-1]).any() else keys
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise file.damaged(0, "list each key once", f"key {twice[0]} twice")
    return keys, offsets


def _compare_ranges(range_keys: np.ndarray, ranges: np.ndarray, keys: np.ndarray, labels: np.ndarray) -> str:
    """The header record says which keys are images and which are identities; each of those, which keys are its images.
    Labels are those of the images themselves: a header that disagrees with them is only reported."""
    order = np.argsort(range_keys, kind="stable")
    range_keys, ranges = range_keys[order], ranges[order]
    first, stop = (whole_label(value) for value in ranges[0].tolist())  # key 0 is the lowest
    if first is None or stop is None or not 1 <= first <= stop:
        return f"header: no use, its ranges are {ranges[0][0]:g} to {ranges[0][1]:g}"
    change = np.concatenate([[0], np.cumsum(labels[1:] != labels[:-1])])
    disagree = int(((keys < 1) | (keys >= first)).sum())
    there = (range_keys >= first) & (range_keys < stop)
    whole = there & (ranges >= 0).all(1) & (ranges <= MAX_LABEL).all(1) & (ranges == np.floor(ranges)).all(1)
    begin, end = np.searchsorted(keys, ranges[whole].astype(np.int64)).T
    right = end > begin
    right[right] = change[end[right] - 1] == change[begin[right]]
    disagree += stop - first - int(right.sum())
    wrong = f", {disagree} of them at odds with the images' labels, which count" if disagree else ""
    return f"header: images are keys 1 to {first - 1}, identities have {stop - first} ranges{wrong}"


def _stamp(path: Path) -> list[int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return [info.st_size, info.st_mtime_ns]


def _user_cache(path: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return Path(base) / "attfc_cuda" / f"{name}.attfc_index"


def _read_cache(path: Path, identity: dict[str, Any], rec_size: int) -> RecordIndex | None:
    """None where it was made of other files. Its numbers are checked as a stranger's would be."""
    file = CheckedFile(path)
    magic, json_length, crc = _CACHE_HEAD.unpack(file.read(0, _CACHE_HEAD.size))
    body = file.read(_CACHE_HEAD.size, file.size - _CACHE_HEAD.size)
    if magic != _CACHE_MAGIC or json_length > min(_MAX_JSON, len(body)) or zlib.crc32(body) != crc:
        return None
    head, arrays = _head(body[:json_length]), memoryview(body)[json_length:]
    if head is None or head["of"] != identity or len(arrays) % 12:
        return None
    count = len(arrays) // 12
    offsets = np.frombuffer(arrays, dtype="<i8", count=count)
    labels = np.frombuffer(arrays, dtype="<i4", count=count, offset=8 * count)
    if count and (offsets.min() < 0 or offsets.max() >= rec_size or labels.min() < 0):
        return None
    return RecordIndex(offsets, labels, head["facts"], head["damage"])


def _head(text: bytes) -> dict[str, Any] | None:
    """The JSON of a cached index, None if it is not what `_write_cache` writes."""
    try:
        head = json.loads(text)
        facts = [fact for fact in head["facts"] if isinstance(fact, str)]
        damage = {what: (int(count), str(example)) for what, (count, example) in head["damage"].items()}
        return {"of": head["of"], "facts": facts, "damage": damage}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _write_cache(path: Path, identity: dict[str, Any], index: RecordIndex) -> None:
    """All of it or nothing, also when two processes write it at once."""
    head = json.dumps({"of": identity, "facts": index.facts, "damage": index.damage}).encode()
    arrays = [index.offsets.astype("<i8"), index.labels.astype("<i4")]
    body = b"".join([head, *(array.tobytes() for array in arrays)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(_CACHE_HEAD.pack(_CACHE_MAGIC, len(head), zlib.crc32(body)) + body)
