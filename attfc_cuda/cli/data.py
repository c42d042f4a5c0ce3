"""`attfc data bench` and `attfc data report`: how fast a data set is, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

_SOURCE = "Faces as for `attfc train --data`: folders, .rec, lists, .tar or .parquet shards, LMDB; separated by commas."
_Source = Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=_SOURCE)]


@dataclass
class Bench:
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
    probes_per_identity: int = 1
    """Probes of an identity in a batch, which share its gallery images, as in `attfc train`."""
    gallery_steps: int = 1
    """Batches that share gallery images, as in `attfc train`."""
    augment: str = "flip"
    """As for `attfc train`."""
    workers: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to try."""


@dataclass
class Report:
    """Read every image once and print the start-up report: what is there, what is damaged, what is there twice."""

    source: _Source
    image_size: int = 112
    """Side in pixels of the decoded images."""
    on_bad_image: Literal["skip", "raise"] = "skip"
    """skip: leave out and count what cannot be read; raise: stop and name it."""


@dataclass
class Command:
    """Look at a data set: its speed, its report."""

    action: (
        Annotated[Bench, tyro.conf.subcommand("bench", prefix_name=False)]
        | Annotated[Report, tyro.conf.subcommand("report", prefix_name=False)]
    )


def run(command: Command) -> int:
    """Print it; exit code 0."""
    from attfc_cuda.data import build_dataset
    from attfc_cuda.data.bench import bench_data, format_rates

    action = command.action
    if isinstance(action, Report):
        print(build_dataset(action.source, action.image_size, on_bad_image=action.on_bad_image, check=True).report())
        return 0
    dataset = build_dataset(action.source, action.image_size)
    print(dataset.report())
    rates = bench_data(
        dataset,
        seconds=action.seconds,
        batch_size=min(action.batch_size, len(dataset)),
        gallery_size=action.gallery_size,
        probes_per_identity=action.probes_per_identity,
        gallery_steps=action.gallery_steps,
        augment=action.augment,
        workers=action.workers,
    )
    print(format_rates(rates))
    return 0
