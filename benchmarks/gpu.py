"""`make gpu`: builds the CUDA extension, times the heads on this machine's GPU, runs the GPU tests, and writes JSON.

    python benchmarks/gpu.py                     # everything, within 10 minutes
    python benchmarks/gpu.py --device cpu --tiny # the same code on a CPU, with toy shapes: a check of this program

Stages, each with its share of the budget; one that fails is reported and does not take the others with it:

    build        the extension, for this card alone, and what `attfc info` says
    correctness  tests/gpu on whole head steps, captured and not, and on sweeps of every shape
    time         forward and gradient of the head alone, at each batch and number of classes, cold (every tile of
                 centres matters) and warm (late in training, most are skipped), in one pass and in two where there are,
                 against the bare product X @ W.T, plain PyTorch, torch.compile, and the fused losses of others that are
                 installed; each first checked against float64
    trained      the same with the gradient of class centres that learn
    head         a whole AttFC training step with its enqueue: eager (fused where the backend has kernels for it, and
                 then also one operator at a time), compiled, and as a CUDA graph
    sanitizer    compute-sanitizer over the kernels
    tests        the rest of tests/gpu

The JSON is written after every stage, to benchmarks/results/ unless told otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import gpu_timing  # noqa: E402
import measure  # noqa: E402
import oracle  # noqa: E402
import reports  # noqa: E402
import torch  # noqa: E402
from contenders import Contender  # noqa: E402
from problem import CONTAINER, NO_LOSS, TRAINED_CENTERS, Inputs, Problem, make_inputs  # noqa: E402

from attfc_cuda import AdaSin, AttFC  # noqa: E402
from attfc_cuda.ops import backend as _backend  # noqa: E402

# (B, S), the most telling first: a budget that runs out leaves out the last.
SHAPES = ((384, 1_000_000), (384, 65_536), (1024, 1_000_000), (1024, 65_536), (512, 1_000_000), (512, 65_536))
TRAINED_SHAPES = SHAPES[:2]
TINY = ((4, 300), (8, 300))
HEAD_CAPACITY, HEAD_ROWS = 65_536, 384
CORRECTNESS = "test_gpu_head.py or test_agrees_with_float64"
# Shares of the budget after which a stage starts nothing new.
SHARES = {
    "build": 0.25, "correctness": 0.12, "time": 0.3, "trained": 0.1, "head": 0.1, "sanitizer": 0.2, "tests": 0.3,
}  # fmt: skip


class Report:
    """What was found so far, on disk after every stage."""

    def __init__(self, path: Path, environment: dict[str, Any], budget_s: float) -> None:
        self.path, self.start, self.budget_s = path, time.monotonic(), budget_s
        self.content: dict[str, Any] = {"environment": environment, "stages": {}, "rows": [], "head": [], "tests": {}}

    def left(self) -> float:
        return self.budget_s - (time.monotonic() - self.start)

    def deadline(self, stage: str) -> float:
        """When (time.monotonic) the stage must be done: its share of the budget from now, or the end of the budget."""
        return time.monotonic() + min(SHARES[stage] * self.budget_s, self.left())

    def run(self, name: str, stage: Callable[[Report, float], None]) -> None:
        print(f"[{self.budget_s - self.left():5.0f} s] {name} ...", flush=True)
        started, error = time.monotonic(), None
        if self.left() <= 0:
            error = "not started: the budget is used up"
        else:
            try:
                stage(self, self.deadline(name))
            except Exception as cause:  # a stage that fails must not take the others' results with it
                error = "".join(traceback.format_exception_only(cause)).strip()
                traceback.print_exc()
        self.content["stages"][name] = {"seconds": round(time.monotonic() - started, 1), "error": error}
        self.write()
        if error is not None:
            print(f"[{self.budget_s - self.left():5.0f} s] {name} failed: {error}", flush=True)

    def write(self) -> None:
        reports.write(self.path, self.content)


def build(report: Report, deadline: float, device: torch.device) -> None:
    info = _backend.info()
    report.content["info"] = info.splitlines()
    print(info)


def usable_backends(device: torch.device, dtype: torch.dtype, dim: int) -> tuple[str, ...]:
    wanted = ("cuda", "triton") if device.type == "cuda" else ("cpu",)
    usable = []
    for backend in wanted:
        try:
            usable.append(_backend.resolve(backend, device, dtype, dim))
        except RuntimeError as reason:
            print(f"  left out: {reason}")
    return tuple(usable)


def time_task(
    report: Report, deadline: float, device: torch.device, task: str, shapes: tuple[tuple[int, int], ...], dim: int
) -> None:
    """Every contender of a task on each shape, until the stage's time is up."""
    largest = max(rows for rows, _ in shapes)
    usual = Problem(0, largest, dim, "bfloat16", device.type, NO_LOSS, task=task)
    contenders = gpu_timing.contenders(task, usual, usable_backends(device, usual.torch_dtype, dim))
    contenders = {name: each for name, each in contenders.items() if checked(report, task, name, *each)}
    made: dict[tuple[int, str], Inputs] = {}
    for rows, slots in shapes:
        if time.monotonic() > deadline:
            print(f"  B {rows}, S {slots}: left out, the budget of this stage is used up")
            continue
        made = {key: value for key, value in made.items() if key[0] == slots}
        named = {}
        torch._dynamo.reset()  # or the second shape would be compiled for any
        for name, (contender, own) in contenders.items():
            if (slots, own.inputs) not in made:
                made[slots, own.inputs] = make_inputs(dataclasses.replace(own, identities=slots))
            inputs = first_rows(made[slots, own.inputs], rows)
            step = contender.build(dataclasses.replace(own, identities=slots, batch=rows))
            try:
                named[name] = gpu_timing.prepare(partial(step.run, inputs), device)
            except Exception as cause:  # out of memory, or a peer's own trouble
                leave_out(report, f"{task}, B {rows}, S {slots}, {name}", cause)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        times = gpu_timing.time_all(named, device, deadline=deadline)
        add_rows(report, dataclasses.replace(usual, identities=slots, batch=rows), named, times, contenders)


def leave_out(report: Report, what: str, cause: Exception) -> None:
    text = f"{type(cause).__name__}: {cause}"
    print(f"  {what} is left out: {text.splitlines()[0][:300]}")
    report.content.setdefault("left_out", {})[what] = text[:1000]


def checked(report: Report, task: str, name: str, contender: Contender, problem: Problem) -> bool:
    """Whether the contender agrees with float64 on a small shape; one that does not, or cannot run, is not timed."""
    if contender.truth is None:
        return True
    small = dataclasses.replace(problem, identities=2_000, batch=64, dim=512)
    try:
        errors = oracle.check(contender, small)
    except Exception as cause:
        leave_out(report, f"{task}, {name}", cause)
        return False
    report.content.setdefault("errors", {})[f"{task}, {name}"] = errors
    return True


def first_rows(inputs: Inputs, rows: int) -> Inputs:
    embeddings = inputs.embeddings.detach()[:rows].requires_grad_()
    return dataclasses.replace(inputs, embeddings=embeddings, labels=inputs.labels[:rows])


def add_rows(
    report: Report,
    problem: Problem,
    named: dict[str, gpu_timing.Timed],
    times: dict[str, dict[str, float]],
    contenders: dict[str, tuple[Contender, Problem]],
) -> None:
    bare = times.get("bare product", {}).get("median_s")
    print(f"  {problem.task}: B {problem.batch}, S {problem.identities}, D {problem.dim}, {problem.dtype}")
    print(f"    {'contender':<46} {'ms':>9} {'20%':>9} {'80%':>9} {'x product':>9} {'TFLOP/s':>8} {'MiB':>8}")
    product_flop = 2 * problem.batch * problem.identities * problem.dim
    for name, timed in named.items():
        seconds, contender = times[name]["median_s"], contenders[name][0]
        row = {
            "case": problem.task,
            "rows": problem.batch,
            "slots": problem.identities,
            "dim": problem.dim,
            "contender": name,
            **times[name],
            "x_product": None if bare is None else seconds / bare,
            "tflop_per_s": contender.products * product_flop / seconds / 1e12,
            "peak_mib": timed.peak_mib,
            "mode": timed.mode,
            "note": contender.note,
        }
        report.content["rows"].append(row)
        ms = [1e3 * times[name][key] for key in ("median_s", "p20_s", "p80_s")]
        ratio = "-" if bare is None else f"{row['x_product']:.2f}"
        peak = "-" if timed.peak_mib is None else f"{timed.peak_mib:.0f}"
        print(
            f"    {name:<46} {ms[0]:>9.3f} {ms[1]:>9.3f} {ms[2]:>9.3f} {ratio:>9} {row['tflop_per_s']:>8.1f} "
            f"{peak:>8}  {timed.mode}, {row['note']}",
            flush=True,
        )
    report.write()


class OneOperatorAtATime(AdaSin):
    """AdaSin as a margin of a user's own, whose head step is not fused."""


def time_head(report: Report, deadline: float, device: torch.device, rows: int, capacity: int, dim: int) -> None:
    """A training step of the AttFC head: normalisation, class centres, enqueue, sweep, margin, loss, gradient."""
    generator = torch.Generator().manual_seed(0)
    x, *gallery = torch.randn(3, rows, dim, generator=generator).to(device, torch.bfloat16)
    gallery = torch.stack(gallery, dim=1)
    labels = torch.randint(10 * capacity, (rows,), generator=generator).to(device)
    for backend in usable_backends(device, torch.bfloat16, dim):
        unfused = ("unfused",) if backend in _backend.WITH_HEAD_STEP else ()
        for way in ("eager", "compiled", *unfused):
            if time.monotonic() > deadline:
                print(f"  head, {backend}, {way}: left out, the budget of this stage is used up")
                continue
            margin = OneOperatorAtATime() if way == "unfused" else AdaSin()
            head = AttFC(
                dim, capacity, margin, "refresh", num_classes=10 * capacity, dtype=torch.bfloat16, backend=backend
            ).to(device)
            call = torch.compile(head, fullgraph=True) if way == "compiled" else head

            def step(call: Callable = call) -> tuple[torch.Tensor, torch.Tensor]:
                leaf = x.detach().requires_grad_()
                loss = call(leaf, labels, gallery)
                return loss.detach(), torch.autograd.grad(loss, leaf)[0]

            timed = gpu_timing.prepare(step, device)
            ways = {timed.mode: timed, "eager": gpu_timing.Timed(step, "eager", timed.peak_mib)}
            times = gpu_timing.time_all(ways, device, deadline=deadline)
            launches = count_launches(step, device)
            for mode, each in times.items():
                row = {"backend": backend, "way": way, "mode": mode, "rows": rows, "capacity": capacity, "dim": dim}
                row |= {**each, "launches": launches, "peak_mib": timed.peak_mib}
                report.content["head"].append(row)
                print(f"  head step, {backend}, {way}, {mode}: {1e3 * each['median_s']:.3f} ms, {launches} launches")


def count_launches(step: Callable[[], Any], device: torch.device) -> int | None:
    """Kernels and copies that one call puts on the device."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def run_tests(report: Report, deadline: float, device: torch.device, name: str, arguments: list[str]) -> None:
    """pytest on tests/gpu in a process of its own, ended when its time is up."""
    variables = {"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {}
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", *arguments]
    process = subprocess.Popen(
        command,
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": str(HERE.parent), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        ended = None
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
        ended = "its time was up"
    lines = output.splitlines()
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", lines[-1])}
    report.content["tests"][name] = {"counts": counts, "ended": ended, "output": lines[-60:]}
    print("\n".join(f"  {line}" for line in lines[-15:]))
    if process.returncode or ended:
        raise RuntimeError(ended or f"pytest ended with {process.returncode}: {lines[-1]}")


def environment(device: torch.device) -> dict[str, Any]:
    found = {**measure.environment(), "python": sys.version.split()[0], "cuda": torch.version.cuda}
    try:
        found["triton"] = __import__("triton").__version__
    except ImportError:
        found["triton"] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "gpu_memory_mib": properties.total_memory >> 20,
        }
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        try:
            found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            found["nvidia_smi"] = None
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes and a handful of tests")
    parser.add_argument("--budget-s", type=float, default=580.0, help="seconds for everything")
    parser.add_argument("--stages", nargs="+", choices=tuple(SHARES), default=list(SHARES))
    parser.add_argument(
        "--output", type=Path, default=None, help="the JSON; default: benchmarks/results/gpu_<card>.json"
    )
    return parser.parse_args(argv)


def default_output(device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "tiny_cpu"
    return HERE / "results" / f"gpu_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.json"


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA device; nothing is built, tested or timed", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device()) if arguments.device == "cuda" else torch.device("cpu")
    report = Report(arguments.output or default_output(device), environment(device), arguments.budget_s)
    tiny = arguments.tiny
    shapes, dim = (TINY, 64) if tiny else (SHAPES, 512)
    rows, capacity = (8, 64) if tiny else (HEAD_ROWS, HEAD_CAPACITY)
    without_sanitizer = ["tests/gpu", "--deselect", "tests/gpu/test_gpu_sanitizer.py"]
    correct = [*without_sanitizer, "-k", "launches_of" if tiny else CORRECTNESS]
    rest = [*without_sanitizer, "-k", "nothing_to_sum" if tiny else f"not ({CORRECTNESS})"]
    stages = {
        "build": build,
        "correctness": partial(run_tests, name="correctness", arguments=correct),
        "time": partial(time_task, task=CONTAINER, shapes=shapes, dim=dim),
        "trained": partial(time_task, task=TRAINED_CENTERS, shapes=TINY[:1] if tiny else TRAINED_SHAPES, dim=dim),
        "head": partial(time_head, rows=rows, capacity=capacity, dim=dim),
        "sanitizer": partial(run_tests, name="sanitizer", arguments=["tests/gpu/test_gpu_sanitizer.py"]),
        "tests": partial(run_tests, name="gpu", arguments=rest),
    }
    for name in arguments.stages:
        report.run(name, partial(stages[name], device=device))
    failed = [name for name, stage in report.content["stages"].items() if stage["error"] is not None]
    print(f"written: {report.path}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
