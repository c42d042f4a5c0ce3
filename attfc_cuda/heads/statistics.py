"""What a head reports about its last forward pass, from what the loss has computed anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from attfc_cuda.distributed.shards import Shards
from attfc_cuda.functional import MarginSoftmaxOutput
from attfc_cuda.margins import Margin


@torch.no_grad()
def step_statistics(
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
        "hard_fraction": torch.where(counts, negatives.hard_count, 0).sum().to(output.loss.dtype) / pairs.clamp_min(1),
        "container_top1": (counts & (target_cosine > negatives.max_cosine)).sum().to(output.loss.dtype) / rows,
        "fill": fill,
        "omitted_mass": torch.where(counts, negatives.omitted_mass, 0).sum() / rows,
    }
    t = getattr(margin, "t", None)
    if isinstance(t, Tensor):
        stats["t"] = t.clone()
    return {name: value.detach() for name, value in stats.items()}


def own_class_pairs(labels: Tensor, center_labels: Tensor) -> Tensor:
    """Number of (row, slot) pairs of the same class, 0-dim int64, without comparing B x S."""
    ordered = labels.sort().values
    same = torch.searchsorted(ordered, center_labels, right=True) - torch.searchsorted(ordered, center_labels)
    return torch.where(center_labels >= 0, same, 0).sum()
