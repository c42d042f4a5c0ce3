"""The plan's memory of each head is what the head takes, measured in a fresh process on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from proofs import rest_in_proof

from attfc_cuda import AttFC
from attfc_cuda.plan import Head, head_needs
from attfc_cuda.plan.heads import centers_met
from attfc_cuda.train.config import HeadConfig

# Large enough that the pages of a library or an allocator's rounding do not count, small enough for any machine.
SIZE = {"identities": 200_000, "dim": 256, "batch": 64}
HEADS = {
    "AttFC 30 %, fp32": ({"kind": "attfc", "share": 0.3}, "fp32"),
    "AttFC 100 %, bf16": ({"kind": "attfc", "share": 1.0}, "bf16"),
    "full FC, fused": ({"kind": "fc"}, "fp32"),
    "full FC, torch.optim": ({"kind": "fc", "fused": False}, "fp32"),
    "full FC, fused, bf16": ({"kind": "fc"}, "bf16"),
    "Partial FC 10 %, fused": ({"kind": "partial_fc", "share": 0.1}, "fp32"),
    "Partial FC 10 %, torch.optim": ({"kind": "partial_fc", "share": 0.1, "fused": False}, "fp32"),
    "full FC, plain PyTorch": ({"kind": "explicit_fc", "fused": False}, "fp32"),
}


AT_ONCE = ("AttFC 100 %, bf16", "full FC, fused")


@pytest.mark.parametrize(
    "name", rest_in_proof([*AT_ONCE, *(name for name in HEADS if name not in AT_ONCE)], len(AT_ONCE))
)
def test_predicted_memory_is_within_a_tenth_of_the_measured(name: str) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no /proc/self/clear_refs: this system does not tell a process's peak memory")
    options, precision = HEADS[name]
    script = Path(__file__).with_name("head_memory.py")
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    argument = json.dumps({**SIZE, **options, "precision": precision})
    result = subprocess.run(
        [sys.executable, str(script), argument], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    measured = int(result.stdout.split()[-1])
    predicted = head_needs(Head("predicted", **options), **SIZE, precision=precision).total
    assert predicted == pytest.approx(measured, rel=0.1), (
        f"{predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f}"
    )


@pytest.mark.parametrize("policy", ["refresh", "fifo"])
def test_what_attfc_keeps_is_its_buffers_class_codes_included(policy: str) -> None:
    identities, dim, batch = 100_000, 8, 64
    slots = centers_met(planned := Head("AttFC 10 %", "attfc", 0.1), identities, batch)
    head = AttFC(dim, slots, policy=policy, num_classes=identities, class_code=HeadConfig.class_code)
    measured = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in head.buffers()}
    kept = head_needs(planned, identities, dim, batch, policy=policy).kept
    # Counters and the margin's state are single numbers.
    assert sum(kept.values()) == pytest.approx(sum(measured.values()), abs=1024)
