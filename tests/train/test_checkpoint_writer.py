"""Checkpoints written while training goes on: one at a time, of one moment, and no failure is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attfc_cuda.data import Batch
from attfc_cuda.heads import AttFC
from attfc_cuda.train import AttFCObjective, TrainConfig, archive, checkpoint, checkpoint_writer, train
from attfc_cuda.train.checkpoint_writer import CheckpointWriter
from attfc_cuda.train.log import read_log
from attfc_cuda.train.run_folder import RunRemoved

Tiny = Callable[..., TrainConfig]
LONGEST_S = 60  # a limit against hanging, not a measure
DIM = 6
WRITE = archive.write  # before any test replaces it


class Gate:
    """Stands in for `archive.write`: a checkpoint's write begins when it is told to, then does as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(0)
        self.at_work, self.most_at_work, self.failures = 0, 0, dict[int, Exception]()
        monkeypatch.setattr(archive, "write", self.write)

    def write(self, state: dict, file: object, streamed: dict | None = None) -> None:
        if "best" in state:  # the best network's own file
            return WRITE(state, file, streamed)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        self.begun.release()
        try:
            if threading.current_thread() is not threading.main_thread():
                assert self.let.acquire(timeout=LONGEST_S)
            if state["step"] in self.failures:
                raise self.failures[state["step"]]
            WRITE(state, file, streamed)
        finally:
            self.at_work -= 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def a_head() -> AttFC:
    head = AttFC(DIM, 30, num_classes=50, policy="refresh", preset="published", enqueue="before")
    step(head)
    return head


def step(head: AttFC) -> None:
    head(torch.randn(8, DIM), torch.randint(50, (8,)), torch.randn(8, DIM))


def loaded(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(path)["head"]


def test_the_file_is_of_the_moment_at_which_it_was_begun(tmp_path: Path, gate: Gate) -> None:
    head, writer = a_head(), CheckpointWriter()
    then = {name: value.clone() for name, value in head.state_dict().items()}
    assert writer.start({"head": head.state_dict()}, head, tmp_path, 1, 1)
    for _ in range(5):
        step(head)
    gate.let.release()
    writer.finish()
    assert head.container.overwriting is None
    stored = loaded(checkpoint.path_of(tmp_path, 1))
    assert stored.keys() == then.keys() and all(torch.equal(stored[name], then[name]) for name in then)
    assert not torch.equal(head.container.centers, then["container.centers"])


def test_a_write_waits_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    head, writer = a_head(), CheckpointWriter()
    writer.start({"head": head.state_dict()}, head, tmp_path, 1, 5)
    assert gate.begun.acquire(timeout=LONGEST_S)
    second = threading.Thread(target=lambda: writer.start({"head": head.state_dict()}, head, tmp_path, 2, 5))
    second.start()
    second.join(0.2)
    assert second.is_alive() and checkpoint.find(tmp_path) == []
    gate.let.release(2)
    second.join()
    writer.finish()
    assert [checkpoint.step_of(path) for path in checkpoint.find(tmp_path)] == [2, 1] and gate.most_at_work == 1


def test_a_failure_is_raised_once_by_whatever_looks_first(tmp_path: Path, gate: Gate) -> None:
    head, looks = a_head(), ("report", "finish", "start")
    for number, look in enumerate(looks):
        writer = CheckpointWriter()
        gate.failures[number] = full()
        writer.start({"head": head.state_dict()}, head, tmp_path, number, 1)
        writer.report()  # under way: nothing to say
        gate.let.release()
        writer._thread.join()
        arguments = ({"head": head.state_dict()}, head, tmp_path, 9, 1) if look == "start" else ()
        with pytest.raises(OSError, match=r"must be written, got \[Errno 28\] No space .*whole: make room, then"):
            getattr(writer, look)(*arguments)
        writer.finish()
        assert head.container.overwriting is None and checkpoint.find(tmp_path) == []


def test_more_to_copy_than_is_right_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, writer = a_head(), CheckpointWriter()
    beside = torch.zeros(100)
    state = {"head": head.state_dict(), "beside": beside}
    small = sum(value.nbytes for name, value in head.state_dict().items() if name != "container.centers")
    monkeypatch.setattr(checkpoint_writer, "COPY_BYTES", small + beside.nbytes - 1)
    assert not writer.start(state, head, tmp_path, 1, 1)
    assert head.container.overwriting is None and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(checkpoint_writer, "COPY_BYTES", small + beside.nbytes)
    assert writer.start(state, head, tmp_path, 1, 1)
    writer.finish()


def acting_at(call: int, action: Callable[[], None]) -> type[AttFCObjective]:
    calls = [0]

    class Acting(AttFCObjective):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if calls[0] == call:
                action()
            return super().forward(backbone, batch)

    return Acting


def test_training_goes_on_while_a_checkpoint_is_written(tiny_config: Tiny, gate: Gate) -> None:
    config = tiny_config(steps=8, checkpoint_every=2, keep=9)
    folder = config.run.run / "checkpoints"

    def look() -> None:  # in step 4, after the checkpoint of step 2 was begun
        assert gate.begun.acquire(timeout=LONGEST_S) and checkpoint.find(folder) == []
        gate.let.release(3)

    train(config, acting_at(4, look))
    assert [checkpoint.step_of(path) for path in checkpoint.find(folder)] == [8, 6, 4, 2]
    assert gate.most_at_work == 1


def test_a_failed_write_stops_the_run_at_a_next_step(tiny_config: Tiny, gate: Gate) -> None:
    config = tiny_config(steps=1000, checkpoint_every=2)
    gate.failures[4] = full()
    gate.let.release(2)
    with pytest.raises(OSError, match=r"step_00000004.pt must be written, got \[Errno 28\] .*--resume"):
        train(config)
    assert [checkpoint.step_of(path) for path in checkpoint.find(config.run.run / "checkpoints")] == [2]
    assert list((config.run.run / "checkpoints").glob("*.tmp")) == []
    resumed = tiny_config(steps=6, checkpoint_every=2, resume=True)
    gate.failures.clear()
    gate.let.release(9)
    assert train(resumed).step == 6


def test_a_failed_write_is_raised_at_the_end(tiny_config: Tiny, gate: Gate) -> None:
    config = tiny_config(steps=3, checkpoint_every=2)
    gate.failures[2] = full()
    with pytest.raises(OSError, match=r"step_00000002.pt must be written, got \[Errno 28\]"):
        train(config, acting_at(3, gate.let.release))  # it fails while the last step is at work


def test_a_failed_write_is_noted_where_something_else_ends_the_run(tiny_config: Tiny, gate: Gate) -> None:
    config = tiny_config(steps=9, checkpoint_every=2)
    gate.failures[2] = full()

    def crash() -> None:
        gate.let.release()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(config, acting_at(3, crash))
    notes = [record["text"] for record in read_log(config.run.run / "log.jsonl") if record["kind"] == "note"]
    assert len(notes) == 1 and "step_00000002.pt must be written, got [Errno 28]" in notes[0]


def test_an_error_waits_for_the_write(tiny_config: Tiny, gate: Gate) -> None:
    config = tiny_config(steps=9, checkpoint_every=2)

    def crash() -> None:
        threading.Timer(0.2, gate.let.release).start()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(config, acting_at(3, crash))
    assert checkpoint.load_newest(config.run.run / "checkpoints")["step"] == 2


def test_a_signal_waits_for_the_write_and_saves_its_own(tiny_config: Tiny, gate: Gate) -> None:
    config = tiny_config(steps=9, checkpoint_every=2)

    def stop() -> None:
        threading.Timer(0.2, gate.let.release).start()
        os.kill(os.getpid(), signal.SIGTERM)

    assert train(config, acting_at(3, stop)).step == 3
    assert [checkpoint.step_of(p) for p in checkpoint.find(config.run.run / "checkpoints")] == [3, 2]
    assert gate.most_at_work == 1


def test_a_second_ctrl_c_gives_the_write_up(tiny_config: Tiny, gate: Gate) -> None:
    config = tiny_config(steps=9, checkpoint_every=2)

    def twice() -> None:
        threading.Timer(0.2, gate.let.release).start()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, acting_at(3, twice))
    assert list((config.run.run / "checkpoints").iterdir()) == []  # neither a file nor a half


def test_a_run_whose_folder_is_removed_during_the_write_saves_and_stops(tiny_config: Tiny, gate: Gate) -> None:
    config = tiny_config(steps=1000, checkpoint_every=2, log_every=100)

    def remove() -> None:
        assert gate.begun.acquire(timeout=LONGEST_S)
        shutil.rmtree(config.run.run)
        gate.let.release()

    with pytest.raises(RunRemoved, match=r"stay where it is while a run works there, got .* removed; saved anew: .*_0"):
        train(config, acting_at(3, remove))
    assert checkpoint.load_newest(config.run.run / "checkpoints")["step"] >= 3
