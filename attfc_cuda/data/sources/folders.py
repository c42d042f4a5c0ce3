"""Faces from folders: <root>/<identity>/<image>, the layout of torchvision's ImageFolder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import SlowNotice
from attfc_cuda.data.images import IMAGE_EXTENSIONS, read_bytes
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.stored import StoredFaces

PathLike = str | os.PathLike
# What file systems, file managers and notebooks put beside people's files. No identity is called so.
_TOOL_FOLDERS = frozenset(
    ["@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__"]
)


def is_hidden(path: str) -> bool:
    """Whether a file's or folder's path, by `/`, has a part that no person gave an image: a leading dot (`._1.jpg`,
    `.ipynb_checkpoints`) or a tool's folder (`@eaDir`, `__MACOSX`)."""
    return any(
        part.lower() in _TOOL_FOLDERS or (part[:1] == "." and part not in (".", "..")) for part in path.split("/")
    )


def is_inside(path: Path, root: Path) -> bool:
    """Whether a file lies below a folder once every link is followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


class FolderFaces(StoredFaces):
    """Images of faces in folders, a folder for each identity; identities and images in sorted order.

    `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage` in both modes. `dataset.path(i)`: its file.
    Hidden files and tools' folders (`.ipynb_checkpoints`, `@eaDir`, `__MACOSX`) and folders inside of identity folders
    are counted, not read. Needs Pillow (`pip install attfc_cuda[data]`).

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
        labels = np.repeat(np.arange(len(names)), np.array(counts, dtype=np.int64))
        self._folders = PackedNames(str(self.roots[number] / name) for number, name in zip(root_of, names, strict=True))
        self._files, self._folder_of_item = PackedNames(files), labels.astype(np.int32)
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

    def _identity_names(self, root: Path, id_list: PathLike | None) -> list[str]:
        folders = []
        try:
            with os.scandir(root) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        self.skipped.add("hidden files and folders of tools", entry.path)
                    elif _is(entry.is_dir):
                        folders.append(entry.name)
                    else:
                        self.skipped.add("files beside the identity folders", entry.path)
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
            self.skipped.add(f"identities that {Path(id_list).name} names and {root} lacks", name)
        return sorted(listed.intersection(folders))

    def _image_names(self, folder: Path) -> list[str]:
        found = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        self.skipped.add("hidden files and folders of tools", entry.path)
                    elif _is(entry.is_dir):
                        self.skipped.add("folders inside of identity folders, whose images are not read", entry.path)
                    elif os.path.splitext(entry.name)[1].lower() not in IMAGE_EXTENSIONS:
                        self.skipped.add("files that are no images by their extension", entry.path)
                    elif not _is(entry.is_file):
                        self.skipped.add("images that are no regular files", entry.path)
                    else:
                        found.append(entry.name)
        except OSError as cause:
            self._skip_or_raise("unreadable identity folders", f"{folder} ({cause.strerror})", "be readable")
            return []
        if not found:
            self._skip_or_raise("identity folders without an image", str(folder), "hold at least one image")
        return sorted(found)

    def _skip_or_raise(self, what: str, where: str, rule: str) -> None:
        if self.on_bad_image == "raise":
            raise error("FolderFaces", "every identity folder", rule, where, 'on_bad_image="skip" leaves it out')
        self.skipped.add(what, where)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that leads to itself
        return False


def _as_list(value: PathLike | Sequence) -> list:
    return [value] if isinstance(value, str | os.PathLike) else list(value)
