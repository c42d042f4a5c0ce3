"""Some of a data set's identities kept from training, to verify on."""

from __future__ import annotations

import numpy as np
import torch

from attfc_cuda.data.faces import FaceDataset
from attfc_cuda.data.identities import NumberNames
from attfc_cuda.data.sources.duplicates import digest

# Our choice. Fewer than four identities make hardly an impostor, and a fifth of the data is much to lose; 10^4 images
# have 5 x 10^7 pairs, and more cost minutes at each verification.
FEWEST_HELD_OUT, FEWEST_IDENTITIES, MOST_IMAGES = 4, 20, 10_000


class SomeIdentities(FaceDataset):
    """The images of some identities of another data set, under labels from 0 on in the order of theirs there.

    Args:
        dataset: The other.
        labels: int64 [C], ascending, the labels there.

    Attributes:
        dataset: The other.
    """

    def __init__(self, dataset: FaceDataset, labels: np.ndarray) -> None:
        self.dataset = dataset
        place = np.full(len(dataset.identities), -1, dtype=np.int64)
        place[labels] = np.arange(len(labels))
        taken = np.flatnonzero(place[dataset.labels] >= 0)
        names = dataset.identities
        some = NumberNames(names.numbers[labels]) if isinstance(names, NumberNames) else [names[k] for k in labels]
        super().__init__(place[dataset.labels[taken]], some, dataset.image_size)
        self.on_bad_image = dataset.on_bad_image
        self._taken = taken.astype(dataset.labels.dtype)

    def report(self) -> str:
        rest = f"{len(self.identities)} identities, {len(self)} images"
        return f"{self.dataset.report()}\n  of these are trained on: {rest}; the others are held out"

    def index(self, index: int) -> int:
        """The number in the other data set of image `index`."""
        return int(self._taken[index])

    def _load(self, index: int) -> torch.Tensor:
        return self.dataset[self.index(index)]


def hold_out(dataset: FaceDataset, share: float) -> tuple[FaceDataset, FaceDataset | None]:
    """Part a data set by identities, the same way at each call, whatever its order.

    Identities are taken in the order of a hash of their names, so that one that is added moves few others. Only those
    with two images or more are: at least `FEWEST_HELD_OUT` of them, and with at most `MOST_IMAGES` images.

    Args:
        dataset: All of it.
        share: Of the identities with two images or more to hold out.

    Returns:
        What to train on, and what is held out: None, and all to train on, for share 0 or under `FEWEST_IDENTITIES`
        identities with two images.
    """
    counts = np.diff(dataset.offsets)
    pairs = np.flatnonzero(counts >= 2)
    if share == 0 or len(pairs) < FEWEST_IDENTITIES:
        return dataset, None
    wanted = max(FEWEST_HELD_OUT, round(share * len(pairs)))
    names = (dataset.identities[k].encode("utf-8", "surrogateescape") for k in pairs.tolist())
    marks = np.fromiter(map(digest, names), dtype=np.uint64, count=len(pairs))
    chosen = pairs[np.argsort(marks, kind="stable")[:wanted]]
    fit = int(np.searchsorted(np.cumsum(counts[chosen]), MOST_IMAGES, side="right"))
    held = np.sort(chosen[: max(FEWEST_HELD_OUT, fit)])
    rest = np.setdiff1d(np.arange(len(counts)), held)
    return SomeIdentities(dataset, rest), SomeIdentities(dataset, held)
