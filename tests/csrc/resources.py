"""Compiles the CUDA kernels for every architecture and reads the compiler's own report.

Each unit that an architecture's plan can choose (csrc/cuda/sweep.cu: by shared memory) must compile, spill nothing, and
fit the architecture's registers and shared memory.

    resources.py NVCC SOURCE_DIR [ARCH ..]        prints a table and "N passed, M failed"
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Shared memory a block may have after opting in, KiB (CUDA C++ Programming Guide, technical specifications per compute
# capability).
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
UNITS = ("sweep_d128", "sweep_d256", "sweep_d512", "merge", "adasin")

# SweepConfig<D, rows, tile, stages, product rows, product columns>: bytes as SweepShared in csrc/cuda/sweep_layout.h.
CONFIG = re.compile(r"sweep_kernel<.*?SweepConfig<(\d+), (\d+), (\d+), (\d+), (\d+), (\d+)>, .*?(BFloat16|Float16), (true|false)>")


def shared_bytes(dim: int, rows: int, tile: int, stages: int, product_rows: int, product_columns: int, grad: bool) -> int:
    warps = rows // 8
    parts = warps // ((rows // product_rows) * (tile // product_columns))
    size = 2 * (rows * dim + stages * tile * dim) + 8 * parts * rows * tile + 8 * 4 * tile
    return size + (4 * rows * tile + 8 * rows + 8 * warps if grad else 0)


def report(nvcc: str, source: Path, unit: str, arch: int) -> list[tuple[str, int, int, int]]:
    """(kernel, registers, spill bytes, shared bytes) of each kernel of a unit; a sweep's stack frame counts as spilling."""
    with tempfile.TemporaryDirectory() as name:
        cubin = Path(name) / "unit.cubin"
        command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", "--diag-suppress=20012",
                   str(source / "csrc" / "cuda" / f"{unit}.cu"), "-o", str(cubin)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{unit} does not compile for sm_{arch}:\n{result.stderr}")
    text = subprocess.run(["c++filt"], input=result.stderr, capture_output=True, text=True, check=True).stdout
    rows = []
    for block in text.split("Compiling entry function '")[1:]:
        kernel = block[: block.index("' for '")]
        registers = int(re.search(r"Used (\d+) registers", block).group(1))
        spill = sum(int(each) for each in re.findall(r"(\d+) bytes spill", block))
        stack = int(re.search(r"(\d+) bytes stack frame", block).group(1))
        static = re.search(r"(\d+) bytes smem", block)
        config = CONFIG.search(kernel)
        shared = int(static.group(1)) if static else 0
        if config:
            shared += shared_bytes(*(int(config.group(i)) for i in range(1, 7)), config.group(8) == "true")
            kernel = "sweep<" + ", ".join(config.group(i) for i in range(1, 7)) + f"> {config.group(7)}" + (" grad" if config.group(8) == "true" else "")
        else:
            kernel = re.sub(r"\(.*", "", kernel.replace("(anonymous namespace)::", "")).split("::")[-1]
        rows.append((kernel, registers, spill + (stack if config else 0), shared))
    return rows


def main() -> int:
    nvcc, source = sys.argv[1], Path(sys.argv[2])
    archs = [int(arch) for arch in sys.argv[3:]] or list(SHARED_KIB)
    jobs = [(unit, arch) for arch in archs for unit in UNITS if (source / "csrc" / "cuda" / f"{unit}.cu").exists()]
    passed = failed = 0
    lacking = {(arch, dim) for arch in archs for dim in (128, 256, 512)}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for (_, arch), rows in zip(jobs, pool.map(lambda job: report(nvcc, source, *job), jobs), strict=True):
            for kernel, registers, spill, shared in rows:
                fits = shared <= SHARED_KIB[arch] * 1024
                if not fits:
                    verdict = "not chosen here: shared memory"
                elif spill:
                    verdict = "SPILLS"
                else:
                    verdict = "ok"
                print(f"sm_{arch:<4} {kernel:52} {registers:4} registers {spill:5} spill bytes {shared:7} shared bytes  {verdict}")
                if verdict == "ok" and kernel.endswith("grad"):
                    lacking.discard((arch, int(kernel[len("sweep<") : kernel.index(",")])))
                passed += verdict == "ok"
                failed += verdict == "SPILLS"
    for arch, dim in sorted(lacking):
        print(f"sm_{arch}: no sweep at D = {dim} fits")
    failed += len(lacking)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
