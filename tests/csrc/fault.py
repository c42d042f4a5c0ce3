"""A fault that faults.py plants in the CUDA sources, and the places that the sources mark for it.

A comment `// fault: NAME` names the line that it ends, or the line below where it stands alone. A name stands once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MARKER = re.compile(r"// fault: (\w+)$")
LINE = "the whole marked line"  # as `old`: all the code of the line


@dataclass(frozen=True)
class Fault:
    name: str
    build: str
    at: str  # the marked line
    old: str  # a text that this line holds once, or LINE
    new: str
    cases: tuple[str, ...] = ("shape.3x99",)
    unit: str = "sweep_d128"  # the translation unit to compile anew
    seeds: int = 2
    test: str = "sweep_test"
    also: tuple[tuple[str, str, str], ...] = ()  # (at, old, new) of further lines

    @property
    def label(self) -> str:
        return f"{self.test.removesuffix('_test')}.{self.name}"

    @property
    def changes(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.at, self.old, self.new), *self.also)


def marked_lines(csrc: Path) -> dict[str, tuple[Path, int]]:
    """The file and the index of the line of each name."""
    places: dict[str, tuple[Path, int]] = {}
    for path in sorted(each for each in csrc.rglob("*") if each.suffix in (".cu", ".h")):
        for index, line in enumerate(path.read_text().splitlines()):
            found = MARKER.search(line)
            if found is None:
                continue
            if found[1] in places:
                raise ValueError(f"the marker {found[1]} stands in {places[found[1]][0].name} and in {path.name}")
            alone = not line[: found.start()].strip()
            places[found[1]] = (path, index + 1 if alone else index)
    return places


def changed_files(fault: Fault, csrc: Path) -> dict[Path, list[str]]:
    """The lines of each file that the fault changes, changed."""
    places = marked_lines(csrc)
    changed: dict[Path, list[str]] = {}
    for at, old, new in fault.changes:
        if at not in places:
            raise ValueError(f"no line is marked `// fault: {at}`")
        path, index = places[at]
        lines = changed.setdefault(path, path.read_text().split("\n"))
        code = MARKER.sub("", lines[index]).rstrip()
        old = code.strip() if old == LINE else old
        if not old or code.count(old) != 1:
            raise ValueError(f"the line marked {at} holds `{old}` {code.count(old)} times, not once: `{code.strip()}`")
        lines[index] = code.replace(old, new)
    return changed


def plant(fault: Fault, csrc: Path) -> None:
    """Writes the changed lines into the tree `csrc`."""
    for path, lines in changed_files(fault, csrc).items():
        path.write_text("\n".join(lines))
