"""A user's script under mypy: what the package ships as types reaches an editor, and a mistake is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import torch
from torch import Tensor, nn

from attfc_cuda import AdaSin, ArcFace, AttFC, FullyConnected, MomentumEncoder, PartialFC
from attfc_cuda.train import Callback, Logger, Outcome, TrainConfig, train

backbone: nn.Module = nn.Linear(8, 16)
encoder = MomentumEncoder(backbone)
head = AttFC(16, 64, margin=AdaSin(m=0.2, scale=24.0), num_classes=100)
images, labels = torch.randn(4, 8), torch.arange(4)
loss: Tensor = head(backbone(images), labels, encoder(images))
partial = PartialFC(16, 100, 0.1, ArcFace(0.5, scale=64.0, gradient="exact"), dtype=torch.float32, backend="eager")
full = FullyConnected(16, 100, check_finite=True)
optimizer: torch.optim.Optimizer = partial.fuse_optimizer(0.1, weight_decay=5e-4)
config = TrainConfig()
config.optim.steps, config.run.loggers = 3, "wandb"


def run() -> Outcome:
    return train(config, loggers=[Logger()], callbacks=[Callback()])
"""
# What to write instead of a line, and the words of mypy's answer.
MISTAKES = {
    "PartialFC(16, 100, rate=0.1)": 'Unexpected keyword argument "rate" for "PartialFC"',
    "PartialFC(16, 100, check_labels=None)": 'Argument "check_labels" to "PartialFC" has incompatible type "None"',
    "ArcFace(0.5, s=64.0)": 'Unexpected keyword argument "s" for "ArcFace"',
    "AdaSin(scale=None)": 'Argument "scale" to "AdaSin" has incompatible type "None"',
    "train(config, loggers=[3])": "List item 0 has incompatible type",
}


@pytest.mark.proof
def test_a_users_script_is_checked(tmp_path: Path) -> None:
    """One run of mypy for all of it: each takes a minute."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    assert (ROOT / "attfc_cuda" / "py.typed").is_file()
    right = SCRIPT.lstrip("\n")
    wrong = [f"mistake{n} = {code}" for n, code in enumerate(MISTAKES)]
    (tmp_path / "script.py").write_text(right + "\n\n" + "\n".join(wrong) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    # The package as an installed one is found: by its place on the path, not as a part of what is checked.
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), "--config-file", "", "script.py"],
        cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("script.py:")]
    first_mistake = len(right.splitlines()) + 3
    by_line = {int(line.split(":")[1]): line for line in lines if ": error:" in line}
    assert not [line for number, line in by_line.items() if number < first_mistake], done.stdout
    for number, words in enumerate(MISTAKES.values()):
        assert words in by_line.get(first_mistake + number, ""), done.stdout
