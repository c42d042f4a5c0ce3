"""Faces from numbers: the default data set, which needs no download and has as many identities as wanted."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch

from attfc_cuda.data._checks import MAX_SEED, checked_image_size, checked_int
from attfc_cuda.data._random import IDENTITY, SHOT, random_words, unit_interval
from attfc_cuda.data.faces import FaceDataset, load_all
from attfc_cuda.data.procedural.drawing import draw_face
from attfc_cuda.data.procedural.traits import IDENTITY_TRAITS, SHOT_FACTORS


class ProceduralFaces(FaceDataset):
    """Cartoon faces drawn on the fly, about 1.5 ms each at 64x64 and 2 ms at 112x112 on one core.

    An identity is a latent vector that fixes geometry (head, jaw, eyes, brows, nose, mouth, ears, hair line) and
    texture (skin, hair and eye colour, freckles, moles, lines, beard); its images differ in pose, light, expression,
    what hides the face, background, focus and noise, so much that the cosine of the pixels verifies only about 60 % of
    balanced pairs rightly, as on real faces. Our choice, no published set.

    `dataset[i]`: uint8 [3, image_size, image_size], a function of (seed, identity, image) and the size alone: equal on
    every machine, whatever num_identities and images_per_identity are.

    Args:
        num_identities: At least 1.
        images_per_identity: At least 1.
        image_size: Height and width in pixels.
        seed: 0 to 2**64 - 1.
        first_identity: Where the run of identities starts; sets with the same seed and disjoint runs share no identity,
            so training and verification sets are made that way.
        cache: Draw everything once and keep it in memory.

    Raises:
        ValueError, TypeError: Naming the argument.
    """

    def __init__(
        self,
        num_identities: int = 200,
        images_per_identity: int = 8,
        image_size: int = 112,
        seed: int = 0,
        *,
        first_identity: int = 0,
        cache: bool = False,
    ):
        here = "ProceduralFaces"
        num_identities = checked_int(here, "num_identities", num_identities, 1)
        self.images_per_identity = checked_int(here, "images_per_identity", images_per_identity, 1)
        self.first_identity = checked_int(here, "first_identity", first_identity, 0)
        self.seed = checked_int(here, "seed", seed, 0, MAX_SEED)
        names = [f"procedural-{self.first_identity + k}" for k in range(num_identities)]
        labels = np.repeat(np.arange(num_identities), self.images_per_identity)
        super().__init__(labels, names, checked_image_size(here, image_size))
        if cache:
            self._cache, _, _ = load_all(self._load, len(self), self.image_size, keep=True, task="drawing faces")

    def _load(self, index: int) -> torch.Tensor:
        label, image = divmod(index, self.images_per_identity)
        return torch.from_numpy(procedural_face(self.seed, self.first_identity + label, image, self.image_size))


def procedural_face(seed: int, identity: int, image: int, size: int) -> np.ndarray:
    """Image number `image` of an identity, uint8 [3,size,size]."""
    factors, values = len(SHOT_FACTORS), 3 * size * size
    # A pixel's noise is the sum of four random bytes (near enough to a normal distribution): half a word.
    words = random_words(seed, SHOT, factors + (values + 1) // 2, minor=image, major=identity)
    shot = _named(SHOT_FACTORS, words[:factors])
    parts = words[factors:].astype("<u8").view(np.uint8).reshape(4, -1)[:, :values]
    sums = parts[0].astype(np.float32)
    for part in parts[1:]:
        sums += part
    noise = (sums - 510.0) * (1 / 147.8)  # the mean and the standard deviation of such a sum
    return draw_face(_traits(seed, identity), shot, size, noise.reshape(3, size, size))


@lru_cache(maxsize=1024)
def _traits(seed: int, identity: int) -> SimpleNamespace:
    return _named(IDENTITY_TRAITS, random_words(seed, IDENTITY, len(IDENTITY_TRAITS), major=identity))


def _named(table: dict[str, tuple[float, float]], words: np.ndarray) -> SimpleNamespace:
    positions = unit_interval(words).tolist()
    ranges = zip(table.items(), positions, strict=True)
    return SimpleNamespace(**{name: low + (high - low) * position for (name, (low, high)), position in ranges})
