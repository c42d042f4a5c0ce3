"""Faces from an LMDB database, through the lmdb library (extra `data`)."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import UnreadableImage
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.stored import StoredFaces

try:
    import lmdb
except ImportError:  # every other data set works without it
    lmdb = None

_OPEN: dict[Path, tuple[tuple[int, int, int], Any]] = {}
_OPENING = threading.Lock()


class LmdbFaces(StoredFaces):
    """The images of an LMDB database with keys `<identity>/<image>` and the images' files as values.

    path: the folder of data.mdb, or a database file. Keys without a slash (the `__len__` and `__keys__` of other tools)
    are counted and left out. The whole database is visited once at the start by a second process, since LMDB's library
    can crash on a damaged one; it must not be written meanwhile.
    image_size, on_bad_image, check, cache: as `FolderFaces`.

    `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage` naming the database and the key.
    Errors: ImportError without lmdb; ValueError for a database that cannot be read, is damaged or holds no image.
    Source: the layout is our choice, that of a folder of identities; there is no common one.
    """

    @renamed_keyword("on_error", "on_bad_image")
    def __init__(
        self,
        path: str | os.PathLike,
        image_size: int = 112,
        on_bad_image: str = "skip",
        cache: bool = False,
        check: bool = False,
    ):
        if lmdb is None:
            raise ImportError("LmdbFaces: needs lmdb; pip install lmdb")
        super().__init__(image_size, on_bad_image)
        self.database = Path(path)
        names, keys, identities = {}, [], []
        for key in _walk(self.database):
            identity, slash, _ = key.rpartition("/")
            if not slash:
                self.skipped.add("entries without an identity in their key", f"{key!r} of {path}")
                continue
            keys.append(key)
            identities.append(names.setdefault(identity, len(names)))
        self._keys = PackedNames(keys)
        self.start(np.array(identities, dtype=np.int64), list(names), check=check, cache=cache)

    def _content(self, item: int) -> bytes:
        try:
            with _environment(self.database).begin() as transaction:
                content = transaction.get(os.fsencode(self._keys[item]))
        except (lmdb.Error, OSError) as cause:
            raise UnreadableImage(f"LmdbFaces: {self._where(item)} ({cause})") from cause
        if content is None:
            raise UnreadableImage(f"LmdbFaces: {self._where(item)} is not there any more")
        return content

    def _where(self, item: int) -> str:
        return f"{self.database}, key {self._keys[item]!r}"

    def _nothing(self) -> Exception:
        got = f"{self.database}{self.skipped.text('; ')}"
        return error("LmdbFaces", "path", "hold at least one image with a key <identity>/<image>", got)


def _environment(path: Path) -> Any:
    """The open database, one for each file in a process, as LMDB demands; kept open, and used by forked processes too:
    without locks and writers nothing in it belongs to one process."""
    file = (path / "data.mdb" if path.is_dir() else path).resolve()
    info = file.stat()
    stamp = (info.st_ino, info.st_size, info.st_mtime_ns)
    with _OPENING:
        if _OPEN.get(file, (None,))[0] != stamp:
            if file in _OPEN:
                _OPEN.pop(file)[1].close()
            environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_dbs=0
            )
            _OPEN[file] = (stamp, environment)
        return _OPEN[file][1]


def _walk(path: Path) -> list[str]:
    """The keys of a database that can be read from end to end."""
    file = path / "data.mdb" if path.is_dir() else path
    if not file.is_file():
        raise error("LmdbFaces", "path", "be an LMDB database", f"{path}, without a file {file.name}")
    script = Path(__file__).with_name("lmdb_walk.py")
    limit_s = 120 + file.stat().st_size / 1e6  # the slowest disk reads a page of 4 KiB at random in 4 ms
    try:
        done = subprocess.run([sys.executable, script, path], capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as cause:
        raise error("LmdbFaces", "path", "be readable", f"{file}, still unread after {limit_s:.0f} s") from cause
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"LMDB's library died of signal {-done.returncode}"
        raise error("LmdbFaces", "path", "be an intact LMDB database", f"{file} ({reason})")
    keys, at, output = [], 0, done.stdout
    while length := struct.unpack_from("<I", output, at)[0]:
        keys.append(os.fsdecode(output[at + 4 : at + 4 + length]))
        at += 4 + length + 8
    return keys
