"""The steps of a head around the sweep, one operator and, on a GPU, one launch each (two to five for an enqueue): fake
kernels, autograd, calls. No mathematics; the formulas are in csrc/head_step.h.

    head_rows           embeddings, gallery -> unit rows, class centres, cosines to them
    enqueue_fifo, enqueue_refresh   the centres enter the container
    adasin_row_values   t moves; the sweep's row_values
    (negative_logsumexp: the sweep, two launches)
    adasin_loss         the loss, and what the backward pass needs
    row_gradients       the backward pass, whole
    step_statistics     what the head reports

Only `adasin_loss` has a derivative, to `embeddings`, through everything: the sweep has made d lse / d unit row already,
and class centres have none. So all before it runs without autograd.

``attfc::<name>_triton`` are the same operators by the Triton kernels (triton/head_step.py). They have names of their
own because either of them and the CUDA extension, which has kernels for the plain names, may be loaded first, or alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attfc_cuda.ops.autograd import refuse_second_derivative
from attfc_cuda.ops.row_values import RowValues

# Of `step_statistics`, in its order: `StepMean` and `StepCount` in csrc/head_step.h.
MEANS = ("loss", "positive_cosine", "hard_fraction", "container_top1", "omitted_mass", "t")
COUNTS = ("fill", "step_rows")


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_head_rows(
    embeddings: Tensor,
    labels: Tensor,
    gallery: Tensor,
    extra_centers: Tensor,
    extra_labels: Tensor,
    code_of_class: Tensor | None,
    stored_centers: Tensor | None,
    slot_labels: Tensor | None,
    slot_of_class: Tensor | None,
    container_dtype: torch.dtype,
    *_: Any,
) -> tuple[Tensor, ...]:
    (rows, dim), total, real = embeddings.shape, extra_labels.shape[0] + labels.shape[0], _real(container_dtype)
    return (
        embeddings.new_empty((rows, dim), dtype=container_dtype),
        embeddings.new_empty((rows,), dtype=real),
        embeddings.new_empty((rows,), dtype=real),
        labels.new_empty((rows,)),
        embeddings.new_empty((total, dim), dtype=real),
        labels.new_empty((total,)),
    )


def _fake_nothing(*_: Any) -> None: ...


def _fake_row_values(labels: Tensor, cosine: Tensor, *_: Any) -> Tensor:
    return cosine.new_empty((len(RowValues._fields), cosine.shape[0]))


def _fake_loss(
    embeddings: Tensor,
    unit_grad: Tensor,
    inverse_norm: Tensor,
    centers: Tensor,
    labels: Tensor,
    cosine: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    return (cosine.new_empty(()), *(torch.empty_like(cosine) for _ in range(4)))


def _setup_loss(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    lse_weight, cosine_weight = output[3:]
    ctx.save_for_backward(*inputs[:5], lse_weight, cosine_weight)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # four outputs' zeros


def _backward_loss(backend: str, ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple:
    gradient = None
    if ctx.needs_input_grad[0] and grad_loss is not None:
        gradient = operator("row_gradients", backend)(grad_loss.contiguous(), *ctx.saved_tensors)
    return (gradient, *[None] * 11)


def _fake_row_gradients(upstream: Tensor, embeddings: Tensor, *_: Any) -> Tensor:
    return embeddings.new_empty(embeddings.shape)


def _fake_statistics(loss: Tensor, labels: Tensor, cosine: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return cosine.new_empty((len(MEANS),)), labels.new_empty((len(COUNTS),))


_FAKES: dict[str, Callable[..., Any]] = {
    "head_rows": _fake_head_rows,
    "enqueue_fifo": _fake_nothing,
    "enqueue_refresh": _fake_nothing,
    "adasin_row_values": _fake_row_values,
    "adasin_loss": _fake_loss,
    "row_gradients": _fake_row_gradients,
    "step_statistics": _fake_statistics,
}


def _suffix(backend: str) -> str:
    return "_triton" if backend == "triton" else ""


def operator(name: str, backend: str) -> Callable[..., Any]:
    """The operator `name` of a backend that :func:`attfc_cuda.ops.backend.resolve` has loaded."""
    return getattr(torch.ops.attfc, name + _suffix(backend))


def register(backend: str = "") -> None:
    """Adds fake kernels and autograd to the operators, whose schemas and kernels are registered.
    backend: "triton" for those of Triton."""
    suffix = _suffix(backend)
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"attfc::{name}{suffix}", fake)  # type: ignore[arg-type]
    torch.library.register_autograd(
        f"attfc::adasin_loss{suffix}", functools.partial(_backward_loss, backend), setup_context=_setup_loss
    )
    torch.library.register_autograd(f"attfc::row_gradients{suffix}", refuse_second_derivative)


def register_triton(kernels: Mapping[str, Callable[..., Any]], device_type: str) -> None:
    """Makes operators of the Triton kernels on a type of device, with the schemas of the plain ones."""
    for name in _FAKES:
        schema = str(operator(name, "").default._schema).removeprefix(f"attfc::{name}")  # type: ignore[attr-defined]
        torch.library.define(f"attfc::{name}_triton", schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(f"attfc::{name}_triton", device_type, kernels[name])
    register("triton")
