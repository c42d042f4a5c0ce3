"""Training loops in which a head would silently do something else than asked: each is refused by name.

A head with state moves it in the forward pass (a container, a margin's running mean) or in the backward pass (a fused
optimizer). Whatever runs either twice, or replaces the state behind its back, is met here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attfc_cuda._check import active_transforms, error


def refuse_recomputation(head: str, moves: str | None) -> None:
    """Refuse a forward pass that runs inside a backward pass, as activation checkpointing does it a second time.

    Args:
        head: the head's name.
        moves: the state that a forward pass moves; None where it moves none, and may run twice.

    Raises:
        RuntimeError: there, before anything has moved.
    """
    if moves is None or torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return
    rule = f"run once a step in train mode, since it moves {moves}"
    got = "a second forward inside a backward pass (activation checkpointing)"
    raise error(head, "forward", rule, got, "checkpoint the backbone and leave the head outside", RuntimeError)


def refuse_transforms(head: str, moves: str | None) -> None:
    """Refuse `torch.func.vmap`, `jvp` and what is built on them; and `grad` and `vjp` too where state would move, which
    they do not allow.

    Args:
        head: the head's name.
        moves: as in `refuse_recomputation`.

    Raises:
        NotImplementedError: inside one of them.
    """
    names = active_transforms()
    refused = sorted(names & {"vmap", "jvp"})
    if refused:
        remedy = "use torch.func.grad, or a loop over the batches"
        raise error(head, "forward", "not run under vmap or jvp", refused[0], remedy, NotImplementedError)
    if names and moves is not None:
        remedy = f"call head.eval() first: in train mode it moves {moves}"
        got = ", ".join(sorted(names))
        raise error(head, "forward", "not move state in train mode under torch.func", got, remedy, NotImplementedError)


def refuse_ddp(head: nn.Module, name: str, buffers: tuple[Tensor, ...], split: bool, fused: bool) -> None:
    """Refuse a head inside DistributedDataParallel where the wrapper breaks it.

    Args:
        head: the head, with `name` for the message.
        name: its class.
        buffers: those that each process must keep to itself.
        split: whether the head has shards.
        fused: whether the backward pass moves its centres.

    Raises:
        RuntimeError: where several processes would overwrite, or each by itself move, what must stay alike.
    """
    if torch.compiler.is_compiling():
        return
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is None or wrapper.process_group.size() == 1 or all(module is not head for module in wrapper.modules()):
        return
    got, remedy = "a wrapper around both", "wrap the backbone alone"
    if split:
        rule = "stay outside of DistributedDataParallel, which takes the parts of the processes for copies of one"
        raise error(name, "a head with shards", rule, got, remedy, RuntimeError)
    if fused:
        rule = "stay outside of DistributedDataParallel: each process would move its own centres by its own rows"
        remedy += " and give the head shards=Shards(), or leave fuse_optimizer out"
        raise error(name, "a head with a fused optimizer", rule, got, remedy, RuntimeError)
    synchronised = {id(buffer) for buffer in wrapper.modules_buffers} if wrapper.will_sync_module_buffers() else set()
    if any(id(buffer) in synchronised for buffer in buffers):
        rule = "stay outside of DistributedDataParallel, which overwrites its container with that of the first process"
        raise error(name, "a head", rule, got, remedy + ", or pass broadcast_buffers=False", RuntimeError)
