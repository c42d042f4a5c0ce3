"""The Triton backend of the steps of a head around the sweep: arguments, workspaces and launches around the kernels of
head_step_*_kernel.py. The operators are those of csrc/head_step.h and attfc_cuda/ops/head_step.py, float32 (sums) and
16-bit floats (embeddings, gallery, container) with D <= 1024.

Launches: one each, enqueue_fifo two, enqueue_refresh five. No float is added by an atomic: two runs give the same bits.
Workspaces have a size known beforehand and nothing waits for the host, so a step can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import triton
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.ops.row_values import RowValues
from attfc_cuda.ops.triton import head_step_enqueue_kernel as enqueue_kernel
from attfc_cuda.ops.triton import launch
from attfc_cuda.ops.triton.configs import DTYPES, padded_dim, why_not
from attfc_cuda.ops.triton.head_step_adasin_kernel import adasin_loss_kernel, adasin_row_values_kernel
from attfc_cuda.ops.triton.head_step_rows_kernel import head_rows_kernel, row_gradients_kernel
from attfc_cuda.ops.triton.head_step_statistics_kernel import STATE_SIZE, step_statistics_kernel

# A row shorter than this has no direction (kShortestRow in csrc/head_step.h).
_SHORTEST_ROW = 1e-6
# Compile-time sizes and warps of each kernel; resources/triton_compile.py compiles it with the same.
ROWS_WARPS, ALL_ROWS_WARPS, SLOTS_WARPS = 4, 4, 8
ADASIN = {"BLOCK_ROWS": 512}
FIFO_PLAN = {"BLOCK_ROWS": 512}
REFRESH_PLAN = {"BLOCK_ROWS": 32, "BLOCK_OTHERS": 128, "BLOCK_SLOTS": 1024}
STAMP_HISTOGRAM = {"BLOCK_ROWS": 512, "BLOCK_SLOTS": 1024, "BLOCK_PROGRAMS": 512}
COLLECT_OLDEST = {"BLOCK_SLOTS": 1024, "BLOCK_PROGRAMS": 512}
HAND_OUT = {"BLOCK": 64, "BLOCK_OTHERS": 64}
STATISTICS = {"BLOCK_SLOTS": 256, "BLOCK_ROWS": 16, "BLOCK_MEANS": 256}
_SLOT_TILES = 2  # of a program that scans stamps, at least
_MOST_HAND_OUT_PROGRAMS = 264
_MOST_STATISTICS_PROGRAMS = 1024


def _require(function: str, name: str, holds: bool, rule: str, got: object, kind: type[Exception] = ValueError) -> None:
    if not holds:
        raise error(function, name, rule, got, kind=kind)


def _dense(
    function: str, name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[int], device: torch.device
) -> Tensor:
    """A contiguous tensor of this shape, dtype and device, or an error."""
    _require(function, name, value.dtype == dtype, f"be {dtype}", value.dtype, TypeError)
    _require(function, name, value.shape == tuple(shape), f"have shape {list(shape)}", list(value.shape))
    _require(function, name, value.device == device, f"be on {device}", value.device)
    return value.contiguous()


def _in_place(
    function: str, name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[int], device: torch.device
) -> Tensor:
    """As _dense, for a tensor that is written to: a copy would be lost."""
    _require(function, name, value.is_contiguous(), "be contiguous", f"strides {list(value.stride())}")
    return _dense(function, name, value, dtype, shape, device)


def _floats(function: str, name: str, dtype: torch.dtype) -> None:
    _require(function, name, dtype in DTYPES, "be float32, bfloat16 or float16 with Triton", dtype, TypeError)


def _matrix(function: str, name: str, value: Tensor, device: torch.device) -> Tensor:
    """[rows, D] with a row stride, or an error."""
    _require(function, name, value.ndim == 2, "have shape [rows, D]", list(value.shape))
    reason = why_not(value.dtype, value.shape[1])
    kind = TypeError if value.dtype not in DTYPES else ValueError
    _require(function, name, reason is None, f"suit the Triton backend: {reason}", list(value.shape), kind)
    _require(function, name, value.device == device, f"be on {device}", value.device)
    return launch.rows_contiguous(value)


def row_constants(dim: int) -> dict[str, int]:
    return {"DIM": dim, "BLOCK_D": padded_dim(dim)}


def head_rows_constants(dim: int, has_code: bool) -> dict[str, object]:
    """Compile-time arguments of head_rows_kernel."""
    return {**row_constants(dim), "HAS_CODE": has_code, "SHORTEST_ROW": _SHORTEST_ROW}


def head_rows(
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
    num_classes: int,
    temperature: float,
    class_code: float,
    center_memory: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`attfc::head_rows`. One launch, a program a row."""
    device = embeddings.device
    x = _matrix("head_rows", "embeddings", embeddings, device)
    (rows, dim), extra_rows = x.shape, extra_labels.shape[0]
    is_gallery = gallery.ndim == 3 and gallery.shape[1] > 0
    _require("head_rows", "gallery", is_gallery, f"have shape [{rows}, r >= 1, {dim}]", list(gallery.shape))
    dense = functools.partial(_dense, "head_rows", device=device)
    for name, dtype in (
        ("gallery", gallery.dtype),
        ("extra_centers", extra_centers.dtype),
        ("container_dtype", container_dtype),
    ):
        _floats("head_rows", name, dtype)
    labels = dense("labels", labels, torch.int64, [rows])
    gallery = dense("gallery", gallery, gallery.dtype, [rows, gallery.shape[1], dim])
    extra = dense("extra_centers", extra_centers, extra_centers.dtype, [extra_rows, dim])
    extra_labels = dense("extra_labels", extra_labels, torch.int64, [extra_rows])
    codes = stored = None
    if class_code > 0 and code_of_class is not None:
        codes = dense("code_of_class", code_of_class, torch.int64, [num_classes])
    if center_memory > 0:
        if stored_centers is None or slot_labels is None or slot_of_class is None:
            raise error(
                "head_rows", "stored_centers, slot_labels and slot_of_class", "be given with center_memory", None
            )
        stored = _matrix("head_rows", "stored_centers", stored_centers, device)
        is_stored = stored.dtype == container_dtype
        _require("head_rows", "stored_centers", is_stored, f"be {container_dtype}", stored.dtype, TypeError)
        _require("head_rows", "stored_centers", stored.shape[1] == dim, f"have {dim} columns", stored.shape[1])
        slot_labels = dense("slot_labels", slot_labels, torch.int64, [stored.shape[0]])
        slot_of_class = dense("slot_of_class", slot_of_class, torch.int32, [num_classes + 1])
    new = functools.partial(torch.empty, device=device)
    total = extra_rows + rows
    units, inverse_norm, cosine = new((rows, dim), dtype=container_dtype), new(rows), new(rows)
    row_labels, new_centers = new(rows, dtype=torch.int64), new((total, dim))
    new_labels = new(total, dtype=torch.int64)
    if total > 0:
        with launch.device_guard(device):
            head_rows_kernel[(total,)](
                x, labels, gallery, extra, extra_labels, codes, stored,
                None if stored is None else slot_labels,
                None if stored is None else slot_of_class,
                units, inverse_norm, cosine, row_labels, new_centers, new_labels,
                extra_rows, gallery.shape[1],
                torch.iinfo(torch.int64).max if num_classes < 0 else num_classes,
                x.stride(0),
                0 if stored is None else stored.stride(0),
                temperature, class_code / math.sqrt(dim), center_memory,
                **head_rows_constants(dim, class_code > 0),
                num_warps=ROWS_WARPS,
            )  # fmt: skip
    return units, inverse_norm, cosine, row_labels, new_centers, new_labels


def row_gradients(
    upstream: Tensor,
    embeddings: Tensor,
    unit_grad: Tensor,
    inverse_norm: Tensor,
    centers: Tensor,
    labels: Tensor,
    lse_weight: Tensor,
    cosine_weight: Tensor,
) -> Tensor:
    """`attfc::row_gradients`. One launch, a program a row."""
    device = embeddings.device
    x = _matrix("row_gradients", "embeddings", embeddings, device)
    rows, dim = x.shape
    dense = functools.partial(_dense, "row_gradients", dtype=torch.float32, device=device)
    gradient = torch.empty((rows, dim), dtype=x.dtype, device=device)
    operands = (
        dense("upstream", upstream, shape=[]),
        x,
        dense("unit_grad", unit_grad, shape=[rows, dim]),
        dense("inverse_norm", inverse_norm, shape=[rows]),
        dense("centers", centers, shape=[rows, dim]),
        dense("labels", labels, dtype=torch.int64, shape=[rows]),
        dense("lse_weight", lse_weight, shape=[rows]),
        dense("cosine_weight", cosine_weight, shape=[rows]),
    )
    if rows > 0:
        with launch.device_guard(device):
            row_gradients_kernel[(rows,)](*operands, gradient, x.stride(0), **row_constants(dim), num_warps=ROWS_WARPS)
    return gradient


def adasin_row_values(
    labels: Tensor,
    cosine: Tensor,
    t: Tensor,
    margin_rad: float,
    difficulty_weight: float,
    momentum: float,
    scale: float,
    half_angle: bool,
    move_t: bool,
) -> Tensor:
    """`attfc::adasin_row_values`. One launch of one program."""
    rows, device = labels.shape[0], cosine.device
    cosine = _dense("adasin_row_values", "cosine", cosine, torch.float32, [rows], device)
    labels = _dense("adasin_row_values", "labels", labels, torch.int64, [rows], device)
    t = _in_place("adasin_row_values", "t", t, torch.float32, [], device)
    values = torch.empty((len(RowValues._fields), rows), device=device)
    if rows > 0:
        with launch.device_guard(device):
            adasin_row_values_kernel[(1,)](
                labels, cosine, t, values, rows, margin_rad, difficulty_weight, 1 - momentum, scale,
                HALF_ANGLE=half_angle, MOVE_T=move_t, **ADASIN, num_warps=ALL_ROWS_WARPS,
            )  # fmt: skip
    return values


def adasin_loss(
    embeddings: Tensor,
    unit_grad: Tensor,
    inverse_norm: Tensor,
    centers: Tensor,
    labels: Tensor,
    cosine: Tensor,
    row_values: Tensor,
    lse: Tensor,
    hard_count: Tensor,
    margin_rad: float,
    scale: float,
    straight_through: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`attfc::adasin_loss`; its first four arguments are for the backward pass alone. One launch of one program."""
    rows, device = labels.shape[0], cosine.device
    dense = functools.partial(_dense, "adasin_loss", device=device)
    cosine = dense("cosine", cosine, torch.float32, [rows])
    labels = dense("labels", labels, torch.int64, [rows])
    row_values = dense("row_values", row_values, torch.float32, [len(RowValues._fields), rows])
    lse = dense("lse", lse, torch.float32, [rows])
    hard_count = dense("hard_count", hard_count, torch.int64, [rows])
    loss = torch.empty((), device=device)
    row_loss, target_logit, lse_weight, cosine_weight = (torch.empty(rows, device=device) for _ in range(4))
    with launch.device_guard(device):  # without rows too: the loss is 0 then
        adasin_loss_kernel[(1,)](
            labels, cosine, row_values[RowValues._fields.index("lin")], lse, hard_count,
            loss, row_loss, target_logit, lse_weight, cosine_weight, rows, margin_rad, scale,
            STRAIGHT_THROUGH=straight_through, **ADASIN, num_warps=ALL_ROWS_WARPS,
        )  # fmt: skip
    return loss, row_loss, target_logit, lse_weight, cosine_weight


_KEPT_ZEROS: dict[torch.device, Tensor] = {}


def _zeros(device: torch.device) -> Tensor:
    """Zeros for a kernel to count in: a copy of kept ones, which in a CUDA graph is no kernel. Those made within a
    capture are not kept: their memory is the graph's."""
    kept = _KEPT_ZEROS.get(device)
    if kept is not None:
        return kept.clone()
    new = torch.zeros(STATE_SIZE, dtype=torch.int64, device=device)
    if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        _KEPT_ZEROS[device] = new.clone()
    return new


def step_statistics(
    loss: Tensor,
    labels: Tensor,
    cosine: Tensor,
    hard_count: Tensor,
    max_cosine: Tensor,
    omitted_mass: Tensor,
    slot_labels: Tensor,
    extra_labels: Tensor,
    t: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`attfc::step_statistics`. One launch, and a copy of 24 bytes."""
    device, rows, slots, extra_rows = cosine.device, labels.shape[0], slot_labels.shape[0], extra_labels.shape[0]
    dense = functools.partial(_dense, "step_statistics", device=device)
    operands = (
        dense("loss", loss, torch.float32, []),
        dense("labels", labels, torch.int64, [rows]),
        dense("cosine", cosine, torch.float32, [rows]),
        dense("hard_count", hard_count, torch.int64, [rows]),
        dense("max_cosine", max_cosine, torch.float32, [rows]),
        dense("omitted_mass", omitted_mass, torch.float32, [rows]),
        dense("slot_labels", slot_labels, torch.int64, [slots]),
        dense("extra_labels", extra_labels, torch.int64, [extra_rows]),
        None if t is None else dense("t", t, torch.float32, []),
    )
    means, counts = torch.empty(6, device=device), torch.empty(2, dtype=torch.int64, device=device)
    tiles = launch.ceil_div(slots, STATISTICS["BLOCK_SLOTS"])
    tiles_per_program = max(1, launch.ceil_div(tiles, _MOST_STATISTICS_PROGRAMS))
    programs = max(1, launch.ceil_div(tiles, tiles_per_program))  # without slots too: there are rows to report
    with launch.device_guard(device):
        step_statistics_kernel[(programs,)](
            *operands, _zeros(device), means, counts, rows, extra_rows, slots, tiles_per_program,
            **STATISTICS, num_warps=ALL_ROWS_WARPS,
        )  # fmt: skip
    return means, counts


def _scatter(new_centers: Tensor, slot_of_row: Tensor, centers: Tensor, clock: Tensor | None) -> None:
    rows, dim = new_centers.shape
    enqueue_kernel.scatter_kernel[(rows,)](
        new_centers, slot_of_row, centers, clock, rows, **row_constants(dim), num_warps=ROWS_WARPS
    )


def _check_enqueue(
    function: str, centers: Tensor, labels: Tensor, clock: Tensor, new_centers: Tensor, new_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The rows that enter, contiguous; an error where one of the tensors does not fit."""
    device, rows = centers.device, new_labels.shape[0]
    _matrix(function, "centers", centers, device)
    slots, dim = centers.shape
    _require(function, "new_labels", rows <= slots, f"have at most {slots} rows, as there are slots", rows)
    _in_place(function, "centers", centers, centers.dtype, [slots, dim], device)
    _require(function, "centers", slots < 2**30, "have fewer than 2^30 rows", slots)  # slot numbers have 32 bits
    _in_place(function, "labels", labels, torch.int64, [slots], device)
    _in_place(function, "clock", clock, torch.int64, [], device)
    return (
        _dense(function, "new_centers", new_centers, torch.float32, [rows, dim], device),
        _dense(function, "new_labels", new_labels, torch.int64, [rows], device),
    )


def enqueue_fifo(centers: Tensor, labels: Tensor, clock: Tensor, new_centers: Tensor, new_labels: Tensor) -> None:
    """`attfc::enqueue_fifo`. Two launches: one program that plans, a program a row."""
    new_centers, new_labels = _check_enqueue("enqueue_fifo", centers, labels, clock, new_centers, new_labels)
    rows, slots = len(new_labels), len(labels)
    if rows == 0:
        return
    slot_of_row = torch.empty(rows, dtype=torch.int32, device=centers.device)
    with launch.device_guard(centers.device):
        enqueue_kernel.fifo_plan_kernel[(1,)](
            new_labels, labels, clock, slot_of_row, rows, slots, **FIFO_PLAN, num_warps=ALL_ROWS_WARPS
        )
        _scatter(new_centers, slot_of_row, centers, None)


def enqueue_refresh(
    centers: Tensor,
    labels: Tensor,
    clock: Tensor,
    stamps: Tensor,
    slot_of_class: Tensor,
    new_centers: Tensor,
    new_labels: Tensor,
) -> None:
    """`attfc::enqueue_refresh`. Five launches."""
    new_centers, new_labels = _check_enqueue("enqueue_refresh", centers, labels, clock, new_centers, new_labels)
    rows, slots, device = len(new_labels), len(labels), centers.device
    _in_place("enqueue_refresh", "stamps", stamps, torch.int64, [slots], device)
    has_shape = slot_of_class.ndim == 1 and len(slot_of_class) > 0
    _require("enqueue_refresh", "slot_of_class", has_shape, "have shape [classes + 1]", list(slot_of_class.shape))
    _in_place("enqueue_refresh", "slot_of_class", slot_of_class, torch.int32, slot_of_class.shape, device)
    if rows == 0:
        return
    new: Callable[..., Tensor] = functools.partial(torch.empty, device=device)
    row_programs = launch.ceil_div(rows, REFRESH_PLAN["BLOCK_ROWS"])
    tiles = launch.ceil_div(slots, REFRESH_PLAN["BLOCK_SLOTS"])
    per_program = max(_SLOT_TILES, launch.ceil_div(tiles, STAMP_HISTOGRAM["BLOCK_PROGRAMS"]))
    programs = launch.ceil_div(tiles, per_program)
    slot_of_row, waiting_rows = new(rows, dtype=torch.int32), new(rows, dtype=torch.int32)
    least, state = new(programs, dtype=torch.int64), new(enqueue_kernel.STATE_SIZE, dtype=torch.int64)
    histogram = new(enqueue_kernel.BINS, dtype=torch.int32)
    candidate_stamps, candidate_slots = new(slots, dtype=torch.int64), new(slots, dtype=torch.int32)
    with launch.device_guard(device):
        enqueue_kernel.refresh_plan_kernel[(row_programs + programs,)](
            new_labels, labels, clock, stamps, slot_of_class, slot_of_row, least, histogram, state,
            rows, slots, row_programs, per_program, **REFRESH_PLAN, num_warps=ALL_ROWS_WARPS,
        )  # fmt: skip
        enqueue_kernel.stamp_histogram_kernel[(1 + programs,)](
            stamps, least, slot_of_row, histogram, waiting_rows, state,
            rows, slots, programs, per_program, **STAMP_HISTOGRAM, num_warps=SLOTS_WARPS,
        )  # fmt: skip
        enqueue_kernel.collect_oldest_kernel[(programs,)](
            stamps, least, histogram, state, candidate_stamps, candidate_slots,
            slots, programs, per_program, **COLLECT_OLDEST, num_warps=SLOTS_WARPS,
        )  # fmt: skip
        blocks = min(_MOST_HAND_OUT_PROGRAMS, triton.cdiv(slots, HAND_OUT["BLOCK"]))
        enqueue_kernel.hand_out_kernel[(blocks,)](
            state, candidate_stamps, candidate_slots, waiting_rows, new_labels, clock,
            labels, stamps, slot_of_class, slot_of_row, **HAND_OUT, num_warps=ALL_ROWS_WARPS,
        )  # fmt: skip
        _scatter(new_centers, slot_of_row, centers, clock)


# By the names of attfc_cuda/ops/head_step.py.
KERNELS: dict[str, Callable[..., object]] = {
    "head_rows": head_rows,
    "enqueue_fifo": enqueue_fifo,
    "enqueue_refresh": enqueue_refresh,
    "adasin_row_values": adasin_row_values,
    "adasin_loss": adasin_loss,
    "row_gradients": row_gradients,
    "step_statistics": step_statistics,
}
