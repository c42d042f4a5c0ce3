"""Work on one item after the other, shared among worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from attfc_cuda._signals import start_helper

Result = TypeVar("Result")


def spare_workers() -> int:
    """How many worker processes may be started: one for each core that this process may use; none where it may have no
    children, as it is a worker itself."""
    if multiprocessing.current_process().daemon:
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_method() -> str:
    """How processes are started here. To ask settles nothing: a program may still call `set_start_method`."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def in_processes(
    work: Callable[[int], Result], count: int, workers: int, *, a_turn: int = 1
) -> Generator[Result, None, None]:
    """work(0), work(1), ... work(count - 1), in this order.

    Args:
        work: A function that can be pickled. What it raises is raised here, in its turn.
        count: How often it is called.
        workers: Processes that call it; 0: this one. They end with the iteration, at once where it is given up, or when
            this process has gone.
        a_turn: Items that a worker takes at once.
    """
    loader = DataLoader(
        _Items(work, count),
        batch_size=a_turn,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # else the global one moves
        worker_init_fn=start_helper,
        multiprocessing_context=start_method() if workers else None,  # else the program's way of starting is settled
    )
    turns = iter(loader)
    try:
        for turn in turns:
            for result in turn:
                if isinstance(result, _Raised):
                    raise result.cause
                yield result
    finally:  # a DataLoader would wait for what its workers are at, seconds for each of them
        for worker in getattr(turns, "_workers", ()):
            worker.terminate()


class _Raised(NamedTuple):
    cause: Exception  # as it is: a DataLoader would put its own words into the message


class _Items(Dataset, Generic[Result]):
    def __init__(self, work: Callable[[int], Result], count: int) -> None:
        self.work, self.count = work, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Any:
        try:
            return self.work(item)
        except Exception as cause:
            return _Raised(cause)
