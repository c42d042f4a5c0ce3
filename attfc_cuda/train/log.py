"""The run's record: JSON lines always, loggers (TensorBoard, ...) beside them, a progress bar on a terminal.

`<run>/log.jsonl` holds one object a line, each with a "kind": "start" and "resume" (settings and report), "step" (the
numbers of one step), "verify" (a verification), "cosines" (to own and other centres), "best" (the network is the best
so far), "note" (something out of the ordinary) and "end". A number that is NaN or infinite is null, as JSON has no word
for it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from attfc_cuda._files import replacing
from attfc_cuda.train.loggers import Logger


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl. Lines that are no record (cut short by a crash, damaged) are left out."""
    return [record for line in path.read_bytes().splitlines() if (record := _record(line)) is not None]


class RunLog:
    """Writes records to file, loggers and screen. A context manager: leaving it closes all of them.

    Args:
        path: log.jsonl.
        total_steps: of the run.
        first_step: steps already done; records beyond it (written after the checkpoint that the run resumes from) are
            dropped, since their steps are computed again.
        loggers: that take the numbers too, started.
        progress: "bar", "lines" or "none"; the bar becomes lines where the output is not a terminal.
    """

    def __init__(
        self, path: Path, total_steps: int, first_step: int = 0, loggers: Sequence[Logger] = (), progress: str = "bar"
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(path, first_step)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by __exit__
        self._loggers = list(loggers)
        self._total = total_steps
        self.console = Console(highlight=False, soft_wrap=True, quiet=progress == "none", file=sys.stdout)
        self._bar = None
        if progress == "bar" and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step, numbers="")

    def __enter__(self) -> RunLog:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
        self._tell("end")
        self._file.close()

    def show(self, text: str) -> None:
        """Show a line (or several) above the progress bar."""
        self.console.print(text, markup=False)

    def record(self, kind: str, **fields: Any) -> None:
        """Append one record to the file, without showing it."""
        self._file.write(json.dumps({"kind": kind, **_finite(fields)}, allow_nan=False) + "\n")

    def note(self, text: str, **fields: Any) -> None:
        """Record and show something out of the ordinary."""
        self.record("note", text=text, **fields)
        self.show(text)

    def step(self, step: int, numbers: dict[str, float]) -> None:
        """Record the numbers of step `step` (counted from 1) and show the main ones."""
        self.record("step", step=step, **numbers)
        self._numbers(step, {f"train/{name}": value for name, value in numbers.items()})
        top1 = "  top-1 {container_top1:.3f}" if "container_top1" in numbers else ""
        line = f"loss {{loss:.3f}}  cos {{positive_cosine:.3f}}{top1}  {{images_per_s:.0f}} images/s".format_map(
            {"positive_cosine": math.nan, **numbers}
        )
        if self._bar:
            self._bar.update(self._task, completed=step, numbers=line)
        else:
            eta = numbers.get("eta_s", math.nan)
            self.show(f"step {step}/{self._total}  {line}" + (f"  ETA {duration(eta)}" if math.isfinite(eta) else ""))

    def advance(self, step: int) -> None:
        """Move the bar on a step that is not recorded."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def verification(self, step: int, name: str, result: dict[str, Any]) -> None:
        """Record one verification: `result` holds accuracy, auc, eer, tar_at_far, ... as written by `attfc verify`."""
        self.record("verify", step=step, name=name, **result)
        scalars = {key: result[key] for key in ("accuracy", "auc", "eer") if result[key] is not None}
        scalars |= {f"tar_at_far_{far}": tar for far, tar in result["tar_at_far"].items()}
        self._numbers(step, {f"verify/{name}/{key}": value for key, value in scalars.items()})
        accuracy = "" if result["accuracy"] is None else f"accuracy {result['accuracy']:.4f}  "
        points = result.get("at_far") or {far: {"tar": tar} for far, tar in result["tar_at_far"].items()}
        rates = "  ".join(map(_rate, points.items()))
        self.show(f"step {step}  {name}: {accuracy}{rates}")

    def distributions(self, step: int, values: dict[str, Tensor]) -> None:
        """Record mean, 1 % and 99 % of each tensor [N] that is not empty; loggers get all of its values."""
        filled = {name: value for name, value in values.items() if len(value)}
        summary = {}
        for name, value in filled.items():
            low, high = np.percentile(value.numpy(), (1, 99))
            summary[name] = {"mean": float(value.mean()), "p1": float(low), "p99": float(high)}
        self.record("cosines", step=step, **summary)
        self._tell("distributions", step, {f"cosines/{name}": value for name, value in filled.items()})

    def _numbers(self, step: int, values: dict[str, float]) -> None:
        self._tell("numbers", step, {name: value for name, value in values.items() if math.isfinite(value)})

    def _tell(self, method: str, *arguments: Any) -> None:
        for logger in list(self._loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as failure:
                self._loggers.remove(logger)
                self.note(f"{type(logger).__name__} left out from here on: {type(failure).__name__}: {failure}")


class NoLog:
    """The log of a process that is not the first: takes everything, keeps nothing."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def duration(seconds: float) -> str:
    """75.2 -> "1:15"; 3723 -> "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _rate(item: tuple[str, dict[str, Any]]) -> str:
    """`TAR@FAR 0.001 0.605 (0.571 to 0.640)`, with a star where few impostors support it."""
    far, point = item
    interval = point.get("tar_interval")
    behind = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"TAR@FAR {far} {point['tar']:.3f}{'*' if point.get('few_impostors') else ''}{behind}"


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


def _keep_until(path: Path, step: int) -> None:
    """Cut the log back to what was known after `step` steps: an empty log for a fresh run. Lines that are no record
    stay as they are, but for the last one, which a crash has cut short."""
    lines = path.read_bytes().splitlines() if path.exists() and step else []
    last = len(lines) - 1
    with replacing(path) as part:
        part.write_bytes(b"".join(line + b"\n" for n, line in enumerate(lines) if _is_kept(line, step, n == last)))


def _is_kept(line: bytes, step: int, last: bool) -> bool:
    record = _record(line)
    if record is None:
        return not last
    at = record.get("step", 0)
    return record["kind"] != "end" and (not isinstance(at, (int, float)) or at <= step)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
