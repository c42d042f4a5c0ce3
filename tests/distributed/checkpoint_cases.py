"""Heads that are saved by some processes and go on with others; steps of them, on their processes' rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sharded_cases import CASES, Batch, Case, attfc, batch, fc, rows_of
from torch import Tensor

from attfc_cuda import FullyConnected, PartialFC
from attfc_cuda.distributed import checkpoint as head_checkpoint
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.distributed.split_state import parts_of

SAVED = {
    "fc, fused sgd": CASES["fc, fused sgd"],
    "fc, fused adamw": CASES["fc, fused adamw"],
    "fc, own sgd": Case(fc("curricularface")),
    "fc, own adamw, a process without classes": Case(fc("adaface", classes=4), classes=4),
    "partial fc": Case(fc("adasin", kind=PartialFC), fused={}),
    "attfc": Case(attfc("adasin", capacity=34)),
    "attfc refresh": Case(attfc("adasin", capacity=10, policy="refresh")),
}
# Six classes stay, in another order; two of the three new ones are the first and the last.
MAPPING = torch.tensor([-1, 12, 3, 0, -1, 7, 5, 6, -1])


class Trainee:
    """A head with its optimizer, on this process's rows."""

    def __init__(self, name: str, shards: Shards | None) -> None:
        self.case, self.shards = SAVED[name], shards
        # Another start on each: what is loaded must not be there already.
        torch.manual_seed(0 if shards is None else shards.count)
        self.head = self.case.head(dtype=torch.float64, backend="eager", shards=shards)
        self.optimizer = None
        if self.case.fused is not None:
            self.optimizer = self.head.fuse_optimizer(0.1, **self.case.fused)
        elif isinstance(self.head, FullyConnected):
            kind = torch.optim.AdamW if "adamw" in name else torch.optim.SGD
            options: dict[str, Any] = {} if kind is torch.optim.AdamW else {"momentum": 0.9}
            self.optimizer = kind(self.head.parameters(), lr=0.1, **options)

    def step(self, number: int, data: Batch | None = None) -> Tensor:
        rank, count = (0, 1) if self.shards is None else (self.shards.rank, self.shards.count)
        rows = rows_of(number % 3, rank, count)
        part = Batch(*(value[rows] for value in (data or batch(self.case, number, torch.float64))))
        if isinstance(self.head, FullyConnected):
            loss = self.head(part.embeddings, part.labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            loss = self.head(part.embeddings.requires_grad_(), part.labels, part.gallery)
        return loss.detach()


def begin(folder: str, shards: Shards | None) -> dict[str, list[Tensor]]:
    """Two steps, a checkpoint, and the losses of the two steps that follow."""
    following = {}
    for name in SAVED:
        trainee = Trainee(name, shards)
        for number in range(2):
            trainee.step(number)
        head_checkpoint.save(trainee.head, Path(folder) / name, trainee.optimizer)
        following[name] = [trainee.step(number) for number in (2, 3)]
    return following


def go_on(folder: str, to: str | None, shards: Shards | None) -> dict[str, list[Tensor]]:
    """The losses of the next two steps from the checkpoint, which is also written again, to the folder `to`."""
    following = {}
    for name in SAVED:
        trainee = Trainee(name, shards)
        head_checkpoint.load(trainee.head, Path(folder) / name, trainee.optimizer)
        if to is not None:
            head_checkpoint.save(trainee.head, Path(to) / name, trainee.optimizer)
        following[name] = [trainee.step(number) for number in (2, 3)]
    return following


def go_on_sharded(folder: str, to: str | None) -> dict[str, list[Tensor]]:
    return go_on(folder, to, Shards())


def resized(folder: str, name: str, shards: Shards | None) -> dict[str, Any]:
    """A checkpoint's head under `MAPPING`: what it holds, and the loss of a step on the new classes."""
    trainee = Trainee(name, shards)
    head_checkpoint.load(trainee.head, Path(folder) / name, trainee.optimizer)
    if isinstance(trainee.head, FullyConnected):
        torch.manual_seed(5)
        own = None if trainee.case.fused is not None else trainee.optimizer
        trainee.head.resize_classes(MAPPING, own)
    else:
        trainee.head.resize_classes(MAPPING)
    state = {key: value.clone() for key, value in trainee.head.state_dict().items()}
    split = {key: part.tensor.detach().clone() for key, part in parts_of(
        trainee.head, trainee.optimizer).items()}  # fmt: skip
    data = batch(trainee.case._replace(classes=len(MAPPING)), 7, torch.float64)
    return {"state": state, "split": split, "loss": trainee.step(2, data)}


RESIZED = ("fc, fused adamw", "fc, own sgd", "partial fc", "attfc", "attfc refresh")


def begin_sharded(folder: str) -> tuple[dict[str, list[Tensor]], dict[str, dict[str, Any]]]:
    """`begin`, and the checkpoints' heads as `resized` makes them."""
    shards = Shards()
    return begin(folder, shards), {name: resized(folder, name, shards) for name in RESIZED}
