"""What is verified on: pairs of images, or pairs of templates, with the images they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attfc_cuda.data.faces import FaceDataset, UnreadableImage
from attfc_cuda.data.images import decode_image, read_image
from attfc_cuda.evaluation.embed import ImageSource
from attfc_cuda.evaluation.pairs import PairIndices


class VerificationSet(NamedTuple):
    """Pairs of images.

    Attributes:
        name: of the set.
        images: uint8 [N, 3, H, W] or anything that gives uint8 [3, H, W] by number; each image once.
        pairs: into `images`.
        identity: int [N], whose image each is, for intervals; None: as the genuine pairs tell.
        names: N names of the images for a file of scores; None: their numbers.
    """

    name: str
    images: ImageSource
    pairs: PairIndices
    identity: np.ndarray | None = None
    names: Sequence[str] | None = None

    @property
    def num_pairs(self) -> int:
        return len(self.pairs.same)


class IdentitySet(NamedTuple):
    """Images whose identities are known, of which every pair is judged.

    Attributes:
        name: of the set.
        images: N images.
        identity: int [N]; negative: no part in any pair.
        names: as for `VerificationSet`.
    """

    name: str
    images: ReadableImages
    identity: np.ndarray
    names: Sequence[str] | None = None

    @property
    def num_pairs(self) -> int:
        images = int((self.identity >= 0).sum())
        return images * (images - 1) // 2


class TemplateSet(NamedTuple):
    """Pairs of templates, each the images of one person taken together.

    Attributes:
        name: of the set.
        images: N images.
        template: int64 [N], whose template an image belongs to; numbered from 0.
        media: int64 [N], from which medium (a photograph, a video) an image comes.
        weights: float32 [N] or None, the confidence in each image.
        pairs: a, b: numbers of templates; same; fold all 0.
    """

    name: str
    images: ImageSource
    template: np.ndarray
    media: np.ndarray
    weights: np.ndarray | None
    pairs: PairIndices

    @property
    def num_pairs(self) -> int:
        return len(self.pairs.same)


class EncodedImages:
    """Images that are decoded when they are asked for; `source` names image i in an error."""

    def __init__(self, contents: Sequence[bytes], image_size: int, source: str) -> None:
        self.contents, self.image_size, self.source = contents, image_size, source

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> Tensor:
        return decode_image(self.contents[index], self.image_size, f"image {index} of {self.source}")


class ImageFiles:
    """Image files that are read when they are asked for."""

    def __init__(self, paths: Sequence[str], image_size: int) -> None:
        self.paths, self.image_size = paths, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.paths[index], self.image_size)


class ReadableImages:
    """The images of a data set, kept once read where they fit `KEPT_BYTES`. In place of one that cannot be read, where
    the data set skips such, stands a black image, and its number in `unreadable`."""

    KEPT_BYTES = 2**30

    def __init__(self, dataset: FaceDataset) -> None:
        self.dataset = dataset
        self.unreadable: set[int] = set()
        self._side = dataset.image_size
        self._kept: dict[int, Tensor] | None = {} if len(dataset) * 3 * self._side**2 <= self.KEPT_BYTES else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        try:
            image = self.dataset[index]
        except UnreadableImage:
            if self.dataset.on_bad_image != "skip":
                raise
            self.unreadable.add(index)
            image = torch.zeros(3, self._side, self._side, dtype=torch.uint8)
        if self._kept is not None:
            self._kept[index] = image
        return image
