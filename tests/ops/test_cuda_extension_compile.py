"""The CUDA extension compiles, loads where there is no GPU, and tells the truth about itself. Nothing is launched.

It is the one built at installation, else it is built here as at first use, for one architecture.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attfc_cuda.ops import backend as _backend
from attfc_cuda.ops import build as _build

pytestmark = [pytest.mark.proof, pytest.mark.xdist_group("extension")]  # compiled once
ROOT = Path(_build.__file__).resolve().parents[2]

# In a process of its own: operators cannot be unregistered. It prints one line of JSON.
PROGRAM = """
import json, torch
from attfc_cuda.ops import backend as _backend
from attfc_cuda import AttFC
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

loaded = _backend._cuda_extension()
assert loaded.module, loaded.reasons
module = loaded.module
devices = {75: 64, 80: 163, 86: 99, 90: 227, 120: 99}
answers = {
    f"{capability} {dtype} {dim}": module.why_not(capability, 1024 * kib, dtype, dim)
    for capability, kib in devices.items()
    for dtype in ("bfloat16", "float16", "float32")
    for dim in (64, 128, 256, 512, 1024)
}

class Called(TorchDispatchMode):
    names = set()
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.add(function.name())
        return function(*arguments, **(keywords or {}))

# Shapes only, no device: a head step runs the operator of the chosen backend, on the tensors it would be given.
_backend._extension()
_backend.resolve = lambda *arguments: "cuda"
with FakeTensorMode():
    head = AttFC(512, 4096, dtype=torch.bfloat16, preset="published", enqueue="before").to("cuda")
    x = torch.empty(64, 512, device="cuda").requires_grad_()
    labels = torch.zeros(64, dtype=torch.int64, device="cuda")
    with Called():
        loss = head(x, labels, torch.empty(64, 2, 512, device="cuda"))
    gradient = torch.ops.attfc.center_gradient_cuda(
        x[:, 0], x[:, 0], None, x.bfloat16(), head.container.centers, labels, head.container.labels,
        None, torch.empty(0, 64, device="cuda"), 64.0, 0.0,
    )
print(json.dumps({
    "config": _backend.cuda_build_config(),
    "answers": answers,
    "called": sorted(name for name in Called.names if "attfc" in name),
    # of a "refresh" container, of the backward pass
    "other_steps": [torch._C._dispatch_has_kernel_for_dispatch_key(f"attfc::{name}", "CUDA")
                    for name in ("enqueue_refresh", "row_gradients")],
    "loss": [str(loss.device.type), list(loss.shape), str(loss.dtype)],
    "gradient": [str(gradient.dtype), list(gradient.shape)],
    "info": _backend.info(),
    "one_pass": {str(case): module.why_one_pass(*case) for case in ((90, 227 << 10, 2**-12), (90, 227 << 10, 0.0),
                                                                    (80, 163 << 10, 2**-12), (100, 227 << 10, 2**-12))},
}))
"""


@pytest.fixture(scope="module")
def told():
    toolkit = (
        "this build of torch has no CUDA" if torch.version.cuda is None else _build.find_toolkit(torch.version.cuda)
    )
    try:
        _backend._prebuilt("_C_cuda")
    except ImportError:
        if isinstance(toolkit, str):
            pytest.skip(f"the CUDA extension cannot be compiled here: {toolkit}")
    environment = {
        **os.environ,
        "ATTFC_FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": "9.0",
        "TORCH_EXTENSIONS_DIR": str(ROOT / "build" / "torch_extensions"),
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_names_its_architectures_and_where_it_comes_from(told):
    config = told["config"]
    assert config["architectures"] and config["toolkit"] and config["origin"].startswith("built at ")
    assert f"cuda extension: architectures = {config['architectures']}" in told["info"]
    if not torch.cuda.is_available():
        assert "cuda       not available: torch sees no CUDA device" in told["info"]


def test_the_kernels_say_what_they_run(told):
    answers = told["answers"]
    for capability in (80, 86, 90, 120):
        for dtype in ("bfloat16", "float16"):
            assert [answers[f"{capability} {dtype} {dim}"] for dim in (128, 256, 512)] == [None] * 3
            for dim in (64, 1024):
                assert answers[f"{capability} {dtype} {dim}"] == "it is compiled for D = 128, 256 and 512"
        assert answers[f"{capability} float32 512"] == "it takes bfloat16 and float16, not float32 and float64"
    assert answers["75 bfloat16 512"].startswith("it needs compute capability 8.0 or later")


def test_a_head_step_calls_the_operator_of_the_choice(told):
    assert told["called"] == [
        "attfc::adasin_loss",
        "attfc::adasin_row_values",
        "attfc::enqueue_fifo",
        "attfc::head_rows",
        "attfc::negative_logsumexp_cuda",
        "attfc::step_statistics",
    ]
    assert told["other_steps"] == [True, True]
    assert told["loss"] == ["cuda", [], "torch.float32"]
    assert told["gradient"] == ["torch.bfloat16", [4096, 512]]


def test_two_passes_on_hopper_where_something_may_be_left_out(told):
    reasons = told["one_pass"]
    assert reasons[str((90, 227 << 10, 2**-12))] is None
    assert reasons[str((90, 227 << 10, 0.0))].startswith("with a tolerance of 0")
    for device in ((80, 163 << 10), (100, 227 << 10)):
        assert reasons[str((*device, 2**-12))] == "wgmma and TMA need compute capability 9.0"
