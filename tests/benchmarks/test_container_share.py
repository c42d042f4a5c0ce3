"""examples/recipes/container_share.py: rows that end, that were stopped, and that have not begun."""

from __future__ import annotations

import json
import runpy
from argparse import Namespace
from pathlib import Path

import pytest

from attfc_cuda.cli import main
from attfc_cuda.train import TrainConfig

RECIPE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "recipes" / "container_share.py"))


def given(**changes: object) -> Namespace:
    return Namespace(**{"identities": 96, "label_noise": 0.0, "epochs": 2.0, "flags": [], **changes})


def started(run: Path, *records: dict, checkpoint: bool = False) -> None:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if checkpoint:
        (run / "checkpoints" / "step_1").touch()


def test_a_row_is_started_gone_on_with_or_left_out(tmp_path: Path) -> None:
    command, run = RECIPE["command"], tmp_path / "runs" / "96_fc_arcface_3"
    new = command(tmp_path, "fc_arcface", 3, given())
    assert new[3:4] == ["train"] and "--overwrite" not in new and new[new.index("--run") + 1] == str(run)
    assert new[new.index("--verify-every") + 1] == "3"  # 96 x 6 images in batches of 256
    start, end = {"kind": "start", "config": {}}, {"kind": "end", "step": 6}
    started(run, start)
    assert command(tmp_path, "fc_arcface", 3, given())[-1] == "--overwrite"  # stopped before it saved anything
    started(run, start, checkpoint=True)
    assert command(tmp_path, "fc_arcface", 3, given())[3:] == ["train", "--resume", "--run", str(run)]
    started(run, start, end, checkpoint=True)
    assert command(tmp_path, "fc_arcface", 3, given()) == []
    noisy = command(tmp_path, "fc_arcface", 3, given(label_noise=0.1))
    assert noisy[noisy.index("--data") + 1] == str(tmp_path / "train_96_noise_0.1.rec")


@pytest.mark.parametrize("row", RECIPE["ROWS"])
def test_the_trainer_takes_every_row(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[TrainConfig] = []
    ended = Namespace(signal=None)
    monkeypatch.setattr("attfc_cuda.train.train", lambda config, _: taken.append(config) or ended)
    assert main(RECIPE["command"](tmp_path, row, 3, given(flags=["--epochs", "9"]))[3:]) == 0
    (config,) = taken
    assert config.head.head == row.split("_")[0].replace("partial", "partial_fc") and config.optim.epochs == 9
    assert config.head.margin == ("adasin" if "adasin" in row else "arcface") and config.run.seed == 3
    if config.head.head == "attfc":
        assert config.head.capacity_share == float(row.split("_")[2]) / 100
