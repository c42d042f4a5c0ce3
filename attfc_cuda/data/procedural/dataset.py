"""Faces from numbers: the default data set, which needs no download and has as many identities as wanted."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch

from attfc_cuda._check import error
from attfc_cuda.data._checks import MAX_SEED, checked_image_size, checked_int, checked_share
from attfc_cuda.data._random import IDENTITY, MISLABELLED, random_words, unit_interval
from attfc_cuda.data.faces import FaceDataset, load_all
from attfc_cuda.data.procedural.drawing import draw_face
from attfc_cuda.data.procedural.hard import CLAN, hard_face
from attfc_cuda.data.procedural.shots import named, shot_and_noise
from attfc_cuda.data.procedural.traits import IDENTITY_TRAITS, SHOT_FACTORS


class ProceduralFaces(FaceDataset):
    """Cartoon faces drawn on the fly, about 1.5 ms each at 64x64 and 2 ms at 112x112 on one core.

    An identity is a latent vector that fixes geometry (head, jaw, eyes, brows, nose, mouth, ears, hair line) and
    texture (skin, hair and eye colour, freckles, moles, lines, beard); its images differ in pose, light, expression,
    what hides the face, background, focus and noise, so much that the cosine of the pixels verifies only about 60 % of
    balanced pairs rightly, as on real faces. Our choice, no published set.

    With hard=True identities are related (clans, families, twins), they age, change hair and beard, and are
    photographed in wilder poses and light, covered more often than not, often with few pixels: see `procedural.hard`.

    `dataset[i]`: uint8 [3, image_size, image_size], a function of (seed, identity, image), hard and the size alone:
    equal on every machine, whatever num_identities and images_per_identity are. Label noise adds to it which images
    are swapped for another identity's, and that depends on num_identities.

    Args:
        num_identities: At least 1.
        images_per_identity: At least 1.
        image_size: Height and width in pixels.
        seed: 0 to 2**64 - 1.
        first_identity: Where the run of identities starts; sets with the same seed and disjoint runs share no identity,
            so training and verification sets are made that way.
        cache: Draw everything once and keep it in memory.
        hard: Draw the harder faces.
        label_noise: Share of the images, 0 to 1, that show another identity of this data set than their label says; at
            least two identities. Such a photograph is one of its own, none that its identity shows under its own name.

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
        hard: bool = False,
        label_noise: float = 0.0,
    ):
        here = "ProceduralFaces"
        num_identities = checked_int(here, "num_identities", num_identities, 1)
        self.images_per_identity = checked_int(here, "images_per_identity", images_per_identity, 1)
        self.first_identity = checked_int(here, "first_identity", first_identity, 0)
        self.seed = checked_int(here, "seed", seed, 0, MAX_SEED)
        self.hard = bool(hard)
        self.label_noise = checked_share(here, "label_noise", label_noise)
        if self.label_noise > 0 and num_identities == 1:
            raise error(here, "label_noise", "be 0 for a single identity", label_noise)
        names = [f"procedural-{self.first_identity + k}" for k in range(num_identities)]
        labels = np.repeat(np.arange(num_identities), self.images_per_identity)
        super().__init__(labels, names, checked_image_size(here, image_size))
        if cache:
            self._cache, _, _ = load_all(self._load, len(self), self.image_size, keep=True, task="drawing faces")

    def others(self, num_identities: int, images_per_identity: int) -> ProceduralFaces:
        """Identities behind these, and of hard ones no relatives of theirs, drawn alike and rightly labelled: to
        verify on.

        Args:
            num_identities, images_per_identity: As for this class.
        """
        first = self.first_identity + len(self.identities)
        if self.hard:
            first = -(-first // CLAN) * CLAN
        return ProceduralFaces(
            num_identities, images_per_identity, self.image_size, self.seed, first_identity=first, hard=self.hard
        )

    def _load(self, index: int) -> torch.Tensor:
        draw = hard_face if self.hard else procedural_face
        return torch.from_numpy(draw(self.seed, *self._shown(index), self.image_size))

    def _shown(self, index: int) -> tuple[int, int]:
        """The identity that an image shows, and its number among all images of that identity."""
        label, image = divmod(index, self.images_per_identity)
        identity = self.first_identity + label
        if self.label_noise > 0:
            swap, other = random_words(self.seed, MISLABELLED, 2, minor=image, major=identity)
            if unit_interval(swap) < self.label_noise:
                other = int(other) % (len(self.identities) - 1)
                # Numbers from 2^32 on are no image's own; the label's in it keeps two swaps to one identity apart.
                return self.first_identity + other + (other >= label), (label + 1 << 32) + image
        return identity, image


def procedural_face(seed: int, identity: int, image: int, size: int) -> np.ndarray:
    """Image number `image` of an identity, uint8 [3,size,size]."""
    shot, noise = shot_and_noise(SHOT_FACTORS, seed, identity, image, size)
    return draw_face(_traits(seed, identity), shot, size, noise.reshape(3, size, size))


@lru_cache(maxsize=1024)
def _traits(seed: int, identity: int) -> SimpleNamespace:
    positions = unit_interval(random_words(seed, IDENTITY, len(IDENTITY_TRAITS), major=identity))
    return named(IDENTITY_TRAITS, positions)
