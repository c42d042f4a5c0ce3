"""Pair lists in columns, as people's own scripts write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attfc_cuda._check import error
from attfc_cuda.data.images import IMAGE_EXTENSIONS

FOLDS = 10
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_SAME = {"1": True, "true": True, "0": False, "-1": False, "false": False}
_RULE = "hold image_a, image_b, same and perhaps fold, separated by tabs, commas or white space"


def pair_columns(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, str, str, bool, int]]:
    """The pairs of a list in columns: two images, same, and a fold or none.

    Separators are told by the first line: tabs where it has any (then images may have any name), else commas, else
    white space. `same` is 1, 0, -1, true or false, whatever the case. A first line whose third column is the name of
    one, such as `label`, is a heading. Without folds, pairs of either kind are dealt into ten in turn: lists with all
    genuine pairs first get folds of both kinds.

    Args:
        path: The list, for messages.
        lines: All of the file.

    Yields:
        Line number, both images, same and fold of every pair.

    Raises:
        ValueError: Naming the list and the line.
    """
    split: Callable[[str], list[str]] | None = None
    width, dealt = 0, {True: 0, False: 0}
    for line_number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        place = f"line {line_number} of {path}"
        if split is None:
            split = _splitter(line)
            columns = split(line)
            width = len(columns)
            if width in (3, 4) and _is_heading(columns):
                continue
        columns = split(line)
        if len(columns) not in (3, 4) or len(columns) != width:
            got = f"{len(columns)} columns" + (f" after lines of {width}" if width in (3, 4) else "")
            raise error("read_pairs", place, _RULE, got)
        same = _SAME.get(columns[2].lower())
        if same is None:
            raise error("read_pairs", place, "hold 1, 0, -1, true or false in column 3 (same)", repr(columns[2]))
        if width == 4 and not _INTEGER.fullmatch(columns[3]):
            raise error("read_pairs", place, "hold an integer in column 4 (fold)", repr(columns[3]))
        fold = int(columns[3]) if width == 4 else dealt[same] % FOLDS
        dealt[same] += 1
        yield line_number, columns[0], columns[1], same, fold


def _is_heading(columns: Sequence[str]) -> bool:
    images = any(column.lower().endswith(IMAGE_EXTENSIONS) for column in columns)
    return not images and columns[2].isidentifier() and columns[2].lower() not in _SAME


def _splitter(line: str) -> Callable[[str], list[str]]:
    separator = next((mark for mark in "\t," if mark in line), None)
    return lambda text: [column.strip() for column in text.split(separator)]
