"""Image files of all formats that are read, changed field by field with the checksums that fit."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from fuzz_parts import PICTURES, SIZE, Target, check_named
from PIL import Image

from attfc_cuda.data import UnreadableImage, decode_image

_SIDES = (0, 1, 2, 15, 16, 17, 500, 1024, 1025, 8191, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
# Rows of zeros for a whole picture, deflated: what a header's claim costs to store.
_ZEROS = {side: zlib.compress(bytes(side * (4 * side + 1)), 1) for side in (500, 1024, 1025)}
# Byte offset and width of the fields of a BMP's headers.
_BMP_FIELDS = ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4), (50, 4))
_TIFF_TAGS = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 338, 339, 700)


def image_seeds(folder: Path) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = []
    for picture, kind, options in (
        (Image.fromarray(pixels), "JPEG", {"exif": exif, "progressive": True}),
        (Image.fromarray(pixels).convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(pixels).convert("RGBA"), "PNG", {}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (Image.fromarray(pixels).convert("RGBA"), "WEBP", {"lossless": True}),
        (Image.fromarray(pixels).convert("CMYK"), "TIFF", {}),
    ):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        more.append(stream.getvalue())
    return [*PICTURES, *[PICTURES[0]] * 4, *more]


def run_image(data: bytes, folder: Path) -> bool:
    where = str(folder / "an image")
    try:
        assert tuple(decode_image(data, SIZE, where).shape) == (3, SIZE, SIZE)
    except UnreadableImage as cause:
        return check_named(cause, where)
    return True


def changed_image(data: bytes, rng: random.Random) -> bytes:
    """Changed as its format has it; a format that is not known here comes back as it is."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        for start, change in _CHANGES:
            if data.startswith(start):
                data = change(data, rng)
    return data


def _changed_png(data: bytes, rng: random.Random) -> bytes:
    """Chunks: fields of the header, others put in, repeated, left out, moved; pictures of zeros of a claimed size."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = min(int.from_bytes(data[at : at + 4], "big"), len(data) - at - 12)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += 12 + size
    kind, place = rng.randrange(6), rng.randrange(len(chunks))
    if kind < 2 and len(chunks[0][1]) == 13:
        width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
        side = rng.choice((*_SIDES, *_ZEROS, None))
        width, height = ((width, height), (side, side), (side, height), (width, side))[rng.randrange(4) if side else 0]
        depth, colour = rng.choice(((depth, colour), (1, 0), (16, 0), (16, 2), (8, 6), (16, 6), (4, 3), (3, 1), (8, 4)))
        interlace = rng.choice((interlace, 0, 1, 2))
        chunks[0][1] = struct.pack(">IIBBBBB", width or 0, height or 0, depth, colour, 0, 0, interlace)
        if side in _ZEROS:
            chunks = [chunks[0], *([chunk for chunk in chunks if chunk[0] == b"PLTE"]), [b"IDAT", _ZEROS[side]]]
            chunks.append([b"IEND", b""])
    elif kind == 2:
        body = rng.choice((b"", b"\0" * 6, b"\0\1" * 300, b"a\0b", zlib.compress(bytes(2**22)), b"Exif\0\0II*\0"))
        name = rng.choice((b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT"))
        chunks.insert(place, [name, rng.choice((body, b"a\0\0" + body))])
    elif kind == 3:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    elif kind == 4:
        del chunks[place]
    else:
        rows = rng.choice((b"", bytes(10), bytes(SIZE * (3 * SIZE + 1)), bytes([9]) * 2000))
        chunks[place] = [b"IDAT", zlib.compress(rows)]
    pieces = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return data[:8] + b"".join(pieces)


def _changed_jpeg(data: bytes, rng: random.Random) -> bytes:
    """Segments before the scan: the frame's size and components, tables, orders, lengths, tags of a camera."""
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append([data[at + 1], bytearray(data[at + 4 : at + 2 + size])])
        at += 2 + size
    scan = data[at:]
    if not segments:
        return data
    kind, place = rng.randrange(7), rng.randrange(len(segments))
    frames = [segment for segment in segments if 0xC0 <= segment[0] <= 0xC2 and len(segment[1]) > 8]
    if kind < 2 and frames:
        frame = frames[0]
        if rng.random() < 0.5:
            start = rng.choice((1, 3))
            frame[1][start : start + 2] = struct.pack(">H", rng.choice(_SIDES) & 0xFFFF)
        else:
            frame[1][rng.choice((0, 5, 6, 7, 8))] = rng.choice((0, 1, 2, 3, 4, 8, 12, 0x11, 0x22, 0x41, 0xFF))
    elif kind == 2:
        frame = rng.choice(frames or segments)
        frame[0] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xDB, 0xC4, 0xDD))
    elif kind == 3:
        segments.insert(rng.randrange(len(segments)), segments[place])
    elif kind == 4:
        del segments[place]
    elif kind == 5:
        body = rng.choice((b"", b"Adobe\0d\0\0\0\0\2", b"\0\1", b"\0" * 4, b"ICC_PROFILE\0\1\1" + bytes(20)))
        orientation = struct.pack("<HHHIII", 1, 0x0112, 3, 1, rng.choice((0, 3, 5, 8, 9, 2**31)), rng.choice((0, 8)))
        exif = b"Exif\0\0II*\0\x08\0\0\0" + orientation
        segments.insert(place, [rng.choice((0xE1, 0xEE, 0xDD, 0xFE, 0xE2)), bytearray(rng.choice((body, exif)))])
    else:
        body = segments[place][1]
        if body:
            body[rng.randrange(len(body))] = rng.choice((0, 1, 15, 16, 255))
    pieces = [b"\xff%c" % name + struct.pack(">H", len(body) + 2) + body for name, body in segments]
    return data[:2] + b"".join(pieces) + scan


def _changed_bmp(data: bytes, rng: random.Random) -> bytes:
    at, width = rng.choice(_BMP_FIELDS)
    number = rng.choice((*_SIDES, 3, 4, 8, 24, 32, 40, 54, 108, 124, 2**32 - 16, len(data)))
    return data[:at] + (number & 2 ** (8 * width) - 1).to_bytes(width, "little") + data[at + width :]


def _changed_ppm(data: bytes, rng: random.Random) -> bytes:
    tokens = data.split(maxsplit=3)
    if len(tokens) < 4:
        return data
    place = rng.randrange(4)
    if place == 0:
        tokens[0] = rng.choice((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"PF", b"Pf", b"P7", b"PyCMYK"))
    elif place < 3:
        tokens[place] = rng.choice((*(b"%d" % side for side in _SIDES), b"-16", b"1e9", b"# a\n16", b"9" * 30))
    else:
        largest, space, rest = tokens[3].partition(b"\n")
        tokens[3] = rng.choice((b"0", b"1", b"255", b"256", b"65535", b"65536", b"-1")) + space + rest
    return b"\n".join(tokens)


def _changed_webp(data: bytes, rng: random.Random) -> bytes:
    """RIFF's chunks: a header of a claimed canvas, chunks repeated, left out or of another kind, sizes that fit."""
    chunks, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.append([data[at : at + 4], bytearray(data[at + 8 : at + 8 + size])])
        at += 8 + size + size % 2
    if not chunks:
        return data
    kind, place = rng.randrange(5), rng.randrange(len(chunks))
    if kind == 0:
        side = (rng.choice(_SIDES) - 1 & 2**24 - 1).to_bytes(3, "little")
        flags = rng.choice((0, 2, 0x10, 0x12, 0x20, 0x08))
        chunks.insert(0, [b"VP8X", bytearray(bytes([flags, 0, 0, 0]) + side * 2)])
    elif kind == 1:
        chunks.insert(place, chunks[place])
    elif kind == 2:
        body = bytearray(rng.choice((b"", bytes(6), bytes(16), b"Exif\0\0")))
        chunks.insert(place, [rng.choice((b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"XMP ", b"ICCP", b"VP8 ")), body])
    elif kind == 3 and len(chunks[place][1]) > 10:  # the frame's size stands in the first ten bytes
        chunks[place][1][rng.randrange(10)] ^= 1 << rng.randrange(8)
    else:
        chunks[place][0] = rng.choice((b"VP8 ", b"VP8L", b"ALPH"))
    body = b"".join(n + struct.pack("<I", len(b)) + b + bytes(len(b) % 2) for n, b in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _changed_tiff(data: bytes, rng: random.Random) -> bytes:
    """A tag's kind, type, count or value; the place of the list of tags, and its length."""
    tags = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[tags : tags + 2], "little")
    if not 0 < count < 100:
        return data
    changed, tag = bytearray(data), tags + 2 + 12 * rng.randrange(count)
    kind = rng.randrange(6)
    if kind == 0:
        changed[tag : tag + 2] = struct.pack("<H", rng.choice(_TIFF_TAGS))
    elif kind == 1:
        changed[tag + 2 : tag + 4] = struct.pack("<H", rng.randrange(14))
    elif kind == 2:
        changed[tag + 4 : tag + 8] = struct.pack("<I", rng.choice((0, 1, 2, 3, 1000, 2**28, 2**32 - 1)))
    elif kind < 5:
        number = rng.choice((*_SIDES, 3, 4, 5, 6, 7, 8, 32, 32773, 34712, 50000, tags, len(data)))
        changed[tag + 8 : tag + 12] = struct.pack("<I", number)
    else:
        changed[tags : tags + 2] = struct.pack("<H", rng.choice((0, 1, count - 1, count + 1, 500)))
    return bytes(changed)


_CHANGES = (
    (b"\x89PNG", _changed_png), (b"\xff\xd8", _changed_jpeg), (b"BM", _changed_bmp), (b"P", _changed_ppm),
    (b"RIFF", _changed_webp), (b"II*\0", _changed_tiff),
)  # fmt: skip

IMAGE = Target(image_seeds, run_image, changed_image)
