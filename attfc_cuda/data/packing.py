"""Packs any data set, stored or drawn, into one .rec file."""

from __future__ import annotations

import io
import os
from contextlib import closing
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from attfc_cuda._check import error
from attfc_cuda.data._checks import checked_int
from attfc_cuda.data.faces import SlowNotice, UnreadableImage
from attfc_cuda.data.images import decode_image
from attfc_cuda.data.procedural.dataset import ProceduralFaces
from attfc_cuda.data.processes import in_processes
from attfc_cuda.data.sources.recordio import MAX_LABEL
from attfc_cuda.data.sources.recordio_writer import RecordWriter
from attfc_cuda.data.sources.skipped import Skipped
from attfc_cuda.data.sources.stored import StoredFaces

JPEG_QUALITY = 95
IMAGES_A_TURN = 64  # of a worker process; what waits to be written stays a few megabytes


def pack(
    dataset: StoredFaces | ProceduralFaces,
    path: str | os.PathLike,
    *,
    image_size: int | None = None,
    allow_outside: bool = False,
    workers: int = 0,
) -> str:
    """Write the images of `dataset` into a .rec with its .idx, as InsightFace lays them out.

    Record 0 holds the ranges of keys, then come the images by identity with keys from 1 on, then a record for each
    identity with its range. Where float32 cannot hold such a key (above 2^24) there are only images, from key 0 on:
    readers know both. Each image is decoded before it is taken, so that a file that is none does not get in. The .rec
    appears when all is written, or not at all, and is the same whatever the number of workers.

    Args:
        dataset: The images. One that cannot be decoded, or lies outside of the data set's folder, is left out and
            counted, or with the data set's on_bad_image "raise" is an `UnreadableImage`.
        path: The .rec to write.
        image_size: None: images keep their bytes, drawn ones are JPEGs of their own size. Else each is decoded, cut to
            its square, resized and stored as JPEG of quality 95; of drawn faces, their own size or None.
        allow_outside: Take images that a link or a list's line fetches from outside of the data set's folder.
        workers: Processes that read, draw and encode; 0: this one.

    Returns:
        A report, a few lines of text.

    Raises:
        ValueError: For a path that does not end in .rec, for more than 2^24 identities, naming the argument.
        UnreadableImage: See `dataset`.
    """
    path = Path(path)
    if path.suffix != ".rec":
        raise error("pack", "path", "end in .rec", path)
    if not isinstance(dataset, (StoredFaces, ProceduralFaces)):
        raise error("pack", "dataset", "hold stored images or drawn faces", type(dataset).__name__, kind=TypeError)
    if len(dataset.identities) > MAX_LABEL:
        raise error("pack", "dataset", f"have at most {MAX_LABEL} identities", len(dataset.identities))
    if isinstance(dataset, ProceduralFaces) and image_size not in (None, dataset.image_size):
        raise error("pack", "image_size", f"be the drawn faces' own, {dataset.image_size}, or None", image_size)
    checked_int("pack", "workers", workers, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    skipped, notice = Skipped(), SlowNotice(f"packing {path.name}")
    with_header = len(dataset) + len(dataset.identities) + 1 <= MAX_LABEL
    key = int(with_header)
    spans: list[tuple[int, int]] = []
    encode = _Encoder(dataset, image_size, allow_outside)
    images = in_processes(encode, len(dataset), workers, a_turn=IMAGES_A_TURN)
    with closing(images), RecordWriter(path) as writer:
        if with_header:  # its numbers are known at the end only
            writer.write(0, [0, 0], layout="vector")
        for label, of_identity in groupby(images, key=lambda item: item[0]):
            first = key
            for _, image in of_identity:
                if isinstance(image, UnreadableImage):
                    if dataset.on_bad_image == "raise":
                        raise image
                    skipped.add("images that cannot be read", str(image))
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


class _Encoder:
    """Slot of `order` -> the image's label and the bytes to store, or why there are none."""

    def __init__(self, dataset: StoredFaces | ProceduralFaces, image_size: int | None, allow_outside: bool) -> None:
        self.dataset, self.image_size, self.allow_outside = dataset, image_size, allow_outside

    def __call__(self, slot: int) -> tuple[int, bytes | UnreadableImage]:
        index = int(self.dataset.images_at(np.array([slot]))[0])
        label = int(self.dataset.labels[index])
        try:
            return label, self._content(index)
        except UnreadableImage as failure:
            return label, failure

    def _content(self, index: int) -> bytes:
        if isinstance(self.dataset, ProceduralFaces):
            return _jpeg(self.dataset[index].numpy())
        if not self.allow_outside and self.dataset.outside(index):
            rule = "lie in the folder of the data set"
            remedy = "allow_outside=True (--allow-outside) takes it all the same"
            raise error("pack", "every image", rule, self.dataset.where(index), remedy, UnreadableImage)
        content = self.dataset.content(index)
        picture = decode_image(content, self.image_size or self.dataset.image_size, self.dataset.where(index))
        return content if self.image_size is None else _jpeg(picture.numpy())


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
