"""The best network of a run: which one it is, that it stays, and that commands take it by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attfc_cuda import cli
from attfc_cuda.evaluation import VerificationResult, verify
from attfc_cuda.train import Callback, TrainConfig, checkpoint, load_backbone, train, validation
from attfc_cuda.train.best import BEST, Best, path_of_best, score_of
from attfc_cuda.train.log import read_log
from attfc_cuda.train.manifest import Manifest
from attfc_cuda.train.run_folder import RunRemoved

Tiny = Callable[..., TrainConfig]
JUDGED = verify([0.9, 0.8, 0.1, 0.2] * 3, [True, True, False, False] * 3, [0, 1] * 6)


def result(accuracy: float | None) -> VerificationResult:
    return dataclasses.replace(JUDGED, accuracy=accuracy)


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """What the verification after a step is to find."""
    wanted: dict[int, float] = {}

    def verify_sets(backbone, sets, step, log, device):
        log.verification(step, "held-out", json.loads(result(wanted[step]).to_json()))
        return {"held-out": result(wanted[step])}

    monkeypatch.setattr(validation, "verify_sets", verify_sets)
    return wanted


class Weights(Callback):
    """The first parameter of the backbone after each step."""

    def __init__(self) -> None:
        self.after: dict[int, torch.Tensor] = {}

    def on_step(self, training, loss) -> None:
        self.after[training.step] = next(training.backbone.parameters()).detach().clone()


def best_of(run: Path) -> tuple[int, float, torch.Tensor]:
    state = checkpoint.load(run / BEST)
    return state["step"], state["best"]["score"], next(load_backbone(run / BEST)[0].parameters()).detach()


def test_the_best_stays_whatever_is_pruned_and_resumed(tiny_config: Tiny, accuracies: dict[int, float]) -> None:
    accuracies |= {1: 0.6, 2: 0.9, 3: 0.7, 4: 0.9, 5: 0.8, 6: 0.95}
    common = {"verify_every": 1, "checkpoint_every": 1, "keep": 1}
    weights, config = Weights(), tiny_config(steps=5, **common)
    train(config, callbacks=[weights])
    run = config.run.run
    assert [checkpoint.step_of(path) for path in checkpoint.find(run / "checkpoints")] == [5]
    step, score, weight = best_of(run)
    assert (step, score) == (2, 0.9) and torch.equal(weight, weights.after[2])  # of equal ones the first
    assert BEST in json.loads((run / "manifest.json").read_text())["files"]
    assert [(r["step"], r["score"]) for r in read_log(run / "log.jsonl") if r["kind"] == "best"] == [(1, 0.6), (2, 0.9)]
    # A run that goes on still knows it, and keeps a better one.
    accuracies[5] = 0.85
    train(tiny_config(steps=6, resume=True, **common), callbacks=[weights])
    step, score, weight = best_of(run)
    assert (step, score) == (6, 0.95) and torch.equal(weight, weights.after[6])
    assert path_of_best(run) == run / BEST


def test_a_run_that_goes_back_measures_anew(tiny_config: Tiny, accuracies: dict[int, float]) -> None:
    accuracies |= {1: 0.6, 2: 0.7, 3: 0.9, 4: 0.8}
    common = {"verify_every": 1, "checkpoint_every": 1, "keep": 9}
    config = tiny_config(steps=4, **common)
    train(config)
    for step in (3, 4):
        checkpoint.delete([checkpoint.path_of(config.run.run / "checkpoints", step)])
    accuracies |= {3: 0.75, 4: 0.7}
    train(tiny_config(steps=4, resume=True, **common))
    assert best_of(config.run.run)[:2] == (3, 0.75)


def test_a_stop_keeps_it_and_a_damaged_one_is_replaced(tiny_config: Tiny, accuracies: dict[int, float]) -> None:
    class Stop(Callback):
        def on_step(self, training, loss) -> None:
            if training.step == 2:
                signal.raise_signal(signal.SIGTERM)

    accuracies |= {1: 0.9, 2: 0.8, 3: 0.7}
    config = tiny_config(verify_every=1, steps=3)
    assert train(config, callbacks=[Stop()]).signal == signal.SIGTERM
    assert best_of(config.run.run)[:2] == (1, 0.9)
    (config.run.run / BEST).write_bytes(b"damaged")
    train(tiny_config(verify_every=1, steps=3, resume=True))
    assert best_of(config.run.run)[:2] == (3, 0.7)
    notes = [record["text"] for record in read_log(config.run.run / "log.jsonl") if record["kind"] == "note"]
    assert (
        sum(f"best network so far is lost, the next verification begins anew: {config.run.run}" in n for n in notes)
        == 1
    )
    assert any("best.pt is damaged (checkpoint: " in note and "7 bytes that do not load" in note for note in notes)


def test_a_file_of_somebody_else_stays(tiny_config: Tiny, accuracies: dict[int, float]) -> None:
    accuracies |= {2: 0.8}
    config = tiny_config(steps=2)
    config.run.run.mkdir()
    for name in (BEST, "card.md", "training.png"):
        (config.run.run / name).write_text("mine")
    config.run.pictures = True
    train(config)
    notes = [r["text"] for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    for name in (BEST, "card.md", "training.png"):
        assert (config.run.run / name).read_text() == "mine"
        assert sum(f"{name} is not the run's own" in note for note in notes) >= 1, name


def test_overwriting_a_run_takes_its_best_along(tiny_config: Tiny, accuracies: dict[int, float]) -> None:
    accuracies |= {2: 0.9}
    train(tiny_config(steps=2))
    accuracies |= {2: 0.5}
    config = tiny_config(steps=2, overwrite=True)
    train(config)
    assert best_of(config.run.run)[:2] == (2, 0.5)


def test_other_pairs_under_the_same_name_are_not_compared(tmp_path: Path) -> None:
    own = Manifest(tmp_path)
    best = Best(own, "accuracy", 0)
    state = {"config": TrainConfig().to_dict(), "backbone": {}}
    assert best.offer(state, 1, {"held-out": result(0.9)}) is None and best.score == 0.9
    assert best.offer(state, 2, {"held-out": result(0.8)}) is None and best.score == 0.9
    others = {"held-out": dataclasses.replace(result(0.8), num_impostors=JUDGED.num_impostors + 1)}
    assert best.offer(state, 3, others) is None and best.score == 0.8
    again = Best(own, "accuracy", 3)
    assert again.offer(state, 4, others) is None and (again.score, again.step) == (0.8, 3)


def test_a_best_that_cannot_be_named_or_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Manifest, "_write", full)
    best = Best(Manifest(tmp_path), "accuracy", 0)
    assert best.offer({}, 1, {"a": result(0.9)}) == f"{tmp_path / BEST} could not be written: no space left"
    assert best.score is None and not list(tmp_path.iterdir())


def test_a_run_folder_that_goes_while_it_verifies_is_missed(tiny_config: Tiny, accuracies: dict[int, float]) -> None:
    accuracies |= {1: 0.9, 2: 0.8, 3: 0.95}
    config = tiny_config(steps=3, verify_every=1, pictures=True, log_every=10, checkpoint_every=0)

    class Remove(Callback):
        def on_step(self, training, loss) -> None:
            if training.step == 1:
                shutil.rmtree(training.config.run.run)

    with pytest.raises(RunRemoved, match="which was removed; saved anew"):
        train(config, callbacks=[Remove()])
    assert checkpoint.load_newest(config.run.run / "checkpoints")["step"] == 3


@pytest.mark.parametrize("by, expected", [("accuracy", 0.75), ("auc", 1.0), ("tar", None)])
def test_the_score_is_the_mean_of_the_sets_that_have_one(by: str, expected: float | None) -> None:
    assert score_of({"a": result(0.7), "b": result(0.8), "c": result(None)}, by) == (
        None if expected is None else pytest.approx(expected)
    )


def test_tar_is_compared_at_one_rate() -> None:
    results = {name: dataclasses.replace(JUDGED, tar_at_far={1e-3: tar, 1e-2: 0.9}) for name, tar in
               {"a": 0.2, "b": 0.4}.items()}  # fmt: skip
    assert score_of(results, "tar") == pytest.approx(0.3)
    assert score_of({"c": result(None)}, "accuracy") is None


def test_commands_take_the_best_by_name(
    tiny_config: Tiny, accuracies: dict[int, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies |= {1: 0.9, 2: 0.8}
    config = tiny_config(steps=2, verify_every=1)
    train(config)
    run, images = config.run.run, "procedural:4x2@99"
    outputs = {}
    for name, more in {"newest": [], "best": ["--best"]}.items():
        to = tmp_path / f"{name}.safetensors"
        assert cli.main(["export", "--run", str(run), "--to", str(to), *more]) == 0
        assert cli.main(["embed", images, "--checkpoint", str(run), "--to", f"{tmp_path}/{name}.npy", *more]) == 0
        out = ["--out", str(tmp_path / name)]
        assert cli.main(["verify", "--checkpoint", str(run), "--data", images, "--num-pairs", "8", *out, *more]) == 0
        outputs[name] = to.read_bytes(), (tmp_path / f"{name}.npy").read_bytes()
    assert outputs["best"][0] != outputs["newest"][0] and outputs["best"][1] != outputs["newest"][1]
    # A path does the same.
    assert cli.main(["embed", images, "--checkpoint", str(run / BEST), "--to", f"{tmp_path}/path.npy"]) == 0
    assert (tmp_path / "path.npy").read_bytes() == outputs["best"][1]
    capsys.readouterr()
    assert cli.main(["embed", images, "--checkpoint", str(run / BEST), "--best", "--to", f"{tmp_path}/x.npy"]) == 2
    assert "best: checkpoint must be a run folder" in capsys.readouterr().err
    assert cli.main(["export", "--run", str(run / BEST), "--best", "--to", str(tmp_path / "x.onnx")]) == 2
    assert f"best: run must be a run folder, got {run / BEST}" in capsys.readouterr().err
    (run / BEST).unlink()
    assert cli.main(["export", "--run", str(run), "--to", str(tmp_path / "x.onnx"), "--best"]) == 2
    assert f"{run} must hold best.pt, got no such file" in capsys.readouterr().err
