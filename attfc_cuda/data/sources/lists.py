"""Faces from a list: a text file with a line for each image, such as `path label`."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.images import read_bytes
from attfc_cuda.data.sources.folders import is_inside
from attfc_cuda.data.sources.index_cache import Index, load_index, small, stamp
from attfc_cuda.data.sources.list_layouts import KNOWN, SAMPLED_LINES, Layout, layout_of
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.skipped import Skipped
from attfc_cuda.data.sources.stored import StoredFaces

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_LINE = 2**16
_MOST_OTHERS = 3  # lines of another form, in a short list


class ListFaces(StoredFaces):
    """The images that a list names: on each line a path, white space, and the whole number of the identity.

    Other layouts are told by the first lines: the label before the path, or a name behind it; InsightFace's train.lst
    (1, path, label between tabs) and im2rec's (number, label, path); MagFace's (path 0 label 0); CSV with a heading or
    two columns. Empty lines, lines that start with # and a byte order mark are passed over. An identity's name is its
    number, and numbers with gaps are renumbered in ascending order; names are numbered in their order. `dataset[i]`:
    uint8 [3, image_size, image_size]; `UnreadableImage`. `dataset.path(i)`: its file. What the list says is
    kept beside it, see `index_cache`.

    Args:
        path: The list.
        image_size: As for `FolderFaces`, as are cache and check.
        root: The folder that its paths start from; None: the list's own.
        on_bad_image: "skip" leaves out and counts a line of another form, where it is one of a few; "raise" makes the
            first an error.
        cache: See there.
        check: See there; without it whether a file exists shows when it is read.

    Raises:
        ValueError: For a list that cannot be read, that is of no such layout in more than a tenth of its first thousand
            or of all lines, or that names no image; (on_bad_image "raise") for the first line of another form.
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
        index = self._index()
        arrays = index.arrays
        self.skipped.update(index.skipped)
        self._facts += index.facts
        self._names = PackedNames.of_arrays(arrays["name_ends"], arrays["names"])
        named = "identities" in arrays
        identities = list(PackedNames.of_arrays(arrays["identity_ends"], arrays["identities"])) if named else None
        self.start(arrays["labels"], identities, check=check, cache=cache)

    def _index(self) -> Index:
        try:
            with open(os.open(self.list, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                info = os.fstat(file.fileno())
                of = {"list": stamp(info)}
                strict, regular = self.on_bad_image == "raise", stat.S_ISREG(info.st_mode)
                return load_index(self.list, of, lambda: self._read(file, regular), _is_sound, strict=strict)
        except OSError as cause:
            raise error("ListFaces", "path", "be a readable list", f"{self.list} ({cause.strerror})") from cause

    def _read(self, file: BinaryIO, regular: bool) -> Index:
        paths: list[str] = []
        labels: list[bytes] = []
        named, facts, skipped = False, [], Skipped()
        lines = _lines(file)
        first = list(itertools.islice(lines, SAMPLED_LINES))
        found = layout_of([text for _, text in first if b"\0" not in text])
        if found is not None:
            layout, heading = found
            named = layout.named
            facts.append(f"lines read as: {layout.name}")
            for some in (first[heading:], lines):
                for offset, text in some:
                    parts = layout.parse(text) if b"\0" not in text else None
                    if parts is None:
                        self._bad_line(offset, text, skipped)
                        continue
                    paths.append(os.fsdecode(parts[0]))
                    labels.append(parts[1])
                self._require_most(len(labels), layout, skipped)
        elif first:
            rule = f"have lines of one of these layouts: {KNOWN}"
            raise error("ListFaces", "path", rule, self._got(*first[0]))
        names = sorted(set(labels)) if named else []
        rank = {name: place for place, name in enumerate(names)}
        numbers = np.array([rank[label] if named else int(label) for label in labels], dtype=np.int64)
        packed, identities = PackedNames(paths), PackedNames(map(os.fsdecode, names))
        arrays = {"name_ends": packed.ends, "names": packed.block, "labels": small(numbers)}
        if named:
            arrays |= {"identity_ends": identities.ends, "identities": identities.block}
        return Index(arrays, facts, skipped, bool(skipped.counts), lasting=regular)

    def path(self, index: int) -> Path:
        return self._path(self._item(index))

    def _got(self, offset: int, text: bytes) -> str:
        return f"{text[:60]!r} at byte {offset} of {self.list}"

    def _bad_line(self, offset: int, text: bytes, skipped: Skipped) -> None:
        got = self._got(offset, text)
        if self.on_bad_image == "raise":
            raise error("ListFaces", "every line", "be a path and a label", got, 'on_bad_image="skip" leaves it out')
        skipped.add("lines that are not a path and a label", got)

    def _require_most(self, fitting: int, layout: Layout, skipped: Skipped) -> None:
        """Raise ValueError where so many lines are of another form that the list is another one than it was read as."""
        for what, others in skipped.counts.items():
            if others > max(_MOST_OTHERS, (fitting + others) // 10):
                rule = f"have lines of one layout: at most a tenth of them (or {_MOST_OTHERS}) may be left out"
                got = f"{others} of {fitting + others} that are not as {layout.name}, e.g. {skipped.examples[what]}"
                remedy = f"layouts that are known: {KNOWN}"
                raise error("ListFaces", "path", rule, got, remedy)

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


def _is_sound(arrays: dict[str, np.ndarray]) -> bool:
    names, labels = PackedNames.of_arrays(arrays["name_ends"], arrays["names"]), arrays["labels"]
    if len(names) != len(labels) or labels.dtype == np.uint8 or not names.block.all():
        return False  # no path holds a zero
    most = 10**18
    if "identities" in arrays:
        most = len(PackedNames.of_arrays(arrays["identity_ends"], arrays["identities"]))
    return len(labels) == 0 or bool(labels.min() >= 0 and labels.max() < most)
