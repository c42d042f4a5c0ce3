"""The README's Python runs as printed, and the commands it names exist."""

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


def test_the_margin_of_ones_own_trains():
    torch.manual_seed(0)
    names: dict = {}
    exec(BLOCKS[1], names)
    margin = names["LinearFace"](m=0.3)
    assert isinstance(margin, Margin) and isinstance(names["head"].margin, names["LinearFace"])
    embeddings = torch.randn(8, 512, requires_grad=True)
    loss = names["head"](embeddings, torch.arange(8), torch.randn(8, 512))
    loss.backward()
    assert loss.isfinite() and embeddings.grad.any()
    right_angle = margin.target(torch.zeros(1))
    torch.testing.assert_close(right_angle, torch.tensor([-2 * 0.3 / torch.pi]))


def test_nothing_else_is_printed_as_python():
    assert len(BLOCKS) == 2


def test_every_margin_is_built_by_its_name():
    assert all(isinstance(margins.build(name), Margin) for name in margins.NAMES)


def test_the_paths_it_names_exist():
    root = Path(__file__).resolve().parents[1]
    for path in re.findall(r"`((?:attfc_cuda|csrc|examples|benchmarks)/[\w/.]*)`", README):
        assert (root / path).exists(), path
