"""What a data set left out and why: counted by kind, each with its first example, for the start-up report."""

from __future__ import annotations

from collections import Counter

from attfc_cuda._check import printable


class Skipped:
    """Counts of what was left out. `counts` and `examples` are keyed by the kind, in words that follow a number."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        self.counts[what] += count
        self.examples.setdefault(what, printable(where))

    def update(self, other: Skipped) -> None:
        """Take over the counts of another one."""
        for what, count in other.counts.items():
            self.add(what, other.examples[what], count)

    def text(self, separator: str) -> str:
        """`<separator>skipped: <count> <kind>, e.g. <example>` for each kind, in the order they were first met."""
        return "".join(
            f"{separator}skipped: {count} {what}, e.g. {self.examples[what]}" for what, count in self.counts.items()
        )
