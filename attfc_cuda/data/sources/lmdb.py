"""Faces from an LMDB database, through the lmdb library (extra `data`)."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from attfc_cuda._check import error, printable
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import UnreadableImage
from attfc_cuda.data.limits import TooLarge, require_bytes
from attfc_cuda.data.sources.index_cache import Index, load_index, settle, small
from attfc_cuda.data.sources.lmdb_msgpack import holds_msgpack, read_labels, unpacked
from attfc_cuda.data.sources.packed_names import PackedNames
from attfc_cuda.data.sources.skipped import Skipped
from attfc_cuda.data.sources.stored import StoredFaces

try:
    import lmdb
except ImportError:  # every other data set works without it
    lmdb = None  # type: ignore[assignment]

_OPEN: dict[Path, tuple[tuple[int, int, int], Any]] = {}
_OPENING = threading.Lock()
_VALUE = struct.Struct("<Q4s")
_OTHERS = 1000  # entries of another layout that are looked at
_NAMED_DATABASE = 48  # bytes of what LMDB keeps of one


class LmdbFaces(StoredFaces):
    """The images of an LMDB database with keys `<identity>/<image>` and the images' files as values; or with other keys
    and msgpack values, each a list or map of the image's file and its label (a whole number, or a name).

    Keys without a slash (the `__len__` and `__keys__` of other tools) are counted and left out. The whole database is
    visited once by a second process, since LMDB's library can crash on a damaged one, and what it found is kept beside
    the file (`index_cache`). While it is open it must not be written; one that has changed is an `UnreadableImage` by
    name. LMDB allows a process to open a database once: close your own environment before. `dataset[i]`: uint8
    [3, image_size, image_size]; `UnreadableImage` naming the database and the key.

    Args:
        path: The folder of data.mdb, or a database file.
        image_size: As for `FolderFaces`.
        on_bad_image: As for `FolderFaces`.
        cache: As for `FolderFaces`.
        check: As for `FolderFaces`.

    Raises:
        ImportError: Without lmdb.
        ValueError: For a database that cannot be read, is damaged, is open in this process already or holds no image;
            for another layout the error says which it is and how to convert it.

    Source:
        The layout of keys is our choice, that of a folder of identities; there is no common one.
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
        file = _file(self.database)
        if not file.is_file():
            raise error("LmdbFaces", "path", "be an LMDB database", f"{path}, without a file {file.name}")
        info = file.stat()
        settle(info.st_mtime_ns)
        self._stamp = _stamp(info)
        # An index says too that LMDB's library can read the file. Inode and time of the last change to it, which nobody
        # can set, keep one from being believed that came with a stranger's file.
        of = {"database": [*self._stamp, info.st_ctime_ns]}
        others: dict = {}
        try:
            index = load_index(file, of, lambda: _search(self.database, self._stamp, others), _is_sound)
            _environment(self.database, self._stamp)
        except lmdb.Error as cause:
            remedy = "LMDB opens a database once a process: close yours first, or give that process another copy"
            raise error("LmdbFaces", "path", "not be open already", f"{path} ({cause})", remedy) from cause
        except OSError as cause:
            raise error("LmdbFaces", "path", "stay as it is while it is opened", f"{path} ({cause})") from cause
        arrays = index.arrays
        self._keys, self._others = PackedNames.of_arrays(arrays["key_ends"], arrays["keys"]), others
        self._is_msgpack = "msgpack" in arrays
        self.skipped.update(index.skipped)
        names = list(PackedNames.of_arrays(arrays["name_ends"], arrays["names"])) if "names" in arrays else None
        self.start(arrays["identities"], names, check=check, cache=cache)

    def _content(self, item: int) -> bytes:
        try:
            environment = _environment(self.database, self._stamp)
            with environment.begin(buffers=True) as transaction:
                view = transaction.get(os.fsencode(self._keys[item]))
                if view is not None:
                    require_bytes(len(view))
                    return unpacked(bytes(view))[0] if self._is_msgpack else bytes(view)
        except (lmdb.Error, OSError, TooLarge, ValueError) as cause:
            raise UnreadableImage(printable(f"LmdbFaces: {self._where(item)} ({cause})")) from cause
        raise UnreadableImage(printable(f"LmdbFaces: {self._where(item)} is not there any more"))

    def _where(self, item: int) -> str:
        return f"{self.database}, key {self._keys[item]!r}"

    def _nothing(self) -> Exception:
        got = f"{self.database}{self.skipped.text('; ')}"
        rule = "hold at least one image with a key <identity>/<image>, or in a msgpack value with its label"
        return error("LmdbFaces", "path", rule, got, _foreign_layout(self._others))


def _foreign_layout(others: dict[str, tuple[int, bytes]]) -> str | None:
    """What a database without our keys looks like, and how to convert it. others: length and first bytes by key."""
    if not others:
        return None
    copy = (
        'write a database of your own with `for k, (label, file) in enumerate(faces): new.put(b"%d/%d" % (label, k), '
    )
    copy += "file)`, where faces reads "
    if any(re.fullmatch(r"image-\d+", key) for key in others):
        return f"it has the keys image-%09d and label-%09d: {copy}both of each number"
    numbered = [head for key, (_, head) in others.items() if key.isdecimal()]
    if any(head[:1] == b"\x80" for head in numbered):
        return f"it has numbered keys with pickles, which are never run here: {copy}it with the program that wrote it"
    if holds_msgpack(others):
        return f"it has numbered keys with msgpack lists or maps, none of an image and a label: {copy}it with msgpack"
    if numbered:
        return f"it has numbered keys without labels: {copy}it together with its list of labels"
    if all(length == _NAMED_DATABASE for length, _ in others.values()):
        names = ", ".join(map(repr, list(others)[:3]))
        return f"it holds named databases ({names}): {copy}one of them, open_db(name)"
    return None


def _file(path: Path) -> Path:
    return (path / "data.mdb" if path.is_dir() else path).resolve()


def _stamp(info: os.stat_result) -> tuple[int, int, int]:
    """By what a file that is mapped, and must not be written meanwhile, is known to be as it was: `settle` its time
    first. A change of its rights or links is none."""
    return info.st_ino, info.st_size, info.st_mtime_ns


def _environment(path: Path, stamp: tuple[int, int, int]) -> Any:
    """The open database, one for each file in a process, as LMDB demands; kept open, and used by forked processes too:
    without locks and writers nothing in it belongs to one process. Errors: OSError where the file is not as `stamp`
    says: LMDB maps it, and reading a page that was cut off would end the process."""
    file = _file(path)
    if _stamp(file.stat()) != stamp:
        raise OSError("it has changed since it was opened")
    with _OPENING:
        if _OPEN.get(file, (None,))[0] != stamp:
            if file in _OPEN:
                _OPEN.pop(file)[1].close()
            environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_dbs=0
            )
            _OPEN[file] = (stamp, environment)
        return _OPEN[file][1]


def _search(path: Path, stamp: tuple[int, int, int], others: dict) -> Index:
    """The entries of a database; `others` gets length and first bytes of some whose keys name no identity."""
    names: dict[str, int] = {}
    keys, identities, skipped = [], [], Skipped()
    for key, length, head in _walk(path):
        identity, slash, _ = key.rpartition("/")
        if not slash:
            skipped.add("entries without an identity in their key", f"{key!r} of {path}")
            if len(others) < _OTHERS:
                others[key] = length, head
            continue
        keys.append(key)
        identities.append(names.setdefault(identity, len(names)))
    if not keys and holds_msgpack(others):
        return _search_msgpack(path, stamp)
    return Index(_arrays(keys, np.array(identities, dtype=np.int32), names), [], skipped, lasting=bool(keys))


def _search_msgpack(path: Path, stamp: tuple[int, int, int]) -> Index:
    skipped = Skipped()
    found, labels = read_labels(_environment(path, stamp), skipped.add)
    keys, names = list(map(os.fsdecode, found)), None
    if all(isinstance(label, int) for label in labels):
        numbers = np.array(labels, dtype=np.int64)
    else:
        # A name may be a number in one entry and a text in another.
        texts = [str(label) if isinstance(label, int) else os.fsdecode(label) for label in labels]
        names = sorted(set(texts))
        rank = {name: place for place, name in enumerate(names)}
        numbers = np.array([rank[text] for text in texts], dtype=np.int64)
    arrays = _arrays(keys, small(numbers), names)
    return Index({**arrays, "msgpack": np.ones(1, np.uint8)}, [], skipped, lasting=bool(keys))


def _arrays(keys: Iterable[str], identities: np.ndarray, names: Iterable[str] | None) -> dict[str, np.ndarray]:
    packed = PackedNames(keys)
    arrays = {"key_ends": packed.ends, "keys": packed.block, "identities": identities}
    if names is not None:
        packed = PackedNames(names)
        arrays |= {"name_ends": packed.ends, "names": packed.block}
    return arrays


def _is_sound(arrays: dict[str, np.ndarray]) -> bool:
    keys, identities, most = PackedNames.of_arrays(arrays["key_ends"], arrays["keys"]), arrays["identities"], 2**62
    if "names" in arrays:
        most = len(PackedNames.of_arrays(arrays["name_ends"], arrays["names"]))
    elif "msgpack" not in arrays:
        return False  # keys name their identities
    if not len(keys) == len(identities) > 0 or identities.dtype == np.uint8:
        return False
    return bool(identities.min() >= 0 and identities.max() < most)


def _walk(path: Path) -> list[tuple[str, int, bytes]]:
    """Key, length and first bytes of each entry of a database that can be read from end to end."""
    file = path / "data.mdb" if path.is_dir() else path
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
    entries, at, output = [], 0, done.stdout
    while length := struct.unpack_from("<I", output, at)[0]:
        entries.append((os.fsdecode(output[at + 4 : at + 4 + length]), *_VALUE.unpack_from(output, at + 4 + length)))
        at += 4 + length + _VALUE.size
    return entries
