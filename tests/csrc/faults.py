"""Plants faults in the CUDA sources, one at a time, and demands that the host run finds each.

Each fault changes a line that the source marks (`// fault: NAME`, see fault.py). The changed tree is compiled in the
build named beside the fault (plain, asan or tsan), linked with the sound objects of the rest, and the cases named
beside it must fail there. A marker that is gone, or a marked line without the text to change, is an error.

    faults.py BUILD_DIR SOURCE_DIR CXX [TEST.NAME ..]
BUILD_DIR holds <build>/<unit>.o of the sound sources, as CMakeLists.txt leaves them.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fault import Fault, plant
from planted_center_gradient import CENTER_GRADIENT_FAULTS
from planted_head_step import HEAD_STEP_FAULTS
from planted_lse_pass import LSE_PASS_FAULTS
from planted_sweep import SWEEP_FAULTS
from planted_sweep_sm90 import SWEEP_SM90_FAULTS
from planted_two_pass import TWO_PASS_FAULTS

FLAGS = {
    "plain": ["-O1"],
    "asan": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-O1", "-g1", "-fsanitize=thread"],
}
TESTS = (
    "wrappers_test",
    "sm90_test",
    "lse_pass_test",
    "two_pass_test",
    "sweep_sm90_test",
    "sweep_test",
    "center_gradient_test",
    "head_rows_test",
    "head_step_test",
    "enqueue_test",
)
FAULTS = (
    SWEEP_FAULTS + SWEEP_SM90_FAULTS + CENTER_GRADIENT_FAULTS + LSE_PASS_FAULTS + TWO_PASS_FAULTS + HEAD_STEP_FAULTS
)


def run(fault: Fault, build_dir: Path, source: Path, cxx: str) -> str | None:
    """None where the fault was found; else what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        shutil.copytree(source / "csrc", tree / "csrc", ignore=shutil.ignore_patterns("cpu", "ops"))
        try:
            plant(fault, tree / "csrc")
        except ValueError as cause:
            return str(cause)
        left_out = [each for each in TESTS if each != fault.test] + [fault.unit]
        objects = [each for each in sorted((build_dir / fault.build).glob("*.o")) if each.stem not in left_out]
        compile_unit = [
            cxx,
            "-std=c++17",
            "-w",
            "-Wno-psabi",
            *FLAGS[fault.build],
            f"-I{tree}",
            f"-I{source}/tests/csrc",
            "-x",
            "c++",
        ]
        program = str(tree / "faulty")
        subprocess.run(
            [*compile_unit, "-c", str(tree / "csrc" / "cuda" / f"{fault.unit}.cu"), "-o", f"{program}.o"], check=True
        )
        subprocess.run([cxx, *FLAGS[fault.build], f"{program}.o", *map(str, objects), "-o", program], check=True)
        environment = {
            **os.environ,
            "ATTFC_SMALL": "1",
            "ATTFC_SEEDS": str(fault.seeds),
            "TSAN_OPTIONS": "history_size=0:halt_on_error=1",
        }
        result = subprocess.run([program, *fault.cases], env=environment, capture_output=True, text=True, timeout=300)
        if result.returncode == 0:
            return f"not found by {fault.build}: {result.stdout.strip().splitlines()[-1]}"
        if " failed" not in result.stdout:
            return f"ended without a verdict: {result.stderr[-500:]}"
    return None


def main() -> int:
    build_dir, source, cxx = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    chosen = [fault for fault in FAULTS if len(sys.argv) == 4 or fault.label in sys.argv[4:]]
    found = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(lambda fault: run(fault, build_dir, source, cxx), chosen)
        for fault, problem in zip(chosen, problems, strict=True):
            verdict = "found  " if problem is None else f"MISSED ({problem})"
            print(f"{verdict} {fault.build:6} {fault.label}", flush=True)
            found += problem is None
    print(f"{found} passed, {len(chosen) - found} failed")
    return 0 if found == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
