"""Where each image of a tar shard lies and whose it is, kept for each shard by itself (see `index_cache`)."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from attfc_cuda._check import error
from attfc_cuda.data.processes import in_processes, spare_workers, start_method
from attfc_cuda.data.sources.checked_file import CheckedFile
from attfc_cuda.data.sources.index_cache import Index, kept_index, load_index, small, stamp
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.skipped import Skipped
from attfc_cuda.data.sources.tar_members import BLOCK
from attfc_cuda.data.sources.tar_samples import samples

_TOLD = 1024  # images
_LONG_S = 4.0  # worth the start of worker processes


class ShardIndex(NamedTuple):
    """The N images of a shard in its order.

    Attributes:
        starts: Where the content of each begins, int64 [N].
        checks: 8 bits of the header before it, uint8 [N]; see `header_at`.
        identities: Its number, or its place in `names`; int32 or int64 [N].
        names: Of folders; None where identities are numbers.
        skipped: What was left out.
    """

    starts: np.ndarray
    checks: np.ndarray
    identities: np.ndarray
    names: list[str] | None
    skipped: Skipped

    @classmethod
    def of(cls, index: Index) -> ShardIndex:
        """From what `_build` found, or was kept of it."""
        found = index.arrays
        names = list(PackedNames.of_arrays(found["name_ends"], found["names"])) if "names" in found else None
        return cls(found["starts"], found["checks"], found["identities"], names, index.skipped)

    def first(self, path: Any) -> str:
        """The first image, and whose it is, in words."""
        identity = self.identities[0] if self.names is None else self.names[self.identities[0]]
        return _place(identity, path, int(self.starts[0]))


def shard_indexes(
    shards: Sequence[CheckedFile], label_field: str, strict: bool, tell: Callable[[int, int], None]
) -> list[ShardIndex]:
    """The indexes of shards, kept or made; by worker processes, one for each core, where making them takes long and
    processes are forked. Elsewhere a worker would begin by running the program's main file, which need not expect that.

    Args:
        shards: The files.
        label_field: As for `TarFaces`.
        strict: Whether damage is an error.
        tell: Called now and then with the number of shards that are done and of images found so far.

    Raises:
        ValueError: As `TarFaces`.
    """
    search = _Search(shards, label_field, strict)
    indexes = {number: index for number in range(len(shards)) if (index := search.kept(number)) is not None}
    missing = [number for number in range(len(shards)) if number not in indexes]
    total = sum(len(index.arrays["starts"]) for index in indexes.values())
    searched = _searched(search.of(missing), lambda found: tell(len(indexes), total + found))
    for number, index in zip(missing, searched, strict=True):
        indexes[number] = index
        total += len(index.arrays["starts"])
        tell(len(indexes), total)
    return [ShardIndex.of(indexes[number]) for number in range(len(shards))]


def _searched(search: _Search, tell: Callable[[int], None]) -> Generator[Index, None, None]:
    """The indexes of all its shards. The first ones are made here, and tell how long the others will take."""
    done, begin, workers = 0, time.monotonic(), spare_workers() if start_method() == "fork" else 0
    while done < len(search.shards):
        left = len(search.shards) - done
        if min(workers, left) > 1 and done and (time.monotonic() - begin) / done * left > _LONG_S:
            rest = search.of(range(done, len(search.shards)))
            yield from in_processes(rest, left, min(workers, left))
            return
        yield search(done, tell)
        done += 1


class _Search:
    """Finds what lies in shards; can be pickled.

    Args:
        shards, label_field, strict: As for `shard_indexes`.
    """

    def __init__(self, shards: Sequence[CheckedFile], label_field: str, strict: bool) -> None:
        self.shards, self.label_field, self.strict = shards, label_field, strict

    def of(self, numbers: Iterable[int]) -> _Search:
        """The same among fewer shards."""
        return _Search([self.shards[number] for number in numbers], self.label_field, self.strict)

    def kept(self, number: int) -> Index | None:
        """The index of a shard, if there is one that fits."""
        return kept_index(**self._asked(number))

    def __call__(self, number: int, tell: Callable[[int], None] = lambda found: None) -> Index:
        """The index of a shard, kept from now on."""
        shard = self.shards[number]
        return load_index(build=lambda: _build(shard, self.label_field, self.strict, tell), **self._asked(number))

    def _asked(self, number: int) -> dict[str, Any]:
        shard = self.shards[number]
        return {
            "source": shard.path,
            "of": {"shard": stamp(shard.info), "label_field": self.label_field},
            "sound": lambda arrays: _sound(arrays, shard.size),
            "variant": "" if self.label_field == "auto" else self.label_field,
            "strict": self.strict,
        }


def mixed(first: str, here: str) -> Exception:
    """The error for identities by number and by folder in one data set."""
    rule, remedy = "give every image its identity in the same way", 'label_field="folder" or "cls"'
    return error("TarFaces", "shards", rule, f"folders and numbers: {first}, {here}", remedy)


def _build(shard: CheckedFile, label_field: str, strict: bool, tell: Callable[[int], None]) -> Index:
    skipped, damaged = Skipped(), False

    def damage(what: str, shard: CheckedFile, offset: int, rule: str, got: Any) -> None:
        nonlocal damaged
        found, damaged = shard.damaged(offset, rule, got), True
        if strict:
            raise error("TarFaces", "shards", "be intact", found, 'on_bad_image="skip" leaves it out')
        skipped.add(what, str(found))

    starts, checks, identities = array("q"), array("B"), array("q")
    names: dict[str, int] = {}
    first: tuple[type, str] | None = None
    for found in samples(shard, label_field, skipped.add, damage):
        here = type(found.identities[0])
        if first is None:
            first = here, _place(found.identities[0], shard.path, found.starts[0])
        elif first[0] is not here:
            raise mixed(first[1], _place(found.identities[0], shard.path, found.starts[0]))
        told = len(starts) // _TOLD
        starts.extend(found.starts)
        checks.extend(found.checks)
        if here is int:
            identities.extend(found.identities)
        else:
            identities.extend([names.setdefault(name, len(names)) for name in found.identities])
        if len(starts) // _TOLD > told:
            tell(len(starts))
    arrays: dict[str, np.ndarray] = {
        "starts": np.array(starts, dtype=np.int64),
        "checks": np.array(checks, dtype=np.uint8),
        "identities": small(np.array(identities, dtype=np.int64)),
    }
    if names:
        packed = PackedNames(names)
        arrays |= {"name_ends": packed.ends, "names": packed.block}
    return Index(arrays, [], skipped, damaged, lasting=not shard.refused)


def _sound(arrays: dict[str, np.ndarray], size: int) -> bool:
    starts, checks, identities = arrays["starts"], arrays["checks"], arrays["identities"]
    if not len(starts) == len(checks) == len(identities) or starts.dtype != np.int64 or checks.dtype != np.uint8:
        return False
    if len(starts) == 0:
        return "names" not in arrays
    if identities.dtype == np.uint8 or identities.min() < 0 or starts.min() < BLOCK or starts.max() > size:
        return False
    if "names" not in arrays:
        return bool(identities.max() < 2**62)
    names = list(PackedNames.of_arrays(arrays["name_ends"], arrays["names"]))
    return bool(identities.max() < len(names)) and len(set(names)) == len(names)


def _place(identity: Any, path: Any, start: int) -> str:
    return f"{identity} of {path}, the image at byte {start}"
