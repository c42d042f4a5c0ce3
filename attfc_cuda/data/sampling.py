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
from attfc_cuda.data.shared_galleries import Gallery, GroupedProbes, share_galleries

_WORDS_PER_BLOCK = 4
MOST_PROBES = 64
"""Of an identity, that can be drawn together."""


class BatchPlan(NamedTuple):
    """Image indices of one batch and which of them to mirror: probe [B], gallery [B,r], negatives [M].

    Where probes share gallery images, each of these comes once: gallery [U]; where steps share them, in the first of
    the steps, and gallery is empty in the others.

    gallery_rows: int64 [B,r], the gallery images of each probe, as numbers of those in the last `gallery` that was not
        empty.
    seeds: uint64 [B + gallery.size + M], of each image's augmentation, in the order probe, gallery, negatives; [0]
        without.
    """

    probe: np.ndarray
    gallery: np.ndarray
    negatives: np.ndarray
    mirror_probe: np.ndarray
    mirror_gallery: np.ndarray
    mirror_negatives: np.ndarray
    seeds: np.ndarray
    gallery_rows: np.ndarray


class _SingleImages:
    """The slots of the images of chosen identities, in random order: 8 bytes an identity instead of 8 an image.

    Args:
        offsets: [C + 1], where the slots of each identity begin.
        chosen: bool [C].
        seed, stream, stored: See `EpochOrder`.
    """

    def __init__(
        self, offsets: np.ndarray, chosen: np.ndarray, seed: int, stream: int, stored: bool | None = None
    ) -> None:
        self._offsets = offsets
        self._ends = np.cumsum(np.where(chosen, np.diff(offsets), 0))
        self.count = int(self._ends[-1])
        self._order = EpochOrder(self.count, seed, stream, stored)
        self.stored = self._order.stored

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The slots at these positions of the epoch, int64."""
        numbers = self._order.at(epoch, positions)
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
        probes_per_identity: int = 1,
        gallery_steps: int = 1,
    ):
        here = "AttentionLoader"
        self.batch_size = checked_int(here, "batch_size", batch_size, 1)
        # The random word that mirrors a row has a bit for the probe and one for each gallery image.
        self.gallery_size = checked_int(here, "gallery_size", gallery_size, 0, 63)
        self.probes_per_identity = checked_int(here, "probes_per_identity", probes_per_identity, 1, MOST_PROBES)
        self.gallery_steps = checked_int(here, "gallery_steps", gallery_steps, 1, MOST_PROBES)
        self.group = self.probes_per_identity * self.gallery_steps  # probes that share a gallery
        if self.group > MOST_PROBES:
            rule = f"make at most {MOST_PROBES} with {self.probes_per_identity} probes of an identity a step"
            raise error(here, "gallery_steps", rule, self.gallery_steps)
        self.seed = checked_int(here, "seed", seed, 0, MAX_SEED)
        self.min_images = checked_int(here, "min_images", min_images, 1)
        self.world_size = checked_int(here, "world_size", world_size, 1)
        self.rank = checked_int(here, "rank", rank, 0, self.world_size - 1)
        self._images_at, self.offsets = dataset.images_at, dataset.offsets
        self.set_stored_order(None)
        self.num_probes, self.num_negatives = self._probes.count, self._negatives.count
        if self.num_probes == 0:
            raise error(
                here, "dataset", f"have an identity with at least min_images = {self.min_images} images",
                f"at most {self.counts.max()} images for an identity", "add images or lower min_images",
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

    @property
    def counts(self) -> np.ndarray:
        """The number of images of each identity, int64 [C]."""
        return np.diff(self.offsets)

    @property
    def stored_order(self) -> bool:
        """Whether all orders of an epoch are drawn as a whole, see `EpochOrder`."""
        return self._probes.stored and self._negatives.stored

    def set_stored_order(self, stored: bool | None) -> None:
        """Draw the order of an epoch as a whole, as earlier releases did for any number of images; None: by size."""
        offsets, seed, has_probes = self.offsets, self.seed, self.counts >= self.min_images
        self._probes: _SingleImages | GroupedProbes
        if self.group == 1:
            self._probes = _SingleImages(offsets, has_probes, seed, PROBE_ORDER, stored)
        else:
            self._probes = GroupedProbes(offsets, has_probes, self.group, seed, stored)
        self._negatives = _SingleImages(offsets, ~has_probes, seed, NEGATIVE_ORDER, stored)
        self._drawn_of: tuple[int, range] | None = None

    def steps_of_gallery(self, batch: int) -> range:
        """The batches that share their gallery images with this one; a last, short batch has its own."""
        first = batch - batch % self.gallery_steps
        whole = self.used_probes // self.batch_size
        return range(first, min(first + self.gallery_steps, whole)) if batch < whole else range(batch, batch + 1)

    def plan(
        self, epoch: int, batch: int, mirror: bool, augmented: bool = False, with_gallery: bool = False
    ) -> BatchPlan:
        """This process's part of a batch: rows floor(B rank / world_size) to floor(B (rank + 1) / world_size) of all,
        and so many of its negatives. `with_gallery`: also in a step that is not the first of its gallery's."""
        whole, rows_of_steps = self._whole_plan(epoch, batch, mirror, augmented)
        if batch != self.steps_of_gallery(batch)[0] and not with_gallery:
            seeds = whole.seeds
            if len(seeds):
                seeds = np.delete(seeds, np.s_[len(whole.probe) : len(whole.probe) + whole.gallery.size])
            nothing = {"gallery": whole.gallery[:0], "mirror_gallery": whole.mirror_gallery[:0], "seeds": seeds}
            whole = whole._replace(**nothing)
        if self.world_size == 1:
            return whole

        def mine(values: np.ndarray) -> np.ndarray:
            first, stop = (len(values) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            return values[first:stop]

        rows = mine(whole.gallery_rows)
        if whole.gallery.ndim == 1:  # images that the probes here share, with each other or with another process's
            of_mine = np.unique([mine(rows_of_step) for rows_of_step in rows_of_steps])
            rows = np.searchsorted(of_mine, rows)
            of_mine = of_mine[: len(of_mine) if len(whole.gallery) else 0]
        else:
            of_mine, rows = rows, np.arange(rows.size).reshape(rows.shape)

        def cut(probe: np.ndarray, gallery: np.ndarray, negatives: np.ndarray) -> list[np.ndarray]:
            return [mine(probe), gallery.reshape(-1)[of_mine], mine(negatives)]

        seeds = whole.seeds
        if len(seeds):  # one an image
            one_each = np.split(seeds, np.cumsum([images.size for images in whole[:2]]))
            seeds = np.concatenate([part.reshape(-1) for part in cut(*one_each)])
        return BatchPlan._make([*cut(*whole[:3]), *cut(*whole[3:6]), seeds, rows])

    def _whole_plan(self, epoch: int, batch: int, mirror: bool, augmented: bool) -> tuple[BatchPlan, np.ndarray]:
        """The batch of all processes together, with its gallery; and the gallery_rows of all of the gallery's steps."""
        steps = self.steps_of_gallery(batch)
        if (epoch, steps) != self._drawn_of:
            self._drawn_of, self._drawn = (epoch, steps), self._draw(epoch, steps)
        slots, mirror_probe, gallery, mirror_gallery = self._drawn
        # Row i of each step comes from the same part of the line, where probes that share a gallery lie together.
        of_step = self._rows_of_steps(len(slots) // len(steps), len(steps))
        here = of_step[batch - steps[0]]
        negatives, mirror_negatives, first_negative = self._negatives_of(epoch, batch)
        seeds = np.empty(0, dtype=np.uint64)
        if augmented:
            most = self.gallery_size + (self.group > 1)  # of an identity, or of a probe
            of_rows = self._words(AUGMENTATION, epoch, steps[0] * self.batch_size, len(slots), 1 + most)
            of_negatives = self._words(NEGATIVE_AUGMENTATION, epoch, first_negative, len(negatives), 1)
            of_gallery = of_rows[gallery.probe, 1 + gallery.place]
            seeds = np.concatenate([of_rows[here, 0], of_gallery.reshape(-1), of_negatives[:, 0]])
        mirrored = (bits & np.uint64(mirror) for bits in (mirror_probe[here], mirror_gallery, mirror_negatives))
        images = map(self._images_at, (slots[here], gallery.slots, negatives))
        plan = BatchPlan._make([*images, *(bits.astype(bool) for bits in mirrored), seeds, gallery.rows[here]])
        return plan, gallery.rows[of_step]

    def _draw(self, epoch: int, steps: range) -> tuple[np.ndarray, np.ndarray, Gallery, np.ndarray]:
        """For some steps together: slots of the probes and random bits to mirror them, and the same of the gallery."""
        first = steps[0] * self.batch_size
        positions = np.arange(first, min(steps.stop * self.batch_size, self.used_probes))
        slots = self._probes.at(epoch, positions)
        words = self._words(PICKS, epoch, first, len(slots), max(1 + self.gallery_size, 3))
        if self.group == 1:
            gallery = self._own_galleries(slots, unit_interval(words[:, 1 : 1 + self.gallery_size]))
            mirror_gallery = words[gallery.probe, 0] >> (gallery.place + 1).astype(np.uint64)
        else:
            gallery = share_galleries(self.offsets, slots, words[:, 1], self.gallery_size)
            mirror_gallery = words[gallery.probe, 2] >> gallery.place.astype(np.uint64)
        return slots, words[:, 0] & np.uint64(1), gallery, mirror_gallery & np.uint64(1)

    def _rows_of_steps(self, rows: int, steps: int) -> np.ndarray:
        """Positions of the rows of each of some steps among those of all of them, [steps, rows]: `probes_per_identity`
        neighbours a step, then so many in the next, and again from the first."""
        together = self.probes_per_identity
        line = np.arange(steps * rows)
        whole = rows - rows % together
        parts = line[: steps * whole].reshape(-1, steps, together), line[steps * whole :].reshape(1, steps, -1)
        return np.concatenate([part.swapaxes(0, 1).reshape(steps, -1) for part in parts], axis=1)

    def _words(self, stream: int, epoch: int, first: int, rows: int, per_row: int) -> np.ndarray:
        """Random words of consecutive positions of the epoch, uint64 [rows, per_row], the same in any batch size."""
        blocks = -(-per_row // _WORDS_PER_BLOCK)
        count = rows * blocks * _WORDS_PER_BLOCK
        words = random_words(self.seed, stream, count, start=int(first) * blocks, major=epoch)
        return words.reshape(rows, blocks * _WORDS_PER_BLOCK)[:, :per_row]

    def _own_galleries(self, slots: np.ndarray, unit: np.ndarray) -> Gallery:
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
        places = np.indices(unit.shape)
        return Gallery(start[:, None] + out[:, 1:], np.arange(unit.size).reshape(unit.shape), *places)

    def _negatives_of(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Slots of a batch's negatives, their random words, and the position of the first in the epoch."""
        if self.negatives_per_batch is None:
            first, stop = (self.num_negatives * k // self.num_batches for k in (batch, batch + 1))
        else:
            first, stop = batch * self.negatives_per_batch, (batch + 1) * self.negatives_per_batch
        if first == stop:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64), first
        slots = self._negatives.at(epoch, np.arange(first, stop) % self.num_negatives)
        return slots, self._words(NEGATIVE_FLIPS, epoch, first, stop - first, 1)[:, 0], first
