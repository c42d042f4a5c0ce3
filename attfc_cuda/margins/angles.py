"""The two functions of an angle that margins are made of, each safe where the textbook's is not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The last step of float32 below 1. Beyond it the angle follows its chord: see `angle`.
_EDGE = 1 - 2.0**-23
_CHORD_SLOPE = math.acos(_EDGE) / (1 - _EDGE)


def angle(cosine: Tensor) -> Tensor:
    """theta = acos(cosine), with a derivative that stays finite at +-1.

    Equals acos for |cosine| <= 1 - 2^-23 and at +-1. In the last float32 step before +-1, where acos' = -1 / sin theta
    grows without bound, the angle follows its chord (slope -4096): exact at both ends, monotonic, and off by less than
    1.3e-4 rad in between. Outside [-1, 1], which only rounding reaches, it is clamped and has no gradient. NaN stays
    NaN.

    This is our choice: after the chain rule of the normalisation, which contributes sin theta, the gradient of the
    embedding is unchanged except in the last 5e-4 rad, and a target at exactly +-1 gives numbers instead of NaN.

    Args:
        cosine: any shape, any floating dtype.

    Returns:
        Angles in radians, of the same shape and dtype.
    """
    # `where` instead of clamp: the derivative of clamp at exactly its bound differs between versions of PyTorch.
    size = cosine.abs()
    near_end = size > _EDGE
    arc = torch.acos(torch.where(near_end, 0, cosine))
    chord = torch.where(size <= 1, _CHORD_SLOPE * (1 - size), 0)
    return torch.where(near_end, torch.where(cosine > 0, chord, math.pi - chord), arc)


def psi(angle: Tensor) -> Tensor:
    """The cosine up to pi, continued so that it keeps falling; every margin that is added to an angle goes through it.

    psi(a) = cos a for a <= pi and -2 - cos a for pi < a <= 2 pi; beyond that the same fold repeats, so that for every
    a >= 0: psi(a) = (-1)^k cos a - 2 k with k = floor(a / pi), the psi of SphereFace's A-Softmax (arXiv 1704.08063). It
    is C1 and monotonically falling on a >= 0. Below 0 it is cos a.

    Args:
        angle: radians, any shape, any floating dtype.

    Returns:
        Values of the same shape and dtype. Their gradient is the derivative of the value, everywhere.
    """
    folds = torch.floor(angle.detach() / math.pi).clamp(min=0)
    sign = 1 - 2 * torch.remainder(folds, 2)
    return sign * torch.cos(angle) - 2 * folds
