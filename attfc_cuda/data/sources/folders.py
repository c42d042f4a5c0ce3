"""Faces from folders: <root>/<identity>/<image>, the layout of torchvision's ImageFolder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import SlowNotice
from attfc_cuda.data.images import IMAGE_EXTENSIONS, read_bytes
from attfc_cuda.data.sources.folder_index import folder_index
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.stored import StoredFaces

PathLike = str | os.PathLike


def is_inside(path: Path, root: Path) -> bool:
    """Whether a file lies below a folder once every link is followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


class FolderFaces(StoredFaces):
    """Images of faces in folders, a folder for each identity; identities and images in sorted order.

    `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage` in both modes. `dataset.path(i)`: its file.
    Hidden files and tools' folders (`.ipynb_checkpoints`, `@eaDir`, `__MACOSX`) and folders inside of identity folders
    are counted, not read. What was found is kept beside a root (`index_cache`) and used while no folder has changed.
    Needs Pillow (`pip install attfc_cuda[data]`).

    Args:
        roots: A folder, or several. Several are concatenated: labels go on counting, and the same name in two roots is
            two identities.
        image_size: Every image is cut to its centred square and resized to this many pixels, see `read_image`.
        identities: For each root a text file of the identities to take, one name a line, or None for all of them. Names
            that the root does not have are counted in the report.
        on_bad_image: "skip": an identity folder without an image or that cannot be read is left out and counted, and a
            loader leaves out a row whose image cannot be decoded (see `AttentionLoader`); "raise": each is an error
            naming the path. Files that are no images by their extension are only counted, in both modes.
        cache: Keep the decoded images in memory (3 * image_size**2 bytes each); includes `check`.
        check: Decode every image once at the start, so that unreadable ones are left out, or raised, before training,
            and images with the same bytes are counted.

    Raises:
        ValueError: For a root or list that cannot be read, for no images at all, for wrong arguments.
    """

    @renamed_keyword("on_error", "on_bad_image")
    def __init__(
        self,
        roots: PathLike | Sequence[PathLike],
        image_size: int = 112,
        identities: PathLike | Sequence[PathLike | None] | None = None,
        on_bad_image: str = "skip",
        cache: bool = False,
        check: bool = False,
    ):
        super().__init__(image_size, on_bad_image)
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
        names: list[str] = []
        counts, root_of = [np.empty(0, np.int32)], []
        self._files = PackedNames(())
        notice = SlowNotice("looking for images")
        for number, (root, id_list) in enumerate(zip(self.roots, lists, strict=True)):
            before = len(names), len(self._files)

            def tell(identities: int, images: int, before: tuple[int, int] = before) -> None:
                notice(f"{before[0] + identities} identities, {before[1] + images} images")

            index = folder_index(root, id_list, on_bad_image == "raise", tell)
            self.skipped.update(index.skipped)
            there = index.arrays["counts"] > 0
            folders = PackedNames.of_arrays(index.arrays["folder_ends"], index.arrays["folders"])
            names += [folders[k] for k in np.flatnonzero(there).tolist()]
            counts.append(index.arrays["counts"][there])
            root_of += [number] * int(there.sum())
            self._files = self._files.followed_by(
                PackedNames.of_arrays(index.arrays["file_ends"], index.arrays["files"])
            )
        labels = np.repeat(np.arange(len(names), dtype=np.int32), np.concatenate(counts))
        self._folders = PackedNames(str(self.roots[number] / name) for number, name in zip(root_of, names, strict=True))
        self._folder_of_item = labels
        self.start(labels, names, check=check, cache=cache)
        if not (check or cache):
            self._facts.append("duplicated images: not looked for, check=True reads every image and counts them")

    def path(self, index: int) -> Path:
        return self._path(self._item(index))

    def _path(self, item: int) -> Path:
        return Path(self._folders[int(self._folder_of_item[item])], self._files[item])

    def _content(self, item: int) -> bytes:
        return read_bytes(self._path(item))

    def _where(self, item: int) -> str:
        return str(self._path(item))

    def _outside(self, item: int) -> bool:
        path = self._path(item)
        return not any(is_inside(path, root) for root in self.roots)

    def _where_identity(self, label: int, names: Sequence[str] | None) -> str:
        return self._folders[label]

    def _nothing(self) -> Exception:
        return error(
            "FolderFaces",
            "roots",
            "hold at least one image as <root>/<identity>/<image>",
            ", ".join(map(str, self.roots)) + self.skipped.text("; "),
            f"images end in {' '.join(IMAGE_EXTENSIONS)}",
        )


def _as_list(value: PathLike | Sequence) -> list:
    return [value] if isinstance(value, str | os.PathLike) else list(value)
