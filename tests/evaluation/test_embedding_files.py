"""Files of embeddings: what is read is what was written last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attfc_cuda.evaluation.embedding_files import read_embeddings, write_embeddings
from attfc_cuda.evaluation.named_images import NamedEmbeddings


def test_names_of_an_earlier_array_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "gallery.npy"
    for names, who in (("csv", "ann"), ("json", "bob")):
        written = NamedEmbeddings(torch.eye(1, 2), [f"{who}.png"], [who], [])
        write_embeddings(written, file, names)
    words = r"got .*gallery.npy \(gallery.csv and gallery.json beside it: remove the older one"
    with pytest.raises(ValueError, match=words):
        read_embeddings(file)
    (tmp_path / "gallery.csv").unlink()
    assert read_embeddings(file).identities == ["bob"]
