"""examples/recipes/container_share.py: rows that end, that were stopped, and that have not begun."""

from __future__ import annotations

import json
import runpy
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from attfc_cuda.cli import main
from attfc_cuda.train import TrainConfig

RECIPE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "recipes" / "container_share.py"))
KINDS = ("adasin", "arcface", "curricularface")


def given(**changes: object) -> Namespace:
    return Namespace(**{"identities": 96, "label_noise": 0.0, "epochs": 2.0, "flags": [], **changes})


def started(run: Path, *records: dict, checkpoint: bool = False) -> None:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if checkpoint:
        (run / "checkpoints" / "step_00000001.pt").touch()


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


def test_more_flags_of_the_trainer_come_behind_a_double_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Namespace] = []
    monkeypatch.setitem(RECIPE["main"].__globals__, "run", lambda folder, given: taken.append(given))
    RECIPE["main"](["run", "--rows", "fc_arcface", "--seeds", "1", "--", "--scale", "32"])
    RECIPE["main"](["run"])
    assert [given.flags for given in taken] == [["--scale", "32"], []] and taken[0].seeds == [1]


@pytest.mark.parametrize("row", RECIPE["ROWS"])
def test_the_trainer_takes_every_row(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[TrainConfig] = []
    ended = Namespace(signal=None)
    monkeypatch.setattr("attfc_cuda.train.train", lambda config, _: taken.append(config) or ended)
    assert main(RECIPE["command"](tmp_path, row, 3, given(flags=["--epochs", "9"]))[3:]) == 0
    (config,) = taken
    assert config.head.head == row.split("_")[0].replace("partial", "partial_fc") and config.optim.epochs == 9
    assert config.head.margin == next((word for word in row.split("_") if word in KINDS), "arcface")
    assert config.run.seed == 3
    if row.endswith("one_batch"):
        assert config.head.capacity == config.dataset.batch_size
    elif config.head.head == "attfc":
        assert config.head.capacity_share == float(row.split("_")[2]) / 100


def test_ages_are_those_of_a_list_of_the_last_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    identities, images, batch, slots = 50, 4, 8, 32
    for name, value in {"IMAGES": images, "BATCH": batch, "SHARES": (2,)}.items():
        monkeypatch.setitem(RECIPE["ages"].__globals__, name, value)
    rng, seen, held = np.random.default_rng(0), OrderedDict(), 0
    for _ in range(2):
        order, held = rng.permutation(np.repeat(np.arange(identities), images)), 0
        for step in range(len(order) // batch):
            labels = order[step * batch : (step + 1) * batch]
            held += sum(label in seen for label in labels)
            for label in labels:
                seen.pop(label, None)
                seen[label] = None
            while len(seen) > slots:
                seen.popitem(last=False)
            seen = OrderedDict((label, (age or 0) + 1 if label not in labels else 0) for label, age in seen.items())
    row = RECIPE["ages"](identities, epochs=2).splitlines()[-1].split("|")
    assert row[2].strip() == str(slots) and row[-2].strip() == f"{held / (len(order) // batch * batch):.1%}"
    oldest = max(seen.values())
    assert abs(int(row[6]) - oldest) <= 1  # ages are counted in rows, and rounded
