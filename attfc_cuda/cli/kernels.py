"""`attfc kernels`: the compilers' reports about the GPU kernels."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from attfc_cuda._error import error

ARCHITECTURES = (80, 86, 89, 90, 100, 120)


@dataclass
class Command:
    """Compile the GPU kernels, with or without a GPU, and print registers, spills, shared memory and occupancy."""

    architectures: tuple[int, ...] = ARCHITECTURES
    """Compute capabilities, major * 10 + minor. Each takes some twenty seconds."""


def run(command: Command) -> int:
    """Compile and print; exit code 0, also where a compiler is missing, which is said."""
    from attfc_cuda.ops import build

    for architecture in command.architectures:
        if architecture not in ARCHITECTURES:
            raise error("kernels", "architectures", f"be among {', '.join(map(str, ARCHITECTURES))}", architecture)
    try:
        report = importlib.import_module("attfc_cuda.ops.resources.triton_report")
        report.print_table(report.rows(command.architectures))
    except ImportError as cause:
        print(f"Triton kernels left out: {cause}")
    nvcc, csrc = shutil.which("nvcc"), build.source_root(Path(build.__file__).parents[1])
    if nvcc is None or csrc is None:
        print(f"CUDA kernels left out: {'no nvcc on PATH' if nvcc is None else 'their sources are not installed'}")
        return 0
    cuda_report = importlib.import_module("attfc_cuda.ops.resources.cuda_report")
    print(cuda_report.format_table(cuda_report.compile_all(nvcc, csrc, list(command.architectures))))
    return 0
