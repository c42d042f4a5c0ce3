"""The Triton backend of negative_logsumexp: arguments, workspace and launches around sweep_kernel and merge_kernel."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from attfc_cuda.ops.triton import launch
from attfc_cuda.ops.triton.configs import DTYPES, Config, choose, padded_dim, why_not
from attfc_cuda.ops.triton.merge_kernel import merge_kernel
from attfc_cuda.ops.triton.sweep_kernel import FIELDS, sweep_kernel

__all__ = ["DTYPES", "launch_constants", "negative_logsumexp_forward", "why_not"]

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def negative_logsumexp_forward(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    center_scale: Tensor | None,
    row_values: Tensor,
    scale: float,
    grad_tolerance: float,
    need_grad: bool,
    need_moments: bool = True,
    *,
    precision: str | None = None,
    config: Config | None = None,
    splits: int | None = None,
) -> Outputs:
    """One sweep: the log of the negatives' mass and its unit gradients.

    Equals eager.negative_logsumexp and its gradients, but for the share of the gradient that grad_tolerance allows
    to leave out.
    embeddings [B, D], centers [S, D]: unit rows of one dtype, float32, bfloat16 or float16; D <= 1024, loaded fastest
    where it is a multiple of 16. labels [B], center_labels [S] int64; negative: an ignored row, an empty slot (never
    read: may be NaN). center_scale [S] float32 or None: what makes unit rows of the centres, 1/|w|, applied to the
    products; never read in empty slots. row_values [R, B] float32: `RowValues.stack`.
    precision: of float32 products, "ieee", "tf32x3" or "tf32"; None: launch.float32_precision(). config, splits: tile
    sizes and parts of the class axis; None: those of the device.
    Returns: lse [B] float32, hard_count [B] int64, max_cosine [B] float32, omitted_mass [B] float32,
    unit_grad [B, D] float32 = d lse / d embeddings, moments [B, 3] float32 = d lse / d (quad, lin, const); the last two
    have no rows unless asked for. Sums are float32. Two runs on one device at one B
    are bitwise equal; the number of multiprocessors and B decide the order of the sums.
    Raises: TypeError for another dtype, ValueError for D or a shape that does not fit.
    """
    precision = precision or launch.float32_precision()
    launch.check_arguments(
        "negative_logsumexp", embeddings, centers, labels, center_labels, center_scale, row_values, {}, precision
    )
    rows, dim = embeddings.shape
    slots = centers.shape[0]

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=embeddings.device)

    lse, max_cosine, omitted_mass, hard_count = new(rows), new(rows), new(rows), new(rows, dtype=torch.int64)
    unit_grad, moments = new(rows if need_grad else 0, dim), new(rows if need_moments else 0, 3)
    outputs = (lse, hard_count, max_cosine, omitted_mass, unit_grad, moments)
    if rows == 0 or slots == 0:
        for value in (lse, max_cosine):
            value.fill_(-math.inf)
        for value in (hard_count, omitted_mass, unit_grad, moments):
            value.zero_()
        return outputs

    if config is None:
        capability = launch.capability_of(embeddings.device)
        config = choose(capability, embeddings.dtype, dim, need_moments=need_moments, precision=precision)
    row_blocks, tiles = launch.ceil_div(rows, config.block_b), launch.ceil_div(slots, config.block_s)
    if splits is None:
        splits = launch.choose_splits(row_blocks, tiles, launch.multiprocessors_of(embeddings.device))
    tiles_per_split = launch.ceil_div(tiles, min(splits, tiles))
    splits = launch.ceil_div(tiles, tiles_per_split)

    embeddings, centers = launch.rows_contiguous(embeddings), launch.rows_contiguous(centers)
    partial = new(FIELDS, splits, rows)
    hard_partial = new(splits, rows, dtype=torch.int32)
    gradient = new(splits, rows, dim) if need_grad else None
    labels, center_labels, center_scale = map(launch.contiguous, (labels, center_labels, center_scale))
    row_values = row_values.contiguous()
    center_unit = None
    if center_scale is not None and embeddings.dtype == torch.float16:
        center_unit = launch.power_of_two_unit(torch.where(center_labels >= 0, center_scale, 0).amax())
    may_omit = need_grad and grad_tolerance > 0
    with launch.device_guard(embeddings.device):
        sweep_kernel[(row_blocks, splits)](
            embeddings,
            centers,
            labels,
            center_labels,
            center_scale,
            center_unit,
            row_values,
            partial,
            hard_partial,
            gradient,
            rows,
            slots,
            embeddings.stride(0),
            tiles_per_split,
            scale * math.log2(math.e),
            grad_tolerance,
            grad_tolerance / splits,
            **launch_constants(
                config, embeddings.dtype, dim, centers.stride(0), len(row_values), need_moments, may_omit, precision
            ),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        merge_kernel[(rows,)](
            partial,
            hard_partial,
            gradient,
            labels,
            row_values if len(row_values) else None,
            lse,
            hard_count,
            max_cosine,
            omitted_mass,
            unit_grad if need_grad else None,
            moments if need_moments else None,
            rows,
            splits,
            scale,
            DIM=dim,
            BLOCK_D=padded_dim(dim),
            BLOCK_SPLITS=triton.next_power_of_2(splits),
            num_warps=4,
        )
    return outputs


def launch_constants(
    config: Config,
    dtype: torch.dtype,
    dim: int,
    center_stride: int,
    row_value_count: int,
    need_moments: bool,
    may_omit: bool,
    precision: str,
) -> dict[str, object]:
    """The sweep kernel's compile-time arguments.

    The last three keep R and the weights p N' inside the operands' format, with the numbers of
    csrc/cuda/sweep_parameters.h. float32 and bfloat16 hold 2^40: R may start at the target logit and lag that far.
    float16 spans 2^-24 to 2^16: R starts at the first maximum (a target far above would push p under the range) and
    lags by 2^8 at most; weights are scaled by 2^7 over the largest |N'|, so that they reach up to 2^15 and down to
    2^-31 of R. With center_scale the launcher scales them by its largest value too, a power of two (center_unit).
    """
    half = dtype == torch.float16
    return {
        "DIM": dim,
        "CENTER_STRIDE": center_stride,
        "ROW_VALUES": row_value_count,
        "BLOCK_B": config.block_b,
        "BLOCK_S": config.block_s,
        "BLOCK_D": config.block_d,
        "BLOCK_K": config.block_k,
        "NEED_MOMENTS": need_moments,
        "MAY_OMIT": may_omit,
        "PRECISION": precision,
        "STARTS_AT_TARGET": not half,
        "SAFE_DISTANCE": 8.0 if half else 40.0,
        "WEIGHT_SCALE": 128.0 if half else 0.0,
    }
