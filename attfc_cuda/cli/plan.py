"""`attfc plan`: what each head needs, before a run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attfc_cuda._error import error
from attfc_cuda._files import write_text
from attfc_cuda.train.config import OptimizerConfig


@dataclass
class Command:
    """Say before a run what each head needs, what fits, and what a step costs."""

    identities: float = 1e6
    """Number of identities, e.g. 2.06e6."""
    dim: int = 512
    """Length of an embedding."""
    batch: int = 384
    """Images in a step."""
    accumulate: int = 1
    """Parts in which the batch goes through the networks, as in `attfc train`."""
    backbone: str = "iresnet50"
    """Network: iresnet18, 34, 50, 100, mobilefacenet, small, or timm:NAME."""
    image_size: int = 112
    """Side of an image in pixels."""
    memory: str | None = None
    """Memory to fit into, e.g. 24GiB; None: that of this machine's GPU, or its main memory without one."""
    precision: Literal["bf16", "fp16", "fp32"] = OptimizerConfig.precision
    """Format of the products and of the container, as in `attfc train`; trained weights are float32."""
    gallery_size: int = 2
    """Gallery images of each probe, for AttFC."""
    probes_per_identity: int = 1
    """Probes of an identity in a batch, which share its gallery images, as in `attfc train`."""
    gallery_steps: int = 1
    """Steps that share gallery images, as in `attfc train`: memory is that of the step that brings them, time an
    average."""
    measure: bool = False
    """Run each head and the backbone for a moment, on this machine, and predict the time of a step from that. AttFC
    gets gallery images as the settings say; embedding them counts as an average over the steps that share them."""
    items: bool = False
    """Print the memory item by item."""
    chart: Path | None = None
    """Draw the memory of each head as a bar, into this PNG or SVG."""
    json: Path | None = None
    """Write everything as JSON."""


def run(command: Command) -> int:
    """Make the plan and show it; exit code 0."""
    import torch

    from attfc_cuda.plan import report

    if not math.isfinite(command.identities):
        raise error("plan", "identities", "be a finite number", command.identities)
    if command.chart is not None:
        report.check_chart(command.chart)
    _check_folder("chart", command.chart)
    _check_folder("json", command.json)
    device = "cuda" if torch.cuda.is_available() or command.memory else "cpu"
    limit = _memory_of_this_machine() if command.memory is None else report.parse_bytes(command.memory)
    plan = report.make_plan(
        round(command.identities),
        command.dim,
        command.batch,
        command.backbone,
        command.image_size,
        limit,
        command.precision,
        device,
        command.gallery_size,
        measure=command.measure,
        accumulate=command.accumulate,
        probes_per_identity=command.probes_per_identity,
        gallery_steps=command.gallery_steps,
    )
    report.print_table(plan)
    if command.items:
        report.print_items(plan)
    if command.chart is not None:
        report.draw(plan, command.chart)
    if command.json is not None:
        write_text(command.json, plan.to_json() + "\n")
    return 0


def _check_folder(argument: str, path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise error("plan", argument, "lie in a folder that exists", path)


def _memory_of_this_machine() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
