"""What the launchers of the Triton kernels share: checks of arguments, layout, the device, float32's precision."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.ops.row_values import RowValues
from attfc_cuda.ops.triton.configs import DTYPES, PRECISIONS, why_not


def float32_precision() -> str:
    """How float32 products are made, as PyTorch is set up for its own on CUDA devices: "ieee", "tf32x3" or "tf32".

    torch.set_float32_matmul_precision("highest", the default) gives ieee, "high" tf32x3 (three products of tf32 heads
    and tails), "medium" tf32; torch.backends.cuda.matmul.fp32_precision = "tf32" gives tf32 too.
    """
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    try:
        return "tf32x3" if torch.get_float32_matmul_precision() == "high" else "tf32"
    except RuntimeError:  # raised where fp32_precision was set: the two ways do not mix
        return "tf32"


def check_arguments(
    function: str,
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    center_scale: Tensor | None,
    row_values: Tensor,
    rows_given: dict[str, Tensor | None],
    precision: str,
) -> None:
    """Raises unless the shapes and dtypes are those that the kernels read. rows_given: float32 [B] by name, or None."""
    rows, dim = embeddings.shape
    reason = why_not(embeddings.dtype, dim)
    if reason is not None:
        kind = TypeError if embeddings.dtype not in DTYPES else ValueError
        got = f"{embeddings.dtype} [{rows}, {dim}]"
        raise error(function, "embeddings", "suit the Triton backend", got, reason, kind=kind)
    if centers.dtype != embeddings.dtype:
        raise error(function, "centers", f"be {embeddings.dtype} as embeddings", centers.dtype, kind=TypeError)
    if centers.ndim != 2 or centers.shape[1] != dim:
        raise error(function, "centers", f"be [S, {dim}]", list(centers.shape))
    slots = centers.shape[0]
    for name, value, count in (("labels", labels, rows), ("center_labels", center_labels, slots)):
        if value.dtype != torch.int64:
            raise error(function, name, "be int64", value.dtype, kind=TypeError)
        if value.shape != (count,):
            raise error(function, name, f"be [{count}]", list(value.shape))
    floats = [(name, value, rows) for name, value in rows_given.items()]
    for name, value, count in [("center_scale", center_scale, slots), *floats]:
        if value is not None and (value.dtype != torch.float32 or value.shape != (count,)):
            raise error(function, name, f"be float32 [{count}]", f"{value.dtype} {list(value.shape)}")
    shapes = [(count, rows) for count in (0, 1, len(RowValues._fields))]
    if row_values.dtype != torch.float32 or row_values.shape not in shapes:
        rule = f"be float32 {' or '.join(str(list(shape)) for shape in shapes)}"
        raise error(function, "row_values", rule, f"{row_values.dtype} {list(row_values.shape)}")
    if precision not in PRECISIONS:
        raise error(function, "precision", f"be one of {', '.join(PRECISIONS)}", repr(precision))


def ceil_div(count: int, size: int) -> int:
    return -(-count // size)


# Of choose_splits(): a split's fixed cost in tiles' time, and the most splits.
_SPLIT_OVERHEAD = 6
_MAX_SPLITS = 1024


def choose_splits(row_blocks: int, tiles: int, slots: int) -> int:
    """Parts of the class axis for `row_blocks` blocks of rows, `tiles` tiles of centres and `slots` programs at once.

    The rule of csrc/cuda/sweep.cu: a sweep takes (rounds of programs) x (tiles of a split + _SPLIT_OVERHEAD); of the
    splits within 3 % of the least time the fewest, for each has a workspace of its own.
    """
    times = [
        ceil_div(row_blocks * splits, slots) * (ceil_div(tiles, splits) + _SPLIT_OVERHEAD)
        for splits in range(1, max(1, min(tiles, _MAX_SPLITS)) + 1)
    ]
    limit = 103 * min(times)
    return next(index for index, time in enumerate(times, 1) if 100 * time <= limit)


def contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def rows_contiguous(matrix: Tensor) -> Tensor:
    """The matrix with unit column stride: itself wherever possible, since centres are large."""
    return matrix if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1] else matrix.contiguous()


def power_of_two_unit(largest: Tensor) -> Tensor:
    """The power of two u for which 1/2 <= u * largest < 1, [1] float32 on its device; 1 where largest is 0, inf or NaN.

    Made by torch operators, without waiting for the device. Limited to 2^-100 .. 2^100.
    """
    exponent = torch.frexp(largest).exponent.clamp(-100, 100)
    return torch.where(largest.isfinite() & (largest > 0), torch.exp2(-exponent.float()), 1.0).reshape(1)


def device_guard(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def capability_of(device: torch.device) -> int:
    """major * 10 + minor; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors_of(device: torch.device) -> int:
    """Programs that run at once, one on a multiprocessor; in the interpreter enough for a few splits."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
