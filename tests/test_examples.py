"""Each example runs as its own docstring says, and learns."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from attfc_cuda.data import AttentionLoader, Batch, FaceDataset
from attfc_cuda.presets import DEFAULT
from attfc_cuda.train import TrainConfig
from attfc_cuda.train.log import read_log

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name), run_name="example")


def test_swap_head_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = run("swap_head.py", ["--steps", "40"], monkeypatch)["main"]()
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_full_fc_is_a_drop_in_for_attfc_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--data",
        "procedural:16x4",
        "--steps",
        "40",
        "--image-size",
        "16",
        "--batch-size",
        "16",
        "--threads",
        "1",
    ]
    arguments += ["--verify-num-pairs", "20", "--run", str(tmp_path / "fc"), "--log-every", "1", "--device", "cpu"]
    module = run("full_fc_arcface.py", arguments, monkeypatch)
    assert module["cli"].main(["train", *arguments], module["FullFC"]) == 0
    assert f"full FC, ArcFace margin {DEFAULT.m}, 16 class weights" in capsys.readouterr().out
    steps = [r for r in read_log(tmp_path / "fc" / "log.jsonl") if r["kind"] == "step"]
    assert sum(r["loss"] for r in steps[-5:]) < 0.8 * sum(r["loss"] for r in steps[:5])
    assert (
        module["cli"].main(["train", "--run", str(tmp_path / "fc"), "--resume", "--steps", "42"], module["FullFC"]) == 0
    )
    verify = ["verify", "--checkpoint", str(tmp_path / "fc"), "--data", "procedural:12x3@99", "--num-pairs", "40"]
    assert module["cli"].main([*verify, "--device", "cpu"]) == 0


class FixedEmbeddings(torch.nn.Module):
    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = torch.nn.Parameter(embeddings)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.embeddings


def test_full_fc_is_the_textbook_loss_over_the_probe_identities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against cross entropy of explicitly bent logits, with an identity of one image that must get no class."""
    module = run("full_fc_arcface.py", [], monkeypatch)

    class Faces(FaceDataset):
        def _load(self, index: int) -> torch.Tensor:
            return torch.zeros(3, 8, 8, dtype=torch.uint8)

    faces = Faces(np.array([0, 0, 1, 2, 2]), ["a", "single", "c"], 8)
    loader = AttentionLoader(faces, 2, 1, negatives_per_batch=0)
    config = TrainConfig()
    config.model.embedding_dim, config.head.margin_options = 4, "m=0.3"
    torch.manual_seed(0)
    backbone = FixedEmbeddings(torch.randn(3, 4) * 5)
    head = module["FullFC"](backbone, loader, config)
    assert head.weight.shape == (2, 4)

    labels = torch.tensor([2, 0, -1])
    images = torch.zeros(3, 3, 8, 8)
    loss = head(backbone, Batch(images, images[:, None], labels, images[:0], labels[:0], torch.arange(3)[:, None]))
    x = torch.nn.functional.normalize(backbone.embeddings.detach().double())
    w = torch.nn.functional.normalize(head.weight.detach().double())
    expected = 0.0
    for row, own in ((0, 1), (1, 0)):
        logits = [float(x[row] @ w[k]) for k in range(2)]
        logits[own] = float(torch.cos(torch.acos(x[row] @ w[own]) + 0.3))
        expected -= float(torch.log_softmax(config.head.scale * torch.tensor(logits, dtype=torch.float64), 0)[own]) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert head.weight.grad.norm() > 0 and backbone.embeddings.grad[2].norm() == 0
