"""What of a module's and an optimizer's state is split over processes, and where this process's part of it lies.

A head says which of its tensors are split (`split_rows`); an optimizer may say what it keeps for each of their rows
(`SplitOptimizer`). From that follow the two ways to save: all parts together, as `distributed.checkpoint` does, and the
two halves of `train.checkpoint`: what every process has whole in one file, without the parts, and the parts beside it.
A state that one process saved whole can be cut into parts again, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attfc_cuda.distributed.shards import Shards

State = dict[str, Any]


class Part(NamedTuple):
    """A tensor that is split by rows, as this process sees it.

    Attributes:
        tensor: the rows that this process holds.
        first: the number of its first row.
        total: the rows of all processes together.
        shards: the processes; None where one holds everything.
    """

    tensor: Tensor
    first: int
    total: int
    shards: Shards | None

    @property
    def whole_shape(self) -> torch.Size:
        return torch.Size((self.total, *self.tensor.shape[1:]))

    def cut(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor that has all of them."""
        return whole[self.first : self.first + len(self.tensor)]


@runtime_checkable
class SplitOptimizer(Protocol):
    """An optimizer that says itself what it keeps of split parameters. Of others, tensors of a parameter's shape are
    taken to have its rows.

    Attributes:
        split_states: the names of what it keeps for each row.
    """

    split_states: tuple[str, ...]

    def make_state(self) -> dict[str, Tensor]:
        """All that it keeps, made where it is not there yet."""
        ...


def parts_of(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Part]:
    """This process's parts of the tensors that the heads in `module` split.

    Args:
        module: a head, or a module that holds some.
        optimizer: one whose state of them is wanted too, under `optimizer.<name>.<state>`.

    Returns:
        The parts by their names in the module's state_dict.
    """
    found = {}
    for prefix, head in module.named_modules():
        for name, total in getattr(head, "split_rows", {}).items():
            tensor, key = getattr(head, name), f"{prefix}.{name}".lstrip(".")
            found[key] = Part(tensor, head.first, total, head.shards)
            for state, value in state_of(optimizer, tensor).items():
                if is_split(optimizer, state, value, tensor.shape):
                    found[f"optimizer.{key}.{state}"] = Part(value, head.first, total, head.shards)
    return found


def state_of(optimizer: torch.optim.Optimizer | None, tensor: Tensor) -> dict[str, Tensor]:
    """The tensors of an optimizer's state of one parameter."""
    state = {} if optimizer is None else optimizer.state.get(tensor, {})
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def is_split(optimizer: torch.optim.Optimizer | None, name: str, value: Any, shape: torch.Size) -> bool:
    """Whether a value of an optimizer's state has a row for each row of its parameter, which is of `shape`."""
    fits = isinstance(value, Tensor) and value.shape == shape
    return fits and (name in optimizer.split_states if isinstance(optimizer, SplitOptimizer) else True)


def without(state: Mapping[str, Any], parts: dict[str, Part]) -> State:
    """A state_dict without the tensors of `parts`: known by their memory, as a module may save them by other names."""
    tensors = [part.tensor.detach() for part in parts.values()]
    return {
        name: value
        for name, value in state.items()
        if not (isinstance(value, Tensor) and any(value.is_set_to(tensor) for tensor in tensors))
    }


def without_parts(state: State, module: nn.Module) -> State:
    """A module's state_dict without what is split."""
    return without(state, parts_of(module))


def with_parts(state: State, module: nn.Module) -> State:
    """The inverse: with the parts cut from a state that has all rows, or else the module's own, to be filled later."""
    parts = parts_of(module)
    own = {name: part.cut(state[name]) if name in state else part.tensor.detach() for name, part in parts.items()}
    return {**state, **own}


def optimizer_without_parts(state: State, optimizer: torch.optim.Optimizer, module: nn.Module) -> State:
    """An optimizer's state_dict without what it keeps for each row of what is split."""
    kept = dict(state["state"])
    for index, part in _held(optimizer, module).items():
        shape = part.tensor.shape
        values = kept.get(index, {}).items()
        kept[index] = {name: value for name, value in values if not is_split(optimizer, name, value, shape)}
    return {**state, "state": kept}


def optimizer_with_parts(state: State, optimizer: torch.optim.Optimizer, module: nn.Module) -> State:
    """The inverse, as far as `state` has all rows; the rest is filled later."""
    kept = dict(state["state"])
    for index, part in _held(optimizer, module).items():
        kept[index] = {
            name: part.cut(value) if is_split(optimizer, name, value, part.whole_shape) else value
            for name, value in kept.get(index, {}).items()
        }
    return {**state, "state": kept}


def holder(optimizers: Iterable[torch.optim.Optimizer | None], module: nn.Module) -> torch.optim.Optimizer | None:
    """The one of the optimizers that moves what is split; None where nothing of it is trained."""
    return next((optimizer for optimizer in optimizers if optimizer is not None and _held(optimizer, module)), None)


def _held(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[int, Part]:
    """The parts that an optimizer moves, by the index of their parameter in its state_dict."""
    parts = {id(part.tensor): part for part in parts_of(module).values()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {index: parts[id(p)] for index, p in enumerate(parameters) if id(p) in parts}
