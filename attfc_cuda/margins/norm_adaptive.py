"""Margins that read image quality from the embedding's norm before normalisation: AdaFace and MagFace."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attfc_cuda.margins.angles import angle, psi
from attfc_cuda.margins.base import Margin, MarginOptions, masked_mean, move_average, require

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of Python 3.11 and later; torch brings it


class AdaFace(Margin):
    """AdaFace (arXiv 2204.00964: its g_angle and g_add).

        z = clip(h (|x| - mean) / (std + 1e-3), -1, 1)    norm, clipped to [1e-3, 100], against its running statistics
        T = psi(max(theta - m z, 0)) - (m + m z)

    Args:
        m: margin, at least 0; published 0.4.
        h: concentration, at least 0; published 0.333.
        momentum: of the running mean and (unbiased) standard deviation of the norms, in [0, 1]; both move before each
            step. A batch with one valid row moves the mean alone, our choice: it has no spread.
        **base: the arguments of `Margin`.

    Attributes:
        norm_mean: buffer, 0-dim float32, from 20 (the authors' start).
        norm_std: buffer, 0-dim float32, from 100 (the authors' start).

    Gradient:
        None to the norm, as published. Where theta < m z the angle stays at 0 (published: clipped at 1e-3), so T is
        flat there; past pi it follows psi, where the authors clip.
    """

    needs_norm = True
    norm_mean: Tensor
    norm_std: Tensor

    def __init__(self, m: float = 0.4, h: float = 0.333, momentum: float = 0.99, **base: Unpack[MarginOptions]) -> None:
        super().__init__(**base)
        require("AdaFace", "m", "be a finite number of at least 0", m, lambda: 0 <= m < math.inf)
        require("AdaFace", "h", "be a finite number of at least 0", h, lambda: 0 <= h < math.inf)
        require("AdaFace", "momentum", "lie in [0, 1]", momentum, lambda: 0 <= momentum <= 1)
        self.m, self.h, self.momentum = m, h, momentum
        self.register_buffer("norm_mean", torch.empty((), dtype=torch.float32))
        self.register_buffer("norm_std", torch.empty((), dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.norm_mean.fill_(20.0)
        self.norm_std.fill_(100.0)

    def target_cosine(self, cosine: Tensor, norm: Tensor | None, hard_count: Tensor | None) -> Tensor:
        quality = (self._clipped(norm) - self.norm_mean) / (self.norm_std + 1e-3)
        quality = (self.h * quality).clamp(-1, 1)
        return psi((angle(cosine) - self.m * quality).clamp(min=0)) - (self.m + self.m * quality)

    def move(self, cosine: Tensor, norm: Tensor | None, valid: Tensor) -> None:
        clipped = self._clipped(norm)
        count = valid.sum()
        mean = masked_mean(clipped, valid)
        variance = torch.where(valid, (clipped - mean) ** 2, 0).sum() / (count - 1).clamp(min=1)
        move_average(self.norm_mean, mean, self.momentum, count >= 1)
        move_average(self.norm_std, variance.sqrt(), self.momentum, count >= 2)

    @staticmethod
    def _clipped(norm: Tensor) -> Tensor:
        return norm.detach().clamp(1e-3, 100)

    def extra_repr(self) -> str:
        return f"m={self.m}, h={self.h}, momentum={self.momentum}, {super().extra_repr()}"


class MagFace(Margin):
    """MagFace (arXiv 2103.06627: its m(a) and g(a), with the linear margin of its experiments).

        a = clip(|x|, l_a, u_a)      m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)
        T = psi(theta + m(a))        each row's loss gains lambda_g (1 / a + a / u_a^2)

    Args:
        l_a: norm from which the margin grows, above 0.
        u_a: norm up to which it grows, above l_a.
        l_m: the margin at l_a, in radians, at least 0.
        u_m: the margin at u_a, in radians, at least l_m.
        lambda_g: weight of the regulariser, at least 0. It acts on every valid row, including one without negatives.
        **base: the arguments of `Margin`.

    Gradient:
        To the norm through m(a) and the regulariser; 0 where the norm is clipped. Past pi: psi, our choice.
    """

    needs_norm = True

    def __init__(
        self,
        l_a: float = 10.0,
        u_a: float = 110.0,
        l_m: float = 0.45,
        u_m: float = 0.8,
        lambda_g: float = 35.0,
        **base: Unpack[MarginOptions],
    ) -> None:
        super().__init__(**base)
        require("MagFace", "l_a, u_a", "satisfy 0 < l_a < u_a", (l_a, u_a), lambda: 0 < l_a < u_a < math.inf)
        require("MagFace", "l_m, u_m", "satisfy 0 <= l_m <= u_m", (l_m, u_m), lambda: 0 <= l_m <= u_m < math.inf)
        require("MagFace", "lambda_g", "be a finite number of at least 0", lambda_g, lambda: 0 <= lambda_g < math.inf)
        self.l_a, self.u_a, self.l_m, self.u_m, self.lambda_g = l_a, u_a, l_m, u_m, lambda_g

    def target_cosine(self, cosine: Tensor, norm: Tensor | None, hard_count: Tensor | None) -> Tensor:
        magnitude = norm.clamp(self.l_a, self.u_a)
        margin = self.l_m + (self.u_m - self.l_m) / (self.u_a - self.l_a) * (magnitude - self.l_a)
        return psi(angle(cosine) + margin)

    def regularizer(self, cosine: Tensor, norm: Tensor | None = None) -> Tensor:
        magnitude = norm.clamp(self.l_a, self.u_a)
        return self.lambda_g * (1 / magnitude + magnitude / self.u_a**2)

    def extra_repr(self) -> str:
        own = f"l_a={self.l_a}, u_a={self.u_a}, l_m={self.l_m}, u_m={self.u_m}, lambda_g={self.lambda_g}"
        return f"{own}, {super().extra_repr()}"
