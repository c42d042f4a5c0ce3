"""Batches of P identities x K probes, and the gallery images that the probes of an identity share.

The images of an identity are cut into groups of K, and what is left over is a smaller group. Groups of a size lie one
after the other, in an order of their own for each epoch, and every K positions of that line are a run; an epoch is the
runs in random order. So a batch needs no more than its own rows: a run holds a whole group of K, or smaller groups that
fill it, some of them cut at its ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from attfc_cuda.data._random import GROUP_ORDER, IMAGE_ORDER, PROBE_ORDER, random_words
from attfc_cuda.data.permutation import EpochOrder, hashed


class _Images(NamedTuple):
    """All images of the identities that some rows are of, identity after identity.

    Attributes:
        of_row: [B], the number of the row's identity among them.
        first: [G + 1], where an identity's images begin.
        slots: [N], of each image.
        owner: [N], the identity's number.
    """

    of_row: np.ndarray
    first: np.ndarray
    slots: np.ndarray
    owner: np.ndarray

    @staticmethod
    def of(offsets: np.ndarray, labels: np.ndarray) -> _Images:
        identities, of_row = np.unique(labels, return_inverse=True)
        counts = offsets[identities + 1] - offsets[identities]
        first = np.concatenate([[0], np.cumsum(counts)])
        owner = np.repeat(np.arange(len(identities)), counts)
        return _Images(of_row, first, np.arange(first[-1]) - first[owner] + offsets[identities][owner], owner)


class GroupedProbes:
    """The slot of the probe at each position of an epoch, every image once.

    Args:
        offsets: [C + 1], where the slots of each identity begin.
        chosen: bool [C], the identities that have probes.
        group: K, images of a group.
        seed: Of the run.
        stored: See `EpochOrder`.
    """

    def __init__(
        self, offsets: np.ndarray, chosen: np.ndarray, group: int, seed: int, stored: bool | None = None
    ) -> None:
        self._offsets, self._group, self._seed = offsets, group, seed
        counts = np.where(chosen, np.diff(offsets), 0)
        self._ends_of_groups = np.cumsum(counts // group)
        left = counts % group
        # Identities by the size of the group that is left over, largest first, and how many of each size.
        self._left_over = np.argsort(-left, kind="stable")[: np.count_nonzero(left)].astype(np.int32)
        sizes = np.bincount(left, minlength=group)[:0:-1]
        self._sizes = np.arange(group - 1, 0, -1)
        self._first_of_size = np.concatenate([[0], np.cumsum(sizes)])
        self._whole = int(self._ends_of_groups[-1]) * group
        self._ends_of_sizes = self._whole + np.cumsum(sizes * self._sizes)
        self.count = int(counts.sum())
        self._runs = EpochOrder(self.count // group, seed, PROBE_ORDER, stored)
        # Orders of one stream have to differ: each size has an epoch number of its own.
        self._orders = [EpochOrder(int(size), seed, GROUP_ORDER, stored) for size in sizes]

    @property
    def stored(self) -> bool:
        """Whether all orders of an epoch are drawn as a whole."""
        return all(order.stored for order in (self._runs, *self._orders))

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The slots [B] of the probes at these positions, int64."""
        run, place = np.divmod(positions, self._group)
        whole = run < self._runs.count  # what does not fill a run stays at the end
        run[whole] = self._runs.at(epoch, run[whole])
        labels, numbers = self._images_at(epoch, run * self._group + place)
        # Which images make a group changes from epoch to epoch.
        images = _Images.of(self._offsets, labels)
        keys = hashed(images.slots, random_words(self._seed, IMAGE_ORDER, 1, major=epoch)[0])
        return images.slots[np.lexsort((keys, images.owner))][images.first[images.of_row] + numbers]

    def _images_at(self, epoch: int, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The label at each place of the line of groups, and which of the identity's images, before they are mixed."""
        labels, numbers = np.empty_like(line), np.empty_like(line)
        in_whole = line < self._whole
        group, place = np.divmod(line[in_whole], self._group)
        label = np.searchsorted(self._ends_of_groups, group, side="right")
        groups = (self._offsets[label + 1] - self._offsets[label]) // self._group
        labels[in_whole] = label
        numbers[in_whole] = (group - (self._ends_of_groups[label] - groups)) * self._group + place
        for index, size in enumerate(self._sizes.tolist()):
            end, count = int(self._ends_of_sizes[index]), self._orders[index].count
            here = (line >= end - size * count) & (line < end)
            if here.any():
                group, place = np.divmod(line[here] - (end - size * count), size)
                group = self._orders[index].at(epoch * len(self._sizes) + index, group)
                label = self._left_over[self._first_of_size[index] + group].astype(np.int64)
                labels[here] = label
                images = self._offsets[label + 1] - self._offsets[label]
                numbers[here] = images - images % self._group + place
        return labels, numbers


class Gallery(NamedTuple):
    """The gallery images of a batch.

    Attributes:
        slots: [U], each image once; or [B, r], those of each probe.
        rows: [B, r], for each probe the numbers of those slots that are its gallery.
        probe: like slots, the row of the batch whose random numbers are the image's: the first that has it.
        place: like slots, the image's number among those of that row, at most r.
    """

    slots: np.ndarray
    rows: np.ndarray
    probe: np.ndarray
    place: np.ndarray


def share_galleries(offsets: np.ndarray, slots: np.ndarray, words: np.ndarray, gallery_size: int) -> Gallery:
    """Draw the gallery images of a batch: r an identity that are no probes of the batch; where it has not so many, all
    of these and as many probes as it takes to make r + 1, of which each probe passes over itself.

    Args:
        offsets: [C + 1], where the slots of each identity begin.
        slots: [B], of the batch's probes.
        words: uint64 [B], random; that of an identity's first row decides.
        gallery_size: r.
    """
    labels = np.searchsorted(offsets, slots, side="right") - 1
    images = _Images.of(offsets, labels)
    counts = np.diff(images.first)
    rows = np.arange(len(slots))
    probe = np.full(len(counts), len(slots))
    np.minimum.at(probe, images.of_row, rows)

    own = images.first[images.of_row] + slots - offsets[labels]  # the row's place among the images
    taken = np.zeros(len(images.slots), dtype=bool)
    taken[own] = True
    free = counts - np.bincount(images.of_row, minlength=len(counts))
    # A probe by itself takes no image but others; where there is none, itself.
    most = np.where(counts - free > 1, np.minimum(gallery_size + 1, counts), np.maximum(free, 1))
    size = np.where(free >= gallery_size, gallery_size, most)
    keys = hashed(images.slots, words[probe][images.owner])
    order = np.lexsort((keys, taken, images.owner))
    rank = np.empty_like(order)  # of each image within its identity
    rank[order] = np.arange(len(order)) - images.first[images.owner]
    drawn = order[(np.arange(len(order)) - images.first[images.owner]) < size[images.owner]]

    # Rows that have more to choose from than they take leave out another one each.
    own_rank = rank[own]
    choice = size[images.of_row]
    alone = counts[images.of_row] == 1  # its gallery can be nothing but itself
    passed_over = np.where((own_rank < choice) & ~alone, own_rank, choice)
    choice = choice - (passed_over < choice)
    place = (rows[:, None] + np.arange(gallery_size)) % np.maximum(choice, 1)[:, None]
    place += place >= passed_over[:, None]
    base = np.concatenate([[0], np.cumsum(size)])
    return Gallery(images.slots[drawn], base[images.of_row][:, None] + place, probe[images.owner[drawn]], rank[drawn])
