"""Autograd of class centres that are trained: one gradient for their part as positives and as negatives.

A row's own centre enters the loss through its cosine, the other centres through the sweep's lse. Two separate nodes
would each make an N x D gradient and autograd would add them. Here one node, `own_cosine`, makes the whole gradient:

    own_cosine  --cosine-->  margin  --row_values-->  sweep  --lse-->  after_sweep  -->  loss
        \\______________________________link__________________________________/

Autograd runs a node when every gradient that flows into it is there. `link` makes own_cosine the last: it carries
nothing forward, and its "gradient" is what the centre gradient needs to know of each row: the upstream gradient of lse,
lse, and row_values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attfc_cuda.ops import autograd

# Takes (first slot, gradient of a block of slots) in place of autograd: see heads/fused_optimizer.py.
GradientSink = Callable[[int, Tensor], None]

# Numbers of a block of the gradient: in the last-level cache of a processor, enough work for a GPU.
BLOCK_NUMBERS = {"cpu": 1 << 21, "cuda": 1 << 24}


class Sweep(NamedTuple):
    """What own_cosine must know of the sweep to make the centres' gradient: see `autograd.negative_logsumexp`.

    dtype: of the products' operands; centres of another dtype (float32 masters under autocast) are cast.
    row_value_count: rows of the sweep's row_values.
    backend: that of the sweep, resolved.
    """

    labels: Tensor
    center_labels: Tensor
    center_scale: Tensor | None
    dtype: torch.dtype
    scale: float
    grad_tolerance: float
    row_value_count: int
    backend: str


class _OwnCosine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, centers: Tensor, target_slot: Tensor, sweep: Sweep, sink: GradientSink | None
    ) -> tuple[Tensor, Tensor]:
        real = torch.float64 if centers.dtype == torch.float64 else torch.float32
        here = (target_slot >= 0) & (sweep.labels >= 0)
        slot = torch.where(here, target_slot, 0)
        own = centers.new_zeros((len(slot), centers.shape[1]), dtype=real)
        if len(centers):
            own = centers.index_select(0, slot).to(real)
            if sweep.center_scale is not None:
                own = own * sweep.center_scale.index_select(0, slot)[:, None]
            # Not a product with 0: an unused slot may hold NaN.
            own = torch.where(here[:, None], own, 0)
        cosine = (torch.where(here[:, None], embeddings.to(real), 0) * own).sum(dim=1)
        ctx.save_for_backward(
            embeddings.to(sweep.dtype), own, centers, sweep.labels, sweep.center_labels, sweep.center_scale
        )
        ctx.sweep, ctx.sink, ctx.embeddings_dtype = (
            sweep._replace(labels=None, center_labels=None),
            sink,
            embeddings.dtype,
        )
        return cosine, cosine.new_zeros((2 + sweep.row_value_count, len(slot)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_cosine: Tensor, grad_link: Tensor) -> tuple:
        own = ctx.saved_tensors[1]
        grad_embeddings = grad_centers = None
        if ctx.needs_input_grad[0]:
            grad_embeddings = (grad_cosine[:, None] * own).to(ctx.embeddings_dtype)
        if ctx.needs_input_grad[1]:
            grad_centers = _center_gradient(ctx, grad_cosine, grad_link)
        return grad_embeddings, grad_centers, None, None, None


def _center_gradient(ctx: Any, grad_cosine: Tensor, grad_link: Tensor) -> Tensor | None:
    """The centres' gradient in one piece; a block of slots at a time where each must be cast or goes to the sink."""
    embeddings, _, centers, labels, center_labels, center_scale = ctx.saved_tensors
    sweep = ctx.sweep
    grad_lse, lse, row_values = grad_link[0], grad_link[1], grad_link[2:]

    def gradient(first: int, last: int) -> Tensor:
        return autograd.center_gradient_operator(sweep.backend)(
            grad_lse,
            lse,
            grad_cosine.contiguous(),
            embeddings,
            centers[first:last].to(sweep.dtype),
            labels,
            center_labels[first:last],
            None if center_scale is None else center_scale[first:last],
            row_values,
            sweep.scale,
            # The operator shares the tolerance out over the centres that it sees.
            sweep.grad_tolerance * (last - first) / max(len(centers), 1),
        )

    if ctx.sink is None and centers.dtype == sweep.dtype:
        return gradient(0, len(centers))
    whole = centers.new_empty(centers.shape) if ctx.sink is None else None
    block = max(1, BLOCK_NUMBERS[centers.device.type] // centers.shape[1])
    # Without any centre the sink is called too: an optimizer counts its steps the same on every process.
    for first in range(0, max(len(centers), 1), block):
        last = min(first + block, len(centers))
        if whole is None:
            ctx.sink(first, gradient(first, last))
        else:
            whole[first:last] = gradient(first, last)
    return whole


class _AfterSweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lse: Tensor, link: Tensor, row_values: Tensor) -> Tensor:
        ctx.save_for_backward(lse, row_values)
        return lse.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_lse: Tensor) -> tuple:
        lse, row_values = ctx.saved_tensors
        return grad_lse, torch.cat([torch.stack([grad_lse, lse]), row_values]), None


def own_cosine(
    embeddings: Tensor, centers: Tensor, target_slot: Tensor, sweep: Sweep, sink: GradientSink | None
) -> tuple[Tensor, Tensor]:
    """(cosine [B] of each row to its own centre, link): the node that makes the gradient of `centers`.

    embeddings [B, D] unit rows; centers [N, D]; target_slot [B] int64, negative where the row has no centre here
    (cosine 0). The gradient to `centers` covers the sweep only if its lse went through :func:`after_sweep` with the
    link. With a sink the gradient goes there, a block of slots at a time, and autograd gets none.
    """
    return _OwnCosine.apply(embeddings, centers, target_slot, sweep, sink)


def after_sweep(lse: Tensor, link: Tensor, row_values: Tensor) -> Tensor:
    """lse, unchanged; in the backward pass what the centre gradient needs goes along the link."""
    return _AfterSweep.apply(lse, link, row_values.detach())


def leaf_into(sink: GradientSink, centers: Tensor) -> Tensor:
    """The same centres as a leaf whose gradient, made by plain autograd, goes to the sink."""
    leaf = centers.detach().requires_grad_()
    leaf.register_hook(lambda gradient: sink(0, gradient))
    return leaf
