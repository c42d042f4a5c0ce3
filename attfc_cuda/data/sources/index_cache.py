"""Indexes of data sets: what stands where and whose it is. Made once and kept, for every format that is searched.

An index is kept beside its source as `<name>.attfc_index`, or in the user's cache folder ($XDG_CACHE_HOME or ~/.cache,
under attfc_cuda) where that place cannot be written; where neither can, it is made anew at each opening. It is used as
long as the sizes and times of its sources, the settings it depends on and the release are the same (behind a symbolic
link also the file that it leads to), and made anew where it is damaged. It is written beside its place and renamed:
processes that index at once find a whole one or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attfc_cuda._check import printable
from attfc_cuda._files import replacing
from attfc_cuda._version import __version__
from attfc_cuda.data.sources.checked_file import CheckedFile, DamagedFile
from attfc_cuda.data.sources.skipped import Skipped

SUFFIX = ".attfc_index"
_MAGIC = b"ATTFCIX3"
_HEAD = struct.Struct("<8sII")  # magic, length of the JSON, CRC-32 of everything behind this head
_MAX_JSON = 2**20
_Layout = list[tuple[str, str, int]]  # name, dtype and length of each array
_DTYPES = ("|u1", "<i4", "<i8")
# File systems give changes that follow each other within a tick of the kernel's clock (1 to 10 ms) one time.
_TICK_NS = 20_000_000
_COARSE_TICK_NS, _SECOND_NS = 2_000_000_000, 10**9  # of those that keep whole seconds: ext3, FAT, HFS+, some servers


@dataclass
class Index:
    """What was found in a source.

    Attributes:
        arrays: uint8, int32 or int64, of one dimension each.
        facts: Lines for the start-up report.
        skipped: What was left out.
        damaged: Whether something was left out that on_bad_image "raise" makes an error.
        lasting: Whether another search would find the same; False keeps an index from being kept.
    """

    arrays: dict[str, np.ndarray]
    facts: list[str] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    damaged: bool = False
    lasting: bool = True


def load_index(
    source: Path,
    of: dict[str, Any],
    build: Callable[[], Index],
    sound: Callable[[dict[str, np.ndarray]], bool],
    *,
    variant: str = "",
    strict: bool = False,
) -> Index:
    """The index of a source, the kept one where it still fits, else built and kept.

    Args:
        source: The file or folder.
        of: What the index depends on, as JSON has it: sizes and times (see `stamp`) from before the search, settings.
        build: Searches the source. Whatever it raises is passed on, and nothing is kept.
        sound: Whether the arrays of a kept index may be used: they are a stranger's. KeyError and ValueError are a no.
        variant: A word for the index's name, where one source has several.
        strict: Search anew where something damaged was left out, so that `build` raises it.
    """
    index = kept_index(source, of, sound, variant=variant, strict=strict)
    if index is not None:
        return index
    of = _with_surroundings(source, of)  # before the search
    index = build()
    if index.lasting:
        for place in _places(source, variant):
            with contextlib.suppress(OSError):
                _write(place, source, of, index)
                break
    return index


def kept_index(
    source: Path,
    of: dict[str, Any],
    sound: Callable[[dict[str, np.ndarray]], bool],
    *,
    variant: str = "",
    strict: bool = False,
) -> Index | None:
    """The kept index of a source; None where there is none that still fits. Args as for `load_index`."""
    of = _with_surroundings(source, of)
    for place in _places(source, variant):
        with contextlib.suppress(OSError, DamagedFile):
            index = _read(place, source, of)
            if index is not None and not (strict and index.damaged) and _is_sound(sound, index.arrays):
                return index
    return None


def _with_surroundings(source: Path, of: dict[str, Any]) -> dict[str, Any]:
    """What an index of a source depends on, with the release and the file behind a link."""
    behind = {"file": os.path.realpath(source)} if source.is_symlink() else {}
    return {"release": __version__, **of, **behind}


def stamp(info: os.stat_result) -> list[int]:
    """By what a file is known again: its size, the time that it says, and that of its last change, which nobody can
    set. `cp -p`, `rsync -t` and `tar -x` give other content the time of the one before."""
    return [info.st_size, info.st_mtime_ns, settle(info.st_ctime_ns)]


def settle(time_ns: int) -> int:
    """The time of a source's last change, given back once a later change is sure to have another one."""
    tick_ns = _TICK_NS if time_ns % _SECOND_NS else _COARSE_TICK_NS
    wait_ns = min(tick_ns - (time.time_ns() - time_ns), tick_ns)
    if wait_ns > 0:
        time.sleep(wait_ns / 1e9)
    return time_ns


def small(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers of at least 0, int64, as int32 where they fit."""
    return numbers.astype(np.int32) if len(numbers) == 0 or numbers.max() < 2**31 else numbers


def _places(source: Path, variant: str) -> Iterable[Path]:
    resolved = Path(os.path.realpath(source))
    suffix = f".{variant}{SUFFIX}" if variant else SUFFIX
    beside = resolved if source.name in ("", "..") else source
    if beside.name:
        yield beside.with_name(beside.name + suffix)
    with contextlib.suppress(RuntimeError):  # no home
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(os.fsencode(resolved) + b"\0" + os.fsencode(suffix)).hexdigest()[:32]
        yield base / "attfc_cuda" / f"{name}{SUFFIX}"


def _is_sound(sound: Callable[[dict[str, np.ndarray]], bool], arrays: dict[str, np.ndarray]) -> bool:
    try:
        return sound(arrays)
    except (KeyError, ValueError, IndexError):
        return False


def _read(path: Path, source: Path, of: dict[str, Any]) -> Index | None:
    """None where it is damaged, of another release or of sources that were otherwise."""
    file = CheckedFile(path)
    magic, json_length, crc = _HEAD.unpack(file.read(0, _HEAD.size))
    if magic != _MAGIC or json_length > _MAX_JSON:
        return None
    at = _HEAD.size + json_length
    text = file.read(_HEAD.size, json_length)
    found = _parsed(text, source, of, file.size - at)
    if found is None:
        return None
    index, layout = found
    check = zlib.crc32(text)
    for name, dtype, count in layout:
        content = file.read(at, np.dtype(dtype).itemsize * count)  # each its own memory, given back with its array
        check, at = zlib.crc32(content, check), at + len(content)
        index.arrays[name] = np.frombuffer(content, dtype=dtype)
    return index if check == crc else None


def _parsed(
    text: bytes, source: Path, of: dict[str, Any], size: int
) -> tuple[Index, list[tuple[str, str, int]]] | None:
    """The JSON of a kept index, still without arrays, and the layout of these; None if it is not what `_write` writes.
    size: the bytes that the arrays have together."""
    try:
        head = json.loads(text)
        if head["of"] != of or (head["skipped"] and head["source"] != str(source)):  # its examples name paths
            return None
        layout = [(str(name), str(dtype), int(count)) for name, dtype, count in head["arrays"]]
        facts = [printable(fact) for fact in head["facts"] if isinstance(fact, str)]
        skipped = Skipped()
        for what, (count, example) in head["skipped"].items():
            skipped.add(printable(what), str(example), int(count))
        if not all(dtype in _DTYPES and count >= 0 for _, dtype, count in layout):
            return None
        if sum(np.dtype(dtype).itemsize * count for _, dtype, count in layout) != size:
            return None
        return Index({}, facts, skipped, bool(head["damaged"])), layout
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _write(path: Path, source: Path, of: dict[str, Any], index: Index) -> None:
    """All of it or nothing, also when two processes write it at once."""
    arrays = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in index.arrays.items()}
    skipped = {what: (count, index.skipped.examples[what]) for what, count in index.skipped.counts.items()}
    layout = [(name, array.dtype.str, len(array)) for name, array in arrays.items()]
    head = {"of": of, "source": str(source), "arrays": layout, "facts": index.facts, "skipped": skipped}
    text = json.dumps({**head, "damaged": index.damaged}).encode()
    crc = zlib.crc32(text)
    for array in arrays.values():
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, cache=True) as part, open(part, "wb") as file:
        file.write(_HEAD.pack(_MAGIC, len(text), crc) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)
