"""What a checkpoint written in the background holds: the state of one moment, whatever is overwritten meanwhile."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from attfc_cuda.heads.container import DynamicClassContainer
from attfc_cuda.train import snapshot
from attfc_cuda.train.snapshot import RowGuard, copied, copied_bytes

ROWS, DIM = 97, 5  # blocks of 8 rows: twelve, and a tail of one


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 8 * DIM * 4)


def read(blocks: Iterator[memoryview]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(map(bytes, blocks))), dtype=torch.float32).view(-1, DIM)


def overwrite(tensor: Tensor, guard: RowGuard, slots: list[int]) -> None:
    index = torch.tensor(slots)
    with guard.overwriting(index):
        tensor.index_copy_(0, index, torch.randn(len(slots), DIM))


def test_rows_overwritten_before_between_and_after_their_block() -> None:
    tensor = torch.randn(ROWS, DIM)
    before, guard = tensor.clone(), RowGuard(tensor)
    overwrite(tensor, guard, [0, 50, 96])
    overwrite(tensor, guard, [50, 7, 8])  # 50 a second time: what it was at first counts
    blocks, parts = guard.blocks(), []
    for number in range(13):
        parts.append(bytes(next(blocks)))
        overwrite(tensor, guard, [(8 * number + 3) % ROWS, (8 * number + 9) % ROWS, 95])  # read, next, last but one
    assert list(blocks) == []
    assert torch.equal(read(iter(parts)), before)
    assert not torch.equal(tensor, before)


def test_rows_half_written_while_their_block_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(ROWS, DIM)
    before, guard, plain = tensor.clone(), RowGuard(tensor), RowGuard._read

    def torn(self: RowGuard, buffer: Tensor, first: int, last: int) -> None:
        row, index = (first + last) // 2, torch.tensor([(first + last) // 2])
        with guard.overwriting(index):
            tensor[row, :2] = -1
            plain(self, buffer, first, last)
            tensor[row] = -2

    monkeypatch.setattr(RowGuard, "_read", torn)
    assert torch.equal(read(guard.blocks()), before)
    assert int((tensor == -2).all(dim=1).sum()) == 13


def test_a_thread_reads_while_another_overwrites() -> None:
    tensor = torch.randn(20_000, DIM)
    before, guard, got = tensor.clone(), RowGuard(tensor), []
    reader = threading.Thread(target=lambda: got.append(read(guard.blocks())))
    reader.start()
    steps = 0
    while reader.is_alive():
        overwrite(tensor, guard, torch.randint(20_000, (64,)).unique().tolist())
        steps += 1
    reader.join()
    assert steps > 1 and torch.equal(got[0], before)


@pytest.mark.parametrize("policy", ["fifo", "refresh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_container_that_goes_on(policy: str, dtype: torch.dtype) -> None:
    container = DynamicClassContainer(40, DIM, 100, policy, dtype)
    for _ in range(7):
        container.enqueue(torch.randn(9, DIM), torch.randint(100, (9,)))
    before, guard = container.centers.clone(), RowGuard(container.centers)
    container.overwriting = guard.overwriting
    for _ in range(6):
        container.enqueue(torch.randn(9, DIM), torch.randint(100, (9,)))
    assert (container.centers != before).any(dim=1).sum() > 20
    stored = torch.frombuffer(bytearray(b"".join(map(bytes, guard.blocks()))), dtype=dtype).view(40, DIM)
    assert torch.equal(stored, before)


def test_another_write_is_an_error_and_no_mixture() -> None:
    rule = "must be overwritten by enqueue alone while a checkpoint is written, got another write to them"
    tensor = torch.randn(ROWS, DIM)
    guard = RowGuard(tensor)
    tensor[3] = 0
    with pytest.raises(RuntimeError, match=rule):
        list(guard.blocks())
    guard = RowGuard(tensor)
    tensor[3] = 1
    with pytest.raises(RuntimeError, match=rule):
        overwrite(tensor, guard, [5])
    guard = RowGuard(tensor)
    overwrite(tensor, guard, [5])
    list(guard.blocks())  # the known ones are none


def test_who_overwrites_more_than_may_be_kept_waits() -> None:
    tensor = torch.randn(ROWS, DIM)
    before, guard = tensor.clone(), RowGuard(tensor, most_bytes=3 * DIM * 4)
    overwrite(tensor, guard, [1, 2, 3])
    writer = threading.Thread(target=overwrite, args=(tensor, guard, [4]))
    writer.start()
    writer.join(0.2)
    assert writer.is_alive() and torch.equal(tensor[4], before[4])
    assert torch.equal(read(guard.blocks()), before)
    writer.join()
    assert not torch.equal(tensor[4], before[4])


def test_nothing_is_kept_once_it_is_over() -> None:
    tensor = torch.randn(ROWS, DIM)
    guard = RowGuard(tensor)
    list(guard.blocks())
    overwrite(tensor, guard, [1])
    assert guard._kept == []
    guard = RowGuard(tensor)
    overwrite(tensor, guard, [1])
    guard.end()  # the write has failed
    assert guard._kept == []


def test_one_that_is_given_up_ends() -> None:
    guard = RowGuard(torch.randn(ROWS, DIM))
    blocks = guard.blocks()
    next(blocks)
    guard.given_up = True
    with pytest.raises(InterruptedError):
        next(blocks)


def test_copies_keep_layout_and_what_a_state_dict_carries() -> None:
    image, shared = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), torch.randn(6, 2)
    named = collections.OrderedDict(image=image, shared=shared)
    named._metadata = {"": {"version": 2}}
    state = {"module": named, "list": [image[0], (1, "a", None)], "view": shared[:3]}
    twin = copied(state, {shared.data_ptr(): None})
    assert twin["module"]._metadata == named._metadata and type(twin["module"]) is collections.OrderedDict
    assert twin["module"]["shared"] is shared and twin["list"][1] == (1, "a", None)
    assert twin["module"]["image"].stride() == image.stride() and torch.equal(twin["module"]["image"], image)
    assert copied_bytes(state, {shared.data_ptr(): None}) == image.nbytes + image[0].nbytes
    image.zero_()
    assert twin["module"]["image"].any() and twin["list"][0].any()
