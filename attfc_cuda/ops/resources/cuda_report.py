"""What nvcc makes of the CUDA kernels: registers, spills, shared memory, tensor-core instructions, occupancy.

Standard library only, and no import of this package: the tests of the CUDA sources run it without PyTorch.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Architecture:
    """Limits per multiprocessor and block (CUDA C++ Programming Guide, technical specifications per capability)."""

    block_shared_kib: int  # after opting in
    shared_kib: int
    threads: int
    registers: int = 65536


ARCHITECTURES = {
    80: Architecture(163, 164, 2048),
    86: Architecture(99, 100, 1536),
    89: Architecture(99, 100, 1536),
    90: Architecture(227, 228, 2048),
    100: Architecture(227, 228, 2048),
    120: Architecture(99, 100, 1536),
}
UNITS = (
    "sweep_d128",
    "sweep_d256",
    "sweep_d512",
    "sweep_sm90",
    "merge",
    "lse_pass",
    "live_tiles",
    "head_rows",
    "enqueue",
    "adasin",
    "statistics",
    "center_gradient",
    "center_gradient_d128",
    "center_gradient_d256",
    "center_gradient_d512",
)

# SweepConfig<D, rows, tile, stages, product rows, product columns>, as csrc/cuda/sweep_layout.h declares it.
_SWEEP = re.compile(r"sweep_kernel<.*?SweepConfig<([\d, ]+)>, .*?(BFloat16|Float16), (true|false)>")
# CenterGradientConfig<D, centres, rows, stages, product rows, product columns>, as center_gradient_layout.h does.
_CENTERS = re.compile(r"center_gradient_kernel<.*?CenterGradientConfig<([\d, ]+)>, .*?(BFloat16|Float16)>")
# LsePassConfig<D, stages>, as lse_pass_layout.h does; a kernel for sm_90a, empty elsewhere.
_LSE = re.compile(r"lse_pass_kernel<.*?LsePassConfig<(\d+), (\d+)>, .*?(BFloat16|Float16)>")
# SweepSm90Config<D>, as sweep_sm90_layout.h does; likewise.
_SM90 = re.compile(r"sweep_sm90_kernel<.*?SweepSm90Config<(\d+)>, .*?(BFloat16|Float16)>")
# Of the kernels whose blocks have not 128.
_THREADS = {
    "live_tiles_kernel": 512,
    "fifo_plan_kernel": 512,
    "refresh_plan_kernel": 512,
    "stamp_histogram_kernel": 512,
    "collect_oldest_kernel": 512,
    "adasin_row_values_kernel": 512,
    "adasin_loss_kernel": 512,
    "step_statistics_kernel": 256,
}
_DTYPES = {"BFloat16": "bf16", "Float16": "fp16"}


@dataclass(frozen=True)
class KernelResources:
    """One kernel on one architecture, as the compiler reports it."""

    arch: int
    kernel: str
    dim: int | None  # of a sweep or a centre gradient
    role: (
        str  # "sweep", "sweep with gradient", "sweep by wgmma", "center gradient", "lse pass"; "rows" of the small ones
    )
    threads: int
    registers: int
    spill_bytes: int  # stores, loads and, with tensor cores, the stack frame
    shared_bytes: int
    tensor_instructions: int | None  # None where no disassembler was found
    wgmma_instructions: int | None  # of those, the ones of Hopper alone (HGMMA)
    tma_instructions: int | None  # copies of tiles (UTMALDG)

    @property
    def fits(self) -> bool:
        """Whether a block's shared memory is within the architecture's limit; no other kernel is chosen."""
        return self.shared_bytes <= ARCHITECTURES[self.arch].block_shared_kib * 1024

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's warps that can be resident."""
        arch = ARCHITECTURES[self.arch]
        warps = self.threads // 32
        registers = -(-self.registers // 8) * 8 * 32 * warps  # allocated by 8 a thread
        by_shared = arch.shared_kib * 1024 // (self.shared_bytes + 1024)  # 1 KiB goes to each block
        blocks = min(arch.threads // self.threads, arch.registers // registers, by_shared, 32)
        return blocks * self.threads / arch.threads


def _sweep_shared_bytes(config: tuple[int, ...], grad: bool) -> int:
    """SweepShared::kBytes; that the launch and the kernel agree on it is what a host run checks."""
    dim, rows, tile, stages, product_rows, product_columns = config
    warps = rows // 8
    parts = warps // ((rows // product_rows) * (tile // product_columns))
    size = 2 * (rows * dim + stages * tile * dim) + 8 * parts * rows * tile + 12 * 4 * tile
    return size + (4 * rows * tile + 8 * rows + 8 * warps if grad else 0)


def _center_shared_bytes(config: tuple[int, ...]) -> int:
    """CenterGradientShared::kBytes, likewise."""
    dim, centers, rows, stages, product_rows, product_columns = config
    warps = centers // 8
    parts = warps // ((rows // product_rows) * (centers // product_columns))
    tiles = 2 * (centers * dim + stages * rows * dim) + 8 * parts * rows * centers + 4 * rows * centers
    return tiles + 48 * 4 * rows + 4 * centers + 8 * warps


def find_disassembler() -> str | None:
    """nvdisasm on PATH, or the one that Triton ships."""
    found = shutil.which("nvdisasm")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        shipped = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        found = str(shipped) if shipped.is_file() else None
    return found


def _group(pattern: str, text: str) -> str:
    """What the pattern's group matches; RuntimeError where nothing does."""
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's report must hold {pattern!r}, got:\n{text}")
    return found.group(1)


def _lse_shared_bytes(dim: int, stages: int) -> int:
    """sizeof(LsePassShared), likewise."""
    tile, barriers = 128 * 64 * 2, 1 + 2 * stages + 4
    size = tile * (dim // 64 + stages) + 2 * (8 + 4) * 128 + 8 * barriers
    return -(-size // 1024) * 1024


def _sm90_shared_bytes(dim: int) -> int:
    """sizeof(SweepSm90Shared), likewise."""
    barriers = 4 + 3 * 4
    tiles = 2 * (64 * dim + 4 * 32 * dim + 2 * 64 * 64)
    size = tiles + 4 * (8 + 4) * 32 + (16 + 8 + 4) * 64 + 40 * 64 + 2 * 4 * 64 + 2 * 4 * 8 + 8 * barriers
    return -(-size // 1024) * 1024


def _instructions(disassembler: str | None, cubin: Path) -> dict[str, Counter[str]]:
    """How often each tensor-core and TMA instruction stands in the code of each mangled kernel name."""
    if disassembler is None:
        return {}
    result = subprocess.run([disassembler, "-c", str(cubin)], capture_output=True, text=True)
    if result.returncode != 0:
        return {}
    sections = re.split(r"^\s*\.section\s+\.text\.([^,\s]+)", result.stdout, flags=re.MULTILINE)[1:]
    return {
        name: Counter(re.findall(r"\b(HMMA|HGMMA|UTCHMMA|UTMALDG)\b", code))
        for name, code in zip(sections[::2], sections[1::2], strict=True)
    }


def _counted(counts: Counter[str] | None) -> tuple[int | None, int | None, int | None]:
    """Of tensor cores, of wgmma among them, of TMA."""
    if counts is None:
        return None, None, None
    return counts.total() - counts["UTMALDG"], counts["HGMMA"], counts["UTMALDG"]


def compile_unit(nvcc: str, csrc: Path, unit: str, arch: int) -> list[KernelResources]:
    """Every kernel of <csrc>/cuda/<unit>.cu for one architecture. Raises RuntimeError with the compiler's words."""
    with tempfile.TemporaryDirectory() as name:
        cubin = Path(name) / "unit.cubin"
        # As attfc_cuda/ops/build.py compiles it: Hopper's own instructions are in sm_90a alone.
        target = "sm_90a" if arch == 90 else f"sm_{arch}"
        command = [nvcc, "-std=c++17", "-O3", f"-arch={target}", "-cubin", "-Xptxas", "-v"]
        command += [str(csrc / "cuda" / f"{unit}.cu"), "-o", str(cubin)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{unit}.cu does not compile for sm_{arch}:\n{result.stderr}")
        # C7507: registers are not traded; C7510, C7517: products wait for each other.
        if "Potential Performance Loss" in result.stderr:
            raise RuntimeError(f"{unit}.cu for {target}: the compiler warns:\n{result.stderr}")
        instructions = _instructions(find_disassembler(), cubin)
    resources = []
    for block in result.stderr.split("Compiling entry function '")[1:]:
        mangled = block[: block.index("'")]
        kernel = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
        registers = int(_group(r"Used (\d+) registers", block))
        spill = sum(int(each) for each in re.findall(r"(\d+) bytes spill", block))
        static = re.search(r"(\d+) bytes smem", block)
        shared = int(static.group(1)) if static else 0
        found = _CENTERS.search(kernel) or _SWEEP.search(kernel)
        lse, by_wgmma = _LSE.search(kernel), _SM90.search(kernel)
        if (lse or by_wgmma) and arch != 90:
            continue
        if lse:
            role, dim, stages, threads = "lse pass", int(lse.group(1)), int(lse.group(2)), 384
            spill += int(_group(r"(\d+) bytes stack frame", block))
            shared += _lse_shared_bytes(dim, stages)
            kernel = f"lse pass D {dim}, 128 x 128, {stages} stages, {_DTYPES[lse.group(3)]}"
        elif by_wgmma:
            role, dim, threads = "sweep by wgmma", int(by_wgmma.group(1)), 384
            spill += int(_group(r"(\d+) bytes stack frame", block))
            shared += _sm90_shared_bytes(dim)
            kernel = f"sweep D {dim}, 64 x 64 by wgmma, {_DTYPES[by_wgmma.group(2)]}, gradient"
        elif found:
            config = tuple(int(each) for each in found.group(1).split(","))
            spill += int(_group(r"(\d+) bytes stack frame", block))
            dim, held, tile, stages = config[:4]
            threads = 4 * held
            if found.re is _CENTERS:
                role, title = "center gradient", "centre gradient"
                shared += _center_shared_bytes(config)
            else:
                grad = found.group(3) == "true"
                role, title = "sweep with gradient" if grad else "sweep", "sweep"
                shared += _sweep_shared_bytes(config, grad)
            kernel = f"{title} D {dim}, {held} x {tile}, {stages} stages, {_DTYPES[found.group(2)]}"
            kernel += ", gradient" if role == "sweep with gradient" else ""
        else:
            role, dim = "rows", None
            kernel = _group(r"(\w+_kernel)", kernel)
            threads = _THREADS.get(kernel, 128)
        tensor, wgmma, tma = _counted(instructions.get(mangled))
        resources.append(
            KernelResources(arch, kernel, dim, role, threads, registers, spill, shared, tensor, wgmma, tma)
        )
    return resources


def compile_all(nvcc: str, csrc: Path, archs: list[int] | None = None) -> list[KernelResources]:
    """Every kernel for every architecture, compiled in parallel; csrc: the folder of the sources."""
    jobs = [(unit, arch) for arch in archs or ARCHITECTURES for unit in UNITS]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return [each for unit in pool.map(lambda job: compile_unit(nvcc, csrc, *job), jobs) for each in unit]


def format_table(resources: list[KernelResources]) -> str:
    """The resources as aligned text, one kernel a line; kernels that differ in nothing shown are one line."""
    head = ("arch", "kernel", "registers", "spill B", "shared B", "tensor instr.", "occupancy")
    lines = ["{:7} {:48} {:>9} {:>7} {:>8} {:>13} {:>9}".format(*head)]
    for each in resources:
        tensor = "?" if each.tensor_instructions is None else str(each.tensor_instructions)
        occupancy = f"{each.occupancy:.0%}" if each.fits else "not here"
        lines.append(
            f"sm_{each.arch:<4} {each.kernel:48} {each.registers:9} {each.spill_bytes:7} {each.shared_bytes:8} "
            f"{tensor:>13} {occupancy:>9}"
        )
    return "\n".join(dict.fromkeys(lines))
