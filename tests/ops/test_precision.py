"""Who asks a machine for numbers that it has no arithmetic for is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attfc_cuda.ops import backend, precision
from attfc_cuda.ops.precision import slow_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def processor(monkeypatch: pytest.MonkeyPatch, flags: str | None) -> None:
    """A /proc/cpuinfo with these flags; None: a system without that file."""

    def read_text(path: Path, *_: object, **__: object) -> str:
        assert path == Path("/proc/cpuinfo")
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\nmodel name : one with bf16x and fp16\nflags : fpu {flags} sse\n"

    monkeypatch.setattr(precision.Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("flags", "slow"),
    [
        ("avx2 f16c", {"bf16", "fp16"}),  # converts, but does not multiply
        ("avx512f avx512_bf16", {"fp16"}),
        ("amx_bf16 avx512_fp16", set()),
        ("asimdhp bf16", set()),
        ("fphp", {"bf16"}),
        (None, set()),
    ],
)
def test_a_cpu_is_known_by_its_flags(flags: str | None, slow: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, flags)
    told = {name: slow_precision(name, CPU) for name in ("bf16", "fp16", "fp32")}
    assert {name for name, text in told.items() if text is not None} == slow
    assert all(f"no arithmetic for {name}:" in told[name] for name in slow)


def test_a_gpu_is_known_by_its_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, slow in (((7, 5), True), ((8, 0), False), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert (slow_precision("bf16", GPU) is not None) == slow
        assert slow_precision("fp16", GPU) is None and slow_precision("fp32", GPU) is None


def test_info_says_which_precisions_slow_the_network_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for arithmetic in (set(), {"bf16"}, {"bf16", "fp16"}):
        monkeypatch.setattr(precision, "_cpu_arithmetic", lambda found=arithmetic: found)
        report = backend.info()
        for name in ("bf16", "fp16"):
            assert (f"this CPU has no arithmetic for {name}:" in report) == (name not in arithmetic)
