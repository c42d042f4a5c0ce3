"""Hard drawn faces: related identities, photographs at an age and of few pixels, wrong labels at a rate."""

import hashlib

import numpy as np
import pytest
import torch

from attfc_cuda.data import ProceduralFaces, build_dataset
from attfc_cuda.data.procedural.hard import (
    CLAN,
    CLANS_TRAITS,
    FAMILY,
    FAMILYS_TRAITS,
    HARD_SHOT_FACTORS,
    TWINS_DIFFER,
    at_age,
    hard_face,
    related_traits,
)
from attfc_cuda.data.procedural.shots import shot_and_noise
from attfc_cuda.data.procedural.traits import IDENTITY_TRAITS
from attfc_cuda.train import TrainConfig
from attfc_cuda.train.validation import verification_sets


def latent(identity, seed=0):
    traits = vars(related_traits(seed, identity))
    return np.array([(traits[name] - low) / (high - low) for name, (low, high) in IDENTITY_TRAITS.items()])


def share_in_common(pairs):
    return np.mean([np.isclose(latent(a), latent(b), rtol=0, atol=1e-12).mean() for a, b in pairs])


@pytest.mark.parametrize(
    ("seed", "size", "digest"),
    [
        (0, 32, "41a4127921512cbefad75f74afb62f1ac327c7bcdcdc0ccc2230acd6ca06e7ef"),
        (7, 112, "df4122475880c2c97999d3313c64a276e19fd7b34d5ddb0eb7a1d48874464e82"),
    ],
)
def test_same_bytes_on_every_machine(seed, size, digest):
    faces = ProceduralFaces(40, 3, size, seed, hard=True)
    assert hashlib.sha256(b"".join(faces[i].numpy().tobytes() for i in range(len(faces)))).hexdigest() == digest


def test_relatives_share_what_the_tree_says():
    # Each share within five standard deviations of its estimate: clans and families decide a trait once for all.
    rng, traits = np.random.default_rng(0), len(IDENTITY_TRAITS)
    clans = rng.permutation(4000)[:300] * CLAN

    def expect(pairs, expected):
        deviation = (expected * (1 - expected) / (len(clans) * traits)) ** 0.5
        assert abs(share_in_common(pairs) - expected) < 5 * deviation

    siblings = CLANS_TRAITS + (1 - CLANS_TRAITS) * FAMILYS_TRAITS
    expect([(c + 2, c + FAMILY + 2) for c in clans], CLANS_TRAITS)
    expect([(c + 2, c + 3) for c in clans], siblings)
    # A twin's own trait that is drawn anew still equals what both have from clan or family nowhere: it is their own.
    expect([(c, c + 1) for c in clans], 1 - TWINS_DIFFER)
    assert share_in_common([(c + 2, c + CLAN + 2) for c in clans]) == 0  # strangers


def test_every_identity_by_itself_is_as_likely_as_any_other():
    # Kolmogorov's bound at 1e-6 for uniform numbers, over identities of clans of their own, twins among them.
    for within in (0, 1, 2):
        values = np.sort(np.concatenate([latent(k * CLAN + within) for k in range(200)]))
        steps = np.arange(1, len(values) + 1) / len(values)
        assert np.abs(values - steps).max() < np.sqrt(-np.log(1e-6 / 2) / (2 * len(values)))


def test_image_depends_on_seed_identity_and_image_alone():
    few, many = ProceduralFaces(3, 2, 32, seed=5, hard=True), ProceduralFaces(50, 7, 32, seed=5, hard=True)
    late = ProceduralFaces(2, 7, 32, seed=5, first_identity=1, hard=True)
    for identity in range(3):
        for image in range(2):
            assert torch.equal(few[identity * 2 + image], many[identity * 7 + image])
    assert torch.equal(late[0], many[7])
    assert not torch.equal(few[0], ProceduralFaces(1, 1, 32, seed=5)[0])


def test_few_pixels_are_enlarged_to_the_size_asked_for():
    # A photograph of low resolution has runs of equal rows; every image is of the size asked for.
    size, coarse = 64, 0
    for image in range(40):
        shot, _ = shot_and_noise(HARD_SHOT_FACTORS, 0, 3, image, size)
        picture = hard_face(0, 3, image, size)
        assert picture.shape == (3, size, size) and picture.dtype == np.uint8
        side = min(round(size * shot.resolution), size)
        rows = 1 + (np.diff(picture.astype(int), axis=1) != 0).any(axis=(0, 2)).sum()
        assert rows <= side and (side < size or rows > 0.9 * size)
        coarse += side < size
    assert 8 <= coarse <= 28  # 45 % of the shots are coarse: within five standard deviations of 18 of 40
    assert hard_face(0, 3, 0, 8).shape == (3, 8, 8)


def test_age_changes_what_it_should_and_leaves_the_identity_alone():
    face = related_traits(0, 5)
    before = dict(vars(face))
    young, old = (shot_and_noise(HARD_SHOT_FACTORS, 0, 5, 0, 8)[0] for _ in range(2))
    young.age, old.age = -1.0, 1.0
    at_young, at_old = at_age(face, young), at_age(face, old)
    assert vars(face) == before
    assert at_old.hair_gray > at_young.hair_gray and at_old.hairline < at_young.hairline
    assert at_old.smile_folds > at_young.smile_folds and at_old.eye_open < at_young.eye_open
    assert at_old.eye_x == at_young.eye_x == face.eye_x and at_old.skin == face.skin


def test_label_noise_swaps_its_share_for_other_identities_of_the_set():
    rate, first = 0.3, 64
    faces = ProceduralFaces(200, 6, 8, seed=1, first_identity=first, hard=True, label_noise=rate)
    clean = ProceduralFaces(200, 6, 8, seed=1, first_identity=first, hard=True)
    shown = [faces._shown(index) for index in range(len(faces))]
    wrong = [identity - first != index // 6 for index, (identity, _) in enumerate(shown)]
    assert abs(np.mean(wrong) - rate) < 5 * (rate * (1 - rate) / len(faces)) ** 0.5
    assert all(first <= identity < first + 200 for identity, _ in shown)
    assert len(set(shown)) == len(shown)  # no photograph comes twice
    for index in range(0, len(faces), 37):
        same = torch.equal(faces[index], clean[index])
        assert same != wrong[index]
        identity, image = shown[index]
        np.testing.assert_array_equal(faces[index].numpy(), hard_face(1, identity, image, 8))
    assert all(ProceduralFaces(2, 50, 8, label_noise=1.0)._shown(i)[0] == 1 - i // 50 for i in range(100))


def test_specs_and_what_a_run_verifies_on():
    faces = build_dataset("procedural:300x4@100:hard:label-noise=0.25", 16, seed=3)
    assert (len(faces.identities), faces.first_identity, faces.hard, faces.label_noise) == (300, 100, True, 0.25)
    assert not build_dataset("procedural:3x4", 16).hard and build_dataset("procedural:hard", 16).hard
    config = TrainConfig()
    config.dataset.image_size = 16
    (pairs,) = verification_sets(config, faces)
    others = faces.others(80, 8)
    # Strangers, not only other people: from the next clan on, by the same seed, under their right labels.
    assert (others.first_identity, others.seed, others.hard, others.label_noise) == (CLAN, 3, True, 0)
    assert pairs.num_pairs == 640 * 639 // 2 and len(others) == 640
    assert torch.equal(pairs.images[5], others[5])
    for spec in ("procedural:3x4:harder", "procedural:3x4:label-noise=", "procedural:label-noise=.1:hard"):
        with pytest.raises(ValueError, match='spec must be "procedural", or with any of these in this order'):
            build_dataset(spec, 16)


@pytest.mark.parametrize(
    ("count", "noise", "kind", "message"),
    [
        (2, -0.1, ValueError, r"label_noise must lie in 0 to 1, got -0\.1"),
        (2, 1.5, ValueError, r"label_noise must lie in 0 to 1, got 1\.5"),
        (2, float("nan"), ValueError, "label_noise must lie in 0 to 1, got nan"),
        (2, "x", TypeError, "label_noise must be a number, got 'x'"),
        (1, 0.1, ValueError, r"label_noise must be 0 for a single identity, got 0\.1"),
    ],
)
def test_bad_label_noise(count, noise, kind, message):
    with pytest.raises(kind, match=f"^ProceduralFaces: {message}$"):
        ProceduralFaces(count, 1, 8, label_noise=noise)
