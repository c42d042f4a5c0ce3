"""The Dynamic Class Container: the bounded set of class centres that stands in for the last layer's N x D weights.

The container only remembers: which centre lies in which slot and whose it is. It knows no loss and no attention. All of
it stays on the device: shapes depend on the batch size alone and no value is read back by the host, so that a training
step can be captured in a CUDA graph or compiled in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from attfc_cuda._check import error, require_labels, require_mapping, require_rows
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.heads.checks import known_labels, require_count
from attfc_cuda.ops import backend as backends
from attfc_cuda.ops import head_step

POLICIES = ("fifo", "refresh")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class DynamicClassContainer(nn.Module):
    """`capacity` class centres with their labels, replaced batch by batch.

    PyTorch equivalent: the memory queue of MoCo, with a label on each entry:
    ``centers[pointer : pointer + B] = new; labels[pointer : pointer + B] = y; pointer = (pointer + B) % capacity``.

    Args:
        capacity: number of slots S, at least 1.
        dim: length D of a centre.
        num_classes: number of classes of the data set. `"refresh"` needs it (it keeps one int32 per class, to find the
            class's slot); with `"fifo"` it only serves the check of the labels.
        policy: which centre leaves when a new one comes.
            `"fifo"`: the oldest. A class that came several times fills several slots, some stale; readers mask by
            label.
            `"refresh"`: a class has at most one slot. A class that is there is overwritten where it stands; a new one
            takes an empty slot, or else the slot of the class that has gone longest without being refreshed.
        dtype: of `centers`: float32, bfloat16, float16 or float64.
        check_labels: whether `enqueue` reports labels at or above `num_classes`: on the CPU by a ValueError that names
            the row; on another device, and in compiled code, by an assertion on the device (nothing waits for it; on
            CUDA it ends the process's use of the GPU, as any device assertion does; ATTFC_DEBUG=1 makes the host wait
            and names the row). While a CUDA graph is captured nothing is checked. With False, or in a graph, such rows
            are left out silently; nothing else is ever overwritten.
        shards: a `distributed.Shards`, to split the slots over the processes of a group: `centers` is then this
            process's part of them [n, D], slots `first` to `last` - 1, and all processes enqueue the same rows in the
            same order. What says which slot is whose (the buffers below `centers`) is small and whole on each, so that
            no process needs to ask another.
        device: of the buffers; None: torch's default device.

    Attributes:
        centers: [S, D] dtype, unit rows. A slot whose label is -1 is empty: its row must not be read.
        labels: [S] int64, the class of each slot, -1 where empty.
        clock: [] int64, rows written so far (`"fifo"`) or rows offered so far (`"refresh"`).
        stamps: [S] int64, `"refresh"` only: the clock of each slot's last refresh. No two are equal, so no tie ever
            decides which centre leaves; empty slots carry -S..-1 and go first, in their order.
        slot_of_class: [num_classes + 1] int32, `"refresh"` only, not saved: derived from `labels`, rebuilt on loading.
        overwriting: None, or what is entered around each writing to `centers`, called with the slots [B] int64 that it
            goes to (some of them may keep their content): for one who is saving them meanwhile.

    None of these buffers is in the optimizer, and all but the last are in the state_dict, which therefore restores the
    container exactly. A container on the meta device that gets memory (`to_empty`) is empty.

    Gradient:
        None; centres are detached on entry.

    Deterministic:
        The slots written by one call are distinct, so that repeated runs agree bit by bit.

    Source:
        AttFC, arXiv 2503.06839 (the Dynamic Class Container; its public code is a queue with stale copies, `"fifo"`).
        `"refresh"`, and empty slots instead of random vectors at the start, are our choice.

    Raises:
        ValueError: for a capacity, dim, num_classes or policy out of range.
        TypeError: for another dtype, or a number that is not whole.
    """

    centers: Tensor
    labels: Tensor
    clock: Tensor
    stamps: Tensor
    slot_of_class: Tensor

    def __init__(
        self,
        capacity: int,
        dim: int,
        num_classes: int | None = None,
        policy: str = "fifo",
        dtype: torch.dtype = torch.float32,
        check_labels: bool = True,
        shards: Shards | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        name = "DynamicClassContainer"
        for argument, value in (("capacity", capacity), ("dim", dim), ("num_classes", num_classes)):
            if value is not None:
                require_count(name, argument, value)
        if policy not in POLICIES:
            raise error(name, "policy", f"be one of {POLICIES}", repr(policy))
        if policy == "refresh" and num_classes is None:
            remedy = 'pass the data set\'s number of classes, or use policy="fifo"'
            raise error(name, "num_classes", 'be given with policy="refresh"', None, remedy)
        if dtype not in DTYPES:
            raise error(name, "dtype", f"be one of {DTYPES}", dtype, kind=TypeError)
        self.capacity, self.dim, self.num_classes = capacity, dim, num_classes
        self.policy, self.check_labels, self.shards = policy, check_labels, shards
        self.first, self.last = (0, capacity) if shards is None else shards.bounds(capacity)
        self.overwriting: Callable[[Tensor], AbstractContextManager[None]] | None = None
        self.register_buffer("centers", torch.zeros(self.last - self.first, dim, dtype=dtype, device=device))
        self.register_buffer("labels", torch.full((capacity,), -1, device=device))
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64, device=device))
        if num_classes is not None and policy == "refresh":
            self.register_buffer("stamps", torch.arange(-capacity, 0, device=device))
            # One entry more than there are classes: rows that write nothing look up and write the last one: always -1.
            slot_of_class = torch.full((num_classes + 1,), -1, dtype=torch.int32, device=device)
            self.register_buffer("slot_of_class", slot_of_class, persistent=False)
            self.register_load_state_dict_post_hook(_rebuild_slot_of_class)

    def extra_repr(self) -> str:
        classes = "" if self.num_classes is None else f", num_classes={self.num_classes}"
        dtype = str(self.centers.dtype).removeprefix("torch.")
        part = "" if self.shards is None else f", slots {self.first} to {self.last - 1} here"
        return f"capacity={self.capacity}, dim={self.dim}{classes}, policy={self.policy!r}, dtype={dtype}{part}"

    @property
    def labels_here(self) -> Tensor:
        """The label of each row of `centers`: `labels`, or with shards this process's part of them."""
        return self.labels[self.first : self.last]

    @property
    def fill(self) -> Tensor:
        """Number of slots in use: a 0-dim int64 tensor on the container's device (reading it is the caller's wait)."""
        return (self.labels >= 0).sum()

    @property
    def age(self) -> Tensor:
        """Rows that came after each slot's own, [S] int64: 0 for the newest centre; meaningless for an empty slot.

        With `"refresh"` rows that wrote nothing count as well, as in `clock`.
        """
        if self.policy == "refresh":
            return self.clock - 1 - self.stamps
        return (self.clock - 1 - torch.arange(self.capacity, device=self.clock.device)) % self.capacity

    @torch.no_grad()
    def lookup(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The stored centre of each class, with `policy="refresh"` only.

        Args:
            labels: [B] int64.

        Returns:
            centers [B, D] and held [B] bool. Where held is False (the class is not there, or the label is negative or
            too large) the centre is 0.
        """
        if self.policy != "refresh":
            raise error("DynamicClassContainer.lookup", "policy", 'be "refresh"', repr(self.policy))
        known = (labels >= 0) & (labels < self.num_classes)
        slots = self.slot_of_class[torch.where(known, labels, self.num_classes)].long()
        # An evicted class's entry is left standing and recognised here: its slot shows another label.
        slots_or_0 = slots.clamp_min(0)
        held = known & (slots >= 0) & (self.labels[slots_or_0] == labels)
        return torch.where(held[:, None], self.centers[slots_or_0], 0), held

    @torch.no_grad()
    def reset(self) -> None:
        """Empty every slot in place, as after construction; the centres' old content stays, unread."""
        if self.labels.device.type == "meta":
            return
        self.labels.fill_(-1)
        self.clock.zero_()
        if self.policy == "refresh":
            self.stamps.copy_(torch.arange(-self.capacity, 0, device=self.stamps.device))
            self.slot_of_class.fill_(-1)

    def reset_parameters(self) -> None:
        """`reset`, by the name that PyTorch's tools call after `to_empty`."""
        self.reset()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DynamicClassContainer:
        """nn.Module's. Memory that nothing was written to (a module of the meta device, after `to_empty`) counts as an
        empty container."""
        nothing_yet = self.labels.device.type == "meta"
        super()._apply(fn, recurse)
        if nothing_yet:
            self.reset()
        return self

    @property
    def split_rows(self) -> dict[str, int]:
        """The buffers of which this process holds a part, and their rows over all processes."""
        return {"centers": self.capacity}

    @torch.no_grad()
    def resize_classes(self, mapping: Tensor) -> None:
        """Renumber the classes. The centres stay in their slots; those of classes that are gone leave theirs empty.

        Args:
            mapping: [new N] int64, each new class's old number, -1 for one that is new.

        Raises:
            ValueError: for another shape, an entry that is no class, a class named twice.
            TypeError: for another dtype.
        """
        require_mapping("DynamicClassContainer.resize_classes", mapping, self.num_classes)
        mapping = mapping.to(self.labels.device)
        most = torch.cat([self.labels, mapping]).max() + 1 if self.num_classes is None else self.num_classes
        kept = mapping >= 0
        # One entry more than there are classes: -1, which empty slots look up.
        class_of = torch.full((int(most) + 1,), -1, device=mapping.device)
        class_of[mapping[kept]] = kept.nonzero().flatten()
        self.labels.copy_(class_of[self.labels])
        if self.num_classes is not None:
            self.num_classes = len(mapping)
        if self.policy == "refresh":
            # A slot that has become empty gets the stamp it had in the beginning, which no other slot can have.
            initial = torch.arange(-self.capacity, 0, device=self.stamps.device)
            self.stamps.copy_(torch.where(self.labels < 0, initial, self.stamps))
            self.slot_of_class = self.slot_of_class.new_empty(len(mapping) + 1)
            _rebuild_slot_of_class(self)

    def check(self, centers: Tensor, labels: Tensor) -> None:
        """Raise what `enqueue(centers, labels)` would raise, and write nothing."""
        name = "DynamicClassContainer.enqueue"
        if centers.ndim != 2 or centers.shape[1] != self.dim:
            raise error(name, "centers", f"have shape [rows, {self.dim}]", list(centers.shape))
        if labels.shape != centers.shape[:1]:
            raise error(name, "labels", f"have shape [{centers.shape[0]}], as centers", list(labels.shape))
        if not centers.is_floating_point():
            raise error(name, "centers", "have a floating dtype", centers.dtype, kind=TypeError)
        if labels.dtype != torch.int64:
            raise error(name, "labels", "have dtype torch.int64", labels.dtype, "labels.long()", kind=TypeError)
        for argument, value in (("centers", centers), ("labels", labels)):
            if value.device != self.centers.device:
                raise error(name, argument, f"be on the container's device {self.centers.device}", value.device)
        if centers.shape[0] > self.capacity:
            remedy = "use a larger capacity or fewer rows per batch (probes and extra centres count together)"
            raise error(name, "centers", f"have at most capacity = {self.capacity} rows", centers.shape[0], remedy)
        self.require_labels(name, labels)

    def require_labels(self, function: str, labels: Tensor) -> None:
        """Raise for labels at or above `num_classes`, where `check_labels` and `num_classes` say so."""
        if self.check_labels and self.num_classes is not None:
            require_labels(function, labels, self.num_classes)

    @torch.no_grad()
    def enqueue(self, centers: Tensor, labels: Tensor) -> None:
        """Write the rows of a batch, in order, into the slots that the policy gives them.

        Equals, row by row, with `slots` a list (`"fifo"`) or an LRU dict (`"refresh"`):

            fifo:    slots[clock % capacity] = (label, center); clock += 1
            refresh: slots.pop(label, None); slots[label] = center; if len(slots) > capacity: drop the oldest

        (for `"refresh"` the same set of classes and centres; which slot a new class gets is our own order).

        Not written: rows with a negative label, and rows that hold a NaN or an infinity in the container's dtype.

        Args:
            centers: [B, D], unit rows, any floating dtype (converted to the container's), B from 0 to capacity; not
                normalised here.
            labels: [B] int64. A class may come several times: `"fifo"` keeps every row, `"refresh"` the last one.

        Raises:
            ValueError: for shapes or devices that do not fit, more rows than slots, and labels out of range (see
                `check_labels`).
            TypeError: for a dtype that does not fit.
        """
        self.check(centers, labels)
        rows = centers.shape[0]
        if rows == 0:
            return
        new = centers.to(self.centers.dtype)
        write = (known_labels(labels, self.num_classes) >= 0) & new.isfinite().all(dim=1)
        if self.shards is None and backends.enqueues(self.centers.device.type):
            real = torch.promote_types(new.dtype, torch.float32)
            self.enqueue_rows(new.to(real), torch.where(write, labels, -1))
        else:
            self._enqueue(new, labels, write)

    @torch.no_grad()
    def enqueue_rows(self, centers: Tensor, labels: Tensor, backend: str = "cpu") -> None:
        """`enqueue`, unchecked and by kernels, of rows that are known to be good. Not with shards.

        Args:
            centers: [B, D] float32 (float64 with a float64 container).
            labels: [B] int64 below num_classes, negative for rows that are not written, such as those that are not
                finite in the container's dtype.
            backend: one with kernels for a head step.
        """
        if self.overwriting is not None:  # only an operator at a time knows the slots beforehand; the same bits
            if len(labels):
                self._enqueue(centers.to(self.centers.dtype), labels, labels >= 0)
            return
        state = self.centers, self.labels, self.clock
        if self.policy == "fifo":
            head_step.operator("enqueue_fifo", backend)(*state, centers, labels)
        else:
            enqueue = head_step.operator("enqueue_refresh", backend)
            enqueue(*state, self.stamps, self.slot_of_class, centers, labels)

    def _enqueue(self, new: Tensor, labels: Tensor, write: Tensor) -> None:
        """`enqueue` of the rows `write` [B] bool, an operator at a time: on any device, and with shards."""
        rows = len(labels)
        if self.policy == "fifo":
            # Rows that write nothing get the slots after those that do, and rewrite them with what is there: the B
            # slots are distinct (B <= capacity), and the number of rows written never reaches the host.
            slots = (self.clock + _rank(write, ~write)) % self.capacity
            self._write(slots, write, new, labels)
            self.clock.add_(write.sum())
            return

        order = self.clock + torch.arange(rows, device=labels.device)
        write = _last_of_each(labels, write)
        row_class = torch.where(write, labels, self.num_classes)
        own = self.slot_of_class[row_class].long()
        own_or_0 = own.clamp_min(0)
        # An evicted class's entry is left standing and recognised here: its slot shows another label.
        held = write & (own >= 0) & (self.labels[own_or_0] == labels)
        # The classes refreshed by this batch get their new stamps first, so that none of their slots is among the
        # oldest when those are handed out. (Unheld rows aim at slot 0 with a stamp that cannot win.)
        lowest = torch.iinfo(torch.int64).min
        self.stamps.scatter_reduce_(0, own_or_0, torch.where(held, order, lowest), "amax")
        oldest = self.stamps.topk(rows, largest=False, sorted=True).indices
        slots = torch.where(held, own, oldest[_rank(write & ~held, ~write)])
        self._write(slots, write, new, labels)
        self.stamps.index_copy_(0, slots, torch.where(write, order, self.stamps[slots]))
        self.slot_of_class.index_put_((row_class,), torch.where(write, slots, -1).int())
        self.clock.add_(rows)

    def _write(self, slots: Tensor, write: Tensor, new: Tensor, labels: Tensor) -> None:
        """Put the rows of `write` into their slots; the other slots named keep their content. `slots` are distinct."""
        self.labels.index_copy_(0, slots, torch.where(write, labels, self.labels[slots]))
        if self.shards is None:
            rows = torch.where(write[:, None], new, self.centers[slots])
            with nullcontext() if self.overwriting is None else self.overwriting(slots):
                self.centers.index_copy_(0, slots, rows)
            return
        if self.first == self.last:
            return
        # Rows that write nothing here all write slot 0, each what stands there in the end: of equal values it does not
        # matter which one comes last.
        here = write & (slots >= self.first) & (slots < self.last)
        slot = torch.where(here, slots - self.first, 0)
        to_first = here & (slot == 0)
        first = torch.where(to_first.any(), new[to_first.int().argmax()], self.centers[0])
        with nullcontext() if self.overwriting is None else self.overwriting(slot):
            self.centers.index_copy_(0, slot, torch.where(here[:, None], new, first))


def _rank(first: Tensor, second: Tensor) -> Tensor:
    """Place of each row [B] when the rows of `first` [B] bool come before those of `second`, each group in its order.

    Rows in neither group get some place in [0, B) that means nothing.
    """
    places_first = first.cumsum(0)
    places_second = places_first[-1] + second.cumsum(0)
    return (torch.where(first, places_first, places_second) - 1).clamp_min(0)


def _last_of_each(labels: Tensor, among: Tensor) -> Tensor:
    """[B] bool: the rows of `among` after which their label comes no more among those rows."""
    by_label, order = torch.where(among, labels, -1).sort(stable=True)
    ends_run = torch.ones_like(among)
    ends_run[:-1] = by_label[1:] != by_label[:-1]
    return among & torch.empty_like(among).index_copy_(0, order, ends_run)


def _rebuild_slot_of_class(container: DynamicClassContainer, incompatible_keys: Any = None) -> None:
    """The table from the labels: after a new numbering, or a load, whose labels may be a stranger's."""
    labels, classes = container.labels, container.num_classes
    require_rows(
        (labels >= -1) & (labels < classes),
        "DynamicClassContainer.load_state_dict",
        "labels",
        f"lie between -1 and num_classes - 1 = {classes - 1}",
        lambda row: f"{int(labels[row])} in slot {row}",
        "the checkpoint was written for other classes or is damaged",
        wait=True,
    )
    slots = torch.arange(container.capacity, device=labels.device)
    filled = labels >= 0
    if container.slot_of_class.device != labels.device:  # after a load with assign=True
        container.slot_of_class = torch.empty_like(container.slot_of_class, device=labels.device)
    container.slot_of_class.fill_(-1)
    container.slot_of_class.index_put_((torch.where(filled, labels, classes),), torch.where(filled, slots, -1).int())
