"""`attfc verify`: how well a network tells whether two faces are the same person."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from attfc_cuda._error import error

if TYPE_CHECKING:
    from torch import nn

    from attfc_cuda.evaluation.report import SetResult

RAW_PIXELS = "raw-pixels"


@dataclass
class Command:
    """Verify a backbone on pairs of faces: 10-fold accuracy, TAR at FAR, ROC and histogram."""

    checkpoint: Path | None = None
    """Checkpoint file, or a run folder (its newest checkpoint)."""
    backbone: str | None = None
    """`raw-pixels`: compare the pixels themselves, the floor for any network; None: the network in `checkpoint`."""
    pairs: str | None = None
    """Pair lists (tab-separated: path_a, path_b, same, fold; or LFW's pairs.txt), separated by commas."""
    root: Path | None = None
    """Folder the paths in `pairs` start from; None: the folder of each list."""
    suite: Path | None = None
    """Folder of verification sets, each of which is used: InsightFace's .bin files, pair lists, IJB folders."""
    data: str | None = None
    """Faces to make pairs from instead of a list: folders, or procedural:IDENTITIESxIMAGES@FIRST."""
    num_pairs: int = 6000
    """Pairs made from `data`, half of them of the same identity."""
    image_size: int | None = None
    """Side in pixels for raw-pixels; None: that of `checkpoint`, else 112."""
    flip: bool = True
    """Add the embedding of the mirrored image before comparing."""
    count_as: Annotated[Literal["insightface"] | None, tyro.conf.arg(name="as")] = None
    """insightface: beside our numbers those that InsightFace's evaluation would count on the same scores."""
    out: Path | None = None
    """Folder for the PNGs and JSONs; None: `verify` in the run folder, else runs/verify."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads; None: PyTorch's own choice."""


def run(command: Command) -> int:
    """Verify, print the table and write the files; exit code 0, or 2 where a set of a suite could not be used."""
    _check(command)
    import torch

    from attfc_cuda.data import build_dataset
    from attfc_cuda.evaluation import report
    from attfc_cuda.evaluation.build import from_dataset, from_lists
    from attfc_cuda.train import load_backbone
    from attfc_cuda.train.training import pick_device

    if command.threads:
        torch.set_num_threads(command.threads)
    size, backbone, method = command.image_size or 112, None, RAW_PIXELS
    if command.checkpoint is not None:
        network, name = load_backbone(command.checkpoint)
        own_size: Any = network.image_size
        size = own_size if command.image_size is None or command.backbone is None else command.image_size
        if command.backbone is None:
            backbone, method = network.to(pick_device(command.device)), name
    if command.suite is not None:
        return _verify_suite(command, method, backbone, size)
    if command.pairs is not None:
        sets = from_lists(command.pairs, command.root, size)
    else:
        sets = [from_dataset("held-out", build_dataset(command.data, size), command.num_pairs)]
    results = report.evaluate_sets(method, backbone, sets, flip=command.flip, progress=sys.stdout.isatty())
    report.print_table(results, f"Verification of {command.checkpoint or method}")
    print("written:", ", ".join(map(str, _write(command, results))))
    return 0


def _write(command: Command, results: list[SetResult]) -> list[Path]:
    """Write everything about the results, print what else is asked for; the files."""
    from attfc_cuda.evaluation import report

    files = report.write_files(results, _out_folder(command))
    if command.count_as == report.INSIGHTFACE and results:
        report.print_insightface_table(results)
        files += report.write_insightface(results, _out_folder(command))
    return files


def _check(command: Command) -> None:
    if command.backbone not in (None, RAW_PIXELS):
        remedy = "the network is the one in the checkpoint"
        raise error("verify", "backbone", f"be {RAW_PIXELS} or left out", repr(command.backbone), remedy)
    if command.checkpoint is None and command.backbone is None:
        raise error("verify", "checkpoint", "be given", None, f"or use --backbone {RAW_PIXELS}")
    if [command.pairs, command.data, command.suite].count(None) != 2:
        got = f"pairs {command.pairs}, data {command.data}, suite {command.suite}"
        raise error("verify", "pairs", "be given, or data, or suite, and only one of them", got)


def _verify_suite(command: Command, method: str, backbone: nn.Module | None, size: int) -> int:
    from attfc_cuda.evaluation import find_suite, report

    entries = find_suite(command.suite, size, command.root)
    out, progress = _out_folder(command), sys.stdout.isatty()
    results, failures = report.evaluate_suite(method, backbone, entries, flip=command.flip, progress=progress)
    if results:
        report.print_table(results, f"Verification of {command.checkpoint or method} on {command.suite}")
    report.write_suite(results, failures, out / "suite.json")
    print("written:", ", ".join(map(str, [out / "suite.json", *_write(command, results)])))
    for name, reason in failures.items():
        print(f"attfc: {name} left out: {reason}", file=sys.stderr)
    return 2 if failures else 0


def _out_folder(command: Command) -> Path:
    if command.out is not None:
        return command.out
    if command.checkpoint is None:
        return Path("runs/verify")
    folder = command.checkpoint if command.checkpoint.is_dir() else command.checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "verify"
