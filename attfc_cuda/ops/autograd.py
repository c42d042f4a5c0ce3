"""The registered operators: loading, fake kernels, autograd. No mathematics.

``torch.ops.attfc.negative_logsumexp`` returns, for B rows of dimension D (real: float32, or float64 for float64 input):

    lse [B] real            log of the modulated negatives' mass; -inf where a row has none or is ignored
    hard_count [B] int64    negatives above the threshold
    max_cosine [B] real     over the valid negatives; -inf where there is none
    omitted_mass [B] real   share of the softmax left out of unit_grad
    unit_grad [B, D] real   d lse_b / d embeddings_b, made by the same sweep ([0, D] without need_grad)
    moments [B, 3] real     d lse_b / d (quad_b, lin_b, const_b) ([0, 3] without need_moments)

``torch.ops.attfc.center_gradient`` returns, [S, D] in the centres' dtype, the gradient of
sum_b grad_lse_b lse_b + target_grad_b c_b, c_b the cosine of row b to each slot of its own class, to the centres. With
center_scale (the inverse norms of raw centres) it is projected through the normalisation.

Both take what each row brings along as one table, `row_values` (row_values.py).

``attfc::<name>_cuda`` are the same operators by the hand-written CUDA kernels. They have names of their own because the
choice among a device's backends is made before the call (`_backend.resolve`): a named backend can then be refused, and
in a compiled graph the choice is the name of the operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attfc_cuda._check import active_transforms, error

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class _FirstOrderOnly(torch.autograd.Function):
    """Passes ``gradient`` through and refuses to be differentiated: it is a number, not a function of `inputs`."""

    @staticmethod
    def forward(gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "attfc_cuda: the sweep's gradient must be used once, got a second differentiation; "
            "pass backend='eager' for second derivatives"
        )


first_order_only = _FirstOrderOnly.apply


def _fake(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    center_scale: Tensor | None,
    row_values: Tensor,
    scale: float,
    grad_tolerance: float,
    need_grad: bool,
    need_moments: bool,
) -> Outputs:
    rows, dim = embeddings.shape
    real = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    row = embeddings.new_empty((rows,), dtype=real)
    return (
        row,
        embeddings.new_empty((rows,), dtype=torch.int64),
        torch.empty_like(row),
        torch.empty_like(row),
        embeddings.new_empty((rows if need_grad else 0, dim), dtype=real),
        embeddings.new_empty((rows if need_moments else 0, 3), dtype=real),
    )


def _setup_context(ctx: Any, inputs: tuple, output: Outputs) -> None:
    lse, hard_count, max_cosine, omitted_mass, unit_grad, moments = output
    # Centres that learn need the sweep's inputs again; others are not kept alive.
    again = (lse, *inputs[1:5]) if ctx.needs_input_grad[1] else ()
    ctx.save_for_backward(inputs[0], inputs[5], unit_grad, moments, *again)
    ctx.scale, ctx.grad_tolerance = inputs[6:8]
    ctx.mark_non_differentiable(hard_count, max_cosine, omitted_mass, unit_grad, moments)
    ctx.set_materialize_grads(False)  # five outputs' zeros, one of them [B, D]


def _backward(backend: str, ctx: Any, grad_lse: Tensor | None, *_: Any) -> tuple:
    if grad_lse is None:
        return (None,) * 10
    embeddings, row_values, unit_grad, moments, *again = ctx.saved_tensors
    # What lse depends on: whichever of these is differentiated a second time must meet the refusal.
    inputs = (embeddings, row_values, *again[1:2])
    needs = ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * 10
    if needs[0]:
        grads[0] = first_order_only((grad_lse[:, None] * unit_grad).to(embeddings.dtype), *inputs)
    if needs[1]:
        lse, *rest = again
        grads[1] = center_gradient_operator(backend)(
            grad_lse.contiguous(), lse, None, embeddings, *rest, row_values, ctx.scale, ctx.grad_tolerance
        )
    if needs[5]:
        # The moments are the gradients of the last rows of the table; the target logit and the threshold have none.
        of_coefficients = (grad_lse[:, None] * moments).T
        grads[5] = first_order_only(torch.nn.functional.pad(of_coefficients, (0, 0, 2, 0)), *inputs)
    return tuple(grads)


@functools.cache
def _transformable(backend: str) -> Callable[..., Outputs]:
    """The same autograd in the form that torch.func transforms see through; that of the operator they refuse."""
    operator = negative_logsumexp_operator(backend)

    class NegativeLogSumExp(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Outputs:
            return operator(*inputs)

        setup_context = staticmethod(_setup_context)
        backward = staticmethod(functools.partial(_backward, backend))

    return NegativeLogSumExp.apply


def negative_logsumexp_operator(backend: str) -> Callable[..., Outputs]:
    """The operator of a backend that :func:`attfc_cuda.ops.backend.resolve` has loaded."""
    return torch.ops.attfc.negative_logsumexp_cuda if backend == "cuda" else torch.ops.attfc.negative_logsumexp


def center_gradient_operator(backend: str) -> Callable[..., Tensor]:
    """As :func:`negative_logsumexp_operator`."""
    return torch.ops.attfc.center_gradient_cuda if backend == "cuda" else torch.ops.attfc.center_gradient


def _fake_center_gradient(grad_lse: Tensor, lse: Tensor, target_grad: Tensor | None, *inputs: Any) -> Tensor:
    centers = inputs[1]
    return centers.new_empty(centers.shape)


def refuse_second_derivative(ctx: Any, *_: Any) -> Any:
    return _FirstOrderOnly.backward(ctx)


def register(suffix: str = "") -> None:
    """Adds fake kernels and autograd to the operators, whose schemas and kernels an extension has registered.
    suffix: "_cuda" for those of the CUDA extension."""
    backward = functools.partial(_backward, suffix.removeprefix("_"))
    torch.library.register_fake(f"attfc::negative_logsumexp{suffix}", _fake)
    torch.library.register_autograd(f"attfc::negative_logsumexp{suffix}", backward, setup_context=_setup_context)
    torch.library.register_fake(f"attfc::center_gradient{suffix}", _fake_center_gradient)
    torch.library.register_autograd(f"attfc::center_gradient{suffix}", refuse_second_derivative)


def register_kernel(name: str, device_type: str, kernel: Callable[..., Outputs]) -> None:
    """Makes a Python function the implementation of ``attfc::<name>`` on a type of device."""
    torch.library.impl(f"attfc::{name}", device_type, kernel)


def negative_logsumexp(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    center_scale: Tensor | None,
    row_values: Tensor,
    scale: float,
    grad_tolerance: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs the operator of ``backend``, which :func:`attfc_cuda.ops.backend.resolve` has loaded. The gradient is
    made in the forward sweep, so the operator must know which one is wanted."""
    need_grad = torch.is_grad_enabled() and embeddings.requires_grad
    need_moments = torch.is_grad_enabled() and row_values.requires_grad
    transforms = active_transforms()
    if transforms & {"vmap", "jvp"}:
        got, remedy = ", ".join(sorted(transforms)), "pass backend='eager'"
        raise error("negative_logsumexp", "a transform", "be torch.func.grad or vjp", got, remedy, NotImplementedError)
    operator = _transformable(backend) if transforms else negative_logsumexp_operator(backend)
    lse, hard_count, max_cosine, omitted_mass, _, _ = operator(
        embeddings, centers, labels, center_labels, center_scale, row_values, scale, grad_tolerance, need_grad,
        need_moments,
    )  # fmt: skip
    return lse, hard_count, max_cosine, omitted_mass
