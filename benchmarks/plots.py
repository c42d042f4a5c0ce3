"""Memory and time of a training step against the number of identities, from run.py's JSON: PNG and SVG.

    python benchmarks/plots.py benchmarks/results/heads_cpu.json --prefix docs/benchmark
    -> docs/benchmark_memory.png, docs/benchmark_memory.svg, docs/benchmark_time.png, docs/benchmark_time.svg

Both axes are logarithmic, one panel for each dtype and one row of panels for each batch size. A hue is a kind of head;
ours are thick, peers that do the same work thin and dashed in its paler shades. A hollow point was measured on fewer
identities and multiplied up; a cross in the band at the top ran out of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import reports  # noqa: E402
from problem import SOFTMAX  # noqa: E402

from attfc_cuda._check import error  # noqa: E402
from attfc_cuda._files import replacing  # noqa: E402
from attfc_cuda.evaluation.plots import COLORS  # noqa: E402

GROUP_COLORS = {
    "attfc 10 %": COLORS[0],
    "attfc 30 %": COLORS[2],
    "fc": COLORS[1],
    "partial_fc 10 %": COLORS[3],
    "product": "#777777",
}
PEER_MARKERS = "s^DvPX<>*h"
PEER_DASHES = ((4, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (2.5, 1), (7, 2))
PALE = (0.35, 0.0, 0.55, 0.2)  # shares of white in the shades of a group's peers
LINE_POINTS, THIN_POINTS, MARKER_POINTS, PEER_MARKER_POINTS = 2.4, 1.1, 6.0, 4.8
PANEL_IN, HEIGHT_IN, LEGEND_COLUMNS, LEGEND_ROW_IN = 4.9, 3.7, 3, 0.2
CROSSES_A_ROW, CROSS_STEP_POINTS, BAND_ROW = 3, 8.0, 0.055  # the last: share of a panel's height
RESOLUTION_DPI = 160


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What a figure shows: the row's value, whether it was multiplied up, and the words for both."""

    key: str
    scaled_key: str
    label: str
    title: str
    text: Any  # value -> str
    ticks: tuple[float, ...]  # factors between neighbouring ticks, the finest first


MEMORY = Quantity(
    "peak_mib",
    "memory_scaled",
    "peak memory above the inputs",
    "Memory of a head's training step",
    reports.memory_text,
    (2.0, 4.0, 16.0),
)
TIME = Quantity(
    "median_s",
    "time_scaled",
    "time of a step, median",
    "Time of a head's training step",
    reports.seconds_text,
    (10.0**0.5, 10.0),
)
QUANTITIES = {"memory": MEMORY, "time": TIME}


@dataclasses.dataclass(frozen=True)
class Style:
    """How a contender is drawn in every panel and in the legend."""

    label: str
    ours: bool
    color: Any
    marker: str
    line: Any

    def options(self) -> dict[str, Any]:
        thick = self.ours
        return {
            "color": self.color,
            "linestyle": self.line,
            "linewidth": LINE_POINTS if thick else THIN_POINTS,
            "zorder": 4 if thick else 3,
        }

    def marker_options(self, hollow: bool) -> dict[str, Any]:
        return {
            "marker": self.marker,
            "markersize": MARKER_POINTS if self.ours else PEER_MARKER_POINTS,
            "markerfacecolor": "white" if hollow else self.color,
            "markeredgecolor": self.color,
            "markeredgewidth": 1.4 if self.ours else 1.0,
        }


Series = tuple[str, Any, Any]  # contender, margin, backend


def draw(report: dict[str, Any], prefix: Path) -> list[Path]:
    """Write both figures of a report of schema heads/1 beside `prefix`; the four paths.

    A report without a number to show (all out of memory, or nothing measured so far) is a ValueError.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, quantity in QUANTITIES.items():
        paths += save(figure_of(report, quantity), prefix.with_name(f"{prefix.name}_{name}"))
    return paths


def save(figure: Figure, stem: Path) -> list[Path]:
    """`stem`.png and `stem`.svg of a figure, the same bytes for the same figure, each whole or not there."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with matplotlib.rc_context({"svg.hashsalt": stem.name}):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            with replacing(path) as part:
                figure.savefig(part, dpi=RESOLUTION_DPI, format=path.suffix[1:], facecolor="white", metadata=metadata)
    return paths


def figure_of(report: dict[str, Any], quantity: Quantity) -> Figure:
    """One panel a (batch, dim) and dtype; every contender's line has its label in the legend below as gid."""
    rows = [row for row in report["rows"] if row["status"] == "out of memory" or _has(row, quantity)]
    if not any(_has(row, quantity) for row in rows):
        got = f"{len(report['rows'])} rows, none with a number in {quantity.key}"
        raise error("plots", "rows", "hold a measurement", got)
    shapes = sorted({(row["batch"], row["dim"]) for row in rows})
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    styles = _styles(report["rows"])
    figure = Figure(figsize=(PANEL_IN * max(2, len(dtypes)), HEIGHT_IN * len(shapes) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shapes), len(dtypes), sharex=True, sharey=True, squeeze=False)
    crosses = 0
    for (batch, dim), line in zip(shapes, panels, strict=True):
        for dtype, axes in zip(dtypes, line, strict=True):
            here = [row for row in rows if (row["batch"], row["dim"], row["dtype"]) == (batch, dim, dtype)]
            crosses = max(crosses, _draw_panel(axes, here, styles, quantity))
            axes.set_title(f"{dtype}, batch {batch}, dim {dim}", fontsize="medium")
    _finish_axes(panels, rows, quantity, math.ceil(crosses / CROSSES_A_ROW))
    shown = {_series(row) for row in rows}
    scaled = any(row.get(quantity.scaled_key) for row in rows if _has(row, quantity))
    _legend(figure, [style for series, style in styles.items() if series in shown], scaled, crosses > 0)
    figure.suptitle(f"{quantity.title}\n{reports.machine_text(report['environment'])}", fontsize="medium")
    return figure


def _series(row: dict[str, Any]) -> Series:
    return row["contender"], row["margin"], row["backend"]


def _has(row: dict[str, Any], quantity: Quantity) -> bool:
    """Whether there is a number to show. (A row that ran out of memory may tell how much it needs.)"""
    value = row.get(quantity.key)
    return row["status"] == "ok" and isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _styles(rows: list[dict[str, Any]]) -> dict[Series, Style]:
    """The look of every line, ours first, then by group; margin and backend are named where they tell lines apart."""
    of: dict[Series, dict[str, Any]] = {}
    for row in rows:
        of.setdefault(_series(row), row)
    colors = {**GROUP_COLORS}
    spare = [color for color in COLORS if color not in colors.values()]
    for row in rows:
        if row["group"] not in colors:
            colors[row["group"]] = spare[len(colors) % len(spare)]
    order = sorted(of, key=lambda series: (not of[series]["ours"], list(colors).index(of[series]["group"])))
    styles, peers, ours = {}, dict.fromkeys(colors, 0), dict.fromkeys(colors, 0)
    for series in order:
        contender, margin, backend = series
        group, is_ours = of[series]["group"], of[series]["ours"]
        same = [other for other in of if other[0] == contender]
        label = contender
        if len({other[1] for other in same}) > 1:
            label += f", {margin}"
        elif margin == SOFTMAX:
            label += ", no margin"
        if backend and len({other[2] for other in same}) > 1:
            label += f", {backend}"
        if is_ours:
            number, ours[group] = ours[group], ours[group] + 1
            line = "-" if number == 0 else (0, PEER_DASHES[(number - 1) % len(PEER_DASHES)])
            styles[series] = Style(label, True, colors[group], "o", line)
        else:
            number, peers[group] = peers[group], peers[group] + 1
            # Markers count over all groups: in grey print they alone tell peers apart.
            marker = PEER_MARKERS[(sum(peers.values()) - 1) % len(PEER_MARKERS)]
            dash = (0, PEER_DASHES[number % len(PEER_DASHES)])
            styles[series] = Style(label, False, _mixed(colors[group], PALE[number % len(PALE)]), marker, dash)
    return styles


def _mixed(color: str, white: float) -> tuple[float, ...]:
    return tuple((1 - white) * part + white for part in to_rgb(color))


def _draw_panel(axes: Axes, rows: list[dict[str, Any]], styles: dict[Series, Style], quantity: Quantity) -> int:
    """Lines, points and crosses; the largest number of crosses over one number of identities."""
    lost: dict[int, list[Style]] = {}
    for series, style in styles.items():
        mine = sorted((row for row in rows if _series(row) == series), key=lambda row: row["identities"])
        points = [row for row in mine if _has(row, quantity)]
        axes.plot(
            [row["identities"] for row in points],
            [row[quantity.key] for row in points],
            **style.options(),
            gid=f"line: {style.label}",
        )
        for hollow in (False, True):
            some = [row for row in points if bool(row.get(quantity.scaled_key)) == hollow]
            if some:
                axes.plot(
                    [row["identities"] for row in some],
                    [row[quantity.key] for row in some],
                    linestyle="none",
                    zorder=6 if style.ours else 5,
                    gid=f"{'scaled' if hollow else 'measured'}: {style.label}",
                    **style.marker_options(hollow),
                )
        for row in mine:
            if row["status"] == "out of memory":
                lost.setdefault(row["identities"], []).append(style)
    for identities, of in lost.items():
        for number, style in enumerate(of):
            _cross(axes, identities, number, min(len(of), CROSSES_A_ROW), style)
    return max((len(of) for of in lost.values()), default=0)


def _cross(axes: Axes, identities: int, number: int, columns: int, style: Style) -> None:
    """A cross in the band at the panel's top: side by side, row under row, over the number of identities."""
    line, column = divmod(number, CROSSES_A_ROW)
    across = (column - (columns - 1) / 2) * CROSS_STEP_POINTS / 72
    moved = ScaledTranslation(across, 0, axes.figure.dpi_scale_trans)
    axes.plot(
        [identities],
        [1 - BAND_ROW * (line + 0.55)],
        transform=blended_transform_factory(axes.transData, axes.transAxes) + moved,
        linestyle="none",
        marker="x",
        markersize=6.5 if style.ours else 5,
        markeredgewidth=2.4 if style.ours else 1.4,
        color=style.color,
        gid=f"out of memory: {style.label}",
        clip_on=False,
        zorder=7,
    )


def _finish_axes(panels: Any, rows: list[dict[str, Any]], quantity: Quantity, band_rows: int) -> None:
    """The same limits everywhere, with room for the band of crosses above the highest point, and ticks in words."""
    identities = sorted({row["identities"] for row in rows})
    values = [row[quantity.key] for row in rows if _has(row, quantity)]
    low, high = math.log(min(values)), math.log(max(values))
    pad = max(0.05 * (high - low), 0.15)
    low, high = low - pad, high + pad
    band = BAND_ROW * (band_rows + 0.2) if band_rows else 0.0
    top = low + (high - low) / (1 - band)
    side = 1.35
    for axes in panels.flat:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(identities[0] / side, identities[-1] * side)
        axes.set_ylim(math.exp(low), math.exp(top))
        axes.xaxis.set_major_locator(FixedLocator(identities))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: reports.count_text(value)))
        axes.yaxis.set_major_locator(FixedLocator(_ticks(math.exp(low), math.exp(high), quantity.ticks)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity.text(value)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.grid(True, color="0.9")
        axes.set_axisbelow(True)
        if band_rows:
            axes.axhspan(math.exp(high), math.exp(top), color="0.955", zorder=0)
            axes.text(
                0.012, 1 - band / 2, "out of memory", transform=axes.transAxes, va="center", color="0.35", fontsize=8
            )
    for axes in panels[-1]:
        axes.set_xlabel("identities")
    for line in panels:
        line[0].set_ylabel(quantity.label)


def _ticks(low: float, high: float, factors: tuple[float, ...]) -> list[float]:
    """Powers of the finest factor that leaves nine ticks or fewer; of the coarsest otherwise. 3.16 is written 3."""
    ticks: list[float] = []
    for factor in factors:
        first, last = math.ceil(math.log(low, factor) - 1e-9), math.floor(math.log(high, factor) + 1e-9)
        ticks = [factor**power for power in range(first, last + 1)]
        if 2 <= len(ticks) <= 9:
            break
    if not abs(math.log10(factors[0]) - 0.5) < 1e-9:
        return ticks
    return [float(f"{tick:.0e}") for tick in ticks]


def _legend(figure: Figure, styles: list[Style], scaled: bool, lost: bool) -> None:
    """Below the panels, where it hides nothing; the figure grows by its rows."""
    handles = [Line2D([], [], label=style.label, **style.options(), **style.marker_options(False)) for style in styles]
    grey = {"color": "0.35", "linestyle": "none"}
    if scaled:
        label = "hollow: measured on fewer, multiplied up"
        handles.append(Line2D([], [], marker="o", markerfacecolor="white", label=label, **grey))
    if lost:
        handles.append(Line2D([], [], marker="x", label="cross: out of memory", **grey))
    columns = min(LEGEND_COLUMNS, len(handles))
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_IN * math.ceil(len(handles) / columns))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small", handlelength=3.2
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="JSON of benchmarks/run.py")
    parser.add_argument("--prefix", type=Path, default=Path("docs/benchmark"), help="start of the files' names")
    given = parser.parse_args(arguments)
    try:
        paths = draw(reports.read("plots", given.report, (reports.HEADS,)), given.prefix)
    except ValueError as wrong:
        parser.exit(2, f"{wrong}\n")
    print("written:", *paths, sep="\n  ")


if __name__ == "__main__":
    main()
