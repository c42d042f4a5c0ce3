"""A run folder: one process at a time, and nothing in it is lost that a run has not made itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attfc_cuda import cli
from attfc_cuda.train import TrainConfig, checkpoint, train
from attfc_cuda.train.manifest import Manifest
from attfc_cuda.train.run_folder import RunRemoved, check_folder, claim_folder, locked

Tiny = Callable[..., TrainConfig]

HOLDER = """
import sys, time, pathlib
from attfc_cuda.train.run_folder import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def fake_run(folder: Path, steps: tuple[int, ...] = (1, 2)) -> None:
    """What a run of this release leaves."""
    config = TrainConfig()
    config.run.run = folder
    claim_folder(config, 0)
    for step in steps:
        checkpoint.save({"weights": torch.zeros(3)}, folder / "checkpoints", step, keep=9)


def test_the_lock_names_the_process_and_machine_and_ends_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        config = TrainConfig()
        config.run.run = tmp_path
        words = rf"no other run is using, got .*, where process {holder.pid} on {socket.gethostname()} is at work; wait"
        with pytest.raises(BlockingIOError, match=words), locked(tmp_path):
            pass
        with pytest.raises(BlockingIOError, match=words):
            check_folder(config)
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):  # a killed process holds nothing, though its file is there
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
        with pytest.raises(BlockingIOError, match=f"where process {os.getpid()} on"), locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_users_checkpoint_is_neither_resumed_from_nor_deleted(tmp_path: Path) -> None:
    fake_run(tmp_path)
    folder = tmp_path / "checkpoints"
    best = folder / "step_best.pt"
    best.write_bytes(checkpoint.find(folder)[0].read_bytes())
    foreign = folder / "step_00000009.pt"  # of a run's name, but no run has made it
    foreign.write_bytes(best.read_bytes())
    (folder / "notes.tmp").write_text("mine")
    assert best not in checkpoint.find(folder)
    checkpoint.save({"weights": torch.zeros(3)}, folder, 3, keep=1)
    assert sorted(p.name for p in folder.iterdir()) == [
        "notes.tmp", "step_00000003.pt", "step_00000009.pt", "step_best.pt",
    ]  # fmt: skip
    config = TrainConfig()
    config.run.run, config.run.resume = tmp_path, True
    with pytest.raises(ValueError, match=r"no checkpoints of others .*step_00000009.pt, which is not in manifest"):
        claim_folder(config, 3)


def test_overwriting_deletes_what_the_manifest_names_and_nothing_else(tmp_path: Path) -> None:
    fake_run(tmp_path)
    events = tmp_path / "tensorboard" / "mine"
    events.parent.mkdir()
    events.write_text("of another program")
    (tmp_path / "checkpoints" / "step_best.pt").write_bytes(b"mine")
    config = TrainConfig()
    config.run.run, config.run.overwrite = tmp_path, True
    check_folder(config)
    claim_folder(config, 0)
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["checkpoints/step_best.pt", "config.json", "manifest.json", "tensorboard/mine"]


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
def test_a_file_of_others_in_the_way_is_named_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    config = TrainConfig()
    config.run.run = tmp_path
    for config.run.overwrite in (False, True):
        with pytest.raises(ValueError, match=rf"no files of others where this run would write, got .*{name}, which"):
            check_folder(config)
    assert (tmp_path / name).read_text() == "{}"


def test_a_run_of_an_earlier_release_is_known_without_a_manifest(tmp_path: Path) -> None:
    fake_run(tmp_path)
    (tmp_path / "manifest.json").unlink()
    config = TrainConfig()
    config.run.run, config.run.overwrite = tmp_path, True
    check_folder(config)
    claim_folder(config, 0)
    assert checkpoint.find(tmp_path / "checkpoints") == []


def test_a_manifest_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    for names in (["../other"], ["/etc/passwd"], [3], "abc"):
        (tmp_path / "manifest.json").write_text(json.dumps({"format": "attfc-run-1", "files": names}))
        with pytest.raises(ValueError, match="manifest.json must be a list of format attfc-run-1"):
            Manifest(tmp_path)


def test_two_lists_of_one_folder_lose_none_of_each_others_names(tmp_path: Path) -> None:
    """The run has one for its pictures and the writer of checkpoints another."""
    first, second = Manifest(tmp_path), Manifest(tmp_path)
    first.add([tmp_path / "a"])
    second.add([tmp_path / "b"])
    first.add([tmp_path / "c"])
    second.forget([tmp_path / "a"])
    first.add([tmp_path / "d"])
    assert [path.name for path in Manifest(tmp_path).paths()] == ["b", "c", "d"]
    shutil.rmtree(tmp_path)
    first.add(())  # of a folder that was removed
    assert [path.name for path in Manifest(tmp_path).paths()] == ["b", "c", "d"]


def test_checkpoints_before_the_first_verification_are_pruned_too(tmp_path: Path, tiny_config: Tiny) -> None:
    config = tiny_config(steps=5, checkpoint_every=1, verify_every=3, keep=1, pictures=True)
    train(config)
    left = sorted(path.name for path in (config.run.run / "checkpoints").iterdir())
    assert left == ["step_00000005.pt"]
    own = Manifest(config.run.run)
    assert all(config.run.run / name in own for name in ("checkpoints/step_00000005.pt", "best.pt", "training.png"))


def test_a_config_file_cannot_say_how_a_run_starts() -> None:
    for name in ("resume", "overwrite", "carry_classes", "config"):
        with pytest.raises(ValueError, match=rf"config run.{name} must be given on the command line, not in a file"):
            TrainConfig.from_dict({"run": {name: True}})


def test_a_demo_replaces_demos_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_run(tmp_path)
    assert cli.main(["demo", "--run", str(tmp_path), "--identities", "20", "--epochs", "0.1"]) == 2
    assert "train: run must be a folder without checkpoints" in capsys.readouterr().err
    assert len(checkpoint.find(tmp_path / "checkpoints")) == 2


def test_a_run_whose_folder_is_removed_saves_and_stops(tmp_path: Path, tiny_config: Tiny) -> None:
    import shutil

    from attfc_cuda.train import AttFCObjective

    config = tiny_config(checkpoint_every=0)
    calls = [0]

    class Removing(AttFCObjective):
        def after_step(self, backbone: torch.nn.Module, momentum: float) -> None:
            super().after_step(backbone, momentum)
            calls[0] += 1
            if calls[0] == 3:
                shutil.rmtree(config.run.run)

    with pytest.raises(RunRemoved, match=r"stay where it is while a run works there, got .* removed; saved anew: .*_0"):
        train(config, Removing)
    assert checkpoint.load_newest(config.run.run / "checkpoints")["step"] == 3
    assert TrainConfig.load(config.run.run / "config.json").optim.steps == 20
