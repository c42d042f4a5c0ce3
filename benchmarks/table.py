"""The rows of run.py and sweep.py as a table: all columns on a terminal, or what a README shows as Markdown.

    python benchmarks/table.py benchmarks/results/heads_NAME.json              # every column
    python benchmarks/table.py benchmarks/results/heads_NAME.json --markdown   # heads by identities: time and memory

"~" marks a number that was measured on fewer identities and multiplied up. "(2x)" is the multiple of the faster bare
product, in float32 or in the row's dtype; in files without it, of the one in the row's dtype.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import reports  # noqa: E402

Row = dict[str, Any]
MANY_CLASSES = "70k classes, float16"
_RATES = {
    "x best": ("x_best", ".2f"),
    "x product": ("x_product", ".2f"),
    "TFLOP/s": ("tflop_per_s", ".3g"),
    "GB/s": ("gb_per_s", ".3g"),
}


def seconds(row: Row, key: str = "median_s") -> str:
    """`~950 ms` or `12.3 s`."""
    return "-" if row[key] is None else ("~" if row["time_scaled"] else "") + reports.seconds_text(row[key])


def memory(row: Row) -> str:
    """`~896 MiB` or `12.3 GiB`."""
    value = row["peak_mib"]
    return "-" if value is None else ("~" if row["memory_scaled"] else "") + reports.memory_text(value)


def cell(row: Row) -> str:
    """One head at one number of identities, for the Markdown table."""
    if row["status"] != "ok":
        needs = f", needs {memory(row)}" if row["peak_mib"] is not None else ""
        return row["status"] + needs
    multiple = row["x_product"] if row["x_best"] is None else row["x_best"]
    return f"{seconds(row)} ({multiple:.2g}x), {memory(row)}"


def label(row: Row) -> str:
    margin = {"none (softmax)": "softmax", "none": ""}.get(row["margin"], row["margin"])
    name = f"**{row['contender']}**" if row["ours"] else row["contender"]
    return f"{name}, {margin}" if margin else name


def unavailable(rows: Sequence[Row]) -> list[str]:
    """One line for each contender that could not run, with the reason."""
    found = {row["contender"]: row["reason"] for row in rows if row["status"] == "unavailable"}
    return [f"{name}: {reason}" for name, reason in found.items()]


def markdown(rows: Sequence[Row]) -> str:
    """For each batch and dtype a table of heads by identities; what could not run is listed below them."""
    lines: list[str] = []
    for (batch, dtype), group in groups(rows, "batch", "dtype"):
        shown = [row for row in group if row["status"] != "unavailable"]
        sizes = sorted({row["identities"] for row in group})
        backends = {row["backend"] for row in shown if row["backend"]}
        cells: dict[str, dict[int, str]] = {}
        for row in shown:
            name = label(row) + (f" [{row['backend']}]" if len(backends) > 1 and row["backend"] else "")
            cells.setdefault(name, {})[row["identities"]] = cell(row)
        many = {label(row): row["many_classes"] for row in shown if row["many_classes"]}
        heads = [f"batch {batch}, {dtype}", *map(reports.count_text, sizes), *([MANY_CLASSES] if many else [])]
        lines += [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
        for name, by_size in cells.items():
            told = [by_size.get(size, "-") for size in sizes] + ([many.get(name, "-")] if many else [])
            lines.append(f"| {' | '.join([name, *told])} |")
        lines.append("")
    missing = unavailable(rows)
    return "\n".join(lines + (["Not measured: " + "; ".join(missing) + "."] if missing else []))


def show(rows: Sequence[Row]) -> None:
    """Print every column, one table for each case, batch and dtype."""
    from rich.console import Console
    from rich.table import Table

    # A pipe has no width: wide enough then that no number is cut.
    console = Console(width=None if os.isatty(1) else 180)
    right = ("time", "20 %", "80 %", *_RATES, "memory")
    for (case, batch, dtype), group in groups(rows, "case", "batch", "dtype"):
        title = f"{case}: {group[0]['identities']:,} identities, batch {batch}, dim {group[0]['dim']}, {dtype}"
        table = Table(title=title, title_justify="left")
        many = any(row["many_classes"] for row in group)
        for column in ("head", "margin", "backend", *right, *([MANY_CLASSES] if many else []), "note"):
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in group:
            if row["status"] == "unavailable":
                continue
            numbers = ["-" if row[key] is None else format(row[key], form) for key, form in _RATES.values()]
            note = row["note"] if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
            times = [seconds(row, key) for key in ("median_s", "p20_s", "p80_s")]
            head = [row["contender"], row["margin"] or "", row["backend"] or ""]
            told = [memory(row), *([row["many_classes"] or "-"] if many else []), note]
            table.add_row(*head, *times, *numbers, *told, style="bold" if row["ours"] else None)
        console.print(table)
    for line in unavailable(rows):
        console.print(f"not measured: {line}", highlight=False)


def groups(rows: Sequence[Row], *keys: str) -> Iterator[tuple[tuple, list[Row]]]:
    """Rows by those keys, in the order in which the first of each comes."""
    place = {values: number for number, values in enumerate(dict.fromkeys(tuple(r[k] for k in keys) for r in rows))}
    ordered = sorted(rows, key=lambda row: place[tuple(row[key] for key in keys)])
    for values, group in itertools.groupby(ordered, key=lambda row: tuple(row[key] for key in keys)):
        yield values, list(group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="JSON of run.py or sweep.py")
    parser.add_argument("--markdown", action="store_true", help="heads by identities, for a README")
    arguments = parser.parse_args()
    try:
        rows = reports.read("table", arguments.report, (reports.HEADS, reports.SWEEP))["rows"]
    except ValueError as wrong:
        parser.exit(2, f"{wrong}\n")
    if arguments.markdown:
        print(markdown(rows))
    else:
        show(rows)


if __name__ == "__main__":
    main()
