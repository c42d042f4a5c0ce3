"""The plan itself: every head beside the backbone, what fits, what it costs; as a table, as JSON and as a bar chart."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from attfc_cuda._check import error
from attfc_cuda._files import replacing
from attfc_cuda.data._checks import checked_int
from attfc_cuda.data.sampling import MOST_PROBES
from attfc_cuda.ops.precision import slow_precision
from attfc_cuda.plan import rates
from attfc_cuda.plan.heads import HEADS, Head, check_precision, head_needs
from attfc_cuda.plan.networks import NetworkNeeds, network_needs
from attfc_cuda.train.archive import BLOCK_BYTES
from attfc_cuda.train.checkpoint_writer import COPY_BYTES
from attfc_cuda.train.config import OptimizerConfig
from attfc_cuda.train.parts import check_parts, sizes
from attfc_cuda.train.snapshot import KEPT_BYTES

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_SIZE = re.compile(r"\s*((?:\d+\.?\d*|\.\d+)(?:e\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_CHARTS = (".png", ".svg", ".pdf")
# What the driver, the libraries' kernels and the allocator's rounding take on a GPU before and beside any tensor.
_RESERVE_BYTES = {"cuda": 3 << 29, "cpu": 3 << 28}


@dataclass(frozen=True)
class Row:
    """A head's part of the plan.

    Attributes:
        head: the head.
        memory: bytes by item, of head and backbone.
        head_bytes: of them, the head's.
        head_flop: of a step.
        network_flop: of a step, on average.
        embedded_images: that go through an encoder in a step, on average: probes, and AttFC's gallery images.
        head_seconds: of a step; None where nothing was measured.
        network_seconds: of a step, on average; None where nothing was measured.
    """

    head: Head
    memory: dict[str, int]
    head_bytes: int
    head_flop: float
    network_flop: float
    embedded_images: float
    head_seconds: float | None
    network_seconds: float | None

    @property
    def total(self) -> int:
        return sum(self.memory.values())

    @property
    def seconds(self) -> float | None:
        return None if self.head_seconds is None else self.head_seconds + (self.network_seconds or 0.0)


@dataclass(frozen=True)
class Plan:
    """identities x dim, batch rows a step.

    Attributes:
        identities: classes.
        dim: numbers of a row.
        batch: rows a step.
        precision: of the products.
        device: of the step.
        network: the backbone's needs.
        limit_bytes: the memory to fit into.
        gallery_size: AttFC's gallery images of a probe.
        probes_per_identity: probes of an identity in a batch, which share them.
        gallery_steps: steps that share them.
        notes: what to know beside the numbers.
        rows: a head each.
    """

    identities: int
    dim: int
    batch: int
    precision: str
    device: str
    network: NetworkNeeds
    limit_bytes: int
    gallery_size: int
    probes_per_identity: int
    gallery_steps: int
    notes: list[str]
    rows: list[Row]

    def to_json(self) -> str:
        plain = asdict(self)
        for row, source in zip(plain["rows"], self.rows, strict=True):
            row["total"], row["fits"] = source.total, source.total <= self.limit_bytes
        return json.dumps(plain, indent=1)


def parse_bytes(text: str) -> int:
    """Bytes from `24GiB`, `80 GB`, `512MiB` or a plain number.

    Raises:
        ValueError: for anything else.
    """
    match = _SIZE.fullmatch(text)
    size = float(match[1]) * _UNITS.get(match[2].lower(), math.nan) if match else math.nan
    if not 1 <= size < math.inf:
        raise error("plan", "memory", "be a size such as 24GiB or 80GB", repr(text))
    return int(size)


def check_chart(path: Path) -> None:
    """Raise ValueError for a path that `draw` cannot write."""
    if path.suffix.lower() not in _CHARTS:
        raise error("plan", "chart", f"end in {', '.join(_CHARTS[:-1])} or {_CHARTS[-1]}", path)


def make_plan(
    identities: int,
    dim: int,
    batch: int,
    backbone: str,
    image_size: int,
    limit_bytes: int,
    precision: str = OptimizerConfig.precision,
    device: str = "cuda",
    gallery_size: int = 2,
    heads: Sequence[Head] = HEADS,
    measure: bool = False,
    accumulate: int = 1,
    probes_per_identity: int = 1,
    gallery_steps: int = 1,
) -> Plan:
    """Memory and arithmetic of a training step of each head; with `measure` its time on this machine.

    Weights are float32 with a gradient and one momentum (SGD); activations of the backbone are those that autograd
    saves, by running it on fake tensors; AttFC adds the momentum encoder and its forward over the gallery. On a CPU a
    checkpoint that is written meanwhile counts too. With `accumulate` the networks take a batch in that many parts.

    Of probes that share gallery images (see `AttentionLoader`) each identity is taken to have enough images for it.
    Memory is that of the step that brings a gallery; arithmetic, time and embedded images are averages over its steps.
    A measured head gets as many gallery images, and probes that share them.
    """
    numbers = {"identities": identities, "dim": dim, "batch": batch, "image_size": image_size}
    for argument, value in {**numbers, "gallery_size": gallery_size, "accumulate": accumulate}.items():
        if value < 1:
            raise error("plan", argument, "be at least 1", value)
    for argument, value in (("probes_per_identity", probes_per_identity), ("gallery_steps", gallery_steps)):
        checked_int("plan", argument, value, 1, MOST_PROBES)
    if probes_per_identity * gallery_steps > MOST_PROBES:
        rule = f"make at most {MOST_PROBES} with {probes_per_identity} probes of an identity a step"
        raise error("plan", "gallery_steps", rule, gallery_steps)
    check_precision(precision)
    check_parts("plan", accumulate, batch, batch="--batch")
    part, last_part = sizes(batch, accumulate)
    present = math.ceil(batch / probes_per_identity)  # identities
    # Images, in the step that brings them, and those of them that go through the encoder at once.
    gallery = gallery_size * present
    gallery_part, _ = sizes(gallery, accumulate)
    network = network_needs(backbone, dim, image_size, part, precision)
    network_memory = {
        "backbone: weights, gradient, momentum": 3 * 4 * network.parameters + 4 * network.buffers,
        "backbone: activations": network.saved_bytes,
        "images": batch * 3 * image_size**2 * 4,
        "reserve": _RESERVE_BYTES[device],
    }
    forward_seconds = rates.forward_seconds(network, dim, image_size, precision) if measure else None

    def measured(head: Head) -> float:
        return rates.head_seconds(head, identities, dim, batch, precision, gallery_size, probes_per_identity)

    rows = []
    for head in heads:
        needs = head_needs(head, identities, dim, batch, precision, device)
        memory = {**network_memory, **needs.kept, **needs.step}
        images = 3.0 * batch + (batch - last_part)  # all parts but the last go forward twice
        embedded = float(batch)
        if head.kind == "attfc":
            memory["momentum encoder"] = 4 * (network.parameters + network.buffers)
            memory["gallery: images and activations"] = (
                gallery * 3 * image_size**2 * 4 + gallery_part * 3 * network.largest_bytes // part
            )
            if gallery_steps > 1:
                memory["gallery: embeddings for the steps to come"] = gallery * dim * 4
            images += gallery / gallery_steps
            embedded += gallery / gallery_steps
        if device == "cpu":  # elsewhere that is main memory
            memory["checkpoint while training goes on"] = _checkpoint_bytes(memory)
        rows.append(
            Row(
                head,
                memory,
                needs.total,
                needs.products * needs.product_flop,
                network.forward_flop * images,
                embedded,
                measured(head) if measure else None,
                forward_seconds * images if measure else None,
            )
        )
    sharing = gallery_size, probes_per_identity, gallery_steps
    notes = _notes(precision, device, measure)
    return Plan(identities, dim, batch, precision, device, network, limit_bytes, *sharing, notes, rows)


def _notes(precision: str, device: str, measure: bool) -> list[str]:
    # A plan for another machine's GPU knows nothing of that; what is measured is measured here.
    here = rates.measured_device()
    slow = slow_precision(precision, torch.device(here)) if measure or device == here else None
    return [] if slow is None else [slow]


def _checkpoint_bytes(memory: dict[str, int]) -> int:
    """The most that a checkpoint in the background takes beside a head and backbone of these items."""
    copied = memory["backbone: weights, gradient, momentum"] * 2 // 3 + memory.get("momentum encoder", 0)
    copied += sum(memory.get(item, 0) for item in ("class centres", "momentum", "container labels"))
    if copied > COPY_BYTES:
        return 0
    return copied + min(KEPT_BYTES, memory.get("container", 0)) + BLOCK_BYTES


def print_table(plan: Plan) -> None:
    """Print the plan: memory of the head, of all, whether it fits, images that go through an encoder in a step,
    arithmetic, and time where it was measured."""
    from rich.console import Console
    from rich.table import Table

    network = plan.network
    title = (
        f"{plan.identities:,} identities x {plan.dim}, batch {plan.batch}, {network.name} "
        f"({network.parameters / 1e6:.1f} M parameters), precision {plan.precision}, "
        f"into {plan.limit_bytes / 2**30:.1f} GiB"
    )
    if plan.probes_per_identity > 1 or plan.gallery_steps > 1:
        title += f"; AttFC's gallery shared by {plan.probes_per_identity} x {plan.gallery_steps} probes"
    table = Table(title=title, title_justify="left")
    for column in ("head", "head GiB", "all GiB", "fits", "images embedded", "head TFLOP", "all TFLOP"):
        table.add_column(column, justify="left" if column == "head" else "right")
    timed = any(row.seconds is not None for row in plan.rows)
    if timed:
        table.add_column("head ms", justify="right")
        table.add_column("images/s", justify="right")
    for row in plan.rows:
        spare = (plan.limit_bytes - row.total) / 2**30
        fits = f"yes, {spare:.1f} spare" if spare >= 0 else f"no, {-spare:.1f} short"
        cells = [
            row.head.label,
            f"{row.head_bytes / 2**30:.2f}",
            f"{row.total / 2**30:.2f}",
            fits,
            f"{row.embedded_images:.0f}",
            f"{row.head_flop / 1e12:.2f}",
            f"{(row.head_flop + row.network_flop) / 1e12:.2f}",
        ]
        if timed:
            cells += [f"{row.head_seconds * 1e3:.0f}", f"{plan.batch / row.seconds:.0f}"] if row.seconds else ["-", "-"]
        table.add_row(*cells)
    # A pipe has no width: wide enough then that no number is cut.
    Console(width=None if os.isatty(1) else 140).print(table)
    for note in plan.notes:
        print(note)


def print_items(plan: Plan) -> None:
    """Print where the memory of each head goes, item by item."""
    for row in plan.rows:
        print(row.head.label)
        for item, size in row.memory.items():
            print(f"  {size / 2**20:12,.1f} MiB  {item}")


def draw(plan: Plan, path: Path) -> None:
    """Write the plan as stacked bars, one a head, with the limit as a line; PNG, SVG or PDF by the path's suffix.

    Raises:
        ValueError: for another suffix.
    """
    check_chart(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from attfc_cuda.evaluation.plots import COLORS

    groups = {
        "backbone": ("backbone", "images", "momentum encoder", "gallery"),
        "centres or container": ("container", "class centres", "classes", "slot of"),
        "optimizer and gradient of the centres": ("momentum", "gradient", "normalised"),
        "logits": ("logits",),
        "other": ("",),
    }
    figure = Figure(figsize=(8, 0.55 * len(plan.rows) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left = [0.0] * len(plan.rows)
    taken: list[set[str]] = [set() for _ in plan.rows]
    for number, (label, prefixes) in enumerate(groups.items()):
        widths = []
        for row, done in zip(plan.rows, taken, strict=True):
            mine = {item for item in row.memory if item not in done and item.startswith(prefixes)}
            done |= mine
            widths.append(sum(row.memory[item] for item in mine) / 2**30)
        axes.barh(range(len(plan.rows)), widths, left=left, color=COLORS[number], label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.axvline(plan.limit_bytes / 2**30, color="black", linestyle="--", linewidth=1, label="limit")
    axes.set_yticks(range(len(plan.rows)), [row.head.label for row in plan.rows])
    axes.invert_yaxis()
    axes.set_xlabel("GiB in a training step")
    title = f"{plan.identities:,} identities, batch {plan.batch}, {plan.network.name}, {plan.precision}"
    axes.set_title(title, loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize="small")
    with replacing(path) as part:
        figure.savefig(part, dpi=150, format=path.suffix[1:].lower())
