"""Turns the layout of this project's docstrings into Markdown for the API reference: a griffe extension.

The layout is plain text made for editors: `name: what it is` lines with indented continuations, and indented code under
a line that ends in a colon. Markdown would run the first into one paragraph and miss the second. Docstrings with a
section of Google's layout (`Args:` on a line of its own, ...) are left to the parser of that layout.
"""

from __future__ import annotations

import re
from typing import Any

try:
    import griffe
except ImportError:  # `markdown` alone is of use without the site's libraries
    griffe = None

# `dim: ...`, `policy, dtype: ...`, `embeddings [B, D]: ...`, `Returns: ...`, `Train and eval mode: ...`
_ITEM = re.compile(r"(?P<name>[A-Za-z_][\w*`.]*(?:[ ,]+(?:\[[^\]]*\]|[\w*`.-]+)){0,6}): (?P<text>\S.*)")


# A section of Google's layout.
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Gradient|Source|Deterministic):$", re.MULTILINE)


def markdown(docstring: str) -> str:
    """The docstring as Markdown: items become list entries, indented code becomes fenced blocks."""
    lines, out, in_item = docstring.strip("\n").split("\n"), [], False
    number = 0
    while number < len(lines):
        line = lines[number]
        if line.startswith("    ") and not in_item:
            block = _indented(lines, number)
            out += ["", "```python", *(text[4:] for text in lines[number : number + block]), "```", ""]
            number += block
            continue
        item = _ITEM.fullmatch(line)
        # The first line is the summary. Another that only happens to hold a colon is the middle of a sentence: the one
        # before has not ended.
        ended = bool(out) and (not out[-1] or out[-1].endswith((".", ":", ")", "```")))
        if item and ended:
            out += ["", f"- **{item['name']}**: {item['text']}"]
            in_item = True
        elif line.strip() and (line.startswith("    ") or (in_item and not ended)):
            out.append("  " + line.strip())
        else:
            if in_item and line.strip():
                out.append("")
            in_item = False
            out.append(line.rstrip())
        number += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _indented(lines: list[str], first: int) -> int:
    """How many lines from `first` on are indented; empty ones between them included."""
    last = first
    for number in range(first, len(lines)):
        if lines[number].startswith("    "):
            last = number
        elif lines[number].strip():
            break
    return last - first + 1


if griffe is not None:

    class HouseDocstrings(griffe.Extension):
        """Applies `markdown` to every docstring that the reference shows."""

        def on_object(self, *, obj: Any, **_: Any) -> None:
            if obj.docstring and not _SECTION.search(obj.docstring.value):
                obj.docstring.value = markdown(obj.docstring.value)
