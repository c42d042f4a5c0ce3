"""The picture of the cosines at each validation, and the warning that positives look learned while faces are not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attfc_cuda.data import Batch
from attfc_cuda.heads.attfc import CosineSample
from attfc_cuda.train import AttFCObjective, TrainConfig, diagnostics, train
from attfc_cuda.train.diagnostics import FallCheck, SaturationCheck, record_cosines
from attfc_cuda.train.log import RunLog, read_log
from attfc_cuda.train.manifest import Manifest

Tiny = Callable[..., TrainConfig]


def found(accuracy: float | None, num_pairs: int = 6000, num_identities: int = 1000) -> SimpleNamespace:
    """What the checks read of a list's result."""
    kinds = {"num_genuine": num_pairs // 2, "num_impostors": num_pairs - num_pairs // 2}
    return SimpleNamespace(accuracy=accuracy, num_pairs=num_pairs, num_identities=num_identities, **kinds)


def warns(*validations: tuple[float, float]) -> list[bool]:
    """Which of the validations (positive cosine, accuracy) warn."""
    check = SaturationCheck()
    return [check.warning(cosine, {"set": found(value)}) is not None for cosine, value in validations]


def test_two_saturated_validations_without_a_rise_warn_once() -> None:
    assert warns((0.5, 0.6), (0.9, 0.55), (0.95, 0.6), (0.99, 0.5), (0.99, 0.5)) == [
        False,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "validations",
    [
        [(0.7, 0.6), (0.7, 0.55), (0.7, 0.5)],  # positives are not saturated
        [(0.9, 0.6), (0.9, 0.63), (0.9, 0.66)],  # verification rises
        [(0.9, 0.6), (0.9, 0.6), (0.9, 0.65), (0.9, 0.65)],  # one validation is no trend
        [(0.9, 0.97), (0.9, 0.97), (0.9, 0.96)],  # learned indeed
    ],
    ids=["low", "rising", "single", "good"],
)
def test_a_run_that_learns_is_left_alone(validations: list[tuple[float, float]]) -> None:
    assert not any(warns(*validations))


def test_the_accuracy_is_the_mean_of_the_lists_and_none_says_nothing() -> None:
    check = SaturationCheck()
    lists = {"a": found(0.5), "b": found(0.7)}
    assert check.warning(0.9, lists) is None and check.warning(0.9, {}) is None and check.warning(0.9, lists) is None
    assert "mean cosine of 0.91" in (text := check.warning(0.91, lists)) and "accuracy 0.600, best 0.600" in text
    for setting in ("--enqueue before", "--capacity", "--encoder-momentum", "--scale"):
        assert setting in text


def test_a_fall_far_below_the_best_warns_once() -> None:
    def falls(*accuracies: float | None, pairs: int = 6000) -> list[bool]:
        check = FallCheck()
        lists = [{"set": found(value, pairs)} for value in accuracies]
        return [check.warning(results) is not None for results in lists]

    assert falls(0.818, 0.657, 0.779, 0.639) == [False, True, False, False]  # a run whose gallery encoder lagged
    assert falls(0.60, 0.72, 0.70, 0.71, 0.80, 0.775) == [False] * 6
    assert falls(0.9, 0.8, pairs=20) == [False, False]  # 0.38 would be three standard errors
    assert falls(0.9, 0.8, pairs=600) == [False, True]
    assert falls(None, None) == [False, False]
    check = FallCheck()
    assert check.warning({name: found(accuracy, 600) for name, accuracy in (("a", 0.9), ("b", 0.7))}) is None
    without = {"a": found(0.8, 600), "b": found(None, 600)}
    assert check.warning(without) is None  # 0.8, as before
    told = check.warning({"a": found(0.65, 600)})
    assert "mean accuracy 0.650, best 0.800" in told and "--encoder-momentum" in told and "--lr" in told


@pytest.mark.parametrize(
    "others",
    [
        {"easy": found(0.99), "hard": found(0.8)},  # --verify-pairs has a list more
        {"hard": found(0.8)},  # the other gave none
        {"easy": found(0.8, num_pairs=3000)},
        {"easy": found(0.8, num_identities=50)},
    ],
    ids=["more lists", "another list", "other pairs", "other people"],
)
def test_other_lists_are_not_compared_and_the_same_ones_are_again(others: dict[str, SimpleNamespace]) -> None:
    fall, saturation = FallCheck(), SaturationCheck()
    seen = [{"easy": found(0.99)}, others, others, {"easy": found(0.8)}, {"easy": found(0.8)}]
    assert [fall.warning(results) is not None for results in seen] == [False, False, False, True, False]
    assert [saturation.warning(0.9, results) is not None for results in seen[:2]] == [False, False]
    told = [saturation.warning(0.9, results) for results in seen[2:4]]
    assert told[0] is None and "mean accuracy 0.800, best 0.990" in told[1]


def test_the_loop_notes_a_fall(tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fallen(self: FallCheck, results: object) -> str:
        return f"warning: fallen on {', '.join(results)}"

    monkeypatch.setattr(FallCheck, "warning", fallen)
    config = tiny_config(verify_every=10)
    train(config)
    notes = [(r["step"], r["text"]) for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert notes == [(10, "warning: fallen on held-out"), (20, "warning: fallen on held-out")]


def test_a_run_that_goes_on_is_compared_with_the_best_that_it_had(
    tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: dict[type, list[tuple[float, ...]]] = {FallCheck: [], SaturationCheck: []}
    for check in compared:
        monkeypatch.setattr(
            check,
            "warning",
            lambda self, *seen: compared[type(self)].append((*seen[:-1], seen[-1]["held-out"].accuracy)),
        )
    train(tiny_config(steps=6, verify_every=2))
    before = {check: [seen[-1] for seen in each] for check, each in compared.items()}
    assert len(before[FallCheck]) == len(before[SaturationCheck]) == 3
    for each in compared.values():
        each.clear()
    train(tiny_config(steps=8, verify_every=2, resume=True))
    assert [accuracy for (accuracy,) in compared[FallCheck]][:3] == before[FallCheck] and len(compared[FallCheck]) == 4
    told = compared[SaturationCheck]
    assert [accuracy for _, accuracy in told][:3] == before[SaturationCheck] and len(told) == 4
    assert [math.isfinite(cosine) for cosine, _ in told] == [False] * 3 + [True]


def test_a_run_goes_on_whatever_its_log_has_of_verifications(tiny_config: Tiny) -> None:
    config = tiny_config(steps=2, verify_every=2)
    train(config)
    log = config.run.run / "log.jsonl"
    good = next(record for record in read_log(log) if record["kind"] == "verify")
    odd = ({"num_pairs": 0}, {"num_pairs": math.inf}, {"accuracy": 7.0}, {"accuracy": "x"}, {"at_far": 3}, {"name": []})
    for steps, changes in enumerate(odd, start=3):
        with open(log, "a") as file:
            file.write(json.dumps({**good, "step": 1, **changes}) + '\n{"kind": "verify", "st')
        train(tiny_config(steps=steps, resume=True))


def test_the_loop_warns_and_notes_it(tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Saturated(AttFCObjective):
        """Learns nothing, as all gradients are 0, and says that its positives are learned."""

        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            return super().forward(backbone, batch) * 0

        def stats(self) -> dict[str, Tensor]:
            return {**super().stats(), "positive_cosine": torch.tensor(0.99)}

    config = tiny_config(verify_every=4, lr=1e-9)
    train(config, Saturated)
    notes = [r for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert len(notes) == 1 and notes[0]["text"].startswith("warning: rows have a mean cosine of 0.99")
    assert notes[0]["step"] == 12  # the first is the best, then two in a row


def test_each_validation_draws_and_logs_the_cosines(tiny_config: Tiny) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    config = tiny_config(verify_every=10, tensorboard=True, pictures=True)
    train(config)
    run = config.run.run
    assert sorted(path.name for path in (run / "cosines").iterdir()) == ["step_00000010.png", "step_00000020.png"]
    with Image.open(run / "cosines" / "step_00000020.png") as image:
        assert image.format == "PNG" and min(image.size) >= 480
    records = [r for r in read_log(run / "log.jsonl") if r["kind"] == "cosines"]
    assert [r["step"] for r in records] == [10, 20]
    for kind in ("positive", "fresh_negative", "older_negative"):
        assert -1.001 <= records[1][kind]["p1"] <= records[1][kind]["mean"] <= records[1][kind]["p99"] <= 1.001
    events = reader.EventAccumulator(str(run / "tensorboard"), {"histograms": 0})
    events.Reload()
    assert [e.step for e in events.Histograms("cosines/older_negative")] == [10, 20]


def test_kinds_are_told_apart_by_age_and_empty_ones_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, own = [], Manifest(tmp_path)
    own.add(())
    monkeypatch.setattr(diagnostics, "plot_cosines", lambda *arguments: drawn.append(arguments))
    with RunLog(tmp_path / "log.jsonl", 10, progress="none") as log:
        sample = CosineSample(torch.tensor([0.5, 0.7]), torch.tensor([0.1, 0.3, -0.2]), torch.tensor([0, 0, 3]))
        record_cosines(sample, 7, log, own)
        record_cosines(sample._replace(negative=sample.negative[:2], age=sample.age[:2]), 8, log, own)
        record_cosines(sample._replace(positive=torch.empty(0)), 9, log, own)  # every row was ignored
    first, second, third = read_log(tmp_path / "log.jsonl")
    means = {name: pytest.approx(value) for name, value in
             {"positive": 0.6, "fresh_negative": 0.2, "older_negative": -0.2}.items()}  # fmt: skip
    assert {name: first[name]["mean"] for name in means} == means
    assert "older_negative" not in second and "positive" not in third
    assert [arguments[3].name for arguments in drawn] == ["step_00000007.png", "step_00000008.png"]


def test_pictures_of_cosines_are_the_runs_own(tiny_config: Tiny) -> None:
    """They go with a run that is overwritten, and those of somebody else stay."""
    config = tiny_config(steps=2, verify_every=1, pictures=True)
    folder = config.run.run / "cosines"
    folder.mkdir(parents=True)
    (folder / "step_00000001.png").write_text("mine")
    train(config)
    assert (folder / "step_00000001.png").read_text() == "mine" and (folder / "step_00000002.png").exists()
    notes = [r["text"] for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert f"{folder / 'step_00000001.png'} is not the run's own: it stays as it is" in notes
    train(tiny_config(steps=1, overwrite=True))
    assert [path.name for path in folder.iterdir()] == ["step_00000001.png"]
