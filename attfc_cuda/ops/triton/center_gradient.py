"""The Triton backend of center_gradient: arguments and launch around center_gradient_kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attfc_cuda.ops.row_values import RowValues, is_modulated
from attfc_cuda.ops.triton import launch
from attfc_cuda.ops.triton.center_gradient_kernel import TERMS, center_gradient_kernel, row_terms_kernel
from attfc_cuda.ops.triton.configs import Config, choose_center_gradient

# float16: the largest weight is brought to 2^13 .. 2^14, a factor of 4 under its end: cosines may be a little over 1.
_LARGEST_HALF_WEIGHT = 2.0**14


def center_gradient_forward(
    grad_lse: Tensor,
    lse: Tensor,
    target_grad: Tensor | None,
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    center_scale: Tensor | None,
    row_values: Tensor,
    scale: float,
    grad_tolerance: float,
    *,
    precision: str | None = None,
    config: Config | None = None,
) -> Tensor:
    """The gradient of sum_b grad_lse_b lse_b + target_grad_b cos(x_b, own centres) to the centres.

    Equals the gradient of eager.negative_logsumexp by autograd, through the normalisation of the centres where
    center_scale is given, but for the share of each row's softmax that grad_tolerance allows to leave out.
    grad_lse, target_grad (None: 0) [B] float32. lse [B] float32, as negative_logsumexp_forward returned it for the same
    other arguments, which are described there; a row with -inf has no negatives. Rows with label -1 may hold anything.
    precision, config: as there.
    Returns: [S, D] in the dtype of centers, 0 in empty slots; sums are float32, rounded once. Two runs on one device
    are bitwise equal.
    Raises: TypeError for another dtype, ValueError for D or a shape that does not fit.
    """
    precision = precision or launch.float32_precision()
    rows_given = {"grad_lse": grad_lse, "lse": lse, "target_grad": target_grad}
    launch.check_arguments(
        "center_gradient", embeddings, centers, labels, center_labels, center_scale, row_values, rows_given, precision
    )
    rows, dim = embeddings.shape
    slots = centers.shape[0]
    gradient = torch.empty((slots, dim), dtype=centers.dtype, device=centers.device)
    if rows == 0 or slots == 0:
        return gradient.zero_()

    grad_lse, lse, target_grad, row_values = map(launch.contiguous, (grad_lse, lse, target_grad, row_values))
    labels, center_labels, center_scale = map(launch.contiguous, (labels, center_labels, center_scale))
    embeddings, centers = launch.rows_contiguous(embeddings), launch.rows_contiguous(centers)
    weight_unit = None
    if embeddings.dtype == torch.float16:
        largest = _largest_weight(grad_lse, lse, target_grad, labels, row_values, scale)
        weight_unit = _LARGEST_HALF_WEIGHT * launch.power_of_two_unit(largest)
    if config is None:
        capability = launch.capability_of(embeddings.device)
        config = choose_center_gradient(capability, embeddings.dtype, dim, precision=precision)
    row_blocks, tiles = launch.ceil_div(rows, config.block_b), launch.ceil_div(slots, config.block_s)
    terms = torch.empty(row_blocks * config.block_b * TERMS + 1, dtype=torch.float32, device=embeddings.device)
    with launch.device_guard(embeddings.device):
        row_terms_kernel[(row_blocks,)](
            grad_lse,
            lse,
            target_grad,
            labels,
            row_values,
            weight_unit,
            terms,
            rows,
            scale,
            grad_tolerance / tiles,
            BLOCK=config.block_b,
            ROW_VALUES=len(row_values),
            num_warps=1,
        )
        center_gradient_kernel[(tiles,)](
            terms,
            embeddings,
            centers,
            labels,
            center_labels,
            center_scale,
            gradient,
            rows,
            slots,
            centers.stride(0),
            scale * math.log2(math.e),
            **center_gradient_constants(
                config,
                dim,
                embeddings.stride(0),
                is_modulated(row_values),
                precision,
            ),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return gradient


def center_gradient_constants(
    config: Config,
    dim: int,
    embedding_stride: int,
    modulated: bool,
    precision: str,
) -> dict[str, object]:
    """The kernel's compile-time arguments. Without thresholds the terms say that nothing is hard: where registers are
    scarcest, the variant that looks there serves both (the other one spills a register)."""
    return {
        "DIM": dim,
        "EMBEDDING_STRIDE": embedding_stride,
        "BLOCK_B": config.block_b,
        "BLOCK_S": config.block_s,
        "BLOCK_D": config.block_d,
        "BLOCK_K": config.block_k,
        "MODULATED": modulated or config.project_by_product,
        "PROJECT_BY_PRODUCT": config.project_by_product,
        "PRECISION": precision,
    }


def _largest_weight(
    grad_lse: Tensor,
    lse: Tensor,
    target_grad: Tensor | None,
    labels: Tensor,
    row_values: Tensor,
    scale: float,
) -> Tensor:
    """An upper bound of |G| over the batch, 0-dim, on its device: largest_slope() of modulation.py in PyTorch."""
    negatives = grad_lse.abs() * scale
    if is_modulated(row_values):
        rows = RowValues.unstack(row_values)
        negatives = negatives * (2 * rows.quad.abs() + rows.lin.abs()).clamp(min=1)
    negatives = torch.where(lse == -torch.inf, 0, negatives)
    largest = negatives if target_grad is None else torch.maximum(negatives, target_grad.abs())
    return torch.where(labels >= 0, largest, 0).amax()
