"""The Triton kernels compiled ahead of time for an architecture, without a GPU, and what the compiler made of them.

Numbers come from the cubin itself: cuobjdump's resource usage (registers, stack) and nvdisasm's listing of the SASS.
A kernel here calls nothing and indexes no local array, so the stack is what it spills, if any instruction touches it
(LLVM sometimes leaves the declaration of a byte that none does).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attfc_cuda.ops.row_values import RowValues
from attfc_cuda.ops.triton.center_gradient import center_gradient_constants
from attfc_cuda.ops.triton.center_gradient_kernel import center_gradient_kernel
from attfc_cuda.ops.triton.configs import Config, choose, choose_center_gradient, padded_dim
from attfc_cuda.ops.triton.merge_kernel import merge_kernel
from attfc_cuda.ops.triton.sweep import launch_constants
from attfc_cuda.ops.triton.sweep_kernel import sweep_kernel

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TYPE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Bytes of shared memory a block may have, bytes of a multiprocessor, warps of a multiprocessor.
_LIMITS = {
    80: (166912, 167936, 64),
    86: (101376, 102400, 48),
    89: (101376, 102400, 48),
    90: (232448, 233472, 64),
    100: (232448, 233472, 64),
    120: (101376, 102400, 48),
}
_LOCAL_ACCESS = re.compile(r"\b(STL|LDL)\b")
_TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|OMMA|QMMA|UTC\w*MMA)\b")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs. spill_bytes a thread, shared_bytes a block; occupancy is warps resident of warps
    possible; mma_in_loop counts tensor-core instructions of the innermost loop that has most of them."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    shared_limit: int
    mma_in_loop: int
    occupancy: float


def sweep_resources(
    capability: int,
    dtype: torch.dtype,
    dim: int,
    *,
    config: Config | None = None,
    need_grad: bool = True,
    need_moments: bool = False,
    may_omit: bool = True,
    modulated: bool = True,
    scaled: bool = False,
    precision: str = "ieee",
) -> Resources:
    """Compiles one variant of the sweep as `negative_logsumexp_forward` launches it for contiguous, aligned inputs;
    scaled: with center_scale."""
    config = config or choose(capability, dtype, dim, need_moments=need_moments, precision=precision)
    operand, row = "*" + TYPE[dtype], "*fp32"
    arguments = {
        "embedding_ptr": operand,
        "center_ptr": operand,
        "label_ptr": "*i64",
        "center_label_ptr": "*i64",
        "center_scale_ptr": row if scaled else None,
        "center_unit_ptr": row if scaled and dtype == torch.float16 else None,
        "row_value_ptr": row,
        "partial_ptr": row,
        "hard_count_ptr": "*i32",
        "gradient_ptr": row if need_grad else None,
        **dict.fromkeys(("rows", "slots", "embedding_stride", "tiles_per_split"), "i32"),
        **dict.fromkeys(("scale_log2", "tolerance", "target_tolerance"), "fp32"),
    }
    row_value_count = len(RowValues._fields) if modulated else 1
    constants = launch_constants(
        config, dtype, dim, dim, row_value_count, need_moments, may_omit and need_grad, precision
    )
    aligned = ("embedding_stride",) if dim % 16 == 0 else ()
    return compile_kernel(capability, sweep_kernel, arguments, constants, config.num_warps, config.num_stages, aligned)


def center_gradient_resources(
    capability: int,
    dtype: torch.dtype,
    dim: int,
    *,
    config: Config | None = None,
    modulated: bool = True,
    scaled: bool = True,
    precision: str = "ieee",
) -> Resources:
    """Compiles one variant of the centre gradient as `center_gradient_forward` launches it; scaled: with
    center_scale."""
    config = config or choose_center_gradient(capability, dtype, dim, precision=precision)
    operand, row = "*" + TYPE[dtype], "*fp32"
    arguments = {
        "term_ptr": row,
        "embedding_ptr": operand,
        "center_ptr": operand,
        "label_ptr": "*i64",
        "center_label_ptr": "*i64",
        "center_scale_ptr": row if scaled else None,
        "gradient_ptr": operand,
        **dict.fromkeys(("rows", "slots", "center_stride"), "i32"),
        "scale_log2": "fp32",
    }
    constants = center_gradient_constants(config, dim, dim, modulated, precision)
    aligned = ("center_stride",) if dim % 16 == 0 else ()
    return compile_kernel(
        capability, center_gradient_kernel, arguments, constants, config.num_warps, config.num_stages, aligned
    )


def merge_resources(capability: int, dim: int, splits: int = 22) -> Resources:
    """Compiles the merge with a gradient."""
    row = "*fp32"
    arguments = {
        "partial_ptr": row,
        "hard_count_ptr": "*i32",
        "gradient_ptr": row,
        "label_ptr": "*i64",
        "target_logit_ptr": row,
        "lse_ptr": row,
        "hard_total_ptr": "*i64",
        **dict.fromkeys(("max_cosine_ptr", "omitted_mass_ptr", "unit_grad_ptr", "moments_ptr"), row),
        "rows": "i32",
        "splits": "i32",
        "scale": "fp32",
    }
    constants = {"DIM": dim, "BLOCK_D": padded_dim(dim), "BLOCK_SPLITS": triton.next_power_of_2(splits)}
    return compile_kernel(capability, merge_kernel, arguments, constants, 4, 2, ())


def compile_kernel(
    capability: int,
    kernel: triton.JITFunction,
    arguments: Mapping[str, str | None],
    constants: dict[str, object],
    num_warps: int,
    num_stages: int,
    aligned: tuple[str, ...],
) -> Resources:
    constants = {**constants, **{name: None for name, kind in arguments.items() if kind is None}}
    signature = {name: "constexpr" if name in constants else arguments[name] for name in kernel.arg_names}
    divisible = [
        i for i, (name, kind) in enumerate(signature.items()) if (kind or "").startswith("*") or name in aligned
    ]  # as a launch finds them: torch's allocations are aligned
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in divisible})
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        sass = _run(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump must report REG, STACK and LOCAL, got: {usage}")
    registers, stack, local = map(int, found.groups())
    shared = compiled.metadata.shared
    return Resources(
        registers,
        stack + local if _LOCAL_ACCESS.search(sass) else 0,
        shared,
        _LIMITS[capability][0],
        _mma_in_loop(sass),
        _occupancy(capability, registers, shared, num_warps),
    )


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _mma_in_loop(sass: str) -> int:
    """Tensor-core instructions between a backward branch and its target, for the branch that spans most of them."""
    labels: dict[str, int] = {}
    counts, total = [], 0
    for line in sass.splitlines():
        label = re.match(r"^(\.L\w+):", line)
        if label:
            labels[label[1]] = total
        total += bool(_TENSOR_CORE.search(line))
        branch = re.search(r"\bBRA\b.*`\((\.L\w+)\)", line)
        if branch and branch[1] in labels:
            counts.append(total - labels[branch[1]])
    return max(counts, default=0)


def _occupancy(capability: int, registers: int, shared: int, num_warps: int) -> float:
    """Of CUDA's occupancy rules: registers are given in 256 a warp, each block takes 1 KiB of shared memory more."""
    _, shared_of_multiprocessor, warps = _LIMITS[capability]
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * num_warps)
    by_shared = shared_of_multiprocessor // (shared + 1024)
    return min(by_registers, by_shared, warps // num_warps) * num_warps / warps
