"""LFW's own pair lists, `pairs.txt`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from attfc_cuda._check import error
from attfc_cuda.data.images import IMAGE_EXTENSIONS

FOLDS = 10
_HEADER = re.compile(r"\d{1,9}(\s+\d{1,9})?")
_PAIR = re.compile(r"(?P<a>\S+)\s+(?P<i>\d{1,6})\s+(?:(?P<b>\S+)\s+)?(?P<j>\d{1,6})")


def is_lfw_header(line: str) -> bool:
    """Whether a list that starts with this line is one of LFW's: `<folds> <pairs>`, or `<pairs>` alone."""
    return _HEADER.fullmatch(line.strip()) is not None


def lfw_pairs(path: Path, lines: Sequence[str], root: Path) -> Iterator[tuple[int, str, str, bool, int]]:
    """The pairs of LFW's own list.

    Args:
        path: the list, for messages.
        lines: all of the file. `<folds> <n>` stands before that many folds of n genuine pairs (`name i j`: two images
            of one person) and n impostor pairs (`name i name j`). `<n>` alone stands before n of both, which are dealt
            into ten folds in turn. Image i of a name is `<name>/<name>_<i, four digits>` with the extension its file
            has.
        root: the folder of the images.

    Yields:
        Line number, both images relative to `root`, same and fold of every pair.

    Raises:
        ValueError: naming the list and the line, or the number of pairs that is missing.
    """
    first = next(k for k, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    header = [int(number) for number in lines[first].split()]
    folds, count = header if len(header) == 2 else (1, header[0])
    if folds < 1 or count < 1:
        rule = "count at least one pair, and at least one fold where it counts folds"
        raise error("read_pairs", f"line {first + 1} of {path}", rule, repr(lines[first].strip()))
    suffixes: dict[str, str] = {}
    read = 0
    for number, line in enumerate(lines[first + 1 :], start=first + 2):
        if not line.strip() or line.startswith("#"):
            continue
        place = f"line {number} of {path}"
        match = _PAIR.fullmatch(line.strip())
        genuine = read % (2 * count) < count
        if match is None or (match["b"] is None) != genuine:
            rule = "hold a name and two numbers" if genuine else "hold a name and a number, twice"
            raise error("read_pairs", place, rule, repr(line.strip()[:80]))
        names = (match["a"], match["a"] if genuine else match["b"])
        left, right = (
            _image(root, name, int(i), suffixes) for name, i in zip(names, (match["i"], match["j"]), strict=True)
        )
        yield number, left, right, genuine, read // (2 * count) if len(header) == 2 else read % FOLDS
        read += 1
    if read != 2 * folds * count:
        raise error("read_pairs", str(path), f"hold {2 * folds * count} pairs, as its first line says", read)


def _image(root: Path, name: str, number: int, suffixes: dict[str, str]) -> str:
    """The image's path; which extension a person's files have is looked up once. os.path's isfile, for a name that no
    file can have is none of a file, not an OSError."""
    stem = f"{name}/{name}_{number:04d}"
    if name not in suffixes:
        suffixes[name] = next((s for s in IMAGE_EXTENSIONS if os.path.isfile(root / (stem + s))), IMAGE_EXTENSIONS[0])
    return stem + suffixes[name]
