"""The writer of checkpoints of several processes, on one process that stands for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from group import run
from torch import nn

from attfc_cuda.distributed import checkpoint as head_checkpoint
from attfc_cuda.train import checkpoint, part_files
from attfc_cuda.train.group_writer import GroupCheckpointWriter
from attfc_cuda.train.process_group import Group


def save_unsplit(folder: Path, background: bool) -> None:
    writer, module = GroupCheckpointWriter(Group(torch.device("cpu"))), nn.Linear(2, 2)
    writer.save({"processes": 2, "w": module.weight}, module, None, folder, 7, keep=1, background=background)
    writer.finish()


@pytest.mark.parametrize("background", [False, True])
def test_a_run_that_splits_nothing_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """An objective of one's own may have no class centres; and what names the parts is as durable as they are."""
    synced: list[bool] = []
    monkeypatch.setattr(part_files, "sync_folder", lambda folder: synced.append((folder / ".metadata").is_file()))
    run(1, save_unsplit, tmp_path, background)
    assert synced == [True]
    path = checkpoint.path_of(tmp_path, 7)
    state = checkpoint.load(path)
    assert state["step"] == 7 and state["w"].shape == (2, 2)
    head_checkpoint.load(nn.Linear(2, 2), checkpoint.shards_of(path, state), parts_only=True)


class Others(Group):
    """This process, the second of three, whose first and last have failed too."""

    def __init__(self, *failures: tuple[bool, str] | None) -> None:
        self.device, self.rank, self.count, self.failures = torch.device("cpu"), 1, 3, failures

    def any(self, flag: bool) -> bool:
        return flag

    def from_first(self, make: object) -> str:
        return checkpoint.SHARDS[0]

    def from_all(self, value: tuple) -> list:
        return [(self.failures[0], None), value, (self.failures[1], None)]


@pytest.mark.parametrize(
    ("first", "own", "expected"),
    [
        ((True, "full"), RuntimeError("overwritten"), (OSError, "^full$")),
        ((False, "lost"), OSError("full"), (RuntimeError, "^lost$")),
        (None, OSError("full"), (OSError, "must be written, got full, at rank 1 of 3")),
        (None, ZeroDivisionError("own"), (ZeroDivisionError, "^own$")),
    ],
)
def test_several_failures_are_one_error_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: tuple | None, own: Exception, expected: tuple
) -> None:
    """Else one process would wait for the others where they do not come."""

    def failing(*_: object) -> None:
        raise own

    monkeypatch.setattr(part_files, "write_parts", failing)
    monkeypatch.setattr("attfc_cuda.train.group_writer._shards_of", lambda parts: "shards")
    with pytest.raises(expected[0], match=expected[1]):
        GroupCheckpointWriter(Others(first, (True, "third"))).save({}, nn.Linear(2, 2), None, tmp_path, 1, keep=1)
