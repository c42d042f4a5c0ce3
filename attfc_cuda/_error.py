"""The one place that words an error: `<function>: <argument> must <rule>, got <value>[; <remedy>]`. Needs no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any


def error(
    function: str, argument: str, rule: str, got: Any, remedy: str | None = None, kind: type[Exception] = ValueError
) -> Exception:
    """Build (not raise) the error, so that the caller's `raise` shows in the traceback and to a type checker.

    Example: ``raise error("AttFC", "capacity", "be at least 1", capacity)``.
    """
    tail = f"; {remedy}" if remedy else ""
    return kind(printable(f"{function}: {argument} must {rule}, got {got}{tail}"))


def is_worded(cause: Exception) -> bool:
    """Whether an error has the form that `error` gives: it names its argument; another one is a library's."""
    return _WORDED.match(str(cause)) is not None


_WORDED = re.compile(r"[\w.]+: .* must ")


def close_match(word: str, known: Iterable[str]) -> str | None:
    """A remedy for a mistyped word: "did you mean arcface?"; None where nothing known is like it."""
    found = difflib.get_close_matches(str(word).lower(), list(known), n=1)
    return f"did you mean {found[0]}?" if found else None


# What would move a terminal's cursor, reorder its text or not encode: control characters (but tab), directions, halves
# of surrogate pairs (bytes of a file's name that are no UTF-8).
_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: str) -> str:
    """`text` with whatever a stranger's file name could do to a terminal or a log line written out, as \\x1b."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)
