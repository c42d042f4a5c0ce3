"""The Triton backend of negative_logsumexp: arguments, workspace and launches around sweep_kernel and merge_kernel."""

from __future__ import annotations

import contextlib
import functools
import math

import torch
import triton
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.kernels.configs import MAX_DIM, PRECISIONS, Config, choose, padded_dim
from attfc_cuda.kernels.merge_kernel import merge_kernel
from attfc_cuda.kernels.sweep_kernel import FIELDS, sweep_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NAME = "negative_logsumexp"

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def why_not(dtype: torch.dtype, dim: int) -> str | None:
    """Why this backend has no kernel for the dtype and D, or None where it has one."""
    if dtype not in DTYPES:
        return f"it has no kernel for {dtype}"
    if not 1 <= dim <= MAX_DIM:
        return f"its kernels hold at most D = {MAX_DIM} columns, got {dim}"
    return None


def negative_logsumexp_forward(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    reference: Tensor | None,
    threshold: Tensor | None,
    quad: Tensor | None,
    lin: Tensor | None,
    const: Tensor | None,
    scale: float,
    grad_tolerance: float,
    need_grad: bool,
    need_moments: bool = True,
    *,
    precision: str = "ieee",
    config: Config | None = None,
    splits: int | None = None,
) -> Outputs:
    """One sweep: the log of the negatives' mass and its unit gradients.

    Equals reference.negative_logsumexp and its gradients, but for the share of the gradient that grad_tolerance allows
    to leave out.
    embeddings [B, D], centers [S, D]: unit rows of one dtype, float32, bfloat16 or float16; D <= 1024, loaded fastest
    where it is a multiple of 16. labels [B], center_labels [S] int64; negative: an ignored row, an empty slot (never
    read: may be NaN). reference, threshold, quad, lin, const: [B] float32 or None.
    precision: of float32 products, "ieee", "tf32x3" or "tf32". config, splits: tile sizes and parts of the class axis;
    None: those of the device.
    Returns: lse [B] float32, hard_count [B] int64, max_cosine [B] float32, omitted_mass [B] float32,
    unit_grad [B, D] float32 = d lse / d embeddings, moments [B, 3] float32 = d lse / d (quad, lin, const); the last two
    have no rows unless asked for. Sums are float32. Two runs on one device are bitwise equal.
    Raises: TypeError for another dtype, ValueError for D or a shape that does not fit.
    """
    rows, dim = embeddings.shape
    slots = centers.shape[0]
    _check(embeddings, centers, labels, center_labels, precision)
    rows_given = {"reference": reference, "threshold": threshold, "quad": quad, "lin": lin, "const": const}
    for name, value in rows_given.items():
        if value is not None and (value.dtype != torch.float32 or value.shape != labels.shape):
            raise error(_NAME, name, f"be float32 [{rows}]", f"{value.dtype} {list(value.shape)}")
    reference, threshold, quad, lin, const = (v if v is None else v.contiguous() for v in rows_given.values())

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
        capability = _capability(embeddings.device)
        config = choose(capability, embeddings.dtype, dim, need_moments=need_moments, precision=precision)
    row_blocks, tiles = _ceil_div(rows, config.block_b), _ceil_div(slots, config.block_s)
    if splits is None:
        splits = max(1, _multiprocessors(embeddings.device) // row_blocks)
    tiles_per_split = _ceil_div(tiles, min(splits, tiles))
    splits = _ceil_div(tiles, tiles_per_split)

    embeddings, centers = _rows_contiguous(embeddings), _rows_contiguous(centers)
    partial = new(FIELDS, splits, rows)
    hard_partial = new(splits, rows, dtype=torch.int32)
    gradient = new(splits, rows, dim) if need_grad else None
    labels, center_labels = labels.contiguous(), center_labels.contiguous()
    may_omit = need_grad and grad_tolerance > 0
    with _device_guard(embeddings.device):
        sweep_kernel[(row_blocks, splits)](
            embeddings,
            centers,
            labels,
            center_labels,
            reference,
            threshold,
            quad if threshold is not None else None,
            lin if threshold is not None else None,
            const if threshold is not None else None,
            partial,
            hard_partial,
            gradient,
            rows,
            slots,
            embeddings.stride(0),
            tiles_per_split,
            scale * math.log2(math.e),
            grad_tolerance,
            grad_tolerance / splits if reference is not None else 0.0,
            **launch_constants(config, embeddings.dtype, dim, centers.stride(0), need_moments, may_omit, precision),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        merge_kernel[(rows,)](
            partial,
            hard_partial,
            gradient,
            labels,
            reference,
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
    need_moments: bool,
    may_omit: bool,
    precision: str,
) -> dict[str, object]:
    """The sweep kernel's compile-time arguments.

    The last three keep R and the weights p N' inside the operands' format, with the numbers of
    csrc/cuda/sweep_parameters.h. float32 and bfloat16 hold 2^40: R may start at the target logit and lag that far.
    float16 spans 2^-24 to 2^16: R starts at the first maximum (a target far above would push p under the range) and
    lags by 2^8 at most; weights are scaled by 2^7 over the largest |N'|, so that they reach up to 2^15 and down to
    2^-31 of R.
    """
    half = dtype == torch.float16
    return {
        "DIM": dim,
        "CENTER_STRIDE": center_stride,
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


def _check(embeddings: Tensor, centers: Tensor, labels: Tensor, center_labels: Tensor, precision: str) -> None:
    rows, dim = embeddings.shape
    reason = why_not(embeddings.dtype, dim)
    if reason is not None:
        kind = TypeError if embeddings.dtype not in DTYPES else ValueError
        got = f"{embeddings.dtype} [{rows}, {dim}]"
        raise error(_NAME, "embeddings", "suit the Triton backend", got, reason, kind=kind)
    if centers.dtype != embeddings.dtype:
        raise error(_NAME, "centers", f"be {embeddings.dtype} as embeddings", centers.dtype, kind=TypeError)
    if centers.ndim != 2 or centers.shape[1] != dim:
        raise error(_NAME, "centers", f"be [S, {dim}]", list(centers.shape))
    for name, value, count in (("labels", labels, rows), ("center_labels", center_labels, centers.shape[0])):
        if value.dtype != torch.int64:
            raise error(_NAME, name, "be int64", value.dtype, kind=TypeError)
        if value.shape != (count,):
            raise error(_NAME, name, f"be [{count}]", list(value.shape))
    if precision not in PRECISIONS:
        raise error(_NAME, "precision", f"be one of {', '.join(PRECISIONS)}", repr(precision))


def _ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def _rows_contiguous(matrix: Tensor) -> Tensor:
    """The matrix with unit column stride: itself wherever possible, since centres are large."""
    return matrix if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1] else matrix.contiguous()


def _device_guard(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Programs that run at once, one on a multiprocessor; in the interpreter enough for a few splits."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
