"""Is the time of loss and gradient linear in the number of centres, and the memory flat? AdaSin, every tile matters.

    python benchmarks/scaling.py --output benchmarks/results/scaling.json --plot docs/scaling    # 4 minutes, 2 cores
    python benchmarks/scaling.py --centers 1000 10000 100000 --dtypes float32                # a quick look

Each point is the contender "attfc AdaSin, cold" of sweep.py in a fresh process: checked, then peak memory above the
inputs, then medians over as many rounds as a few seconds hold. The line is a least-squares fit of the relative error,
so that small containers count as much as large ones: weights 1/S.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import measure  # noqa: E402
import reports  # noqa: E402
import worker  # noqa: E402
from problem import CONTAINER, DTYPES, Problem  # noqa: E402

CONTENDER = "attfc AdaSin, cold"

CENTERS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
LARGE = 10_000  # from here on the fixed costs of a call are small against the sweep
LINEAR_WITHIN = 0.15
FLAT_WITHIN = 0.02  # of the growth of the container itself; a resident set is uncertain by some MiB
SECONDS_A_POINT = 4.0
MOST_ROUNDS = 40


@dataclasses.dataclass(frozen=True)
class Fit:
    """seconds = intercept + slope * centres, and how far the measured points lie from it (relative to the line)."""

    slope_s_per_center: float
    intercept_s: float
    r_squared: float
    largest_deviation: float
    largest_deviation_from_10k: float

    @property
    def linear(self) -> bool:
        return self.largest_deviation <= LINEAR_WITHIN

    def at(self, centers: Any) -> Any:
        return self.intercept_s + self.slope_s_per_center * centers


def fit(centers: Sequence[int], seconds: Sequence[float]) -> Fit:
    """Least squares of the residuals divided by the number of centres; R^2 is that of the plain residuals.

    The deviation "from_10k" is the largest among points of 10 000 centres or more (0 without one).
    """
    s, t = np.asarray(centers, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    slope, intercept = np.polyfit(s, t, 1, w=1 / s)
    line = intercept + slope * s
    off = np.abs(t / line - 1)
    r_squared = 1 - ((t - line) ** 2).sum() / ((t - t.mean()) ** 2).sum()
    large = off[s >= LARGE]
    return Fit(*map(float, (slope, intercept, r_squared, off.max(), large.max() if len(large) else 0.0)))


def measured(centers: int, dtype: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of one point. Exits the program where it cannot be measured."""
    problem = Problem(centers, given.batch, given.dim, dtype, "cpu", "adasin", task=CONTAINER)
    limit_bytes = measure.free_bytes("cpu")
    row = worker.in_fresh_process(
        worker.Job(CONTENDER, problem, given.seconds, MOST_ROUNDS, limit_bytes, given.threads, whole=True)
    )
    if row["status"] != "ok":
        raise SystemExit(f"measuring {centers} centres in {dtype} failed: {row['status']}: {row['reason']}")
    return {**row, "container_mib": centers * given.dim * DTYPES[dtype].itemsize / 2**20}


def fits_of(rows: list[dict[str, Any]]) -> dict[str, Fit]:
    """The line of every dtype that has three points or more."""
    points: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        points.setdefault(row["dtype"], []).append(row)
    return {
        dtype: fit([row["centers"] for row in of], [row["median_s"] for row in of])
        for dtype, of in points.items()
        if len(of) >= 3
    }


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """The answers to both questions, a line for each dtype and question."""
    lines = []
    for dtype, line in fits_of(rows).items():
        lines.append(
            f"{dtype}: {line.slope_s_per_center * 1e6:.3f} µs a centre + {line.intercept_s * 1e3:.2f} ms, "
            f"R^2 {line.r_squared:.6f}; largest deviation from the line {line.largest_deviation:.1%}, from "
            f"{LARGE:,} centres on {line.largest_deviation_from_10k:.1%}: "
            f"{'linear' if line.linear else 'NOT linear'} within {LINEAR_WITHIN:.0%}"
        )
        of = [row for row in rows if row["dtype"] == dtype and row["peak_mib"] is not None and row["centers"] >= LARGE]
        if len(of) >= 2:
            ranges = {key: (min(r[key] for r in of), max(r[key] for r in of)) for key in ("peak_mib", "container_mib")}
            (least, most), (small, large) = ranges["peak_mib"], ranges["container_mib"]
            flat = most - least <= FLAT_WITHIN * (large - small)
            lines.append(
                f"{dtype}: memory above the inputs from {LARGE:,} centres on {least:.1f} to {most:.1f} MiB, the "
                f"container {small:.0f} to {large:.0f} MiB: {'flat' if flat else 'NOT flat'} within "
                f"{FLAT_WITHIN:.0%} of its growth"
            )
    return lines


def figure_of(report: dict[str, Any]) -> Any:
    """Time with the fitted lines, and memory beside the container's own size, both log-log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    from attfc_cuda.evaluation.plots import COLORS

    rows, fits = report["rows"], fits_of(report["rows"])
    figure = Figure(figsize=(9.8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    time_axes, memory_axes = figure.subplots(1, 2)
    for number, dtype in enumerate(dict.fromkeys(row["dtype"] for row in rows)):
        of = sorted((row for row in rows if row["dtype"] == dtype), key=lambda row: row["centers"])
        centers = np.array([row["centers"] for row in of])
        look = {"color": COLORS[number], "marker": "os^"[number % 3], "markersize": 6}
        time_axes.plot(centers, [row["median_s"] for row in of], linestyle="none", label=f"{dtype}, measured", **look)
        if dtype in fits:
            line, x = fits[dtype], np.geomspace(centers[0], centers[-1], 200)
            label = f"{dtype}, line: R² {line.r_squared:.5f}, within {line.largest_deviation:.1%}"
            time_axes.plot(x, line.at(x), color=COLORS[number], linewidth=1.6, label=label, zorder=1)
        peaks = [(row["centers"], row["peak_mib"]) for row in of if row["peak_mib"]]
        if peaks:
            memory_axes.plot(*zip(*peaks, strict=True), linewidth=2.4, label=f"{dtype}, above the inputs", **look)
        sizes = [row["container_mib"] for row in of]
        label = f"{dtype}, the container itself"
        memory_axes.plot(centers, sizes, color=COLORS[number], linewidth=1.1, linestyle=(0, (4, 2)), label=label)
    ticks = [10.0**power for power in range(int(math.log10(min(r["centers"] for r in rows))), 8)]
    words = {time_axes: ("median time", reports.seconds_text), memory_axes: ("memory", reports.memory_text)}
    for axes, (label, text) in words.items():
        axes.set_xscale("log")
        axes.set_yscale("log", base=10 if axes is time_axes else 2)
        limits = axes.get_xlim()
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.set_xlim(limits)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: reports.count_text(value)))
        axes.yaxis.set_major_locator(LogLocator(base=10 if axes is time_axes else 4, numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, text=text: text(value)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("centres S")
        axes.set_ylabel(label)
        axes.grid(True, color="0.9")
        axes.set_axisbelow(True)
        # Below the panel it hides no point.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, fontsize="small")
    batch, dim = rows[0]["batch"], rows[0]["dim"]
    figure.suptitle(
        f"Loss and gradient, AdaSin, every tile matters; batch {batch}, dim {dim}\n"
        f"{reports.machine_text(report['environment'])}",
        fontsize="medium",
    )
    return figure


def print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    times = ("median", "20 %", "80 %", "x best", "x product")
    for name in ("dtype", "centres", *times, "MiB above inputs", "container", "rounds"):
        table.add_column(name, justify="left" if name == "dtype" else "right")
    for row in rows:
        times = [reports.seconds_text(row[key]) for key in ("median_s", "p20_s", "p80_s")]
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
        size = reports.memory_text(row["container_mib"])
        multiples = [f"{row[key]:.2f}" for key in ("x_best", "x_product")]
        table.add_row(row["dtype"], f"{row['centers']:,}", *times, *multiples, peak, size, str(row["rounds"]))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--centers", type=int, nargs="+", default=list(CENTERS), metavar="S")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=SECONDS_A_POINT, help="aimed at for a point; default 4")
    reports.add_threads(parser)
    reports.add_output(parser)
    parser.add_argument("--plot", type=Path, default=None, help="write PLOT.png and PLOT.svg")
    given = parser.parse_args(arguments)
    reports.check_output(parser, given)
    if min(given.centers) < 1 or min(given.batch, given.dim) < 1:
        parser.error("--centers, --batch and --dim must be at least 1")
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse_arguments(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)  # for the environment; the processes set their own
    command = "python " + shlex.join(["benchmarks/scaling.py", *(sys.argv[1:] if arguments is None else arguments)])
    report = {
        "schema": reports.SCALING,
        "environment": measure.environment(),
        "command": command,
        "rows": [],
        "fit": {},
    }
    for dtype in given.dtypes:
        for centers in sorted(set(given.centers)):
            print(f"{dtype}, {centers:,} centres ...", file=sys.stderr, flush=True)
            report["rows"].append(measured(centers, dtype, given))
            report["fit"] = {
                dtype: {**dataclasses.asdict(line), "linear": line.linear}
                for dtype, line in fits_of(report["rows"]).items()
            }
            if given.output:
                reports.write(given.output, report)
    print_rows(report["rows"])
    print(*verdicts(report["rows"]), sep="\n")
    written = [given.output] if given.output else []
    if given.plot:
        import plots

        given.plot.parent.mkdir(parents=True, exist_ok=True)
        written += plots.save(figure_of(report), given.plot)
    if written:
        print("written:", *written, sep="\n  ")


if __name__ == "__main__":
    main()
