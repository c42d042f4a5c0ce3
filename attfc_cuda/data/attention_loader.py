"""The attention loader: every sample with its probe image and gallery images of the same identity, in ready batches."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from attfc_cuda._check import error
from attfc_cuda._signals import start_worker
from attfc_cuda.data._checks import checked_int
from attfc_cuda.data.augment import Augmentation, mirror_images, normalize_images
from attfc_cuda.data.faces import FaceDataset, UnreadableImage
from attfc_cuda.data.identities import first_difference, packed_identities, unpacked_identities
from attfc_cuda.data.sampling import AttentionSampler, BatchPlan

# Unreadable rows up to here are an accident, whatever their share.
_FEW = 20
_CHUNK = 2**20
# For a worker's end, as torch's own.
_PATIENCE_S = 5.0
# multiprocessing's queues close at an exit priority of 10.
_BEFORE_QUEUES_CLOSE = 100


class Batch(NamedTuple):
    """Images are float32 in [-1, 1]; labels are the data set's, or -1 for a row to ignore (an unreadable image).

    Attributes:
        probe: [B, 3, H, W].
        gallery: [B, r, 3, H, W]; where probes share it [U, 3, H, W], each image once; [0, 3, H, W] in a step that goes
            on with the gallery of the step before.
        labels: [B] int64.
        negatives: [M, 3, H, W], M may be 0: images of identities with too few images to be probes, whose class centres
            serve as negatives only.
        negative_labels: [M] int64.
        gallery_rows: [B, r] int64, which of the gallery's images are each probe's, counted over all of its dimensions
            before the last three: what `AttFC` takes as `gallery_rows` with the embeddings [U, D] of the images
            `gallery.flatten(0, -4)`, or of those of the last batch that had any.
    """

    probe: torch.Tensor  # [B,3,H,W]
    gallery: torch.Tensor  # [B,r,3,H,W] or [U,3,H,W]
    labels: torch.Tensor  # [B] int64
    negatives: torch.Tensor  # [M,3,H,W]; M may be 0
    negative_labels: torch.Tensor  # [M] int64
    gallery_rows: torch.Tensor  # [B,r] int64


class TooManyUnreadable(UnreadableImage):
    """So many images cannot be read that a run would train on nothing; the message names the first of them."""


class _Assembler(Dataset):
    """Turns a plan into a batch, and the first reason why an image of it could not be read; runs in the workers.

    A failure that is to end the iteration is returned, not raised: the DataLoader would wrap a worker's exception in
    text of its own, and an iterator that an exception's traceback keeps alive delays the workers' end by seconds.
    """

    def __init__(self, dataset: FaceDataset, augmentation: Augmentation):
        self.dataset, self.augmentation = dataset, augmentation

    def __getitem__(self, plan: BatchPlan) -> tuple[Batch, str | None, np.ndarray] | UnreadableImage:
        """The batch, the reason, and which gallery images could be read: their rows still count, see `leave_out`."""
        dataset, sizes = self.dataset, [images.size for images in plan[:3]]
        indices = np.concatenate([plan.probe, plan.gallery.reshape(-1), plan.negatives])
        mirrored = np.concatenate([plan.mirror_probe, plan.mirror_gallery.reshape(-1), plan.mirror_negatives])
        images = torch.zeros((len(indices), 3, dataset.image_size, dataset.image_size), dtype=torch.uint8)
        readable, reason = np.ones(len(indices), dtype=bool), None
        for place, index in enumerate(indices.tolist()):
            try:
                images[place] = dataset[index]
            except UnreadableImage as failure:
                if dataset.on_bad_image != "skip":
                    return failure
                readable[place] = False
                reason = reason or str(failure)
                warnings.warn(f"row ignored: {failure}", stacklevel=2)
        images = mirror_images(images, torch.from_numpy(mirrored))
        if self.augmentation.random:
            self.augmentation.apply(images, plan.seeds.tolist())
        ready = normalize_images(images)

        probe, gallery, negatives = ready.split(sizes)
        gallery = gallery.unflatten(0, plan.gallery.shape)
        probe_readable, gallery_readable, negative_readable = np.split(readable, np.cumsum(sizes)[:-1])
        labels, negative_labels, gallery_rows = map(torch.from_numpy, (
            np.where(probe_readable, dataset.labels[plan.probe], -1).astype(np.int64),
            np.where(negative_readable, dataset.labels[plan.negatives], -1).astype(np.int64),
            plan.gallery_rows,
        ))  # fmt: skip
        return Batch(probe, gallery, labels, negatives, negative_labels, gallery_rows), reason, gallery_readable


def leave_out(batch: Batch, gallery_readable: np.ndarray) -> Batch:
    """The batch, with label -1 where a gallery image could not be read."""
    if gallery_readable.all():
        return batch
    readable = torch.from_numpy(gallery_readable)[batch.gallery_rows].all(dim=1)
    return batch._replace(labels=torch.where(readable, batch.labels, -1))


def _as_is(item: Any) -> Any:
    return item


class _Plans:
    """The plans of the rest of an epoch, as a sampler that the same workers can be given again.

    It does not know the loader, so that the two form no reference cycle.

    Attributes:
        rest: What the plans depend on: sampler, epoch, batches, and whether images are mirrored and changed at random.
    """

    rest: tuple[AttentionSampler, int, range, bool, bool]

    def __iter__(self) -> Iterator[BatchPlan]:
        sampler, epoch, batches, mirror, random = self.rest
        for batch in batches:
            # Whoever begins between the steps of a gallery has not seen it.
            yield sampler.plan(epoch, batch, mirror, random, batch == batches.start)


def _workers_end_with(loader: AttentionLoader, items: Any) -> Finalize:
    """End the workers behind `items`, a DataLoader's iteration, when the loader goes, or the program.

    torch would, but not in time: from a garbage collection 10 seconds later for each, as what it sends them goes
    through queues that were collected before it; and where a program ends, multiprocessing asks them by a single
    SIGTERM, which they leave to the process that they work for, and waits forever. Nothing here refers to the data set,
    which may know the loader.
    """
    parts = items._workers_done_event, items._index_queues, items._workers  # torch has no public names for them
    return Finalize(loader, _end_workers, parts, exitpriority=_BEFORE_QUEUES_CLOSE)


def _end_workers(done: Any, queues: Sequence[Any], workers: Sequence[BaseProcess]) -> None:
    """Ask a DataLoader's worker processes to end, as torch does, and wait for them a while."""
    done.set()
    for queue in queues:
        queue.put(None)
    for worker in workers:
        worker.join(_PATIENCE_S)


def _labels_crc32(labels: np.ndarray) -> int:
    """CRC-32 of the labels as int64, a part at a time."""
    crc = 0
    for start in range(0, len(labels), _CHUNK):
        crc = zlib.crc32(labels[start : start + _CHUNK].astype(np.int64).tobytes(), crc)
    return crc


class AttentionLoader:
    """Iterates over batches in which each row has a probe image and `gallery_size` other images of its identity.

    One iteration runs to the end of an epoch; each epoch visits every probe image once, in an order of its own. A row's
    gallery are other images of the identity, none twice unless there are fewer than `gallery_size` others. Identities
    with fewer than `min_images` images are never probes (their gallery would be the probe itself, which teaches
    nothing); their images come as `negatives`.

    With `probes_per_identity` K above 1 probes are drawn by identity: the images of one are cut into groups of K, anew
    in each epoch, and a group comes in one batch (two where a batch ends). What does not fill a group is a smaller one,
    so that an identity of fewer than K images is one group. The probes of an identity in a batch share its gallery:
    `gallery_size` images that are none of its probes there; where it has not so many left, one image more than that,
    and each probe takes the others than itself. Each image is in `gallery` once. A network then embeds about
    gallery_size / K gallery images a probe instead of gallery_size.

    With `gallery_steps` T above 1 they share it over T batches, which have K probes of an identity each: the first of
    them brings the gallery images for all, and the others none (`gallery` is empty, `gallery_rows` goes on counting in
    that of the first). So batches keep their many identities, gallery_size / (K T) images a probe are embedded, and
    centres are up to T - 1 steps old. An iteration that begins between these steps brings the gallery once more.

    Several processes (DistributedDataParallel): give each loader the same arguments but its own `rank`. Each batch is
    cut over them in its order, into parts that are equal up to a row, as `attfc train` does: a step sees the same
    images whatever the number of processes, and a saved position fits any number of them.

    An image that cannot be read: with the data set's `on_bad_image` "skip" its row comes with label -1 (no loss, no
    gradient) and is counted in `ignored_rows` and the report, and a warning names the file; with "raise" it is an
    `UnreadableImage`. Where that is no exception but the rule, the data are gone or not what they were, and going on
    would train on nothing: `TooManyUnreadable`. `state_dict()` taken after any batch resumes with exactly the batches
    that would have followed. The global random state is neither used nor changed.

    Args:
        dataset: A `FaceDataset`.
        batch_size: Rows of a batch, those of all processes together.
        gallery_size: r, 0 to 63.
        seed: Together with the epoch and position of a row it determines everything, whatever `num_workers` is.
        min_images: 2 or more; 1 makes single images probes whose gallery is the probe itself.
        negatives_per_batch: "auto" spreads the negatives evenly, each once an epoch, so that M varies by one between
            batches; an int fixes M, of all processes together (at most the number of such images), going round them as
            often as it takes.
        probes_per_identity: K, 1 to 64. 1: probes in random order, each with a gallery of its own.
        gallery_steps: T, 1 to 64 / K: batches that share their gallery images.
        augment: "none", or what is done to each image by itself, see `Augmentation`: "flip" mirrors it with probability
            1/2; "flip,crop,photometric,gray,lowres" also cuts, recolours and blurs some.
        drop_last: Leave out the last, short batch of an epoch.
        rank: The number of this process, 0 to world_size - 1.
        world_size: The number of processes that share each batch.
        num_workers: Processes that prepare batches ahead; 0 works in this one.
        max_unreadable: The largest share of rows that may be ignored, counted from the 20th ignored row on.

    Attributes:
        num_probes: Probe images an epoch, of all processes together.
        num_classes: The number of identities, those that are never probes included.
        ignored_rows: Rows of this process that came with label -1 so far.

    Raises:
        ValueError, TypeError: Naming the argument.
        UnreadableImage: While iterating, see above.
        TooManyUnreadable: While iterating, after as many rows as a batch has without a readable one, or more than
            `max_unreadable` of all.

    Source:
        The attention loader of AttFC (arXiv 2503.06839); min_images and the negatives are our choice.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        batch_size: int = 128,
        gallery_size: int = 2,
        *,
        seed: int = 0,
        min_images: int = 2,
        negatives_per_batch: int | str = "auto",
        augment: str = "flip",
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        max_unreadable: float = 0.05,
        probes_per_identity: int = 1,
        gallery_steps: int = 1,
    ):
        self.augmentation = Augmentation(augment, dataset.image_size)
        self.dataset, self.mirror = dataset, self.augmentation.flip
        self.num_workers = checked_int("AttentionLoader", "num_workers", num_workers, 0)
        if not 0 <= max_unreadable <= 1:
            raise error("AttentionLoader", "max_unreadable", "lie in 0 to 1", max_unreadable)
        self.max_unreadable = max_unreadable
        self.sampler = AttentionSampler(
            dataset, batch_size, gallery_size, seed, min_images, negatives_per_batch, drop_last, rank, world_size,
            probes_per_identity, gallery_steps,
        )  # fmt: skip
        self.num_probes, self.num_classes = self.sampler.num_probes, len(dataset.identities)
        self.ignored_rows = 0
        self._rows = self._unreadable = self._unreadable_in_a_row = 0
        self._first_reason: str | None = None
        self._packed: str | None = None
        self._epoch = self._batch = 0
        self._taken = 0, 0
        # What must be equal for a saved position to mean the same batches.
        self._identity = {
            "seed": self.sampler.seed,
            "batch_size": self.sampler.batch_size,
            "gallery_size": self.sampler.gallery_size,
            "min_images": self.sampler.min_images,
            "probes_per_identity": self.sampler.probes_per_identity,
            "gallery_steps": self.sampler.gallery_steps,
            "negatives_per_batch": negatives_per_batch,
            "augment": augment,
            "drop_last": bool(drop_last),
            "labels_crc32": _labels_crc32(dataset.labels),
        }
        self._plans = _Plans()
        self._loader: DataLoader | None = None
        self._finalizer: Finalize | None = None

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.sampler.num_batches

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch; afterwards, the loader stands at the start of the next."""
        epoch, first = self._epoch, self._batch
        if self._loader is None:
            self._loader = DataLoader(
                _Assembler(self.dataset, self.augmentation),
                sampler=self._plans,
                batch_size=None,  # a plan is a whole batch already
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,  # starting them anew would hold up every epoch
                collate_fn=_as_is,
                generator=torch.Generator(),  # else each iteration draws from the global one
                worker_init_fn=start_worker,
            )
        self._plans.rest = self.sampler, epoch, range(first, len(self)), self.mirror, self.augmentation.random
        items = iter(self._loader)
        if self.num_workers and self._finalizer is None:
            self._finalizer = _workers_end_with(self, items)
        gallery_readable = np.ones(0, dtype=bool)
        for batch_index, item in enumerate(items, first):
            if isinstance(item, UnreadableImage):
                raise item
            batch, reason, readable = item
            if len(readable):
                gallery_readable = readable
            batch = leave_out(batch, gallery_readable)
            if reason is not None or self._unreadable or not gallery_readable.all():
                self._watch_unreadable(batch, reason)
            self._rows += len(batch.labels)
            self._taken = self._epoch, self._batch
            self._epoch, self._batch = divmod(epoch * len(self) + batch_index + 1, len(self))
            self.ignored_rows += int((batch.labels < 0).sum() + (batch.negative_labels < 0).sum())
            yield batch

    @property
    def between_steps_of_a_gallery(self) -> bool:
        """Whether the next batch goes on with the gallery of the one before."""
        return self._batch != self.sampler.steps_of_gallery(self._batch)[0]

    def put_back(self) -> None:
        """Of the latest batch, which was not used after all: `state_dict` names it as the next one again."""
        self._epoch, self._batch = self._taken

    def close(self) -> None:
        """End the worker processes, which otherwise wait for the next epoch; iterating again starts others.

        They end here even where an exception's traceback still holds the iteration; torch would raise for one that was
        killed whenever any child of the process ends.
        """
        workers = getattr(self._loader, "_iterator", None)
        self._loader = None
        if workers is not None:
            workers._shutdown_workers()  # torch has no public name for it
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None

    def _watch_unreadable(self, batch: Batch, reason: str | None) -> None:
        """Raise before a batch goes out that shows the data to be gone."""
        bad = int((batch.labels < 0).sum())
        self._unreadable += bad
        self._first_reason = self._first_reason or reason
        self._unreadable_in_a_row = self._unreadable_in_a_row + bad if bad == len(batch.labels) else 0
        seen = self._rows + len(batch.labels)
        if self._unreadable_in_a_row >= self.sampler.batch_size:
            got = f"none in the last {self._unreadable_in_a_row}"
        elif self._unreadable >= _FEW and self._unreadable > self.max_unreadable * seen:
            got = f"{self._unreadable} unreadable ones of {seen}"
        else:
            return
        raise error(
            "AttentionLoader", "the data set", f"have at most a share of {self.max_unreadable:g} unreadable rows",
            f"{got}; the first reason: {self._first_reason}", "max_unreadable sets the share", TooManyUnreadable,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The next batch to come ("pass": its epoch), and what it depends on, as plain ints and strings;
        "identities" are their names, packed (`attfc_cuda.data.identities`). Equal on all processes."""
        if self._packed is None:
            self._packed = packed_identities(self.dataset.identities)
        order = "stored" if self.sampler.stored_order else "keyed"
        return {"pass": self._epoch, "batch": self._batch, "order": order, "identities": self._packed, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration continues from there. ValueError where it was saved under other settings or data."""
        if state.get("world_size", 1) != 1:  # saved by a release in which batch_size was that of each process
            raise error(
                "AttentionLoader.load_state_dict", "world_size", "be 1 in a state of an earlier release",
                state["world_size"], "start anew: the batches of several processes were cut by another rule then",
            )  # fmt: skip
        if "identities" in state:
            difference = first_difference(self.dataset.identities, unpacked_identities(state["identities"]))
            if difference is not None:
                raise error(
                    "AttentionLoader.load_state_dict", "identities", "be those of the saved state", difference,
                    "labels would mean other people: restore the data, or start anew",
                )  # fmt: skip
        state = {"probes_per_identity": 1, "gallery_steps": 1, **state}  # an earlier release drew no more
        for name, value in self._identity.items():
            if name not in state or state[name] != value:
                raise error(
                    "AttentionLoader.load_state_dict", name, f"equal the loader's {value!r}",
                    repr(state.get(name, "nothing")), "build the loader as it was when the state was saved",
                )  # fmt: skip
        position: list[Any] = [state.get("pass"), state.get("batch")]
        here = "AttentionLoader.load_state_dict"
        order = state.get("order", "stored")  # before it had a name, it was always stored
        if order not in ("stored", "keyed"):
            raise error(here, "order", "be stored or keyed", repr(order))
        self._epoch = checked_int(here, "pass", position[0], 0)
        self._batch = checked_int(here, "batch", position[1], 0, len(self) - 1)
        # One that is not stored as a whole may be so in part: each order by its size.
        self.sampler.set_stored_order(True if order == "stored" else None)

    def report(self) -> str:
        """The data set's report, then what this loader makes of it."""
        sampler = self.sampler
        probe_identities = int((sampler.counts >= sampler.min_images).sum())
        if sampler.negatives_per_batch is None:
            per_batch = f"each once an epoch, {sampler.num_negatives / len(self):.1f} a batch"
        else:
            per_batch = f"{sampler.negatives_per_batch} a batch"
        lines = [
            self.dataset.report(),
            f"AttentionLoader: {self.num_probes} probe images of {probe_identities} identities with at least "
            f"{sampler.min_images} images; {len(self)} batches of {sampler.batch_size} an epoch"
            + (f", each cut over {sampler.world_size} processes" if sampler.world_size > 1 else ""),
            f"  never probes, negatives only: {sampler.num_negatives} images of "
            f"{self.num_classes - probe_identities} identities with fewer ({per_batch})",
        ]
        if sampler.group > 1:
            steps = f" in each of {sampler.gallery_steps} batches" if sampler.gallery_steps > 1 else ""
            probes = "probe" if sampler.probes_per_identity == 1 else "probes"
            lines.append(f"  {sampler.probes_per_identity} {probes} of an identity{steps} share its gallery")
        if self.ignored_rows:
            lines.append(f"  rows ignored so far because an image could not be read: {self.ignored_rows}")
        return "\n".join(lines)
