"""`attfc embed`: the embeddings of any images, in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from attfc_cuda._error import error
from attfc_cuda.cli._network import NetworkFlags, embed, load


@dataclass
class Command(NetworkFlags):
    """Write the embedding of each image, float32 [N, D], with its name and identity."""

    source: tyro.conf.Positional[str]
    """An image, a folder of images, or faces as for `attfc train --data`; separated by commas."""
    to: Path
    """File to write. .npy: the names go beside it, in the same order; .parquet (needs pyarrow): all in one."""
    names: Literal["csv", "json"] = "csv"
    """Format of the names beside a .npy."""
    unit: bool = True
    """Bring each embedding to length 1, so that the cosine of two is their product."""
    on_bad_image: Literal["skip", "raise"] = "skip"
    """skip: leave out and count what cannot be read; raise: stop and name it."""


def run(command: Command) -> int:
    """Write the files; exit code 0."""
    if command.batch_size < 1:
        raise error("embed", "batch_size", "be at least 1", command.batch_size)
    from attfc_cuda.evaluation.embedding_files import check_path, write_embeddings
    from attfc_cuda.evaluation.fingerprint import made_by

    check_path("embed", "to", command.to)
    network = load(command)
    embedded = embed(command, network, command.source, unit=command.unit, on_bad_image=command.on_bad_image)
    embedded = embedded._replace(made_by=made_by(network, command.flip))
    files = write_embeddings(embedded, command.to, command.names)
    rows, columns = embedded.embeddings.shape
    print(f"written: {', '.join(map(str, files))}: {rows} embeddings of {columns} numbers")
    return 0
