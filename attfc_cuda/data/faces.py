"""What every face data set offers: images by index, a label for each, and the images of a label without a search."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from attfc_cuda._check import error, printable
from attfc_cuda._deprecated import warn_renamed
from attfc_cuda.data.identities import NumberNames


class UnreadableImage(OSError):
    """An image that cannot be decoded; the message names the file and the decoder's reason."""


class SlowNotice:
    """Says on stderr how far a long task is: nothing for the first seconds, then a line every few seconds."""

    def __init__(self, task: str, every_s: float = 5.0):
        self.task, self.every_s, self.next_s = task, every_s, time.monotonic() + every_s

    def __call__(self, progress: str) -> None:
        if time.monotonic() >= self.next_s:
            self.next_s = time.monotonic() + self.every_s
            print(printable(f"attfc: {self.task}: {progress}"), file=sys.stderr, flush=True)


class FaceDataset(Dataset):
    """Base of the face data sets: a subclass gives `_load(index)` and calls `__init__` with the labels.

    `dataset[i]` is image i, uint8 [3, image_size, image_size], RGB; IndexError past the end, `UnreadableImage` where it
    cannot be read. The images of label c are `order[offsets[c]:offsets[c + 1]]`.

    Args:
        labels: The identity of each image, int64 [N], contiguous 0..C-1, every identity with at least one image.
        identities: C names.
        image_size: Height and width of every image in pixels.

    Attributes:
        labels: As given, int32 (int64 from 2^31 images or identities on).
        identities, image_size: As given.
        order: The images by identity, int64 [N].
        offsets: Where each identity's images start in `order`, int64 [C + 1].
        on_bad_image: "raise" or "skip", what a loader does with an `UnreadableImage` (see `AttentionLoader`).

    Raises:
        ValueError: For labels with gaps, or none.
    """

    on_bad_image: str = "raise"

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if isinstance(vars(cls).get("on_error"), str):
            warn_renamed(f"{cls.__name__}.on_error", "on_bad_image")
            cls.on_bad_image = vars(cls)["on_error"]
            del cls.on_error

    @property
    def on_error(self) -> str:
        warn_renamed("on_error", "on_bad_image")
        return self.on_bad_image

    @on_error.setter
    def on_error(self, value: str) -> None:
        warn_renamed("on_error", "on_bad_image")
        self.on_bad_image = value

    def __init__(self, labels: np.ndarray, identities: Sequence[str], image_size: int):
        # Tens of millions of images: a label takes 4 bytes where it can.
        small = len(identities) < 2**31 and len(labels) < 2**31
        self.labels = np.ascontiguousarray(labels, dtype=np.int32 if small else np.int64)
        self.identities = identities if isinstance(identities, NumberNames) else list(identities)
        self.image_size = image_size
        counts = np.bincount(self.labels, minlength=len(self.identities))
        if len(self.labels) == 0 or len(counts) != len(self.identities) or counts.min() == 0:
            raise error(
                type(self).__name__,
                "labels",
                "cover 0..C-1 with at least one image each",
                f"{len(self.labels)} labels for {len(self.identities)} identities",
            )
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        # None: images lie by identity already, as in most sets, and nothing need be held.
        self._order: np.ndarray | None = None
        if (self.labels[1:] < self.labels[:-1]).any():  # type: ignore[operator]
            self._order = np.argsort(self.labels, kind="stable").astype(self.labels.dtype)
        self._cache: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> torch.Tensor:
        index = operator.index(index)
        if not 0 <= index < len(self.labels):
            raise IndexError(f"{type(self).__name__}: index must lie in 0 to {len(self.labels) - 1}, got {index}")
        return self._load(index) if self._cache is None else self._cache[index].clone()

    def _load(self, index: int) -> torch.Tensor:
        raise NotImplementedError

    @property
    def order(self) -> np.ndarray:
        """The images by identity, int64 [N]; made anew at each call, see `images_at`."""
        return self.images_at(np.arange(len(self)))

    def images_at(self, slots: np.ndarray) -> np.ndarray:
        """Indices, int64, of the images at these places of `order`."""
        return slots if self._order is None else self._order[slots].astype(np.int64)

    def images_of(self, label: int) -> np.ndarray:
        """Indices of this identity's images, ascending."""
        return self.images_at(np.arange(self.offsets[label], self.offsets[label + 1]))

    def report(self) -> str:
        """Counts for a start-up report, a few lines of text."""
        counts = np.diff(self.offsets)
        lines = [
            f"{type(self).__name__}: {len(self.identities)} identities, {len(self)} images "
            f"({counts.min()} to {counts.max()} each, median {int(np.median(counts))}), "
            f"{self.image_size}x{self.image_size} pixels",
            f"  identities with a single image: {int((counts == 1).sum())}",
        ]
        if self._cache is not None:
            lines.append(f"  kept in memory: {self._cache.numel() / 2**20:.0f} MiB")
        return "\n".join(lines)


def load_all(
    load: Callable[[int], torch.Tensor], count: int, image_size: int, *, keep: bool, task: str, skip: bool = False
) -> tuple[torch.Tensor | None, np.ndarray, list[UnreadableImage]]:
    """Run `load(i)` for every i on a few threads; without `skip`, the first `UnreadableImage` is raised.

    Returns:
        The readable images, uint8 [n,3,size,size] (None unless `keep`), which of the `count` were readable, bool
        [count], and the `UnreadableImage`s in order. A tensor, not an array: worker processes then share its memory.
    """
    images = torch.empty((count, 3, image_size, image_size), dtype=torch.uint8) if keep else None
    readable, failures, notice = np.zeros(count, dtype=bool), [], SlowNotice(task)

    def attempt(index: int) -> torch.Tensor | UnreadableImage:
        try:
            return load(index)
        except UnreadableImage as failure:
            return failure

    filled, chunk = 0, 512
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            for index, result in enumerate(pool.map(attempt, range(start, stop)), start):
                if isinstance(result, UnreadableImage):
                    if not skip:
                        raise result
                    failures.append(result)
                    continue
                readable[index] = True
                if images is not None:
                    images[filled] = result
                filled += 1
            notice(f"{stop} of {count} images")
    return (images[:filled] if images is not None else None), readable, failures
