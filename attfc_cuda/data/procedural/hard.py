"""Harder drawn faces: identities that are related, and photographs that vary more than the identities do.

An identity's traits come from a tree: clans of 512 identities, in them families of 8, in each one pair of twins. A
fifth of the traits is common to a clan, another fifth to a family, and twins differ in a tenth of the rest; strangers
share nothing. A photograph is taken at an age, with a haircut and a beard of its day, in wilder poses and light, with
the face covered more often than not, and often of few pixels. Our choice throughout.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from attfc_cuda.data._random import IDENTITY, RELATIVES, random_words, unit_interval
from attfc_cuda.data.procedural.drawing import draw_face
from attfc_cuda.data.procedural.shots import named, shot_and_noise
from attfc_cuda.data.procedural.traits import IDENTITY_TRAITS, SHOT_FACTORS

CLAN, FAMILY = 512, 8  # identities in each; numbers i with the same i // CLAN, i // FAMILY. Twins: the first two of 8
CLANS_TRAITS, FAMILYS_TRAITS, TWINS_DIFFER = 0.2, 0.25, 0.1  # shares, each of the traits that are not yet common
_CLAN, _FAMILY, _COMMON_TO_CLAN, _COMMON_TO_FAMILY, _TWIN = range(5)  # what of the tree a random word is for
SMALLEST_SIDE = 8  # pixels, of a photograph of low resolution

# Wider ranges of `SHOT_FACTORS`, and what it has not.
HARD_SHOT_FACTORS: dict[str, tuple[float, float]] = {
    **SHOT_FACTORS,
    "yaw": (-0.30, 0.30), "pitch": (-0.15, 0.15), "roll": (-0.10, 0.10), "zoom": (0.96, 1.20),
    "shift_x": (-0.07, 0.07), "shift_y": (-0.07, 0.07),
    "light_x": (-0.90, 0.90), "light_y": (-0.75, 0.45), "ambient": (0.28, 0.62), "diffuse": (0.35, 0.85),
    "warmth": (-0.20, 0.20), "tint": (-0.11, 0.11), "gain": (0.65, 1.15), "lift": (-0.08, 0.14), "gray": (0.0, 0.7),
    "smile": (-0.07, 0.13), "open_mouth": (-0.08, 0.13), "brow_raise": (-0.04, 0.06), "lids": (0.50, 1.35),
    "cover": (0.0, 0.8),
    "blur": (-0.05, 0.08), "noise": (0.0, 0.05),
    # 1 is twenty years or so later than the traits have it, -1 as much earlier
    "age": (-1.0, 1.0), "haircut": (-0.4, 0.4), "beard_growth": (-0.5, 0.5),
    # side of the photograph over that of the picture; from 1 on the two are equal
    "resolution": (0.55, 1.55),
}  # fmt: skip


def hard_face(seed: int, identity: int, image: int, size: int) -> np.ndarray:
    """Image number `image` of an identity, uint8 [3,size,size]; a function of the arguments alone."""
    shot, noise = shot_and_noise(HARD_SHOT_FACTORS, seed, identity, image, size)
    side = max(SMALLEST_SIDE, min(round(size * shot.resolution), size))
    noise = noise[: 3 * side * side].reshape(3, side, side)
    picture = draw_face(at_age(related_traits(seed, identity), shot), shot, side, noise)
    if side == size:
        return picture
    nearest = np.arange(size) * side // size
    return picture[:, nearest[:, None], nearest]


@lru_cache(maxsize=1024)
def related_traits(seed: int, identity: int) -> SimpleNamespace:
    """Traits of an identity of the tree, named as in `IDENTITY_TRAITS`."""
    return named(IDENTITY_TRAITS, _latent(seed, identity))


def _latent(seed: int, identity: int) -> np.ndarray:
    """Where each trait lies within its range, float64 in [0, 1): uniform for every identity by itself."""

    def drawn(what: int, number: int) -> np.ndarray:
        return unit_interval(random_words(seed, RELATIVES, len(IDENTITY_TRAITS), minor=what, major=number))

    own = unit_interval(random_words(seed, IDENTITY, len(IDENTITY_TRAITS), major=identity))
    if identity % FAMILY == 1:
        return np.where(drawn(_TWIN, identity) < TWINS_DIFFER, own, _latent(seed, identity - 1))
    clan, family = identity // CLAN, identity // FAMILY
    by_family = np.where(drawn(_COMMON_TO_FAMILY, family) < FAMILYS_TRAITS, drawn(_FAMILY, family), own)
    return np.where(drawn(_COMMON_TO_CLAN, clan) < CLANS_TRAITS, drawn(_CLAN, clan), by_family)


def at_age(face: SimpleNamespace, shot: SimpleNamespace) -> SimpleNamespace:
    """The traits as they are on the day of the photograph."""
    age, now = shot.age, SimpleNamespace(**vars(face))
    now.hair_gray = min(face.hair_gray + 0.4 * age, 1.0)
    now.hairline = face.hairline - 0.05 * age
    now.forehead_lines, now.smile_folds = face.forehead_lines + 0.25 * age, face.smile_folds + 0.25 * age
    now.bags = face.bags + 0.2 * age
    now.head_width, now.jaw_taper = face.head_width * (1 + 0.03 * age), face.jaw_taper * (1 - 0.15 * age)
    now.upper_lip, now.eye_open = face.upper_lip * (1 - 0.15 * age), face.eye_open * (1 - 0.12 * age)
    now.nose_length = face.nose_length * (1 + 0.04 * age)
    now.hair_length = face.hair_length + shot.haircut
    now.beard, now.moustache = (min(has + shot.beard_growth, 1.0) for has in (face.beard, face.moustache))
    return now
