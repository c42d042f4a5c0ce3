"""Which images a folder of identities holds, kept beside it (see `index_cache`).

At the next opening its folders are not read, only asked when they last changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attfc_cuda._check import error
from attfc_cuda.data.images import IMAGE_EXTENSIONS
from attfc_cuda.data.sources.index_cache import Index, load_index, settle, stamp
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.skipped import Skipped

PathLike = str | os.PathLike
_SLASH = ord("/")
# What file systems, file managers and notebooks put beside people's files. No identity is called so.
TOOL_FOLDERS = frozenset(
    ["@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__"]
)


def is_hidden(path: str) -> bool:
    """Whether a file's or folder's path, by `/`, has a part that no person gave an image: a leading dot (`._1.jpg`,
    `.ipynb_checkpoints`) or a tool's folder (`@eaDir`, `__MACOSX`)."""
    return any(
        part.lower() in TOOL_FOLDERS or (part[:1] == "." and part not in (".", "..")) for part in path.split("/")
    )


def folder_index(root: Path, id_list: PathLike | None, strict: bool, tell: Callable[[int, int], None]) -> Index:
    """The identities of a root and their images, both in sorted order.

    Args:
        root: The folder.
        id_list: A text file of the identities to take, or None for all.
        strict: Whether an identity without an image is an error.
        tell: Called now and then with the numbers of identities and images so far, while they are looked for.

    Returns:
        "folders", packed by "folder_ends": the names of all folders that were looked into. "times" int64 and "counts"
        int32: when each was changed last, and the images in it, which may be none. "files", packed by "file_ends": the
        names of the images, one folder after the other.

    Raises:
        ValueError: As `FolderFaces`.
    """

    def sound(arrays: dict[str, np.ndarray]) -> bool:
        folders = PackedNames.of_arrays(arrays["folder_ends"], arrays["folders"])
        files = PackedNames.of_arrays(arrays["file_ends"], arrays["files"])
        times, counts = arrays["times"], arrays["counts"]
        if not len(folders) == len(times) == len(counts) or times.dtype != np.int64 or counts.dtype != np.int32:
            return False
        if len(counts) and (counts.min() < 0 or int(counts.sum(dtype=np.int64)) != len(files)):
            return False
        for block in (folders.block, files.block):
            if not block.all() or (block == _SLASH).any():
                return False  # in no name; a stranger's index must not lead out of the root
        if not {"", ".", ".."}.isdisjoint(folders):
            return False
        return all(_time(root / name) == time for name, time in zip(folders, times.tolist(), strict=True))

    try:
        os.scandir(root).close()
    except OSError as cause:
        raise error("FolderFaces", "roots", "be readable folders", f"{root} ({cause.strerror})") from cause
    of = {"root": _stamp(root), "identities": "all" if id_list is None else _digest(Path(id_list))}
    variant = "" if id_list is None else Path(id_list).name
    return load_index(
        root, of, lambda: _Search(root, strict).index(id_list, tell), sound, variant=variant, strict=strict
    )


def _time(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _stamp(path: Path) -> list[int] | None:
    """None for what is not there: looking into it names it."""
    try:
        return stamp(path.stat())
    except OSError:
        return None


def _digest(id_list: Path) -> str | None:
    """Of its content: lists of one name, size and time are common (`fold0/train.txt`, `fold1/train.txt`). None for one
    that cannot be read."""
    try:
        return hashlib.sha256(id_list.read_bytes()).hexdigest()
    except OSError:
        return None


class _Search:
    def __init__(self, root: Path, strict: bool) -> None:
        self.root, self.strict = root, strict
        self.skipped, self.damaged, self.lasting = Skipped(), False, True

    def index(self, id_list: PathLike | None, tell: Callable[[int, int], None]) -> Index:
        names = self._identity_names(self.root, id_list)
        times = [_time(self.root / name) or 0 for name in names]
        settle(max(times, default=0))  # once for all: a wrong clock may have set each into the future
        counts: list[int] = []
        files: list[str] = []
        for name in names:
            found = self._image_names(self.root / name)
            files += found
            counts.append(len(found))
            tell(len(counts), len(files))
        folders, packed = PackedNames(names), PackedNames(files)
        arrays = {"folder_ends": folders.ends, "folders": folders.block, "times": np.array(times, dtype=np.int64)}
        arrays |= {"counts": np.array(counts, dtype=np.int32), "file_ends": packed.ends, "files": packed.block}
        return Index(arrays, [], self.skipped, self.damaged, self.lasting)

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
            self.lasting = False  # who may read a folder changes without its time
            self._skip_or_raise("unreadable identity folders", f"{folder} ({cause.strerror})", "be readable")
            return []
        if not found:
            self._skip_or_raise("identity folders without an image", str(folder), "hold at least one image")
        return sorted(found)

    def _skip_or_raise(self, what: str, where: str, rule: str) -> None:
        if self.strict:
            raise error("FolderFaces", "every identity folder", rule, where, 'on_bad_image="skip" leaves it out')
        self.skipped.add(what, where)
        self.damaged = True


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that leads to itself
        return False
