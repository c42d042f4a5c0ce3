"""What is split over the processes of a run, in a file for each tensor and process: a ``torch.distributed.checkpoint``
folder, which any number of processes read, without a word between those that write it.

Each process writes its own files (`write_parts`), the first one then what they are (`write_metadata`): names, sizes and
places follow from the parts, which every process knows. Nothing here is a collective call, so that threads may do it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from attfc_cuda._files import checksum, sync_folder
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.distributed.split_state import Part
from attfc_cuda.train import archive

METADATA = ".metadata"


def write_parts(
    tensors: Mapping[str, Tensor],
    shards: Shards,
    folder: Path,
    streamed: Mapping[int, archive.Blocks] | None = None,
) -> dict[str, int]:
    """Write this process's rows of each tensor, durably.

    Args:
        tensors: The rows, by the names of `split_state.parts_of`.
        shards: Those that all of them are split by.
        folder: Empty but for the files of the other processes; in a folder that is there.
        streamed: As for `archive.write`.

    Returns:
        {the file's name: its CRC-32}.

    Raises:
        OSError: Where one cannot be written.
    """
    checksums = {}
    folder.mkdir(exist_ok=True)  # another machine may not see yet that it is there
    for number, name in enumerate(sorted(tensors)):
        tensor = tensors[name]
        if not len(tensor):
            continue
        path = folder / _file_name(shards.rank, number)
        with open(path, "wb") as file:
            archive.write(_alone(tensor), file, streamed)
            file.flush()
            os.fsync(file.fileno())
        checksums[path.name] = checksum(path)
    sync_folder(folder)
    return checksums


def write_metadata(parts: Mapping[str, Part], shards: Shards | None, folder: Path) -> dict[str, int]:
    """Write, durably, what the files of all processes hold, once they are all there; {the file's name: its CRC-32}.

    Args:
        parts: Those whose tensors `write_parts` was given; none where nothing is split.
        shards: As there; None without parts.
        folder: As there.

    Raises:
        OSError: Where it cannot be written, or a process's file is not there.
    """
    entries: dict[str, Any] = {}
    written = []
    for number, (name, part) in enumerate(sorted(parts.items())):
        assert shards is not None
        chunks = []
        for rank in range(shards.count):
            first, last = shards.bounds(part.total, rank)
            if first == last:
                continue
            offsets = torch.Size((first, *(0 for _ in part.whole_shape[1:])))
            chunks.append(ChunkStorageMetadata(offsets, torch.Size((last - first, *part.whole_shape[1:]))))
            file = _file_name(rank, number)
            size = (folder / file).stat().st_size
            written.append(WriteResult(MetadataIndex(name, offsets), size, _StorageInfo(file, 0, size)))
        properties = TensorProperties.create_from_tensor(torch.empty(0, dtype=part.tensor.dtype))
        entries[name] = TensorStorageMetadata(properties, part.whole_shape, chunks)
    dcp.FileSystemWriter(folder).finish(Metadata(entries), [written])
    sync_folder(folder)
    return {METADATA: checksum(folder / METADATA)}


def _file_name(rank: int, number: int) -> str:
    return f"__{rank}_{number}.distcp"


def _alone(tensor: Tensor) -> Tensor:
    """The tensor as all of its storage: a storage is written whole."""
    tensor = tensor.detach()
    whole = tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
