"""How the benchmarks measure: interleaved rounds for time, fresh processes for memory, and what machine it was."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

if sys.platform == "linux":
    import resource

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_CGROUP_1 = (("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),)


def time_interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each function: best, median and 20/80 percentiles over `rounds`.

    All functions run once in every round, so that whatever else the machine does meets them alike, and each round in an
    order of its own, so that none always runs in the memory and caches that the same other one leaves behind. The first
    round warms up and is dropped.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name in order.sample(list(functions), len(functions)):
            start = time.perf_counter()
            functions[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: spread(values) for name, values in seconds.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Best, median and 20/80 percentiles of at least two values."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return {"best_s": min(values), "median_s": statistics.median(values), "p20_s": fifths[0], "p80_s": fifths[3]}


def peak_above_start_mib(function: Callable[[], Any]) -> float | None:
    """Largest resident set while `function` runs, above what was resident before; None where the system cannot tell.

    Meant for a fresh process: memory that an earlier call left to a library would be used again unseen. What the C
    library's allocator holds is given back first; call `frugal_allocator` at the start, or its holes count as well.
    """
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")  # the peak becomes what is resident now
    before = _status_mib("VmRSS:")
    function()
    return _status_mib("VmHWM:") - before


def frugal_allocator(on: bool = True) -> None:
    """From here on each buffer of 1 MiB or more has pages of its own, given back when it is freed: the resident set is
    what tensors take, not a fragmented heap. Off: of 32 MiB or more, as in a process that has run for a while.

    glibc only: elsewhere nothing happens."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << (20 if on else 25))
        mallopt(_M_TRIM_THRESHOLD, 1 << (21 if on else 26))


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def available_bytes() -> int:
    """Main memory that a process may still take: what the system has to spare, or less where a cgroup limits it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        line = next((line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")), None)
        found += [] if line is None else [int(line.split()[1]) * 1024]
    cgroup = Path("/sys/fs/cgroup")
    for limit, used in (("memory.max", "memory.current"), *_CGROUP_1):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max": no limit
            found.append(int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
    return min(found)


def free_bytes(device: str) -> int:
    """90 % of what is free on the device: what a contender may take above its inputs unless told otherwise."""
    return int(0.9 * (torch.cuda.mem_get_info()[0] if device == "cuda" else available_bytes()))


def limit_memory(further_bytes: int) -> None:
    """From here on this process gets that much more memory and no more: an allocation beyond fails, with an error.

    Without it a system that promises more memory than it has would kill the process instead. Linux only: elsewhere
    nothing happens.
    """
    if sys.platform == "linux":
        used = int(_status_mib("VmData:") * 2**20)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (used + further_bytes, hard))


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
    gpu, driver = torch.cuda.is_available(), None
    if gpu:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        with contextlib.suppress(OSError):
            driver = subprocess.run(query, capture_output=True, text=True).stdout.strip() or None
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "driver": driver,
        "commit": commit.stdout.strip() or None,
    }
