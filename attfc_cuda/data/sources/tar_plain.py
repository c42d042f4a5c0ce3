"""Samples of a shard in the form that nearly all have, thousands of headers at a time.

Taken are neighbours `<key>.<image>` and `<key>.cls`, in either order, and images in the folder of their identity; their
headers as most writers write them, also with pax headers and folders in between that change nothing. One loop finds
the headers, NumPy checks them together. Whatever else comes ends the run, and is left to `tar_samples`, which knows
everything, says what is wrong, and agrees with this file on all that both take.
"""

from __future__ import annotations

import zlib
from operator import ne
from typing import Any, NamedTuple

import numpy as np

from attfc_cuda.data.images import IMAGE_EXTENSIONS
from attfc_cuda.data.sources.checked_file import CheckedFile
from attfc_cuda.data.sources.folder_index import TOOL_FOLDERS, is_hidden
from attfc_cuda.data.sources.tar_members import BLOCK, PAX_KEYS

FEW_HEADERS, MOST_HEADERS = 64, 2048  # of a run
# Read at once: a header or two and the small files between images; more where many headers lie in it.
_WINDOW, _LARGEST_WINDOW = 2**13, 2**17
_SMALL = 2 * BLOCK  # labels and pax headers that are looked at
_FILE, _OLD_FILE, _FOLDER, _PAX, _PAX_GLOBAL = b"0\x005xg"
_OCTAL = 8 ** np.arange(5, -1, -1)
_SLASH = ord("/")
_DIGITS = 18  # of a label that is surely small enough
_IMAGE, _LABEL = 1, 2
_FIELDS = {extension[1:].encode(): _IMAGE for extension in IMAGE_EXTENSIONS} | {b"cls": _LABEL}


class Run(NamedTuple):
    """Images of neighbouring samples.

    Attributes:
        starts, checks: As in `Member`.
        identities: Numbers, or names of folders.
        end: Where the headers of the first sample begin that is not among them.
        whole: Whether nothing but the length of a run has ended it.
    """

    starts: list[int]
    checks: list[int]
    identities: list[Any]
    end: int
    whole: bool


class _Headers(NamedTuple):
    places: list[int]
    blocks: list[bytes]
    contents: list[bytes]  # of small ones; empty for others
    whole: bool


def plain_run(file: CheckedFile, start: int, label_field: str, most: int) -> Run | None:
    """The samples from `start`, where a sample begins, to the first that is of another form.

    A sample is taken where the next one is seen to begin: what comes in between may belong to it.

    Args:
        file: The shard.
        start: Of the first header.
        label_field: As for `TarFaces`.
        most: Headers to look at.

    Returns:
        None where there is none.

    Raises:
        DamagedFile: For what cannot be read.
    """
    headers = _headers(file, start, most)
    if not headers.blocks:
        return None
    table = np.frombuffer(b"".join(headers.blocks), np.uint8).reshape(-1, BLOCK)
    sound = _sound(table, headers)
    members = np.flatnonzero(np.isin(table[:sound, 156], (_FILE, _OLD_FILE)))
    names = _visible(np.ascontiguousarray(table[members, :100]).view("S100")[:, 0].tolist())
    if not names:
        return None
    members = members[: len(names)].tolist()
    parts = [name.partition(b".") for name in names]  # the folder of a plain member has no dot
    keys = [key for key, _, _ in parts]
    kinds = np.array([_FIELDS.get(field.lower(), 0) if key and key[-1] != _SLASH else 0 for key, _, field in parts])
    firsts = np.flatnonzero([True, *map(ne, keys[1:], keys)])
    images, identities = _samples(keys, kinds, firsts, [headers.contents[member] for member in members], label_field)
    if not images:
        return None
    taken = len(images)
    rows = [members[image] for image in images]
    return Run(
        [headers.places[row] + BLOCK for row in rows],
        [zlib.crc32(headers.blocks[row]) & 0xFF for row in rows],
        identities,
        headers.places[members[firsts[taken] - 1] + 1],
        headers.whole and sound == len(table) and taken == len(firsts) - 1,
    )


def _headers(file: CheckedFile, at: int, most: int) -> _Headers:
    """What stands where headers must stand if the sizes in those before them are right; checked by none yet."""
    places: list[int] = []
    blocks: list[bytes] = []
    contents: list[bytes] = []
    window, base, last, length = b"", at, -1, _WINDOW
    while len(places) < most:
        if at > last:
            if at + BLOCK > file.size:
                return _Headers(places, blocks, contents, False)
            length = min(2 * length, _LARGEST_WINDOW) if at - base - len(window) < _WINDOW else _WINDOW
            window = file.read(at, min(length, file.size - at))
            base = at
            # The last place whose small content is in the window too, or all of the file's end.
            last = at + len(window) - (BLOCK if at + len(window) == file.size else BLOCK + _SMALL)
        here = at - base
        block = window[here : here + BLOCK]
        try:
            size = 0 if block[156] == _FOLDER else int(block[124:135], 8)
        except ValueError:
            size = -1
        following = at + BLOCK + size
        if size < 0 or following > file.size:
            return _Headers(places, blocks, contents, False)
        places.append(at)
        blocks.append(block)
        contents.append(window[here + BLOCK : here + BLOCK + size] if size <= _SMALL else b"")
        at = following + -size % BLOCK
    return _Headers(places, blocks, contents, True)


def _sound(table: np.ndarray, headers: _Headers) -> int:
    """How many headers are whole and of the kinds that are taken apart here, up to the first that is not."""
    fields = np.ascontiguousarray(table[:, 124:157])  # size, time, checksum, kind: side by side in the cache
    sizes, checksums, kinds = fields[:, :11], fields[:, 24:30], fields[:, 32]
    is_pax = (kinds == _PAX) | (kinds == _PAX_GLOBAL)
    good = is_pax | (kinds == _FILE) | (kinds == _OLD_FILE) | (kinds == _FOLDER)
    for digits in (sizes, checksums):  # what is below "0" wraps around
        good &= (digits - ord("0") < 8).all(axis=1)
    for end in (fields[:, 11], fields[:, 30], fields[:, 31]):
        good &= (end == 0) | (end == ord(" "))
    expected = (checksums - ord("0")) @ _OCTAL
    # As in tar_members: Adler's lower half is 1 + the sum of the bytes, and the checksum's field counts as 8 spaces.
    sums = np.fromiter(map(zlib.adler32, headers.blocks), np.int64, len(table)) & 0xFFFF
    sums += 8 * ord(" ") - 1 - fields[:, 24:32].sum(axis=1, dtype=np.int64)
    good &= (sums - expected) % 65521 == 0
    good &= (table[:, 345] == 0) | (table[:, 262] != 0)  # where ustar has the first part of a long name
    for place in np.flatnonzero(is_pax & good):
        content = headers.contents[place]
        if not content or any(key in content for key in PAX_KEYS):
            good[place] = False
            break
    return len(good) if good.all() else int(np.argmin(good))


def _visible(names: list[bytes]) -> list[bytes]:
    """The names up to the first that is a tool's, or has bytes behind its end."""
    joined = b"\n".join(names)
    if b"\0" in joined or any(folder.encode() in joined.lower() for folder in TOOL_FOLDERS):
        for place, name in enumerate(names):
            if b"\0" in name or is_hidden(name.decode("utf-8", "surrogateescape")):
                return _visible(names[:place])
    return [name.removeprefix(b"./") for name in names] if b"./" in joined else names


def _samples(
    keys: list[bytes], kinds: np.ndarray, firsts: np.ndarray, contents: list[bytes], label_field: str
) -> tuple[list[int], list[int] | list[str]]:
    """The images of the samples that are taken, and their identities. firsts: the first member of each sample."""
    first = firsts[:-1]
    sizes, leading = np.diff(firsts), kinds[first]
    is_pair = (sizes == 2) & (leading + kinds[np.minimum(first + 1, len(kinds) - 1)] == _IMAGE + _LABEL)
    is_single = (sizes == 1) & (leading == _IMAGE)
    numbered = is_pair if label_field in ("auto", "cls") else np.zeros_like(is_pair)
    in_folders = {"auto": is_single, "folder": is_pair | is_single}.get(label_field, np.zeros_like(is_pair))
    by_number = bool(numbered[:1].any())
    # What follows must be seen to begin another sample: a hidden file, or a link, ends none.
    plain = (numbered if by_number else in_folders) & (kinds[firsts[1:]] != 0)
    count = len(plain) if plain.all() else int(np.argmin(plain))
    images = (first + (leading == _LABEL))[:count].tolist()
    if by_number:
        labels = [contents[label].strip() for label in (first + (leading == _IMAGE))[:count].tolist()]
        good = [label.isdigit() and len(label) <= _DIGITS for label in labels]
        count = count if all(good) else good.index(False)
        return images[:count], [int(label) for label in labels[:count]]
    folders = [keys[image].rpartition(b"/")[0].rpartition(b"/")[2] for image in images]
    count = folders.index(b"") if b"" in folders else count
    return images[:count], [folder.decode("utf-8", "surrogateescape") for folder in folders[:count]]
