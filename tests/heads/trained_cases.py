"""Shared by the tests of heads with trained centres: a small head of a fixed seed, and a batch for it."""

from __future__ import annotations

import torch
from torch import Tensor

from attfc_cuda import ArcFace, FullyConnected


def make(head: type, classes: int = 40, dim: int = 16, **options) -> FullyConnected:
    torch.manual_seed(0)
    made = head(dim, classes, **{"margin": ArcFace(scale=24.0), **options})
    made.centers.data.normal_()
    return made


def batch(rows: int = 12, classes: int = 40, dim: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[1::5] = labels[0]
    return torch.randn(rows, dim, generator=generator) * 3, labels
