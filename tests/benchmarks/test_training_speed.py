"""benchmarks/training.py: a step's time is cut where it says, nothing of the training changes, and a small run."""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch

from attfc_cuda.train import train
from attfc_cuda.train.log import read_log
from attfc_cuda.train.objective import OBJECTIVES, Objective

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import training  # noqa: E402

SMALL = ["--steps", "4", "--identities", "16", "--batch", "8", "--image-size", "16", "--pairs", "20", "--threads", "1"]
SMALL += ["--device", "cpu"]


class Slow(torch.nn.Module):
    """Sleeps in its forward and backward pass."""

    def __init__(self, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.forward_s)
        y = x * self.weight
        if y.requires_grad:
            y.register_hook(lambda grad: time.sleep(self.backward_s))
        return y * 1.0


class SleepyObjective(Objective):
    def __init__(self, backbone: torch.nn.Module, loader=None, config=None) -> None:
        super().__init__()
        self.encoder, self.head = Slow(0.07, 0.0), Slow(0.02, 0.03)

    def forward(self, backbone: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        embeddings = backbone(batch)
        with torch.no_grad():
            self.encoder(torch.cat([batch, batch]))
        return self.head(embeddings).sum()

    def after_step(self, backbone: torch.nn.Module, momentum: float) -> None:
        time.sleep(0.04)


def test_the_clock_tells_head_gallery_and_backbone_apart() -> None:
    """Sleeps of known length in each part; a busy machine can only make a part longer."""
    clock = training.Clock(torch.device("cpu"))
    backbone = Slow(0.3, 0.3)
    objective = training.timed(SleepyObjective, clock)(backbone, None, None)
    for _ in range(2):
        objective(backbone, torch.ones(5, 3)).backward()
        objective.after_step(backbone, 0.9)
    for head, gallery in zip(clock.head, clock.gallery, strict=True):
        assert 0.05 <= head < 0.25, "0.02 + 0.03, and neither backbone pass"
        assert 0.11 <= gallery < 0.3, "0.07 + 0.04"
    assert clock.encoder_images == [15, 15]
    # The first backward pass alone moved the weights' gradients: the hooks change nothing.
    assert backbone.weight.grad == 2 * 15


@pytest.mark.parametrize("head", ["attfc", "partial_fc", training.TEXTBOOK])
def test_watching_does_not_change_the_losses(head: str, tmp_path: Path) -> None:
    given = training.parse_arguments(SMALL)
    kind = runpy.run_path(str(training.EXAMPLE))["FullFC"] if head == training.TEXTBOOK else OBJECTIVES[head]
    losses, clock = [], training.Clock(torch.device("cpu"))
    for name, objective_type in (("plain", kind), ("watched", training.timed(kind, clock))):
        train(training.config_of(head, given, tmp_path / name), objective_type)
        records = read_log(tmp_path / name / "log.jsonl")
        losses.append([record["loss"] for record in records if record["kind"] == "step"])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert len(clock.head) == len(clock.gallery) == 4 and min(clock.head) > 0
    assert (min(clock.gallery) > 0) == (head == "attfc")
    # Probes; AttFC's two gallery images a probe as well.
    assert clock.encoder_images == [24 if head == "attfc" else 8] * 4


def test_a_small_run_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, threads = tmp_path / "training.json", torch.get_num_threads()
    try:
        training.main([*SMALL, "--heads", "attfc", "fc", "--markdown", "--output", str(output)])
    finally:
        torch.set_num_threads(threads)
    report = json.loads(output.read_text())
    assert report["schema"] == "training/1" and [row["head"] for row in report["rows"]] == ["attfc", "fc"]
    for row in report["rows"]:
        assert row["images_per_s"] > 0 and row["peak_mib"] > 50 and 0 <= row["accuracy"] <= 1
        assert 0 < row["head_share"] < 1 and 0 < row["head_share"] + row["gallery_share"] < 1
        assert row["steps"] == 4 and row["counted_steps"] == 3 and row["identities"] == 16
    attfc, fc = report["rows"]
    assert attfc["encoder_images_per_s"] == pytest.approx(3 * attfc["images_per_s"])
    assert fc["encoder_images_per_s"] == pytest.approx(fc["images_per_s"]) and fc["gallery_share"] == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| head | images/s |") and lines[2].startswith("| attfc | ")
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_a_training_that_fails_is_told() -> None:
    given = training.parse_arguments([*SMALL, "--image-size", "3"])
    with pytest.raises(RuntimeError, match="training under fc failed: .*image_size must be at least 16"):
        training.measure_fresh("fc", given)


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.parse_arguments(["--steps", "2"])
    assert "--steps must be 3 or more" in capsys.readouterr().err
