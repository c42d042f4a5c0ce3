"""Verification sets from pair lists, InsightFace's .bin files or a data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
    images, pairs, kept = _readable(
        str(path), lambda number: read_image(files[number], image_size), len(files), pairs, on_bad_image
    )
    files = [files[number] for number in kept]
    names = list(map(str, files))
    return VerificationSet(path.stem, images, pairs, identities_of_files(files, pairs), names)


def _readable(
    source: str, read: Callable[[int], Tensor], count: int, pairs: PairIndices, on_bad_image: str
) -> tuple[Tensor, PairIndices, list[int]]:
    """The images of pairs in memory, the pairs of those that can be read, and the numbers that these had.

    Args:
        source: For messages.
        read: Image 0 to count - 1; `UnreadableImage`.
        count: Of the images.
        pairs: Of them.
        on_bad_image: As for `from_list`.

    Raises:
        ValueError: Where no pair is left.
    """
    images, damaged, first = [], [], ""
    for number in range(count):
        try:
            images.append(read(number))
        except UnreadableImage as cause:
            if on_bad_image == "raise":
                raise
            damaged.append(number)
            first = first or str(cause)
    if damaged:
        pairs, left_out = without_images(pairs, np.array(damaged), count)
        text = f"{left_out} pairs with an image that cannot be decoded are left out, the first image: {first}"
        warnings.warn(printable(f"verify: {source}: {text}"), stacklevel=3)
        if len(pairs.same) == 0:
            raise error("verify", source, "hold at least one pair of two images that can be read", "none")
    return torch.stack(images), pairs, np.setdiff1d(np.arange(count), damaged).tolist()


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

    Drawn pairs with an image that cannot be read are left out and counted in a warning, where the data set skips such.

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
    numbered = pairs._replace(a=position[: len(pairs.a)], b=position[len(pairs.a) :])
    images, numbered, kept = _readable(
        name, lambda number: dataset[int(used[number])], len(used), numbered, dataset.on_bad_image
    )
    used = used[kept]
    return VerificationSet(name, images, numbered, dataset.labels[used], list(map(str, used.tolist())))


def split_list(text: str | None) -> list[str]:
    """`a, b` -> ["a", "b"]; None or nothing -> []."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
