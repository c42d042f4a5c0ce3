"""Taking tensors out of a mapped file, so that no more of the file than a block is in memory at a time."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attfc_cuda.train.archive import BLOCK_BYTES

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux's mman.h: let pages go, and keep what is in them


def filled(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """A state_dict whose large tensors have been copied into a module's own, and are those: loading it copies the rest.

    Args:
        state: That of a file, mapped or not; it stays as it is.
        own: The module's. What differs in shape or dtype is left to `load_state_dict`, which names it.
    """
    taken = dict(state)
    for name, tensor in own.items():
        source = state.get(name)
        if not isinstance(source, Tensor) or source.nbytes <= BLOCK_BYTES or source.data_ptr() == tensor.data_ptr():
            continue
        if source.shape == tensor.shape and source.dtype == tensor.dtype and source.is_contiguous():
            size = max(1, BLOCK_BYTES * len(source) // source.nbytes)
            for first in range(0, len(source), size):
                tensor[first : first + size].detach().copy_(source[first : first + size])
                _let_go(source[first : first + size])
            taken[name] = tensor
    return taken


def _let_go(part: Tensor) -> None:
    """Take whole pages of it out of this process's memory; they come back when they are read. Where the system has no
    such call, nothing happens."""
    first = -(-part.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (part.data_ptr() + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    with contextlib.suppress(OSError, AttributeError, TypeError):
        if last > first:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _PAGE_OUT)
