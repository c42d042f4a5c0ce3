"""`attfc pack`: any data set as one .rec file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from attfc_cuda._error import error


@dataclass
class Command:
    """Pack faces into one .rec with its .idx, as InsightFace lays them out."""

    source: tyro.conf.Positional[str]
    """Faces as for `attfc train --data`: a folder, .rec, .txt or .lst list, .tar or .parquet shards, LMDB; or drawn
    ones, as in `procedural:100000x6:hard`."""
    out: tyro.conf.Positional[Path]
    """The .rec to write; it appears when all is written, or not at all."""
    image_size: int | None = None
    """Cut each image to its central square and store it as JPEG of this side; None: keep every file as it is. Drawn
    faces are drawn at this size, None: 112."""
    on_bad_image: Literal["skip", "raise"] = "skip"
    """skip: leave out and count what cannot be read; raise: stop and name it."""
    allow_outside: bool = False
    """Take images that a link or a list's line fetches from outside of the source's folder."""
    seed: int = 0
    """Of drawn faces."""
    workers: int | None = None
    """Processes that read, draw and encode; None: one for each core, 0: none beside this one."""


def run(command: Command) -> int:
    """Write the file and say what is in it; exit code 0."""
    from attfc_cuda.data import ProceduralFaces, StoredFaces, build_dataset, pack
    from attfc_cuda.data.processes import spare_workers

    on_bad_image = command.on_bad_image
    dataset = build_dataset(command.source, command.image_size or 112, seed=command.seed, on_bad_image=on_bad_image)
    if not isinstance(dataset, (StoredFaces, ProceduralFaces)):
        raise error("pack", "source", "be one source of stored images, or drawn faces", repr(command.source))
    workers = spare_workers() if command.workers is None else command.workers
    outside = command.allow_outside
    print(pack(dataset, command.out, image_size=command.image_size, allow_outside=outside, workers=workers))
    return 0
