"""A head's state on the disk, to be loaded by any number of processes: ``torch.distributed.checkpoint`` of its parts.

Each process writes the stretch of the class centres that it holds, and the optimizer's state of it; what every process
has whole (the margin's state, a container's labels) is written once. A head on one process, with no process group,
reads and writes the same folders.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from attfc_cuda._check import error
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.heads.fused_optimizer import FusedOptimizer

_METADATA_CLASSES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex",
                 "StorageMeta", "_MEM_FORMAT_ENCODING")
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}  # fmt: skip


class Stretch(NamedTuple):
    """A tensor of which this process holds the rows from `first` on, of `total`."""

    tensor: Tensor
    first: int
    total: int
    shards: Shards | None


def stretches(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Stretch]:
    """What the heads in `module` hold of tensors that shards split, by their names in its state_dict; and the
    optimizer's state of those, as `optimizer.<name>.<state>`."""
    found = {}
    for prefix, part in module.named_modules():
        for name, total in getattr(part, "split_rows", {}).items():
            tensor, key = getattr(part, name), f"{prefix}.{name}".lstrip(".")
            found[key] = Stretch(tensor, part.first, total, part.shards)
            for state, value in _state_of(optimizer, tensor).items():
                if value.shape == tensor.shape:
                    found[f"optimizer.{key}.{state}"] = Stretch(value, part.first, total, part.shards)
    return found


def without(state: Mapping[str, Any], split: dict[str, Stretch]) -> dict[str, Any]:
    """A state_dict without the tensors of `split`: known by their memory, as a module may save them by other names."""
    tensors = [stretch.tensor.detach() for stretch in split.values()]
    return {
        name: value
        for name, value in state.items()
        if not (isinstance(value, Tensor) and any(value.is_set_to(tensor) for tensor in tensors))
    }


def save(
    head: nn.Module,
    path: str | os.PathLike,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    stretches_only: bool = False,
) -> None:
    """Write the state of `head` (or of a module with heads in it) to the folder `path`: all of it, or what was there.

    optimizer: the one that holds the centres, fused or your own: its state of them is saved as well (its learning rate
        and other settings are not).
    stretches_only: leave out what every process has whole, for a caller who keeps that elsewhere.
    With shards every process of the group calls it, on a file system that all see; without, one process does.
    A crash in between leaves the earlier checkpoint of that name, at `path` or, in the last instant, at `<path>.old`,
    where `load` finds it.
    Raises: OSError where it cannot be written.
    """
    folder = pathlib.Path(path)
    part = folder.with_name(folder.name + ".tmp")
    if isinstance(optimizer, FusedOptimizer):
        optimizer.make_state()
    split = stretches(head, optimizer)
    shards = _shards_of(split)
    state = {name: _as_global(stretch) for name, stretch in split.items()}
    if not stretches_only:
        state |= _whole(head, optimizer, split)
    first_process = shards is None or shards.rank == 0
    if first_process:
        shutil.rmtree(part, ignore_errors=True)
    _wait_for_all(shards)
    try:
        with _quiet():
            dcp.save(state, checkpoint_id=part, no_dist=shards is None, process_group=shards and shards.group)
    except dcp.CheckpointException as cause:
        raise error(
            "head_checkpoint.save", "path", "be writable", f"{path} ({_reason(cause)})", kind=OSError
        ) from cause
    if first_process:
        old = folder.with_name(folder.name + ".old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old, ignore_errors=True)
    _wait_for_all(shards)


def load(
    head: nn.Module,
    path: str | os.PathLike,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    stretches_only: bool = False,
) -> None:
    """Read what `save` has written into a head of the same classes, on any number of processes, with shards or without.

    optimizer, stretches_only: as in `save`; what is not asked for is left alone.
    No code in a checkpoint is run, whoever wrote it.
    Raises: ValueError where `path` holds no complete checkpoint, or one of other names or shapes: another kind of head
        or optimizer, or an optimizer's state that is asked for and was not saved.
    """
    folder = pathlib.Path(path)
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        folder = old
    saved = _Reader(folder).read_metadata().state_dict_metadata
    _make_optimizer_state(head, optimizer, saved, folder, stretches_only)
    split = stretches(head, optimizer)
    shards = _shards_of(split)
    whole = {} if stretches_only else _whole(head, optimizer, split)
    shapes = {name: torch.Size((s.total, *s.tensor.shape[1:])) for name, s in split.items()}
    shapes |= {name: value.shape for name, value in whole.items()}
    for name, shape in shapes.items():
        if name not in saved:
            raise error("head_checkpoint.load", "path", f"hold {name} of the head", f"{folder} without it")
        if saved[name].size != shape:
            remedy = "load into a head of the size that was saved; resize_classes changes it afterwards"
            got = f"{list(saved[name].size)} in {folder}"
            raise error("head_checkpoint.load", "path", f"hold {name} of shape {list(shape)}", got, remedy)
    # The optimizer's names have been compared where its state was made.
    other = [name for name in saved if name not in shapes and not name.startswith("optimizer.")]
    if other and not stretches_only:
        rule, got = "hold the names of the head alone", f"{', '.join(other)} in {folder}"
        raise error("head_checkpoint.load", "path", rule, got, "load into a head of the kind that was saved")
    state = {name: _as_global(stretch) for name, stretch in split.items()} | whole
    try:
        with _quiet():
            dcp.load(
                state, storage_reader=_Reader(folder), no_dist=shards is None, process_group=shards and shards.group
            )
    except dcp.CheckpointException as cause:
        got = f"{folder} ({_reason(cause)})"
        raise error("head_checkpoint.load", "path", "be a complete checkpoint", got) from cause
    if stretches_only:
        return
    # The tensors are filled in place; this runs the modules' own checks and rebuilds what derives from them.
    own = head.state_dict()
    head.load_state_dict({name: whole.get(name, value) for name, value in own.items()})


def _reason(failure: dcp.CheckpointException) -> str:
    """What went wrong on the first process that failed, on a line."""
    first = next(iter(failure.failures.values()), (failure,))[0]
    return " ".join(str(first).split())[:200]


class _Unpickler(pickle.Unpickler):
    """Only what describes tensors: a checkpoint from a stranger must not run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib"):  # where the checkpoint once was; perhaps on another system
            return pathlib.PurePosixPath
        found = super().find_class(module, name) if (module, name) in _METADATA_CLASSES or module == "torch" else None
        if (module, name) in _METADATA_CLASSES or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with open(pathlib.Path(self.path) / ".metadata", "rb") as file:
                metadata = _Unpickler(file).load()
            if not all(isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values()):
                raise pickle.UnpicklingError("it holds other things than tensors")
        except Exception as cause:  # a damaged pickle raises whatever it likes
            missing = isinstance(cause, FileNotFoundError)
            got = f"{self.path} " + ("without a .metadata file" if missing else f"(.metadata: {cause})")
            raise error("head_checkpoint.load", "path", "be a complete checkpoint", got) from cause
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


def _shards_of(split: dict[str, Stretch]) -> Shards | None:
    return next((stretch.shards for stretch in split.values()), None)


def _state_of(optimizer: torch.optim.Optimizer | None, tensor: Tensor) -> dict[str, Tensor]:
    """The tensors of an optimizer's state of one parameter."""
    state = {} if optimizer is None else optimizer.state.get(tensor, {})
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _whole(head: nn.Module, optimizer: torch.optim.Optimizer | None, split: dict[str, Stretch]) -> dict[str, Tensor]:
    """What every process has: the rest of the state_dict, and of the optimizer's state of the centres (its step)."""
    whole = without(head.state_dict(), split)
    for key, stretch in split.items():
        for state, value in _state_of(optimizer, stretch.tensor).items():
            if f"optimizer.{key}.{state}" not in split:
                whole[f"optimizer.{key}.{state}"] = value
    return whole


class _State(NamedTuple):
    """A tensor of an optimizer's state of a parameter: where it lies, and whether it has the parameter's shape."""

    device: torch.device
    per_row: bool


def _make_optimizer_state(
    head: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    saved: dict[str, Any],
    folder: pathlib.Path,
    stretches_only: bool,
) -> None:
    """torch's optimizers make their state in the first step; what is to be loaded must be there before it.

    Raises: ValueError unless `saved` holds the names of this kind of optimizer.
    """
    if optimizer is None:
        return
    held = {p for group in optimizer.param_groups for p in group["params"]}
    for key, (tensor, _, total, _) in stretches(head).items():
        prefix, shape = f"optimizer.{key}.", torch.Size((total, *tensor.shape[1:]))
        entries = {name.removeprefix(prefix): entry for name, entry in saved.items() if name.startswith(prefix)}
        found = {name: _State(torch.device("cpu"), entry.size == shape) for name, entry in entries.items()}
        kept = _state_after_a_step(optimizer, tensor, found) if tensor in held else {}
        wanted, there = (
            sorted(name for name, state in states.items() if state.per_row or not stretches_only)
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


def _state_after_a_step(
    optimizer: torch.optim.Optimizer, tensor: Tensor, unknown: dict[str, _State]
) -> dict[str, _State]:
    """What an optimizer keeps of a parameter, by name. unknown: of an optimizer by others before its first step."""
    parameter = tensor
    if isinstance(optimizer, FusedOptimizer):
        optimizer.make_state()
    elif type(optimizer).__module__.startswith("torch.optim."):
        # A twin of the same settings takes a step with a parameter of a single row.
        group = next(group for group in optimizer.param_groups if any(p is tensor for p in group["params"]))
        parameter = tensor.new_zeros((1, *tensor.shape[1:])).requires_grad_()
        parameter.grad = torch.zeros_like(parameter)
        group, settings = {**group, "params": [parameter]}, optimizer.defaults
        optimizer = type(optimizer).__new__(type(optimizer))
        optimizer.__setstate__({"defaults": settings, "state": defaultdict(dict), "param_groups": [group]})
        optimizer.step()
    elif not _state_of(optimizer, tensor):
        return unknown
    state = _state_of(optimizer, parameter)
    return {name: _State(value.device, value.shape == parameter.shape) for name, value in state.items()}


def _as_global(stretch: Stretch) -> Tensor:
    """The tensor as torch.distributed.checkpoint is to see it: with shards, a DTensor on the same memory."""
    tensor, _, total, shards = stretch
    tensor = tensor.detach()
    if shards is None:
        return tensor
    mesh = DeviceMesh.from_group(shards.group, tensor.device.type)
    shape = torch.Size((total, *tensor.shape[1:]))
    return DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False, shape=shape, stride=tensor.stride())


def _wait_for_all(shards: Shards | None) -> None:
    if shards is not None:
        dist.barrier(group=shards.group)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield
