"""Pair lists: which two images are compared, whether they show one person, and in which fold the pair is judged.

A pair is kept in one of two forms. `PairList` names files, as lists on disk do. `PairIndices` numbers images, as a data
set or a matrix of embeddings does. `PairList.indices()` leads from the first to the second, so that every image is
embedded once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from attfc_cuda._check import error, printable
from attfc_cuda.evaluation.lfw_pairs import is_lfw_header, lfw_pairs
from attfc_cuda.evaluation.pair_columns import pair_columns

# At most this many images of one identity take part in impostor pairs while that leaves twice the pairs needed:
# otherwise the few identities with hundreds of images would fill the impostor half.
IMPOSTOR_IMAGES_PER_IDENTITY = 10


class PairIndices(NamedTuple):
    """P pairs of image numbers.

    Attributes:
        a: int64 [P].
        b: int64 [P].
        same: bool [P].
        fold: int64 [P].
    """

    a: np.ndarray
    b: np.ndarray
    same: np.ndarray
    fold: np.ndarray


class PairList(NamedTuple):
    """P pairs of image files.

    Attributes:
        paths_a: P of them.
        paths_b: P of them.
        same: bool [P].
        fold: int64 [P].
    """

    paths_a: list[Path]
    paths_b: list[Path]
    same: np.ndarray
    fold: np.ndarray

    def indices(self) -> tuple[list[Path], PairIndices]:
        """The distinct files, in order of first appearance, and the pairs as numbers into that list."""
        number: dict[Path, int] = {}
        a = np.array([number.setdefault(path, len(number)) for path in self.paths_a], dtype=np.int64)
        b = np.array([number.setdefault(path, len(number)) for path in self.paths_b], dtype=np.int64)
        return list(number), PairIndices(a, b, self.same, self.fold)


class LabelledImages(Protocol):
    """What `make_pairs` needs of a data set.

    Attributes:
        labels: int64 [N], the identity of every image.
    """

    labels: np.ndarray


def read_pairs(path: str | Path, root: str | Path, check_files: bool = True, on_bad_image: str = "raise") -> PairList:
    """Read a pair list: on each line `image_a  image_b  same  fold`; or LFW's own `pairs.txt`.

    Columns are separated by tabs, commas or white space, see `pair_columns`. `same` is 1 or true (genuine), or 0, -1 or
    false (impostor), `fold` any integer; without a fold the pairs of either kind are dealt into ten folds in turn.
    Empty lines, lines that start with #, a heading and a byte order mark are passed over; an image paired with itself
    is left out, with a warning.

    A list whose first line is one or two numbers is one of LFW's, see `lfw_pairs`; root is then LFW's image folder.

    Args:
        path: the list, UTF-8.
        root: the folder its image paths are relative to (absolute paths stand for themselves).
        check_files: look every image up, so that a wrong root is reported before the network has run for minutes.
        on_bad_image: `"raise"`: an image that does not exist is an error; `"skip"`: its pairs are left out and counted
            in a warning. Looked at with `check_files`.

    Raises:
        ValueError: naming the list and the line for a wrong number of columns, a `same` or `fold` that is not one, or a
            list without a pair, or none whose images exist.
        FileNotFoundError: naming both for an image that does not exist.
    """
    path, root = Path(path), Path(root)
    if on_bad_image not in ("raise", "skip"):
        raise error("read_pairs", "on_bad_image", 'be "raise" or "skip"', repr(on_bad_image))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as cause:
        raise error("read_pairs", str(path), "be UTF-8 text", f"{cause.reason} at byte {cause.start}") from cause
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    rows = lfw_pairs(path, lines, root) if is_lfw_header(first) else pair_columns(path, lines)
    paths_a: list[Path] = []
    paths_b: list[Path] = []
    same: list[bool] = []
    fold: list[int] = []
    seen: dict[Path, bool] = {}
    selves: list[str] = []
    missing: list[str] = []
    for line_number, image_a, image_b, is_same, number in rows:
        place = f"line {line_number} of {path}"
        if image_a == image_b:  # its score is 1 for any network: it says nothing
            selves.append(f"{image_a} in {place}")
            continue
        gone = [image for image in (root / image_a, root / image_b) if check_files and not _is_there(image, seen)]
        if gone and on_bad_image == "raise":
            got, remedy = f"{gone[0]}, which does not exist", "check root, the folder the list is relative to"
            raise error("read_pairs", place, "name existing images", got, remedy, kind=FileNotFoundError)
        if gone:
            missing.append(f"{gone[0]} in {place}")
            continue
        paths_a.append(root / image_a)
        paths_b.append(root / image_b)
        same.append(is_same)
        fold.append(number)
    if selves:
        text = f"read_pairs: {len(selves)} pairs of an image with itself are left out, the first is {selves[0]}"
        warnings.warn(printable(text), stacklevel=2)
    if missing:
        text = f"read_pairs: {len(missing)} pairs with a missing image are left out, the first is {missing[0]}"
        warnings.warn(printable(text), stacklevel=2)
    if not same:
        got = f"{len(missing)} pairs whose images do not exist, such as {missing[0]}" if missing else "none"
        raise error("read_pairs", str(path), "hold at least one pair of two images", got)
    return PairList(paths_a, paths_b, np.array(same, dtype=bool), np.array(fold, dtype=np.int64))


def identities_of_files(files: Sequence[Path], pairs: PairIndices) -> np.ndarray | None:
    """Identities [N] of image files that lie in a folder each, as in LFW; None where the pairs say otherwise: genuine
    pairs across folders, or impostors in one."""
    folder = np.unique([str(file.parent) for file in files], return_inverse=True)[1].reshape(-1)
    return folder if np.array_equal(folder[pairs.a] == folder[pairs.b], pairs.same) else None


def _is_there(image: Path, seen: dict[Path, bool]) -> bool:
    if image not in seen:
        seen[image] = os.path.isfile(image)
    return seen[image]


def make_pairs(dataset: LabelledImages, num_pairs: int = 6000, folds: int = 10, seed: int = 0) -> PairIndices:
    """Draw a verification protocol from a labelled data set, in the manner of LFW's View 2.

    Half of each fold's pairs are genuine, half impostor, no pair twice (in either order), folds as equal as `num_pairs`
    allows. Identities are dealt out to the folds so that no identity appears in two of them (a threshold is then always
    judged on people it has not seen); only when some fold could not be filled that way do the folds share identities.
    Genuine pairs are spread over the identities as evenly as their images allow. Impostor pairs are uniform over the
    pairs of images, of at most 10 images of an identity where that suffices. The same arguments draw the same pairs.

    Args:
        dataset: anything with `labels`, int64 [N]; negative labels are left out.
        num_pairs: pairs of both kinds together.
        folds: at least 2.
        seed: of the draw.

    Returns:
        PairIndices, folds numbered from 0.

    Source:
        Huang et al., UMass TR 07-49 (2007), for the shape of the protocol; the drawing is our choice.

    Raises:
        ValueError: for fewer than 2 folds, fewer than 2 pairs a fold, or when the data set holds too few pairs, saying
            how many there are.
    """
    labels = np.asarray(dataset.labels)
    if folds < 2:
        raise error("make_pairs", "folds", "be at least 2 (the threshold is chosen on the other folds)", folds)
    if num_pairs < 2 * folds:
        raise error("make_pairs", "num_pairs", f"be at least 2 per fold, {2 * folds}", num_pairs)
    rng = np.random.default_rng(seed)
    # An odd fold gets its extra pair among the genuine ones in even folds and among the impostors in odd ones.
    sizes = _shares(num_pairs, folds)
    quotas = [((size + (1 - k % 2)) // 2, (size + k % 2) // 2) for k, size in enumerate(sizes)]

    identities = _images_by_identity(labels, rng)
    dealt = [identities[k::folds] for k in range(folds)]
    if all(
        _genuine_capacity(hand) >= genuine and _impostor_capacity(hand) >= impostor
        for hand, (genuine, impostor) in zip(dealt, quotas, strict=True)
    ):
        drawn = [
            (_draw_genuine(hand, genuine, rng), _draw_impostors(hand, impostor, rng))
            for hand, (genuine, impostor) in zip(dealt, quotas, strict=True)
        ]
    else:
        num_genuine, num_impostor = (sum(quota) for quota in zip(*quotas, strict=True))
        for kind, needed, present in (
            ("genuine", num_genuine, _genuine_capacity(identities)),
            ("impostor", num_impostor, _impostor_capacity(identities)),
        ):
            if present < needed:
                raise error(
                    "make_pairs",
                    "num_pairs",
                    f"need no more {kind} pairs than the data set holds, {present}",
                    needed,
                    "ask for fewer pairs",
                )
        ends = np.cumsum(quotas, axis=0)[:-1]
        genuine_parts = np.split(_draw_genuine(identities, num_genuine, rng), ends[:, 0])
        impostor_parts = np.split(_draw_impostors(identities, num_impostor, rng), ends[:, 1])
        drawn = list(zip(genuine_parts, impostor_parts, strict=True))

    pairs = np.concatenate([part for both in drawn for part in both])
    counts = [len(part) for both in drawn for part in both]
    same = np.repeat(np.tile([True, False], folds), counts)
    fold = np.repeat(np.repeat(np.arange(folds, dtype=np.int64), 2), counts)
    return PairIndices(pairs[:, 0], pairs[:, 1], same, fold)


def pair_capacity(dataset: LabelledImages) -> tuple[int, int]:
    """How many genuine and impostor pairs there are among a data set's images; negative labels are left out."""
    labels = np.asarray(dataset.labels)
    counts = np.unique(labels[labels >= 0], return_counts=True)[1].tolist()
    identities = [range(count) for count in counts]
    return _genuine_capacity(identities), _impostor_capacity(identities)


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (k < total % parts) for k in range(parts)]


def _images_by_identity(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The image numbers of each identity: in random order, but identities with more images first, so that dealing them
    out in turn gives every fold its share of the large ones."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    _, starts = np.unique(labels[order], return_index=True)
    groups = np.split(order, starts[1:]) if len(order) else []
    shuffled = [groups[k] for k in rng.permutation(len(groups))]
    return sorted(shuffled, key=len, reverse=True)


def _genuine_capacity(identities: Sequence[Sized]) -> int:
    return sum(len(images) * (len(images) - 1) // 2 for images in identities)


def _impostor_capacity(identities: Sequence[Sized]) -> int:
    counts = [len(images) for images in identities]
    return (sum(counts) ** 2 - sum(count * count for count in counts)) // 2


def _draw_genuine(identities: Sequence[np.ndarray], quota: int, rng: np.random.Generator) -> np.ndarray:
    """`quota` distinct pairs [quota, 2] within identities, as evenly over the identities as their pairs last; in random
    order, since the caller may cut the result into folds."""
    shuffled = [identities[k] for k in rng.permutation(len(identities))]
    capacity = np.array([len(images) * (len(images) - 1) // 2 for images in shuffled], dtype=np.int64)
    take = np.zeros_like(capacity)
    while quota > take.sum():
        open_identities = np.flatnonzero(take < capacity)
        take[open_identities[: quota - take.sum()]] += 1
    pairs = []
    for images, count in zip(shuffled, take, strict=True):
        if count:
            first, second = np.triu_indices(len(images), k=1)
            chosen = rng.choice(len(first), size=count, replace=False)
            pairs.append(np.stack([images[first[chosen]], images[second[chosen]]], axis=1))
    return rng.permutation(np.concatenate(pairs))


def _draw_impostors(identities: Sequence[np.ndarray], quota: int, rng: np.random.Generator) -> np.ndarray:
    """`quota` distinct pairs [quota, 2] across identities, uniform over the pairs of images (see make_pairs)."""
    few = [rng.permutation(images)[:IMPOSTOR_IMAGES_PER_IDENTITY] for images in identities]
    pool = few if _impostor_capacity(few) >= 2 * quota else identities
    images = np.concatenate(pool)
    counts = np.array([len(group) for group in pool], dtype=np.int64)
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(pool)), counts)
    capacity = _impostor_capacity(pool)
    if capacity < 2 * quota:  # nearly all of them are wanted: list them
        first, second = np.triu_indices(len(images), k=1)
        across = owner[first] != owner[second]
        chosen = rng.choice(capacity, size=quota, replace=False)
        return np.stack([images[first[across][chosen]], images[second[across][chosen]]], axis=1)
    # An image takes part in N - (images of its identity) pairs; its partner is uniform over those N - n others, which
    # are numbered by skipping the identity's own run.
    partners = (len(images) - counts)[owner]
    drawn: dict[tuple[int, int], None] = {}
    while len(drawn) < quota:
        first = rng.choice(len(images), size=quota, p=partners / partners.sum())
        second = rng.integers(partners[first])
        second += np.where(second >= starts[owner[first]], counts[owner[first]], 0)
        for i, j in zip(np.minimum(first, second).tolist(), np.maximum(first, second).tolist(), strict=True):
            drawn.setdefault((i, j))
    chosen = rng.permutation(np.array(list(drawn)[:quota], dtype=np.int64))
    return images[chosen]
