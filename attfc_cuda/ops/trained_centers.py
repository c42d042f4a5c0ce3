"""Autograd of class centres that are trained: one gradient for their part as positives and as negatives.

A row's own centre enters the loss through its cosine, the other centres through the sweep's lse. Two separate nodes
would each make an N x D gradient and autograd would add them. Here one node, `own_cosine`, makes the whole gradient:

    own_cosine  --cosine-->  margin  --row_values-->  sweep  --lse-->  after_sweep  -->  loss
        \\______________________________link__________________________________/

Autograd runs a node when every gradient that flows into it is there. `link` makes own_cosine the last: it carries
nothing forward, and its "gradient" is what the centre gradient needs to know of each row: the upstream gradient of lse,
lse, and row_values.

With a sink in place of autograd, one more node stands between the centres and own_cosine. It runs in the backward
passes that reach the centres and in no others, and there hands the gradient to the sink.
"""

from __future__ import annotations

import functools
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
    one_slot_per_class: whether a row's own class is in the slot that it names and in no other, which lets the sweep's
        operator make the whole gradient.
    backend: that of the sweep, resolved.
    """

    labels: Tensor
    center_labels: Tensor
    center_scale: Tensor | None
    dtype: torch.dtype
    scale: float
    grad_tolerance: float
    row_value_count: int
    one_slot_per_class: bool
    backend: str


class _Work:
    """What is left to do for the sink, from the backward pass of own_cosine to that of `_IntoSink`."""

    def __init__(self) -> None:
        self.run: Callable[[], None] | None = None


class _IntoSink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, centers: Tensor, sink: GradientSink, work: _Work) -> Tensor:
        ctx.sink, ctx.work = sink, work
        ctx.set_materialize_grads(False)
        return centers.view_as(centers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple:
        if ctx.work.run is not None:
            ctx.work.run()
            ctx.work.run = None
        elif gradient is not None:  # plain autograd has made it
            ctx.sink(0, gradient)
        return None, None, None


class _OwnCosine(torch.autograd.Function):
    @staticmethod
    def forward(
        embeddings: Tensor,
        centers: Tensor,
        target_slot: Tensor,
        sweep: Sweep,
        sink: GradientSink | None,
        work: _Work | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
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
        link = cosine.new_zeros((2 + sweep.row_value_count, len(slot)))
        return cosine, link, own

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        embeddings, centers, target_slot, sweep, ctx.sink, ctx.work = inputs
        own = output[2]
        ctx.mark_non_differentiable(own)
        ctx.save_for_backward(
            embeddings, own, centers, target_slot, sweep.labels, sweep.center_labels, sweep.center_scale
        )
        ctx.sweep, ctx.embeddings_dtype = (
            sweep._replace(labels=None, center_labels=None, center_scale=None),
            embeddings.dtype,
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_cosine: Tensor, grad_link: Tensor, *_: Any) -> tuple:
        saved = ctx.saved_tensors  # once: activation checkpointing hands it out no second time
        grad_embeddings = grad_centers = None
        if ctx.needs_input_grad[0]:
            grad_embeddings = (grad_cosine[:, None] * saved[1]).to(ctx.embeddings_dtype)
        if ctx.needs_input_grad[1]:
            if ctx.work is None:
                grad_centers = _center_gradient(saved, ctx.sweep, None, grad_cosine, grad_link)
            else:
                ctx.work.run = functools.partial(_center_gradient, saved, ctx.sweep, ctx.sink, grad_cosine, grad_link)
        return grad_embeddings, grad_centers, None, None, None, None


@torch.no_grad()
def _center_gradient(
    saved: tuple, sweep: Sweep, sink: GradientSink | None, grad_cosine: Tensor, grad_link: Tensor
) -> Tensor | None:
    """The centres' gradient in one piece; a block of slots at a time where each must be cast or goes to the sink."""
    embeddings, own, centers, target_slot, labels, center_labels, center_scale = saved
    embeddings = embeddings.to(sweep.dtype)
    grad_lse, lse, row_values = grad_link[0], grad_link[1], grad_link[2:]

    def gradient(first: int, last: int) -> Tensor:
        block = autograd.center_gradient_operator(sweep.backend)(
            grad_lse,
            lse,
            grad_cosine.contiguous() if sweep.one_slot_per_class else None,
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
        if not sweep.one_slot_per_class and last > first:
            here = (target_slot >= first) & (target_slot < last) & (labels >= 0)
            _add_targets(block, torch.where(here, target_slot - first, 0), here)
        return block

    def _add_targets(block: Tensor, slot: Tensor, here: Tensor) -> None:
        """Add each row's part as a positive, which goes to the slot that it names alone."""
        x = torch.where(here[:, None], embeddings.to(own.dtype), 0)
        if center_scale is not None:  # through the normalisation: what is along the centre drops out
            x = (x - (x * own).sum(dim=1, keepdim=True) * own) * center_scale[target_slot.clamp_min(0)][:, None]
        rows = torch.where(here[:, None], grad_cosine[:, None] * x, 0).to(block.dtype)
        # Either way the sums are in a fixed order.
        if block.is_cuda:
            block.index_put_((slot,), rows, accumulate=True)
        else:
            block.index_add_(0, slot, rows)

    if sink is None and centers.dtype == sweep.dtype:
        return gradient(0, len(centers))
    whole = centers.new_empty(centers.shape) if sink is None else None
    block = max(1, BLOCK_NUMBERS[centers.device.type] // centers.shape[1])
    # Without any centre the sink is called too: an optimizer counts its steps the same on every process.
    for first in range(0, max(len(centers), 1), block):
        last = min(first + block, len(centers))
        if whole is None:
            sink(first, gradient(first, last))
        else:
            whole[first:last] = gradient(first, last)
    return whole


class _AfterSweep(torch.autograd.Function):
    @staticmethod
    def forward(lse: Tensor, link: Tensor, row_values: Tensor) -> Tensor:
        return lse.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        lse, _, row_values = inputs
        ctx.save_for_backward(lse, row_values)

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
    work = None if sink is None else _Work()
    if sink is not None:
        centers = _IntoSink.apply(centers, sink, work)
    return _OwnCosine.apply(embeddings, centers, target_slot, sweep, sink, work)[:2]


def after_sweep(lse: Tensor, link: Tensor, row_values: Tensor) -> Tensor:
    """lse, unchanged; in the backward pass what the centre gradient needs goes along the link."""
    return _AfterSweep.apply(lse, link, row_values.detach())


def into_sink(sink: GradientSink, centers: Tensor) -> Tensor:
    """The same centres, whose gradient, made by plain autograd, goes to the sink."""
    return _IntoSink.apply(centers, sink, _Work())
