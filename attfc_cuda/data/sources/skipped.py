"""What a data set left out and why: counted by kind, each with its first example, for the start-up report."""

from __future__ import annotations

from collections import Counter


class Skipped:
    """Counts of what was left out. `counts` and `examples` are keyed by the kind, in words that follow a number."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        self.counts[what] += count
        # A file's name need not be UTF-8, but a report must be fit to print.
        self.examples.setdefault(what, where.encode("utf-8", "backslashreplace").decode())

    def text(self, separator: str) -> str:
        """`<separator>skipped: <count> <kind>, e.g. <example>` for each kind, in the order they were first met."""
        return "".join(
            f"{separator}skipped: {count} {what}, e.g. {self.examples[what]}" for what, count in self.counts.items()
        )
