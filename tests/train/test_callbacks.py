"""Your own code in a run: when it is called, what it may do, and what is saved where it fails."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from attfc_cuda.train import Callback, TrainConfig, checkpoint, train, validation
from attfc_cuda.train.log import read_log

Tiny = Callable[..., TrainConfig]


class Seen(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def on_start(self, training: Any) -> None:
        self.calls.append(("start", training.step))

    def on_step(self, training: Any, loss: float) -> None:
        self.calls.append(("step", training.step, loss))

    def on_verification(self, training: Any, results: Any) -> None:
        self.calls.append(("verification", training.step, list(results)))

    def on_checkpoint(self, training: Any, path: Any) -> None:
        self.calls.append(("checkpoint", training.step, path.name))

    def on_end(self, training: Any) -> None:
        self.calls.append(("end", training.step))


def test_callbacks_are_called_in_the_order_of_the_run(tiny_config: Tiny) -> None:
    seen, config = Seen(), tiny_config(steps=3, verify_every=2, checkpoint_every=2)
    train(config, callbacks=[seen])
    losses = [r["loss"] for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "step"]
    expected = [("start", 0), ("step", 1, losses[0]), ("step", 2, losses[1])]
    expected += [("verification", 2, ["held-out"]), ("checkpoint", 2, "step_00000002.pt"), ("step", 3, losses[2])]
    expected += [("verification", 3, ["held-out"]), ("checkpoint", 3, "step_00000003.pt"), ("end", 3)]
    assert seen.calls == expected
    again = Seen()
    train(tiny_config(steps=4, resume=True), callbacks=[again])
    assert again.calls[:2] == [("start", 3), ("step", 4, again.calls[1][2])]


def test_a_callback_stops_a_run_as_a_signal_does(tiny_config: Tiny) -> None:
    class Enough(Callback):
        def on_step(self, training: Any, loss: float) -> None:
            if training.step == 3:
                signal.raise_signal(signal.SIGTERM)

    config, seen = tiny_config(checkpoint_every=0), Seen()
    outcome = train(config, callbacks=[Enough(), seen])
    assert (outcome.step, outcome.signal) == (3, signal.SIGTERM) and seen.calls[-1] == ("end", 3)
    assert checkpoint.load_newest(config.run.run / "checkpoints")["step"] == 3


@pytest.mark.parametrize("method", ["on_step", "on_verification"])
def test_an_error_of_a_callback_ends_the_run_with_its_state_saved(tiny_config: Tiny, method: str) -> None:
    def fail(training: Any, *_: Any) -> None:
        if training.step == 2:
            raise LookupError("a mistake")

    callback, config = Callback(), tiny_config(checkpoint_every=0, verify_every=2)
    setattr(callback, method, fail)
    with pytest.raises(LookupError, match="a mistake"):
        train(config, callbacks=[callback])
    assert checkpoint.load_newest(config.run.run / "checkpoints")["step"] == 2
    notes = [r["text"] for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert notes[-1] == "stopped: a mistake"
    assert train(tiny_config(steps=3, resume=True)).step == 3


def test_a_verification_that_fails_ends_the_run_with_its_state_saved(
    tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise FileNotFoundError("pairs/a.png")

    monkeypatch.setattr(validation, "verify_sets", gone)
    config = tiny_config(checkpoint_every=0, verify_every=2)
    with pytest.raises(FileNotFoundError, match="a.png"):
        train(config)
    assert checkpoint.load_newest(config.run.run / "checkpoints")["step"] == 2
    assert read_log(config.run.run / "log.jsonl")[-1]["text"] == "stopped: pairs/a.png"
