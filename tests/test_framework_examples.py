"""The Lightning and the accelerate example run and learn, where those libraries are installed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name), run_name="example")["main"]()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers
def test_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    losses = run("lightning_loop.py", ["--steps", "40"], monkeypatch)
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    losses = run("accelerate_loop.py", ["--steps", "40", "--cpu"], monkeypatch)
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
