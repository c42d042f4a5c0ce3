"""A method on verification sets: the pictures and the JSON of `attfc verify` and `attfc demo`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from attfc_cuda._deprecated import renamed_attributes
from attfc_cuda._files import write_text
from attfc_cuda.evaluation import (
    SuiteEntry,
    TemplateSet,
    VerificationResult,
    count_as_insightface,
    nearest_tar_at_far,
    plot_histogram,
    plot_roc,
)
from attfc_cuda.evaluation.fingerprint import PIXELS, embedding_kind, fingerprint
from attfc_cuda.evaluation.insightface_rules import FOLDS as INSIGHTFACE_FOLDS
from attfc_cuda.evaluation.measure import AnySet, Measured, measure_set
from attfc_cuda.evaluation.plots import RocBand

RAW_PIXELS = "raw-pixels"
INSIGHTFACE = "insightface"
BAND_POINTS = 60  # of the interval drawn behind a ROC
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
        similarity: of every pair, or the values that occur where they were counted.
        same: the truth of each.
        measured: all that was found.
        names: of the set's images, None: they have numbers only.
        embedding: what was compared, "mirrored sum", "plain" or "pixels": a threshold is for this kind only.
        network: fingerprint of the network's tensors, None: no network.
    """

    method: str
    data: str
    result: VerificationResult
    similarity: np.ndarray
    same: np.ndarray
    measured: Measured
    names: Sequence[str] | None = None
    embedding: str = PIXELS
    network: str | None = None


def evaluate_sets(
    method: str,
    backbone: nn.Module | None,
    sets: Iterable[AnySet],
    *,
    far: Sequence[float] | None = None,
    flip: bool = True,
    progress: bool = False,
) -> list[SetResult]:
    """Verify `backbone` (None: the raw pixels) on each set; `far` as for `measure_set`."""
    results = []
    kind, flip = embedding_kind(backbone, flip)
    network = None if backbone is None else fingerprint(backbone)
    for data in sets:
        found = measure_set(backbone, data, far=far, flip=flip, progress=progress)
        names = None if isinstance(data, TemplateSet) else data.names
        scores = found.scores
        results.append(
            SetResult(method, data.name, found.result, scores.similarity, scores.same, found, names, kind, network)
        )
    return results


def evaluate_suite(
    method: str,
    backbone: nn.Module | None,
    entries: Iterable[SuiteEntry],
    *,
    far: Sequence[float] | None = None,
    flip: bool = True,
    progress: bool = False,
) -> tuple[list[SetResult], dict[str, str]]:
    """Verify on each set of a suite, one in memory at a time: one bad set does not cost the others.

    Returns:
        The results, and for each set that could not be read or used the reason.
    """
    results, failures = [], {}
    for entry in entries:
        try:
            data = entry.load()._replace(name=entry.name)
            results += evaluate_sets(method, backbone, [data], far=far, flip=flip, progress=progress)
        except (ValueError, TypeError, OSError) as cause:
            failures[entry.name] = " ".join(str(cause).split())
    return results, failures


def write_suite(results: list[SetResult], failures: dict[str, str], path: Path) -> None:
    """All results of a suite in one JSON file: set -> numbers, or -> {"error": reason}."""
    numbers = {r.data: {"method": r.method, **numbers_of(r)} for r in results}
    numbers |= {name: {"error": reason} for name, reason in failures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(numbers, indent=2) + "\n")


def numbers_of(result: SetResult) -> dict[str, Any]:
    """The numbers of a result as JSON has them, with what its thresholds are for."""
    return {
        **json.loads(result.result.to_json()),
        "embedding": result.embedding,
        "network": result.network,
        "unreadable": result.measured.unreadable,
    }


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
        curves = {r.method: (r.similarity, r.same, r.measured.scores.pair_count) for r in here}
        bands = {r.method: band for r in here if (band := _roc_band(r)) is not None}
        plot_roc(curves, roc, title=f"ROC, {name}", bands=bands)
        files.append(roc)
        for r in here:
            histogram, numbers = folder / f"{_stem(r)}_histogram.png", folder / f"{_stem(r)}.json"
            title = f"Similarity of pairs, {name}, {r.method}"
            count = r.measured.scores.pair_count
            plot_histogram(r.similarity, r.same, histogram, r.result.threshold, title, count)
            write_text(numbers, json.dumps(numbers_of(r), indent=2) + "\n")
            files += [histogram, numbers]
    return files


def _roc_band(result: SetResult) -> RocBand | None:
    """The interval of a ROC from one false accept on; None without intervals."""
    bootstrap, impostors = result.measured.bootstrap, result.result.num_impostors
    if bootstrap is None or impostors < 2:
        return None
    far = np.geomspace(1 / impostors, 1, BAND_POINTS, endpoint=False)
    intervals = bootstrap.intervals(far.tolist())
    if intervals[0] is None:
        return None
    tars = np.array([tar for tar, _ in filter(None, intervals)])
    return RocBand(far, tars[:, 0], tars[:, 1])
