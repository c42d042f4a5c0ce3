"""The loss over a container alone, as in an evaluation; sweep.py measures it with its gradient."""

from __future__ import annotations

import pytest
import torch

from attfc_cuda import negative_logsumexp, testing
from attfc_cuda.ops import eager

BATCH, DIM = 384, 512
SIZES = {"small": 4_096, "ms1m": 27_648, "readme": 100_000}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHECKED_ROWS = 4  # rows do not know of each other, so a few of them tell against the oracle


@pytest.mark.benchmark(group="loss alone")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("centers", SIZES.values(), ids=SIZES)
def bench_logsumexp(benchmark, centers: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    w = testing.unit(torch.randn(centers, DIM, generator=generator))
    labels = torch.randperm(centers, generator=generator)[:BATCH]
    # Half way from chance to what a trained network reaches.
    x, w = testing.at_cosine(w[labels], 0.4, generator).to(dtype), w.to(dtype)
    center_labels = torch.arange(centers)
    lse = benchmark(lambda: negative_logsumexp(x, w, labels, center_labels, scale=64.0).lse)
    few = slice(CHECKED_ROWS)
    truth, *_ = eager.negative_logsumexp(x[few].float(), w.float(), labels[few], center_labels, scale=64.0)
    assert lse.shape == (BATCH,) and lse.isfinite().all()
    torch.testing.assert_close(lse[few], truth, rtol=1e-4, atol=1e-4)
