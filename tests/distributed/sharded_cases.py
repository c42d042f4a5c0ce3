"""Heads and batches that one process and several must agree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attfc_cuda import AttFC, FullyConnected, PartialFC, margins
from attfc_cuda.distributed.shards import Shards

DIM, LR = 16, 0.1
BACKENDS = ("eager", "cpu")
# Centres of length 0.04 make 25 of the rounding of one step in the next: float32 is compared after the first.
STEPS = {torch.float32: 1, torch.float64: 3}


class Case(NamedTuple):
    """head: builds it, given `shards`, `dtype` and `backend`. fused: optimizer in the backward pass, its arguments.

    Rows of step k on process r of n: `rows_of(k, r, n)`, unequal, with none at all in one place.
    """

    head: Callable[..., torch.nn.Module]
    classes: int = 13
    fused: dict[str, Any] | None = None
    extra: bool = False
    ignored: bool = False


def fc(margin: str, classes: int = 13, kind: type = FullyConnected, **options: Any) -> Callable[..., torch.nn.Module]:
    own = {"sample_rate": 1.0} if kind is PartialFC else {}
    return lambda **rest: kind(DIM, classes, margin=margins.build(margin, scale=16.0, **options), **own, **rest)


def attfc(margin: str, capacity: int = 31, policy: str = "fifo", enqueue: str = "before", **options: Any) -> Callable:
    return lambda **rest: AttFC(
        DIM,
        capacity,
        margins.build(margin, scale=16.0, **options),
        policy,
        enqueue,
        num_classes=13,
        preset="published",
        **rest,
    )


# With a small margin a row has hard negatives in some processes' classes and none in others'.
CASES = {
    "fc adasin": Case(fc("adasin", m=0.1)),
    "fc adasin, phi differentiated": Case(fc("adasin", m=0.1, detach_difficulty=False), ignored=True),
    "fc curricularface": Case(fc("curricularface", m=0.1)),
    "fc arcface": Case(fc("arcface"), ignored=True),
    "fc adaface": Case(fc("adaface")),
    "fc magface, gradient to the norm": Case(fc("magface", l_a=0.5, u_a=4.0), ignored=True),
    "fc interclass filter": Case(fc("arcface", interclass_filter=0.3)),
    "fc, trimmed": Case(fc("adasin", m=0.1, trim=0.3), ignored=True),
    "fc, a process without classes": Case(fc("adasin", classes=4), classes=4, ignored=True),
    "fc, two classes": Case(fc("adasin", classes=2), classes=2),
    "fc, fused sgd": Case(fc("adasin"), fused={"momentum": 0.9, "weight_decay": 0.01}, ignored=True),
    "fc, fused adamw": Case(fc("arcface"), fused={"kind": "adamw", "weight_decay": 0.01}),
    "fc, fused, a process without classes": Case(fc("adasin", classes=4), classes=4, fused={"kind": "adamw"}),
    "partial fc, all classes": Case(fc("adasin", kind=PartialFC)),
    "attfc adasin": Case(attfc("adasin", detach_difficulty=False), extra=True, ignored=True),
    "attfc curricularface": Case(attfc("curricularface", enqueue="after"), extra=True),
    "attfc magface": Case(attfc("magface", l_a=0.5, u_a=4.0), ignored=True),
    "attfc, trimmed": Case(attfc("adasin", trim=0.3), extra=True, ignored=True),
    "attfc refresh": Case(attfc("adasin", policy="refresh"), extra=True, ignored=True),
    "attfc refresh, eviction": Case(attfc("arcface", capacity=10, policy="refresh", enqueue="after"), ignored=True),
    "attfc, a process without slots": Case(attfc("adaface", capacity=10)),
}


def rows_of(step: int, rank: int, count: int) -> slice:
    """This process's rows among the 9 of a step: unequal parts, and in step 1 none at all on the last process."""
    cuts = {1: [0, 9], 2: [[0, 5, 9], [0, 9, 9], [0, 2, 9]], 3: [[0, 5, 8, 9], [0, 2, 9, 9], [0, 3, 6, 9]]}[count]
    cuts = cuts if count == 1 else cuts[step]
    return slice(cuts[rank], cuts[rank + 1])


class Batch(NamedTuple):
    embeddings: Tensor
    labels: Tensor
    gallery: Tensor
    extra_centers: Tensor
    extra_labels: Tensor


def batch(case: Case, step: int, dtype: torch.dtype) -> Batch:
    """The 9 rows of a step. Some are near others' class directions, so that some, not all, have hard negatives."""
    generator = torch.Generator().manual_seed(100 + step)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    directions = normal(case.classes, DIM)
    labels = torch.randint(0, case.classes, (9,), generator=generator)
    embeddings = directions[labels] + normal(9, DIM)
    gallery = directions[labels][:, None] + normal(9, 2, DIM)
    count = 9 if case.extra else 0
    extra_labels = torch.randint(0, case.classes, (count,), generator=generator)
    extra = directions[extra_labels] + normal(count, DIM)
    if case.ignored:
        for row in (1, 7):
            labels[row], embeddings[row], gallery[row] = -1, math.nan, math.inf
        if case.extra:
            extra_labels[4], extra[4] = -1, math.nan
    return Batch(embeddings.to(dtype), labels, gallery.to(dtype), extra.to(dtype), extra_labels)


def train(case: Case, dtype: torch.dtype, backend: str, shards: Shards | None = None) -> dict[str, list[Tensor]]:
    """Some steps of a head on this process's rows: what each step yields, and what the head holds in the end."""
    torch.manual_seed(0)
    head = case.head(dtype=dtype, backend=backend, **({} if shards is None else {"shards": shards}))
    rank, count = (0, 1) if shards is None else (shards.rank, shards.count)
    factor = 1.0 if shards is None else shards.gradient_factor
    trained = isinstance(head, FullyConnected)
    if case.fused is not None:
        fused = head.fuse_optimizer(LR, **case.fused)
    found: dict[str, list[Tensor]] = {"loss": [], "gradient": [], "centers": [], "center_gradient": []}
    for step in range(STEPS[dtype]):
        rows = rows_of(step, rank, count)
        part = Batch(*(value[rows] for value in batch(case, step, dtype)))
        embeddings = part.embeddings.requires_grad_()
        if trained:
            loss = head(embeddings, part.labels)
        else:
            extra = {"extra_centers": part.extra_centers, "extra_labels": part.extra_labels} if case.extra else {}
            loss = head(embeddings, part.labels, part.gallery, **extra)
        # Another factor than 1 from above, the same on all processes.
        (loss * 1.7).backward()
        found["loss"].append(loss.detach())
        found["gradient"].append(embeddings.grad / factor)
        for name, value in head.stats.items():
            found.setdefault(f"stats.{name}", []).append(value.double())
        if trained and case.fused is None:
            found["center_gradient"].append(head.centers.grad.clone())
            with torch.no_grad():
                head.centers -= LR * head.centers.grad
            head.centers.grad = None
    container = None if trained else head.container
    found["centers"].append((head.centers if trained else container.centers).detach().clone())
    for name, value in head.margin.named_buffers():
        found[f"margin.{name}"] = [value]
    if case.fused is not None:
        for name, value in fused.state[head.centers].items():
            found[f"optimizer.{name}"] = [value]
    if not trained:
        for name, value in container.named_buffers():
            if name != "centers":
                found[f"container.{name}"] = [value]
    return found


def every_case(averaged: bool) -> dict[tuple, dict]:
    """All cases, on a process of a group."""
    shards = Shards(averaged_gradients=averaged)
    return {
        (name, dtype, backend): train(case, dtype, backend, shards)
        for name, case in CASES.items()
        for dtype in STEPS
        for backend in BACKENDS
    }
