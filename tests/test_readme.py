"""The README's Python runs as printed, what it names exists, and it stays short."""

import re
from pathlib import Path

import torch
from torch import nn

from attfc_cuda import Margin, margins

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_lines_train_a_step():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 512))
    names = {
        "backbone": backbone,
        "images": torch.randn(6, 3, 8, 8),
        "gallery_images": torch.randn(6, 3, 8, 8),
        "labels": torch.arange(6),
    }
    exec(BLOCKS[0], names)
    names["loss"].backward()
    assert names["loss"].isfinite() and backbone[1].weight.grad.any()
    assert names["head"].container.fill == 6


def test_nothing_else_is_printed_as_python():
    assert len(BLOCKS) == 1


def test_every_margin_is_built_by_its_name():
    assert all(isinstance(margins.build(name), Margin) for name in margins.NAMES)


def test_the_paths_it_names_exist():
    root = Path(__file__).resolve().parents[1]
    for path in re.findall(r"`((?:attfc_cuda|csrc|examples|benchmarks)/[\w/.]*)`", README):
        assert (root / path).exists(), path


def test_it_stays_short():
    assert len(README.encode()) <= 9 * 1024


def test_its_links_lead_somewhere():
    root = Path(__file__).resolve().parents[1]
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (root / target).exists(), target
