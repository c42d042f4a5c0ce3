"""Reading a ``torch.distributed.checkpoint`` folder that may be a stranger's: its metadata is a pickle, which can hold
code."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from attfc_cuda._check import error

_METADATA_CLASSES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex",
                 "StorageMeta", "_MEM_FORMAT_ENCODING")
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Only what describes tensors: a checkpoint from a stranger must not run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib"):  # where the checkpoint once was; perhaps on another system
            return pathlib.PurePosixPath
        found = super().find_class(module, name) if (module, name) in _METADATA_CLASSES or module == "torch" else None
        if (module, name) in _METADATA_CLASSES or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


class CheckpointReader(dcp.FileSystemReader):
    """torch's reader of a folder of tensors.

    Raises:
        ValueError: Where the folder holds no complete checkpoint.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with open(pathlib.Path(self.path) / ".metadata", "rb") as file:
                metadata = _Unpickler(file).load()
            if not all(isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values()):
                raise pickle.UnpicklingError("it must hold tensors alone")
        except Exception as cause:  # a damaged pickle raises whatever it likes
            missing = isinstance(cause, FileNotFoundError)
            got = f"{self.path} " + ("without a .metadata file" if missing else f"(.metadata: {cause})")
            raise error("head_checkpoint.load", "path", "be a complete checkpoint", got) from cause
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata
