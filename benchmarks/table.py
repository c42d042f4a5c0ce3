"""The rows of run.py as a table: all columns on a terminal, or what a README shows as Markdown.

    python benchmarks/table.py benchmarks/results/heads_NAME.json              # every column
    python benchmarks/table.py benchmarks/results/heads_NAME.json --markdown   # heads by identities: time and memory

"~" marks a number that was measured on fewer identities and multiplied up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_UNITS = (("M", 1e6), ("k", 1e3))


def seconds(row: Row, key: str = "median_s") -> str:
    """`~950 ms` or `12.3 s`."""
    value = row[key]
    if value is None:
        return "-"
    text = f"{value:.3g} s" if value >= 9.995 else f"{_short(1e3 * value)} ms"
    return ("~" if row["time_scaled"] else "") + text


def memory(row: Row) -> str:
    """`~896 MiB` or `12.3 GiB`."""
    value = row["peak_mib"]
    if value is None:
        return "-"
    text = f"{value / 1024:.3g} GiB" if value >= 9995 else f"{value:.0f} MiB"
    return ("~" if row["memory_scaled"] else "") + text


def count(identities: int) -> str:
    """`93 k`, `2.06 M`; a small number as it is."""
    for unit, size in _UNITS:
        if identities >= size:
            return f"{identities / size:.3g} {unit}"
    return str(identities)


def cell(row: Row) -> str:
    """One head at one number of identities, for the Markdown table."""
    if row["status"] != "ok":
        needs = f", needs {memory(row)}" if row["peak_mib"] is not None else ""
        return row["status"] + needs
    return f"{seconds(row)} ({row['x_product']:.2g}x), {memory(row)}"


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
        lines += [
            f"| batch {batch}, {dtype} | " + " | ".join(count(size) for size in sizes) + " |",
            "| --- |" + " --- |" * len(sizes),
            *(f"| {name} | " + " | ".join(by.get(size, "-") for size in sizes) + " |" for name, by in cells.items()),
            "",
        ]
    missing = unavailable(rows)
    return "\n".join(lines + (["Not measured: " + "; ".join(missing) + "."] if missing else []))


def show(rows: Sequence[Row]) -> None:
    """Print every column, one table for each case, batch and dtype."""
    from rich.console import Console
    from rich.table import Table

    # A pipe has no width: wide enough then that no number is cut.
    console = Console(width=None if os.isatty(1) else 160)
    right = ("time", "20 %", "80 %", "x product", "TFLOP/s", "GB/s", "memory")
    for (case, batch, dtype), group in groups(rows, "case", "batch", "dtype"):
        title = f"{case}: {group[0]['identities']:,} identities, batch {batch}, dim {group[0]['dim']}, {dtype}"
        table = Table(title=title, title_justify="left")
        for column in ("head", "margin", "backend", *right, "note"):
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in group:
            if row["status"] == "unavailable":
                continue
            numbers = [_number(row[key], digits) for key, digits in _RATES.items()]
            note = row["note"] if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
            times = [seconds(row, key) for key in ("median_s", "p20_s", "p80_s")]
            head = [row["contender"], row["margin"], row["backend"] or ""]
            table.add_row(*head, *times, *numbers, memory(row), note, style="bold" if row["ours"] else None)
        console.print(table)
    for line in unavailable(rows):
        console.print(f"not measured: {line}", highlight=False)


_RATES = {"x_product": ".2f", "tflop_per_s": ".3g", "gb_per_s": ".3g"}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def groups(rows: Sequence[Row], *keys: str) -> Iterator[tuple[tuple, list[Row]]]:
    """Rows by those keys, in the order in which the first of each comes."""
    place = {values: number for number, values in enumerate(dict.fromkeys(tuple(r[k] for k in keys) for r in rows))}
    ordered = sorted(rows, key=lambda row: place[tuple(row[key] for key in keys)])
    for values, group in itertools.groupby(ordered, key=lambda row: tuple(row[key] for key in keys)):
        yield values, list(group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="JSON of run.py")
    parser.add_argument("--markdown", action="store_true", help="heads by identities, for a README")
    arguments = parser.parse_args()
    rows = json.loads(arguments.report.read_text())["rows"]
    if arguments.markdown:
        print(markdown(rows))
    else:
        show(rows)


if __name__ == "__main__":
    main()
