"""What a checkpoint keeps of the data it was trained on: which identities, with how many images each.

A label is an identity's place in the data set, so a renamed or added folder gives its neighbours other labels. A run
that resumes compares names instead, wherever the data lie.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attfc_cuda.data import FaceDataset
from attfc_cuda.data.identities import first_difference, unpacked, unpacked_identities

_SEPARATOR = "\0"  # in no file name


class DataIdentity:
    """Names of identities and number of images of each, in the order of their labels.

    Args:
        names: Of the identities.
        counts: Number of images of each, int64.
    """

    def __init__(self, names: Sequence[str], counts: np.ndarray) -> None:
        self.names, self.counts = list(names), np.asarray(counts, dtype=np.int64)

    @staticmethod
    def of(dataset: FaceDataset) -> DataIdentity:
        """That of a data set."""
        return DataIdentity(dataset.identities, np.bincount(dataset.labels, minlength=len(dataset.identities)))

    def state_dict(self) -> dict[str, Any]:
        """The numbers of images for a checkpoint, compressed; the names are with the loader's state in it."""
        packed = zlib.compress(self.counts.astype("<i8").tobytes())
        return {"counts": torch.frombuffer(bytearray(packed), dtype=torch.uint8)}

    @staticmethod
    def from_checkpoint(state: dict[str, Any]) -> DataIdentity | None:
        """That of a checkpoint; None where it is from a release that did not keep it.

        Raises:
            ValueError: For names and numbers of images that do not belong together.
        """
        if "data" not in state or "identities" not in state["loader"]:
            return None
        names = unpacked_identities(state["loader"]["identities"])
        stored = state["data"]["counts"].numpy().tobytes()
        counts = np.frombuffer(unpacked(stored, 8 * len(names)), dtype="<i8")
        if len(counts) != len(names) or (counts < 0).any():
            raise ValueError(f"the numbers of images of {len(names)} identities cannot be read")
        return DataIdentity(names, counts)

    def digest(self) -> int:
        """A number that differs, but for one case in 2^32, where names or counts do."""
        return zlib.crc32(self.counts.astype("<i8").tobytes(), zlib.crc32(self._text()))

    def _text(self) -> bytes:
        return _SEPARATOR.join(self.names).encode("utf-8", "surrogateescape")

    def difference(self, then: DataIdentity) -> str | None:
        """The first identity by which this differs from `then`, in words; None where they are alike."""
        if difference := first_difference(self.names, then.names):
            return difference
        other = np.flatnonzero(self.counts != then.counts)
        if len(other):
            label = int(other[0])
            return f"{self.counts[label]} images of {self.names[label]!r} for {then.counts[label]}"
        return None

    def same_names(self, then: DataIdentity) -> bool:
        """Whether the identities are the same, whatever the number of their images."""
        return self.names == then.names

    def mapping(self, then: DataIdentity) -> Tensor:
        """The label that each identity had then.

        Returns:
            [identities] int64, -1 for one that is new. The second identity of a name (of another root) is that name's
            second then.
        """
        label_of = {key: label for label, key in enumerate(_numbered(then.names))}
        return torch.tensor([label_of.get(key, -1) for key in _numbered(self.names)], dtype=torch.int64)


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys
