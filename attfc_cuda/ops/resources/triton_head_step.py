"""The Triton kernels of a head step compiled ahead of time, as triton/head_step.py launches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import triton

from attfc_cuda.ops.resources.triton_compile import TYPE, Resources, compile_kernel
from attfc_cuda.ops.triton import head_step
from attfc_cuda.ops.triton import head_step_adasin_kernel as adasin
from attfc_cuda.ops.triton import head_step_enqueue_kernel as enqueue
from attfc_cuda.ops.triton import head_step_rows_kernel as row_kernels
from attfc_cuda.ops.triton import head_step_statistics_kernel as statistics

# Types of the arguments that are not pointers to float32, by name; what differs between kernels stands beside them.
_TYPES = {
    **dict.fromkeys(
        ("label_ptr", "extra_label_ptr", "code_ptr", "slot_label_ptr", "row_label_ptr", "new_label_ptr"), "*i64"
    ),
    **dict.fromkeys(("hard_count_ptr", "count_ptr", "state_ptr", "clock_ptr", "stamp_ptr", "least_ptr"), "*i64"),
    "candidate_stamp_ptr": "*i64",
    **dict.fromkeys(
        ("slot_of_class_ptr", "slot_of_row_ptr", "histogram_ptr", "waiting_row_ptr", "candidate_slot_ptr"), "*i32"
    ),
    **dict.fromkeys(("rows", "extra_rows", "slots", "gallery_size", "embedding_stride", "stored_stride"), "i32"),
    **dict.fromkeys(("tiles_per_program", "row_programs", "slot_programs"), "i32"),
    "num_classes": "i64",  # 2^63 - 1 where their number is not known
    **dict.fromkeys(("temperature", "code_size", "center_memory", "margin_rad", "difficulty_weight"), "fp32"),
    **dict.fromkeys(("new_share", "scale"), "fp32"),
}
# By name: the kernel, its compile-time arguments at a D, its warps, and which arguments are of the embeddings' format.
_Kernel = tuple[triton.JITFunction, Callable[[int], Mapping[str, object]], int, tuple[str, ...]]
KERNELS: dict[str, _Kernel] = {
    "head_rows": (
        row_kernels.head_rows_kernel,
        lambda dim: head_step.head_rows_constants(dim, True),
        head_step.ROWS_WARPS,
        ("embedding_ptr", "gallery_ptr", "extra_ptr", "stored_ptr", "unit_ptr"),
    ),
    "row_gradients": (
        row_kernels.row_gradients_kernel,
        head_step.row_constants,
        head_step.ROWS_WARPS,
        ("embedding_ptr", "grad_ptr"),
    ),
    "adasin_row_values": (
        adasin.adasin_row_values_kernel,
        lambda dim: {"HALF_ANGLE": True, "MOVE_T": True, **head_step.ADASIN},
        head_step.ALL_ROWS_WARPS,
        (),
    ),
    "adasin_loss": (
        adasin.adasin_loss_kernel,
        lambda dim: {"STRAIGHT_THROUGH": False, **head_step.ADASIN},
        head_step.ALL_ROWS_WARPS,
        (),
    ),
    "step_statistics": (
        statistics.step_statistics_kernel,
        lambda dim: head_step.STATISTICS,
        head_step.ALL_ROWS_WARPS,
        (),
    ),
    "fifo_plan": (enqueue.fifo_plan_kernel, lambda dim: head_step.FIFO_PLAN, head_step.ALL_ROWS_WARPS, ()),
    "refresh_plan": (enqueue.refresh_plan_kernel, lambda dim: head_step.REFRESH_PLAN, head_step.ALL_ROWS_WARPS, ()),
    "stamp_histogram": (
        enqueue.stamp_histogram_kernel,
        lambda dim: head_step.STAMP_HISTOGRAM,
        head_step.SLOTS_WARPS,
        (),
    ),
    "collect_oldest": (enqueue.collect_oldest_kernel, lambda dim: head_step.COLLECT_OLDEST, head_step.SLOTS_WARPS, ()),
    "hand_out": (enqueue.hand_out_kernel, lambda dim: head_step.HAND_OUT, head_step.ALL_ROWS_WARPS, ()),
    "scatter": (enqueue.scatter_kernel, head_step.row_constants, head_step.ROWS_WARPS, ("center_ptr",)),
}


def head_step_resources(capability: int, name: str, dtype: torch.dtype = torch.bfloat16, dim: int = 512) -> Resources:
    """Compiles one of KERNELS with all of its options; dtype: of embeddings, gallery and container."""
    kernel, constants_at, num_warps, in_dtype = KERNELS[name]
    constants = dict(constants_at(dim))
    operand = "*" + TYPE[dtype]
    arguments = {
        argument: operand if argument in in_dtype else _TYPES.get(argument, "*fp32")
        for argument in kernel.arg_names
        if argument not in constants
    }
    return compile_kernel(capability, kernel, arguments, constants, num_warps, 3, ())
