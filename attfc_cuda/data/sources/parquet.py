"""Faces from Parquet files as Hugging Face's datasets write them, through pyarrow (extra `parquet`)."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attfc_cuda._check import error, printable
from attfc_cuda.data.faces import UnreadableImage
from attfc_cuda.data.images import read_bytes
from attfc_cuda.data.limits import TooLarge, require_bytes
from attfc_cuda.data.sources.folders import is_inside
from attfc_cuda.data.sources.index_cache import settle
from attfc_cuda.data.sources.list_layouts import LABEL_COLUMNS
from attfc_cuda.data.sources.open_files import most_open
from attfc_cuda.data.sources.stored import StoredFaces

_IMAGES = ("image", "img", "jpg", "png", "picture", "face", "bytes")
_KEPT_GROUPS = 4
_MOST_OPEN = 256  # an open file keeps what its end says of all its row groups


class ParquetFaces(StoredFaces):
    """The images of Parquet files with a column of images and one of labels.

    An image is a struct with `bytes` (as of `datasets.Image`; where `bytes` is null, `path` names a file beside the
    Parquet file), or the bytes themselves; it is called image, img, jpg, png, picture, face or bytes. A label is a
    whole number or a name, called identity, person, subject, label, class, target, name or id, the first of these that
    there is; a `ClassLabel`'s names are those of the identities. A row is read with its row group, the last few of
    which each process keeps: write small ones (100 rows, as `datasets` does), or `attfc pack` the files for random
    order over millions. `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage` naming the file and the row,
    also for a file that has changed since.

    Args:
        files: The files, in order; all with the same two columns.
        image_size: As for `FolderFaces`.
        on_bad_image: "skip" leaves out and counts a row without an image or a label; "raise" makes the first an error.
        cache: As for `FolderFaces`.
        check: As for `FolderFaces`.

    Raises:
        ImportError: Without pyarrow.
        ValueError: For a file that cannot be read or has no such columns, or (on_bad_image "raise") for a row.

    Source:
        The Parquet format, and the features of Hugging Face's datasets; the names of the columns are our choice.
    """

    def __init__(
        self,
        files: str | os.PathLike | Sequence[str | os.PathLike],
        image_size: int = 112,
        on_bad_image: str = "skip",
        cache: bool = False,
        check: bool = False,
    ):
        super().__init__(image_size, on_bad_image)
        self._files = [Path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
        self._lock, self._groups = threading.Lock(), OrderedDict[tuple[int, int], Any]()
        self._open = OrderedDict[tuple[int, int], Any]()
        self._stamps: list[tuple[int, int]] = []
        columns, classes, labels, places = set(), None, [], []
        for number, path in enumerate(self._files):
            file = self._parquet(number)
            schema = file.schema_arrow
            image, label = _column(path, schema, _IMAGES, "images"), _column(path, schema, LABEL_COLUMNS, "labels")
            columns.add((image, label))
            named = _class_names(schema, label)
            if number and named != classes:  # a number would be two people
                got = f"others in {path} than in {self._files[0]}"
                raise error("ParquetFaces", "files", "give their classes the same names", got)
            classes = named
            for group in range(file.num_row_groups):
                values = self._labels(number, group, label)
                labels += values
                places += [(number, group, row) for row in range(len(values))]
        if len(columns) > 1:
            raise error(
                "ParquetFaces", "files", "have the same columns", f"{sorted(columns)} in {self._files[0].parent}"
            )
        self._image = columns.pop()[0] if columns else ""
        self._places = np.array(places, dtype=np.int32).reshape(-1, 3)
        known = [self._is_label(row, value) for row, value in enumerate(labels)]
        self._places = self._places[np.array(known, dtype=bool)]
        found = [value for value, fine in zip(labels, known, strict=True) if fine]
        if any(isinstance(value, str) for value in found):
            names = sorted(set(map(str, found)))
            number_of = {name: place for place, name in enumerate(names)}
            self.start(np.array([number_of[str(v)] for v in found], dtype=np.int64), names, check=check, cache=cache)
        elif classes is not None and found and max(found) < len(classes):
            self.start(np.array(found, dtype=np.int64), classes, check=check, cache=cache)
        else:
            self.start(np.array(found, dtype=np.int64), None, check=check, cache=cache)

    def _is_label(self, row: int, value: Any) -> bool:
        fine = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62)
        if not fine:
            got = f"{value!r:.40} in row {row} of {', '.join(map(str, self._files[:2]))}"
            if self.on_bad_image == "raise":
                raise error("ParquetFaces", "label", "be a whole number of at least 0 or a name", got)
            self.skipped.add("rows without a label", got)
        return fine

    def _parquet(self, number: int) -> Any:
        key = os.getpid(), number  # a forked process opens its own
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key][0]
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as cause:
            remedy = 'pip install pyarrow, the extra "parquet"'
            raise error("ParquetFaces", "pyarrow", "be installed", f"none ({cause})", remedy, ImportError) from cause
        while len(self._open) >= min(_MOST_OPEN, most_open()):
            self._open.popitem(last=False)[1][0].close()
        try:
            info, opened = os.stat(self._files[number]), None
            if number == len(self._stamps):
                settle(info.st_mtime_ns)
                self._stamps.append(_stamp(info))
            if _stamp(info) == self._stamps[number]:
                opened = parquet.ParquetFile(self._files[number])
        except Exception as cause:  # pyarrow's own, on damage
            got = f"{self._files[number]} ({_words(cause)})"
            raise error("ParquetFaces", "files", "be readable Parquet files", got) from cause
        if opened is None:  # its rows may be other people now
            raise self._changed(number)
        self._open[key] = opened, info
        return opened

    def _read(self, number: int, group: int, column: str) -> Any:
        file, failure = self._parquet(number), None
        try:
            rows = file.read_row_group(group, columns=[column], use_threads=False).column(0).combine_chunks()
        except Exception as cause:
            failure = cause
        self._require_unwritten(number)
        if failure is not None:
            got = f"{self._files[number]}, row group {group} ({_words(failure)})"
            raise error("ParquetFaces", "files", "be readable Parquet files", got) from failure
        return rows

    def _require_unwritten(self, number: int) -> None:
        """Raise ValueError where the file that is open has been written since. Another in its place does not matter:
        what is open stays as it was."""
        with contextlib.suppress(OSError):
            now, opened = os.stat(self._files[number]), self._open[os.getpid(), number][1]
            if os.path.samestat(now, opened) and _stamp(now) != self._stamps[number]:
                raise self._changed(number)

    def _changed(self, number: int) -> Exception:
        got = f"{self._files[number]}, which has changed since"
        return error("ParquetFaces", "files", "stay as they were when they were first opened", got)

    def _labels(self, number: int, group: int, column: str) -> list:
        values = self._read(number, group, column)
        try:
            return values.to_pylist()
        except Exception as cause:  # text that is no UTF-8, times that Python does not have
            got = f"{values.type} in {self._files[number]}, row group {group} ({_words(cause)})"
            raise error("ParquetFaces", "label", "be a whole number of at least 0 or a name", got) from cause

    def _row_group(self, number: int, group: int) -> Any:
        """The images of a row group, one of the last few or read anew; with the lock held."""
        rows = self._groups.get((number, group))
        if rows is None:
            rows = self._groups[number, group] = self._read(number, group, self._image)
            while len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end((number, group))
        return rows

    def _content(self, item: int) -> bytes:
        number, group, row = self._places[item].tolist()
        folder = self._files[number].parent
        try:
            with self._lock:
                value = self._row_group(number, group)[row].as_py()
            content, beside = value, None
            if isinstance(value, dict):
                content, beside = value.get("bytes"), value.get("path")
            if content is None and beside and isinstance(beside, str):
                if not is_inside(folder / beside, folder):
                    raise OSError(f"names {beside}, outside of its folder")
                content = read_bytes(folder / beside)
            if isinstance(content, bytes):
                require_bytes(len(content))
                return content
        except (TooLarge, OSError, IndexError, ValueError) as cause:  # the last two by damage, such as too few images
            raise UnreadableImage(printable(f"ParquetFaces: {self._where(item)} ({cause})")) from cause
        raise UnreadableImage(printable(f"ParquetFaces: {self._where(item)} holds no image"))

    def _where(self, item: int) -> str:
        number, group, row = self._places[item].tolist()
        return f"{self._files[number]}, row {row} of row group {group}"

    def _nothing(self) -> Exception:
        got = ", ".join(map(str, self._files)) + self.skipped.text("; ")
        return error("ParquetFaces", "files", "hold at least one image with a label", got)

    def __getstate__(self) -> dict[str, Any]:
        # Files and row groups are each process's own.
        return {**self.__dict__, "_lock": None, "_groups": None, "_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._groups, self._open = threading.Lock(), OrderedDict(), OrderedDict()


def _column(path: Path, schema: Any, names: Sequence[str], what: str) -> str:
    found = [name for name in names if name in schema.names]
    if not found:
        rule = f"have a column of {what}, one of {', '.join(names)}"
        raise error("ParquetFaces", "files", rule, f"{', '.join(schema.names)[:200]} in {path}")
    return found[0]


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The names of a `datasets.ClassLabel`, from what Hugging Face writes into a schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _stamp(info: os.stat_result) -> tuple[int, int]:
    """By what a file is known to be as it was, from wherever it is mounted: its inode may be another there."""
    return info.st_size, info.st_mtime_ns


def _words(cause: Exception) -> str:
    return " ".join(str(cause).split())[:200] or type(cause).__name__
