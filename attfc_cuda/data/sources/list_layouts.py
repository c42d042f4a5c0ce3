"""How the lines of an image list are written, told from the lines themselves."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from attfc_cuda.data.images import IMAGE_EXTENSIONS

SAMPLED_LINES = 1000
"""Lines by which a layout is chosen."""
KNOWN = (
    "path label (the label a whole number, or a name behind an image's path); label path; "
    "1, path, label between tabs (InsightFace's train.lst); number, label, path between tabs (im2rec's); "
    "path 0 label 0 (MagFace's); CSV with commas, semicolons or tabs, whose first line may name the columns"
)
"""What is looked for, for an error."""

_EXTENSION = rb"\.(?:%s)" % b"|".join(extension[1:].encode() for extension in IMAGE_EXTENSIONS)
_NUMBER = rb"(\d{1,18})(?:\.0*)?"
_PATH = rb"(\S.*?%s)" % _EXTENSION
_IMAGE = re.compile(rb".*%s" % _EXTENSION, re.IGNORECASE | re.DOTALL)
_WHOLE = re.compile(rb"\s*\d{1,18}\s*")
_PATH_COLUMNS = ("path", "image", "img", "file", "filename", "file_name", "image_path", "img_path", "image_name")
# The surest first: beside an identity a label may be anything, and an id is often the number of the row.
LABEL_COLUMNS = (
    "identity", "identity_id", "person", "person_id", "subject", "subject_id", "label", "labels", "class", "class_id",
    "target", "name", "id",
)  # fmt: skip

Parse = Callable[[bytes], "tuple[bytes, bytes] | None"]


class Layout(NamedTuple):
    """A way to write a line.

    Attributes:
        name: For a report.
        parse: Path and label of a line without white space around it; None for a line of another form.
        named: Whether labels are names, not whole numbers.
    """

    name: str
    parse: Parse
    named: bool = False


def _by_pattern(pattern: bytes, path: int = 1, label: int = 2) -> Parse:
    compiled = re.compile(pattern, re.IGNORECASE)

    def parse(line: bytes) -> tuple[bytes, bytes] | None:
        match = compiled.fullmatch(line)
        return None if match is None else (match[path], match[label])

    return parse


# Of two that fit as many lines the first is taken: a later one may read a path out of an earlier one's columns. No
# pattern looks at a byte more than a few times, however long a line is.
_LAYOUTS = (
    Layout("1, path, label (InsightFace)", _by_pattern(rb"[01]\t(?=[^\t]*[^\t\d])([^\t]+)\t%s(?:\t.*)?" % _NUMBER)),
    Layout(
        "number, label, path (im2rec)",
        _by_pattern(rb"\d+\t%s(?:\t[\d.eE+-]+)*\t(?=[^\t]*[^\t\d.])([^\t]+)" % _NUMBER, 2, 1),
    ),
    Layout("path 0 label 0 (MagFace)", _by_pattern(rb"%s\s+0\s+%s\s+0" % (_PATH, _NUMBER))),
    Layout("label path", _by_pattern(rb"%s[ \t]+(?=\S*[^\s\d])(\S+?%s)" % (_NUMBER, _EXTENSION), 2, 1)),
    # The label is what follows the last white space: paths may hold spaces. What stands between it and the end of an
    # image's name is another column, and then the line is of another layout.
    Layout("path label", _by_pattern(rb"((?!.*%s[ \t]+\S+[ \t])\S(?:.*?\S)?)\s+(\d{1,18})" % _EXTENSION)),
    Layout("path name", _by_pattern(rb"%s(?:\t+(?=[^\t]+$)|[ ]+(?=\S+$))(?![-+.\d]+$)(.+)" % _PATH), True),
)


def layout_of(lines: Sequence[bytes]) -> tuple[Layout, int] | None:
    """The layout that fits most of the lines, and how many of them are a heading; None where none fits any.

    Args:
        lines: The first lines of a list that are neither empty nor comments, without white space around them.
    """
    candidates = [*_tables(lines), *((layout, 0) for layout in _LAYOUTS)]
    fits = [sum(layout.parse(line) is not None for line in lines[heading:]) for layout, heading in candidates]
    best = max(fits, default=0)
    return candidates[fits.index(best)] if best else None


def _tables(lines: Sequence[bytes]) -> list[tuple[Layout, int]]:
    """CSV, with a heading or without, where the columns of image and label can be told."""
    found = []
    for delimiter in ",;\t":
        rows = [row for line in lines if (row := _cells(line, delimiter)) is not None]
        if not rows or sum(len(row) == len(rows[0]) for row in rows) < 0.9 * len(rows) or len(rows[0]) < 2:
            continue
        rows = [row for row in rows if len(row) == len(rows[0])]
        names = [cell.decode("utf-8", "replace").strip().lower() for cell in rows[0]]
        heading = not any(map(_IMAGE.fullmatch, rows[0])) and not any(map(_WHOLE.fullmatch, rows[0])) and len(rows) > 1
        if not heading and (delimiter == "\t" or len(names) > 2):
            continue  # tabs without a heading are of the layouts below
        columns = [list(column) for column in zip(*rows[heading:], strict=True)]
        path = _named_column(names, _PATH_COLUMNS) if heading else None
        if path is None:
            path = next((k for k, column in enumerate(columns) if _share_of_images(column) > 0.5), None)
        label = _named_column(names, LABEL_COLUMNS) if heading else None
        if label is None and len(columns) == 2 and path is not None:
            label = 1 - path
        if path is None or label is None or path == label:
            continue
        named = not all(map(_WHOLE.fullmatch, columns[label]))
        found.append((Layout("CSV", _by_column(delimiter, len(names), path, label, named), named), int(heading)))
    return found


def _named_column(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _share_of_images(column: Sequence[bytes]) -> float:
    return sum(_IMAGE.fullmatch(cell.strip()) is not None for cell in column) / len(column)


def _by_column(delimiter: str, width: int, path: int, label: int, named: bool) -> Parse:
    def parse(line: bytes) -> tuple[bytes, bytes] | None:
        row = _cells(line, delimiter)
        if row is None or len(row) != width:
            return None
        cells = row[path].strip(), row[label].strip()
        return cells if all(cells) and (named or _WHOLE.fullmatch(cells[1])) else None

    return parse


def _cells(line: bytes, delimiter: str) -> list[bytes] | None:
    try:
        (row,) = csv.reader([os.fsdecode(line)], delimiter=delimiter, strict=True)
    except (csv.Error, ValueError):
        return None
    return [os.fsencode(cell) for cell in row]
