"""The one way in which run.py, sweep.py and scaling.py measure: a job in a fresh process, its row as JSON on stdout.

    python benchmarks/worker.py '{"contender": "attfc 10 %", "problem": {...}, ...}'     # see Job

In this order: the check against float64, which also loads and compiles; a short step on few identities, from which the
cost of larger ones is estimated; memory, from before the head exists to the end of a step, at the largest power-of-two
fraction of the identities that fits the budget (two fractions, extended in a straight line, where that is not all of
them); time, at the largest fraction that leaves room for the rounds, in turn with bare products: in the row's dtype and
in float32. The memory limit is the process's own, so that a head which is too large ends in an error and not in a dead
machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import measure  # noqa: E402
import oracle  # noqa: E402
import reports  # noqa: E402
from contenders import CONTENDERS, Contender  # noqa: E402
from ours import build_product  # noqa: E402
from problem import HEAD, Inputs, Problem, Step, make_inputs  # noqa: E402

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
    """seconds: the budget after start-up and check. limit_bytes: of memory above the inputs.

    whole: measure all identities whatever it takes; `seconds` then says how many of the `rounds` there are.
    many_classes: see `oracle.over_many_classes`.
    """

    contender: str
    problem: Problem
    seconds: float
    rounds: int
    limit_bytes: int
    threads: int | None = None
    whole: bool = False
    many_classes: bool = False

    @classmethod
    def from_json(cls, text: str) -> Job:
        fields = json.loads(text)
        return cls(**{**fields, "problem": Problem(**fields["problem"])})


def in_fresh_process(job: Job) -> dict[str, Any]:
    """The job's row, measured in a process that has done nothing else. One that breaks has a row as well: "out of
    memory" where the system ended it, else "failed", with the reason."""
    contender = CONTENDERS[job.problem.task][job.contender]
    row = empty_row(contender, job.problem)
    if row["status"] == "unavailable":
        return row
    command = [sys.executable, str(HERE / "worker.py"), json.dumps(dataclasses.asdict(job))]
    # Compilers of a process of its own would outlive it and take memory of their own.
    variables = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    allowed = None if job.whole else 180 + 4 * job.seconds
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=allowed)
    except subprocess.TimeoutExpired:
        return {**row, "status": "failed", "reason": f"not done after {allowed:.0f} s"}
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        status = "out of memory" if name == "SIGKILL" else "failed"
        return {**row, "status": status, "reason": f"the process was ended by {name}"}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        with contextlib.suppress(ValueError):
            found = json.loads(lines[-1])
            if isinstance(found, dict):
                return {**row, **found}
    told = done.stderr.strip().splitlines()
    reason = told[-1] if told else f"the process ended with exit code {done.returncode} and no row"
    return {**row, "status": "failed", "reason": reason}


class Run:
    """One contender under one budget; `row` is what was found."""

    def __init__(self, job: Job, contender: Contender) -> None:
        self.job, self.contender, self.problem = job, contender, contender.applied(job.problem)
        self.deadline = time.monotonic() + job.seconds
        self.seconds_per_identity = self.build_per_identity = 0.0
        self._inputs: tuple[int, Inputs] | None = None

    def inputs_of(self, identities: int) -> Inputs:
        """Made once in a row for the same number: a million centres take a while."""
        if self._inputs is None or self._inputs[0] != identities:
            self._inputs = None
            self._inputs = (identities, make_inputs(dataclasses.replace(self.problem, identities=identities)))
        return self._inputs[1]

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def sizes(self, least_centers: int = _PILOT_CENTERS) -> list[int]:
        """What may be measured: all identities and, unless the job wants the whole, its `fractions`."""
        return [self.problem.identities] if self.job.whole else self.fractions(least_centers)

    def fractions(self, least_centers: int = _PILOT_CENTERS) -> list[int]:
        """All identities, a half, a quarter, ... down to so many centres; half of the last still holds a batch."""
        sizes = [self.problem.identities]
        smallest = max(least_centers, 2 * self.problem.batch) / self.contender.share
        while sizes[-1] / 2 >= smallest:
            sizes.append(self.problem.identities >> len(sizes))
        return sizes

    def build(self, identities: int) -> Step:
        return self.contender.build(dataclasses.replace(self.problem, identities=identities))

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
        inputs, made = self.inputs_of(identities), []
        build = self.timed(lambda: made.append(self.build(identities)))
        step = made[0]
        self.timed(lambda: step.run(inputs))
        self.seconds_per_identity = self.timed(lambda: step.run(inputs)) / identities
        self.build_per_identity = build / identities

    def peak_mib(self, identities: int) -> float | None:
        """From before the contender is built to the end of its first step, without the gradient of given centres."""
        inputs = self.inputs_of(identities)

        def work() -> None:
            self.build(identities).run(inputs)

        if self.problem.device != "cuda":
            peak = measure.peak_above_start_mib(work)
        else:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            self.wait()
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        kept = None if inputs.centers is None else inputs.centers.grad
        if peak is None or kept is None:
            return peak
        inputs.centers.grad = None
        return peak - kept.nbytes / 2**20

    def memory(self) -> dict[str, Any]:
        # The first step in new memory takes longer than one in memory that is there.
        cost = 1.5 * self.seconds_per_identity + self.build_per_identity
        least = _LEAST_MEMORY_NUMBERS / self.problem.dim
        # Partial FC keeps all centres, whatever a step meets of them.
        least *= self.contender.share if self.contender.group.startswith("partial") else 1
        sizes = self.sizes(math.ceil(least))
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
        sizes, problem = self.sizes(), self.problem
        centers = [self.contender.centers(size, problem.batch) for size in sizes]
        products = self.products(centers[0])
        product_inputs = make_inputs(dataclasses.replace(problem, task=HEAD))
        runs = {name: functools.partial(product.run, product_inputs) for name, product in products.items()}
        for run in runs.values():
            self.timed(run)
        seconds = {name: self.timed(run) for name, run in runs.items()}
        left = self.left() - sum(seconds.values()) * (1 + self.job.rounds)
        cost = (self.job.rounds + 1.5) * self.seconds_per_identity + self.build_per_identity
        number = next((n for n, size in enumerate(sizes) if cost * size <= left), len(sizes) - 1)
        inputs, step = self.inputs_of(sizes[number]), self.build(sizes[number])
        runs["step"], seconds["step"] = lambda: step.run(inputs), self.seconds_per_identity * sizes[number]
        repeats = {name: _repeats(seconds[name]) for name in runs}
        round_s = sum(seconds[name] * repeats[name] for name in runs)
        budget = self.job.seconds if self.job.whole else self.left()
        rounds = int(max(_LEAST_ROUNDS, min(self.job.rounds, budget / round_s - 1)))
        repeated = {name: functools.partial(self.repeat, run, repeats[name]) for name, run in runs.items()}
        times = measure.time_interleaved(repeated, rounds)
        times = {name: {key: s / repeats[name] for key, s in found.items()} for name, found in times.items()}
        scale = centers[0] / centers[number]
        spread = {name: seconds * scale for name, seconds in times["step"].items()}
        median = spread["median_s"]
        of_products = {
            name: median / (times[name]["median_s"] * centers[0] / product.centers)
            for name, product in products.items()
        }
        flop = 2 * problem.batch * problem.dim * centers[0] * self.contender.products
        return {
            **spread,
            "time_scaled": number > 0,
            "measured_identities": sizes[number],
            "rounds": rounds,
            "x_best": max(of_products.values()),
            "x_product": of_products[problem.dtype],
            "tflop_per_s": flop / median / 1e12,
            "gb_per_s": self.contender.least_bytes(problem, centers[0]) / median / 1e9,
        }

    def products(self, centers: int) -> dict[str, Step]:
        """The yardsticks: the bare product in float32 and in the problem's dtype, small enough not to meet the limit of
        the memory; their time is proportional to the centres."""
        problem = dataclasses.replace(self.problem, task=HEAD)
        most = max(1024, self.job.limit_bytes // (16 * (problem.dim + problem.batch)))
        problem = dataclasses.replace(problem, identities=min(centers, most, _PRODUCT_CENTERS))
        return {
            dtype: build_product(dataclasses.replace(problem, dtype=dtype))
            for dtype in dict.fromkeys((problem.dtype, "float32"))
        }


def exit_on_failures(command: str, rows: list[dict[str, Any]]) -> None:
    """At the end of a command, with exit code 1 where a contender of ours failed; a peer's own trouble is its row's."""
    failed = [row for row in rows if row["status"] == "failed" and row["ours"]]
    if failed:
        told = [f"{row['contender']}, {row['case']}, {row['dtype']}: {row['reason']}" for row in failed]
        raise SystemExit("\n".join([f"{command}: failed:", *told]))


def measured(job: Job) -> dict[str, Any]:
    """The row of one job; its contender must be available. Raises AssertionError where the check fails."""
    contender = CONTENDERS[job.problem.task][job.contender]
    problem = contender.applied(job.problem)
    measure.frugal_allocator()
    row = empty_row(contender, problem)
    if contender.truth is not None:
        row["errors"] = oracle.check(contender, problem)
    if job.many_classes:
        row["many_classes"] = oracle.over_many_classes(contender, problem)
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
        kept = {name: row[name] for name in ("errors", "many_classes")}
        return {**empty_row(contender, problem), **kept, "status": "out of memory", "reason": reason}
    return row


def empty_row(contender: Contender, problem: Problem) -> dict[str, Any]:
    """A row before anything is measured."""
    problem = contender.applied(problem)
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
        **dict.fromkeys(reports.NUMBERS),
        "errors": {},
        "many_classes": None,
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
        result = {"status": "failed", "reason": str(failed)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
