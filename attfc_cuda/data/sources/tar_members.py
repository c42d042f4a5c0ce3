"""The members of a tar file: name, place and kind of each, without reading what lies between the headers.

Plain headers (ustar or GNU, and pax headers that only refine a time or an owner) are taken apart here, one at a time
(`tar_plain`: thousands at a time); anything else (long names, sparse files, pax names) is left to Python's tarfile,
which knows it all and is slower still.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from attfc_cuda.data.sources.checked_file import CheckedFile, DamagedFile

BLOCK = 512
_FILE, _HARD_LINK, _SYMLINK = b"0\0", b"1", b"2"
_PAX, _PAX_GLOBAL = b"x", b"g"
_PLAIN_OTHERS = b"23456"  # links, devices, folders, pipes: headers without content
# What a pax header may change of the next member that matters here.
PAX_KEYS = (b"path=", b"linkpath=", b"size=", b"GNU.sparse", b"hdrcharset=")
_MAX_PAX = 2**16


class Member(NamedTuple):
    """A regular file (`link` empty) or a link; start and size are of the content in bytes, check is of the header right
    before it, see `header_at`. begin: where its headers begin, with those that refine it."""

    name: str
    start: int
    size: int
    link: str
    symbolic: bool
    check: int
    begin: int


def walk(
    file: CheckedFile, left_out: Callable[[str, str], None] = lambda what, name: None, start: int = 0
) -> Iterator[Member]:
    """Each regular file, hard link and symbolic link that lies within the file, in order.

    Args:
        file: The shard.
        left_out: Told of a kind of file that cannot be read in place, and its name.
        start: Of the first header.

    Raises:
        DamagedFile: At the first damage; nearly any type that tarfile raises on a hostile header may come instead.
    """
    at, begin, archive = start, start, None
    while True:
        if at == file.size:
            return  # no block of zeros at the end: some writers leave it out
        header = file.read(at, min(BLOCK, file.size - at))
        if len(header) < BLOCK:
            if any(header):
                raise tarfile.ReadError(f"what stands at byte {at} is no header")
            return
        if header[0] == 0 and not any(header):
            return
        kind = header[156:157]
        if kind in (_PAX, _PAX_GLOBAL) and _plain(header):
            size = _size(header)
            if size <= _MAX_PAX and not any(key in file.read(at + BLOCK, size) for key in PAX_KEYS):
                at += BLOCK + _padded(size)
                continue
        elif (kind in _FILE or kind in _PLAIN_OTHERS or kind == _HARD_LINK) and _plain(header):
            size = _size(header) if kind in _FILE else 0
            name = _text(header[:100])
            if header[257:263] == b"ustar\0" and header[345]:
                name = f"{_text(header[345:500])}/{name}"
            if not (kind in _FILE and name.endswith("/")):  # an old way to write a folder
                if at + BLOCK + size > file.size:
                    file.read(at + BLOCK, size)
                if kind in _FILE:
                    yield Member(name, at + BLOCK, size, "", False, _check(header), begin)
                elif kind in (_HARD_LINK, _SYMLINK):
                    yield Member(name, at + BLOCK, 0, _text(header[157:257]), kind == _SYMLINK, 0, begin)
                at = begin = at + BLOCK + _padded(size)
                continue
        if archive is None:
            archive = tarfile.TarFile(fileobj=_Stream(file))
        archive.fileobj.seek(at)
        try:
            member = tarfile.TarInfo.fromtarfile(archive)
        except tarfile.HeaderError as cause:
            raise tarfile.ReadError(f"what stands at byte {at} is no header ({cause})") from cause
        if archive.offset <= at:  # a header that points back would be walked for ever
            raise tarfile.ReadError(f"member {member.name!r} lies before the one it follows")
        if member.isreg() and not member.issparse():
            if not 0 <= member.offset_data <= member.offset_data + member.size <= file.size:
                file.read(member.offset_data, member.size)
            size, check = header_at(file, member.offset_data)
            if size != member.size:
                raise tarfile.ReadError(f"two headers of {member.name!r} give it different sizes")
            yield Member(member.name, member.offset_data, member.size, "", False, check, begin)
        elif member.islnk() or member.issym():
            yield Member(member.name, member.offset_data, 0, member.linkname, member.issym(), 0, begin)
        elif member.issparse():
            left_out("sparse files", member.name)
        at = begin = archive.offset


def header_at(file: CheckedFile, start: int) -> tuple[int, int]:
    """The size of the content at `start` by the header before it, and 8 bits that are the same for the same header.

    Raises:
        DamagedFile: Where there is none (any more): the shard has changed.
    """
    header = file.read(start - BLOCK, BLOCK)
    if not _plain(header, any_size=True):
        raise file.damaged(start - BLOCK, "be a tar header", "other bytes: has the shard changed?")
    return _size(header), _check(header)


def _check(header: bytes) -> int:
    return zlib.crc32(header) & 0xFF


def _plain(header: bytes, any_size: bool = False) -> bool:
    """Whether the checksum is right, and the size is in octal digits as most writers write it."""
    try:
        expected = int(header[148:156].rstrip(b" \0"), 8)
        _size(header)
    except ValueError:
        return any_size and tarfile.calc_chksums(header)[0] == tarfile.nti(header[148:156])  # type: ignore[attr-defined]
    # Adler's lower half is 1 + the sum of the bytes modulo 65521, in C. The checksum's own field counts as 8 spaces.
    return ((zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 256 - expected) % 65521 == 0


def _size(header: bytes) -> int:
    digits = header[124:136].rstrip(b" \0")
    if header[124] & 0x80:
        size = tarfile.nti(header[124:136])  # type: ignore[attr-defined]
        if size < 0:  # a walk by it would go back and never end
            raise tarfile.ReadError(f"a header gives {size} bytes of content")
        return size
    if not digits.isdigit():
        raise ValueError(f"size {digits!r}")
    return int(digits, 8)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


class _Stream(io.RawIOBase):
    """What tarfile reads of a `CheckedFile`."""

    def __init__(self, file: CheckedFile) -> None:
        self._file, self._at = file, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        if self._at < 0:
            raise DamagedFile("a place before the file's start")
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        there = max(0, self._file.size - self._at)
        content = self._file.read(self._at, there if size < 0 else min(size, there)) if there else b""
        self._at += len(content)
        return content
