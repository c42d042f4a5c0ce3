"""Files written block by block are torch's own, for torch and for every zip program."""

from __future__ import annotations

import collections
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attfc_cuda.train import archive

DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.uint16,
)  # fmt: skip


def written(state: object, path: Path, streamed: dict | None = None) -> Path:
    with open(path, "wb") as file:
        archive.write(state, file, streamed)
    return path


def a_state() -> dict:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    tensors = {str(dtype): torch.randn(7, 3).mul(50).to(dtype) for dtype in DTYPES}
    shared = torch.arange(12.0)
    named = collections.OrderedDict(weight=weight, parameter=torch.nn.Parameter(torch.randn(2)))
    named._metadata = {"": {"version": 2}}
    return {
        "format": "f", "numbers": [1, 2.5, None, True, "é", 2**70], "tensors": tensors, "module": named,
        "views": [shared[3:7], shared.view(3, 4).T], "empty": torch.empty(0, 5), "scalar": torch.tensor(3.0),
    }  # fmt: skip


def alike(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        layout = (a.dtype, a.shape, a.stride(), a.storage_offset(), a.requires_grad, a.untyped_storage().nbytes())
        other = (b.dtype, b.shape, b.stride(), b.storage_offset(), b.requires_grad, b.untyped_storage().nbytes())
        return layout == other and torch.equal(a, b)
    if isinstance(a, dict):
        same = a.keys() == b.keys() and vars(a) == vars(b) if hasattr(a, "__dict__") else a.keys() == b.keys()
        return same and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_it_would_have_written(tmp_path: Path, mapped: bool) -> None:
    state = a_state()
    torch.save(state, tmp_path / "torch.pt")
    own, theirs = (
        torch.load(path, weights_only=True, mmap=mapped)
        for path in (written(state, tmp_path / "own.pt"), tmp_path / "torch.pt")
    )
    assert alike(own, theirs)
    first, second = own["views"]
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()  # stored once
    theirs["tensors"]["torch.float32"][6, 2] += 1
    assert not alike(own, theirs)


def test_each_storage_is_aligned_and_has_its_checksum(tmp_path: Path) -> None:
    path = written(a_state(), tmp_path / "own.pt")
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        entries = [entry for entry in file.infolist() if "/data/" in entry.filename]
    assert len(entries) == len(DTYPES) + 5
    whole = path.read_bytes()
    for entry in entries:
        header = whole[entry.header_offset : entry.header_offset + 30]
        name_and_extra = sum(struct.unpack("<HH", header[26:30]))
        assert (entry.header_offset + 30 + name_and_extra) % 64 == 0
    assert [entry.compress_type for entry in entries] == [zipfile.ZIP_STORED] * len(entries)


def test_a_stream_stands_in_for_a_tensors_memory(tmp_path: Path) -> None:
    tensor, told = torch.zeros(1000, 3), torch.randn(1000, 3)

    def blocks() -> Iterator[memoryview]:
        whole = memoryview(told.numpy().tobytes())
        for first in range(0, len(whole), 777):
            yield whole[first : first + 777]

    path = written({"a": tensor, "b": tensor[5:7]}, tmp_path / "own.pt", {tensor.data_ptr(): blocks})
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["a"], told) and torch.equal(state["b"], told[5:7])


def test_blocks_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BLOCK_BYTES", 1000)
    numbers = torch.randn(777)
    assert torch.equal(torch.load(written(numbers, tmp_path / "own.pt"), weights_only=True), numbers)
