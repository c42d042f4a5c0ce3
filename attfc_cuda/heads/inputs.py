"""What every head does: check its margin and its rows, make unit embeddings, tell the numbers of its last forward."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from attfc_cuda._check import error, require_rows
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.functional import MarginSoftmaxOutput
from attfc_cuda.margins import AdaSin, Margin

# An embedding shorter than this has no direction worth the name: see `unit_rows`.
_SHORTEST = 1e-6


def checked_margin(head: str, margin: Margin | None) -> Margin:
    """The margin, AdaSin() for None. Raises TypeError for anything else."""
    margin = AdaSin() if margin is None else margin
    if not isinstance(margin, Margin):
        remedy = 'pass an instance, such as AdaSin() or margins.build("adasin")'
        raise error(head, "margin", "be a margins.Margin", repr(margin), remedy, kind=TypeError)
    return margin


def check_inputs(
    head: str, floats: dict[str, Tensor], integers: dict[str, tuple[Tensor, int]], device: torch.device
) -> None:
    """Demand floating dtypes, int64 labels [count], and the head's device; shapes of `floats` are the caller's."""
    for argument, value in floats.items():
        if not value.is_floating_point():
            raise error(head, argument, "have a floating dtype", value.dtype, kind=TypeError)
    for argument, (value, count) in integers.items():
        if value.shape != (count,):
            raise error(head, argument, f"have shape [{count}]", list(value.shape))
        if value.dtype != torch.int64:
            raise error(head, argument, "have dtype torch.int64", value.dtype, f"{argument}.long()", TypeError)
    for argument, value in {**floats, **{name: value for name, (value, _) in integers.items()}}.items():
        if value.device != device:
            raise error(head, argument, f"be on the head's device {device}", value.device, "head.to(device)")


def require_finite(head: str, argument: str, value: Tensor, labels: Tensor) -> None:
    finite = value.isfinite().flatten(1)
    require_rows(
        finite.all(dim=1) | (labels < 0),
        head,
        argument,
        "be finite (check_finite is on)",
        lambda row: f"{int((~finite[row]).sum())} values that are NaN or infinite in row {row}",
        "look at that image, at the learning rate and at the loss scale",
        wait=True,
    )


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x / |x| [B, D], |x| [B]) in float32 (float64 stays), 0 and without gradient where |x| is below `_SHORTEST`.

    F.normalize would divide such a row, and its gradient, by 1e-12: finite, and enough to end a training run.
    """
    x = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(x, dim=1)
    # Written so that a NaN fails the comparison and stays NaN in the product.
    inverse = torch.where(norm < _SHORTEST, 0, 1 / norm.clamp_min(_SHORTEST))
    return x * inverse[:, None], norm


@torch.no_grad()
def observe(
    output: MarginSoftmaxOutput,
    labels: Tensor,
    fill: Tensor,
    own_pairs: Tensor,
    margin: Margin,
    shards: Shards | None = None,
) -> dict[str, Tensor]:
    """The `stats` of a head: 0-dim tensors, see `AttFC.stats`. Rows with a negative label count nowhere.

    fill, own_pairs [] int64: centres that took part here, and (row, centre) pairs of the same class among them.
    """
    counts = labels >= 0
    rows = counts.sum().clamp_min(1)
    negatives, target_cosine = output.negatives, output.target_cosine
    pairs = counts.sum() * fill - own_pairs
    if shards is not None:
        pairs, fill = shards.sum_of_shards(torch.stack([pairs, fill])).unbind()
    stats = {
        "loss": output.loss,
        "positive_cosine": torch.where(counts, target_cosine, 0).sum() / rows,
        "hard_fraction": torch.where(counts, negatives.hard_count, 0).sum() / pairs.clamp_min(1),
        "container_top1": (counts & (target_cosine > negatives.max_cosine)).sum() / rows,
        "fill": fill,
        "omitted_mass": torch.where(counts, negatives.omitted_mass, 0).sum() / rows,
    }
    if isinstance(getattr(margin, "t", None), Tensor):
        stats["t"] = margin.t.clone()
    return {name: value.detach() for name, value in stats.items()}


def own_class_pairs(labels: Tensor, center_labels: Tensor) -> Tensor:
    """Number of (row, slot) pairs of the same class, 0-dim int64, without comparing B x S."""
    ordered = labels.sort().values
    same = torch.searchsorted(ordered, center_labels, right=True) - torch.searchsorted(ordered, center_labels)
    return torch.where(center_labels >= 0, same, 0).sum()


def without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
