"""Verification sets with their images in memory, from pair lists or from a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from attfc_cuda._check import error
from attfc_cuda.data import FaceDataset, read_image
from attfc_cuda.evaluation.pairs import identities_of_files, make_pairs, pair_capacity, read_pairs
from attfc_cuda.evaluation.sets import IdentitySet, ReadableImages, VerificationSet

FOLDS = 10


def from_list(path: Path, root: Path, image_size: int) -> VerificationSet:
    """The set of one pair list, named after its file.

    Args:
        path: Pair list, as for `read_pairs`.
        root: Folder that the paths in it start from.
        image_size: Side in pixels that the images are resized to.

    Raises:
        ValueError: For a line that is no pair.
        OSError: Naming an image that cannot be read.
    """
    files, pairs = read_pairs(path, root).indices()
    images = torch.stack([read_image(file, image_size) for file in files])
    return VerificationSet(path.stem, images, pairs, identities_of_files(files, pairs), list(map(str, files)))


def from_lists(text: str, root: Path | None, image_size: int) -> list[VerificationSet]:
    """The sets of several pair lists.

    Args:
        text: Paths separated by commas.
        root: Folder that the paths in the lists start from; None: each list's own folder.
        image_size: Side in pixels that the images are resized to.

    Raises:
        FileNotFoundError: Naming a list or an image that is not there.
        ValueError: For two lists of one name, and as `from_list` does.
    """
    paths = [Path(part) for part in split_list(text)]
    for path in paths:
        if not path.is_file():
            raise error("verify", "pairs", "name existing pair lists", path, kind=FileNotFoundError)
    if len({path.stem for path in paths}) < len(paths):
        raise error("verify", "pairs", "name lists with different file names", text, "results are named after them")
    return [from_list(path, root or path.parent, image_size) for path in paths]


def from_dataset(
    name: str, dataset: FaceDataset, num_pairs: int | None = None, seed: int = 0
) -> VerificationSet | IdentitySet:
    """All pairs of a data set; or pairs drawn from it, in ten folds, or as many as it has genuine pairs for.

    Args:
        name: The set's name.
        dataset: Faces by identity.
        num_pairs: Number of pairs to draw, half of them of the same identity; at most as many as there are. None: all.
        seed: Of the draw.

    Raises:
        ValueError: Where there are fewer than two genuine or impostor pairs.
    """
    genuine, impostors = pair_capacity(dataset)
    half = min(genuine, impostors) if num_pairs is None else min(num_pairs // 2, genuine, impostors)
    if half < 2:
        got = f"{genuine} genuine and {impostors} impostor pairs in {name}, {num_pairs or 'all'} pairs wanted"
        remedy = "two identities with two images each make two of either kind"
        raise error("verify", "data", "give at least 2 genuine and 2 impostor pairs", got, remedy)
    if num_pairs is None:
        return IdentitySet(name, ReadableImages(dataset), dataset.labels)
    pairs = make_pairs(dataset, 2 * half if half < num_pairs // 2 else num_pairs, min(FOLDS, half), seed)
    used, position = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
    images = torch.stack([dataset[i] for i in used.tolist()])
    numbered = pairs._replace(a=position[: len(pairs.a)], b=position[len(pairs.a) :])
    return VerificationSet(name, images, numbered, dataset.labels[used], list(map(str, used.tolist())))


def split_list(text: str | None) -> list[str]:
    """`a, b` -> ["a", "b"]; None or nothing -> []."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
