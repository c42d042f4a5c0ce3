"""The optimizer: SGD or AdamW, with weight decay on weights only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from attfc_cuda.train.config import OptimizerConfig


def decay_groups(
    modules: Iterable[nn.Module],
    weight_decay: float,
    elsewhere: torch.optim.Optimizer | None = None,
    factors: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices and convolutions with `weight_decay`; vectors and scalars without.
    With factors other than 1, two for each of them.

    Biases, norm scales and PReLU slopes are vectors: shrinking them does not regularise, it changes the function.

    Args:
        modules: whose parameters.
        weight_decay: of the first group.
        elsewhere: an optimizer that already has some of them; those are left to it.
        factors: of the learning rate, by the `id` of a parameter; 1 for all others. A group's is its "lr_factor".
    """
    factors = factors or {}
    taken = {id(p) for group in (elsewhere.param_groups if elsewhere else []) for p in group["params"]}
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad and id(p) not in taken]
    groups = []
    for factor in sorted({factors.get(id(p), 1.0) for p in parameters}, reverse=True):
        alike = [p for p in parameters if factors.get(id(p), 1.0) == factor]
        shared = {} if factor == 1.0 else {"lr_factor": factor}
        groups += [
            {"params": [p for p in alike if p.ndim >= 2], "weight_decay": weight_decay, **shared},
            {"params": [p for p in alike if p.ndim < 2], "weight_decay": 0.0, **shared},
        ]
    return [group for group in groups if group["params"]]


def peak_rate(config: OptimizerConfig, batch_size: int) -> float:
    """`lr` if given, else 0.05 x batch_size / 128 for SGD (linear scaling) and 0.001 for AdamW. Our choice."""
    if config.lr is not None:
        return config.lr
    return 0.05 * batch_size / 128 if config.optimizer == "sgd" else 1e-3


def build_optimizer(
    config: OptimizerConfig,
    modules: Iterable[nn.Module],
    lr: float,
    elsewhere: torch.optim.Optimizer | None = None,
    factors: Mapping[int, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a run over the trainable parameters of `modules` that `elsewhere` does not have.

    factors: as for `decay_groups`."""
    groups = decay_groups(modules, config.weight_decay, elsewhere, factors)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr)
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=config.sgd_momentum)
    set_rate(optimizer, lr)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate `lr` for every parameter, times the "lr_factor" of its group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
