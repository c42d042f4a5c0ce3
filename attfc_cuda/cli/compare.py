"""`attfc compare`: are two images of one person?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from attfc_cuda._error import error
from attfc_cuda.cli._network import NetworkFlags, embed, load, run_folder

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Command(NetworkFlags):
    """Print the cosine of two faces and, with a threshold or a false accept rate, whether they are one person's."""

    a: tyro.conf.Positional[str]
    """An image, or a folder of images of one person, which are taken together."""
    b: tyro.conf.Positional[str]
    """The other one."""
    threshold: float | None = None
    """Cosine from which two faces are taken for one person's."""
    far: float | None = None
    """Take the threshold at this false accept rate from the report of `attfc verify`, e.g. 1e-3."""
    report: Path | None = None
    """JSON file with the thresholds, of the same network; None: the one in the run's `verify` folder, or an ONNX file's
    own."""
    json: bool = False
    """Print JSON instead of a sentence."""


def run(command: Command) -> int:
    """Print it; exit code 0, whatever the decision."""
    _check(command)
    from torch.nn import functional as F

    network = load(command)
    threshold, source = command.threshold, "--threshold"
    if command.far is not None:
        threshold, source = _threshold(command, network)
    sums = [embed(command, network, side, unit=False, on_bad_image="raise") for side in (command.a, command.b)]
    first, second = (F.normalize(part.embeddings.double().sum(0), dim=0) for part in sums)
    cosine = float(first @ second)
    same = None if threshold is None else cosine >= threshold
    if command.json:
        print(json.dumps({"cosine": cosine, "threshold": threshold, "far": command.far, "same": same}))
        return 0
    decision = "" if same is None else f": {'the same person' if same else 'two people'}"
    origin = "" if threshold is None else f" (threshold {threshold:.4f}, {source})"
    print(f"cosine {cosine:.4f}{decision}{origin}")
    return 0


def _threshold(command: Command, network: nn.Module) -> tuple[float, str]:
    """The threshold at a false accept rate for this network and what is compared of it, and where it is from."""
    from attfc_cuda.evaluation import thresholds
    from attfc_cuda.evaluation.fingerprint import embedding_kind, fingerprint

    report, kind = command.report, embedding_kind(network, command.flip)[0]
    description = getattr(network, "description", None)
    if report is None and description is not None:
        value = thresholds.at_rate(description.thresholds, command.far, command.checkpoint)
        return value, f"FAR {command.far:g} of {description.thresholds_set}, in {command.checkpoint}"
    report = report or thresholds.report_of(run_folder(command.checkpoint))
    value = thresholds.threshold_at(report, command.far, kind, fingerprint(network))
    return value, f"FAR {command.far:g} of {report}"


def _check(command: Command) -> None:
    if command.threshold is not None and command.far is not None:
        got = f"threshold {command.threshold} and far {command.far}"
        raise error("compare", "threshold", "be given, or far, and not both", got)
    if command.threshold is not None and not -1 <= command.threshold <= 1:
        raise error("compare", "threshold", "be a cosine, in [-1, 1]", command.threshold)
    if command.far is not None and not 0 < command.far < 1:
        raise error("compare", "far", "lie between 0 and 1, both excluded", command.far)
    if command.report is not None and command.far is None:
        raise error("compare", "report", "come with far", command.report)
