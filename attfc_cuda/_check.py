"""Checks of tensors, and `error`, which words every error."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from attfc_cuda._error import error, printable

__all__ = ["error", "printable", "require_labels", "require_mapping", "require_rows"]


def require_rows(
    ok: Tensor,
    function: str,
    argument: str,
    rule: str,
    describe: Callable[[int], str],
    remedy: str | None = None,
    wait: bool = False,
) -> None:
    """Demand that every entry of `ok` [B] bool holds.

    Where the host can look at a value (the CPU, eagerly; another device too with `wait`) the first row that fails is
    described in a ValueError. Elsewhere (another device, compiled code, CUDA graph capture) the device asserts,
    without naming the row and without making the host wait.
    """
    if not _host_may_read(ok, wait):
        where = "a row that does not (found on the device, where the row is not known)"
        torch._assert_async(ok.all(), str(error(function, argument, rule, where, remedy)))
    elif not ok.all():
        raise error(function, argument, rule, describe(int((~ok).nonzero()[0])), remedy)


def require_mapping(function: str, mapping: Tensor, num_classes: int | None) -> None:
    """Demand of a `mapping` of classes: [N] int64, N >= 1, each entry -1 or one of `num_classes` old classes, none
    twice. The host waits for it."""
    if mapping.ndim != 1 or len(mapping) == 0:
        raise error(function, "mapping", "have shape [N], one old class for each new one", list(mapping.shape))
    if mapping.dtype != torch.int64:
        raise error(function, "mapping", "have dtype torch.int64", mapping.dtype, "mapping.long()", TypeError)
    highest = torch.iinfo(torch.int64).max if num_classes is None else num_classes - 1
    require_rows(
        (mapping >= -1) & (mapping <= highest),
        function,
        "mapping",
        "name old classes, at least 0" + ("" if num_classes is None else f" and below {num_classes}") + ", or be -1",
        lambda row: f"{int(mapping[row])} for new class {row}",
        wait=True,
    )
    ordered = mapping[mapping >= 0].sort().values
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        rule = "name each old class at most once"
        raise error(function, "mapping", rule, f"{int(twice[0])} more than once", "start the second one anew with -1")


def require_labels(function: str, labels: Tensor, num_classes: int) -> None:
    """Demand that every one of `labels` [B] int64 lies below `num_classes`, as `require_rows` does.

    Nothing is checked while a CUDA graph is captured: an assertion in a replay would end the process's use of the GPU
    without a word about where. With ATTFC_DEBUG=1 the host waits for a device too, and the first bad row is named.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and labels.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    require_rows(
        labels < num_classes,
        function,
        "labels",
        f"be below num_classes = {num_classes}",
        lambda row: f"{int(labels[row])} in row {row}",
        "give the head the data set's number of classes; ATTFC_DEBUG=1 names the row on every device",
        wait=not compiling and os.environ.get("ATTFC_DEBUG") == "1",
    )


def active_transforms() -> set[str]:
    """The transforms of torch.func that are running, in lower case ("grad", "vmap", "jvp", ...); empty in compiled
    code."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return set()
    return {transform.key().name.lower() for transform in torch._C._functorch.get_interpreter_stack() or ()}


def _host_may_read(x: Tensor, wait: bool) -> bool:
    # A fake or traced tensor holds no value. It is of a subclass that dispatches by itself; others are plain tensors.
    if torch.compiler.is_compiling() or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    if x.is_cuda:
        return wait and not torch.cuda.is_current_stream_capturing()
    return wait or x.device.type == "cpu"
