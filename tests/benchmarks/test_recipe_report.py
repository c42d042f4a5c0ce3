"""examples/recipes/report.py on runs of the textbook's head, and the memory of heads by format and optimizer."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from attfc_cuda import cli
from attfc_cuda.train import TrainConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
REPORT = runpy.run_path(str(EXAMPLES / "recipes" / "report.py"))
# 16 identities of 4 images, each of which is a probe; embeddings of 32 numbers.
SMALL = "--data procedural:16x4 --steps 2 --image-size 16 --batch-size 16 --embedding-dim 32 --threads 1 --device cpu"
NUMBERS = 16 * 32


@pytest.mark.proof
def test_textbook_and_trainer_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same settings, yet of two heads: two rows, and the textbook's centres come from its own report."""
    textbook = runpy.run_path(str(EXAMPLES / "full_fc_arcface.py"))["FullFC"]
    assert textbook.gallery_size(TrainConfig()) == 0
    for name, objective in (("textbook_0", textbook), ("attfc_0", None)):
        arguments = [*SMALL.split(), "--verify-num-pairs", "400", "--run", str(tmp_path / name)]
        assert cli.main(["train", *arguments], objective) == 0
    capsys.readouterr()
    names = [str(tmp_path / name) for name in ("textbook_0", "attfc_0")]
    REPORT["main"]([*names, "--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "sizes")])
    rows = capsys.readouterr().out.splitlines()[2:4]
    assert rows[0].startswith("| textbook |") and rows[1].startswith("| attfc |")
    runs = json.loads((tmp_path / "all.json").read_text())["runs"]
    assert [(run["head"], run["centers"]) for run in runs] == [("textbook", 16), ("attfc", 16)]
    # Weights, momentum and gradient; a container of four batches in float32 has 16 of its slots in use.
    assert [run["head_mib"] * 2**20 for run in runs] == [4 * 3 * NUMBERS, 4 * NUMBERS]
    assert "full FC, textbook (0.0 MiB)" in (tmp_path / "sizes.svg").read_text()


def config(**changes: object) -> dict:
    plain = TrainConfig().to_dict()
    plain["model"]["embedding_dim"] = 32
    for name, value in changes.items():
        next(group for group in plain.values() if name in group)[name] = value
    return plain


@pytest.mark.parametrize(
    ("head", "changes", "bytes_a_number"),
    [
        ("attfc", {}, 4),
        ("attfc", {"precision": "bf16"}, 2),
        ("attfc", {"precision": "fp16"}, 2),
        ("attfc", {"precision": "bf16", "container_dtype": "float32"}, 4),
        ("attfc", {"container_dtype": "bfloat16"}, 2),
        ("attfc", {"optimizer": "adamw"}, 4),
        ("fc", {"precision": "bf16"}, 4 * 2),
        ("fc", {"fuse_optimizer": False}, 4 * 3),
        ("fc", {"optimizer": "adamw"}, 4 * 3),
        ("partial_fc", {"optimizer": "adamw", "fuse_optimizer": False}, 4 * 4),
        ("textbook", {"fuse_optimizer": True}, 4 * 3),
    ],
)
def test_memory_of_a_head_follows_format_and_optimizer(head: str, changes: dict, bytes_a_number: int) -> None:
    assert REPORT["head_bytes"](config(**changes), head, 16) == bytes_a_number * NUMBERS


def run_of(name: str, seed: int, rates: dict[str, float], interval: list[float] | None = None) -> dict:
    at_far = {far: {"tar": rate, "tar_interval": interval} for far, rate in rates.items()}
    held_out = {"accuracy": 0.9 + seed / 100, "tar_at_far": rates, "at_far": at_far}
    return {
        "name": name, "head": "attfc", "seed": seed, "config": {"of": name[:-2]}, "centers": 16, "head_mib": 1.0,
        "training_s": 60.0, "verification": {"held-out": held_out},
    }  # fmt: skip


def test_table_shows_the_rate_asked_for_with_its_interval_or_the_spread_over_seeds() -> None:
    rates = {"0.01": 0.7, "0.0001": 0.3}
    runs = [run_of("one_0", 0, rates, [0.25, 0.35]), run_of("two_0", 0, rates), run_of("two_1", 1, rates)]
    _, _, one, two = REPORT["table"](runs, "0.0001").splitlines()
    assert one == "| one | 0.900 / 0.300 [0.250, 0.350] | 1.00 | 1 | 1.0 |"
    assert two == "| two | 0.905 ± 0.007 / 0.300 ± 0.000 | 1.00 | 2 | 1.0 |"
    assert "0.900 / 0.700" in REPORT["table"](runs, "0.01")


def test_the_plot_shows_the_interval_of_a_single_run_and_the_spread_of_several() -> None:
    rates = {"0.0001": 0.3}
    groups = [[run_of("one_0", 0, rates, [0.25, 0.36])], [run_of("two_0", 0, rates), run_of("two_1", 1, rates)]]
    for group, far, expected in ((0, "0.0001", (0.25, 0.36)), (1, None, (0.905 - 0.00707, 0.905 + 0.00707))):
        axes = Figure().subplots()
        REPORT["draw_list"](axes, [groups[group]], "held-out", far, "black")
        (segment,) = axes.containers[0].lines[2][0].get_segments()
        assert segment[:, 1] == pytest.approx(expected, abs=1e-5)


def test_a_rate_that_pairs_do_not_support_is_left_out_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_of("many_0", 0, {"0.01": 0.7, "0.0001": 0.3}), run_of("few_0", 0, {"0.01": 0.7})]
    monkeypatch.setitem(REPORT["main"].__globals__, "read_run", lambda folder: runs[folder.name == "few"])
    REPORT["main"](["many", "few", "--far", "1e-4", "--plot", str(tmp_path / "sizes")])
    assert "| few | 0.900 / - | 1.00 | 1 | 1.0 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        REPORT["main"](["many", "few", "--far", "1e-5"])
    message = "--far must be one that the runs verified at, 0.0001, 0.01, got 1e-05"
    assert message in capsys.readouterr().err
