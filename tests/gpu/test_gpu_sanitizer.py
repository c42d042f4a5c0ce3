"""compute-sanitizer over the hand-written kernels on small shapes: memcheck and racecheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_cases import need, only_gpu

PROGRAM = """
import torch
from attfc_cuda.ops import autograd as _ops
from attfc_cuda import functional, testing
for dim in (128, 256, 512):
    for dtype in (torch.bfloat16, torch.float16):
        case = testing.make_case((67, 131, dim), dtype, kind="trained").to("cuda")
        testing.run(functional.negative_logsumexp, case, backend="cuda", grad_tolerance=0.0)
        ones = torch.ones(67, device="cuda")
        lse = functional.negative_logsumexp(
            case.embeddings, case.centers, case.labels, case.center_labels, backend="cuda"
        ).lse
        _ops.center_gradient_operator("cuda")(
            ones, lse, ones, case.embeddings, case.centers, case.labels, case.center_labels,
            torch.ones(131, device="cuda"), case.row_values(), 64.0, 0.0,
        )
torch.cuda.synchronize()
print("done")
"""


def find_sanitizer() -> str | None:
    toolkits = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"), reverse=True)
    return shutil.which("compute-sanitizer") or next(map(str, toolkits), None)


@only_gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_clean_under(tool):
    need("cuda", torch.bfloat16, 512)
    sanitizer = find_sanitizer()
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    # Without torch's caching allocator each tensor is an allocation of its own, and a step outside is seen.
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=attfc"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run([*command, sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "done" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
