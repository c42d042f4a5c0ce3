"""What kind of data set a path is, told by what lies there."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from attfc_cuda._check import error
from attfc_cuda.data.sources.folder_index import is_hidden
from attfc_cuda.data.sources.index_cache import SUFFIX

KINDS = ("folder", "record", "list", "tar", "gzip", "lmdb", "parquet")
_SUFFIXES = {
    ".rec": "record", ".txt": "list", ".lst": "list", ".csv": "list", ".tsv": "list", ".tar": "tar", ".lmdb": "lmdb",
    ".mdb": "lmdb", ".parquet": "parquet",
}  # fmt: skip
_MAGIC = ((0, b"PAR1", "parquet"), (0, b"\x1f\x8b", "gzip"), (0, b"\x0a\x23\xd7\xce", "record"),
          (16, b"\xde\xc0\xef\xbe", "lmdb"), (257, b"ustar", "tar"))  # fmt: skip
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive", "unpack it and give the folder"),
    (b"SQLite format 3", "an SQLite database", None),
    (b"\x89HDF", "an HDF5 file", None),
    (b"\x93NUMPY", "a numpy array", None),
    (b"\x80", "a pickle", "a .bin set is verified on: --verify-pairs, attfc verify --pairs"),
)
LOOKED_FOR = (
    "a folder of identities, of .tar or .parquet shards, of an LMDB database or with a train.rec; or a .rec, .tar, "
    ".tar.gz, .parquet or LMDB file, or a text with a path and a label in each line"
)
_SHARDS = {"tar": (".tar", ".tar.gz", ".tgz"), "parquet": (".parquet",)}
UNPACKED_SUFFIX = ".attfc_unpacked"
_WILD = "*?["
SAME_TIME_NS = 2 * 10**9  # times of files as coarse as file systems keep them
_MOST_SHARDS = 10**6
# As files of a split are named: train-00000-of-00002.parquet (Hugging Face), test.parquet, faces_val_003.tar.
_SPLIT = re.compile(
    r"(?<![^\W_])(train|training|test|testing|valid|validation|val|dev|eval)(?![^\W\d_])", re.IGNORECASE
)
_ONE_SPLIT = {"training": "train", "testing": "test", "valid": "validation", "val": "validation"}
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?\d+)?\}")


class Source(NamedTuple):
    """Files that are read as one data set.

    Attributes:
        kind: One of `KINDS`.
        files: The files, or one folder.
    """

    kind: str
    files: list[Path]


def split_sources(text: str) -> list[str]:
    """Sources separated by commas, but for commas within braces."""
    parts, depth = [""], 0
    for mark in text:
        depth = max(0, depth + (mark == "{") - (mark == "}"))
        if mark == "," and not depth:
            parts.append("")
        else:
            parts[-1] += mark
    return [part.strip() for part in parts if part.strip()]


def is_pattern(source: str) -> bool:
    """Whether a source names files by braces or wild cards, and is no path that exists."""
    return any(mark in source for mark in "{" + _WILD) and not os.path.lexists(source)


def find_sources(source: str) -> list[Source]:
    """What a source names: one data set, or several where a pattern names such as are not shards.

    Raises:
        ValueError: For a file of no known kind, and for a pattern that names nothing; ImportError for braces without
            braceexpand.
    """
    if not is_pattern(source):
        return [source_of(Path(source))]
    expanded = [Path(path) for path in expand_braces(source)]
    paths = []
    for path in expanded:
        wild = any(mark in str(path) for mark in _WILD)
        found = (name for name in glob.glob(str(path)) if not name.endswith((SUFFIX, UNPACKED_SUFFIX)))
        paths += sorted(map(Path, found)) if wild else [path]
    if not paths:
        raise error("build_dataset", "spec", "name files that exist", f"no match of {source}")
    kinds = {_shard_kind(path) for path in paths}
    if len(kinds) == 1 and None not in kinds:
        return [_shards(str(kinds.pop()), paths, source)]
    return [source_of(path) for path in paths]


def expand_braces(text: str) -> list[str]:
    """`a-{08..11}.tar` -> the four names, by the braceexpand library."""
    if "{" not in text:
        return [text]
    try:
        import braceexpand
    except ImportError as cause:
        remedy = "pip install braceexpand, or name the files by a wild card: shard-*.tar"
        raise error(
            "build_dataset", "spec", "hold braces where braceexpand is installed", text, remedy, ImportError
        ) from cause
    # The library makes all names of a range at once.
    ranges = [abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(text)]
    if math.prod(ranges) > _MOST_SHARDS:
        raise error(
            "build_dataset", "spec", f"hold braces as {{000..123}}, of at most {_MOST_SHARDS} names", repr(text)
        )
    try:
        names = list(itertools.islice(braceexpand.braceexpand(text), _MOST_SHARDS + 1))
    except (ValueError, OverflowError, MemoryError) as cause:
        raise error("build_dataset", "spec", "hold braces as {000..123}", f"{text!r} ({cause})") from cause
    if len(names) > _MOST_SHARDS or any("{" in name for name in names):
        raise error(
            "build_dataset", "spec", f"hold braces as {{000..123}}, of at most {_MOST_SHARDS} names", repr(text)
        )
    return names


def source_of(path: Path) -> Source:
    """What a path that is no pattern holds. A path that does not exist is of the kind that its name says."""
    if path.is_dir():
        return _in_folder(path)
    kind = _by_content(path) or _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        if path.exists():
            raise _unknown(path)
        kind = "folder"  # whose reader says that it is not there
    return Source(kind, [path])


def _shards(kind: str, paths: Sequence[Path], source: str) -> Source:
    """Shards that were found together, as one data set.

    Raises:
        ValueError: For files of several splits, and for a .tar that is older than the .tar.gz of its name.
    """
    splits: dict[str, Path] = {}
    for path in paths:
        if (found := _SPLIT.search(path.name)) is not None:
            split = found[1].lower()
            splits.setdefault(_ONE_SPLIT.get(split, split), path.with_name(path.name[: found.end()]))
    if len(splits) > 1:
        first = splits.get("train") or next(iter(splits.values()))
        got = f"{' and '.join(f'{path.name}*' for path in splits.values())} in {source}"
        remedy = f"name those to read, '{first}*'; several, separated by commas, are joined"
        raise error("build_dataset", "spec", "name files of one split", got, remedy)
    return Source(kind, _without_packed_twins(paths))


def _without_packed_twins(paths: Sequence[Path]) -> list[Path]:
    """Without the .tar.gz of which the unpacked .tar is there too."""
    there, kept = set(paths), []
    for path in paths:
        twin = tar_name(path)
        if twin == path or twin not in there:
            kept.append(path)
        elif _time_ns(path) - _time_ns(twin) > SAME_TIME_NS:
            remedy = "remove one of them, or name the files to read: '*.tar' or '*gz'"
            got = f"{twin} that is older than {path.name}"
            raise error("build_dataset", "spec", "name shards of which no other version lies there", got, remedy)
    return kept


def _time_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # the reader says that it is not there


def tar_name(path: Path) -> Path:
    """`a.tar.gz`, `a.tgz` -> `a.tar`; other names as they are."""
    for suffix in _SHARDS["tar"][1:]:
        if path.name.lower().endswith(suffix):
            return path.with_name(path.name[: -len(suffix)] + ".tar")
    return path


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, whatever its name."""
    return _head(path)[:2] == b"\x1f\x8b"


def _in_folder(folder: Path) -> Source:
    if (folder / "data.mdb").is_file():
        return Source("lmdb", [folder])
    if (folder / "train.rec").is_file():
        return Source("record", [folder / "train.rec"])
    records = [path for path in sorted(folder.glob("*.rec")) if not is_hidden(path.name)]
    if len(records) == 1:
        if (beside := _a_folder_in(folder)) is not None:
            remedy = f"name the file, {records[0]}, or move it out of the folder"
            got = f"{records[0].name} beside folders such as {beside}, in {folder}"
            raise error("build_dataset", "spec", "name a folder with one data set", got, remedy)
        return Source("record", records)
    for place in (folder, folder / "data"):  # the second as Hugging Face lays data sets out
        found = place.iterdir() if place.is_dir() else ()
        files = sorted(entry for entry in found if _shard_kind(entry) and not is_hidden(entry.name))
        kinds = {_shard_kind(file) for file in files}
        if len(kinds) == 1 and (place != folder or _a_folder_in(folder) is None):
            return _shards(str(kinds.pop()), files, str(place))
    return Source("folder", [folder])


def _a_folder_in(folder: Path) -> str | None:
    """The name of a folder that it holds, but for hidden ones and those of tools; None where there is none."""
    with os.scandir(folder) as entries:
        return min((entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)), default=None)


def _shard_kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for kind, suffixes in _SHARDS.items() if name.endswith(suffixes)), None)


def _head(path: Path) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(tarfile.BLOCKSIZE) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""  # the reader says why


def _by_content(path: Path) -> str | None:
    head = _head(path)
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if path.suffix.lower() in _SUFFIXES or not head:
        return None  # a damaged file is what its name says; and a list may begin with anything
    if len(head) == tarfile.BLOCKSIZE and _is_old_tar(head):
        return "tar"
    foreign = any(head.startswith(magic) for magic, _, _ in _FOREIGN)
    return None if foreign or b"\0" in head or head[:3] == b"\xff\xd8\xff" else "list"


def _is_old_tar(head: bytes) -> bool:
    try:
        return tarfile.nti(head[148:156]) in tarfile.calc_chksums(head)  # type: ignore[attr-defined]
    except tarfile.HeaderError:
        return False


def _unknown(path: Path) -> Exception:
    head = _head(path)
    got, remedy = next(
        ((what, remedy) for magic, what, remedy in _FOREIGN if head.startswith(magic)),
        (f"a file that begins {head[:16]!r}" if head else "an empty file or none that can be read", None),
    )
    return error("build_dataset", "spec", f"name {LOOKED_FOR}", f"{got}: {path}", remedy)
