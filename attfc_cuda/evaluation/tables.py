"""The tables of `attfc verify` and `attfc demo`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from attfc_cuda.evaluation.insightface_rules import FOLDS as INSIGHTFACE_FOLDS
from attfc_cuda.evaluation.intervals import Interval
from attfc_cuda.evaluation.report import SetResult, insightface_counts
from attfc_cuda.evaluation.verification import FEW_FALSE_ACCEPTS, supports_rate


def print_table(
    results: list[SetResult], title: str, far: tuple[float, ...] | None = None, console: Console | None = None
) -> None:
    """One row a method and set, another table of thresholds, and below them what a reader must know.

    Args:
        results: To show.
        title: Of the first table.
        far: The rates that were asked for; one that a set cannot support is said.
        console: To print on.
    """
    console = console or Console(width=max(120, Console().width))
    rates = sorted({rate for r in results for rate in r.result.at_far}, reverse=True)
    numbers = _table(title, "pairs", "accuracy", *(f"TAR @ FAR\n{rate:g}" for rate in rates), "EER", "AUC")
    thresholds = _table(
        "Thresholds: the same person from this similarity on", "embedding", *(f"at FAR {rate:g}" for rate in rates)
    )
    for r in results:
        result = r.result
        tars, cuts = [], []
        for rate in rates:
            point = result.at_far.get(rate)
            mark = "*" if point is not None and point.few_impostors else ""
            tars.append("" if point is None else f"{point.tar:.3f}{mark}{_range(point.tar_interval)}")
            cuts.append("" if point is None else f"{point.threshold:.4f}{mark}{_range(point.threshold_interval)}")
        has_folds = result.accuracy is not None
        accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f} %" if has_folds else ""
        numbers.add_row(
            r.data, r.method, str(result.num_pairs), accuracy, *tars, f"{result.eer:.3f}", f"{result.auc:.3f}"
        )
        thresholds.add_row(r.data, r.method, r.embedding, *cuts)
    console.print(numbers)
    if rates:
        console.print(thresholds)
    for line in _notes(results, far):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_insightface_table(results: list[SetResult], console: Console | None = None) -> None:
    """The same scores as InsightFace counts them, see `insightface_rules`; of templates, which have no folds, the
    TAR at the nearest point of the ROC. In brackets the false accept rate that a TAR really belongs to."""
    table = Table(title="As InsightFace counts: for comparing with published numbers")
    for column in ("pairs from", "method", "accuracy", "TAR @ FAR (real FAR)"):
        table.add_column(column, justify="right" if column == "accuracy" else "left", no_wrap=True)
    for r in results:
        counts = insightface_counts(r)
        rates = [f"{tar:.4f} @ {rate} ({far:.2g})" for rate, (tar, far) in counts["tar_at_far"].items()]
        accuracy = ""
        if counts["accuracy"] is not None:
            accuracy = f"{100 * counts['accuracy']:.2f} ± {100 * counts['accuracy_std']:.2f} %"
        too_few = f"fewer pairs than its {INSIGHTFACE_FOLDS} folds"
        table.add_row(r.data, r.method, accuracy, ", ".join(rates) or too_few)
    (console or Console(width=max(120, Console().width))).print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in ("pairs from", "method", *columns):
        justify = "left" if column in ("pairs from", "method", "embedding") else "right"
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"\n{interval.low:.3f} to {interval.high:.3f}"


def _notes(results: list[SetResult], far: tuple[float, ...] | None) -> list[str]:
    notes = []
    if any(point.tar_interval for r in results for point in r.result.at_far.values()):
        notes.append("Below each number: its 95 % interval, by drawing identities anew.")
    if any(r.result.all_pairs for r in results):
        notes.append("Of all pairs of a data set the accuracy weighs both kinds the same.")
    if any(point.few_impostors for r in results for point in r.result.at_far.values()):
        notes.append(
            f"* fewer than {FEW_FALSE_ACCEPTS} / FAR impostor pairs: the threshold rests on fewer than "
            f"{FEW_FALSE_ACCEPTS} of them; read the interval."
        )
    for name, impostors in dict.fromkeys((r.data, r.result.num_impostors) for r in results):
        for rate in far or ():
            if not supports_rate(impostors, rate):
                needed = f"{1 / rate:,.0f} impostor pairs, there are {impostors:,}"
                notes.append(f"{name}: no TAR at FAR {rate:g}, which needs at least {needed}.")
    for name, unreadable in dict.fromkeys((r.data, r.measured.unreadable) for r in results):
        if unreadable:
            notes.append(f"{name}: {unreadable} images cannot be read and were left out.")
    resolutions = {r.result.resolution for r in results} - {0.0}
    if resolutions:
        notes.append(f"Impostor scores were counted in bins of {max(resolutions):.2g}.")
    return notes
