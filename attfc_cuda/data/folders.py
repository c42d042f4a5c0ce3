"""Faces from folders: <root>/<identity>/<image>, the layout of torchvision's ImageFolder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from attfc_cuda._check import error
from attfc_cuda.data._checks import checked_image_size
from attfc_cuda.data.faces import FaceDataset, SlowNotice, load_all
from attfc_cuda.data.images import IMAGE_EXTENSIONS, read_image

PathLike = str | os.PathLike


class _Names:
    """Many file names in one block of bytes: a list of strings would be several times larger, and forked workers would
    copy it page by page, because reading a Python object writes its reference count."""

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.block = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]].tobytes())


class FolderFaces(FaceDataset):
    """Images of faces in folders, a folder for each identity; identities and images in sorted order.

    roots: a folder, or several. Several are concatenated: labels go on counting, and the same name in two roots is two
    identities. image_size: every image is cut to its centred square and resized to this, see `read_image`.
    identities: for each root a text file of the identities to take, one name a line, or None for all of them. Names
    that the root does not have are counted in the report.
    on_error: "skip": an identity folder without an image or that cannot be read is left out and counted, and a loader
    leaves out a row whose image cannot be decoded (see `AttentionLoader`); "raise": each is an error naming the path.
    Files that are no images by their extension are only counted, in both modes.
    check: decode every image once at the start, so that unreadable ones are left out, or raised, before training.
    cache: keep the decoded images in memory (3 * image_size**2 bytes each); includes `check`.
    Needs Pillow (`pip install attfc_cuda[data]`).

    `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage` in both modes. `dataset.path(i)`: its file.
    Errors: ValueError for a root or list that cannot be read, for no images at all, for wrong arguments.
    """

    def __init__(
        self,
        roots: PathLike | Sequence[PathLike],
        image_size: int = 112,
        identities: PathLike | Sequence[PathLike | None] | None = None,
        on_error: str = "skip",
        cache: bool = False,
        check: bool = False,
    ):
        if on_error not in ("skip", "raise"):
            raise error("FolderFaces", "on_error", 'be "skip" or "raise"', repr(on_error))
        size = checked_image_size("FolderFaces", image_size)
        self.on_error = on_error
        self.roots = [Path(root) for root in _as_list(roots)]
        if not self.roots:
            raise error("FolderFaces", "roots", "name at least one folder", "none")
        lists = [None] * len(self.roots) if identities is None else _as_list(identities)
        if len(lists) != len(self.roots):
            raise error(
                "FolderFaces",
                "identities",
                "have one entry for each root",
                f"{len(lists)} for {len(self.roots)} roots",
                "give None for a root without a list",
            )
        self._skipped: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

        names, files, counts, root_of = [], [], [], []
        notice = SlowNotice("looking for images")
        for number, (root, id_list) in enumerate(zip(self.roots, lists, strict=True)):
            for name in self._identity_names(root, id_list):
                found = self._image_names(root / name)
                if found:
                    names.append(name)
                    files += found
                    counts.append(len(found))
                    root_of.append(number)
                notice(f"{len(names)} identities, {len(files)} images")
        labels, images = np.repeat(np.arange(len(names)), np.array(counts, dtype=np.int64)), None
        if check or cache:
            folders = [self.roots[number] / name for number, name in zip(root_of, names, strict=True)]
            images, readable, failures = load_all(
                lambda index: read_image(folders[labels[index]] / files[index], size),
                len(files), size, keep=cache, task="reading images", skip=on_error == "skip",
            )  # fmt: skip
            for failure in failures:
                self._skip("images that cannot be decoded", str(failure))
            kept, labels = np.unique(labels[readable], return_inverse=True)
            for label in np.setdiff1d(np.arange(len(names)), kept):
                self._skip("identities without a readable image", str(folders[label]))
            names, root_of = [names[k] for k in kept], [root_of[k] for k in kept]
            files = [file for file, good in zip(files, readable, strict=True) if good]
        if not files:
            raise error(
                "FolderFaces",
                "roots",
                "hold at least one image as <root>/<identity>/<image>",
                ", ".join(map(str, self.roots)) + self._skipped_text("; "),
                f"images end in {' '.join(IMAGE_EXTENSIONS)}",
            )
        super().__init__(labels, names, size)
        self._cache, self._files, self._root_of = images, _Names(files), np.array(root_of)

    def path(self, index: int) -> Path:
        label = self.labels[index]
        return self.roots[self._root_of[label]] / self.identities[label] / self._files[int(index)]

    def report(self) -> str:
        return super().report() + self._skipped_text("\n  ")

    def _load(self, index: int) -> torch.Tensor:
        return read_image(self.path(index), self.image_size)

    def _identity_names(self, root: Path, id_list: PathLike | None) -> list[str]:
        folders = []
        try:
            with os.scandir(root) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append(entry.name)
                    else:
                        self._skip("files beside the identity folders", entry.path)
        except OSError as cause:
            raise error("FolderFaces", "roots", "be readable folders", f"{root} ({cause.strerror})") from cause
        if id_list is None:
            return sorted(folders)
        try:
            lines = Path(id_list).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as cause:
            raise error("FolderFaces", "identities", "be readable text files", f"{id_list} ({cause})") from cause
        listed = {line.strip() for line in lines} - {""}
        for name in sorted(listed.difference(folders)):
            self._skip(f"identities that {Path(id_list).name} names and {root} lacks", name)
        return sorted(listed.intersection(folders))

    def _image_names(self, folder: Path) -> list[str]:
        found = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if os.path.splitext(entry.name)[1].lower() not in IMAGE_EXTENSIONS:
                        self._skip("files that are no images by their extension", entry.path)
                    elif not entry.is_file():
                        self._skip("images that are no regular files", entry.path)
                    else:
                        found.append(entry.name)
        except OSError as cause:
            self._skip_or_raise("unreadable identity folders", f"{folder} ({cause.strerror})", "be readable")
            return []
        if not found:
            self._skip_or_raise("identity folders without an image", str(folder), "hold at least one image")
        return sorted(found)

    def _skip_or_raise(self, what: str, where: str, rule: str) -> None:
        if self.on_error == "raise":
            raise error("FolderFaces", "every identity folder", rule, where, 'on_error="skip" leaves it out')
        self._skip(what, where)

    def _skip(self, what: str, where: str) -> None:
        self._skipped[what] += 1
        self._examples.setdefault(what, where)

    def _skipped_text(self, separator: str) -> str:
        return "".join(
            f"{separator}skipped: {count} {what}, e.g. {self._examples[what]}" for what, count in self._skipped.items()
        )


def _as_list(value: PathLike | Sequence) -> list:
    return [value] if isinstance(value, str | os.PathLike) else list(value)
