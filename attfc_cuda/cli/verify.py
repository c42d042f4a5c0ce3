"""`attfc verify`: how well a network tells whether two faces are the same person."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from attfc_cuda._error import error
from attfc_cuda.cli._network import chosen, read, run_folder

if TYPE_CHECKING:
    from torch import nn

    from attfc_cuda.evaluation.measure import AnySet
    from attfc_cuda.evaluation.report import SetResult

RAW_PIXELS = "raw-pixels"
INSIGHTFACE_PAIRS = 6000  # as many as its lists hold
SCORE_FILES = (".npz", ".csv")


@dataclass
class Command:
    """Verify a backbone on pairs of faces: accuracy over folds, TAR and threshold at each FAR with 95 % intervals
    (identities drawn anew), ROC and histogram."""

    checkpoint: Path | None = None
    """Checkpoint file, a run folder (its newest checkpoint), or a .safetensors or .onnx file of `attfc export`; the
    metadata of the last must say that it takes RGB in [-1, 1]."""
    best: bool = False
    """Of a run folder: the network with the best verification during the run (best.pt)."""
    backbone: str | None = None
    """`raw-pixels`: compare the pixels themselves, the floor for any network; None: the network in `checkpoint`."""
    pairs: str | None = None
    """Pair lists (path_a, path_b, same and perhaps fold, between tabs, commas or white space; or LFW's pairs.txt) and
    InsightFace's .bin files, separated by commas."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """A missing or damaged image of a pair list: stop and name it, or leave out its pairs and count them."""
    root: Path | None = None
    """Folder the paths in `pairs` start from; None: the folder of each list."""
    suite: Path | None = None
    """Folder of verification sets, each of which is used: InsightFace's .bin files, pair lists, IJB folders."""
    data: str | None = None
    """Faces by identity instead of a list, of which every pair is judged: folders, or
    procedural:IDENTITIESxIMAGES@FIRST[:hard]."""
    num_pairs: int | None = None
    """Draw this many pairs from `data`, half of them of the same identity; None: all pairs (with `--as`, whose rules
    need a list: 6000)."""
    far: str | None = None
    """False accept rates separated by commas, such as 1e-5,1e-6; None: 1e-2,1e-3,1e-4, of templates 1e-1 to 1e-6."""
    scores: Path | None = None
    """Also write the score of every pair into this .npz or .csv file (of several sets: one file each, named after
    it)."""
    image_size: int | None = None
    """Side in pixels for raw-pixels; None: that of `checkpoint`, else 112."""
    flip: bool = True
    """Add the embedding of the mirrored image before comparing; an ONNX file whose graph does this, or ends in unit
    length, is taken as it is."""
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
    from attfc_cuda.evaluation import report, tables
    from attfc_cuda.evaluation.build import from_dataset, from_lists
    from attfc_cuda.train.training import pick_device

    if command.threads:
        torch.set_num_threads(command.threads)
    size, backbone, method = command.image_size or 112, None, RAW_PIXELS
    if command.checkpoint is not None:
        network, name = read(chosen(command.checkpoint, command.best))
        own_size: Any = network.image_size
        size = own_size if command.image_size is None or command.backbone is None else command.image_size
        if command.backbone is None:
            backbone, method = network.to(pick_device(command.device)), name
    if command.suite is not None:
        return _verify_suite(command, method, backbone, size)
    sets: list[AnySet] = []
    if command.pairs is not None:
        sets += from_lists(command.pairs, command.root, size, command.on_bad_image)
    else:
        drawn = command.num_pairs or (INSIGHTFACE_PAIRS if command.count_as else None)
        sets.append(from_dataset("held-out", build_dataset(command.data, size), drawn))
    far = _rates(command.far)
    results = report.evaluate_sets(method, backbone, sets, far=far, flip=command.flip, progress=sys.stdout.isatty())
    tables.print_table(results, f"Verification of {command.checkpoint or method}", far)
    print("written:", ", ".join(map(str, _write(command, results))))
    return 0


def _write(command: Command, results: list[SetResult]) -> list[Path]:
    """Write everything about the results, print what else is asked for; the files."""
    from attfc_cuda.evaluation import report, score_files, tables

    files = report.write_files(results, _out_folder(command))
    if command.count_as == report.INSIGHTFACE and results:
        tables.print_insightface_table(results)
        files += report.write_insightface(results, _out_folder(command))
    if command.scores is not None:
        files += score_files.write_scores(results, command.scores)
    return files


def _rates(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    rates = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not 0 < rate < 1:
            rule = "be numbers between 0 and 1, separated by commas"
            raise error("verify", "far", rule, repr(part.strip()))
        rates.append(rate)
    return tuple(rates)


def _check(command: Command) -> None:
    if command.backbone not in (None, RAW_PIXELS):
        remedy = "the network is the one in the checkpoint"
        raise error("verify", "backbone", f"be {RAW_PIXELS} or left out", repr(command.backbone), remedy)
    if command.checkpoint is None and command.backbone is None:
        raise error("verify", "checkpoint", "be given", None, f"or use --backbone {RAW_PIXELS}")
    if [command.pairs, command.data, command.suite].count(None) != 2:
        got = f"pairs {command.pairs}, data {command.data}, suite {command.suite}"
        raise error("verify", "pairs", "be given, or data, or suite, and only one of them", got)
    _rates(command.far)
    if command.scores is not None and command.scores.suffix not in SCORE_FILES:
        raise error("verify", "scores", f"end in {' or '.join(SCORE_FILES)}", command.scores)


def _verify_suite(command: Command, method: str, backbone: nn.Module | None, size: int) -> int:
    from attfc_cuda.evaluation import find_suite, report, tables

    entries = find_suite(command.suite, size, command.root)
    out, progress = _out_folder(command), sys.stdout.isatty()
    far = _rates(command.far)
    results, failures = report.evaluate_suite(method, backbone, entries, far=far, flip=command.flip, progress=progress)
    if results:
        tables.print_table(results, f"Verification of {command.checkpoint or method} on {command.suite}", far)
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
    return run_folder(command.checkpoint) / "verify"
