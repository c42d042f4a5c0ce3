"""Making the generative class centres of a batch from its gallery embeddings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attfc_cuda import generate_class_centers

SHAPES = {"small": (128, 128), "readme": (384, 512)}  # batch, dim


@pytest.mark.benchmark(group="class centres")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("gallery_size", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def bench_class_centers(benchmark, shape: tuple[int, int], gallery_size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, dim = shape
    probe = torch.randn(batch, dim, generator=generator).to(dtype)
    gallery = torch.randn(batch, gallery_size, dim, generator=generator).to(dtype)
    centers = benchmark(generate_class_centers, probe, gallery, temperature=0.5)
    x, g = probe.double(), gallery.double()
    attention = torch.softmax(F.cosine_similarity(x[:, None], g, dim=2) / 0.5, dim=1)
    truth = F.normalize((attention[:, :, None] * g).sum(dim=1))
    # float32 inside whatever the inputs' dtype.
    torch.testing.assert_close(centers.double(), truth, rtol=1e-5, atol=1e-6)
