"""Runs a function on several processes of a gloo group and brings back what each returned."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _work(rank: int, count: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    if count > 1:
        torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    try:
        torch.save(function(*arguments), f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """[rank]: what `function(*arguments)`, a module's own, returned on each of `count` fresh processes (one process is
    this one)."""
    with tempfile.TemporaryDirectory() as folder:
        if count == 1:
            _work(0, 1, folder, function, arguments)
            return [torch.load(Path(folder) / "0.pt", weights_only=False)]
        work = (count, folder, function, arguments)
        mp.start_processes(_work, work, nprocs=count, start_method="spawn")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(count)]
