"""Which images make which batch: arithmetic on index arrays, no image is touched.

Every batch is a pure function of (seed, epoch, batch), so a run resumes anywhere. A batch is that of all processes of a
run together; each takes its part of it, so that neither their number nor that of loader workers changes what a step
sees. A batch costs what its rows cost, whatever the size of the data set, and all that is held is a few numbers an
identity.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from attfc_cuda._check import error
from attfc_cuda.data._checks import MAX_SEED, checked_int
from attfc_cuda.data._random import (
    AUGMENTATION,
    NEGATIVE_AUGMENTATION,
    NEGATIVE_FLIPS,
    NEGATIVE_ORDER,
    PICKS,
    PROBE_ORDER,
    random_words,
    unit_interval,
)
from attfc_cuda.data.faces import FaceDataset
from attfc_cuda.data.permutation import EpochOrder

_WORDS_PER_BLOCK = 4


class BatchPlan(NamedTuple):
    """Image indices of one batch and which of them to mirror: probe [B], gallery [B,r], negatives [M].

    seeds: uint64 [B + B r + M], of each image's augmentation, in the order probe, gallery, negatives; [0] without.
    """

    probe: np.ndarray
    gallery: np.ndarray
    negatives: np.ndarray
    mirror_probe: np.ndarray
    mirror_gallery: np.ndarray
    mirror_negatives: np.ndarray
    seeds: np.ndarray


class _Slots:
    """The slots of the images of chosen identities, by number: 8 bytes an identity instead of 8 an image."""

    def __init__(self, offsets: np.ndarray, chosen: np.ndarray) -> None:
        self._offsets = offsets
        self._ends = np.cumsum(np.where(chosen, np.diff(offsets), 0))
        self.count = int(self._ends[-1])

    def at(self, numbers: np.ndarray) -> np.ndarray:
        label = np.searchsorted(self._ends, numbers, side="right")
        return self._offsets[label + 1] - (self._ends[label] - numbers)


class AttentionSampler:
    """The plan of every batch of every epoch, and one process's part of it; arguments as in `AttentionLoader`.

    A slot is a position in the data set's `order`, where the images of an identity lie side by side.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        batch_size: int,
        gallery_size: int,
        seed: int,
        min_images: int,
        negatives_per_batch: int | str,
        drop_last: bool,
        rank: int,
        world_size: int,
    ):
        here = "AttentionLoader"
        self.batch_size = checked_int(here, "batch_size", batch_size, 1)
        # The random word that mirrors a row has a bit for the probe and one for each gallery image.
        self.gallery_size = checked_int(here, "gallery_size", gallery_size, 0, 63)
        self.seed = checked_int(here, "seed", seed, 0, MAX_SEED)
        self.min_images = checked_int(here, "min_images", min_images, 1)
        self.world_size = checked_int(here, "world_size", world_size, 1)
        self.rank = checked_int(here, "rank", rank, 0, self.world_size - 1)
        self._images_at, self.offsets = dataset.images_at, dataset.offsets
        counts = self.counts
        self._probes = _Slots(self.offsets, counts >= self.min_images)
        self._negative_slots = _Slots(self.offsets, counts < self.min_images)
        self.num_probes, self.num_negatives = self._probes.count, self._negative_slots.count
        if self.num_probes == 0:
            raise error(
                here, "dataset", f"have an identity with at least min_images = {self.min_images} images",
                f"at most {counts.max()} images for an identity", "add images or lower min_images",
            )  # fmt: skip

        if self.batch_size < self.world_size:
            rule = f"hold at least a probe for each of the {self.world_size} processes"
            raise error(here, "batch_size", rule, self.batch_size, "it counts the rows of all processes together")
        # With drop_last, what does not fill a batch sits out: other images in the next epoch.
        last = self.num_probes % self.batch_size
        self.used_probes = self.num_probes - (last if drop_last else 0)
        self.num_batches = -(-self.used_probes // self.batch_size)
        if self.num_batches == 0:
            raise error(
                here, "batch_size", f"fit into an epoch of {self.num_probes} probe images", self.batch_size,
                "lower it, add images or set drop_last=False",
            )  # fmt: skip
        if not drop_last and 0 < last < self.world_size:
            got = f"False with {last} rows in the last batch for {self.world_size} processes"
            raise error(here, "drop_last", "leave a row to each process", got, "set drop_last=True")

        if negatives_per_batch == "auto":
            self.negatives_per_batch = None
        elif isinstance(negatives_per_batch, str):
            raise error(here, "negatives_per_batch", 'be "auto" or an int', repr(negatives_per_batch))
        else:
            wanted = checked_int(here, "negatives_per_batch", negatives_per_batch, 0)
            self.negatives_per_batch = min(wanted, self.num_negatives)
        self.set_stored_order(None)

    @property
    def counts(self) -> np.ndarray:
        """The number of images of each identity, int64 [C]."""
        return np.diff(self.offsets)

    @property
    def stored_order(self) -> bool:
        """Whether the order of an epoch is drawn as a whole, see `EpochOrder`."""
        return self._probe_order.stored

    def set_stored_order(self, stored: bool | None) -> None:
        """Draw the order of an epoch as a whole, as earlier releases did for any number of images; None: by size."""
        self._probe_order = EpochOrder(self.num_probes, self.seed, PROBE_ORDER, stored)
        self._negative_order = EpochOrder(self.num_negatives, self.seed, NEGATIVE_ORDER, stored)

    def plan(self, epoch: int, batch: int, mirror: bool, augmented: bool = False) -> BatchPlan:
        """This process's part of a batch: rows floor(B rank / world_size) to floor(B (rank + 1) / world_size) of
        `whole_plan`, and so many of its negatives."""
        whole = self.whole_plan(epoch, batch, mirror, augmented)
        if self.world_size == 1:
            return whole

        def mine(values: np.ndarray) -> np.ndarray:
            first, stop = (len(values) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            return values[first:stop]

        *parts, seeds = whole
        if len(seeds):
            # One seed an image, in the order of the first three arrays: cut with them.
            sizes = [images.size for images in parts[:3]]
            seeds_of_parts = np.split(seeds, np.cumsum(sizes)[:-1])
            cut = (mine(own.reshape(images.shape)) for own, images in zip(seeds_of_parts, parts[:3], strict=True))
            seeds = np.concatenate([own.reshape(-1) for own in cut])
        return BatchPlan._make((*map(mine, parts), seeds))

    def whole_plan(self, epoch: int, batch: int, mirror: bool, augmented: bool = False) -> BatchPlan:
        """The batch of all processes together."""
        first = batch * self.batch_size
        positions = np.arange(first, min(first + self.batch_size, self.used_probes))
        rows = len(positions)
        words = self._words(PICKS, epoch, first, rows, 1 + self.gallery_size)
        slots = self._probes.at(self._probe_order.at(epoch, positions))
        gallery = self._gallery_slots(slots, unit_interval(words[:, 1:]))
        bits = (words[:, :1] >> np.arange(1 + self.gallery_size, dtype=np.uint64)) & np.uint64(mirror)

        negatives, negative_bits, first_negative = self._negatives(epoch, batch)
        seeds = np.empty(0, dtype=np.uint64)
        if augmented:
            rows_seeds = self._words(AUGMENTATION, epoch, first, rows, 1 + self.gallery_size)
            negative_seeds = self._words(NEGATIVE_AUGMENTATION, epoch, first_negative, len(negatives), 1)
            seeds = np.concatenate([rows_seeds[:, 0], rows_seeds[:, 1:].reshape(-1), negative_seeds[:, 0]])
        return BatchPlan(
            self._images_at(slots),
            self._images_at(gallery),
            self._images_at(negatives),
            bits[:, 0].astype(bool),
            bits[:, 1:].astype(bool),
            (negative_bits & np.uint64(mirror)).astype(bool),
            seeds,
        )

    def _words(self, stream: int, epoch: int, first: int, rows: int, per_row: int) -> np.ndarray:
        """Random words of consecutive positions of the epoch, uint64 [rows, per_row], the same in any batch size."""
        blocks = -(-per_row // _WORDS_PER_BLOCK)
        count = rows * blocks * _WORDS_PER_BLOCK
        words = random_words(self.seed, stream, count, start=int(first) * blocks, major=epoch)
        return words.reshape(rows, blocks * _WORDS_PER_BLOCK)[:, :per_row]

    def _gallery_slots(self, slots: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """r slots of each slot's identity, [B,r]: never the probe's own and none twice, as long as there are others.

        Column k draws one of the images not drawn yet: a number below their count, then stepped over each image that is
        out, in ascending order. With all others drawn, only the probe stays out, and images repeat.
        """
        label = np.searchsorted(self.offsets, slots, side="right") - 1
        start, others = self.offsets[label], self.offsets[label + 1] - self.offsets[label] - 1
        own = slots - start
        out = own[:, None]
        for k in range(unit.shape[1]):
            fresh = others > k
            choice = (unit[:, k] * np.where(fresh, others - k, others)).astype(np.int64)
            for column in np.sort(out, axis=1).T:
                choice += fresh & (choice >= column)
            choice += ~fresh & (choice >= own) & (others > 0)
            out = np.concatenate([out, choice[:, None]], axis=1)
        return start[:, None] + out[:, 1:]

    def _negatives(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Slots of a batch's negatives, their random words, and the position of the first in the epoch."""
        if self.negatives_per_batch is None:
            first, stop = (self.num_negatives * k // self.num_batches for k in (batch, batch + 1))
        else:
            first, stop = batch * self.negatives_per_batch, (batch + 1) * self.negatives_per_batch
        if first == stop:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64), first
        slots = self._negative_slots.at(self._negative_order.at(epoch, np.arange(first, stop) % self.num_negatives))
        return slots, self._words(NEGATIVE_FLIPS, epoch, first, stop - first, 1)[:, 0], first
