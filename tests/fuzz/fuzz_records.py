"""RecordIO: a .rec file with and without its .idx, the .idx, and the indexes that are kept
beside it and other formats."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_parts import FACES, SIZE, Target, changed_value, check_named, odd_value

from attfc_cuda.data import FolderFaces, ListFaces, RecordFaces, TarFaces, UnreadableImage
from attfc_cuda.data.sources.index_cache import SUFFIX
from attfc_cuda.data.sources.recordio import MAGIC
from attfc_cuda.data.sources.recordio_writer import RecordWriter

CACHED = {
    "cached.rec": RecordFaces, "cached.tar": TarFaces, "cached2.tar": TarFaces, "cached.txt": ListFaces,
    "cached": FolderFaces,
}  # fmt: skip
_HEAD = 16  # bytes of the head of a cached index: magic, length of its JSON, CRC-32


def write_anew(path: Path, data: bytes) -> Path:
    """Without the index of what was there before: changes follow each other faster than a file's time shows."""
    path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def drain(open_faces: Callable, path: Path) -> bool:
    """Open a data set and look at all it offers."""
    try:
        faces = open_faces(path)
    except ValueError as cause:
        return check_named(cause, path)
    faces.report()
    for index in range(len(faces)):
        try:
            image = faces[index]
        except UnreadableImage as cause:
            check_named(cause, faces.path(index) if isinstance(faces, ListFaces) else path)
        else:
            assert tuple(image.shape) == (3, SIZE, SIZE)
    return True


def strictly_too(kind: type) -> Callable:
    """As it is used by default, and every third input with on_bad_image "raise"."""

    def open_faces(path: Path) -> object:
        if os.path.getsize(path) % 3 == 0:
            return kind(path, SIZE, on_bad_image="raise")
        return kind(path, SIZE)

    return open_faces


def rec_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for layout in ("scalar", "vector"):
        path = folder / "seed.rec"
        with RecordWriter(path) as writer:
            writer.write(0, [6, 8], layout="vector")
            for key, face in enumerate(FACES, start=1):
                tail = struct.pack("<I", 0xCED7230A) * 2 if key == 2 else b""
                writer.write(key, [key // 3], face + bytes(-len(face) % 4) + tail, layout)
            writer.write(6, [1, 3], layout="vector")
            writer.write(7, [3, 6], layout="vector")
        seeds.append(path.read_bytes())
    return seeds


def run_rec(data: bytes, folder: Path) -> bool:
    """By its parts; every other input by an .idx that is whole."""
    if len(data) % 2:
        return drain(strictly_too(RecordFaces), write_anew(folder / "a.rec", data))
    path = folder / "with_idx.rec"
    if not path.with_suffix(".idx").exists():
        rec_seeds(folder)
        os.replace(folder / "seed.idx", path.with_suffix(".idx"))
    return drain(strictly_too(RecordFaces), write_anew(path, data))


def changed_rec(data: bytes, rng: random.Random) -> bytes:
    """Parts of records in another order, of other kinds and lengths that still lie within the file."""
    parts, at = [], 0
    while at + 8 <= len(data) and data[at : at + 4] == MAGIC:
        word = int.from_bytes(data[at + 4 : at + 8], "little")
        size = (word & 2**29 - 1) + 3 & ~3
        parts.append([word >> 29, word & 2**29 - 1, data[at + 8 : at + 8 + size]])
        at += 8 + size
    for _ in range(rng.choice((1, 2, 4)) if parts else 0):
        place, kind = rng.randrange(len(parts)), rng.randrange(4)
        if kind == 0:
            parts[place][0] = rng.randrange(5)
        elif kind == 1:
            parts[place][1] = max(0, parts[place][1] + rng.choice((-4, -1, 1, 4, 64, 2**20)))
        elif kind == 2:
            parts.insert(place, list(rng.choice(parts)))
        else:
            flag = rng.choice((0, 1, 2, 5, 2**31))
            label = rng.choice((0.0, -1.0, 0.5, 2.0**24, 2.0**25, float("inf"), float("nan")))
            parts[place][2] = struct.pack("<If", flag, label) + parts[place][2][8:]
    return b"".join(MAGIC + struct.pack("<I", (k << 29 | n) & 2**32 - 1) + body for k, n, body in parts)


def idx_seeds(folder: Path) -> list[bytes]:
    rec_seeds(folder)
    return [(folder / "seed.idx").read_bytes()]


def run_idx(data: bytes, folder: Path) -> bool:
    path = folder / "indexed.rec"
    if not path.exists():
        path.write_bytes(rec_seeds(folder)[1])
    write_anew(path.with_suffix(".idx"), data)
    path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
    return drain(strictly_too(RecordFaces), path)


def changed_idx(data: bytes, rng: random.Random) -> bytes:
    """Lines that are keys and offsets still: of other records, between them, beyond the file, twice, out of order."""
    rows = [[int(number) for number in line.split()] for line in data.splitlines()]
    for _ in range(rng.choice((1, 2, 4))):
        row, other, kind = rng.choice(rows), rng.choice(rows), rng.randrange(6)
        if kind == 0:
            row[1] = other[1]
        elif kind == 1:
            row[1] = max(0, row[1] + rng.choice((-8, -4, 1, 4, 8, 2**20, 2**31, 10**17)))
        elif kind == 2:
            row[0] = rng.choice((other[0], row[0] + 1, 0, 10**18 - 1, 2**31, 2**53))
        elif kind == 3:
            row[0], other[0] = other[0], row[0]
        elif kind == 4:
            rows.insert(rng.randrange(len(rows) + 1), [rng.randrange(100), other[1]])
        elif len(rows) > 1:
            rows.remove(other)
    return b"".join(b"%d\t%d%s" % (*row, rng.choice((b"\n", b"\n", b"\n", b"\r\n"))) for row in rows)


def cache_seeds(folder: Path) -> list[bytes]:
    """Of a .rec, of shards with numbers and with folders, of a list and of a folder."""
    write_anew(folder / "cached.rec", rec_seeds(folder)[0])
    for name, members in (
        ("cached.tar", ("0.jpg", "0.cls", "1.jpg", "1.cls")),
        ("cached2.tar", ("a/0.jpg", "b/0.jpg")),
    ):
        with tarfile.open(folder / name, "w") as archive:
            for member in members:
                content = b"7" if member.endswith("cls") else FACES[0]
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    (folder / "cached" / "ann").mkdir(parents=True, exist_ok=True)
    for name in ("0.jpg", "1.jpg"):
        (folder / "cached" / "ann" / name).write_bytes(FACES[0])
    write_anew(folder / "cached.txt", b"cached/ann/0.jpg 0\ncached/ann/1.jpg 1\n")
    for name, kind in CACHED.items():
        kind(folder / name, SIZE)
    return [(folder / (name + SUFFIX)).read_bytes() for name in CACHED]


def run_cache(data: bytes, folder: Path) -> bool:
    """With a checksum that fits: as one would be that someone forged."""
    name = next((name for name in CACHED if b'/%s"' % name.encode() in data), "cached.rec")
    data = data[:12] + struct.pack("<I", zlib.crc32(data[_HEAD:])) + data[_HEAD:] if len(data) > _HEAD else data
    (folder / (name + SUFFIX)).write_bytes(data)
    return drain(strictly_too(CACHED[name]), folder / name)


def changed_cache(data: bytes, rng: random.Random) -> bytes:
    """Numbers of its arrays replaced or left out, facts and damage of its JSON changed, the file it is of as it was."""
    size = int.from_bytes(data[8:12], "little")
    head: Any = json.loads(data[_HEAD : _HEAD + size])
    arrays, at = [], _HEAD + size
    for _, dtype, count in head["arrays"]:
        arrays.append(np.frombuffer(data, dtype, count, at).copy())
        at += arrays[-1].nbytes
    for _ in range(rng.choice((1, 2, 4))):
        kind, array = rng.randrange(5), rng.choice(arrays)
        at = rng.randrange(max(len(array), 1))
        if kind < 2 and len(array) == 0:
            break
        if kind == 0:
            array[at] = rng.choice((0, 1, 4, np.iinfo(array.dtype).max, np.iinfo(array.dtype).min, 46, 47, 255))
        elif kind == 1:
            array[at] = array[rng.randrange(len(array))] + rng.choice((0, 0, 1))
        elif kind == 2:
            other = changed_value({"facts": ["a", "b"], "skipped": {"b": [1, "c"]}}, rng, odd_value)
            head = {**head, **other} if isinstance(head, dict) and isinstance(other, dict) else other
        elif kind == 3:
            head = changed_value(head, rng, odd_value)
        else:
            keep = rng.randrange(len(arrays[0]) + 1)
            arrays = [array[:keep] for array in arrays]
            if isinstance(head, dict) and isinstance(head.get("arrays"), list) and rng.random() < 0.8:
                names = [row[0] for row in head["arrays"] if isinstance(row, list) and row]
                head["arrays"] = [[name, a.dtype.str, len(a)] for name, a in zip(names, arrays, strict=False)]
            break
    text = json.dumps(head).encode()
    body = text + b"".join(array.tobytes() for array in arrays)
    return data[:8] + struct.pack("<II", rng.choice((len(text),) * 9 + (len(text) + 12,)), zlib.crc32(body)) + body


REC = Target(rec_seeds, run_rec, changed_rec)
IDX = Target(idx_seeds, run_idx, changed_idx)
CACHED_INDEX = Target(cache_seeds, run_cache, changed_cache)
