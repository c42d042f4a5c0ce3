"""Class codes: a fixed random direction for each class, made from its number alone, so that nothing is stored."""

from __future__ import annotations

import torch
from torch import Tensor


def class_codes(labels: Tensor, dim: int) -> Tensor:
    """The code of each label, a unit vector of pseudo-random signs: [B, dim] float32, entries +-dim^-0.5.

    labels [B] int64, of any value. The sign is the last bit of a hash of (label, dimension), the finalizer of
    splitmix64, so that codes are the same on every device and in every run, and those of different labels are as good
    as independent: their cosines have mean 0 and standard deviation dim^-0.5.
    """
    x = labels[:, None] * dim + torch.arange(dim, device=labels.device)
    # Shifts of signed numbers keep the sign: the masks make them those of unsigned ones. Products wrap around.
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    return (1 - 2 * (x & 1)).float() * dim**-0.5
