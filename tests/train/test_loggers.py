"""Where numbers go beside the log: each logger gets the same, libraries come by name only, and none costs a run."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attfc_cuda.train import Logger, TrainConfig, loggers, train
from attfc_cuda.train.log import read_log

Tiny = Callable[..., TrainConfig]


class Kept(Logger):
    def __init__(self) -> None:
        self.started: list[tuple] = []
        self.taken: list[tuple[int, dict[str, float]]] = []
        self.kinds: list[str] = []
        self.ended = 0

    def start(self, run: Path, step: int, settings: dict[str, Any]) -> None:
        self.started.append((run, step, settings["optim"]["steps"]))

    def numbers(self, step: int, values: Any) -> None:
        self.taken.append((step, dict(values)))

    def distributions(self, step: int, values: Any) -> None:
        self.kinds += values

    def end(self) -> None:
        self.ended += 1


def test_a_logger_gets_what_the_log_gets(tiny_config: Tiny) -> None:
    config, kept = tiny_config(steps=4, verify_every=2), Kept()
    train(config, loggers=[kept])
    assert kept.started == [(config.run.run, 0, 4)] and kept.ended == 1
    records = read_log(config.run.run / "log.jsonl")
    losses = [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]
    assert [(step, values["train/loss"]) for step, values in kept.taken if "train/loss" in values] == losses
    accuracies = [(r["step"], r["accuracy"]) for r in records if r["kind"] == "verify"]
    name = "verify/held-out/accuracy"
    assert [(step, values[name]) for step, values in kept.taken if name in values] == accuracies
    assert len(losses) == 4 and len(accuracies) == 2
    assert set(kept.kinds) == {"cosines/positive", "cosines/fresh_negative", "cosines/older_negative"}


def test_a_logger_that_fails_is_left_out_and_named(tiny_config: Tiny) -> None:
    class Gone(Kept):
        def numbers(self, step: int, values: Any) -> None:
            super().numbers(step, values)
            if step == 2:
                raise ConnectionError("no answer")

    config, gone, kept = tiny_config(steps=4), Gone(), Kept()
    assert train(config, loggers=[gone, kept]).step == 4
    assert [step for step, _ in gone.taken] == [1, 2] and gone.ended == 0
    assert {step for step, _ in kept.taken} == {1, 2, 3, 4} and kept.ended == 1
    notes = [r["text"] for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert "Gone left out from here on: ConnectionError: no answer" in notes


def test_a_logger_that_cannot_start_ends_the_run_before_a_step(tiny_config: Tiny) -> None:
    class Refused(Logger):
        def start(self, run: Path, step: int, settings: dict[str, Any]) -> None:
            raise PermissionError("no key")

    config, kept = tiny_config(), Kept()
    with pytest.raises(PermissionError, match="no key"):
        train(config, loggers=[kept, Refused()])
    assert kept.ended == 1 and not list((config.run.run / "checkpoints").glob("*"))


class FakeWandb(types.ModuleType):
    """As much of wandb as is used, with what it was told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
        self.given: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple] = []
        self.finished = 0

    def init(self, **given: Any) -> Any:
        self.given.append(given)
        self.id = given["id"] or "one"
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1

    class Histogram:
        def __init__(self, values: Any) -> None:
            self.count = len(values)


def test_wandb_gets_the_numbers_and_a_run_that_goes_on_is_the_same_one(
    tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = tiny_config(steps=2, verify_every=2, loggers="wandb")
    train(config)
    run = config.run.run
    assert fake.given[0]["name"] == "run" and fake.given[0]["id"] is None
    assert fake.given[0]["config"]["optim"]["steps"] == 2
    assert ("*", "step") in fake.metrics
    assert [v["step"] for v in fake.logged if "train/loss" in v] == [1, 2]
    assert any("verify/held-out/accuracy" in v for v in fake.logged)
    assert any(getattr(v.get("cosines/positive"), "count", 0) == 8 for v in fake.logged)
    assert json.loads((run / "wandb.json").read_text()) == {"id": "one"}
    assert "wandb.json" in json.loads((run / "manifest.json").read_text())["files"]
    train(tiny_config(steps=3, loggers="wandb", resume=True))
    assert fake.given[1]["id"] == "one" and fake.given[1]["resume"] == "allow" and fake.finished == 2
    assert [v["step"] for v in fake.logged if "train/loss" in v] == [1, 2, 3]


class FakeMLflow(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = types.SimpleNamespace(name="mlflow")  # type: ignore[assignment]
        self.runs: list[tuple] = []
        self.params: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended = 0

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> Any:
        self.runs.append((run_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "m1"))

    def log_params(self, params: dict[str, Any]) -> None:
        self.params |= params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))

    def end_run(self) -> None:
        self.ended += 1


def test_mlflow_gets_the_numbers_and_a_run_that_goes_on_is_the_same_one(
    tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    config = tiny_config(steps=2, loggers="mlflow")
    train(config)
    assert fake.runs == [(None, "run")] and fake.params["optim.steps"] == 2
    assert [step for step, values in fake.logged if "train/loss" in values] == [1, 2]
    train(tiny_config(steps=3, loggers="mlflow", resume=True))
    assert fake.runs[1] == ("m1", None) and fake.ended == 2


def test_names_that_a_library_refuses_are_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    logger = loggers.MLflow()
    logger.start(tmp_path, 0, {"optim": {"lr": 0.1}})
    logger.numbers(3, {"verify/lfw (crops)é/auc": 0.5, "train/lr": 0.1})
    assert fake.logged == [(3, {"verify/lfw _crops__/auc": 0.5, "train/lr": 0.1})]


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        ("wandbb", ValueError, "train: loggers must be of wandb, mlflow, got 'wandbb'; .*wandb"),
        (
            "mlflow",
            ImportError,
            r"loggers must name installed libraries, got .mlflow.; pip install .*\[mlflow\]",
        ),
    ],
)
def test_loggers_are_checked_before_data_are_read(
    names: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    config = TrainConfig()
    config.run.loggers = names
    with pytest.raises(kind, match=message):
        config.check()


def test_no_library_is_imported_unasked() -> None:
    code = (
        "import sys, attfc_cuda.train.loggers, attfc_cuda.train.loop\n"
        "print([n for n in ('wandb', 'mlflow', 'tensorboard', 'torch.utils.tensorboard') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
