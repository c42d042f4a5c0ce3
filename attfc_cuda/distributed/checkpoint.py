"""A head's state on the disk, to be loaded by any number of processes: ``torch.distributed.checkpoint`` of its parts.

Each process writes its own part of the class centres, with the optimizer's state of that part; what every process has
whole (the margin's state, a container's labels) is written once. A head on one process, without a process group, reads
and writes the same folders.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_attributes, renamed_keyword
from attfc_cuda.distributed.checkpoint_reader import CheckpointReader
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.distributed.split_state import Part, SplitOptimizer, is_split, parts_of, state_of, without

__getattr__ = renamed_attributes(
    __name__,
    {"Stretch": "distributed.split_state.Part", "stretches": "distributed.split_state.parts_of"},
)


_NO_STEP_YET = "no_step_yet"
"""In place of an optimizer's state of the centres: torch makes that in the first step, which is yet to come."""


@renamed_keyword("stretches_only", "parts_only")
def save(
    head: nn.Module,
    path: str | os.PathLike,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    parts_only: bool = False,
) -> None:
    """Write the state of `head` to the folder `path`, as a whole: a crash leaves the checkpoint that was there before.

    With shards every process of the group calls it, on a file system that all see; without, one process does. After a
    crash the earlier checkpoint of that name is at `path` or, if it came in the last instant, at `<path>.old`, where
    `load` finds it.

    Args:
        head: a head, or a module that holds some.
        path: a folder; one that exists is replaced.
        optimizer: the one that holds the centres, fused or your own: its state of them is saved too (its learning rate
            and other settings are not).
        parts_only: leave out what every process has whole, for a caller who keeps that elsewhere.

    Raises:
        OSError: where it cannot be written.
    """
    folder = pathlib.Path(path)
    unfinished = folder.with_name(folder.name + ".tmp")
    if isinstance(optimizer, SplitOptimizer):
        optimizer.make_state()  # type: ignore[attr-defined]
    parts = parts_of(head, optimizer)
    shards = _shards_of(parts)
    state = {name: _as_global(part) for name, part in parts.items()}
    if not parts_only:
        state |= _whole(head, optimizer, parts)
        held = _held(optimizer)
        state |= {
            f"optimizer.{key}.{_NO_STEP_YET}": torch.zeros(())
            for key, part in parts.items()
            if part.tensor in held and not state_of(optimizer, part.tensor)
        }
    first_process = shards is None or shards.rank == 0
    if first_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    _wait_for_all(shards)
    try:
        with _quiet():
            dcp.save(state, checkpoint_id=unfinished, no_dist=shards is None, process_group=shards and shards.group)
    except dcp.CheckpointException as cause:
        raise error(
            "head_checkpoint.save", "path", "be writable", f"{path} ({_reason(cause)})", kind=OSError
        ) from cause
    if first_process:
        old = folder.with_name(folder.name + ".old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(unfinished, folder)
        shutil.rmtree(old, ignore_errors=True)
    _wait_for_all(shards)


@renamed_keyword("stretches_only", "parts_only")
def load(
    head: nn.Module,
    path: str | os.PathLike,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    parts_only: bool = False,
) -> None:
    """Read what `save` has written into a head of the same classes, on any number of processes, with shards or without.

    No code in a checkpoint is run, whoever wrote it.

    Args:
        head: as in `save`.
        path: the folder.
        optimizer: as in `save`. Without one, what was saved of an optimizer is left alone.
        parts_only: as in `save`: what every process has whole is left alone.

    Raises:
        ValueError: where `path` holds no complete checkpoint, or one with other names, shapes or dtypes: of another
            kind of head or optimizer, or without the optimizer's state that is asked for.
    """
    folder = pathlib.Path(path)
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        folder = old
    saved = CheckpointReader(folder).read_metadata().state_dict_metadata
    _make_optimizer_state(head, optimizer, saved, folder, parts_only)
    parts = parts_of(head, optimizer)
    shards = _shards_of(parts)
    whole = {} if parts_only else _whole(head, optimizer, parts)
    optional = {} if parts_only else _optional(head)
    for name, place in optional.items():
        if name in saved:
            whole.setdefault(name, place)
        else:
            whole.pop(name, None)
    shapes = {name: part.whole_shape for name, part in parts.items()}
    shapes |= {name: value.shape for name, value in whole.items()}
    dtypes = {name: part.tensor.dtype for name, part in parts.items()}
    dtypes |= {name: value.dtype for name, value in whole.items()}
    for name, shape in shapes.items():
        if name not in saved:
            raise error("head_checkpoint.load", "path", f"hold {name} of the head", f"{folder} without it")
        if saved[name].size != shape:  # type: ignore[union-attr]
            remedy = "load into a head of the size that was saved; resize_classes changes it afterwards"
            got = f"{list(saved[name].size)} in {folder}"  # type: ignore[union-attr]
            raise error("head_checkpoint.load", "path", f"hold {name} of shape {list(shape)}", got, remedy)
        # torch.distributed.checkpoint (2.14) would convert without a word: 300.7 into int8 gives 44.
        if (dtype := saved[name].properties.dtype) != dtypes[name]:  # type: ignore[union-attr]
            remedy = f"load into a head of {dtype}, then cast it with .to()"
            raise error(
                "head_checkpoint.load", "path", f"hold {name} in {dtypes[name]}", f"{dtype} in {folder}", remedy
            )
    # The optimizer's names have been compared where its state was made.
    other = [name for name in saved if name not in shapes and not name.startswith("optimizer.")]
    if other and not parts_only:
        rule, got = "hold the names of the head alone", f"{', '.join(other)} in {folder}"
        raise error("head_checkpoint.load", "path", rule, got, "load into a head of the kind that was saved")
    state = {name: _as_global(part) for name, part in parts.items()} | whole
    try:
        with _quiet():
            dcp.load(
                state,
                storage_reader=CheckpointReader(folder),
                no_dist=shards is None,
                process_group=shards and shards.group,
            )
    except dcp.CheckpointException as cause:
        got = f"{folder} ({_reason(cause)})"
        raise error("head_checkpoint.load", "path", "be a complete checkpoint", got) from cause
    if parts_only:
        return
    # The tensors are filled in place; this runs the modules' own checks and rebuilds what derives from them.
    own = {name: value for name, value in head.state_dict().items() if name not in optional}
    there = {name: whole[name] for name in optional if name in whole}
    head.load_state_dict({name: whole.get(name, value) for name, value in own.items()} | there)


def _reason(failure: dcp.CheckpointException) -> str:
    """What went wrong on the first process that failed, on a line."""
    first = next(iter(failure.failures.values()), (failure,))[0]
    return " ".join(str(first).split())[:200]


def _shards_of(parts: dict[str, Part]) -> Shards | None:
    return next((part.shards for part in parts.values()), None)


def _whole(head: nn.Module, optimizer: torch.optim.Optimizer | None, parts: dict[str, Part]) -> dict[str, Tensor]:
    """What every process has: the rest of the state_dict, and of the optimizer's state of the centres (its step)."""
    whole = without(head.state_dict(), parts)
    for key, part in parts.items():
        for state, value in state_of(optimizer, part.tensor).items():
            if f"optimizer.{key}.{state}" not in parts:
                whole[f"optimizer.{key}.{state}"] = value
    return whole


def _optional(head: nn.Module) -> dict[str, Tensor]:
    """Places for what a state may have or not, as the heads in a module say (`optional_state`)."""
    return {
        f"{prefix}.{name}".lstrip("."): place
        for prefix, module in head.named_modules()
        for name, place in getattr(module, "optional_state", {}).items()
    }


class _State(NamedTuple):
    """A tensor of an optimizer's state of a parameter: where it lies, and whether it has the parameter's rows."""

    device: torch.device
    per_row: bool


def _make_optimizer_state(
    head: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    saved: dict[str, Any],
    folder: pathlib.Path,
    parts_only: bool,
) -> None:
    """torch's optimizers make their state in the first step; what is to be loaded must be there before it.

    Raises: ValueError unless `saved` holds the names of this kind of optimizer.
    """
    if optimizer is None:
        return
    held = _held(optimizer)
    for key, part in parts_of(head).items():
        prefix, tensor = f"optimizer.{key}.", part.tensor
        entries = {name.removeprefix(prefix): entry for name, entry in saved.items() if name.startswith(prefix)}
        # Who keeps the rest elsewhere has loaded from there whether a step had been taken.
        no_step_yet = parts_only and not entries and not isinstance(optimizer, SplitOptimizer)
        if _NO_STEP_YET in entries or (no_step_yet and not state_of(optimizer, tensor)):
            optimizer.state.pop(tensor, None)
            continue
        found = {name: _State(torch.device("cpu"), entry.size == part.whole_shape) for name, entry in entries.items()}
        kept = _state_after_a_step(optimizer, tensor, found) if tensor in held else {}
        wanted, there = (
            sorted(name for name, state in states.items() if state.per_row or not parts_only)
            for states in (kept, found)
        )
        if wanted != there:
            rule = f"hold {', '.join(wanted) or 'nothing'} of {key}'s optimizer"
            got = f"{', '.join(there) or 'nothing'} in {folder}"
            remedy = "give the kind of optimizer that was saved with it, or none"
            raise error("head_checkpoint.load", "path", rule, got, remedy)
        for name in wanted:
            if name not in optimizer.state[tensor]:
                made = tensor.shape if found[name].per_row else entries[name].size
                dtype = entries[name].properties.dtype
                optimizer.state[tensor][name] = torch.zeros(made, dtype=dtype, device=kept[name].device)


def _held(optimizer: torch.optim.Optimizer | None) -> set[Tensor]:
    return set() if optimizer is None else {p for group in optimizer.param_groups for p in group["params"]}


def _state_after_a_step(
    optimizer: torch.optim.Optimizer, tensor: Tensor, unknown: dict[str, _State]
) -> dict[str, _State]:
    """What an optimizer keeps of a parameter, by name. unknown: of an optimizer by others before its first step."""
    parameter = tensor
    if isinstance(optimizer, SplitOptimizer):
        optimizer.make_state()  # type: ignore[attr-defined]
    elif type(optimizer).__module__.startswith("torch.optim."):
        # A twin of the same settings takes a step with a parameter of a single row.
        group = next(group for group in optimizer.param_groups if any(p is tensor for p in group["params"]))
        parameter = tensor.new_zeros((1, *tensor.shape[1:])).requires_grad_()
        parameter.grad = torch.zeros_like(parameter)
        group, settings = {**group, "params": [parameter]}, optimizer.defaults
        optimizer = type(optimizer).__new__(type(optimizer))
        optimizer.__setstate__({"defaults": settings, "state": defaultdict(dict), "param_groups": [group]})
        optimizer.step()
    elif not state_of(optimizer, tensor):
        return unknown
    state = state_of(optimizer, parameter)
    return {
        name: _State(value.device, is_split(optimizer, name, value, parameter.shape)) for name, value in state.items()
    }


def _as_global(part: Part) -> Tensor:
    """The tensor as torch.distributed.checkpoint is to see it: with shards, a DTensor on the same memory."""
    tensor, shards = part.tensor.detach(), part.shards
    if shards is None:
        return tensor
    mesh = DeviceMesh.from_group(shards.group, tensor.device.type)
    return DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False, shape=part.whole_shape, stride=tensor.stride())


def _wait_for_all(shards: Shards | None) -> None:
    if shards is not None:
        dist.barrier(group=shards.group)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield
