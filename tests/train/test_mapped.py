"""A large tensor comes out of a mapped file block by block, with nothing of the file left in memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from attfc_cuda.train import checkpoint, mapped


class Table(nn.Module):
    def __init__(self, rows: int = 7, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, 3, dtype=dtype))
        self.register_buffer("small", torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("in_file", [False, True])
def test_what_is_large_is_copied_and_the_rest_left_to_load_state_dict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool
) -> None:
    monkeypatch.setattr(mapped, "BLOCK_BYTES", 2 * 3 * 4)  # two rows: three blocks, and a tail of one
    state = {"weight": torch.randn(7, 3), "small": torch.tensor([5])}
    wanted = {name: value.clone() for name, value in state.items()}
    if in_file:
        state = checkpoint.load(checkpoint.save({"table": state}, tmp_path, 1, keep=1), mapped=True)["table"]
    table = Table()
    taken = mapped.filled(state, table.state_dict())
    assert taken["weight"].data_ptr() == table.weight.data_ptr() and taken["small"] is state["small"]
    assert torch.equal(table.weight, wanted["weight"]) and int(table.small) == 0
    table.load_state_dict(taken)
    assert all(torch.equal(value, wanted[name]) for name, value in table.state_dict().items())
    assert torch.equal(state["weight"], wanted["weight"])  # which may still be looked at


@pytest.mark.parametrize(("own", "message"), [(Table(8), "size mismatch for weight"), (Table(7, torch.float64), "")])
def test_what_does_not_fit_is_left_alone(own: Table, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "BLOCK_BYTES", 8)
    state = {"weight": torch.randn(7, 3), "small": torch.tensor([5])}
    taken = mapped.filled(state, own.state_dict())
    assert taken["weight"] is state["weight"] and not own.weight.any()
    if message:
        with pytest.raises(RuntimeError, match=message):
            own.load_state_dict(taken)
    else:
        own.load_state_dict(taken)  # converts
        assert torch.equal(own.weight, state["weight"].double())


def memory_mib(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def test_the_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    forget = Path("/proc/self/clear_refs")
    try:
        forget.write_text("5")
    except OSError:
        pytest.skip("this system does not measure a process's peak of memory anew")
    table = torch.zeros(64, 2**18)  # 64 MiB
    path = checkpoint.save({"table": {"weight": torch.ones_like(table)}}, tmp_path, 1, keep=1)
    added = {}
    for way in ("filled", "copied whole"):
        table.zero_()
        state = checkpoint.load(path, mapped=True)["table"]
        forget.write_text("5")
        before = memory_mib("VmRSS")
        if way == "filled":
            mapped.filled(state, {"weight": table})
        else:
            table.copy_(state["weight"])
        added[way] = memory_mib("VmHWM") - before
        assert float(table.sum()) == table.numel()
        del state
    assert added["filled"] < 2 * 16 + 4 < 60 < added["copied whole"]  # a block of 16 MiB, and the one before it
