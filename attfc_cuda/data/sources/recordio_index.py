"""Where each face of a .rec file lies and whose it is.

The headers of all records are read at once, for label and extent; images are not touched (`check` reads them all, and a
record that was damaged since is named when it is read). The result is kept, see `index_cache`, as that of the .rec and
its .idx.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from attfc_cuda.data.sources.checked_file import CheckedFile, DamagedFile
from attfc_cuda.data.sources.index_cache import Index, load_index, settle
from attfc_cuda.data.sources.recordio import MAX_LABEL, RecordFile, whole_label
from attfc_cuda.data.sources.recordio_headers import read_headers
from attfc_cuda.data.sources.skipped import Skipped

_LINE = re.compile(rb"\d{1,18}\t\d{1,18}\r?\n")
_LINES = re.compile(rb"(?:\d{1,18}\t\d{1,18}\r?\n)*")
_CHUNK = 2**22


def record_index(records: RecordFile) -> Index:
    """The index of a .rec file: "offsets" int64 [N] and "labels" int32 [N], in the order of the keys."""
    rec = records.file
    idx = rec.path.with_suffix(".idx")

    def sound(arrays: dict[str, np.ndarray]) -> bool:
        offsets, labels = arrays["offsets"], arrays["labels"]
        if len(offsets) != len(labels) or offsets.dtype != np.int64 or labels.dtype != np.int32:
            return False
        return len(offsets) == 0 or bool(offsets.min() >= 0 and offsets.max() < rec.size and labels.min() >= 0)

    # Not `stamp`, so that a .rec may be copied with its index: a label is compared with the index at every read.
    of = {"rec": [rec.size, settle(rec.info.st_mtime_ns)], "idx": _stamp(idx)}
    return load_index(rec.path, of, lambda: build_index(records, idx), sound)


def build_index(records: RecordFile, idx: Path) -> Index:
    """Visit every record, through the .idx where there is a usable one, else in the order of the file."""
    found, facts = Skipped(), []

    def damage(cause: DamagedFile) -> None:
        found.add("damaged stretches of the file", str(cause))

    keys, refused = None, False
    if idx.exists():
        try:
            keys, offsets = read_idx(idx)
        except (DamagedFile, OSError) as cause:
            refused = isinstance(cause, OSError) or isinstance(cause.__cause__, OSError)
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
    arrays = {"offsets": offsets[taken], "labels": labels[taken]}
    return Index(arrays, facts, found, bool(found.counts), lasting=not (refused or records.file.refused))


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
    return [info.st_size, settle(info.st_mtime_ns)]
