"""Names of identities in little memory, and what a checkpoint keeps of them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

_SEPARATOR = "\0"  # in no file's name
# What packed names may unpack to: far more than names do, which differ, and in proportion to the file that holds them.
_LARGEST_RATIO, _SPARE_BYTES, _SPARE_NAMES = 256, 2**20, 2**16


class NumberNames(Sequence[str]):
    """Identities that are called by whole numbers: 4 or 8 bytes each, where a list of strings takes about 60.

    Args:
        numbers: int64 [C], the number of each identity.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        small = len(numbers) == 0 or numbers.max() < 2**31
        self.numbers = numbers.astype(np.int32) if small else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = self.numbers[index]
        return list(map(str, found.tolist())) if isinstance(index, slice) else str(found)

    def __iter__(self) -> Iterator[str]:
        return map(str, self.numbers.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def packed_identities(names: Sequence[str]) -> str:
    """The names, compressed, as text: what `AttentionLoader.state_dict` keeps. See `unpacked_identities`."""
    text = _SEPARATOR.join(names).encode("utf-8", "surrogateescape")
    return base64.b85encode(zlib.compress(text, 1)).decode()


def unpacked_identities(packed: str) -> list[str]:
    """The names in order, from what `packed_identities` made of them.

    Raises:
        ValueError: For anything else, and for what unpacks to more than names do: a stranger's state may hold any.
    """
    try:
        stored = base64.b85decode(packed)
        content = unpacked(stored, _SPARE_BYTES + _LARGEST_RATIO * len(stored))
    except (ValueError, TypeError) as cause:
        raise ValueError(f"the identities of a saved state cannot be read: {cause}") from cause
    if content.count(0) > _SPARE_NAMES + len(stored):  # another name costs a byte at least, but for names that repeat
        raise ValueError(f"the identities of a saved state cannot be read: {content.count(0)} in {len(stored)} bytes")
    return content.decode("utf-8", "surrogateescape").split(_SEPARATOR)


def unpacked(stored: bytes, most: int) -> bytes:
    """What zlib has compressed, of at most `most` bytes, before memory is taken for more. Raises ValueError."""
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(stored, most)
    except zlib.error as cause:
        raise ValueError(str(cause)) from cause
    if stream.unconsumed_tail or not stream.eof:
        raise ValueError(f"{len(stored)} bytes that are cut short, or unpack to more than {most}")
    return content


def first_difference(now: Sequence[str], then: Sequence[str]) -> str | None:
    """In words, the first identity of `now` that is not what it was in `then`; None where all are."""
    for label, (now_name, then_name) in enumerate(zip(now, then, strict=False)):
        if now_name != then_name:
            return f"{now_name!r} in the place of {then_name!r} (label {label})"
    if len(now) != len(then):
        more, fewer, verb = (now, then, "added") if len(now) > len(then) else (then, now, "gone")
        return f"{more[len(fewer)]!r} {verb} ({len(now)} identities for {len(then)})"
    return None
