"""What of a training's state is split over processes: kept out of the checkpoint's file, and found again.

The file `step_00001234.pt` holds what every process has whole. The stretches of class centres that each has for itself,
with the optimizer's state of them, lie beside it in `step_00001234.shards` (`distributed.checkpoint`). A run on one
process has it all in the file; either kind goes on with any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from attfc_cuda.distributed.checkpoint import Stretch, stretches, without

State = dict[str, Any]


def without_stretches(state: State, module: nn.Module) -> State:
    """A module's state_dict without what is split."""
    return without(state, stretches(module))


def with_stretches(state: State, module: nn.Module) -> State:
    """The inverse: what is split, from a state that has it whole; else the module's own, to be filled later."""
    split = stretches(module)
    taken = {name: _part(state[name], s) if name in state else s.tensor.detach() for name, s in split.items()}
    return {**state, **taken}


def optimizer_without_stretches(state: State, optimizer: torch.optim.Optimizer, module: nn.Module) -> State:
    """An optimizer's state_dict without the state of what is split (which has its shape)."""
    kept = dict(state["state"])
    for index, stretch in _held(optimizer, module).items():
        shape = stretch.tensor.shape
        kept[index] = {name: value for name, value in kept.get(index, {}).items() if not _has_shape(value, shape)}
    return {**state, "state": kept}


def optimizer_with_stretches(state: State, optimizer: torch.optim.Optimizer, module: nn.Module) -> State:
    """The inverse, as far as `state` has it whole; the rest is filled later."""
    kept = dict(state["state"])
    for index, stretch in _held(optimizer, module).items():
        shape = torch.Size((stretch.total, *stretch.tensor.shape[1:]))
        kept[index] = {
            name: _part(value, stretch) if _has_shape(value, shape) else value
            for name, value in kept.get(index, {}).items()
        }
    return {**state, "state": kept}


def holder(optimizers: Iterable[torch.optim.Optimizer | None], module: nn.Module) -> torch.optim.Optimizer | None:
    """The one of the optimizers that moves what is split; None where nothing of it is trained."""
    return next((optimizer for optimizer in optimizers if optimizer is not None and _held(optimizer, module)), None)


def _held(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[int, Stretch]:
    """The stretches that an optimizer moves, by the index of their parameter in its state_dict."""
    split = {id(stretch.tensor): stretch for stretch in stretches(module).values()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {index: split[id(p)] for index, p in enumerate(parameters) if id(p) in split}


def _has_shape(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == shape


def _part(whole: torch.Tensor, stretch: Stretch) -> torch.Tensor:
    return whole[stretch.first : stretch.first + len(stretch.tensor)]
