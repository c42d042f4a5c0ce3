"""What a process of a group does in the tests of data that one process indexes and the others read."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from attfc_cuda.data.sources import tar_index
from attfc_cuda.train import TrainConfig, process_group
from attfc_cuda.train.process_group import Group
from attfc_cuda.train.training import load_dataset


def opened(data: str, caches: str, first_of_machine: int = 0) -> dict[str, Any]:
    """What a process sees of a shard: how often it looked through it, which indexes were there before, the labels. The
    processes from `first_of_machine` on are those of another machine."""
    os.environ["XDG_CACHE_HOME"] = caches
    rank = dist.get_rank()
    os.environ["LOCAL_RANK"] = str(rank - first_of_machine if rank >= first_of_machine else rank)
    config = TrainConfig()
    config.dataset.data, config.dataset.image_size = data, 16
    before: list[bool] = []
    samples = tar_index.samples

    def looking(*arguments: Any) -> Any:
        before.append(Path(f"{data}.attfc_index").is_file())
        return samples(*arguments)

    with mock.patch.object(tar_index, "samples", looking):
        try:
            dataset = load_dataset(config, Group(torch.device("cpu"), owned=False))
        except ValueError as cause:
            return {"searches": before, "error": str(cause)}
    return {"searches": before, "labels": dataset.labels.tolist(), "report": dataset.report()}


def turns(folder: str, first_of_machine: int) -> list[str]:
    """Who had been there when this process had its turn."""
    rank = dist.get_rank()
    os.environ["LOCAL_RANK"] = str(rank - first_of_machine if rank >= first_of_machine else rank)

    def make() -> list[str]:
        there = sorted(path.name for path in Path(folder).iterdir())
        (Path(folder) / str(rank)).touch()
        return there

    return Group(torch.device("cpu"), owned=False).in_turn(make)


def beats() -> bool:
    """Whether processes hear of each other while one of them is busy: it goes on after three messages."""
    group, told, third = Group(torch.device("cpu"), owned=False), [], threading.Event()
    total = group.sum

    def counted(value: torch.Tensor) -> torch.Tensor:
        told.append(value)
        if len(told) == 3:
            third.set()
        return total(value)

    with mock.patch.object(process_group, "_BEAT_S", 0.01), mock.patch.object(group, "sum", counted):
        return group.in_turn(lambda: third.wait(60))


def all_cases(folder: str) -> dict[str, Any]:
    """One start of the processes for all of them; folder: with the shards of the tests."""
    (Path(folder) / "turns1").mkdir(exist_ok=True)
    (Path(folder) / "turns3").mkdir(exist_ok=True)
    return {
        "kept": opened(f"{folder}/kept.tar", f"{folder}/caches"),
        "not kept": opened(f"{folder}/not_kept.tar", f"{folder}/kept.tar"),
        "none": opened(f"{folder}/none.tar", f"{folder}/caches"),
        "two machines": turns(f"{folder}/turns1", 1),
        "one machine": turns(f"{folder}/turns3", 3),
        "beats": beats(),
    }
