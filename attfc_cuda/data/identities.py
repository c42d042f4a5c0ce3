"""Names of identities in little memory, and what a checkpoint keeps of them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

_SEPARATOR = "\0"  # in no file's name


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
        ValueError: For anything else.
    """
    try:
        content = zlib.decompress(base64.b85decode(packed))
    except (zlib.error, ValueError, TypeError) as cause:
        raise ValueError(f"the identities of a saved state cannot be read: {cause}") from cause
    return content.decode("utf-8", "surrogateescape").split(_SEPARATOR)


def first_difference(then: Sequence[str], now: Sequence[str]) -> str | None:
    """In words, the first identity that is not what it was; None where all are."""
    for number, (old, new) in enumerate(zip(then, now, strict=False)):
        if old != new:
            return f"identity {number} was {old!r} and is {new!r}"
    if len(then) != len(now):
        return f"there were {len(then)} identities and are {len(now)}"
    return None
