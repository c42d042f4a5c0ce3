"""A step of AttFC with AdaSin in a handful of operators: nine launches on a GPU with a "fifo" container, twelve with
"refresh" (three more where Hopper sweeps in two passes), where one operator at a time takes about three hundred.

The same mathematics as `AttFC._step` and `functional.margin_softmax_loss`, which serve what this does not (`why_not`)
and are what its tests compare it with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attfc_cuda._check import active_transforms
from attfc_cuda.heads.container import DynamicClassContainer
from attfc_cuda.margins import AdaSin, Margin
from attfc_cuda.ops import backend as backends
from attfc_cuda.ops import head_step
from attfc_cuda.ops.autograd import negative_logsumexp_operator
from attfc_cuda.ops.head_step import operator


def why_not(margin: Margin, split: bool) -> str | None:
    """What of a head, whatever its inputs, the fused step does not do; None where it does all.

    Args:
        margin: the head's.
        split: whether the container is split over processes.
    """
    if split:
        return "the container is split over processes"
    if type(margin) is not AdaSin:
        return f"the margin is {type(margin).__name__}"
    if margin.trim:
        return "trim is set"
    if not margin.detach_difficulty:
        return "detach_difficulty is off"
    for switch in ("positive_penalty", "negative_penalty", "curriculum"):
        if not getattr(margin, switch):
            return f"{switch} is off"
    return None


def backend_for(container: DynamicClassContainer, backend: str, inputs: tuple[Tensor, ...]) -> str | None:
    """The backend whose kernels take these inputs; None where it is one without kernels for the step, and where the
    inputs mix float64 with other formats."""
    centers = container.centers
    doubles = {x.dtype == torch.float64 for x in (centers, *inputs)}
    if len(doubles) > 1 or active_transforms():
        return None
    name = backends.choose(backend, centers, centers)
    return name if name in backends.WITH_HEAD_STEP else None


class Options(NamedTuple):
    """What the step takes from the head, see `AttFC`; the last two resolved."""

    temperature: float
    class_code: float
    center_memory: float
    code_of_class: Tensor | None
    grad_tolerance: float
    backend: str


class Rows(NamedTuple):
    """What `attfc::head_rows` returns: see csrc/head_step.h."""

    units: Tensor
    inverse_norm: Tensor
    cosine: Tensor
    labels: Tensor
    new_centers: Tensor
    new_labels: Tensor


@torch.no_grad()
def head_rows(
    embeddings: Tensor,
    labels: Tensor,
    gallery: Tensor,
    extra_centers: Tensor,
    extra_labels: Tensor,
    container: DynamicClassContainer,
    options: Options,
) -> Rows:
    """Unit rows, the step's class centres (extra ones first) and the cosine of each row to its own. Nothing moves."""
    remembers = options.center_memory > 0
    outputs = operator("head_rows", options.backend)(
        embeddings.detach(),
        labels,
        gallery,
        extra_centers,
        extra_labels,
        options.code_of_class,
        container.centers if remembers else None,
        container.labels if remembers else None,
        container.slot_of_class if remembers else None,
        container.centers.dtype,
        -1 if container.num_classes is None else container.num_classes,
        options.temperature,
        options.class_code,
        options.center_memory,
    )
    return Rows(*outputs)


def loss_and_statistics(
    embeddings: Tensor,
    rows: Rows,
    extra_labels: Tensor,
    container: DynamicClassContainer,
    margin: AdaSin,
    options: Options,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss, with its gradient to `embeddings`, and the numbers of `AttFC.stats` with "step_rows" beside them.
    In train mode the margin's t moves."""
    slot_labels, scale = container.labels, margin.scale
    need_grad = torch.is_grad_enabled() and embeddings.requires_grad
    with torch.no_grad():
        row_values = operator("adasin_row_values", options.backend)(
            rows.labels, rows.cosine, margin.t, margin.m, margin.h, margin.momentum, scale,
            margin.difficulty == "half_angle", margin.training,
        )  # fmt: skip
        lse, hard_count, max_cosine, omitted_mass, unit_grad, _ = negative_logsumexp_operator(options.backend)(
            rows.units, container.centers, rows.labels, slot_labels, None, row_values, scale, options.grad_tolerance,
            need_grad,
            False,
        )  # fmt: skip
    own_centers = rows.new_centers[len(extra_labels) :]
    loss = operator("adasin_loss", options.backend)(
        embeddings, unit_grad, rows.inverse_norm, own_centers, rows.labels, rows.cosine, row_values, lse, hard_count,
        margin.m, scale, margin.gradient == "straight_through",
    )[0]  # fmt: skip
    with torch.no_grad():
        means, counts = operator("step_statistics", options.backend)(
            loss.detach(), rows.labels, rows.cosine, hard_count, max_cosine, omitted_mass, slot_labels,
            rows.new_labels[: len(extra_labels)], margin.t,
        )  # fmt: skip
    statistics = dict(zip(head_step.MEANS, means.unbind(), strict=True))
    statistics |= dict(zip(head_step.COUNTS, counts.unbind(), strict=True))
    return loss, statistics
