"""AdaSin: the sine of the angle to the own centre as difficulty, a penalty on positive and hard negatives alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attfc_cuda.margins.angles import angle, psi
from attfc_cuda.margins.base import Margin, MarginOptions, Modulation, masked_mean, move_average, require

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of Python 3.11 and later; torch brings it


class AdaSin(Margin):
    """AdaSin (arXiv 2503.03528): difficulty D, curriculum t, and one coefficient Phi that acts on both sides.

    Published: D(theta) = sin(theta / 2); Phi = t + h D(theta_y), with t a running mean of cos theta_y; the penalty is
    dual, on the margin of the positive and on the cosines of the negatives, for hard samples.

    Our choice, where the published text leaves it open:

        threshold    psi(theta_y + m)
        negatives    Phi c                      where c > threshold, else c
        T            psi(theta_y + Phi m)       if the row has any hard negative, else psi(theta_y + m)
        t            <- momentum t + (1 - momentum) mean(cos theta_y) before each step, t0 = 0, never differentiated
        h = 1.5      so that Phi >= 1 for a hard sample from the start; with h = 1 the first steps ease hard negatives
                     instead and leave a tail of impostors
        Phi          not differentiated: otherwise lowering theta_y lowers every hard negative at once, and training can
                     collapse to a cone
        psi          the continuation of the cosine past pi (`margins.psi`)

    With this form and these constants, at m 0.2 and scale 24, it is level with ArcFace under a full FC layer on real
    faces (3 seeds; docs/learning.md, which also says what each part is worth).

    Args:
        m: margin in radians, at least 0.
        h: weight of the difficulty, at least 0.
        momentum: of t, in [0, 1].
        detach_difficulty: False differentiates Phi through D.
        difficulty: "half_angle" for sin(theta / 2), which grows up to pi; "angle" for sin theta, which falls again past
            pi / 2.
        positive_penalty: for ablations; False: T = psi(theta_y + m) always.
        negative_penalty: for ablations; False: hard negatives are counted but keep their cosine.
        curriculum: for ablations; False: t stays 0, so that Phi = h D.
        **base: the arguments of `Margin`.

    Attributes:
        t: buffer, 0-dim float32: the running state.

    Gradient:
        None to the threshold. With gradient="straight_through" dT/dcos = 1, whatever detach_difficulty says; the Phi of
        the negatives still follows detach_difficulty.
    """

    t: Tensor

    def __init__(
        self,
        m: float = 0.5,
        h: float = 1.5,
        momentum: float = 0.99,
        *,
        detach_difficulty: bool = True,
        difficulty: str = "half_angle",
        positive_penalty: bool = True,
        negative_penalty: bool = True,
        curriculum: bool = True,
        **base: Unpack[MarginOptions],
    ) -> None:
        super().__init__(**base)
        require("AdaSin", "m", "be a finite number of at least 0", m, lambda: 0 <= m < math.inf)
        require("AdaSin", "h", "be a finite number of at least 0", h, lambda: 0 <= h < math.inf)
        require("AdaSin", "momentum", "lie in [0, 1]", momentum, lambda: 0 <= momentum <= 1)
        known = difficulty in ("half_angle", "angle")
        require("AdaSin", "difficulty", 'be "half_angle" or "angle"', difficulty, lambda: known)
        self.m, self.h, self.momentum = m, h, momentum
        self.detach_difficulty, self.difficulty = detach_difficulty, difficulty
        self.positive_penalty, self.negative_penalty = positive_penalty, negative_penalty
        self.curriculum = curriculum
        self.register_buffer("t", torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.t.zero_()

    def phi(self, theta: Tensor) -> Tensor:
        """Phi = t + h D(theta), [B]; theta [B] in radians."""
        difficulty = torch.sin(theta / 2 if self.difficulty == "half_angle" else theta)
        phi = self.t + self.h * difficulty
        return phi.detach() if self.detach_difficulty else phi

    def modulation(self, cosine: Tensor, norm: Tensor | None = None) -> Modulation:
        theta = angle(cosine)
        zero = torch.zeros_like(cosine)
        weight = self.phi(theta) if self.negative_penalty else zero + 1
        return Modulation(psi(theta + self.m).detach(), zero, weight, zero)

    def target_cosine(self, cosine: Tensor, norm: Tensor | None, hard_count: Tensor | None) -> Tensor:
        theta = angle(cosine)
        if hard_count is None or not self.positive_penalty:
            return psi(theta + self.m)
        return psi(theta + self.m * torch.where(hard_count > 0, self.phi(theta), 1))

    def move(self, cosine: Tensor, norm: Tensor | None, valid: Tensor) -> None:
        if self.curriculum:
            move_average(self.t, masked_mean(cosine, valid), self.momentum, valid.any())

    def extra_repr(self) -> str:
        names = ("m", "h", "momentum", "detach_difficulty", "difficulty")
        switches = ("positive_penalty", "negative_penalty", "curriculum")
        own = ", ".join(f"{name}={getattr(self, name)!r}" for name in names + switches)
        return f"{own}, {super().extra_repr()}"
