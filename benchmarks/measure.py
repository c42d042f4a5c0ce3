"""How the benchmarks measure: interleaved rounds for time, fresh processes for memory, and what machine it was."""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def time_interleaved(functions: dict[str, Callable[[], Any]], rounds: int, tick: Callable[[str], None]) -> dict:
    """Seconds of each function: best, median and 20/80 percentiles over `rounds`.

    All functions run once in every round, so that whatever else the machine does meets them alike; the first round
    warms up and is dropped.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - start)
            tick(name)
    return {name: spread(values) for name, values in seconds.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Best, median and 20/80 percentiles of at least two values."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return {"best_s": min(values), "median_s": statistics.median(values), "p20_s": fifths[0], "p80_s": fifths[3]}


def peak_above_start_mib(function: Callable[[], Any]) -> float | None:
    """Largest resident set while `function` runs, above what was resident before; None where the system cannot tell.

    Meant for a fresh process: memory that an earlier call left to the allocator would be used again unseen.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    clear.write_text("5")  # the peak becomes what is resident now

    def field(name: str) -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) / 1024

    before = field("VmRSS:")
    function()
    return field("VmHWM:") - before


def environment() -> dict[str, Any]:
    """What a reader needs to compare two results."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit.stdout.strip() or None,
    }
