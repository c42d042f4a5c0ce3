"""A whole training step of AttFC with AdaSin, fused and one operator at a time, beside its sweep alone: what stands
around the sweep is the difference."""

from __future__ import annotations

import functools

import pytest
import torch

from attfc_cuda import AttFC, testing
from attfc_cuda.heads import fused_step
from attfc_cuda.ops.autograd import negative_logsumexp_operator

BATCH, DIM, GALLERY = 384, 512, 2
CAPACITIES = {"small": 512, "readme": 65_536}
CLASSES_A_SLOT = 10  # a container of 10 %


def full_head(capacity: int, generator: torch.Generator) -> AttFC:
    """A head whose container is full, of a class in each slot."""
    head = AttFC(
        DIM, capacity, policy="refresh", num_classes=CLASSES_A_SLOT * capacity, class_code=1.0, check_labels=False
    )
    for first in range(0, capacity, BATCH):
        rows = min(BATCH, capacity - first)
        centers = testing.unit(torch.randn(rows, DIM, generator=generator))
        head.container.enqueue(centers, torch.arange(first, first + rows))
    return head


def step(head: AttFC, embeddings: torch.Tensor, labels: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    embeddings.grad = None
    loss = head(embeddings, labels, gallery)
    loss.backward()
    return loss.detach()


@pytest.mark.benchmark(group="head step")
@pytest.mark.parametrize("what", ["sweep", "fused", "one operator at a time"])
@pytest.mark.parametrize("capacity", CAPACITIES.values(), ids=CAPACITIES)
def bench_head_step(benchmark, monkeypatch: pytest.MonkeyPatch, capacity: int, what: str) -> None:
    generator = torch.Generator().manual_seed(0)
    head = full_head(capacity, generator)
    labels = torch.randperm(head.container.num_classes, generator=generator)[:BATCH]
    embeddings = torch.randn(BATCH, DIM, generator=generator, requires_grad=True)
    gallery = embeddings.detach()[:, None] + torch.randn(BATCH, GALLERY, DIM, generator=generator)
    run = functools.partial(step, head, embeddings, labels, gallery)
    fused = run()
    assert "fused_step=True" in repr(head) and fused.isfinite()
    if what == "sweep":
        # The operator as the step calls it, on rows that make the same negatives hard.
        units = testing.unit(embeddings.detach())
        values = torch.ops.attfc.adasin_row_values(
            labels, (units * testing.unit(gallery.mean(1))).sum(1), torch.zeros(()), 0.5, 1.5, 0.99, 64.0, True, False
        )
        container, sweep = head.container, negative_logsumexp_operator("cpu")
        lse = benchmark(
            lambda: sweep(units, container.centers, labels, container.labels, None, values, 64.0, 0.0, True, False)[0]
        )
        assert lse.isfinite().all()
        return
    if what != "fused":
        monkeypatch.setattr(fused_step, "why_not", lambda *_: what)
    loss = benchmark(run)
    assert loss.isfinite() and embeddings.grad.isfinite().all()
