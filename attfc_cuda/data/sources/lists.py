"""Faces from a list: a text file with a line for each image, such as `path label`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.images import read_bytes
from attfc_cuda.data.sources.folders import is_inside
from attfc_cuda.data.sources.list_layouts import KNOWN, SAMPLED_LINES, layout_of
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.stored import StoredFaces

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_LINE = 2**16


class ListFaces(StoredFaces):
    """The images that a list names: on each line a path, white space, and the whole number of the identity.

    Other layouts are told by the first lines: the label before the path, or a name behind it; InsightFace's train.lst
    (1, path, label between tabs) and im2rec's (number, label, path); MagFace's (path 0 label 0); CSV with a heading or
    two columns. Empty lines, lines that start with # and a byte order mark are passed over. An identity's name is its
    number, and numbers with gaps are renumbered in ascending order; names are numbered in their order. `dataset[i]`:
    uint8 [3, image_size, image_size]; `UnreadableImage`. `dataset.path(i)`: its file.

    Args:
        path: The list.
        image_size, cache, check: As for `FolderFaces`. Whether a file exists shows when it is read, at the start only
            with `check`.
        root: The folder that its paths start from; None: the list's own.
        on_bad_image: "skip" leaves out and counts a line of another form; "raise" makes the first an error.

    Raises:
        ValueError: For a list that cannot be read, is of no such layout or names no image, or (on_bad_image "raise")
            for a line of another one.
    """

    @renamed_keyword("on_error", "on_bad_image")
    def __init__(
        self,
        path: str | os.PathLike,
        image_size: int = 112,
        root: str | os.PathLike | None = None,
        on_bad_image: str = "skip",
        cache: bool = False,
        check: bool = False,
    ):
        super().__init__(image_size, on_bad_image)
        self.list, self.root = Path(path), Path(path).parent if root is None else Path(root)
        paths: list[str] = []
        labels: list[bytes] = []
        layout = None
        try:
            with open(os.open(self.list, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                lines = _lines(file)
                first = list(itertools.islice(lines, SAMPLED_LINES))
                found = layout_of([text for _, text in first if b"\0" not in text])
                if found is not None:
                    layout, heading = found
                    self._facts.append(f"lines read as: {layout.name}")
                    for offset, text in itertools.chain(first[heading:], lines):
                        parts = layout.parse(text) if b"\0" not in text else None
                        if parts is None:
                            self._bad_line(offset, text)
                            continue
                        paths.append(os.fsdecode(parts[0]))
                        labels.append(parts[1])
                elif first:
                    rule = f"have lines of one of these layouts: {KNOWN}"
                    raise error("ListFaces", "path", rule, self._got(*first[0]))
        except OSError as cause:
            raise error("ListFaces", "path", "be a readable list", f"{path} ({cause.strerror})") from cause
        self._names = PackedNames(paths)
        names = None
        if layout is not None and layout.named:
            names = sorted(set(labels))
            rank = {name: place for place, name in enumerate(names)}
            numbers = [rank[label] for label in labels]
        else:
            numbers = [int(label) for label in labels]
        identities = None if names is None else [os.fsdecode(name) for name in names]
        self.start(np.array(numbers, dtype=np.int64), identities, check=check, cache=cache)

    def path(self, index: int) -> Path:
        return self._path(self._item(index))

    def _got(self, offset: int, text: bytes) -> str:
        return f"{text[:60]!r} at byte {offset} of {self.list}"

    def _bad_line(self, offset: int, text: bytes) -> None:
        got = self._got(offset, text)
        if self.on_bad_image == "raise":
            raise error("ListFaces", "every line", "be a path and a label", got, 'on_bad_image="skip" leaves it out')
        self.skipped.add("lines that are not a path and a label", got)

    def _path(self, item: int) -> Path:
        return self.root / self._names[item]

    def _content(self, item: int) -> bytes:
        return read_bytes(self._path(item))

    def _where(self, item: int) -> str:
        return str(self._path(item))

    def _outside(self, item: int) -> bool:
        return not is_inside(self._path(item), self.root)

    def _nothing(self) -> Exception:
        got = f"{self.list}{self.skipped.text('; ')}"
        return error("ListFaces", "path", "name at least one image", got, "a line is a path, white space and a number")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Where each line starts, and what it holds without white space around it; neither empty lines nor comments."""
    offset = 0
    while line := file.readline(_MAX_LINE):
        start, text = offset, line.strip() if offset else line.removeprefix(_BYTE_ORDER_MARK).strip()
        while len(line) == _MAX_LINE and not line.endswith(b"\n"):  # no path is that long: drop the line
            offset, text = offset + len(line), b"\0"
            line = file.readline(_MAX_LINE)
        offset += len(line)
        if text and not text.startswith(b"#"):
            yield start, text
