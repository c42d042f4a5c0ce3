"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from attfc_cuda._check import error
from attfc_cuda.data.faces import FaceDataset


class ConcatFaces(FaceDataset):
    """Data sets one after the other: labels go on counting, and the same name in two of them is two identities.

    Args:
        parts: Data sets of one image_size and one on_bad_image.

    Raises:
        ValueError: For no parts, or for parts that differ in these.
    """

    def __init__(self, parts: Sequence[FaceDataset]):
        self.parts = list(parts)
        kinds = {(part.image_size, part.on_bad_image) for part in self.parts}
        if len(kinds) != 1:
            raise error("ConcatFaces", "parts", "share one image_size and on_bad_image", sorted(kinds) or "no parts")
        identities = np.cumsum([0, *(len(part.identities) for part in self.parts)])
        labels = [part.labels + first for part, first in zip(self.parts, identities[:-1], strict=True)]
        names = [name for part in self.parts for name in part.identities]
        super().__init__(np.concatenate(labels), names, self.parts[0].image_size)
        self.on_bad_image = self.parts[0].on_bad_image
        self._first = np.cumsum([0, *(len(part) for part in self.parts)])

    def report(self) -> str:
        lines = [line for part in self.parts for line in part.report().splitlines()]
        return "\n  ".join([super().report(), *lines])

    def _load(self, index: int) -> torch.Tensor:
        part = int(np.searchsorted(self._first, index, side="right")) - 1
        return self.parts[part][index - int(self._first[part])]
