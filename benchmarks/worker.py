"""What a fresh process of run.py does: check a contender, measure its memory, then its time; one row as JSON on stdout.

    python benchmarks/worker.py '{"contender": "attfc 10 %", "problem": {...}, ...}'     # see Job

In this order: the check against float64, which also loads and compiles; a short step on few identities, from which the
cost of larger ones is estimated; memory, from before the head exists to the end of a step, at the largest power-of-two
fraction of the identities that fits the budget (two fractions, extended in a straight line, where that is not all of
them); time, at the largest fraction that leaves room for the rounds, in turn with the bare product of the same centres.
The memory limit is the process's own, so that a head which is too large ends in an error and not in a dead machine.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import heads  # noqa: E402
import measure  # noqa: E402
import oracle  # noqa: E402
import reports  # noqa: E402
from contenders import CONTENDERS  # noqa: E402
from heads import Contender, Inputs, Problem, Step  # noqa: E402

_PILOT_CENTERS = 8192
# Fewer numbers in the centres, and what the allocator and libraries add would be multiplied up with them.
_LEAST_MEMORY_NUMBERS = 1 << 24
# The yardstick's own matrices stay small; its time is proportional to the centres.
_PRODUCT_CENTERS = 1 << 17
_MEMORY_SHARE = 0.5  # of the budget
_LEAST_ROUNDS = 2
_SECONDS_A_ROUND = 0.02  # of a step that takes less: it is run that long


@dataclasses.dataclass(frozen=True)
class Job:
    """seconds: the budget after start-up and check. limit_bytes: of memory above the inputs."""

    contender: str
    problem: Problem
    seconds: float
    rounds: int
    limit_bytes: int
    threads: int | None = None

    @classmethod
    def from_json(cls, text: str) -> Job:
        fields = json.loads(text)
        return cls(**{**fields, "problem": Problem(**fields["problem"])})


class Run:
    """One contender under one budget; `row` is what was found."""

    def __init__(self, job: Job, contender: Contender) -> None:
        self.job, self.contender, self.problem = job, contender, job.problem
        self.inputs = heads.make_inputs(self.problem)
        self.deadline = time.monotonic() + job.seconds
        self.seconds_per_identity = self.build_per_identity = 0.0

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def fractions(self, least_centers: int = _PILOT_CENTERS) -> list[int]:
        """All identities, a half, a quarter, ... down to so many centres; half of the last still holds a batch."""
        sizes = [self.problem.identities]
        smallest = max(least_centers, 2 * self.problem.batch) / self.contender.share
        while sizes[-1] / 2 >= smallest:
            sizes.append(self.problem.identities >> len(sizes))
        return sizes

    def build(self, identities: int) -> tuple[Step, Inputs]:
        problem = dataclasses.replace(self.problem, identities=identities)
        inputs = dataclasses.replace(self.inputs, labels=self.inputs.labels % identities)
        return self.contender.build(problem), inputs

    def timed(self, function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def repeat(self, function: Callable[[], Any], count: int) -> None:
        for _ in range(count):
            function()
        self.wait()

    def wait(self) -> None:
        if self.problem.device == "cuda":
            torch.cuda.synchronize()

    def pilot(self) -> None:
        """Cost of building and of a step, for each identity, from the smallest fraction."""
        identities = self.fractions()[-1]
        made: list[tuple[Step, Inputs]] = []
        build = self.timed(lambda: made.append(self.build(identities)))
        step, inputs = made[0]
        self.timed(lambda: step.run(inputs))
        self.seconds_per_identity = self.timed(lambda: step.run(inputs)) / identities
        self.build_per_identity = build / identities

    def peak_mib(self, identities: int) -> float | None:
        """From before the contender is built to the end of its first step."""

        def work() -> None:
            step, inputs = self.build(identities)
            step.run(inputs)

        if self.problem.device != "cuda":
            return measure.peak_above_start_mib(work)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def memory(self) -> dict[str, Any]:
        # The first step in new memory takes longer than one in memory that is there.
        cost = 1.5 * self.seconds_per_identity + self.build_per_identity
        least = _LEAST_MEMORY_NUMBERS / self.problem.dim
        # Partial FC keeps all centres, whatever a step meets of them.
        least *= self.contender.share if self.contender.group.startswith("partial") else 1
        sizes = self.fractions(math.ceil(least))
        budget = _MEMORY_SHARE * self.left()
        fits = (each for each in sizes if cost * each * (1 if each == sizes[0] else 1.5) <= budget)
        size = next(fits, sizes[-1])
        if size == sizes[0]:
            return {"peak_mib": self.peak_mib(size), "memory_scaled": False, "memory_identities": size}
        # In this order, so that what a library keeps from then on is in neither or in both.
        whole, half = self.peak_mib(size), self.peak_mib(size // 2)
        if whole is not None:
            whole += max(0.0, whole - half) / (size - size // 2) * (sizes[0] - size)
        return {"peak_mib": whole, "memory_scaled": True, "memory_identities": size}

    def time(self) -> dict[str, Any]:
        sizes, problem = self.fractions(), self.problem
        centers = [self.contender.centers(size, problem.batch) for size in sizes]
        product = self.product(min(_PRODUCT_CENTERS, centers[0]))
        product_size = product.centers
        self.timed(lambda: product.run(self.inputs))
        product_s = self.timed(lambda: product.run(self.inputs))
        left = self.left() - product_s * (1 + self.job.rounds)
        cost = (self.job.rounds + 1.5) * self.seconds_per_identity + self.build_per_identity
        number = next((n for n, size in enumerate(sizes) if cost * size <= left), len(sizes) - 1)
        step, inputs = self.build(sizes[number])
        step_s = self.seconds_per_identity * sizes[number]
        repeats = {"step": _repeats(step_s), "product": _repeats(product_s)}
        round_s = step_s * repeats["step"] + product_s * repeats["product"]
        rounds = max(_LEAST_ROUNDS, min(self.job.rounds, int(self.left() / round_s) - 1))
        times = measure.time_interleaved(
            {
                "step": lambda: self.repeat(lambda: step.run(inputs), repeats["step"]),
                "product": lambda: self.repeat(lambda: product.run(self.inputs), repeats["product"]),
            },
            rounds,
            lambda name: None,
        )
        times = {name: {key: s / repeats[name] for key, s in found.items()} for name, found in times.items()}
        scale = centers[0] / centers[number]
        spread = {name: seconds * scale for name, seconds in times["step"].items()}
        seconds = spread["median_s"]
        flop = 2 * problem.batch * problem.dim * centers[0] * self.contender.products
        return {
            **spread,
            "time_scaled": number > 0,
            "measured_identities": sizes[number],
            "rounds": rounds,
            "x_product": seconds / (times["product"]["median_s"] * centers[0] / product_size),
            "tflop_per_s": flop / seconds / 1e12,
            "gb_per_s": self.contender.least_bytes(problem, centers[0]) / seconds / 1e9,
        }

    def product(self, centers: int) -> Step:
        """The yardstick, small enough not to meet the memory limit."""
        problem = self.problem
        per_center = (problem.dim + problem.batch) * problem.torch_dtype.itemsize
        most = max(1024, self.job.limit_bytes // (4 * per_center))
        return heads.build_product(dataclasses.replace(problem, identities=min(centers, most)))


def measured(job: Job) -> dict[str, Any]:
    """The row of one job; its contender must be available. Raises AssertionError where the check fails."""
    contender, problem = CONTENDERS[job.contender], job.problem
    measure.frugal_allocator()
    row = empty_row(contender, problem)
    if contender.truth is not None:
        row["errors"] = oracle.check(contender, problem)
    gc.collect()
    if problem.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, job.limit_bytes / total))
    else:
        measure.limit_memory(job.limit_bytes)
    run = Run(job, contender)
    try:
        run.pilot()
        row.update(run.memory())
        limit_mib = job.limit_bytes / 2**20
        if row["peak_mib"] is not None and row["peak_mib"] > limit_mib:
            needs = f"needs about {reports.memory_text(row['peak_mib'])}, the limit is {reports.memory_text(limit_mib)}"
            how = f" (extended from {row['memory_identities']:,} identities)" if row["memory_scaled"] else ""
            return {**row, "status": "out of memory", "reason": needs + how}
        measure.frugal_allocator(False)
        row.update(run.time())
    except (RuntimeError, MemoryError) as cause:
        if not is_out_of_memory(cause):
            raise
        asked = re.search(r"tried to allocate ([\d.]+ ?\w+)", str(cause))
        got = "an allocation failed" if asked is None else f"tried to allocate {readable(asked[1])} more"
        reason = f"{got}, the limit is {reports.memory_text(job.limit_bytes / 2**20)}"
        return {**empty_row(contender, problem), "errors": row["errors"], "status": "out of memory", "reason": reason}
    return row


def empty_row(contender: Contender, problem: Problem) -> dict[str, Any]:
    """A row before anything is measured."""
    reason = contender.unavailable(problem)
    return {
        "identities": problem.identities,
        "measured_identities": problem.identities,
        "memory_identities": problem.identities,
        "batch": problem.batch,
        "dim": problem.dim,
        "centers": contender.centers(problem.identities, problem.batch),
        "contender": contender.name,
        "group": contender.group,
        "ours": contender.ours,
        "margin": problem.margin,
        "dtype": problem.dtype,
        "backend": None if reason else contender.resolved(problem),
        "status": "unavailable" if reason else "ok",
        "reason": reason or "",
        "time_scaled": False,
        "memory_scaled": False,
        **dict.fromkeys(("median_s", "p20_s", "p80_s", "best_s", "x_product", "tflop_per_s", "gb_per_s", "peak_mib")),
        "errors": {},
        "note": contender.note,
    }


def _repeats(seconds: float) -> int:
    return max(1, int(_SECONDS_A_ROUND / max(seconds, 1e-7)))


def is_out_of_memory(cause: Exception) -> bool:
    found = isinstance(cause, (MemoryError, torch.OutOfMemoryError))
    return found or any(text in str(cause) for text in ("can't allocate memory", "bad_alloc", "CUDA out of memory"))


def readable(amount: str) -> str:
    """ "20480000000 bytes" as MiB or GiB; what has a unit already stays."""
    number = amount.removesuffix("bytes").strip()
    return reports.memory_text(int(number) / 2**20) if number.isdigit() else amount


def main() -> None:
    job = Job.from_json(sys.argv[1])
    if job.threads:
        torch.set_num_threads(job.threads)
    try:
        result = measured(job)
    except AssertionError as failed:
        result = {"failed": str(failed)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
