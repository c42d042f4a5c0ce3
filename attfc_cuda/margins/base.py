"""What a margin is: it lowers the target's logit and may re-weight hard negatives, one row at a time.

A margin knows the cosines to the own centre, the norms of the embeddings and its own running state: mathematics of size
B in ordinary differentiable PyTorch. It knows no container, no label and no kernel. A margin of your own is a subclass
of `Margin` with one method, `target_cosine`; re-weighting hard negatives takes `modulation`, running state takes
`move`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_method


class Modulation(NamedTuple):
    """What a row does to its hard negatives: a cosine c becomes quad c^2 + lin c + const where c > threshold.

    Attributes:
        threshold: [B], in the dtype of the cosines, as are the others.
        quad: [B].
        lin: [B].
        const: [B].
    """

    threshold: Tensor
    quad: Tensor
    lin: Tensor
    const: Tensor


class MarginOptions(TypedDict, total=False):
    """Keywords that every margin takes; what they mean stands at `Margin`."""

    scale: float
    gradient: str
    interclass_filter: float | None
    trim: float


class Margin(nn.Module):
    """Base of every margin. Subclasses define `target_cosine` and, if need be, `modulation`, `move`, `regularizer`.

    All methods take the same arguments: cosine [B], of each row to its own centre (float32, or float64); norm [B], of
    the embeddings before normalisation (same dtype; None unless the class sets `needs_norm`); hard_count [B] int64.

    Running state lives in 0-dim float32 buffers, never in Python numbers, so that a step needs no host
    synchronisation, compiles into one graph and resumes from a state_dict. The buffers keep their dtype whatever the
    module is cast to: in 16 bits a running mean that moves by 1 % a step stops halfway, since its steps round to
    nothing. Each process keeps its own state.

    Args:
        scale: factor s of every logit, above 0.
        gradient: "exact" differentiates the margin. "straight_through" keeps the margin's value in the forward pass but
            takes dT/dcos = 1 (and 0 for the norm), as InsightFace's ArcFace does by computing the margin without
            gradient (`losses.py`, `torch.no_grad`).
        interclass_filter: cosine above which a negative is taken for a mislabelled copy of the own class, and its logit
            set to 0 (InsightFace's `interclass_filtering_threshold`); None: no filter. Only for margins that leave
            negatives alone.
        trim: share of a step's rows, in [0, 1), that the loss and the running state leave out in train mode: those with
            the lowest cosines to their own centres, their number rounded down (with shards: of the rows of all
            processes). A head's other statistics count them, and AttFC's container takes their centres. For labels of
            which about that share is wrong: with 30 % wrong ones a full FC layer with AdaSin has 0.757 of accuracy by
            it instead of 0.675 (docs/learning.md; for AttFC see there what helps more). Of right labels it leaves out
            the hardest rows. Least trimmed squares, of a margin softmax; our choice.

    Raises:
        ValueError: naming the argument; for interclass_filter also where the margin has its own `modulation`.
    """

    needs_norm = False

    def __init__(
        self,
        scale: float = 64.0,
        gradient: str = "exact",
        interclass_filter: float | None = None,
        trim: float = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if unknown:
            remedy = "the factor of the logits is called scale" if "s" in unknown else None
            rule = f"be one of {', '.join(_arguments_of(type(self)))}"
            raise error(name, "a keyword", rule, ", ".join(unknown), remedy, TypeError)
        require(name, "scale", "be a finite number above 0", scale, lambda: 0 < scale < math.inf)
        known = ("exact", "straight_through")
        require(name, "gradient", 'be "exact" or "straight_through"', gradient, lambda: gradient in known)
        if interclass_filter is not None:
            rule, limit = "be a cosine in [-1, 1]", interclass_filter
            require(name, "interclass_filter", rule, limit, lambda: -1 <= limit <= 1)
            remedy = f"{name} re-weights negatives itself"
            require(name, "interclass_filter", "be None", interclass_filter, lambda: not self._own_modulation(), remedy)
        self.scale = float(scale)
        self.gradient = gradient
        require(name, "trim", "lie in [0, 1)", trim, lambda: 0 <= trim < 1)
        self.interclass_filter, self.trim = interclass_filter, float(trim)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        renamed_method(cls, "bend", "target_cosine")

    def _own_modulation(self) -> bool:
        return type(self).modulation is not Margin.modulation

    @property
    def modulates(self) -> bool:
        """Whether `modulation` returns anything: known before a step, whatever the cosines."""
        return self.interclass_filter is not None or self._own_modulation()

    def target_cosine(self, cosine: Tensor, norm: Tensor | None, hard_count: Tensor | None) -> Tensor:
        """The margin's formula: T [B], the cosine that stands in for the target's.

        Args:
            cosine: [B], of each row to its own centre.
            norm: [B], of the embeddings; None unless the class sets `needs_norm`.
            hard_count: [B] int64, the number of each row's hard negatives; None means "as if the row had none".
        """
        raise NotImplementedError(f"{type(self).__name__} must define target_cosine(cosine, norm, hard_count)")

    def target(self, cosine: Tensor, norm: Tensor | None = None, hard_count: Tensor | None = None) -> Tensor:
        """T [B]: the value of `target_cosine`, with the gradient that `gradient` asks for."""
        value = self.target_cosine(cosine, norm, hard_count)
        if self.gradient == "straight_through":
            return value.detach() + (cosine - cosine.detach())
        return value

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
    def counted(self, cosine: Tensor, valid: Tensor) -> Tensor:
        """[B] bool: the rows of `valid` that `trim` leaves. Of equal cosines the first rows go; NaN stays, so that the
        loss shows it."""
        if not self.trim or not self.training:
            return valid
        order = torch.where(valid, cosine, math.inf).argsort(stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        count = valid.sum().double() * self.trim  # whatever the default dtype, which may count to 256
        return valid & (rank >= count.floor())

    @torch.no_grad()
    def update(self, cosine: Tensor, norm: Tensor | None, valid: Tensor) -> None:
        """Move the running state by one training step; in eval mode, do nothing. Called once, before the other methods.

        Rows whose cosine or norm is not finite do not count: one bad image must not spoil a running mean for good. When
        no row is left, nothing moves.

        Args:
            cosine: [B].
            norm: [B], or None.
            valid: [B] bool, the rows that count.
        """
        if not self.training:
            return
        valid = valid & torch.isfinite(cosine)
        if norm is not None:
            valid = valid & torch.isfinite(norm)
        self.move(cosine, norm, valid)

    def move(self, cosine: Tensor, norm: Tensor | None, valid: Tensor) -> None:
        """How `update` moves a subclass's buffers, from the rows in `valid`, without gradient. Default: not at all."""

    def reset_parameters(self) -> None:
        """Bring the running state back to its start; a subclass with state of its own says how. Default: nothing."""

    def extra_repr(self) -> str:
        trim = f", trim={self.trim}" if self.trim else ""
        return f"scale={self.scale}, gradient={self.gradient!r}, interclass_filter={self.interclass_filter}{trim}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Margin:
        """nn.Module's (the way of every .to(), .half() and .to_empty()), but for the dtype of the running state."""
        before = {name: old for name, old in self._buffers.items() if old is not None}
        super()._apply(fn, recurse)
        for name, old in before.items():
            if old.is_floating_point() and self._buffers[name].dtype != old.dtype:
                self._buffers[name] = old.to(self._buffers[name].device)
        if any(old.is_meta and not self._buffers[name].is_meta for name, old in before.items()):
            self.reset_parameters()  # memory that nothing was written to yet
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # With assign=True a saved tensor replaces the buffer, dtype and all.
        for name, own in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if own is not None and own.is_floating_point() and isinstance(saved, Tensor):
                state_dict[prefix + name] = saved.to(own.dtype)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


renamed_method(Margin, "bend", "target_cosine")


def _arguments_of(margin: type[Margin]) -> list[str]:
    """The names of the arguments of a margin's constructor and of `Margin`'s."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names: dict[str, None] = {}
    for owner in (margin, Margin):
        parameters = inspect.signature(owner.__init__).parameters.values()
        names |= dict.fromkeys(p.name for p in parameters if p.kind in kinds and p.name != "self")
    return list(names)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B] where `mask`, 0-dim; 0 where there are none. What is masked may be NaN."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def move_average(average: Tensor, value: Tensor, momentum: float, when: Tensor) -> None:
    """average <- momentum * average + (1 - momentum) * value, in place, only where `when` (0-dim bool) holds."""
    average.lerp_(value.to(average.dtype), (1 - momentum) * when.to(average.dtype))


def require(
    name: str, argument: str, rule: str, got: object, holds: Callable[[], bool], remedy: str | None = None
) -> None:
    """Raise the project's ValueError for a constructor argument unless `holds`; also where its type has no order."""
    try:
        held = holds()
    except TypeError:
        held = False
    if not held:
        raise error(name, argument, rule, repr(got) if isinstance(got, str) else got, remedy)
