"""What is fuzzed: for each kind of file some whole ones to start from, and what reading a changed one must not do.

`TARGETS[name]` is (seeds, run): `seeds(folder)` gives whole files as bytes, `run(data, folder)` reads the changed one
as a user would and returns whether it was read at all. Only errors that name the file may leave `run`.
"""

import io
import json
import os
import pickle
import random
import struct
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from attfc_cuda._check import printable
from attfc_cuda.data import ListFaces, LmdbFaces, RecordFaces, TarFaces, UnreadableImage, decode_image
from attfc_cuda.data.sources.lmdb import lmdb
from attfc_cuda.data.sources.recordio import MAGIC
from attfc_cuda.data.sources.recordio_writer import RecordWriter
from attfc_cuda.evaluation import read_bin, read_ijb, read_pairs

SIZE = 16


def picture(kind: str, value: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


PICTURES = [picture(kind, k) for k, kind in enumerate(("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF"))]
FACES = PICTURES[:1] * 2 + PICTURES[:2] + PICTURES[1:2]


def check_named(cause: Exception, path: Path) -> bool:
    if printable(str(path)) not in str(cause):
        raise AssertionError(f"the error does not name {path}: {cause!r}") from cause
    return False


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
    (folder / "a.rec").write_bytes(data)
    return drain(strictly_too(RecordFaces), folder / "a.rec")


def run_rec_with_idx(data: bytes, folder: Path) -> bool:
    path = folder / "whole.rec"
    if not path.with_suffix(".idx").exists():
        rec_seeds(folder)
        os.replace(folder / "seed.idx", path.with_suffix(".idx"))
    path.write_bytes(data)
    return drain(strictly_too(RecordFaces), path)


def idx_seeds(folder: Path) -> list[bytes]:
    rec_seeds(folder)
    return [(folder / "seed.idx").read_bytes()]


def run_idx(data: bytes, folder: Path) -> bool:
    path = folder / "indexed.rec"
    if not path.exists():
        path.write_bytes(rec_seeds(folder)[1])
    path.with_suffix(".idx").write_bytes(data)
    path.with_name("indexed.rec.attfc_index").unlink(missing_ok=True)
    return drain(strictly_too(RecordFaces), path)


def cache_seeds(folder: Path) -> list[bytes]:
    path = folder / "cached.rec"
    path.write_bytes(rec_seeds(folder)[0])
    RecordFaces(path, SIZE)
    return [path.with_name("cached.rec.attfc_index").read_bytes()]


def run_cache(data: bytes, folder: Path) -> bool:
    """The cached index, with a checksum that fits: as one would be that someone forged."""
    data = data[:12] + struct.pack("<I", __import__("zlib").crc32(data[16:])) + data[16:] if len(data) > 16 else data
    (folder / "cached.rec.attfc_index").write_bytes(data)
    return drain(strictly_too(RecordFaces), folder / "cached.rec")


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
    (folder / "a.tar").write_bytes(data)
    return drain(strictly_too(TarFaces), folder / "a.tar")


def lmdb_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for count in (3, 200):
        path = folder / f"seed{count}.lmdb"
        with lmdb.open(str(path), map_size=2**22, subdir=False) as env, env.begin(write=True) as transaction:
            for k in range(count):
                transaction.put(b"id%d/%d" % (k % 7, k), PICTURES[0] + bytes(5000 * (k == 1)))
        seeds.append(path.read_bytes())
    return seeds


def run_lmdb(data: bytes, folder: Path) -> bool:
    (folder / "a.lmdb").write_bytes(data)
    return drain(strictly_too(LmdbFaces), folder / "a.lmdb")


def image_seeds(folder: Path) -> list[bytes]:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", exif=exif, progressive=True)
    return [*PICTURES, *[PICTURES[0]] * 6, stream.getvalue()]


def run_image(data: bytes, folder: Path) -> bool:
    where = str(folder / "an image")
    try:
        assert tuple(decode_image(data, SIZE, where).shape) == (3, SIZE, SIZE)
    except UnreadableImage as cause:
        return check_named(cause, where)
    return True


def list_seeds(folder: Path) -> list[bytes]:
    (folder / "face.png").write_bytes(PICTURES[1])
    return [
        b"face.png 0\nface.png\t1\n# no\nnone.png 5\n",
        b"1\t1\nann\t1\t2\nann\t1\tben\t1\n",
        b"a\tb\t1\t3\nc\td\t0\t1\n",
    ]


def run_list(data: bytes, folder: Path) -> bool:
    """A list of faces; and the same bytes as a pair list and as IJB's lists."""
    path = folder / "meta" / "x_face_tid_mid.txt"
    path.parent.mkdir(exist_ok=True)
    for name in ("x_face_tid_mid.txt", "x_template_pair_label.txt", "x_name_5pts_score.txt"):
        (path.parent / name).write_bytes(data)
    for read in (lambda: read_pairs(path, folder, check_files=False), lambda: read_ijb(folder)):
        try:
            read()
        except ValueError as cause:
            check_named(cause, path.parent)
    (folder / "a.txt").write_bytes(data)
    return drain(strictly_too(ListFaces), folder / "a.txt")


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
                (b"._1.jpg", b"a/b/../c.jpg", b"1.jpg", b"1.JPG", b"x/1.cls", b"1.a.png", b".", b"/", b"a/")
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


# Besides bytes anywhere: changes that keep the structure whole, so that what lies behind the first checks is met.
STRUCTURED = {"tar": changed_tar, "rec": changed_rec, "rec with idx": changed_rec}

TARGETS = {
    "rec": (rec_seeds, run_rec),
    "rec with idx": (rec_seeds, run_rec_with_idx),
    "idx": (idx_seeds, run_idx),
    "cached index": (cache_seeds, run_cache),
    "bin": (bin_seeds, run_bin),
    "tar": (tar_seeds, run_tar),
    "image": (image_seeds, run_image),
    "lists": (list_seeds, run_list),
}
if lmdb is not None:
    TARGETS["lmdb"] = (lmdb_seeds, run_lmdb)
# An LMDB input starts a process of its own.
SHARES = {"lmdb": 0.03, "image": 0.3}

warnings.simplefilter("ignore")  # Pillow has many for damaged images
