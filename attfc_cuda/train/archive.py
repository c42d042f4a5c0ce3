"""torch's .pt file, written a block at a time, so that no tensor has to stand still, or twice in memory, meanwhile.

`torch.save` takes a storage's checksum and then its bytes from one address, so that nothing may write there for as
long as that lasts. Here the bytes of a storage may come from elsewhere (`streamed`): of a tensor that goes on changing,
as it was at one moment (`snapshot.RowGuard`). What results is the same format, which `torch.load` reads, memory-mapped
too: a zip archive, uncompressed, with a pickle that names its storages, and a record with a checksum for each of them.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

BLOCK_BYTES = 16 << 20
Blocks = Callable[[], Iterable[memoryview]]

_ALIGNMENT = 64  # of a storage in the file, as torch's own: a vector register's, for tensors that are mapped
_PADDING = b"FB"  # the tag of an extra field that only fills up, as torch's own
_LOCAL_HEADER, _ZIP64_FIELD, _FIELD_HEADER = 30, 20, 4


def write(state: Any, file: BinaryIO, streamed: Mapping[int, Blocks] | None = None) -> None:
    """`torch.save(state, file)`.

    Args:
        state: Tensors, numbers and strings, in dicts and lists. Every tensor is written as one of the CPU.
        file: Open for writing, and seekable.
        streamed: What gives a storage's bytes, in order, in place of its memory, by its address (`data_ptr`).

    Raises:
        OSError: Where it cannot be written.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(state)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", [pickled.getbuffer()])
        _add(archive, "byteorder", [memoryview(sys.byteorder.encode())])
        _add(archive, "version", [memoryview(b"3\n")])
        for key, storage in pickler.storages.items():
            blocks = (streamed or {}).get(storage.data_ptr())
            _add(archive, f"data/{key}", _memory(storage) if blocks is None else blocks())


class _Pickler(pickle.Pickler):
    """Leaves each storage out and names it instead: `storages` by the names given."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: dict[str, torch.UntypedStorage] = {}
        self._names: dict[int, str] = {}

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if isinstance(value, torch.storage.TypedStorage):
            storage, kind = value._untyped_storage, getattr(torch, value._pickle_storage_type())
            count = value._size()
        elif isinstance(value, torch.UntypedStorage):
            storage, kind, count = value, torch.UntypedStorage, value.nbytes()
        else:
            return None
        name = self._names.setdefault(storage._cdata, str(len(self._names)))
        self.storages[name] = storage
        return "storage", kind, name, "cpu", count


def _memory(storage: torch.UntypedStorage) -> Iterator[memoryview]:
    """The bytes of a storage as it stands."""
    numbers: Tensor = torch.empty(0, dtype=torch.uint8).set_(storage.cpu())  # type: ignore[call-overload]
    whole = numbers.numpy().data
    for first in range(0, len(whole), BLOCK_BYTES):
        yield whole[first : first + BLOCK_BYTES]


def _add(archive: zipfile.ZipFile, name: str, blocks: Iterable[memoryview]) -> None:
    """A record, whose bytes begin at a multiple of `_ALIGNMENT`."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    before = archive.fp.tell() + _LOCAL_HEADER + len(entry.filename) + _ZIP64_FIELD + _FIELD_HEADER  # type: ignore[union-attr]
    padding = -before % _ALIGNMENT
    entry.extra = struct.pack("<2sH", _PADDING, padding) + bytes(padding)
    with archive.open(entry, "w", force_zip64=True) as record:
        for block in blocks:
            record.write(block)
