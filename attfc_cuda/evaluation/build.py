"""Verification sets from pair lists, InsightFace's .bin files or a data set."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from attfc_cuda._check import error, printable
from attfc_cuda.data import FaceDataset, UnreadableImage, read_image
from attfc_cuda.evaluation.bins import read_bin
from attfc_cuda.evaluation.pairs import PairIndices, identities_of_files, make_pairs, pair_capacity, read_pairs
from attfc_cuda.evaluation.sets import IdentitySet, ReadableImages, VerificationSet

FOLDS = 10


def from_list(path: Path, root: Path, image_size: int, on_bad_image: str = "raise") -> VerificationSet:
    """The set of one pair list, its images in memory, named after its file.

    Args:
        path: Pair list, as for `read_pairs`.
        root: Folder that the paths in it start from.
        image_size: Side in pixels that the images are resized to.
        on_bad_image: `"raise"`, or `"skip"`: the pairs of an image that is missing or cannot be decoded are left out
            and counted in a warning.

    Raises:
        ValueError: For a line that is no pair, or no pair that can be read.
        OSError: Naming an image that cannot be read.
    """
    files, pairs = read_pairs(path, root, on_bad_image=on_bad_image).indices()
    images, damaged = [], []
    for number, file in enumerate(files):
        try:
            images.append(read_image(file, image_size))
        except UnreadableImage:
            if on_bad_image == "raise":
                raise
            damaged.append(number)
    if damaged:
        pairs, count = without_images(pairs, np.array(damaged), len(files))
        text = (
            f"{count} pairs with an image that cannot be decoded are left out, the first image is {files[damaged[0]]}"
        )
        warnings.warn(printable(f"verify: {path}: {text}"), stacklevel=2)
        if len(pairs.same) == 0:
            raise error("verify", str(path), "hold at least one pair of two images that can be read", "none")
        gone = set(damaged)
        files = [file for number, file in enumerate(files) if number not in gone]
    names = list(map(str, files))
    return VerificationSet(path.stem, torch.stack(images), pairs, identities_of_files(files, pairs), names)


def without_images(pairs: PairIndices, images: np.ndarray, count: int) -> tuple[PairIndices, int]:
    """Pairs without those of some images, which are numbered as if these had never been; how many were left out.

    Args:
        pairs: Of images 0 to count - 1.
        images: int64, numbers of those that go.
        count: Number of all images.
    """
    stays = np.ones(count, dtype=bool)
    stays[images] = False
    kept, number = stays[pairs.a] & stays[pairs.b], np.cumsum(stays) - 1
    left = PairIndices(number[pairs.a[kept]], number[pairs.b[kept]], pairs.same[kept], pairs.fold[kept])
    return left, int((~kept).sum())


def from_lists(text: str, root: Path | None, image_size: int, on_bad_image: str = "raise") -> list[VerificationSet]:
    """The sets of several pair lists and .bin files (`read_bin`).

    Args:
        text: Paths separated by commas.
        root: Folder that the paths in the lists start from; None: each list's own folder.
        image_size: Side in pixels that the images are resized to.
        on_bad_image: As for `from_list`.

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
    return [
        read_bin(path, image_size)
        if _is_pickle(path)
        else from_list(path, root or path.parent, image_size, on_bad_image)
        for path in paths
    ]


def _is_pickle(path: Path) -> bool:
    """Whether a file is a .bin set rather than a text: by its name, or by how a pickle begins (from protocol 2 on)."""
    if path.suffix.lower() == ".bin":
        return True
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"


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
