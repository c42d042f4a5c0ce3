"""The JSON files of the benchmarks: read with a check, written whole or not at all, their numbers put in words.

A report is {"schema": "heads/1" | "sweep/1" | "scaling/1" | "training/1" | "data/1" | "storage/1",
"environment": {...}, "command": str, "rows": [{...}]}; one without a schema that has one shape is a sweep's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attfc_cuda._check import error
from attfc_cuda._files import write_text

SWEEP, HEADS, SCALING, TRAINING, DATA = "sweep/1", "heads/1", "scaling/1", "training/1", "data/1"
# The rows of training.py that have a name, by the flags of `attfc train` that make them: one margin for all heads.
TRAINED_HEADS = {head: f"--head {head} --margin adasin" for head in ("attfc", "fc", "partial_fc")}
STORAGE = "storage/1"
# Of a measured row of heads, sweep and scaling. x_best: multiple of the faster of the bare products in float32 and in
# the row's dtype; x_product: of the one in its dtype, which a processor without 16-bit arithmetic makes slow.
NUMBERS = ("median_s", "p20_s", "p80_s", "best_s", "x_best", "x_product", "tflop_per_s", "gb_per_s", "peak_mib")
# What makes a row the same measurement in two reports.
KEYS: dict[str, tuple[str, ...]] = {
    HEADS: ("case", "identities", "batch", "dim", "contender", "margin", "dtype", "backend"),
    SWEEP: ("contender", "dtype"),
    SCALING: ("centers", "batch", "dim", "dtype"),
    DATA: ("format", "images", "batch", "what"),
    TRAINING: ("head", "identities", "batch", "image_size", "backbone", "flags"),
    STORAGE: ("inputs", "what", "centers", "batch", "dim", "threads", "dtype"),
}


def read(function: str, path: Path, schemas: Sequence[str] = tuple(KEYS)) -> dict[str, Any]:
    """The report in `path`, with its schema filled in, for `function`, which its errors name.

    Raises ValueError for a file that cannot be read, is no report, is of a schema not in `schemas`, or holds the same
    measurement twice.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise error(function, str(path), "be a readable JSON file", cause) from cause
    if not isinstance(report, dict) or not isinstance(report.get("rows"), list):
        remedy = "give a file that a command of benchmarks/ wrote with --output"
        raise error(function, str(path), "be a benchmark's JSON with rows", _shape_of(report), remedy)
    report.setdefault("schema", SWEEP if "shape" in report else None)
    if report["schema"] == SWEEP:
        report.setdefault("case", "container")
    if report["schema"] not in schemas:
        raise error(function, str(path), f"be of schema {' or '.join(schemas)}", repr(report["schema"]))
    if not isinstance(report.setdefault("environment", {}), dict):
        raise error(function, f"environment of {path}", "be a JSON object", repr(report["environment"]))
    if report["schema"] in (SWEEP, HEADS, TRAINING):
        report["rows"] = [_completed(row, report) for row in report["rows"]]
    keys, seen = KEYS[report["schema"]], set()
    for number, row in enumerate(report["rows"]):
        lacking = keys if not isinstance(row, dict) else [key for key in keys if key not in row]
        if lacking:
            raise error(function, f"row {number} of {path}", f"hold {', '.join(keys)}", f"no {', '.join(lacking)}")
        if (identity := tuple(row[key] for key in keys)) in seen:
            raise error(function, f"row {number} of {path}", "be there once", f"{describe(identity)} a second time")
        seen.add(identity)
    return report


def _completed(row: Any, report: dict[str, Any]) -> Any:
    """A row with what files of an earlier version do not say."""
    if not isinstance(row, dict):
        return row
    if report["schema"] == TRAINING:  # rows without flags are heads by their names
        return {"flags": TRAINED_HEADS.get(str(row.get("head")), ""), **row}
    usual = dict.fromkeys((*NUMBERS, "many_classes", "margin", "backend"))
    usual |= {"status": "ok", "reason": "", "note": "", "time_scaled": False, "memory_scaled": False}
    if report["schema"] == SWEEP and isinstance(report.get("shape"), dict):
        shape = report["shape"]
        usual |= {"case": report["case"], "ours": str(row.get("contender")).startswith("attfc")}
        usual |= {"identities": shape.get("slots"), "batch": shape.get("rows"), "dim": shape.get("dim")}
        usual["tflop_per_s"] = row["gflop_per_s"] / 1e3 if "gflop_per_s" in row else None
    return {name: value for name, value in usual.items() if name not in row} | row


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report, all of it or nothing; called after each row, so that an interrupted run leaves those it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report, indent=1) + "\n")


def add_output(parser: argparse.ArgumentParser) -> None:
    """The flags that say where the JSON goes."""
    parser.add_argument("--output", type=Path, default=None, help="JSON, written as rows come in")
    parser.add_argument("--overwrite", action="store_true", help="replace --output")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The flag that says how many threads measure."""
    parser.add_argument("--threads", type=_at_least_1, default=None, help="CPU threads (default: PyTorch's choice)")


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """The flag that says how often each contender is timed."""
    parser.add_argument(
        "--rounds", type=_at_least_2, default=default, help=f"timed rounds (one more warms up; default: {default})"
    )


def _at_least_2(text: str) -> int:
    if _at_least_1(text) < 2:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 2, got {text}")
    return int(text)


def _at_least_1(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def check_output(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Exit with the reason where --output is there already and may neither be replaced nor, by a command that has
    --resume, gone on with."""
    if given.output is not None and given.output.exists() and not (given.overwrite or getattr(given, "resume", False)):
        ways = "--resume or --overwrite" if hasattr(given, "resume") else "--overwrite"
        parser.error(f"--output {given.output} exists: add {ways}, or name another file")


def describe(identity: Sequence[Any]) -> str:
    """What a row measures, in a line: `ms1mv3, 384, 512, fc, adasin, float32`."""
    return ", ".join(str(part) for part in identity if part is not None)


def count_text(count: float) -> str:
    """93431 -> "93k", 2_060_000 -> "2.06M", 1500 -> "1.5k"."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if count >= 0.9995 * size:
            return _three(count / size) + unit
    return f"{count / 1e3:.0f}k" if count >= 9995 else _three(count / 1e3) + "k" if count >= 999.5 else _three(count)


def memory_text(mib: float) -> str:
    """0.5 -> "512 KiB", 156 -> "156 MiB", 4096 -> "4 GiB"."""
    for size, unit in ((2.0**20, "TiB"), (2.0**10, "GiB"), (1.0, "MiB")):
        if mib >= size:
            return f"{_three(mib / size)} {unit}"
    return f"{_three(mib * 2**10)} KiB"


def seconds_text(seconds: float) -> str:
    """0.0042 -> "4.2 ms", 12.5 -> "12.5 s"."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds * 1e6)} µs"


def _three(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def machine_text(environment: dict[str, Any]) -> str:
    """The machine of a report in a line."""
    if environment.get("gpu"):
        parts = [environment["gpu"]]
    else:
        threads = environment.get("threads")
        parts = [
            environment.get("cpu") or "unknown machine",
            f"{threads} thread{'s' if threads > 1 else ''}" if threads else "",
        ]
    return ", ".join([part for part in parts if part] + [f"torch {environment.get('torch', 'unknown')}"])


def _shape_of(report: Any) -> str:
    if isinstance(report, dict):
        return f"an object of {', '.join(map(repr, list(report)[:6])) or 'nothing'}"
    return f"a {type(report).__name__}"
