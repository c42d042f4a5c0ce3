"""Every verification set of a folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from attfc_cuda._check import error
from attfc_cuda.evaluation.bins import read_bin
from attfc_cuda.evaluation.ijb import find_ijb, read_ijb
from attfc_cuda.evaluation.pairs import identities_of_files, read_pairs
from attfc_cuda.evaluation.sets import ImageFiles, TemplateSet, VerificationSet


class SuiteEntry(NamedTuple):
    """A set that a folder holds.

    Attributes:
        name: of the set.
        load: reads it, so that one set at a time is in memory.
    """

    name: str
    load: Callable[[], VerificationSet | TemplateSet]


def find_suite(folder: str | Path, image_size: int = 112, root: str | Path | None = None) -> list[SuiteEntry]:
    """The verification sets in `folder`, in the order of their names.

    These are: every `<name>.bin` (`read_bin`); every `<name>.txt`, a pair list (`read_pairs`); and every sub-folder,
    and the folder itself, with `meta/*_face_tid_mid.txt` (`read_ijb`).

    Args:
        folder: where to look.
        image_size: side that images are brought to, in pixels.
        root: folder that the images of pair lists lie below; None: `<folder>/<name>` where that exists, else `folder`.

    Raises:
        ValueError: for a folder without a set, or with two of one name.
        FileNotFoundError: for no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise error("verify", "suite", "be a folder", folder, kind=FileNotFoundError)
    entries = [] if find_ijb(folder) is None else [SuiteEntry(folder.name, lambda: read_ijb(folder, image_size))]
    for path in sorted(folder.iterdir()):
        if path.is_dir() and find_ijb(path) is not None:
            entries.append(SuiteEntry(path.name, partial(read_ijb, path, image_size)))
        elif path.suffix == ".bin":
            entries.append(SuiteEntry(path.stem, partial(read_bin, path, image_size)))
        elif path.suffix == ".txt":
            entries.append(SuiteEntry(path.stem, partial(_pair_list, path, image_size, root)))
    names = [entry.name for entry in entries]
    if not entries:
        raise error("verify", "suite", "hold .bin sets, pair lists or IJB folders", f"none in {folder}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise error("verify", "suite", "hold sets of different names", f"{twice} twice", "results are named after them")
    return entries


def _pair_list(path: Path, image_size: int, root: str | Path | None) -> VerificationSet:
    own = path.with_suffix("")
    files, pairs = read_pairs(path, root or (own if own.is_dir() else path.parent)).indices()
    names = list(map(str, files))
    return VerificationSet(path.stem, ImageFiles(names, image_size), pairs, identities_of_files(files, pairs), names)
