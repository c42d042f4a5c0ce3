"""The one place that words an error: `<function>: <argument> must <rule>, got <value>[; <remedy>]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def error(
    function: str, argument: str, rule: str, got: Any, remedy: str | None = None, kind: type[Exception] = ValueError
) -> Exception:
    """Build (not raise) the error, so that the caller's `raise` shows in the traceback and to a type checker.

    Example: ``raise error("AttFC", "capacity", "be at least 1", capacity)``.
    """
    tail = f"; {remedy}" if remedy else ""
    return kind(f"{function}: {argument} must {rule}, got {got}{tail}")


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


def _host_may_read(x: Tensor, wait: bool) -> bool:
    # `type(x)`: a fake or traced tensor is a subclass and holds no value.
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    if x.is_cuda:
        return wait and not torch.cuda.is_current_stream_capturing()
    return wait or x.device.type == "cpu"
