"""Faces from a list: a text file with a line `path label` for each image."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.images import read_bytes
from attfc_cuda.data.sources.folders import is_inside
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.stored import StoredFaces

# The label is what follows the last white space: paths may hold spaces.
_LINE = re.compile(rb"(\S.*?)\s+(\d{1,18})")
_MAX_LINE = 2**16


class ListFaces(StoredFaces):
    """The images that a list names: on each line a path, white space, and the whole number of the identity.

    Empty lines and lines that start with # are passed over. An identity's name is its number; numbers with gaps are
    renumbered in ascending order. `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage`.
    `dataset.path(i)`: its file.

    Args:
        path: The list.
        image_size, cache, check: As for `FolderFaces`. Whether a file exists shows when it is read, at the start only
            with `check`.
        root: The folder that its paths start from; None: the list's own.
        on_bad_image: "skip" leaves out and counts a line of another form; "raise" makes the first an error.

    Raises:
        ValueError: For a list that cannot be read or names no image, or (on_bad_image "raise") for a line.
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
        names, labels, offset = [], [], 0
        try:
            with open(os.open(self.list, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                while line := file.readline(_MAX_LINE):
                    start, text = offset, line.strip()
                    while len(line) == _MAX_LINE and not line.endswith(b"\n"):  # no path is that long: drop the line
                        offset, text = offset + len(line), b"\0"
                        line = file.readline(_MAX_LINE)
                    offset += len(line)
                    if not text or text.startswith(b"#"):
                        continue
                    match = _LINE.fullmatch(text) if b"\0" not in text else None
                    if match is None:
                        self._bad_line(start, text)
                        continue
                    names.append(os.fsdecode(match[1]))
                    labels.append(int(match[2]))
        except OSError as cause:
            raise error("ListFaces", "path", "be a readable list", f"{path} ({cause.strerror})") from cause
        self._names = PackedNames(names)
        self.start(np.array(labels, dtype=np.int64), None, check=check, cache=cache)

    def path(self, index: int) -> Path:
        return self._path(self._item(index))

    def _bad_line(self, offset: int, text: bytes) -> None:
        got = f"{text[:60]!r} at byte {offset} of {self.list}"
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
