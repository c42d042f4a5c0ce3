"""The optimizer: SGD or AdamW, with weight decay on weights only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from attfc_cuda.train.config import OptimizerConfig


def decay_groups(
    modules: Iterable[nn.Module], weight_decay: float, elsewhere: torch.optim.Optimizer | None = None
) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices and convolutions with `weight_decay`; vectors and scalars without.

    Biases, norm scales and PReLU slopes are vectors: shrinking them does not regularise, it changes the function.

    Args:
        modules: whose parameters.
        weight_decay: of the first group.
        elsewhere: an optimizer that already has some of them; those are left to it.
    """
    taken = {id(p) for group in (elsewhere.param_groups if elsewhere else []) for p in group["params"]}
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def peak_rate(config: OptimizerConfig, batch_size: int) -> float:
    """`lr` if given, else 0.05 x batch_size / 128 for SGD (linear scaling) and 0.001 for AdamW. Our choice."""
    if config.lr is not None:
        return config.lr
    return 0.05 * batch_size / 128 if config.optimizer == "sgd" else 1e-3


def build_optimizer(
    config: OptimizerConfig, modules: Iterable[nn.Module], lr: float, elsewhere: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a run over the trainable parameters of `modules` that `elsewhere` does not have."""
    groups = decay_groups(modules, config.weight_decay, elsewhere)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=config.sgd_momentum)
