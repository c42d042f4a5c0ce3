"""For center_gradient_cases.py: a problem with its truth in float64 and the error that its sums may carry.

The truth is autograd through the formula of the loss; the error allowed to each element is derived from what its sum is
made of, so that a fault of one term in a row of many is seen.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from interpreter_setup import BFLOAT16, FLOAT16, FLOAT32, config_for
from torch import Tensor

from attfc_cuda import testing
from attfc_cuda.ops.triton.center_gradient import center_gradient_forward

# Of one conversion, relative: half a unit in the last place, a whole one for bfloat16, which the interpreter cuts off.
ROUNDING = {FLOAT32: 2.0**-24, BFLOAT16: 2.0**-7, FLOAT16: 2.0**-11}


@dataclasses.dataclass
class Problem:
    """A case of the sweep, its centres made raw or not, with upstream gradients of the lse and of the own cosines."""

    case: testing.Case
    grad_lse: Tensor
    target_grad: Tensor | None
    center_scale: Tensor | None
    lse: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.lse = self.truth()[0].float()

    @property
    def live(self) -> Tensor:
        return self.case.labels >= 0

    def truth(self) -> tuple[Tensor, Tensor]:
        """(lse [B], gradient [S, D]) in float64; the gradient by autograd of sum grad_lse lse + target_grad own cosine,
        through the normalisation where there is a center_scale."""
        case = self.case
        filled = case.center_labels >= 0
        centers = torch.where(filled[:, None], case.centers.double(), 1).requires_grad_()
        lse = torch.full((len(case.labels),), -math.inf, dtype=torch.float64)
        loss = 0 * centers.sum()
        for b in self.live.nonzero()[:, 0].tolist():
            cosine, hard, negative, own = self._row(b, centers)
            if negative.any():
                bent = cosine
                if hard.any():
                    bent = torch.where(hard, self._bent(b, cosine), cosine)
                row = torch.logsumexp(case.scale * bent[negative], 0)
                loss, lse[b] = loss + self.grad_lse[b].double() * row, row.detach()
            if self.target_grad is not None:
                loss = loss + self.target_grad[b].double() * cosine[own].sum()
        return lse, torch.autograd.grad(loss, centers)[0]

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """(q, G, c), each [B, S] in float64, 0 where not valid."""
        case = self.case
        q, weight, cosines = torch.zeros(3, len(case.labels), len(case.center_labels), dtype=torch.float64)
        centers = torch.where((case.center_labels >= 0)[:, None], case.centers.double(), 1)
        for b in self.live.nonzero()[:, 0].tolist():
            cosine, hard, negative, own = self._row(b, centers)
            slope, bent = torch.ones_like(cosine), cosine
            if hard.any():
                slope = torch.where(hard, 2 * self._of(case.quad, b) * cosine + self._of(case.lin, b), 1)
                bent = torch.where(hard, self._bent(b, cosine), cosine)
            q[b] = torch.where(negative, (case.scale * bent - self.lse[b].double()).exp(), 0).nan_to_num(nan=0.0)
            weight[b] = self.grad_lse[b].double() * case.scale * q[b] * slope if negative.any() else 0
            if self.target_grad is not None:
                weight[b] += torch.where(own, self.target_grad[b].double(), 0)
            cosines[b] = torch.where(negative | own, cosine, 0)
        return q, weight, cosines

    def bound(self) -> Tensor:
        """What each element may be off by [S, D]. Its terms G x and G c s w carry the rounding of G, in 16 bit and in
        its exponent (scale |N'| times the error of a cosine, and that of lse), its sum that of the output."""
        case, dtype = self.case, self.case.embeddings.dtype
        _, weight, cosine = self.weights()
        x = torch.where(self.live[:, None], case.embeddings.double(), 0).abs()
        w = torch.where((case.center_labels >= 0)[:, None], case.centers.double(), 0).abs()
        scale = self._scale()[:, None]
        slope = max(1.0, *(float(torch.nan_to_num(v).abs().max()) for v in (case.quad, case.lin) if v is not None), 1.0)
        exponent = case.scale * 3 * slope * testing.FLOAT32_FLOOR + 2.0**-22 * self.lse[self.lse.isfinite()].abs().sum()
        # float16 holds weights to 2^-24 once the largest is 2^13 at least.
        least = 2.0**-37 * float(weight.abs().max()) if dtype == FLOAT16 else 0.0
        relative = ROUNDING[dtype] + exponent + testing.FLOAT32_FLOOR
        error = relative * weight.abs() + least
        sums = error.T @ x
        if self.center_scale is not None:
            sums = sums + (error * cosine.abs()).sum(0)[:, None] * scale * w
        output = ROUNDING[dtype] * self.truth()[1].abs() + (2.0**-25 if dtype == FLOAT16 else 1e-30)
        return scale * sums + output

    def run(self, grad_tolerance: float = 0.0, **options) -> Tensor:
        case = self.case
        options.setdefault("config", config_for(case.embeddings.dtype, case.embeddings.shape[1]))
        return center_gradient_forward(
            self.grad_lse, self.lse, self.target_grad, case.embeddings, case.centers, case.labels, case.center_labels,
            self.center_scale, case.row_values(), case.scale, grad_tolerance, **options,
        )  # fmt: skip

    def _row(self, b: int, centers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one row [S]: cosines, hard negatives, negatives, own class."""
        case = self.case
        filled = case.center_labels >= 0
        unit = centers
        if self.center_scale is not None:
            unit = centers / centers.norm(dim=1, keepdim=True)
        cosine = unit @ case.embeddings[b].double()
        own = filled & (case.center_labels == case.labels[b])
        negative = filled & ~own
        hard = negative & (cosine.detach() > (math.inf if case.threshold is None else case.threshold[b].double()))
        return cosine, hard, negative, own

    def _bent(self, b: int, cosine: Tensor) -> Tensor:
        quad, lin, const = (self._of(v, b) for v in (self.case.quad, self.case.lin, self.case.const))
        return (quad * cosine + lin) * cosine + const

    @staticmethod
    def _of(values: Tensor | None, b: int) -> Tensor | float:
        return 0.0 if values is None else values[b].double()

    def _scale(self) -> Tensor:
        count = len(self.case.center_labels)
        return torch.ones(count) if self.center_scale is None else self.center_scale.double().nan_to_num(nan=0.0)


def make(shape, dtype, *, raw: bool = True, target: bool = True, seed: int = 0, **options) -> Problem:
    """A problem in which all that must not be read is NaN. raw: centres of length 2^-3 to 2^3 and their inverses."""
    case = testing.make_case(shape, dtype, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    rows, slots, _ = shape
    scale = None
    if raw:
        length = 2.0 ** torch.randint(-3, 4, (slots, 1), generator=generator)
        case.centers = (case.centers.double() * length).to(dtype)
        scale = 1 / case.centers.double().norm(dim=1).float()
        assert scale.isnan().equal(case.center_labels < 0)
    target_grad = torch.randn(rows, generator=generator) if target else None
    for values in (case.embeddings, case.target_logit, case.threshold, case.quad, case.lin, case.const, case.upstream):
        if values is not None:
            values[case.labels < 0] = math.nan
    if target:
        target_grad[case.labels < 0] = math.nan
    return Problem(case, case.upstream, target_grad, scale)
