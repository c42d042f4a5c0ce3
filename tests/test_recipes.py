"""The committed recipes are settings that load, and their report says what the runs' logs say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from attfc_cuda.train import TrainConfig

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_recipe_loads_and_is_possible(path: Path) -> None:
    TrainConfig.load(path).check()


def write_run(
    folder: Path,
    seed: int,
    accuracy: float,
    head: str = "attfc",
    fill: int = 100,
    pairs: str = "faces",
    classes: int = 1000,
) -> None:
    """A finished run's log with an early and a last verification."""
    config = TrainConfig()
    config.run.seed, config.head.head, config.model.embedding_dim = seed, head, 256
    result = {"name": pairs, "accuracy_std": 0.01, "auc": 0.9, "eer": 0.1}
    records = [
        {
            "kind": "start",
            "step": 0,
            "config": config.to_dict(),
            "report": f"head          PartialFC, {classes} centres",
        },
        {"kind": "verify", "step": 5, "accuracy": 0.5, "tar_at_far": {"0.01": 0.1}, **result},
        {"kind": "step", "step": 10, "loss": 1.0, "fill": fill, "positive_cosine": 0.6},
        {"kind": "verify", "step": 10, "accuracy": accuracy, "tar_at_far": {"0.01": accuracy - 0.5}, **result},
        {"kind": "end", "step": 10, "seconds": 90.0 + seed},
    ]
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_report_means_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = runpy.run_path(str(RECIPES / "report.py"))["main"]
    write_run(tmp_path / "small_0", 0, 0.8)
    write_run(tmp_path / "small_1", 1, 0.9)
    write_run(tmp_path / "full_0", 0, 0.7, head="fc", fill=1000)
    write_run(tmp_path / "part_0", 0, 0.6, head="partial_fc", fill=100)
    (tmp_path / "running_0").mkdir()
    runs = [str(tmp_path / name) for name in ("small_0", "small_1", "full_0", "part_0", "running_0")]
    report([*runs, "--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "sizes")])
    shown = capsys.readouterr().out.splitlines()
    # 100 centres of 256 float32; 1000 trained ones come with their momentum.
    assert shown[2] == "| small | 0.850 ± 0.071 / 0.350 ± 0.071 | 0.10 | 2 | 1.5 |"
    assert shown[3] == "| full | 0.700 / 0.200 | 1.95 | 1 | 1.5 |"
    assert shown[4] == "| part | 0.600 / 0.100 | 1.95 | 1 | 1.5 |"  # a step's 100 are sampled of 1000
    assert len(shown) == 6
    saved = json.loads((tmp_path / "all.json").read_text())["runs"]
    assert [run["verification"]["faces"]["accuracy"] for run in saved] == [0.8, 0.9, 0.7, 0.6]
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (
        tmp_path / "sizes.svg"
    ).read_text()


def test_a_list_that_a_run_lacks_is_left_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a_0", 0, 0.8)
    write_run(tmp_path / "b_0", 0, 0.7, head="fc", pairs="others", classes=100)
    report = runpy.run_path(str(RECIPES / "report.py"))["main"]
    report([str(tmp_path / "a_0"), str(tmp_path / "b_0"), "--plot", str(tmp_path / "sizes")])
    rows = capsys.readouterr().out.splitlines()[2:4]
    assert rows == ["| a | 0.800 / 0.300 |  | 0.10 | 1 | 1.5 |", "| b |  | 0.700 / 0.200 | 0.20 | 1 | 1.5 |"]


def test_report_without_a_finished_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runpy.run_path(str(RECIPES / "report.py"))["main"]([str(tmp_path)])
    assert "none of the runs is finished" in capsys.readouterr().err


def test_spread_counts_directions_and_what_all_share() -> None:
    describe = runpy.run_path(str(RECIPES / "spread.py"))["describe"]
    # Four faces, two people: one shared direction (0), people in directions 1 and 2.
    faces = torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.8, 0.0], [0.6, 0.0, 0.8], [0.6, 0.0, 0.8]])
    a, b, same = torch.tensor([0, 2, 0, 1]), torch.tensor([1, 3, 2, 3]), torch.tensor([True, True, False, False])
    # Impostors at .36, genuine at 1; the mean is (.6, .4, .4); all variance lies along (0, 1, -1).
    assert describe(faces, a, b, same) == "1.00 ± 0.00 | 0.36 ± 0.00 | 1.000 | 0.82 | 1.0 |"
