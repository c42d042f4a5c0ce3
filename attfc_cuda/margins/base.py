"""What a margin is: how the target logit is bent and how hard negatives are re-weighted, for one row at a time.

A margin knows cosines to the own centre, embedding norms and its own running state: B-sized mathematics in ordinary
differentiable PyTorch. It knows no container, no label and no kernel. A margin of your own is a subclass of `Margin`
with one method, `bend`; hard-negative re-weighting adds `modulation`, running state adds `move`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attfc_cuda._check import error
from attfc_cuda.ops.eager import psi

__all__ = ["Margin", "Modulation", "angle", "masked_mean", "move_average", "psi", "require"]

# The last step of float32 below 1. Beyond it the angle follows its chord: see `angle`.
_EDGE = 1 - 2.0**-23
_CHORD_SLOPE = math.acos(_EDGE) / (1 - _EDGE)


class Modulation(NamedTuple):
    """What a row does to its hard negatives: quad c^2 + lin c + const where c > threshold. Each [B], as the cosine."""

    threshold: Tensor
    quad: Tensor
    lin: Tensor
    const: Tensor


class Margin(nn.Module):
    """Base of every margin. Subclasses override `bend` and, where they need to, `modulation`, `move`, `regularizer`.

    Arguments to all methods: cosine [B] of each row to its own centre (float32, or float64), norm [B] of the embedding
    before normalisation (same dtype; None unless the class sets `needs_norm`), hard_count [B] int64.

    scale: factor s of every logit, above 0.
    gradient: "exact" differentiates the margin; "straight_through" keeps the margin's value in the forward pass but
        takes dT/dcos = 1 (and none to the norm), as InsightFace's ArcFace does by computing the margin without gradient
        (`losses.py`, `torch.no_grad`).
    interclass_filter: cosine above which a negative is taken for a mislabelled copy of the own class and its logit set
        to 0 (InsightFace `interclass_filtering_threshold`); None: no filter. Only for margins that leave negatives
        alone: a margin with its own `modulation` raises ValueError.

    Running state lives in 0-dim float32 buffers, never in Python numbers, so that a step needs no host
    synchronisation, compiles into one graph and resumes from a state_dict. Each process keeps its own.
    Raises: ValueError naming the argument.
    """

    needs_norm = False

    def __init__(self, scale: float = 64.0, gradient: str = "exact", interclass_filter: float | None = None) -> None:
        super().__init__()
        name = type(self).__name__
        require(name, "scale", "be a finite number above 0", scale, 0 < scale < math.inf)
        require(
            name, "gradient", 'be "exact" or "straight_through"', gradient, gradient in ("exact", "straight_through")
        )
        if interclass_filter is not None:
            require(
                name, "interclass_filter", "be a cosine in [-1, 1]", interclass_filter, -1 <= interclass_filter <= 1
            )
            remedy = f"{name} re-weights negatives itself"
            require(name, "interclass_filter", "be None", interclass_filter, not self._own_modulation(), remedy)
        self.scale = float(scale)
        self.gradient = gradient
        self.interclass_filter = interclass_filter

    def _own_modulation(self) -> bool:
        return type(self).modulation is not Margin.modulation

    @property
    def modulates(self) -> bool:
        """Whether `modulation` returns anything: known before a step, whatever the cosines."""
        return self.interclass_filter is not None or self._own_modulation()

    def bend(self, cosine: Tensor, norm: Tensor | None, hard_count: Tensor | None) -> Tensor:
        """The margin's formula: T [B]. hard_count None means "as if the row had no hard negative"."""
        raise NotImplementedError(f"{type(self).__name__} must define bend(cosine, norm, hard_count)")

    def target(self, cosine: Tensor, norm: Tensor | None = None, hard_count: Tensor | None = None) -> Tensor:
        """T [B], the target's bent cosine: the value of `bend`, the gradient that `gradient` asks for."""
        bent = self.bend(cosine, norm, hard_count)
        if self.gradient == "straight_through":
            return bent.detach() + (cosine - cosine.detach())
        return bent

    def modulation(self, cosine: Tensor, norm: Tensor | None = None) -> Modulation | None:
        """How hard negatives are re-weighted; None leaves all negatives alone."""
        if self.interclass_filter is None:
            return None
        zero = torch.zeros_like(cosine)
        return Modulation(zero + self.interclass_filter, zero, zero, zero)

    def regularizer(self, cosine: Tensor, norm: Tensor | None = None) -> Tensor | None:
        """A term [B] added to each row's loss; None for none."""
        return None

    @torch.no_grad()
    def update(self, cosine: Tensor, norm: Tensor | None, valid: Tensor) -> None:
        """Move the running state by one training step; nothing in eval mode. Call it once, before the other methods.

        valid [B] bool: rows that count. Rows whose cosine or norm is not finite do not count either: one bad image must
        not poison a running mean for good. With no row left nothing moves.
        """
        if not self.training:
            return
        valid = valid & torch.isfinite(cosine)
        if norm is not None:
            valid = valid & torch.isfinite(norm)
        self.move(cosine, norm, valid)

    def move(self, cosine: Tensor, norm: Tensor | None, valid: Tensor) -> None:
        """How `update` moves a subclass's buffers, from the rows in `valid`, without gradient. Default: not at all."""

    def extra_repr(self) -> str:
        return f"scale={self.scale}, gradient={self.gradient!r}, interclass_filter={self.interclass_filter}"


def angle(cosine: Tensor) -> Tensor:
    """theta = acos(cosine) with a derivative that stays finite at +-1.

    Equals acos for |cosine| <= 1 - 2^-23 and at +-1. In the last float32 step before +-1, where acos' = -1 / sin theta
    runs to infinity, the angle follows its chord (slope -4096): exact at both ends, monotone, off by less than
    1.3e-4 rad between. Outside [-1, 1], where only rounding leads, it is clamped, with no gradient. NaN stays NaN.
    Our choice: after the chain rule of the normalisation, which contributes sin theta, the gradient of the embedding
    is unchanged but for the last 5e-4 rad, and a target at exactly +-1 gives numbers instead of NaN.
    """
    # `where` instead of clamp: what clamp's derivative is at exactly its bound differs between versions of PyTorch.
    size = cosine.abs()
    near_end = size > _EDGE
    arc = torch.acos(torch.where(near_end, 0, cosine))
    chord = torch.where(size <= 1, _CHORD_SLOPE * (1 - size), 0)
    return torch.where(near_end, torch.where(cosine > 0, chord, math.pi - chord), arc)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B] where `mask`, 0-dim; 0 when nothing is. What is masked may be NaN."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def move_average(average: Tensor, value: Tensor, momentum: float, when: Tensor) -> None:
    """average <- momentum * average + (1 - momentum) * value, in place, only where `when` (0-dim bool) holds."""
    average.lerp_(value.to(average.dtype), (1 - momentum) * when.to(average.dtype))


def require(name: str, argument: str, rule: str, got: object, holds: bool, remedy: str | None = None) -> None:
    """Raise the house's ValueError for a constructor argument unless `holds`."""
    if not holds:
        raise error(name, argument, rule, got, remedy)
