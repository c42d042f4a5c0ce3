"""What is verified on: pairs of images, or pairs of templates, with the images they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from attfc_cuda.data.images import decode_image, read_image
from attfc_cuda.evaluation.embed import ImageSource
from attfc_cuda.evaluation.pairs import PairIndices


class VerificationSet(NamedTuple):
    """Pairs of images.

    Attributes:
        name: of the set.
        images: uint8 [N, 3, H, W] or anything that gives uint8 [3, H, W] by number; each image once.
        pairs: into `images`.
    """

    name: str
    images: ImageSource
    pairs: PairIndices


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
