"""What one stored image may take, in every reader: a small file that claims much is refused before memory is taken."""

import io
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from attfc_cuda.data import FolderFaces, ListFaces, LmdbFaces, RecordFaces, TarFaces, UnreadableImage, decode_image
from attfc_cuda.data.limits import DEFAULT_PIXELS, TooLarge, require_bytes, require_pixels


def png_of_zeros(side, depth=16, kind=0):
    """A gray (or, kind 2, colour) PNG of zeros, made without holding its pixels."""
    channels = {0: 1, 2: 3, 6: 4}[kind]
    row = bytes(1 + side * channels * depth // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def small_png():
    stream = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), 7, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def as_folder(folder, data):
    (folder / "ann").mkdir()
    (folder / "ann" / "1.png").write_bytes(data)
    return FolderFaces(folder, 16)


def as_list(folder, data):
    (folder / "1.png").write_bytes(data)
    (folder / "l.txt").write_text("1.png 0\n")
    return ListFaces(folder / "l.txt", 16)


def as_tar(folder, data):
    with tarfile.open(folder / "a.tar", "w") as archive:
        member = tarfile.TarInfo("ann/1.png")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return TarFaces(folder / "a.tar", 16)


def as_lmdb(folder, data):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with lmdb.open(str(folder / "db"), map_size=2**26) as env, env.begin(write=True) as transaction:
        transaction.put(b"ann/1", data)
    return LmdbFaces(folder / "db", 16)


def as_record(folder, data):
    from attfc_cuda.data.sources.recordio_writer import RecordWriter

    with RecordWriter(folder / "a.rec") as writer:
        writer.write(0, [0], small_png())
        writer.write(1, [0], data)
    faces = RecordFaces(folder / "a.rec", 16)
    return _Second(faces)


class _Second:
    def __init__(self, faces):
        self.faces = faces

    def __getitem__(self, index):
        return self.faces[1]


READERS = {"folder": as_folder, "list": as_list, "tar": as_tar, "lmdb": as_lmdb, "record": as_record}


@pytest.mark.parametrize("name", list(READERS))
def test_pixels_and_bytes_are_limited_in_every_reader(tmp_path, monkeypatch, name):
    faces = READERS[name](tmp_path, small_png() + bytes(2000))
    assert faces[0].float().mean() == 7
    monkeypatch.setenv("ATTFC_MAX_IMAGE_PIXELS", "100")
    with pytest.raises(UnreadableImage, match=r"12 x 12 pixels, more than 100 \(ATTFC_MAX_IMAGE_PIXELS\)"):
        faces[0]
    monkeypatch.setenv("ATTFC_MAX_IMAGE_PIXELS", "144")
    assert faces[0].float().mean() == 7
    monkeypatch.setenv("ATTFC_MAX_IMAGE_BYTES", "1500")
    with pytest.raises(UnreadableImage, match=r"bytes, more than 1500 \(ATTFC_MAX_IMAGE_BYTES\)"):
        faces[0]


def test_settings_that_are_no_numbers_are_named(monkeypatch):
    for text in ("0", "-1", "1e9", "", "9" * 30):
        monkeypatch.setenv("ATTFC_MAX_IMAGE_BYTES", text)
        with pytest.raises(ValueError, match=f"ATTFC_MAX_IMAGE_BYTES must be a positive whole number, got '{text}'"):
            require_bytes(1)
    monkeypatch.delenv("ATTFC_MAX_IMAGE_BYTES")
    require_bytes(2**27)
    require_pixels(2**12, 2**13)
    for refused in (lambda: require_bytes(2**27 + 1), lambda: require_pixels(2**12, 2**13 + 1)):
        with pytest.raises(TooLarge):
            refused()


SCRIPT = """
import resource, sys
from attfc_cuda.data import RecordFaces, UnreadableImage, decode_image
import attfc_cuda.data.images
data = open(sys.argv[2], "rb").read()
decode_image(open(sys.argv[3], "rb").read(), 16, "warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    if sys.argv[1] == "image":
        decode_image(data, 16, "x")
    else:
        RecordFaces(sys.argv[2], 16).report()
except (UnreadableImage, ValueError) as cause:
    print(cause, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def more_memory_mib(tmp_path, kind, path):
    (tmp_path / "small.png").write_bytes(small_png())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, path, tmp_path / "small.png"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024, done.stderr


@pytest.mark.parametrize(
    ("depth", "kind", "bytes_a_pixel"), [pytest.param(16, 0, 16, marks=pytest.mark.proof), (8, 6, 16)]
)
def test_memory_of_a_compressed_bomb(tmp_path, depth, kind, bytes_a_pixel):
    (tmp_path / "bomb.png").write_bytes(png_of_zeros(8191, depth, kind))
    assert (tmp_path / "bomb.png").stat().st_size < 400_000
    memory, error = more_memory_mib(tmp_path, "image", tmp_path / "bomb.png")
    assert "8191 x 8191 pixels, more than" in error and memory < 64
    side = int(DEFAULT_PIXELS**0.5)
    (tmp_path / "largest.png").write_bytes(png_of_zeros(side, depth, kind))
    memory, error = more_memory_mib(tmp_path, "image", tmp_path / "largest.png")
    assert error == "" and memory < bytes_a_pixel * side**2 / 2**20 + 64


def test_memory_of_a_record_in_many_parts(tmp_path):
    path, part = tmp_path / "a.rec", 2**26
    with open(path, "wb") as file:  # a sparse file of kilobytes on the disk, gigabytes by its headers
        for kind in (1, 2, 2, 2, 2, 3):
            file.write(struct.pack("<II", 0xCED7230A, kind << 29 | part))
            file.seek(part, io.SEEK_CUR)
        file.truncate()
    memory, _ = more_memory_mib(tmp_path, "record", path)
    assert memory < 3 * 128 + 64


def test_16_bit_grayscale_keeps_its_upper_bits():
    values = np.array([[0, 255, 256, 511], [32768, 40000, 65280, 65535]], np.uint16).repeat(4, 0).repeat(2, 1)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    assert np.array_equal(decode_image(stream.getvalue(), 8, "x")[1].numpy(), values >> 8)
