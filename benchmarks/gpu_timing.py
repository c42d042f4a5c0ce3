"""How the GPU benchmark times: CUDA graphs where a contender can be captured, interleaved rounds, peak memory.

A contender's launches cost the host more than the device at small shapes, and that cost is the same for everybody who
captures a graph. So each contender is captured and its replay timed; one that cannot be captured (it waits for the
device, say) is timed as it runs, and marked.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import measure
import torch
from contenders import CONTENDERS, Contender
from problem import Problem

ROUNDS = 12
# Work of one measurement: short contenders are repeated until it is reached, so that a timer's error does not show.
SECONDS_A_ROUND = 0.02


@dataclasses.dataclass
class Timed:
    """One contender on one shape, ready to run: `call` does it once, as `mode` says ("graph" or "eager")."""

    call: Callable[[], Any]
    mode: str
    peak_mib: float | None
    repeats: int = 1


def contenders(task: str, problem: Problem, backends: tuple[str, ...]) -> dict[str, tuple[Contender, Problem]]:
    """Those of a task that can run, ours once for each backend, each with the problem as it runs it."""
    found = {}
    for name, contender in CONTENDERS[task].items():
        for backend in backends if contender.ours else (None,):
            own = dataclasses.replace(problem, margin=contender.margins[0], backend=backend or "auto")
            own = contender.applied(own)
            if contender.unavailable(own) is None:
                found[name if backend is None else f"{name} [{backend}]"] = (contender, own)
    return found


def prepare(run: Callable[[], Any], device: torch.device) -> Timed:
    """Warms up, reads the peak memory of one call, and captures a graph where that can be done."""
    for _ in range(2):
        run()
    if device.type != "cuda":
        return Timed(run, "eager", None)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    replay = _captured(run)
    return Timed(run, "eager", peak) if replay is None else Timed(replay, "graph", peak)


def _captured(run: Callable[[], Any]) -> Callable[[], None] | None:
    """The replay of a graph of `run`; None where it cannot be captured."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        with torch.cuda.graph(graph):
            results = run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None

    def replay(kept: Any = results) -> None:  # what the graph writes must not be freed
        graph.replay()

    return replay


def seconds_of(timed: Timed, device: torch.device) -> float:
    """Of one call, over `repeats` of them."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(timed.repeats):
            timed.call()
        return (time.perf_counter() - start) / timed.repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(timed.repeats):
        timed.call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / timed.repeats


def time_all(
    named: dict[str, Timed], device: torch.device, rounds: int = ROUNDS, deadline: float = float("inf")
) -> dict[str, dict[str, float]]:
    """Median and 20/80 percentiles of each; all run in every round, so that clocks and heat meet them alike.

    Stops after the round in which `deadline` (of time.monotonic) passes, but not before the second.
    """
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for timed in named.values():
        timed.repeats = max(1, min(200, int(SECONDS_A_ROUND / max(seconds_of(timed, device), 1e-7))))
    for number in range(rounds):
        if number >= 2 and time.monotonic() > deadline:
            break
        for name, timed in named.items():
            seconds[name].append(seconds_of(timed, device))
    return {name: measure.spread(values) for name, values in seconds.items()}
