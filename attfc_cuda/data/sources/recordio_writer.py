"""Writes a .rec file with its .idx in InsightFace's layout, and packs any data set of stored images into one."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from attfc_cuda._check import error
from attfc_cuda.data.faces import SlowNotice, UnreadableImage
from attfc_cuda.data.images import decode_image
from attfc_cuda.data.sources.recordio import FIRST, LAST, MAGIC, MAX_LABEL, MAX_LENGTH, MIDDLE, WHOLE
from attfc_cuda.data.sources.skipped import Skipped
from attfc_cuda.data.sources.stored import StoredFaces

JPEG_QUALITY = 95


class RecordWriter:
    """Writes records one after the other; both files appear under their names when all is written, or not at all.

    Use as a context manager: an exception inside leaves what was there before.

    Args:
        path: The .rec; its .idx is written beside it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._targets = [self.path, self.path.with_suffix(".idx")]
        self._parts = [target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in self._targets]

    def __enter__(self) -> RecordWriter:
        self._rec, self._idx = (open(part, "wb") for part in self._parts)  # noqa: SIM115
        return self

    def write(self, key: int, labels: Sequence[float], image: bytes = b"", layout: str = "scalar") -> None:
        """One record. layout "scalar": one label, in the header (flag 0); "vector": any number of labels behind it."""
        self._idx.write(b"%d\t%d\n" % (key, self._rec.tell()))
        self._put(key, labels, image, layout)

    def rewrite_first(self, key: int, labels: Sequence[float]) -> None:
        """Replace the first record, written with this key, as many labels, layout "vector" and no image."""
        self._rec.seek(0)
        self._put(key, labels, b"", "vector")
        self._rec.seek(0, os.SEEK_END)

    def _put(self, key: int, labels: Sequence[float], image: bytes, layout: str) -> None:
        if layout == "scalar":
            data = struct.pack("<IfQQ", 0, labels[0], key, 0) + image
        else:
            data = struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, key, 0, *labels) + image
        pieces = _cut_at_magic(data)
        for number, piece in enumerate(pieces):
            if len(piece) > MAX_LENGTH:
                raise error("RecordWriter", "image", f"be at most {MAX_LENGTH} bytes", len(piece))
            first, last = number == 0, number == len(pieces) - 1
            kind = WHOLE if first and last else FIRST if first else LAST if last else MIDDLE
            self._rec.write(MAGIC + struct.pack("<I", kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in (self._rec, self._idx):
                file.flush()
                os.fsync(file.fileno())
                file.close()
            if kind is None:
                # An .idx that belongs to another .rec would be worse than none, which is only slower to open.
                self._targets[1].unlink(missing_ok=True)
                for part, target in zip(self._parts, self._targets, strict=True):
                    os.replace(part, target)
        finally:
            for part in self._parts:
                part.unlink(missing_ok=True)


def pack(
    dataset: StoredFaces, path: str | os.PathLike, *, image_size: int | None = None, allow_outside: bool = False
) -> str:
    """Write the images of `dataset` into a .rec with its .idx, as InsightFace lays them out.

    Record 0 holds the ranges of keys, then come the images by identity with keys from 1 on, then a record for each
    identity with its range. Where float32 cannot hold such a key (above 2^24) there are only images, from key 0 on:
    readers know both. Each image is decoded before it is taken, so that a file that is none does not get in. The .rec
    appears when all is written, or not at all.

    Args:
        dataset: The images. One that cannot be decoded, or lies outside of the data set's folder, is left out and
            counted, or with the data set's on_bad_image "raise" is an `UnreadableImage`.
        path: The .rec to write.
        image_size: None: images keep their bytes. Else each is decoded, cut to its square, resized and stored as JPEG
            of quality 95.
        allow_outside: Take images that a link or a list's line fetches from outside of the data set's folder.

    Returns:
        A report, a few lines of text.

    Raises:
        ValueError: For a path that does not end in .rec, for more than 2^24 identities.
        UnreadableImage: See `dataset`.
    """
    path = Path(path)
    if path.suffix != ".rec":
        raise error("pack", "path", "end in .rec", path)
    if len(dataset.identities) > MAX_LABEL:
        raise error("pack", "dataset", f"have at most {MAX_LABEL} identities", len(dataset.identities))
    path.parent.mkdir(parents=True, exist_ok=True)
    skipped, notice = Skipped(), SlowNotice(f"packing {path.name}")
    with_header = len(dataset) + len(dataset.identities) + 1 <= MAX_LABEL
    key = int(with_header)
    spans: list[tuple[int, int]] = []
    with RecordWriter(path) as writer:
        if with_header:  # its numbers are known at the end only
            writer.write(0, [0, 0], layout="vector")
        for label in range(len(dataset.identities)):
            first = key
            for index in dataset.images_of(label).tolist():
                try:
                    image = _encoded(dataset, index, image_size, allow_outside)
                except UnreadableImage as failure:
                    if dataset.on_bad_image == "raise":
                        raise
                    skipped.add("images that cannot be read", str(failure))
                    continue
                writer.write(key, [len(spans)], image)
                key += 1
                notice(f"{key} of {len(dataset)} images")
            if key > first:
                spans.append((first, key))
            else:
                skipped.add("identities without a readable image", dataset.identities[label])
        if not spans:
            raise error("pack", "dataset", "hold at least one readable image", "none" + skipped.text("; "))
        if with_header:
            writer.rewrite_first(0, [key, key + len(spans)])
            for number, span in enumerate(spans):
                writer.write(key + number, span, layout="vector")
    count = spans[-1][1] - spans[0][0]
    size = path.stat().st_size / 2**20
    return f"{path}: {count} images of {len(spans)} identities, {size:.1f} MiB{skipped.text(chr(10) + '  ')}"


def _encoded(dataset: StoredFaces, index: int, image_size: int | None, allow_outside: bool) -> bytes:
    if not allow_outside and dataset.outside(index):
        rule, remedy = "lie in the folder of the data set", "allow_outside=True (--allow-outside) takes it all the same"
        raise error("pack", "every image", rule, dataset.where(index), remedy, UnreadableImage)
    content = dataset.content(index)
    picture = decode_image(content, image_size or dataset.image_size, dataset.where(index))
    if image_size is None:
        return content
    pixels = picture.numpy().transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _cut_at_magic(data: bytes) -> list[bytes]:
    """`data` cut where the magic stands at a multiple of 4: a reader that lost its way would take it for a start."""
    pieces, start, at = [], 0, data.find(MAGIC)
    while at >= 0:
        if at % 4 == 0:
            pieces.append(data[start:at])
            start = at + 4
        at = data.find(MAGIC, at + 4 if at % 4 == 0 else at + 1)
    return [*pieces, data[start:]]
