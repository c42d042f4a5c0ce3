"""The optimizer decays weights and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attfc_cuda import backbones
from attfc_cuda.train.config import OptimizerConfig
from attfc_cuda.train.optimizer import build_optimizer, decay_groups, peak_rate


def test_norms_biases_and_prelu_slopes_are_not_decayed() -> None:
    net = backbones.build("mobilefacenet", embedding_dim=32)
    net.extra = nn.Linear(3, 3)
    decayed, plain = decay_groups([net], 5e-4)
    kinds = {id(p): type(m) for m in net.modules() for p in m.parameters(recurse=False)}
    bias = net.extra.bias
    assert {kinds[id(p)] for p in decayed["params"]} == {nn.Conv2d, nn.Linear}
    assert {kinds[id(p)] for p in plain["params"] if p is not bias} == {nn.BatchNorm2d, nn.BatchNorm1d, nn.PReLU}
    assert any(p is bias for p in plain["params"])
    assert (decayed["weight_decay"], plain["weight_decay"]) == (5e-4, 0.0)
    assert len(decayed["params"]) + len(plain["params"]) == len(list(net.parameters()))


def test_frozen_parameters_stay_out_and_empty_groups_too() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    groups = decay_groups([layer], 0.1)
    assert len(groups) == 1 and groups[0]["params"] == [layer.bias]


def test_default_rates() -> None:
    assert peak_rate(OptimizerConfig(), 128) == pytest.approx(0.05)
    assert peak_rate(OptimizerConfig(), 512) == pytest.approx(0.2)
    assert peak_rate(OptimizerConfig(optimizer="adamw"), 512) == pytest.approx(1e-3)
    assert peak_rate(OptimizerConfig(lr=0.03), 512) == 0.03


def test_both_optimizers_take_their_settings() -> None:
    layer = nn.Linear(2, 2)
    sgd = build_optimizer(OptimizerConfig(sgd_momentum=0.7, weight_decay=0.01), [layer], 0.5)
    assert isinstance(sgd, torch.optim.SGD)
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in sgd.param_groups] == [
        (0.5, 0.7, 0.01),
        (0.5, 0.7, 0.0),
    ]
    adamw = build_optimizer(OptimizerConfig(optimizer="adamw", weight_decay=0.01), [layer], 0.5)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.01, 0.0]
