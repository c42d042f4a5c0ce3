"""What a margin adds to a step: state, modulation, target and the gradient of the target cosines, B numbers each."""

from __future__ import annotations

import pytest
import torch

from attfc_cuda import margins

BATCHES = {"small": 128, "readme": 384, "large": 4_096}


@pytest.mark.benchmark(group="margins")
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", margins.NAMES)
def bench_margin(benchmark, name: str, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    margin = margins.build(name)
    cosine = (0.8 * torch.rand(batch, generator=generator)).requires_grad_()
    norm = 5 + 40 * torch.rand(batch, generator=generator) if margin.needs_norm else None
    valid = torch.rand(batch, generator=generator) > 0.1
    hard_count = torch.randint(0, 3, (batch,), generator=generator)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        margin.update(cosine.detach(), norm, valid)
        margin.modulation(cosine, norm)
        target = margin.target(cosine, norm, hard_count)
        return target.detach(), *torch.autograd.grad(target.sum(), cosine)

    target, grad = benchmark(step)
    assert target.shape == grad.shape == cosine.shape
    assert target.isfinite().all() and grad.isfinite().all()
    # A margin makes the target harder, and a better cosine always pays.
    assert (target <= cosine.detach() + 1e-6).all() and (grad > 0).all()
