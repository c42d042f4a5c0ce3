"""What a run tells of itself: the card has what was measured and nothing else; the picture is drawn for every run."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from attfc_cuda.evaluation.fingerprint import fingerprint
from attfc_cuda.train import Callback, TrainConfig, card, diagnostics, load_backbone, train
from attfc_cuda.train.log import read_log

Tiny = Callable[..., TrainConfig]


class Cards(Callback):
    """The card as it is after each checkpoint."""

    def __init__(self) -> None:
        self.after: dict[int, str] = {}

    def on_checkpoint(self, training, path: Path) -> None:
        file = training.config.run.run / "card.md"
        self.after[training.step] = file.read_text() if file.exists() else ""


def test_a_card_has_what_was_measured(tiny_config: Tiny) -> None:
    config = tiny_config(steps=4, verify_every=2, checkpoint_every=2, pictures=True, verify_num_pairs=None)
    cards = Cards()
    train(config, callbacks=[cards])
    run, text = config.run.run, (config.run.run / "card.md").read_text()
    assert "at step 2 of 4" in cards.after[2] and "The network at step 2," in cards.after[2]
    assert "at the end" in text and "The network at step 4," in text
    network, name = load_backbone(run)
    assert f"`{fingerprint(network)}`" in text and f"| backbone | {name}, " in text
    assert "RGB, 16 x 16, (pixel - 127.5) / 127.5" in text
    assert "| images | 64 of 16 identities |" in text and "4 of 4, 8 probes each, 0.5 epochs, seed 0" in text
    (record,) = [r for r in read_log(run / "log.jsonl") if r["kind"] == "verify" and r["step"] == 4]
    assert f"| held-out | {record['num_genuine']:,} genuine, {record['num_impostors']:,} impostor | " in text
    point = record["at_far"]["0.001"]
    low, high = point["threshold_interval"]
    star = "\\*" if point["few_impostors"] else ""
    assert f"| held-out | 0.001 | {point['tar']:.4f}{star} (" in text
    assert f"{point['threshold']:.4f} ({low:.4f} to {high:.4f}) |" in text
    assert "| head | attfc, adasin, m 0.2, scale 24 |" in text
    best = [r for r in read_log(run / "log.jsonl") if r["kind"] == "best"][-1]
    assert f"`best.pt` holds the network at step {best['step']}, the best so far: accuracy {best['score']:.4f}." in text
    assert "chosen by these very sets" in text
    assert {"card.md", "training.png"} <= set(json.loads((run / "manifest.json").read_text())["files"])


@pytest.mark.parametrize("stop_at", [None, 5])
def test_a_card_keeps_its_numbers_where_a_run_goes_on_without_a_verification(
    tiny_config: Tiny, stop_at: int | None
) -> None:
    """It has the end already, or is stopped before the next verification."""

    class Stop(Callback):
        def on_step(self, training, loss: float) -> None:
            if training.step == stop_at:
                signal.raise_signal(signal.SIGTERM)

    train(tiny_config(steps=4, verify_every=2, pictures=True, verify_num_pairs=None))
    file = tiny_config().run.run / "card.md"
    before = file.read_text().partition("## Verified on")[2]
    outcome = train(tiny_config(steps=9 if stop_at else 4, resume=True, pictures=True), callbacks=[Stop()])
    assert outcome.step == (stop_at or 4)
    after = file.read_text()
    assert after.partition("## Verified on")[2] == before and "The network at step 4," in before
    assert ("at step 5 of 9" if stop_at else "at the end") in after
    assert outcome.results["held-out"].num_identities == 80


def test_a_log_without_whole_verifications_costs_no_run(tiny_config: Tiny) -> None:
    train(tiny_config(steps=2, pictures=True))
    run = tiny_config().run.run
    with open(run / "log.jsonl", "a") as log:
        log.write('{"kind": "verify", "step": 2, "name": "x", "accuracy": "much", "auc": []}\n')
    assert train(tiny_config(steps=2, resume=True, pictures=True)).results == {}
    assert "Nothing was verified" in (run / "card.md").read_text()


def test_a_run_without_verification_says_so(tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attfc_cuda.train.training.verification_sets", lambda *given: [])
    config = tiny_config(steps=2, pictures=True, head="fc", margin="arcface")
    train(config)
    text = (config.run.run / "card.md").read_text()
    assert "| head | fc, arcface, m2 0.2, scale 24 |" in text
    assert "Nothing was verified during training" in text and "best" not in text and "| FAR" not in text
    assert not re.search(r"TAR|threshold", text)
    with Image.open(config.run.run / "training.png") as image:
        assert image.format == "PNG" and min(image.size) >= 480


def test_names_cannot_break_the_card() -> None:
    assert card._text("a|b\n# c `d` <script>\x1b[2J") == "a/b\\n# c 'd' (script)\\x1b[2J"


def test_no_pictures_where_none_are_wanted(tiny_config: Tiny) -> None:
    config = tiny_config(steps=2)
    train(config)
    made = {path.name for path in config.run.run.iterdir()}
    assert made == {"best.pt", "checkpoints", "config.json", "log.jsonl", "manifest.json"}


def test_what_cannot_be_drawn_is_noted_and_costs_no_run(tiny_config: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(diagnostics, "plot_training", full)
    config = tiny_config(steps=2, pictures=True)
    assert train(config).step == 2
    notes = [r["text"] for r in read_log(config.run.run / "log.jsonl") if r["kind"] == "note"]
    assert any(note.startswith("not written: no space left") for note in notes)
    assert (config.run.run / "card.md").exists() and not (config.run.run / "training.png").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"margin": "adasin"}, True),
        ({"margin": "adasin", "margin_options": "curriculum=False"}, False),
        ({"margin": "curricularface", "head": "fc"}, True),
        ({"margin": "arcface"}, False),
    ],
)
def test_a_loss_that_rises_is_explained_at_the_start(tiny_config: Tiny, settings: dict, said: bool) -> None:
    config = tiny_config(steps=1, **settings)
    train(config)
    report = read_log(config.run.run / "log.jsonl")[0]["report"]
    assert ("t grows with the cosines, and hard negatives weigh more" in report) is said
