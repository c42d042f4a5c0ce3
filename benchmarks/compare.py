"""What became slower or larger between two JSON files of the same benchmark.

    python benchmarks/compare.py before.json after.json [--tolerance 0.05] [--json]

Rows are matched by what they measure. A row whose median time or peak memory grew beyond the tolerance is a regression;
where the 20/80 % marks of both times overlap it is noise. On another machine, with other threads or another torch,
seconds and bytes say nothing: then only the multiple of the bare product is compared (of the faster product where both
files have it). A row that was measured and now fails is a regression on any machine. The exit code is 1 with
regressions, 0 without, 2 for files that cannot be compared or have no row in common.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import reports  # noqa: E402

from attfc_cuda._check import error  # noqa: E402

MACHINE = ("cpu", "gpu", "threads", "torch", "torch_cpu_capability", "driver")
# Less than this between two peaks of a resident set is the allocator's choice of pages, not the contender's.
MEMORY_NOISE_MIB = 8.0
REGRESSION, BETTER, NOISE, SAME, CHANGED, UNJUDGED = "REGRESSION", "better", "noise", "same", "changed", "-"


@dataclasses.dataclass(frozen=True)
class Difference:
    """One measurement in both reports. Ratios are after / before; None where one of the two is not known."""

    row: str
    verdict: str
    why: str
    before_s: float | None
    after_s: float | None
    time_ratio: float | None
    x_product_ratio: float | None
    before_mib: float | None
    after_mib: float | None
    memory_ratio: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """same_machine: whether seconds and bytes were judged; other: what differs of the machines, as texts."""

    schema: str
    same_machine: bool
    other: list[str]
    differences: list[Difference]
    missing: list[str]
    new: list[str]

    @property
    def regressions(self) -> list[Difference]:
        return [difference for difference in self.differences if difference.verdict == REGRESSION]


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float = 0.05) -> Comparison:
    """Compare two reports as `reports.read` returns them. Raises ValueError where they are not of one benchmark."""
    if before["schema"] != after["schema"]:
        raise error("compare", "the files", "be of the same schema", f"{before['schema']} and {after['schema']}")
    if before["schema"] == reports.SWEEP:
        for key in ("case", "shape"):
            if before.get(key) != after.get(key):
                got = f"{before.get(key)} and {after.get(key)}"
                raise error("compare", "the files", f"have the same {key}", got)
    if not tolerance >= 0:
        raise error("compare", "tolerance", "be at least 0", tolerance)
    machines = before["environment"], after["environment"]
    other = [
        f"{key} {m.get(key)} and {n.get(key)}" for m, n in [machines] for key in MACHINE if m.get(key) != n.get(key)
    ]
    keys = reports.KEYS[before["schema"]]
    old, new = ({tuple(row[key] for key in keys): row for row in report["rows"]} for report in (before, after))
    return Comparison(
        before["schema"],
        not other,
        other,
        [
            _difference(identity, row, new[identity], tolerance, not other)
            for identity, row in old.items()
            if identity in new
        ],
        [reports.describe(identity) for identity in old if identity not in new],
        [reports.describe(identity) for identity in new if identity not in old],
    )


def _difference(
    identity: tuple[Any, ...], old: dict[str, Any], new: dict[str, Any], tolerance: float, same_machine: bool
) -> Difference:
    keys = ("median_s", _multiple(old, new), "peak_mib")
    time_ratio, x_ratio, memory_ratio = (_ratio(old, new, key) for key in keys)
    verdict, why = _verdict(old, new, tolerance, same_machine)
    sizes = [row.get("measured_identities") for row in (old, new)]
    if sizes[0] != sizes[1] and verdict != SAME:
        why += f" (measured on {sizes[0]} and {sizes[1]} identities)"
    return Difference(
        reports.describe(identity),
        verdict,
        why,
        _number(old, "median_s"),
        _number(new, "median_s"),
        time_ratio,
        x_ratio,
        _number(old, "peak_mib"),
        _number(new, "peak_mib"),
        memory_ratio,
    )


def _verdict(old: dict[str, Any], new: dict[str, Any], tolerance: float, same_machine: bool) -> tuple[str, str]:
    was, is_ = old.get("status", "ok"), new.get("status", "ok")
    if was != is_:
        # A machine with less memory, or without a package, says nothing about the code; one that fails does anywhere.
        worse = was == "ok" and (is_ == "failed" or (is_ == "out of memory" and same_machine))
        return (REGRESSION if worse else CHANGED), f"{was} -> {is_}" + (
            f": {new['reason']}" if new.get("reason") else ""
        )
    if was != "ok":
        return SAME, was
    key = "median_s" if same_machine else _multiple(old, new)
    verdict, why = _time_verdict(old, new, key, tolerance)
    if same_machine:
        memory, reason = _memory_verdict(old, new, tolerance)
        if REGRESSION in (verdict, memory):
            whys = [text for of, text in ((verdict, why), (memory, reason)) if of == REGRESSION]
            return REGRESSION, ", ".join(whys)
        if memory == BETTER:
            # A gain in memory is told, but must not hide that the time is noise.
            return (BETTER if verdict in (BETTER, SAME, UNJUDGED) else verdict), ", ".join(filter(None, (why, reason)))
    return verdict, why


def _multiple(old: dict[str, Any], new: dict[str, Any]) -> str:
    """That of the faster product where both know it."""
    known = all(_number(row, "x_best") is not None for row in (old, new))
    return "x_best" if known else "x_product"


def _time_verdict(old: dict[str, Any], new: dict[str, Any], key: str, tolerance: float) -> tuple[str, str]:
    ratio, name = _ratio(old, new, key), "time" if key == "median_s" else key.replace("_", " ")
    if ratio is None:
        return UNJUDGED, f"no {name} in both"
    if 1 / (1 + tolerance) <= ratio <= 1 + tolerance:
        return SAME, ""
    text = f"{name} x {ratio:.2f}"
    marks = [_marks(row, key) for row in (old, new)]
    if marks[0] and marks[1] and marks[0][0] <= marks[1][1] and marks[1][0] <= marks[0][1]:
        return NOISE, f"{text}, 20/80 % marks overlap"
    return (REGRESSION if ratio > 1 else BETTER), text


def _memory_verdict(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> tuple[str, str]:
    ratio, was, is_ = _ratio(old, new, "peak_mib"), _number(old, "peak_mib"), _number(new, "peak_mib")
    if was is None or is_ is None or abs(is_ - was) <= MEMORY_NOISE_MIB:
        return SAME, ""
    if ratio is None or ratio > 1 + tolerance:  # from nothing to something
        return REGRESSION, f"memory {reports.memory_text(was)} -> {reports.memory_text(is_)}"
    return (BETTER, f"memory x {ratio:.2f}") if ratio < 1 / (1 + tolerance) else (SAME, "")


def _marks(row: dict[str, Any], key: str) -> tuple[float, float] | None:
    """The 20/80 % marks of the time, or of its multiple of the product (whose own spread is not known)."""
    low, high, median, value = (_number(row, name) for name in ("p20_s", "p80_s", "median_s", key))
    if low is None or high is None or not median or value is None:
        return None
    return low * value / median, high * value / median


def _number(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _ratio(old: dict[str, Any], new: dict[str, Any], key: str) -> float | None:
    before, after = _number(old, key), _number(new, key)
    return after / before if before and before > 0 and after is not None else None


def print_comparison(result: Comparison) -> None:
    """A table of all rows in both, then what is only in one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe has no width: wide enough then that no number is cut.
    console = Console(width=None if os.isatty(1) else 160)
    if not result.same_machine:
        text = f"warning: not the same machine ({'; '.join(result.other)}): only multiples of the product are compared"
        console.print(Text(text, style="yellow"))
    table = Table(title=f"{result.schema}: before and after", title_justify="left")
    for name in ("row", "before", "after", "time", "x product", "memory", "verdict"):
        table.add_column(name, justify="left" if name in ("row", "verdict") else "right")
    styles = {REGRESSION: "bold red", BETTER: "green", NOISE: "yellow", CHANGED: "yellow"}
    for difference in result.differences:
        seconds = [
            "-" if value is None else reports.seconds_text(value) for value in (difference.before_s, difference.after_s)
        ]
        ratios = (difference.time_ratio, difference.x_product_ratio, difference.memory_ratio)
        verdict = f"{difference.verdict}: {difference.why}" if difference.why else difference.verdict
        cells = [difference.row, *seconds, *("-" if value is None else f"{value:.2f}" for value in ratios), verdict]
        table.add_row(*map(Text, cells), style=styles.get(difference.verdict))
    console.print(table)
    for name, only in (("missing in the second", result.missing), ("new in the second", result.new)):
        for row in only:
            console.print(Text(f"{name}: {row}"))
    count = len(result.regressions)
    console.print("no regression" if not count else f"{count} regression{'s' if count > 1 else ''}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="growth that is let pass, as a share; default 0.05"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON instead of a table")
    given = parser.parse_args(arguments)
    try:
        before, after = (reports.read("compare", path) for path in (given.before, given.after))
        result = compare(before, after, given.tolerance)
        if not result.differences:
            got = f"none in common ({len(before['rows'])} and {len(after['rows'])} rows)"
            raise error("compare", "the files", "hold a row that measures the same", got)
    except ValueError as wrong:
        print(wrong, file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps({**dataclasses.asdict(result), "regressions": len(result.regressions)}, indent=1))
    else:
        print_comparison(result)
    return 1 if result.regressions else 0


if __name__ == "__main__":
    sys.exit(main())
