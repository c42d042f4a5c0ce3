"""The pictures of a run: ROC curves, genuine and impostor similarities, cosines to centres, the course of the training.

matplotlib draws them without a display (its Agg canvas, chosen per figure: a caller's own backend stays as it is).
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import auc, roc_curve

from attfc_cuda._check import error

# Okabe and Ito's palette, told apart by colour-blind readers; line styles tell the curves apart in grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
GENUINE_COLOR, IMPOSTOR_COLOR = COLORS[0], COLORS[1]
RESOLUTION_DPI = 150
# Size of legend text ("small", 8.3 points) in inches, on the safe side; a longer label is broken into lines.
CHARACTER_WIDTH_IN, ROW_HEIGHT_IN = 0.075, 0.2
LEGEND_CHARACTERS = 70
LEGEND_KEY_CHARACTERS = 6  # the line before a label and the gap after it
SMOOTHED_SHARE = 0.02  # a training curve is averaged over this share of its steps; the raw values show behind it


class RocBand(NamedTuple):
    """Where a ROC would lie with other people.

    Attributes:
        far: false accept rates [F], rising.
        low: true accept rates [F], the lower end.
        high: true accept rates [F], the upper end.
    """

    far: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plot_roc(
    results: Mapping[str, tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike | None]],
    path: str | Path,
    title: str = "Verification ROC",
    bands: Mapping[str, RocBand] | None = None,
) -> None:
    """Draw true accepts over false accepts (logarithmic) of one or several methods into one PNG.

    The false accept axis starts at one false accept of the method with the most impostor pairs: below it the curve
    would say nothing.

    Args:
        results: name -> (similarity [P], same [P] bool), in the order of the legend; a third entry, where it is not
            None, is how many pairs each value stands for.
        path: of the PNG.
        title: above the plot.
        bands: name -> 95 % interval of its curve, drawn behind it.

    Raises:
        ValueError: for no methods, or a method without both kinds of pairs or with values that are not finite.
    """
    if not results:
        raise error("plot_roc", "results", "hold at least one method", "none")
    figure, axes = _figure(6.4, 4.4)
    most_impostors = 0
    for number, (name, (similarity, same, *counts)) in enumerate(results.items()):
        genuine, impostor = _split("plot_roc", similarity, same)
        scores = np.concatenate([genuine, impostor])
        truth = np.repeat([True, False], [len(genuine), len(impostor)])
        count = np.concatenate(_counts(same, *counts))
        num_impostors = int(count[~truth].sum())
        most_impostors = max(most_impostors, num_impostors)
        false_accepts, true_accepts, _ = roc_curve(truth, scores, sample_weight=count, drop_intermediate=False)
        color = COLORS[number % len(COLORS)]
        axes.plot(
            np.maximum(false_accepts, 0.1 / num_impostors),
            true_accepts,
            drawstyle="steps-post",
            color=color,
            linestyle=LINE_STYLES[number // len(COLORS) % len(LINE_STYLES)],
            linewidth=1.8,
            label=f"{name} (AUC {auc(false_accepts, true_accepts):.3f})",
        )
        if bands and name in bands:
            band = bands[name]
            axes.fill_between(band.far, band.low, band.high, color=color, alpha=0.2, linewidth=0, step="post")
    if bands:
        axes.fill_between([], [], [], color="0.5", alpha=0.3, linewidth=0, label="95 % interval, over identities")
    lowest = min(1.0 / most_impostors, 0.1)
    chance = np.geomspace(lowest, 1.0, 200)
    axes.plot(chance, chance, color="0.6", linewidth=1.0, linestyle=(0, (2, 2)), label="chance")
    axes.set_xscale("log")
    axes.set_xlim(lowest, 1.0)
    axes.set_ylim(0.0, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate")
    axes.set_title(title)
    axes.grid(True, which="major", color="0.85")
    axes.grid(True, which="minor", axis="x", color="0.94", linewidth=0.6)
    _legend_below(figure, *axes.get_legend_handles_labels())
    _save(figure, path)


def plot_histogram(
    similarity: ArrayLike,
    same: ArrayLike,
    path: str | Path,
    threshold: float | None = None,
    title: str = "Similarity of pairs",
    count: ArrayLike | None = None,
) -> None:
    """Draw how the similarities of genuine and impostor pairs are distributed into one PNG.

    Heights are shares of each kind's pairs per bin, so that lists with more impostors than genuine pairs read alike.

    Args:
        similarity: [P] cosines.
        same: [P] bool.
        path: of the PNG.
        threshold: drawn as a line (VerificationResult.threshold) unless None.
        title: above the plot.
        count: [P], how many pairs each value stands for; None: one.

    Raises:
        ValueError: as for `plot_roc`.
    """
    genuine, impostor = _split("plot_histogram", similarity, same)
    figure, axes = _figure(6.4, 4.0)
    lowest, highest = min(genuine.min(), impostor.min()), max(genuine.max(), impostor.max())
    # A half width keeps the bins apart when every value is the same.
    margin = max(0.02 * (highest - lowest), 1e-6)
    bins = np.linspace(lowest - margin, highest + margin, 51).tolist()
    genuine_count, impostor_count = _counts(same, count)
    kinds = (
        (impostor, impostor_count, IMPOSTOR_COLOR, "impostor"),
        (genuine, genuine_count, GENUINE_COLOR, "genuine"),
    )
    for values, counts, color, name in kinds:
        pairs = int(counts.sum())
        axes.hist(
            values,
            bins=bins,
            weights=counts / pairs,
            histtype="stepfilled",
            facecolor=(color, 0.35),
            edgecolor=color,
            linewidth=1.5,
            label=f"{name} ({pairs:,} pairs, mean {np.average(values, weights=counts):.2f})",
        )
    if threshold is not None:
        axes.axvline(threshold, color="0.25", linewidth=1.2, linestyle="--", label=f"threshold {threshold:.3f}")
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(0.0, axes.get_ylim()[1] * 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("similarity (cosine)")
    axes.set_ylabel(f"share of pairs per bin of {bins[1] - bins[0]:.2g}")
    axes.set_title(title)
    axes.grid(True, color="0.9")
    axes.set_axisbelow(True)
    _legend_below(figure, *axes.get_legend_handles_labels())
    _save(figure, path)


def plot_cosines(
    positive: ArrayLike, negative: ArrayLike, age: ArrayLike, path: str | Path, title: str = "Cosines to class centres"
) -> None:
    """Draw cosines of training rows to class centres into one PNG: how they are distributed, and negatives by age.

    What to look for: fresh and stale negatives should lie alike. Fresh ones that lie apart mean that the network tells
    this step's images from older centres, whoever is on them.

    Args:
        positive: [P], to the own centre.
        negative: [N], to other classes' centres.
        age: [N], how many steps ago each of those came into the container; 0: in this step. The ages are put into at
            most 24 groups of whole steps.
        path: of the PNG.
        title: above the plot.

    Raises:
        ValueError: for other shapes, no positive, or values that are not finite.
    """
    positive, negative, age = (np.asarray(values, dtype=np.float64) for values in (positive, negative, age))
    for argument, values in (("positive", positive), ("negative", negative), ("age", age)):
        if values.ndim != 1 or not np.isfinite(values).all() or (argument == "positive" and values.size == 0):
            rule = "be one-dimensional and finite" + (" and not empty" if argument == "positive" else "")
            raise error("plot_cosines", argument, rule, f"shape {list(values.shape)}")
    if negative.shape != age.shape:
        raise error("plot_cosines", "age", f"have the negatives' shape {list(negative.shape)}", list(age.shape))
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    shares, by_age = figure.subplots(1, 2)
    kinds = {"own centre": positive, "other, fresh": negative[age == 0], "other, older": negative[age > 0]}
    bins = np.linspace(-1.0, 1.0, 41)
    for (name, values), color in zip(kinds.items(), COLORS, strict=False):
        if values.size:
            label = f"{name} (mean {values.mean():.2f})"
            weights = np.full(values.size, 1.0 / values.size)
            shares.hist(values, bins, weights=weights, histtype="step", color=color, linewidth=1.5, label=label)
    shares.yaxis.set_major_formatter(PercentFormatter(1.0))
    shares.set_xlim(-1.0, 1.0)
    shares.set_xlabel("cosine")
    shares.set_ylabel(f"share per bin of {bins[1] - bins[0]:.3g}")
    shares.legend(fontsize="small", framealpha=0.85)

    by_age.axhline(positive.mean(), color=COLORS[0], linewidth=1.2, linestyle="--", label="own centre, mean")
    if age.size:
        width = max(1, math.ceil((age.max() + 1) / 24))
        groups = np.unique(age // width)
        percentiles = np.array([np.percentile(negative[age // width == g], (1, 50, 99)) for g in groups])
        ages = groups * width
        by_age.fill_between(
            ages, percentiles[:, 0], percentiles[:, 2], color=COLORS[2], alpha=0.2, label="98 % of others"
        )
        by_age.plot(ages, percentiles[:, 1], color=COLORS[2], marker="o", markersize=3, label="others, median")
    by_age.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_age.set_ylim(-1.0, 1.0)
    by_age.set_xlabel("age of the centre (steps)")
    by_age.set_ylabel("cosine")
    by_age.legend(fontsize="small", framealpha=0.85)
    for axes in (shares, by_age):
        axes.grid(True, color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(title)
    _save(figure, path)


class _Panel(NamedTuple):
    """One panel of plot_training: its axis label and the quantities in it, each the key of a step record and a name."""

    label: str
    quantities: tuple[tuple[str, str], ...]


STEP_PANELS = (
    _Panel("loss", (("loss", "loss"),)),
    _Panel("cosine", (("positive_cosine", "to own centre (mean)"), ("t", "curriculum t"), ("container_top1", "top-1"))),
    _Panel("hard negatives", (("hard_fraction", "share of negatives"),)),
    _Panel("learning rate", (("lr", "learning rate"),)),
    _Panel("images / s", (("images_per_s", "images / s"),)),
)
SMOOTHED = ("loss", "positive_cosine", "container_top1", "hard_fraction", "images_per_s")  # noisy from step to step


def plot_training(logs: str | Path | Mapping[str, str | Path], path: str | Path, title: str = "Training") -> None:
    """Draw the course of one or several runs from their JSON-lines logs into one PNG.

    Read are the records
    `{"kind": "step", "step": int, "loss": float, "lr": ..., "positive_cosine": ..., "t": ..., "hard_fraction": ...,
    "container_top1": ..., "images_per_s": ...}` and
    `{"kind": "verify", "step": int, "accuracy": float, "tar_at_far": {"0.01": float}}`; other
    records are passed over, and so are absent, null or non-finite values. Noisy quantities are averaged over 2 % of the
    run; the raw values show faintly behind.

    Args:
        logs: one log, or name -> log to lay runs over each other.
        path: of the PNG.
        title: above the plot.

    Raises:
        ValueError: naming file and line for a line that is no JSON object (an unfinished last line is passed over: the
            run may still be writing it), or naming the file when it holds no step.
    """
    named = {"": logs} if isinstance(logs, (str, Path)) else dict(logs)
    if not named:
        raise error("plot_training", "logs", "hold at least one log", "none")
    runs = {name: _read_log(Path(log)) for name, log in named.items()}
    for name, records in runs.items():
        if not any(record.get("kind") == "step" for record in records):
            raise error(
                "plot_training", str(named[name]), "hold at least one record of kind 'step'", f"{len(records)} records"
            )
    figure = Figure(figsize=(12.0, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, verification_axes, *other_axes = figure.subplots(2, 3).flat
    _draw_verification(verification_axes, runs)
    for panel, axes in zip(STEP_PANELS, (loss_axes, *other_axes), strict=True):
        for number, records in enumerate(runs.values()):
            for rank, (key, label) in enumerate(panel.quantities):
                points = _values(records, "step", key)
                _draw_series(axes, points, len(runs), number, rank, label, smooth=key in SMOOTHED)
        _finish_panel(axes, panel.label)
    if len(runs) > 1:
        handles = [Line2D([], [], color=COLORS[number % len(COLORS)], linewidth=3.0) for number in range(len(runs))]
        _legend_below(figure, handles, list(runs))
    last_step = max(
        record["step"] for records in runs.values() for record in records if isinstance(record.get("step"), int)
    )
    for axes in figure.axes:
        axes.set_xlim(0, max(last_step, 1) * 1.02)
    figure.suptitle(title)
    _save(figure, path)


def _draw_verification(axes: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Accuracy and every TAR at FAR that some run recorded, the looser rates first; with several pair lists the
    accuracy of each, or the panel would be all lines."""
    verified = [record for records in runs.values() for record in records if record.get("kind") == "verify"]
    names = list(dict.fromkeys(record.get("name", "") for record in verified))
    rates = sorted({rate for record in verified for rate in record.get("tar_at_far") or {}}, key=float, reverse=True)
    for number, records in enumerate(runs.values()):
        if len(names) > 1:
            for rank, name in enumerate(names):
                points = _values([record for record in records if record.get("name", "") == name], "verify", "accuracy")
                _draw_series(axes, points, len(runs), number, rank, f"accuracy, {name}", marker="o")
            continue
        _draw_series(axes, _values(records, "verify", "accuracy"), len(runs), number, 0, "accuracy", marker="o")
        for rank, rate in enumerate(rates, start=1):
            points = _values(records, "verify", "tar_at_far", rate)
            _draw_series(axes, points, len(runs), number, rank, f"TAR at FAR {float(rate):g}", marker="s")
    axes.set_ylim(0.0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _finish_panel(axes, "verification")


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend under everything else, where it hides no curve: as many columns as the longest label leaves room for,
    and a figure made higher by its rows."""
    labels = [textwrap.fill(label, LEGEND_CHARACTERS) for label in labels]
    longest = max(len(line) for label in labels for line in label.splitlines())
    fitting = int(figure.get_figwidth() / ((longest + LEGEND_KEY_CHARACTERS) * CHARACTER_WIDTH_IN))
    columns = max(1, min(len(labels), fitting))
    rows = -(-len(labels) // columns) * max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + rows * ROW_HEIGHT_IN)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def _save(figure: Figure, path: str | Path) -> None:
    figure.savefig(path, dpi=RESOLUTION_DPI, format="png")


def _split(function: str, similarity: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The similarities of the genuine and of the impostor pairs."""
    similarity, same = np.asarray(similarity, dtype=np.float64), np.asarray(same)
    if same.dtype != bool or similarity.ndim != 1 or same.shape != similarity.shape:
        raise error(
            function,
            "same",
            f"be bool of the similarities' shape {list(similarity.shape)}",
            f"{same.dtype} {list(same.shape)}",
        )
    if not np.isfinite(similarity).all():
        raise error(function, "similarity", "be finite", f"{int((~np.isfinite(similarity)).sum())} values that are not")
    if same.all() or not same.any():
        raise error(function, "same", "hold genuine and impostor pairs", f"{int(same.sum())} genuine of {len(same)}")
    return similarity[same], similarity[~same]


def _counts(same: ArrayLike, count: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How many pairs each genuine and each impostor value stands for, as `_split` orders them."""
    same = np.asarray(same)
    counts = np.ones(len(same), np.int64) if count is None else np.asarray(count)
    return counts[same], counts[~same]


def _read_log(path: Path) -> list[dict[str, Any]]:
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            record = None
        if not isinstance(record, dict):
            raise error("plot_training", f"line {number} of {path}", "be a JSON object", repr(line[:60]))
        records.append(record)
    return records


def _values(records: Iterable[Mapping[str, Any]], kind: str, *keys: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of record[key][key...] over the records of a kind, where it is a finite number."""
    steps, values = [], []
    for record in records:
        if record.get("kind") != kind or not isinstance(record.get("step"), int):
            continue
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)) and np.isfinite(value):
            steps.append(record["step"])
            values.append(float(value))
    return np.array(steps), np.array(values)


def _draw_series(
    axes: Axes,
    points: tuple[np.ndarray, np.ndarray],
    num_runs: int,
    run: int,
    quantity: int,
    label: str,
    smooth: bool = False,
    marker: str = "",
) -> None:
    """One curve. With one run, colours tell a panel's quantities apart; with several, colours tell runs (named once
    below the panels) and line styles quantities (named in the panel's legend in grey)."""
    steps, values = points
    if len(steps) == 0:
        return
    color = COLORS[(quantity if num_runs == 1 else run) % len(COLORS)]
    line_style = LINE_STYLES[0 if num_runs == 1 else quantity % len(LINE_STYLES)]
    window = round(SMOOTHED_SHARE * len(values))
    if smooth and window > 1:
        axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
        # Averages over the window centred on each step, shorter at the ends, so that the curve spans the whole run.
        sums = np.concatenate([[0.0], np.cumsum(values)])
        first = np.maximum(np.arange(len(values)) - window // 2, 0)
        last = np.minimum(np.arange(len(values)) + window // 2 + 1, len(values))
        values = (sums[last] - sums[first]) / (last - first)
    axes.plot(steps, values, color=color, linestyle=line_style, linewidth=1.6, marker=marker, markersize=4, label=label)


def _finish_panel(axes: Axes, label: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(True, color="0.88")
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    if not handles:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color="0.5")
        axes.set_yticks([])
    elif len(by_label) > 1:
        # Above the panel, where it hides no curve.
        legend = axes.legend(
            by_label.values(), by_label.keys(), fontsize="small",
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False,
        )  # fmt: skip
        if len(handles) > len(by_label):
            for line in legend.get_lines():
                line.set_color("0.35")
