"""Writing a batch of class centres into the container, both policies."""

from __future__ import annotations

import pytest
import torch

from attfc_cuda import DynamicClassContainer

BATCH, DIM = 384, 512
CAPACITIES = {"small": 4_096, "readme": 100_000}
CLASSES_A_SLOT = 10  # a container of 10 %


@pytest.mark.benchmark(group="enqueue")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("capacity", CAPACITIES.values(), ids=CAPACITIES)
@pytest.mark.parametrize("policy", ["fifo", "refresh"])
def bench_enqueue(benchmark, policy: str, capacity: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = CLASSES_A_SLOT * capacity
    container = DynamicClassContainer(capacity, DIM, num_classes=classes, policy=policy, dtype=dtype)
    centers = torch.nn.functional.normalize(torch.randn(BATCH, DIM, generator=generator))
    # Full, so that each new class drives one out.
    for first in range(0, capacity, BATCH):
        rows = min(BATCH, capacity - first)
        container.enqueue(centers[:rows], torch.arange(first, first + rows))
    batches = [torch.randperm(classes, generator=generator)[:BATCH] for _ in range(8)]
    calls = []

    def enqueue() -> None:
        calls.append(batches[len(calls) % len(batches)])
        container.enqueue(centers, calls[-1])

    benchmark(enqueue)
    assert container.fill == capacity
    # The newest copy of each class of the last batch holds its row, in the container's own dtype.
    newest = torch.where(
        container.labels[None] == calls[-1][:, None], container.age[None], capacity * BATCH * len(calls)
    )
    slots = newest.argmin(dim=1)
    assert torch.equal(container.labels[slots], calls[-1])
    assert torch.equal(container.centers[slots], centers.to(dtype))
