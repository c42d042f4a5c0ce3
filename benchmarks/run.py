"""Measures training steps of the heads and of what others offer, by number of identities: time and memory.

    python benchmarks/run.py                                        # every case and contender, at most 25 minutes
    python benchmarks/run.py --list                                 # what there is, and what cannot run here
    python benchmarks/run.py --cases ms1mv3 --contenders "attfc 10 %" "full fc, eager"
    python benchmarks/run.py --output benchmarks/results/heads_NAME.json --plots docs/images/heads
    python benchmarks/run.py --output ... --resume                  # after an interruption: the missing rows

A step is forward, backward to the embeddings, and the update of what the head keeps. Every contender does the same work
on the same inputs, is checked against float64 first (loss, gradient, moved centres) and is measured in a fresh process:

  time       median, 20 and 80 % and best over rounds in turn with the bare product X @ W.T of the step's centres;
             "x best" is the multiple of the faster one of that product in float32 and in the row's dtype, "x product"
             of the one in the row's dtype
  memory     the peak above the inputs, from before the head exists to the end of a step: CUDA's allocator on a GPU, the
             resident set on a CPU. A head that needs more than --memory-limit is a row "out of memory"
  TFLOP/s    useful ones: two products of the centres for AttFC (logits, gradient of the embeddings), three where
             centres are trained, one for the bare product
  70k        right over 70 000 classes in float16, more than float16 can count: where a sum of as many probabilities
             is held in it, the loss is infinite
  GB/s       the least bytes that a step must move: the container once, or trained centres and momentum read and written

What takes longer than --row-seconds is measured on a half, a quarter, ... of the identities and multiplied up: "~" in
the table, time_scaled and memory_scaled in the JSON. Inputs are random: every centre carries probability, so that our
heads can skip none, their slowest case.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import measure  # noqa: E402
import reports  # noqa: E402
import table  # noqa: E402
import worker  # noqa: E402
from contenders import CONTENDERS, Contender  # noqa: E402
from problem import DTYPES, HEAD, Problem  # noqa: E402

from attfc_cuda import margins  # noqa: E402
from attfc_cuda.ops import backend as _backend  # noqa: E402
from attfc_cuda.plan.report import parse_bytes  # noqa: E402

HEADS = CONTENDERS[HEAD]
CASES = {"ms1mv3": 93_431, "glint360k": 360_232, "1m": 1_000_000, "webface42m": 2_059_906, "10m": 10_000_000}
_RUN_SECONDS = 25 * 60  # of the default run
_START_SECONDS = 6  # of a row before its budget begins: imports and the check
_LEAST_ROW_SECONDS, _MOST_ROW_SECONDS = 2.0, 60.0
_DEFAULT_MARGINS = {"attfc": "adasin"}  # of our heads; the others' is ArcFace, which the peers have


@dataclasses.dataclass(frozen=True)
class Task:
    case: str
    contender: Contender
    problem: Problem

    @property
    def key(self) -> tuple:
        """What tells a row from the others."""
        row = worker.empty_row(self.contender, self.problem)
        return key_of({**row, "case": self.case})


def key_of(row: dict[str, Any]) -> tuple:
    return tuple(row[name] for name in ("case", "identities", "batch", "dtype", "contender", "margin", "backend"))


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ", ".join(f"{name} ({count:,})" for name, count in CASES.items())
    parser.add_argument("--cases", nargs="*", choices=CASES, default=None, help=f"default: all of {sizes}")
    parser.add_argument("--identities", nargs="+", type=int, default=[], help="numbers of identities in place of cases")
    parser.add_argument("--batches", nargs="+", type=int, default=[384], help="rows of a step (default: 384)")
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding (default: 512)")
    parser.add_argument(
        "--heads", "--contenders", nargs="+", metavar="NAME", default=list(HEADS), help="default: all of --list"
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=None, help="of the products; default: all (float16: a GPU)"
    )
    parser.add_argument(
        "--margins", nargs="+", choices=margins.NAMES, default=None,
        help="of our heads (default: adasin for AttFC, arcface for the others); peers keep the one they have",
    )  # fmt: skip
    parser.add_argument("--backends", nargs="+", choices=("auto", *_backend.BACKENDS), default=["auto"], help="of ours")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    reports.add_rounds(parser, 5)
    parser.add_argument(
        "--row-seconds", type=float, default=None,
        help="for the memory and time of a row, start-up and check not counted (default: 25 minutes for the whole run)",
    )  # fmt: skip
    reports.add_threads(parser)
    parser.add_argument(
        "--memory-limit", type=parse_bytes, default=None, metavar="SIZE",
        help="that a head may take above the inputs, such as 16GiB (default: 90 %% of what is free at the start)",
    )  # fmt: skip
    reports.add_output(parser)
    parser.add_argument("--resume", action="store_true", help="keep the rows of --output and measure the missing ones")
    parser.add_argument(
        "--plots", type=Path, default=None, metavar="PREFIX", help="draw PREFIX_*.png and .svg (plots.py)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--list", action="store_true", help="print cases and contenders, and measure nothing")
    arguments = parser.parse_args(given)
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if arguments.dtypes is None:
        arguments.dtypes = [name for name in DTYPES if name != "float16" or arguments.device == "cuda"]
    elif "float16" in arguments.dtypes and arguments.device == "cpu":
        parser.error("--dtypes float16 needs a GPU")
    for name in arguments.heads:
        if name not in HEADS:
            parser.error(f"--heads must be of {', '.join(map(repr, HEADS))}, got {name!r}")
    if min(arguments.identities + arguments.batches + [arguments.dim]) < 1:
        parser.error("--identities, --batches and --dim must be 1 or more")
    least = 4 * max(arguments.batches)
    if min(cases_of(arguments).values(), default=least) < least:
        parser.error("--identities must be at least four times a batch's rows (--batches), the least container")
    reports.check_output(parser, arguments)
    if arguments.resume and (arguments.output is None or arguments.overwrite):
        parser.error("--resume needs --output, and goes with no --overwrite")
    return arguments


def cases_of(arguments: argparse.Namespace) -> dict[str, int]:
    named = arguments.cases
    if named is None:
        named = [] if arguments.identities else list(CASES)
    return {**{name: CASES[name] for name in named}, **{str(count): count for count in arguments.identities}}


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    """Every row to measure, in order: by case, batch, dtype and contender."""
    tasks = []
    for case, identities in cases_of(arguments).items():
        for batch in arguments.batches:
            for dtype in arguments.dtypes:
                for name in arguments.heads:
                    contender = HEADS[name]
                    for margin in margins_of(contender, arguments.margins):
                        for backend in arguments.backends if contender.ours else ["auto"]:
                            problem = Problem(
                                identities, batch, arguments.dim, dtype, arguments.device, margin, backend
                            )
                            tasks.append(Task(case, contender, problem))
    return list({task.key: task for task in tasks}.values())


def margins_of(contender: Contender, wanted: list[str] | None) -> Sequence[str]:
    if contender.margins is not None:
        return contender.margins
    return wanted or [_DEFAULT_MARGINS.get(contender.group.split()[0], "arcface")]


def row_seconds_of(arguments: argparse.Namespace, tasks: Sequence[Task]) -> float:
    if arguments.row_seconds is not None:
        return arguments.row_seconds
    able = sum(task.contender.unavailable(task.problem) is None for task in tasks)
    share = _RUN_SECONDS / max(1, able) - _START_SECONDS
    return round(min(_MOST_ROW_SECONDS, max(_LEAST_ROW_SECONDS, share)), 1)


def memory_limit_of(arguments: argparse.Namespace) -> int:
    return arguments.memory_limit or measure.free_bytes(arguments.device)


def measured(
    task: Task, arguments: argparse.Namespace, seconds: float, limit_bytes: int, many_classes: str | None
) -> dict[str, Any]:
    """The row of a task. many_classes: what an earlier row of its contender found."""
    rounds, threads = arguments.rounds, arguments.threads
    asks = many_classes is None and task.contender.truth is not None
    job = worker.Job(task.contender.name, task.problem, seconds, rounds, limit_bytes, threads, many_classes=asks)
    found = worker.in_fresh_process(job)
    return {"case": task.case, **found, "many_classes": found["many_classes"] if asks else many_classes}


class Report:
    """The JSON: what was asked, on what machine, and the rows so far."""

    def __init__(self, arguments: argparse.Namespace, seconds: float, limit_bytes: int) -> None:
        self.path = arguments.output
        names = (
            "batches",
            "dim",
            "heads",
            "dtypes",
            "margins",
            "backends",
            "device",
            "rounds",
            "row_seconds",
            "threads",
        )
        settings = {name: getattr(arguments, name) for name in names}
        settings.update(cases=cases_of(arguments), memory_limit=arguments.memory_limit)
        self.content: dict[str, Any] = {
            "schema": reports.HEADS,
            "environment": measure.environment(),
            "command": "python " + shlex.join(["benchmarks/run.py", *sys.argv[1:]]),
            "settings": settings,
            "row_seconds": seconds,
            "memory_limit_mib": limit_bytes / 2**20,
            "rows": [],
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    def resume(self) -> None:
        """Take the file's rows over, but for failed ones. Exits the program where the conditions were others."""
        if not self.path.exists():
            return
        try:
            before = reports.read("run.py --resume", self.path, (reports.HEADS,))
        except ValueError as wrong:
            raise SystemExit(str(wrong)) from None
        for part in ("settings", "environment"):
            old, new = ({**(found.get(part) or {}), "date": None} for found in self._both(before))
            if old != new:
                differing = [name for name in {**new, **old} if old.get(name) != new.get(name)]
                raise SystemExit(
                    f"run.py: --resume: {part} of {self.path} must be this run's, but differs: {differing}"
                )
        self.content["rows"] = [row for row in before["rows"] if row["status"] != "failed"]

    def _both(self, before: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        # As the file would hold it: tuples and the like are gone.
        return before, json.loads(json.dumps(self.content))

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        if self.path is not None:
            reports.write(self.path, self.content)


def print_list(arguments: argparse.Namespace) -> None:
    print("cases:")
    for name, count in CASES.items():
        print(f"  {name:<12} {count:>10,} identities")
    print("heads:")
    for contender in HEADS.values():
        margin = margins_of(contender, None)[0]
        problem = Problem(1000, 8, arguments.dim, arguments.dtypes[0], arguments.device, margin)
        reason = contender.unavailable(problem)
        told = contender.note if reason is None else f"unavailable: {reason}"
        print(f"  {contender.name:<28} {'any' if contender.margins is None else margin:<16} {told}".rstrip())


def main(given: Sequence[str] | None = None) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    arguments = parse_arguments(given)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.list:
        print_list(arguments)
        return
    tasks = tasks_of(arguments)
    seconds, limit_bytes = row_seconds_of(arguments, tasks), memory_limit_of(arguments)
    report = Report(arguments, seconds, limit_bytes)
    if arguments.resume:
        report.resume()
    done = {key_of(row) for row in report.rows}
    missing = [task for task in tasks if task.key not in done]
    console = Console(stderr=True)
    console.print(f"{len(missing)} rows of about {seconds} s, memory limit {reports.memory_text(limit_bytes / 2**20)}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(missing))
        for task in missing:
            progress.update(bar, description=f"{task.case}, {task.problem.dtype}: {task.contender.name}")
            known = {row["contender"]: row.get("many_classes") for row in report.rows}
            report.add(measured(task, arguments, seconds, limit_bytes, known.get(task.contender.name)))
            progress.advance(bar)
    if arguments.markdown:
        print(table.markdown(report.rows))
    else:
        table.show(report.rows)
    environment = report.content["environment"]
    print(", ".join(f"{key} {value}" for key, value in environment.items() if value is not None))
    if arguments.output is not None:
        print(f"written: {arguments.output}")
    if arguments.plots is not None:
        import plots

        try:
            plots.draw(report.content, arguments.plots)
        except ValueError as wrong:
            raise SystemExit(f"run.py: --plots: {wrong}") from None
    worker.exit_on_failures("run.py", report.rows)


if __name__ == "__main__":
    main()
