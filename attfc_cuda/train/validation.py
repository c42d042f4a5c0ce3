"""Verification during a run: on which sets, and what it logs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from attfc_cuda._deprecated import renamed_attributes
from attfc_cuda.data import FaceDataset, ProceduralFaces, build_dataset
from attfc_cuda.data.held_out import hold_out
from attfc_cuda.evaluation import VerificationResult
from attfc_cuda.evaluation.build import from_dataset, from_lists, split_list
from attfc_cuda.evaluation.measure import AnySet, measure_set
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.log import RunLog

__getattr__ = renamed_attributes(
    __name__,
    {
        "from_list": "evaluation.build.from_list",
        "lists_in": "evaluation.build.from_lists",
        "FOLDS": "evaluation.build.FOLDS",
    },
)


def parted(config: TrainConfig, dataset: FaceDataset) -> tuple[FaceDataset, FaceDataset | None]:
    """What a run trains on, and the identities that it holds out, if any.

    Args:
        config: Of the run.
        dataset: All of its faces.
    """
    given = config.verify.verify_pairs or config.verify.verify_data
    if given or isinstance(dataset, ProceduralFaces):
        return dataset, None
    return hold_out(dataset, config.verify.hold_out)


def verification_sets(config: TrainConfig, dataset: FaceDataset, held_out: FaceDataset | None = None) -> list[AnySet]:
    """What a run verifies on: its pair lists, its other faces, or else the identities that it holds out, and for drawn
    faces identities that are drawn for it.

    Args:
        config: Of the run.
        dataset: The faces it trains on.
        held_out: As from `parted`.

    Raises:
        ValueError: Naming a list or a data set that cannot be used; OSError for one that is not there.
    """
    options, size = config.verify, config.dataset.image_size
    sets: list[AnySet] = []
    if options.verify_pairs:
        root = options.verify_root or Path(split_list(config.dataset.data)[0]).parent
        sets += from_lists(options.verify_pairs, root, size)
    if options.verify_data:
        held_out = build_dataset(options.verify_data, size)
    elif not sets and isinstance(dataset, ProceduralFaces):
        first, count = dataset.first_identity + len(dataset.identities), max(80, len(dataset.identities) // 10)
        held_out = build_dataset(f"procedural:{count}x8@{first}", size)
    if held_out is not None:
        sets.append(from_dataset("held-out", held_out, options.verify_num_pairs))
    return sets


def verify_sets(
    backbone: nn.Module, sets: list[AnySet], step: int, log: RunLog, device: torch.device
) -> dict[str, VerificationResult]:
    """Verify on every set and log the results.

    Args:
        backbone: The network, on `device`; its mode is left as it was.
        sets: As `verification_sets` makes them.
        step: Steps done, for the log.
        log: Takes the results. A set that gives none (all embeddings are one) is only noted.
        device: Where the network is.

    Returns:
        The results by the name of the set.
    """
    results = {}
    for data in sets:
        try:
            found = measure_set(backbone, data, device=device)
        except ValueError as cause:
            log.note(f"verification on {data.name} left out: {cause}", step=step)
            continue
        if found.unreadable:
            log.note(f"verification on {data.name}: {found.unreadable} images cannot be read", step=step)
        results[data.name] = found.result
        log.verification(step, data.name, json.loads(found.result.to_json()))
    return results
