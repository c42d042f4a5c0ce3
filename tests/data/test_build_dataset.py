"""Data sets by name."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from attfc_cuda.data import FolderFaces, ProceduralFaces, build_dataset


def test_procedural():
    default = build_dataset("procedural", 16)
    assert isinstance(default, ProceduralFaces) and (len(default.identities), len(default)) == (200, 1600)
    faces = build_dataset("procedural:5x3@1000", 24, seed=9)
    assert (len(faces.identities), len(faces), faces.image_size) == (5, 15, 24)
    assert torch.equal(faces[4], ProceduralFaces(1002, 3, 24, seed=9)[1001 * 3 + 1])


def test_folders(tmp_path):
    for name in ("a/anna", "a/ben", "b/anna", "b/carl"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name / "0.png")
    (tmp_path / "ids.txt").write_text("ben\n")
    a, b, ids = tmp_path / "a", tmp_path / "b", tmp_path / "ids.txt"
    faces = build_dataset(f"{a}, {b}", 16, f"{ids},", on_bad_image="raise", cache=True)
    assert isinstance(faces, FolderFaces) and faces.identities == ["ben", "anna", "carl"]
    assert faces.on_bad_image == "raise" and "kept in memory" in faces.report()
    assert build_dataset(str(a), 16, [ids]).identities == ["ben"]
    assert build_dataset(f"{a},{b}", 16).identities == ["anna", "ben", "anna", "carl"]


@pytest.mark.parametrize(
    ("spec", "identities", "message"),
    [
        (
            "procedural:200",
            None,
            'spec must be "procedural", or with any of these in this order: ":<identities>x<images>',
        ),
        ("procedural:-2x3", None, "got 'procedural:-2x3'"),
        ("procedural", "ids.txt", "identities must be left out for procedural faces, got 'ids.txt'"),
        (" , ", None, "spec must name procedural faces, folders or files, got ' , '"),
    ],
)
def test_errors(spec, identities, message):
    with pytest.raises(ValueError, match="build_dataset: .*" + re.escape(message)):
        build_dataset(spec, 16, identities)
