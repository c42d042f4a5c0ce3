"""A method on verification sets: the table, the pictures and the JSON of `attfc verify` and `attfc demo`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

from attfc_cuda._deprecated import renamed_attributes
from attfc_cuda._files import write_text
from attfc_cuda.evaluation import (
    SuiteEntry,
    TemplateSet,
    VerificationResult,
    VerificationSet,
    count_as_insightface,
    nearest_tar_at_far,
    pair_similarity,
    plot_histogram,
    plot_roc,
    raw_pixel_embeddings,
    verify,
    verify_backbone,
    verify_templates,
)
from attfc_cuda.evaluation.insightface_rules import FOLDS as INSIGHTFACE_FOLDS

RAW_PIXELS = "raw-pixels"
INSIGHTFACE = "insightface"
__getattr__ = renamed_attributes(
    __name__,
    {
        "Judgement": "evaluation.report.SetResult",
        "judge": "evaluation.report.evaluate_sets",
        "judge_suite": "evaluation.report.evaluate_suite",
        "load_backbone": "train.load_backbone",
    },
)


class SetResult(NamedTuple):
    """One method on one set.

    Attributes:
        method: its name.
        data: the set's name.
        result: what was measured.
        similarity: of every pair.
        same: the truth of every pair.
    """

    method: str
    data: str
    result: VerificationResult
    similarity: np.ndarray
    same: np.ndarray


def evaluate_sets(
    method: str,
    backbone: nn.Module | None,
    sets: Iterable[VerificationSet | TemplateSet],
    *,
    flip: bool = True,
    progress: bool = False,
) -> list[SetResult]:
    """Verify `backbone` (None: the raw pixels) on each set."""
    results = []
    for data in sets:
        name, images, pairs = data.name, data.images, data.pairs
        if isinstance(data, TemplateSet):
            result, similarity = verify_templates(backbone, data, flip=flip, progress=progress)
        elif backbone is None:
            pixels = raw_pixel_embeddings(images)
            similarity = pair_similarity(pixels, pairs.a, pairs.b)
            result = verify(similarity, pairs.same, pairs.fold)
        else:
            result, similarity = verify_backbone(backbone, pairs, images, flip=flip, batch_size=256, progress=progress)
        results.append(SetResult(method, name, result, similarity, pairs.same))
    return results


def evaluate_suite(
    method: str, backbone: nn.Module | None, entries: Iterable[SuiteEntry], *, flip: bool = True, progress: bool = False
) -> tuple[list[SetResult], dict[str, str]]:
    """Verify on each set of a suite, one in memory at a time: one bad set does not cost the others.

    Returns:
        The results, and for each set that could not be read or used the reason.
    """
    results, failures = [], {}
    for entry in entries:
        try:
            data = entry.load()._replace(name=entry.name)
            results += evaluate_sets(method, backbone, [data], flip=flip, progress=progress)
        except (ValueError, TypeError, OSError) as cause:
            failures[entry.name] = " ".join(str(cause).split())
    return results, failures


def write_suite(results: list[SetResult], failures: dict[str, str], path: Path) -> None:
    """All results of a suite in one JSON file: set -> numbers, or -> {"error": reason}."""
    numbers = {r.data: {"method": r.method, **json.loads(r.result.to_json())} for r in results}
    numbers |= {name: {"error": reason} for name, reason in failures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(numbers, indent=2) + "\n")


def print_table(results: list[SetResult], title: str, console: Console | None = None) -> None:
    """One row a method and set. A TAR that the number of impostor pairs does not support is left empty."""
    rates = sorted({rate for r in results for rate in r.result.tar_at_far}, reverse=True)
    table = Table(title=title)
    tar_columns = [f"TAR @ FAR\n{rate:g}" for rate in rates]
    for column in ("pairs from", "method", "pairs", "accuracy", *tar_columns, "EER", "AUC"):
        table.add_column(column, justify="left" if column in ("pairs from", "method") else "right", no_wrap=True)
    for method, name, result, _, _ in results:
        tars = [f"{result.tar_at_far[rate]:.3f}" if rate in result.tar_at_far else "" for rate in rates]
        has_folds = result.accuracy is not None
        accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f} %" if has_folds else ""
        table.add_row(name, method, str(result.num_pairs), accuracy, *tars, f"{result.eer:.3f}", f"{result.auc:.3f}")
    (console or Console(width=max(120, Console().width))).print(table)


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


def insightface_counts(result: SetResult) -> dict[str, Any]:
    """The scores of one result as InsightFace counts them.

    Returns:
        accuracy and accuracy_std (None without folds, or with fewer pairs than its ten folds), tar_at_far: named rate
        -> [TAR, the rate it really has].
    """
    if result.result.accuracy is None:
        nearest = nearest_tar_at_far(result.similarity, result.same, list(result.result.tar_at_far))
        return {"accuracy": None, "accuracy_std": None, "tar_at_far": {f"{f:g}": list(t) for f, t in nearest.items()}}
    if len(result.same) < INSIGHTFACE_FOLDS:
        return {"accuracy": None, "accuracy_std": None, "tar_at_far": {}}
    counted = count_as_insightface(result.similarity, result.same)
    rates = {f"{counted.named_far:g}": [counted.tar, counted.far]}
    return {"accuracy": counted.accuracy, "accuracy_std": counted.accuracy_std, "tar_at_far": rates}


def write_insightface(results: list[SetResult], folder: Path) -> list[Path]:
    """`insightface_counts` of each set and method as JSON.

    Returns:
        The files.
    """
    files = []
    for r in results:
        path = folder / f"{_stem(r)}_as_insightface.json"
        write_text(path, json.dumps(insightface_counts(r), indent=2) + "\n")
        files.append(path)
    return files


def _stem(result: SetResult) -> str:
    """The name of a set's and method's files."""
    return f"{result.data}_{re.sub(r'[^a-zA-Z0-9]+', '-', result.method).strip('-')}"


def write_files(results: list[SetResult], folder: Path) -> list[Path]:
    """Per set one ROC of all methods; per set and method a histogram and the numbers as JSON.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in dict.fromkeys(r.data for r in results):
        here = [r for r in results if r.data == name]
        roc = folder / f"{name}_roc.png"
        plot_roc({r.method: (r.similarity, r.same) for r in here}, roc, title=f"ROC, {name}")
        files.append(roc)
        for r in here:
            histogram, numbers = folder / f"{_stem(r)}_histogram.png", folder / f"{_stem(r)}.json"
            title = f"Similarity of pairs, {name}, {r.method}"
            plot_histogram(r.similarity, r.same, histogram, threshold=r.result.threshold, title=title)
            r.result.to_json(numbers)
            files += [histogram, numbers]
    return files
