"""What the data sets of encoded images have in common: decoding, checking at the start, and what the report counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from attfc_cuda._check import error
from attfc_cuda.data._checks import checked_image_size
from attfc_cuda.data.faces import FaceDataset, load_all
from attfc_cuda.data.identities import NumberNames
from attfc_cuda.data.images import decode_image
from attfc_cuda.data.sources.duplicates import digest, duplicates_line
from attfc_cuda.data.sources.skipped import Skipped

ON_BAD_IMAGE = ("skip", "raise")


def _compacted(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels in ascending order, and for each label its place among them."""
    if len(labels) and labels.max() < 4 * len(labels) + 1024:  # as nearly always: no sort of all images
        there = np.bincount(labels) > 0
        kept = np.flatnonzero(there)
        return kept, labels if there.all() else (np.cumsum(there, dtype=labels.dtype) - 1)[labels]
    return np.unique(labels, return_inverse=True)


class StoredFaces(FaceDataset):
    """Base of the data sets whose images lie encoded in files.

    A subclass finds its items (an item: an image as the source numbers them), sets whatever its methods need, calls
    `start` and gives `_content` and `_where`. An identity without an item, and with `check` an item that cannot be
    decoded, is left out, so that labels are contiguous.

    Args:
        image_size: As for `FolderFaces`, as are `check` and `cache`, which `start` takes.
        on_bad_image: As for `FolderFaces`.
    """

    def __init__(self, image_size: int, on_bad_image: str) -> None:
        here = type(self).__name__
        if on_bad_image not in ON_BAD_IMAGE:
            raise error(here, "on_bad_image", 'be "skip" or "raise"', repr(on_bad_image))
        self.image_size, self.on_bad_image = checked_image_size(here, image_size), on_bad_image
        self.skipped = Skipped()
        self._facts: list = []
        self._items: np.ndarray | None = np.empty(0, dtype=np.int64)  # None once all items are images, see `start`

    def start(
        self,
        labels: np.ndarray,
        names: Sequence[str] | None,
        *,
        check: bool,
        cache: bool,
    ) -> None:
        """labels: int64 [M], of each item. names: of each label; None for sources that number their identities, whose
        numbers may have gaps: the report counts them."""
        readable, images, digests = np.ones(len(labels), dtype=bool), None, None
        if (check or cache) and len(labels):
            digests = np.zeros(len(labels), dtype=np.uint64)

            def load(item: int) -> torch.Tensor:
                content = self._content(item)
                digests[item] = digest(content)
                return decode_image(content, self.image_size, self._where(item))

            images, readable, failures = load_all(
                load, len(labels), self.image_size, keep=cache, task="reading images", skip=self.on_bad_image == "skip"
            )
            for failure in failures:
                self.skipped.add("images that cannot be decoded", str(failure))
        kept, compact = _compacted(labels if readable.all() else labels[readable])
        for label in () if readable.all() else np.setdiff1d(labels, kept):
            where = self._where_identity(int(label), names)
            self.skipped.add("identities without a readable image", where)
        if len(kept) == 0:
            raise self._nothing()
        identities = NumberNames(kept) if names is None else [names[k] for k in kept.tolist()]
        super().__init__(compact, identities, self.image_size)
        self._cache, self._items = images, None if readable.all() else np.flatnonzero(readable)
        if names is None and kept[-1] - kept[0] + 1 > len(kept):
            gaps = int(kept[-1] - kept[0] + 1) - len(kept)
            self._facts.append(f"label numbers {kept[0]} to {kept[-1]} with {gaps} gaps, renumbered from 0")
        if digests is not None:
            self._facts.append(duplicates_line(digests[readable], self.labels))

    def where(self, index: int) -> str:
        """The source of image `index`, as an error would name it."""
        return self._where(self._item(index))

    def content(self, index: int) -> bytes:
        """The encoded bytes of image `index`.

        Raises:
            UnreadableImage: Where they cannot be read.
        """
        return self._content(self._item(index))

    def outside(self, index: int) -> bool:
        """Whether image `index` lies outside of the folder that the data set was given: by a link, or by `..`."""
        return self._outside(self._item(index))

    def report(self) -> str:
        return "\n  ".join([super().report(), *self._facts]) + self.skipped.text("\n  ")

    def _load(self, index: int) -> torch.Tensor:
        item = self._item(index)
        return decode_image(self._content(item), self.image_size, self._where(item))

    def _item(self, index: int) -> int:
        return int(index) if self._items is None else int(self._items[index])

    def _content(self, item: int) -> bytes:
        """The encoded bytes of an item; `UnreadableImage` where they cannot be read."""
        raise NotImplementedError

    def _where(self, item: int) -> str:
        raise NotImplementedError

    def _outside(self, item: int) -> bool:
        return False

    def _where_identity(self, label: int, names: Sequence[str] | None) -> str:
        return str(label) if names is None else names[label]

    def _nothing(self) -> Exception:
        """The error for a source without a single image."""
        raise NotImplementedError
