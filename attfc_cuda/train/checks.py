"""What can be wrong with a run's settings, found before any data are read: at 10^5 identities that takes a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attfc_cuda._check import error
from attfc_cuda.data import FaceDataset, build_dataset
from attfc_cuda.data.sources.kinds import find_sources, is_pattern, split_sources
from attfc_cuda.evaluation.build import split_list
from attfc_cuda.heads import AttFC, FullyConnected, PartialFC
from attfc_cuda.ops import backend as _backend
from attfc_cuda.train.backbone import build_backbone
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.objective import DTYPES, build_margin, container_dtype
from attfc_cuda.train.parts import check_parts


def check_settings(config: TrainConfig, device: torch.device, processes: int = 1) -> None:
    """Look at every name, option, path and number of a config.

    Args:
        config: Of the run.
        device: That it will run on.
        processes: That share a batch.

    Raises:
        ValueError: Naming the setting; TypeError, OSError and RuntimeError where the part that it belongs to does so.
    """
    config.check()
    with torch.device("meta"):  # no memory, no random numbers
        backbone = build_backbone(config)
    _check_batch(config, backbone, processes)
    _check_head(config, device)
    _check_paths(config)


def check_dataset(config: TrainConfig, dataset: FaceDataset) -> None:
    """Raise ValueError for faces that nothing can be learned from."""
    if len(dataset.identities) < 2:
        remedy = "a folder of faces holds a folder for each identity"
        raise error("train", "data", "hold at least 2 identities", f"1 in {config.dataset.data}", remedy)


def _check_batch(config: TrainConfig, backbone: nn.Module, processes: int) -> None:
    rows = config.dataset.batch_size // processes
    share = "" if processes == 1 else f" in each of {processes} processes"
    if rows < 1:
        raise error("train", "batch_size", f"hold at least a probe{share}", config.dataset.batch_size)
    normalised = any(isinstance(module, _BatchNorm) for module in backbone.modules())
    check_parts("train", config.optim.accumulate, rows, share)
    if not normalised:
        return
    if rows < 2:
        rule = f"be at least {2 * processes}: BatchNorm needs two probes{share}"
        remedy = "raise --batch-size, or take a network without it, such as --backbone-options norm=group"
        raise error("train", "batch_size", rule, config.dataset.batch_size, remedy)
    together, gallery_size = config.dataset.probes_per_identity, config.dataset.gallery_size
    if config.head.head == "attfc" and gallery_size == 1 and rows <= together:
        rule = f"be below the {rows} probes of a batch{share} with a single gallery image, of which BatchNorm needs two"
        remedy = "raise --batch-size or --gallery-size"
        raise error("train", "probes_per_identity", rule, together, remedy)


def _check_head(config: TrainConfig, device: torch.device) -> None:
    """Build a head of two classes, which refuses what the run's would."""
    options, dim = config.head, config.model.embedding_dim
    rows = config.dataset.batch_size
    shared: dict[str, Any] = {"margin": build_margin(config), "backend": options.backend}
    shared["grad_tolerance"] = options.grad_tolerance
    dtype = torch.float32
    if options.head == "attfc":
        if options.capacity is not None and options.capacity < rows:
            rule = f"hold a whole batch, {rows} centres ({rows} probes)"
            remedy = "raise --capacity, or lower --batch-size or --negatives-per-batch"
            raise error("train", "capacity", rule, options.capacity, remedy)
        dtype = container_dtype(config)
        kept = {name: getattr(options, name) for name in ("policy", "enqueue", "temperature", "center_memory")}
        AttFC(dim, 2, num_classes=2, dtype=dtype, class_code=options.class_code, **kept, **shared)
    elif options.head == "partial_fc":
        PartialFC(dim, 2, sample_rate=options.sample_rate, **shared)
    else:
        FullyConnected(dim, 2, **shared)
    sample = torch.zeros(2, dim, dtype=DTYPES[config.optim.precision] if dtype == torch.float32 else dtype)
    _backend.choose(options.backend, sample.to(device), sample.to(device))


def _check_paths(config: TrainConfig) -> None:
    d, v = config.dataset, config.verify
    for spec in filter(None, (d.data, v.verify_data)):
        _check_sources(spec)
    for path in map(Path, split_list(d.identities)):
        if not path.is_file():
            raise error("train", "identities", "name readable text files", path, kind=FileNotFoundError)
    for path in map(Path, split_list(v.verify_pairs)):
        if not path.is_file():
            raise error("verify", "pairs", "name existing pair lists", path, kind=FileNotFoundError)
    if v.verify_root is not None and not v.verify_root.is_dir():
        raise error("train", "verify_root", "be a folder", v.verify_root, kind=FileNotFoundError)


def _check_sources(spec: str) -> None:
    if spec.partition(":")[0] == "procedural":
        build_dataset(spec)  # draws nothing yet
        return
    for source in split_sources(spec):
        if is_pattern(source):
            find_sources(source)
        elif not Path(source).exists():
            build_dataset(source)  # the reader that would take it words the error
