"""The sweep over the container: the loss alone, and loss with gradient, through the public functions."""

from __future__ import annotations

import functools

import pytest
import torch

from attfc_cuda import AdaSin, ArcFace, Margin, margin_softmax_loss, negative_logsumexp, testing
from attfc_cuda.ops import eager

BATCH, DIM = 384, 512
SIZES = {"small": 4_096, "ms1m": 27_648, "readme": 100_000}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHECKED_ROWS = 4  # rows do not know of each other, so a few of them tell against the oracle
MARGINS = {"adasin": AdaSin, "arcface": ArcFace}


@functools.lru_cache(maxsize=1)
def make_inputs(centers: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    w = testing.unit(torch.randn(centers, DIM, generator=generator))
    labels = torch.randperm(centers, generator=generator)[:BATCH]
    # Half way from chance to what a trained network reaches.
    x = testing.at_cosine(w[labels], 0.4, generator)
    return x.to(dtype), w.to(dtype), labels, torch.arange(centers)


@pytest.mark.benchmark(group="sweep: loss alone")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("centers", SIZES.values(), ids=SIZES)
def bench_logsumexp(benchmark, centers: int, dtype: torch.dtype) -> None:
    x, w, labels, center_labels = make_inputs(centers, dtype)
    lse = benchmark(lambda: negative_logsumexp(x, w, labels, center_labels, scale=64.0).lse)
    few = slice(CHECKED_ROWS)
    truth, *_ = eager.negative_logsumexp(x[few].float(), w.float(), labels[few], center_labels, scale=64.0)
    assert lse.shape == (BATCH,) and lse.isfinite().all()
    torch.testing.assert_close(lse[few], truth, rtol=1e-4, atol=1e-4)


@pytest.mark.benchmark(group="sweep: loss and gradient")
@pytest.mark.parametrize("margin", MARGINS.values(), ids=MARGINS)  # varies first: the inputs are made once
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("centers", SIZES.values(), ids=SIZES)
def bench_loss(benchmark, margin: type[Margin], centers: int, dtype: torch.dtype) -> None:
    x, w, labels, center_labels = make_inputs(centers, dtype)
    layer = margin().eval()

    def step(rows: slice = slice(None), backend: str = "auto", wide: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        own, of = (x.float(), w.float()) if wide else (x, w)
        own, whose = own[rows].detach().requires_grad_(), labels[rows]
        cosine = (own.float() * of[whose].float()).sum(dim=1)
        out = margin_softmax_loss(
            own,
            of,
            whose,
            center_labels,
            layer,
            target_cosine=cosine,
            reduction="sum",
            grad_tolerance=0.0,
            backend=backend,
        )
        return out.rows.detach(), *torch.autograd.grad(out.loss, own)

    rows, grad = benchmark(step)
    assert rows.shape == (BATCH,) and grad.shape == x.shape and grad.isfinite().all()
    few = slice(CHECKED_ROWS)
    true_rows, true_grad = step(few, backend="eager", wide=True)
    torch.testing.assert_close(rows[few], true_rows, rtol=1e-3, atol=1e-3)
    # Probabilities and the gradient itself are rounded to the embeddings' dtype.
    testing.assert_gradient_close(grad[few], true_grad, relative_l2=max(1e-4, 2 * torch.finfo(dtype).eps))
