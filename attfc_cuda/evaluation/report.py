"""Judging embeddings on verification sets: the table, the pictures and the JSON of `attfc verify` and `attfc demo`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from attfc_cuda._files import write_text
from attfc_cuda.evaluation import (
    SuiteEntry,
    TemplateSet,
    VerificationResult,
    VerificationSet,
    pair_similarity,
    plot_histogram,
    plot_roc,
    raw_pixel_embeddings,
    verify,
    verify_backbone,
    verify_templates,
)
from attfc_cuda.train import checkpoint
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.training import build_backbone

RAW_PIXELS = "raw-pixels"


class Judgement(NamedTuple):
    """One method on one set: its result, and the similarity and truth of every pair."""

    method: str
    data: str
    result: VerificationResult
    similarity: np.ndarray
    same: np.ndarray


def load_backbone(path: Path) -> tuple[nn.Module, str]:
    """The backbone of a checkpoint (a file, or a run folder's newest), on the CPU in eval mode, and its name.

    Raises CheckpointError naming a file that cannot be used.
    """
    state = checkpoint.open_any(path)
    config = TrainConfig.from_dict(state["config"])
    backbone = build_backbone(config)
    backbone.load_state_dict(state["backbone"])
    # channels_last is the layout convolution libraries compute in.
    return backbone.eval().to(memory_format=torch.channels_last), config.model.backbone


def judge(
    method: str,
    backbone: nn.Module | None,
    sets: Iterable[VerificationSet | TemplateSet],
    *,
    flip: bool = True,
    progress: bool = False,
) -> list[Judgement]:
    """Verify `backbone` (None: the raw pixels) on each set."""
    judgements = []
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
        judgements.append(Judgement(method, name, result, similarity, pairs.same))
    return judgements


def judge_suite(
    method: str, backbone: nn.Module | None, entries: Iterable[SuiteEntry], *, flip: bool = True, progress: bool = False
) -> tuple[list[Judgement], dict[str, str]]:
    """Verify on each set of a suite, one in memory at a time. Returns the judgements, and for each set that could not
    be read or judged the reason: one bad set does not cost the others."""
    judgements, failures = [], {}
    for entry in entries:
        try:
            data = entry.load()._replace(name=entry.name)
            judgements += judge(method, backbone, [data], flip=flip, progress=progress)
        except (ValueError, TypeError, OSError) as cause:
            failures[entry.name] = " ".join(str(cause).split())
    return judgements, failures


def write_suite(judgements: list[Judgement], failures: dict[str, str], path: Path) -> None:
    """All results of a suite in one JSON file: set -> numbers, or -> {"error": reason}."""
    results = {j.data: {"method": j.method, **json.loads(j.result.to_json())} for j in judgements}
    results |= {name: {"error": reason} for name, reason in failures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=2) + "\n")


def print_table(judgements: list[Judgement], title: str, console: Console | None = None) -> None:
    """One row a method and set. A TAR that the number of impostor pairs does not support is left empty."""
    rates = sorted({rate for j in judgements for rate in j.result.tar_at_far}, reverse=True)
    table = Table(title=title)
    tar_columns = [f"TAR @ FAR\n{rate:g}" for rate in rates]
    for column in ("pairs from", "method", "pairs", "accuracy", *tar_columns, "EER", "AUC"):
        table.add_column(column, justify="left" if column in ("pairs from", "method") else "right", no_wrap=True)
    for method, name, result, _, _ in judgements:
        tars = [f"{result.tar_at_far[rate]:.3f}" if rate in result.tar_at_far else "" for rate in rates]
        has_folds = result.accuracy is not None
        accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f} %" if has_folds else ""
        table.add_row(name, method, str(result.num_pairs), accuracy, *tars, f"{result.eer:.3f}", f"{result.auc:.3f}")
    (console or Console(width=max(120, Console().width))).print(table)


def write_files(judgements: list[Judgement], folder: Path) -> list[Path]:
    """Per set one ROC of all methods; per set and method a histogram and the numbers as JSON. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in dict.fromkeys(j.data for j in judgements):
        here = [j for j in judgements if j.data == name]
        roc = folder / f"{name}_roc.png"
        plot_roc({j.method: (j.similarity, j.same) for j in here}, roc, title=f"ROC, {name}")
        files.append(roc)
        for j in here:
            stem = f"{name}_{re.sub(r'[^a-zA-Z0-9]+', '-', j.method).strip('-')}"
            histogram, numbers = folder / f"{stem}_histogram.png", folder / f"{stem}.json"
            title = f"Similarity of pairs, {name}, {j.method}"
            plot_histogram(j.similarity, j.same, histogram, threshold=j.result.threshold, title=title)
            j.result.to_json(numbers)
            files += [histogram, numbers]
    return files
