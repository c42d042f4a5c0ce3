"""ArcFace's target with re-weighted hard negatives: MV-Arc-Softmax (fixed weight) and CurricularFace (curriculum)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attfc_cuda.margins.additive import ArcFace
from attfc_cuda.margins.base import MarginOptions, Modulation, masked_mean, move_average, require

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of Python 3.11 and later; torch brings it


class MVSoftmax(ArcFace):
    """MV-Arc-Softmax (arXiv 1912.00833) with the "fixed" re-weighting h(t, theta) = exp(s (t - 1) (cos theta + 1)).

    T = psi(theta + m); a negative cosine c > T becomes t c + t - 1. The threshold follows psi past pi, as the target
    does, and has no gradient.

    Args:
        m: margin in radians, at least 0.
        t: at least 1; 1.12 in the authors' code.
        **base: the arguments of `Margin`.
    """

    def __init__(self, m: float = 0.5, t: float = 1.12, **base: Unpack[MarginOptions]) -> None:
        super().__init__(m, **base)
        require("MVSoftmax", "t", "be a finite number of at least 1", t, lambda: 1 <= t < math.inf)
        self.fixed_t = t

    def modulation(self, cosine: Tensor, norm: Tensor | None = None) -> Modulation:
        zero = torch.zeros_like(cosine)
        threshold = self.target_cosine(cosine, norm, None).detach()
        return Modulation(threshold, zero, zero + self.fixed_t, zero + (self.fixed_t - 1))

    def extra_repr(self) -> str:
        return f"t={self.fixed_t}, {super().extra_repr()}"


class CurricularFace(ArcFace):
    """CurricularFace (arXiv 2004.00288: its T, N(t, cos theta_j) and the running mean t).

    T = psi(theta + m); a negative cosine c > T becomes c (t + c); t <- momentum t + (1 - momentum) mean(cos theta)
    before each step, t0 = 0, never differentiated. The threshold follows psi past pi, as the target does, and has no
    gradient.

    Args:
        m: margin in radians, at least 0.
        momentum: of t, in [0, 1]; 0.99 as published.
        **base: the arguments of `Margin`.

    Attributes:
        t: buffer, 0-dim float32: the running state.
    """

    t: Tensor

    def __init__(self, m: float = 0.5, momentum: float = 0.99, **base: Unpack[MarginOptions]) -> None:
        super().__init__(m, **base)
        require("CurricularFace", "momentum", "lie in [0, 1]", momentum, lambda: 0 <= momentum <= 1)
        self.momentum = momentum
        self.register_buffer("t", torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.t.zero_()

    def modulation(self, cosine: Tensor, norm: Tensor | None = None) -> Modulation:
        zero = torch.zeros_like(cosine)
        # `zero + t` is a copy: a view of the buffer would be overwritten by the next step's update before backward.
        return Modulation(self.target_cosine(cosine, norm, None).detach(), zero + 1, zero + self.t, zero)

    def move(self, cosine: Tensor, norm: Tensor | None, valid: Tensor) -> None:
        move_average(self.t, masked_mean(cosine, valid), self.momentum, valid.any())

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, {super().extra_repr()}"
