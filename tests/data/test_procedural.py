"""Procedural faces: the same bytes everywhere, and identities that differ although their pixels hardly tell."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attfc_cuda.data import ProceduralFaces, normalize_images
from attfc_cuda.data.procedural import drawing as face_drawing
from attfc_cuda.data.procedural.dataset import _traits, procedural_face
from attfc_cuda.data.procedural.hard import hard_face
from attfc_cuda.data.procedural.traits import IDENTITY_TRAITS, SHOT_FACTORS


@pytest.mark.parametrize(
    ("seed", "size", "digest"),
    [
        (0, 64, "076565b5a4e2aceacc807ef1ba63461f88b712b81f5e12b0cd4342d0c0b969a6"),
        (7, 112, "b7f5aecdc8a36496237fd2fdb8090f5f7557a682cf27779e57e35308123aa288"),
    ],
)
def test_same_bytes_on_every_machine(seed, size, digest):
    # A drawing that changes on purpose changes the digests: runs before and after are then not comparable.
    faces = ProceduralFaces(40, 3, size, seed)
    assert hashlib.sha256(b"".join(faces[i].numpy().tobytes() for i in range(len(faces)))).hexdigest() == digest


def test_image_depends_on_seed_identity_and_image_alone():
    few, many = ProceduralFaces(3, 2, 32, seed=5), ProceduralFaces(50, 7, 32, seed=5)
    late = ProceduralFaces(2, 7, 32, seed=5, first_identity=1)
    for identity in range(3):
        for image in range(2):
            assert torch.equal(few[identity * 2 + image], many[identity * 7 + image])
    assert torch.equal(late[0], many[7]) and late.identities == ["procedural-1", "procedural-2"]
    cached = ProceduralFaces(3, 2, 32, seed=5, cache=True)
    assert all(torch.equal(cached[i], few[i]) for i in range(len(few)))
    assert len({ProceduralFaces(1, 1, 32, seed=s)[0].numpy().tobytes() for s in (0, 1, 2**64 - 1)}) == 3


def test_shape_labels_and_report():
    faces = ProceduralFaces(4, 3, 40)
    assert len(faces) == 12 and faces[11].shape == (3, 40, 40) and faces[11].dtype == torch.uint8
    assert faces.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] and faces.labels.dtype == np.int32
    assert faces.images_of(2).tolist() == [6, 7, 8]
    assert "4 identities, 12 images (3 to 3 each, median 3), 40x40" in faces.report()
    for index in (12, -1):
        with pytest.raises(IndexError, match=rf"ProceduralFaces: index must lie in 0 to 11, got {index}"):
            faces[index]
    assert "identities with a single image: 2" in ProceduralFaces(2, 1, 8).report()


@pytest.mark.parametrize(("draw", "identities", "images"), [(procedural_face, 45, 2), (hard_face, 60, 3)])
def test_windows_clip_nothing(monkeypatch, draw, identities, images):
    # A feature is painted only in the pixels its window allows; with windows as large as the image nothing may change.
    chosen = [(identity, image) for identity in range(identities) for image in range(images)]
    windowed = [draw(0, *which, 64) for which in chosen]
    monkeypatch.setattr(face_drawing._Camera, "window", lambda self, *corners: (slice(0, self.size),) * 2)
    for which, picture in zip(chosen, windowed, strict=True):
        np.testing.assert_array_equal(picture, draw(0, *which, 64), err_msg=f"identity, image {which}")


def test_every_image_has_contrast_and_differs():
    faces = ProceduralFaces(60, 3, 48, seed=3)
    images = torch.stack([faces[i] for i in range(len(faces))]).float()
    assert images.std(dim=(1, 2, 3)).min() > 10  # none is blank, burnt out or black
    assert len(torch.unique(images.reshape(len(images), -1), dim=0)) == len(images)


def _pair_accuracy(similarity, same):
    thresholds = np.sort(similarity)
    return max(((similarity > threshold) == same).mean() for threshold in thresholds)


def test_pixels_verify_poorly_but_better_than_chance():
    # The demo must have something to learn: the floor lies near that of real faces (0.60), far below a trained network.
    faces = ProceduralFaces(120, 4, 32, seed=1)
    vectors = torch.stack([normalize_images(faces[i]).reshape(-1) for i in range(len(faces))])
    vectors = torch.nn.functional.normalize(vectors).reshape(120, 4, -1)
    genuine = torch.cat([(vectors[:, a] * vectors[:, b]).sum(-1) for a in range(4) for b in range(a)])
    impostor = torch.cat([(vectors[:, a] * vectors.roll(k, 0)[:, b]).sum(-1) for k, (a, b) in enumerate(
        [(a, b) for a in range(4) for b in range(a)], start=1)])  # fmt: skip
    similarity = torch.cat([genuine, impostor]).numpy()
    same = np.repeat([True, False], [len(genuine), len(impostor)])
    assert 0.55 < _pair_accuracy(similarity, same) < 0.70


def test_shape_and_texture_both_tell_identities_apart():
    # Two identities that share all geometry still differ by texture, and the other way round: by more than the noise.
    face_a, face_b = vars(_traits(0, 1)), vars(_traits(0, 2))
    names = list(IDENTITY_TRAITS)
    texture = names[names.index("skin") :]
    middle = {name: (low + high) / 2 for name, (low, high) in SHOT_FACTORS.items()}
    shot, noise = SimpleNamespace(**{**middle, "cover": 0.9}), np.zeros((3, 64, 64), np.float32)

    def draw(traits):
        return face_drawing.draw_face(SimpleNamespace(**traits), shot, 64, noise).astype(int)

    other_texture = {**face_a, **{name: face_b[name] for name in texture}}
    other_shape = {**face_b, **{name: face_a[name] for name in texture}}
    for other in (other_texture, other_shape):
        assert np.abs(draw(face_a) - draw(other)).mean() > 3


@pytest.mark.parametrize(
    ("kwargs", "kind", "message"),
    [
        ({"num_identities": 0}, ValueError, "num_identities must be at least 1, got 0"),
        ({"images_per_identity": 0}, ValueError, "images_per_identity must be at least 1, got 0"),
        ({"num_identities": 1.5}, TypeError, "num_identities must be an int, got 1.5"),
        ({"first_identity": -1}, ValueError, "first_identity must be at least 0, got -1"),
        ({"seed": -1}, ValueError, "seed must lie in 0 to 18446744073709551615, got -1"),
        ({"seed": "x"}, TypeError, "seed must be an int, got 'x'"),
        ({"image_size": 4}, ValueError, "image_size must lie in 8 to 4096, got 4"),
    ],
)
def test_bad_arguments(kwargs, kind, message):
    with pytest.raises(kind, match=f"^ProceduralFaces: {message}$"):
        ProceduralFaces(**kwargs)
