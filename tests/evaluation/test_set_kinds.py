"""Verification sets of several kinds by their paths."""

import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc_cuda import cli
from attfc_cuda.data import UnreadableImage
from attfc_cuda.evaluation.build import from_list, from_lists


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shade in (("ann/1.png", 10), ("ann/2.png", 20), ("bob/1.png", 30)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), shade).save(tmp_path / name)
    (tmp_path / "bob" / "2.png").write_bytes(b"no image")
    pairs = ["ann/1.png ann/2.png 1", "bob/2.png bob/1.png 1", "ann/2.png bob/1.png 0", "ann/1.png bob/9.png 0"]
    (tmp_path / "list.txt").write_text("\n".join(pairs))
    return tmp_path


def encoded(shade: int) -> bytes:
    file = BytesIO()
    Image.new("L", (16, 16), shade).save(file, "png")
    return file.getvalue()


def test_pairs_of_missing_and_damaged_images_are_left_out_on_request(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="line 4 of .*bob/9.png"):
        from_list(folder / "list.txt", folder, 16)
    with pytest.warns(UserWarning) as warned:
        data = from_list(folder / "list.txt", folder, 16, "skip")
    assert [str(w.message).split(" are left out")[0] for w in warned] == [
        "read_pairs: 1 pairs with a missing image",
        f"verify: {folder / 'list.txt'}: 1 pairs with an image that cannot be decoded",
    ]
    assert data.names == [str(folder / name) for name in ("ann/1.png", "ann/2.png", "bob/1.png")]
    shades = [int(image[0, 0, 0]) for image in data.images]
    found = [(shades[a], shades[b], same) for a, b, same, _ in zip(*data.pairs, strict=True)]
    assert found == [(10, 20, True), (20, 30, False)]
    assert np.array_equal(data.identity, [0, 0, 1])
    (folder / "list.txt").write_text("bob/2.png bob/1.png 1\n")
    with pytest.raises(UnreadableImage, match="bob/2.png"):
        from_list(folder / "list.txt", folder, 16)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="one pair of two images that can be read, got none"),
    ):
        from_list(folder / "list.txt", folder, 16, "skip")


def test_bin_files_stand_among_lists(folder: Path) -> None:
    content = pickle.dumps(([encoded(shade) for shade in (1, 2, 3, 4)], [True, False]))
    (folder / "lfw.bin").write_bytes(content)
    (folder / "renamed.txt").write_bytes(content)
    (folder / "list.txt").write_text("ann/1.png ann/2.png 1\n")
    text = f"{folder / 'lfw.bin'}, {folder / 'list.txt'},{folder / 'renamed.txt'}"
    sets = from_lists(text, None, 16)
    assert [(data.name, data.num_pairs) for data in sets] == [("lfw", 2), ("list", 1), ("renamed", 2)]


def test_verify_skips_on_request(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["verify", "--backbone", "raw-pixels", "--pairs", str(folder / "list.txt"), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "bob/9.png" in capsys.readouterr().err
