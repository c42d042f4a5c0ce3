"""The state of a run at one moment, for a writer that takes its time while training goes on.

Most of it is copied: networks, optimizer, the container's labels. The container's centres are not; a copy of a million
of them (2 GiB) takes a second, and their memory once more. A step overwrites a few hundred rows of them, so those rows
are kept as they were instead (`RowGuard`): an undo log. The writer reads the centres as they stand, block by block, and
then puts back, in each block, what has been overwritten since the moment.

Why that is exact without stopping anybody. For a row that no step has overwritten before its block was read, the block
holds what the row was. For any other row the log has what it was at the first overwriting since the moment, and so at
the moment; the log's entry is made before the row is touched, and the writer looks into the log after it has read the
block. So whatever a block read of a row that was just being written, old, new or half of each, it is replaced.

What it costs: a step, the gathering of the rows that it overwrites; in memory, these rows while the writer works
(`KEPT_BYTES` at most, then training waits for it), a block, and the copies.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.train.archive import BLOCK_BYTES

KEPT_BYTES = 256 << 20


class RowGuard:
    """The rows [S, D] of a tensor as they are now, while it goes on being overwritten through `overwriting`.

    Args:
        tensor: Contiguous, of any dtype, on any device. All that writes to it uses `overwriting`.
        most_bytes: Of rows kept; one who overwrites more waits until `blocks` has come to its end.
    """

    def __init__(self, tensor: Tensor, most_bytes: int = KEPT_BYTES) -> None:
        self._tensor, self._bytes_left = tensor, most_bytes
        self._rows = tensor.detach().view(torch.uint8)
        # What the reader asks of a GPU takes its turn among what training asks of it.
        self._stream = torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None
        self._version = tensor._version
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self.given_up = False

    @contextlib.contextmanager
    def overwriting(self, slots: Tensor) -> Iterator[None]:
        """Around what overwrites the rows `slots` [B] int64, and no others."""
        if self._over.is_set():
            yield
            return
        entry = slots.clone(), self._rows.index_select(0, slots)
        self._bytes_left -= entry[1].nbytes
        if self._bytes_left < 0:
            self._over.wait()
        with self._lock:
            self._require_known_version()
            self._kept.append(entry)
            yield
            self._version = self._tensor._version

    def blocks(self) -> Iterator[memoryview]:
        """The bytes of the rows as they were when the guard was made, in order; once, from another thread. Each block
        is gone when the next one comes.

        Raises:
            RuntimeError: Where something else has written to the tensor, so that what it was is not known.
            InterruptedError: Once `given_up` is set.
        """
        rows, row_bytes = self._rows.shape
        size = max(1, BLOCK_BYTES // row_bytes)
        buffer = torch.empty(size, row_bytes, dtype=torch.uint8, pin_memory=self._tensor.is_cuda)
        host, old = buffer.numpy(), dict[int, np.ndarray]()
        for first in range(0, rows, size):
            if self.given_up:
                raise InterruptedError("given up")
            last = min(first + size, rows)
            self._read(buffer[: last - first], first, last)
            self._take_kept(old)
            for slot in range(first, last):
                if slot in old:
                    host[slot - first] = old.pop(slot)
            yield host[: last - first].reshape(-1).data
        with self._lock:
            self._require_known_version()
        self.end()

    def end(self) -> None:
        """Keep no more rows, and let those wait no longer who overwrite them."""
        self._over.set()
        with self._lock:
            self._kept.clear()

    def _read(self, buffer: Tensor, first: int, last: int) -> None:
        if self._stream is None:
            # Not torch's copy, which would start threads of its own beside those of training.
            np.copyto(buffer.numpy(), self._rows[first:last].numpy())
        else:
            with torch.cuda.stream(self._stream):
                buffer.copy_(self._rows[first:last])

    def _take_kept(self, old: dict[int, np.ndarray]) -> None:
        """Move the log into `old`, by slot: of several entries of a slot the first counts."""
        with self._lock:
            kept, self._kept = self._kept, []
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for slots, rows in kept:
                for slot, row in zip(slots.tolist(), rows.cpu().numpy(), strict=True):
                    old.setdefault(slot, row)

    def _require_known_version(self) -> None:
        if self._tensor._version != self._version:
            rule = "be overwritten by enqueue alone while a checkpoint is written"
            raise error("checkpoint", "the container's centres", rule, "another write to them", kind=RuntimeError)


def copied(value: Any, shared: Mapping[int, Any] = MappingProxyType({})) -> Any:
    """Nested dicts and lists with their tensors copied to the CPU, but for those at the addresses (`data_ptr`) in
    `shared`, which stay the very tensors. What else a dict carries (a state_dict's versions) comes along."""
    if isinstance(value, Tensor):
        return value if value.data_ptr() in shared else value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        twin = copy.copy(value)
        for key, item in value.items():
            twin[key] = copied(item, shared)
        return twin
    return type(value)(copied(item, shared) for item in value) if isinstance(value, (list, tuple)) else value


def copied_bytes(value: Any, shared: Mapping[int, Any]) -> int:
    """The bytes that `copied` would take."""
    if isinstance(value, Tensor):
        return 0 if value.data_ptr() in shared else value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(copied_bytes(item, shared) for item in items)
