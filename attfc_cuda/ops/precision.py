"""Number formats that a machine has no arithmetic for. Autocast takes them all the same, and the network is slow; the
sweep is not: in its CPU kernels such a format is one of storage alone."""

from __future__ import annotations

from pathlib import Path

import torch

PRECISIONS = ("bf16", "fp16")
_CPU_FLAGS = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "fphp", "asimdhp")}
_FIRST_BF16_GPU = (8, 0)


def slow_precision(precision: str, device: torch.device) -> str | None:
    """A sentence for who asks a device for numbers that it has no arithmetic for; None where it has.

    Args:
        precision: As in `attfc train --precision`.
        device: Of the network.
    """
    if device.type == "cpu" and precision in PRECISIONS and precision not in _cpu_arithmetic():
        return (
            f"warning: this CPU has no arithmetic for {precision}: convolutions can take tens of times as long as with "
            f"--precision fp32"
        )
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability(device) < _FIRST_BF16_GPU:
        return "warning: this GPU has no arithmetic for bf16, and emulates it: --precision fp16 is faster"
    return None


def _cpu_arithmetic() -> set[str]:
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:  # no such list on this system: nothing is known, so nothing is said
        return set(PRECISIONS)
    return {precision for precision, names in _CPU_FLAGS.items() if flags.intersection(names)}
