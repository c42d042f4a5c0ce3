"""`attfc pack` and `attfc data`: their flags, and what they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from attfc_cuda._check import error
from attfc_cuda.data.bench import bench_data, format_rates
from attfc_cuda.data.build import build_dataset
from attfc_cuda.data.sources.recordio_writer import pack
from attfc_cuda.data.sources.stored import StoredFaces

_SOURCE = (
    "Faces as for `attfc train --data`: folders, .rec, .txt or .lst lists, .tar shards, LMDB; separated by commas."
)
_Source = Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=_SOURCE)]
_BAD = "skip: leave out and count what cannot be read; raise: stop and name it."


@dataclass
class PackCommand:
    """Pack faces into one .rec with its .idx, as InsightFace lays them out."""

    source: _Source
    out: tyro.conf.Positional[Path]
    """The .rec to write; it appears when all is written, or not at all."""
    image_size: int | None = None
    """Cut each image to its central square and store it as JPEG of this side; None: keep every file as it is."""
    on_bad_image: Annotated[Literal["skip", "raise"], tyro.conf.arg(help=_BAD)] = "skip"


@dataclass
class BenchCommand:
    """Print how many images a second are read, decoded, and made into batches."""

    source: _Source
    image_size: int = 112
    """Side in pixels of the decoded images."""
    seconds: float = 3.0
    """Time spent on each line."""
    batch_size: int = 128
    """Probe images a batch."""
    gallery_size: int = 2
    """Gallery images a probe."""
    augment: str = "flip"
    """As for `attfc train`."""
    workers: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to try."""


@dataclass
class ReportCommand:
    """Read every image once and print the start-up report: what is there, what is damaged, what is there twice."""

    source: _Source
    image_size: int = 112
    """Side in pixels of the decoded images."""
    on_bad_image: Annotated[Literal["skip", "raise"], tyro.conf.arg(help=_BAD)] = "skip"


@dataclass
class DataCommand:
    """Look at a data set: its speed, its report."""

    action: (
        Annotated[BenchCommand, tyro.conf.subcommand("bench", prefix_name=False)]
        | Annotated[ReportCommand, tyro.conf.subcommand("report", prefix_name=False)]
    )


def run(command: PackCommand | DataCommand) -> int:
    """Do it; exit code 0."""
    if isinstance(command, PackCommand):
        dataset = build_dataset(command.source, command.image_size or 112, on_bad_image=command.on_bad_image)
        if not isinstance(dataset, StoredFaces):
            raise error("pack", "source", "be one source of stored images", repr(command.source))
        print(pack(dataset, command.out, image_size=command.image_size))
        return 0
    action = command.action
    if isinstance(action, ReportCommand):
        print(build_dataset(action.source, action.image_size, on_bad_image=action.on_bad_image, check=True).report())
        return 0
    dataset = build_dataset(action.source, action.image_size)
    print(dataset.report())
    rates = bench_data(
        dataset,
        seconds=action.seconds,
        batch_size=min(action.batch_size, len(dataset)),
        gallery_size=action.gallery_size,
        augment=action.augment,
        workers=action.workers,
    )
    print(format_rates(rates))
    return 0
