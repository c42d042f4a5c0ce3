"""benchmarks/training.py: a step's time is cut where it says, nothing of the training changes, and a small run."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
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


class HandTurned(training.Clock):
    """A clock that only the modules below move."""

    seconds = 0.0

    def now(self) -> float:
        return self.seconds


class Slow(torch.nn.Module):
    """Takes `forward_s` for its forward and `backward_s` for its backward pass."""

    def __init__(self, clock: HandTurned, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.clock, self.forward_s, self.backward_s = clock, forward_s, backward_s
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.seconds += self.forward_s
        y = x * self.weight
        if y.requires_grad:
            y.register_hook(lambda grad: self.pass_backward())
        return y * 1.0

    def pass_backward(self) -> None:
        self.clock.seconds += self.backward_s


def test_the_clock_tells_head_gallery_and_backbone_apart() -> None:
    clock = HandTurned(torch.device("cpu"))
    backbone = Slow(clock, 100.0, 200.0)

    class Slowly(Objective):
        def __init__(self, backbone: torch.nn.Module, loader: object, config: object) -> None:
            super().__init__()
            self.encoder, self.head = Slow(clock, 7.0, 0.0), Slow(clock, 2.0, 3.0)

        def forward(self, backbone: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
            embeddings = backbone(batch)
            with torch.no_grad():
                self.encoder(torch.cat([batch, batch]))
            return self.head(embeddings).sum()

        def after_step(self, backbone: torch.nn.Module, momentum: float) -> None:
            clock.seconds += 4.0

    objective = training.timed(Slowly, clock)(backbone, None, None)
    for _ in range(2):
        objective(backbone, torch.ones(5, 3)).backward()
        objective.after_step(backbone, 0.9)
        clock.seconds += 1000.0  # loading, the optimizer
    assert clock.head == [2.0 + 3.0] * 2
    assert clock.gallery == [7.0 + 4.0] * 2
    assert clock.encoder_images == [5 + 10] * 2
    assert backbone.weight.grad == 2 * 15, "the hooks leave the gradients alone"
    assert clock.seconds == 2 * (100 + 200 + 7 + 2 + 3 + 4 + 1000)


@pytest.mark.parametrize("head", ["attfc", "partial_fc", training.TEXTBOOK])
def test_watching_does_not_change_the_losses(head: str, tmp_path: Path) -> None:
    given = training.parse_arguments(SMALL)
    kind = runpy.run_path(str(training.EXAMPLE))["FullFC"] if head == training.TEXTBOOK else OBJECTIVES[head]
    losses, clock = [], training.Clock(torch.device("cpu"))
    for name, objective_type in (("plain", kind), ("watched", training.timed(kind, clock))):
        train(training.config_of(training.HEADS[head], given, tmp_path / name), objective_type)
        records = read_log(tmp_path / name / "log.jsonl")
        losses.append([record["loss"] for record in records if record["kind"] == "step"])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert len(clock.head) == len(clock.gallery) == 4 and min(clock.head) > 0
    assert (min(clock.gallery) > 0) == (head == "attfc")
    # Probes; AttFC's two gallery images a probe as well.
    assert clock.encoder_images == [24 if head == "attfc" else 8] * 4


@pytest.mark.proof
def test_a_small_run_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row in a fresh process as always; the others here, to save the time of its imports."""
    output, threads, fresh = tmp_path / "training.json", torch.get_num_threads(), training.measure_fresh
    here = training.measure_here
    monkeypatch.setattr(
        training, "measure_fresh", lambda name, *rest: (fresh if name == "one image" else here)(name, *rest)
    )
    flags = "--gallery-size 1 --batch-size 4"
    try:
        training.main(
            [*SMALL, "--heads", "attfc", "fc", "--row", "one image", flags, "--markdown", "--output", str(output)]
        )
    finally:
        torch.set_num_threads(threads)
    report = json.loads(output.read_text())
    assert report["schema"] == "training/1" and [row["head"] for row in report["rows"]] == ["attfc", "fc", "one image"]
    assert report["command"].endswith(f"--row 'one image' '{flags}' --markdown --output {output}")
    for row in report["rows"]:
        assert row["images_per_s"] > 0 and row["peak_mib"] > 50 and 0 <= row["accuracy"] <= 1
        assert 0 < row["head_share"] < 1 and 0 < row["head_share"] + row["gallery_share"] < 1
        assert row["steps"] == 4 and row["counted_steps"] == 3 and row["identities"] == 16
    attfc, fc, own = report["rows"]
    assert (own["flags"], own["batch"], fc["flags"], fc["batch"]) == (flags, 4, "--head fc --margin adasin", 8)
    assert own["encoder_images_per_s"] == pytest.approx(2 * own["images_per_s"])
    assert attfc["encoder_images_per_s"] == pytest.approx(3 * attfc["images_per_s"])
    assert fc["encoder_images_per_s"] == pytest.approx(fc["images_per_s"]) and fc["gallery_share"] == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| head | images/s | of full FC's |") and lines[2].startswith("| attfc | ")
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    cells = [line.split(" | ") for line in lines[2:]]
    assert cells[0][2] == f"{attfc['images_per_s'] / fc['images_per_s']:.2f}" and cells[1][2] == "1.00"
    assert cells[2][2] == cells[2][4] == "-", "of another batch than full FC's row"
    assert cells[0][4] == f"{fc['cpu_s_per_image'] / attfc['cpu_s_per_image']:.2f}" and cells[1][4] == "1.00"
    assert cells[2][-1] == f"{flags} |"


def test_a_training_that_fails_is_told_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "training.json"

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if "fc" in command:
            return subprocess.CompletedProcess(command, 1, "", "ValueError: train: lr must be above 0")
        row = {"head": "attfc", "flags": "--head attfc", "images_per_s": 1.0}
        return subprocess.CompletedProcess(command, 0, f"step 1\n{json.dumps(row)}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(training.measure, "environment", dict)
    with pytest.raises(SystemExit, match="training under fc failed:\nValueError: train: lr must be above 0"):
        training.main([*SMALL, "--heads", "attfc", "fc", "--output", str(output)])
    assert [row["head"] for row in json.loads(output.read_text())["rows"]] == ["attfc"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "2"], "--steps must be 3 or more"),
        (["--heads", "fc", "--row", "fc", ""], "--row must have names of their own, got fc, fc"),
        (["--row", "mine", "--no-such-flag 3"], "no-such-flag"),
        (["--row", "mine", "--batch-size 0"], "batch_size must be at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_be_run(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        training.parse_arguments(arguments)
    told = capsys.readouterr()
    assert message in f"{stopped.value} {told.out} {told.err}"
