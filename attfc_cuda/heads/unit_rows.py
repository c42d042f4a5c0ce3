"""Embeddings of unit length, in a precision that a loss can be computed in."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from attfc_cuda.functional import SHORTEST_ROW


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x / |x| [B, D], |x| [B]) in float32 (float64 stays), 0 and without gradient where |x| is below `SHORTEST_ROW`.

    F.normalize would divide such a row, and its gradient, by 1e-12: finite, and enough to end a training run.
    """
    x = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(x, dim=1)
    # Written so that a NaN fails the comparison and stays NaN in the product.
    inverse = torch.where(norm < SHORTEST_ROW, 0, 1 / norm.clamp_min(SHORTEST_ROW))
    return x * inverse[:, None], norm


def without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """A context in which autocast is off, on devices that have it."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
