"""The run's record: valid JSON lines whatever the numbers, one consistent story across a resume."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from attfc_cuda.train.log import RunLog, duration, read_log
from attfc_cuda.train.loggers import TensorBoard, start_all

NUMBERS = {"loss": 1.5, "images_per_s": 10.0, "eta_s": 61.0}
RESULT = {"accuracy": 0.9, "auc": 0.95, "eer": 0.1, "tar_at_far": {"0.01": 0.5}}


def test_non_finite_numbers_are_null(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.jsonl", 10, progress="none") as log:
        log.step(1, {**NUMBERS, "grad_norm": math.inf, "loss": math.nan})
        log.record("note", nested={"values": [1.0, -math.inf]})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] is None and json.loads(lines[0])["grad_norm"] is None
    assert json.loads(lines[1])["nested"] == {"values": [1.0, None]}


def test_resuming_drops_the_records_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path, 10, progress="none") as log:
        log.record("start", step=0)
        for step in range(1, 6):
            log.step(step, NUMBERS)
        log.verification(4, "set", RESULT)
    with open(path, "a") as file:
        file.write('{"kind": "step", "st')  # the crash
    with RunLog(path, 10, first_step=3, progress="none") as log:
        log.record("resume", step=3)
        log.step(4, NUMBERS)
    kinds = [(record["kind"], record["step"]) for record in read_log(path)]
    assert kinds == [("start", 0), ("step", 1), ("step", 2), ("step", 3), ("resume", 3), ("step", 4)]


def test_damaged_lines_do_not_stop_a_resume_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path, 10, progress="none") as log:
        log.step(1, NUMBERS)
    damaged = b'{"kind": "note", "text": "\xff"}\n[]\n3\n{"kind": 5}\n{"step": 1}\n'
    with open(path, "ab") as file:
        file.write(damaged)
    with RunLog(path, 10, first_step=2, progress="none") as log:
        log.step(3, NUMBERS)
    assert [record["step"] for record in read_log(path)] == [1, 3]
    assert b"[]\n3\n" in path.read_bytes() and b"\xff" in path.read_bytes()


def test_a_fresh_run_starts_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "step", "step": 1}\n')
    with RunLog(tmp_path / "log.jsonl", 10, progress="none"):
        pass
    assert read_log(tmp_path / "log.jsonl") == []


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "log.jsonl", 200, progress="bar") as log:
        log.step(10, {**NUMBERS, "positive_cosine": 0.25})
        log.verification(10, "set", RESULT)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "step 10/200  loss 1.500  cos 0.250  10 images/s  ETA 1:01"
    with RunLog(tmp_path / "log.jsonl", 200, progress="bar") as log:
        log.step(20, {**NUMBERS, "positive_cosine": 0.25, "container_top1": 0.5})
    assert "cos 0.250  top-1 0.500  10 images/s" in capsys.readouterr().out
    assert shown[1] == "step 10  set: accuracy 0.9000  TAR@FAR 0.01 0.500"


def test_tensorboard_events_when_installed(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    start_all([logger := TensorBoard()], tmp_path, 0, {})
    assert len(logger.files) == 1 and logger.files[0].parent == tmp_path / "tensorboard"
    with RunLog(tmp_path / "log.jsonl", 10, loggers=[logger], progress="none") as log:
        log.step(1, {**NUMBERS, "grad_norm": math.inf})
        log.verification(1, "set", RESULT)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [1.5]
    assert [event.value for event in events.Scalars("verify/set/tar_at_far_0.01")] == [0.5]
    assert "train/grad_norm" not in events.Tags()["scalars"]


def test_no_tensorboard_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    start_all([logger := TensorBoard()], tmp_path, 0, {})
    with RunLog(tmp_path / "log.jsonl", 10, loggers=[logger], progress="none") as log:
        log.step(1, NUMBERS)
    assert not (tmp_path / "tensorboard").exists() and logger.files == ()


def test_duration() -> None:
    assert [duration(s) for s in (0, 59.6, 75.2, 3723)] == ["0:00", "1:00", "1:15", "1:02:03"]
