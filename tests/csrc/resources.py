"""Compiles the CUDA kernels for every architecture and reads the compiler's own report.

Every kernel that an architecture's launcher can choose must spill nothing, hold tensor-core instructions if it is a
sweep or a centre gradient, and each D must have both on each architecture. On sm_90a each D must have an lse pass, and
D 256 and 512 a sweep by wgmma, with wgmma and TMA in their disassembly, and the compiler must not say that products or
registers wait.

    resources.py NVCC SOURCE_DIR [ARCH ..]        prints a table and "N passed, M failed"
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> int:
    nvcc, source = sys.argv[1], Path(sys.argv[2])
    # By its path: importing the package would need PyTorch.
    spec = importlib.util.spec_from_file_location(
        "cuda_report", source / "attfc_cuda" / "ops" / "resources" / "cuda_report.py"
    )
    report = importlib.util.module_from_spec(spec)
    sys.modules["cuda_report"] = report
    spec.loader.exec_module(report)

    archs = [int(arch) for arch in sys.argv[3:]] or list(report.ARCHITECTURES)
    resources = report.compile_all(nvcc, source / "csrc", archs)
    print(report.format_table(resources))
    roles = ("sweep with gradient", "center gradient")
    lacking = {(arch, dim, role) for arch in archs for dim in (128, 256, 512) for role in roles}
    if 90 in archs:
        lacking |= {(90, dim, "lse pass") for dim in (128, 256, 512)}
        lacking |= {(90, dim, "sweep by wgmma") for dim in (256, 512)}
    passed = failed = 0
    for each in resources:
        if not each.fits:
            continue
        good = each.spill_bytes == 0 and (each.dim is None or each.tensor_instructions != 0)
        if each.role in (
            "lse pass",
            "sweep by wgmma",
        ):  # wgmma and TMA, nothing else; None: no disassembler here, as for the others
            good = good and each.wgmma_instructions == each.tensor_instructions and each.tma_instructions != 0
        passed += good
        failed += not good
        if not good:
            print(f"FAILED sm_{each.arch} {each.kernel}: spills, or has no tensor-core instruction")
        if good:
            lacking.discard((each.arch, each.dim, each.role))
    for arch, dim, role in sorted(lacking):
        print(f"FAILED sm_{arch}: no {role} at D = {dim} fits")
    failed += len(lacking)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
