"""Many faces in one file: tar shards, LMDB databases, and the pickles of InsightFace's verification sets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from fuzz_parts import FACES, PICTURES, SIZE, Target, check_named
from fuzz_records import drain, strictly_too, write_anew

from attfc_cuda.data import LmdbFaces, TarFaces, UnreadableImage
from attfc_cuda.data.sources import lmdb as lmdb_source
from attfc_cuda.data.sources.lmdb import lmdb
from attfc_cuda.evaluation import read_bin

_SERVER: dict[Path, subprocess.Popen] = {}
_PAGE = 4096
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8  # flags of LMDB's pages


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch was_run",)


def bin_seeds(folder: Path) -> list[bytes]:
    arrays = [np.frombuffer(face, np.uint8) for face in FACES[:4]]
    values = [
        (FACES[:4], [True, False]),
        (arrays, [np.bool_(True), np.bool_(False)]),
        (arrays, np.array([True, False])),
    ]
    whole = [pickle.dumps(value, protocol=protocol) for value in values for protocol in (0, 2, 4, 5)]
    return [*whole, pickle.dumps((FACES[:4], [Evil(), True])), pickle.dumps(Evil(), protocol=0)]


def run_bin(data: bytes, folder: Path) -> bool:
    path = folder / "a.bin"
    path.write_bytes(data)
    try:
        images = read_bin(path, SIZE).images
    except ValueError as cause:
        return check_named(cause, path)
    for index in range(min(len(images), 8)):
        try:
            images[index]
        except UnreadableImage as cause:
            check_named(cause, path)
    return True


def changed_bin(data: bytes, rng: random.Random) -> bytes:
    """A pickle of other values: images and booleans of other types, numbers and nesting, arrays of other dtypes and
    shapes."""
    dtypes = ("u1", "i8", "f4", "?", "S3", "U2", "O")

    def array() -> np.ndarray:
        shape = rng.choice(((0,), (5,), (2, 3), (), (1, 1, 1)))
        return np.full(shape, rng.choice((0, 1)), dtype=rng.choice(dtypes[:6]))

    def odd_image() -> Any:
        return rng.choice((b"", FACES[0][:50], FACES[2], "text", 5, None, [FACES[0]], array(), bytearray(b"x"), Evil()))

    def odd_boolean() -> Any:
        return rng.choice((0, 1, 2, "1", None, 1.0, np.bool_(True), np.int64(1), array(), b"\1", [True], Evil()))

    images: Any = list(FACES[:4])
    if rng.random() < 0.4:
        images = [np.frombuffer(image, np.uint8) for image in images]
    same: Any = [True, False]
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind, at = rng.randrange(7), rng.randrange(len(images))
        if kind == 0:
            images[at] = odd_image()
        elif kind == 1:
            same[rng.randrange(len(same))] = odd_boolean()
        elif kind == 2:
            images += images[:2]
            same += [True]
        elif kind == 3:
            images[at] = images[at - 1]
        elif kind == 4 and len(images) > 1:
            del images[at]
        elif kind == 5:
            images[at] = np.frombuffer(FACES[0], np.uint8)[:: rng.choice((1, 2))]
        else:
            same.append(rng.choice((True, np.bool_(False))))
    with contextlib.suppress(ValueError):  # of mixed shapes
        same = rng.choice((same, same, tuple(same), np.array(same)))
    whole = rng.choice(((images, same),) * 8 + ([images, same], (images, same, 0), (same, images), {0: images}))
    return pickle.dumps(whole, protocol=rng.choice((0, 1, 2, 3, 4, 5)))


def tar_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            for number, face in enumerate(FACES[:3]):
                long = "x" * 120 + "/" if number == 1 and form != tarfile.USTAR_FORMAT else ""
                label = ("cls", b"%d" % number) if number < 2 else ("json", json.dumps({"label": 2}).encode())
                for extension, content in (("jpg", face), label):
                    member = tarfile.TarInfo(f"{long}{number}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        seeds.append(stream.getvalue())
    return seeds


def run_tar(data: bytes, folder: Path) -> bool:
    return drain(strictly_too(TarFaces), write_anew(folder / "a.tar", data))


def changed_tar(data: bytes, rng: random.Random) -> bytes:
    """A shard whose headers are right but for what was chosen: fields replaced and the checksum made to fit, headers
    of other kinds put in, members repeated or moved."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    headers = [k for k, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for _ in range(rng.choice((1, 1, 2, 4)) if headers else 0):
        place = rng.choice(headers)
        block = bytearray(blocks[place].ljust(512, b"\0"))
        kind = rng.randrange(6)
        if kind == 0:
            block[156:157] = rng.choice(list("01234567xgLKSVZ\0")).encode()
        elif kind == 1:
            size = rng.choice((0, 1, 511, 512, 513, 2**20, 2**33 - 1, 8**11 - 1))
            block[124:136] = rng.choice(
                (b"%011o\0" % size, b"\x80" + size.to_bytes(11, "big"), b"\xff" * 12, b" " * 12)
            )
        elif kind == 2:
            target = bytes(blocks[rng.choice(headers)][:100])
            block[157:257] = rng.choice((target, bytes(block[:100]), b"../" * 30, b"/", b"")).ljust(100, b"\0")[:100]
            block[156:157] = rng.choice((b"1", b"2"))
        elif kind == 3:
            name = rng.choice(
                (b"._1.jpg", b"a/b/../c.jpg", b"1.jpg", b"1.JPG", b"x/1.cls", b"1.a.png", b".", b"/", b"a/", b"\x1b[2J")
            )
            block[0:100] = name.ljust(100, b"\0")
        elif kind == 4:
            blocks[place:place] = blocks[place : place + rng.choice((1, 2, 3))]
        else:
            record = rng.choice(
                (b"path=x/2.jpg", b"size=9", b"size=-1", b"GNU.sparse.major=1", b"mtime=1.5", b"linkpath=a")
            )
            line = b"%d %s\n" % (len(record) + 4, record)
            head = tarfile.TarInfo("pax")
            head.type, head.size = rng.choice((b"x", b"g")), len(line)
            blocks[place:place] = [head.tobuf(tarfile.USTAR_FORMAT), line.ljust(512, b"\0")]
        if kind < 4:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            blocks[place] = bytes(block)
    return b"".join(blocks)


def lmdb_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for count in (3, 60):
        path = folder / f"seed{count}.lmdb"
        with lmdb.open(str(path), map_size=2**22, subdir=False) as env, env.begin(write=True) as transaction:
            for k in range(count):
                transaction.put(b"id%d/%d" % (k % 7, k), PICTURES[0] + bytes(5000 * (k == 1)))
        seeds.append(path.read_bytes())
    return seeds


def walked(command: list, **options: Any) -> subprocess.CompletedProcess:
    """What `subprocess.run` gives of `lmdb_walk.py`, by the server."""
    _, script, path = command
    if script not in _SERVER:
        server = [sys.executable, Path(__file__).with_name("lmdb_walk_server.py"), script]
        _SERVER[script] = subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    print(path, file=_SERVER[script].stdin, flush=True)
    code = int(_SERVER[script].stdout.readline())
    assert code != -signal.SIGPROF, "a walk went on for ever"
    output, errors = (Path(f"{path}{suffix}").read_bytes() for suffix in (".out", ".err"))
    return subprocess.CompletedProcess(command, code, output, errors)


def run_lmdb(data: bytes, folder: Path) -> bool:
    path = write_anew(folder / "a.lmdb", data)
    with mock.patch.object(lmdb_source.subprocess, "run", walked):
        return drain(strictly_too(LmdbFaces), path)


def changed_lmdb(data: bytes, rng: random.Random) -> bytes:
    """Pages that are pages still: other sizes, flags and places of entries, entries in another order, other roots."""
    pages = bytearray(data)
    starts = range(0, len(data) - _PAGE + 1, _PAGE)
    flags = {at: int.from_bytes(data[at + 10 : at + 12], "little") for at in starts}
    metas = [at for at in starts if flags[at] & _META and at < 2 * _PAGE]
    filled = [at for at in starts if at not in metas and flags[at] & (_BRANCH | _LEAF | _OVERFLOW)]

    def put(at: int, width: int, number: int) -> None:
        pages[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")

    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.15:
            # Numbers of the main database in the newer meta page: depth, pages of each kind, entries, root.
            at, width = rng.choice(((88 + 4, 2), (88 + 6, 2), (88 + 8, 8), (88 + 16, 8), (88 + 32, 8), (88 + 40, 8)))
            for meta in metas:
                put(meta + at, width, rng.choice((0, 1, 2, 3, 5, len(pages) // _PAGE - 1, 2**16 - 1)))
            continue
        page = rng.choice(filled)
        if flags[page] & _OVERFLOW:
            put(page + 12, 4, rng.choice((0, 1, 2, 3)))
            continue
        entries = (int.from_bytes(pages[page + 12 : page + 14], "little") - 16) // 2
        if not 0 < entries < _PAGE // 2:
            continue
        slot = page + 16 + 2 * rng.randrange(entries)
        node = page + min(int.from_bytes(pages[slot : slot + 2], "little"), _PAGE - 16)
        kind = rng.randrange(8)
        if kind == 0:  # the size of a value
            size = int.from_bytes(pages[node : node + 2], "little")
            put(node, 2, size + rng.choice((-size, -1, 1, 8, 100)))
        elif kind == 1:
            put(node + 4, 2, rng.choice((0, 1, 2, 4)))
        elif kind == 2:
            size = int.from_bytes(pages[node + 6 : node + 8], "little")
            put(node + 6, 2, max(0, size + rng.choice((-size, -1, 1, 4))))
        elif kind == 3:  # a key, without its slash or behind its neighbours
            pages[node + 8 + rng.randrange(4)] = rng.choice(b"/0z\0\x1b\xff")
        elif kind == 4:
            other = page + 16 + 2 * rng.randrange(entries)
            pages[slot : slot + 2], pages[other : other + 2] = pages[other : other + 2], pages[slot : slot + 2]
        elif kind == 5:  # within an image
            place = node + 16 + rng.randrange(200)
            pages[place % len(pages)] ^= 1 << rng.randrange(8)
        elif kind == 6:
            put(page + 12, 2, 16 + 2 * rng.choice((entries - 1, max(entries // 2, 1))))
        else:
            put(page + 10, 2, rng.choice((_BRANCH, _LEAF)))
    return bytes(pages)


BIN = Target(bin_seeds, run_bin, changed_bin)
TAR = Target(tar_seeds, run_tar, changed_tar)
LMDB = Target(lmdb_seeds, run_lmdb, changed_lmdb)
