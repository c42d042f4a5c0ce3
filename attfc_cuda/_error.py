"""The one place that words an error: `<function>: <argument> must <rule>, got <value>[; <remedy>]`. Needs no torch."""

from __future__ import annotations

from typing import Any


def error(
    function: str, argument: str, rule: str, got: Any, remedy: str | None = None, kind: type[Exception] = ValueError
) -> Exception:
    """Build (not raise) the error, so that the caller's `raise` shows in the traceback and to a type checker.

    Example: ``raise error("AttFC", "capacity", "be at least 1", capacity)``.
    """
    tail = f"; {remedy}" if remedy else ""
    return kind(f"{function}: {argument} must {rule}, got {got}{tail}")
