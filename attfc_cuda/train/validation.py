"""Verification sets: pairs of faces with their images in memory, for use during and after a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from attfc_cuda._check import error
from attfc_cuda.data import FaceDataset, build_dataset, read_image
from attfc_cuda.evaluation import VerificationResult, VerificationSet, make_pairs, read_pairs, verify_backbone
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.log import RunLog

FOLDS = 10


def from_list(path: Path, root: Path, image_size: int) -> VerificationSet:
    """The pairs of a list, its images read from below `root` and resized."""
    files, pairs = read_pairs(path, root).indices()
    return VerificationSet(path.stem, torch.stack([read_image(file, image_size) for file in files]), pairs)


def from_dataset(name: str, dataset: FaceDataset, num_pairs: int, seed: int = 0) -> VerificationSet:
    """Pairs drawn from a data set in ten folds."""
    pairs = make_pairs(dataset, num_pairs, FOLDS, seed)
    used, position = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
    images = torch.stack([dataset[i] for i in used.tolist()])
    return VerificationSet(name, images, pairs._replace(a=position[: len(pairs.a)], b=position[len(pairs.a) :]))


def split_list(text: str | None) -> list[str]:
    """`a, b` -> ["a", "b"]; None or nothing -> []."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def lists_in(text: str, root: Path | None, image_size: int) -> list[VerificationSet]:
    """The sets of several pair lists, separated by commas; `root` None: each list's own folder.

    Raises FileNotFoundError naming a list or an image that is not there, ValueError for two lists of one name.
    """
    paths = [Path(part) for part in split_list(text)]
    for path in paths:
        if not path.is_file():
            raise error("verify", "pairs", "name existing pair lists", path, kind=FileNotFoundError)
    if len({path.stem for path in paths}) < len(paths):
        raise error("verify", "pairs", "name lists with different file names", text, "results are named after them")
    return [from_list(path, root or path.parent, image_size) for path in paths]


def verification_sets(config: TrainConfig, dataset: FaceDataset) -> list[VerificationSet]:
    """What a run verifies on: its pair lists, its held-out faces, and for drawn faces other identities by default."""
    options, size = config.verify, config.dataset.image_size
    sets = []
    if options.verify_pairs:
        root = options.verify_root or Path(split_list(config.dataset.data)[0]).parent
        sets += lists_in(options.verify_pairs, root, size)
    if options.verify_data:
        held_out = build_dataset(options.verify_data, size)
        sets.append(from_dataset("held-out", held_out, options.verify_num_pairs))
    elif not sets and config.dataset.data.startswith("procedural"):
        first, count = dataset.first_identity + len(dataset.identities), max(80, len(dataset.identities) // 10)
        held_out = build_dataset(f"procedural:{count}x8@{first}", size)
        sets.append(from_dataset("held-out", held_out, options.verify_num_pairs))
    return sets


def verify_all(
    backbone: nn.Module, sets: list[VerificationSet], step: int, log: RunLog, device: torch.device
) -> dict[str, VerificationResult]:
    """Verify on every set and log the results. A set that cannot be judged (a collapsed embedding) is only noted."""
    results = {}
    for name, images, pairs in sets:
        try:
            result, _ = verify_backbone(backbone, pairs, images, batch_size=256, device=device)
        except ValueError as cause:
            log.note(f"verification on {name} left out: {cause}", step=step)
            continue
        results[name] = result
        log.verification(step, name, json.loads(result.to_json()))
    return results
