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
    """Faces as for `attfc train --data`: folders, .rec, .txt or .lst lists, .tar shards, LMDB; separated by commas."""
    out: tyro.conf.Positional[Path]
    """The .rec to write; it appears when all is written, or not at all."""
    image_size: int | None = None
    """Cut each image to its central square and store it as JPEG of this side; None: keep every file as it is."""
    on_bad_image: Literal["skip", "raise"] = "skip"
    """skip: leave out and count what cannot be read; raise: stop and name it."""
    allow_outside: bool = False
    """Take images that a link or a list's line fetches from outside of the source's folder."""


def run(command: Command) -> int:
    """Write the file and say what is in it; exit code 0."""
    from attfc_cuda.data import StoredFaces, build_dataset, pack

    dataset = build_dataset(command.source, command.image_size or 112, on_bad_image=command.on_bad_image)
    if not isinstance(dataset, StoredFaces):
        raise error("pack", "source", "be one source of stored images", repr(command.source))
    print(pack(dataset, command.out, image_size=command.image_size, allow_outside=command.allow_outside))
    return 0
