"""What a process of a group does in the tests of `Shards` and of what composes with it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from sharded_cases import DIM
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attfc_cuda import AdaSin, AttFC, FullyConnected, PartialFC
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.train.process_group import Group

CLASSES = 40


def rows(rank: int, step: int = 0, count: int = 6) -> tuple[Tensor, Tensor]:
    """(inputs [count, DIM], labels) of a process."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return torch.randn(count, DIM, dtype=torch.float64, generator=generator), labels


def sampled() -> dict[str, Any]:
    """A step of Partial FC at a rate below 1, with the sample that each process drew."""
    shards = Shards(averaged_gradients=False)
    torch.manual_seed(0)
    head = PartialFC(DIM, CLASSES, 0.7, margin=AdaSin(), dtype=torch.float64, backend="eager", shards=shards)
    torch.manual_seed(100 + shards.rank)
    select, drawn = head.select, []
    head.select = lambda labels: drawn.append(select(labels)) or drawn[0]
    embeddings, labels = rows(shards.rank)
    embeddings.requires_grad_()
    loss = head(embeddings, labels)
    loss.backward()
    return {
        "loss": loss.detach(), "gradient": embeddings.grad, "center_gradient": head.centers.grad,
        "centers": head.centers.detach(), "classes": drawn[0].center_labels, "fill": head.stats["fill"],
    }  # fmt: skip


def backbone() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, DIM)).double()


def wrapped(equal_batches: bool) -> dict[str, list[Tensor]]:
    """Two steps of a backbone in DistributedDataParallel under each head, with what the gradients of the weights are
    after the average, and the weights in the end."""
    shards = Shards(equal_batches=equal_batches)
    found = {}
    for kind in (FullyConnected, AttFC):
        network = DistributedDataParallel(backbone())
        found[kind.__name__] = two_steps(network, head_of(kind, shards), shards.rank, shards)
    return found


def head_of(kind: type[nn.Module], shards: Shards | None) -> nn.Module:
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "backend": "eager", "shards": shards}
    return AttFC(DIM, 24, num_classes=CLASSES, **options) if kind is AttFC else kind(DIM, CLASSES, **options)


def two_steps(network: nn.Module, head: nn.Module, rank: int, shards: Shards | None) -> list[Tensor]:
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    found = []
    for step in range(2):
        parts = [rows(r, step) for r in (range(2) if shards is None else [rank])]
        inputs, labels = (torch.cat(values) for values in zip(*parts, strict=True))
        gallery = () if isinstance(head, FullyConnected) else (inputs.flip(1),)
        loss = head(network(inputs), labels, *gallery)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found += [loss.detach(), *(p.grad.clone() for p in network.parameters())]
    return [*found, *(p.detach().clone() for p in network.parameters())]


def group_facts() -> dict[str, Any]:
    """All that needs two processes, in one start of them."""
    shards = Shards()
    gathers = [0]
    all_gather = dist.all_gather

    def counted(*arguments: Any, **options: Any) -> Any:
        gathers[0] += 1
        return all_gather(*arguments, **options)

    dist.all_gather = counted
    found: dict[str, Any] = {"sampled": sampled()}
    for equal in (False, True):
        gathers[0] = 0
        found[f"wrapped {equal}"] = wrapped(equal)
        found[f"gathers {equal}"] = gathers[0]
    dist.all_gather = all_gather
    statistics = STATISTICS[shards.rank]
    lse = statistics[0].clone().requires_grad_()
    merged = shards.merge(lse, statistics[1].long(), *statistics[2:], REFERENCE)
    merged[0].sum().backward()
    found["merged"] = [*(value.detach() for value in merged), lse.grad]
    group = Group(torch.device("cpu"))
    buffers = [torch.full((2,), 1.0 + shards.rank), torch.tensor(5.0 - shards.rank)]
    group.broadcast(buffers)
    found["group"] = {
        "buffers": buffers, "sum": group.sum(torch.tensor([1.0 + shards.rank])), "all": group.from_all(shards.rank),
        "signals": [int(group.latest_signal(numbers[shards.rank])) for numbers in ((None, 15), (2, None), (None,) * 2)],
    }  # fmt: skip
    found["copied"] = copy.deepcopy(head_of(FullyConnected, shards)).shards is shards
    try:
        Shards(dist.new_group([1]))
        found["outsider"] = None
    except ValueError as problem:
        found["outsider"] = str(problem)
    return found


INF = float("inf")
# [process][lse, hard_count, max_cosine, omitted_mass] of 4 rows: both, one, the other, no process with negatives.
STATISTICS = torch.tensor(
    [
        [[3.0, 2.0, -INF, -INF], [2, 1, 0, 0], [0.5, 0.1, -INF, -INF], [0.25, 0.5, 0.0, 0.0]],
        [[1.0, -INF, 5.0, -INF], [16777217, 0, 3, 0], [0.75, -INF, 0.3, -INF], [0.0, 0.0, 0.125, 0.0]],
    ],
    dtype=torch.float64,
)
REFERENCE = torch.tensor([2.0, 0.0, 1.0, 4.0], dtype=torch.float64)
