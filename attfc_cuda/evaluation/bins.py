"""InsightFace's .bin verification sets: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW as its repository ships them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from attfc_cuda._check import error
from attfc_cuda.data.sources.checked_file import DamagedFile
from attfc_cuda.evaluation.pairs import PairIndices
from attfc_cuda.evaluation.restricted_pickle import Array, read_pickle
from attfc_cuda.evaluation.sets import EncodedImages, VerificationSet

FOLDS = 10


def read_bin(path: str | os.PathLike, image_size: int = 112) -> VerificationSet:
    """The pairs of a .bin file: a pickle of (2 P encoded images, P booleans), images 2k and 2k + 1 being pair k.

    Equals: ``pickle.load(file, encoding="bytes")``, but by a reader that runs nothing (`read_pickle`). Images are kept
    encoded, equal ones once, and decoded when they are asked for. Folds: ten runs of consecutive pairs, as
    InsightFace's KFold(10, shuffle=False) makes them.

    Args:
        path: the file.
        image_size: side that images are decoded to, in pixels.

    Raises:
        ValueError: naming the file (and the offset in it) for a pickle that holds anything else than bytes, lists,
            booleans and numpy arrays, or not such a pair of lists.
        OSError: for a file that cannot be opened.
    """
    path = Path(path)
    try:
        content = read_pickle(path)
    except DamagedFile as cause:
        raise error("read_bin", "path", "be a verification set", str(cause)) from cause
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise error("read_bin", str(path), "hold images and booleans", type(content).__name__)
    images = [_image(path, number, image) for number, image in enumerate(_items(path, "images", content[0]))]
    same = np.array([_boolean(path, k, value) for k, value in enumerate(_items(path, "booleans", content[1]))], bool)
    if len(same) == 0 or len(images) != 2 * len(same):
        raise error("read_bin", str(path), "hold two images for each boolean", f"{len(images)} for {len(same)}")
    number: dict[bytes, int] = {}
    numbers = np.array([number.setdefault(image, len(number)) for image in images], dtype=np.int64)
    folds = min(FOLDS, len(same))
    fold = np.repeat(np.arange(folds), [len(part) for part in np.array_split(np.arange(len(same)), folds)])
    pairs = PairIndices(numbers[0::2], numbers[1::2], same, fold)
    return VerificationSet(path.stem, EncodedImages(list(number), image_size, str(path)), pairs)


def _items(path: Path, what: str, value: Any) -> list[Any]:
    if isinstance(value, Array) and what == "booleans" and value.code in ("b1", "?") and len(value.shape) == 1:
        return [Array((), "b1", value.raw[k : k + 1]) for k in range(len(value.raw))]
    if not isinstance(value, list | tuple):
        raise error("read_bin", str(path), f"hold a list of {what}", type(value).__name__)
    return list(value)


def _image(path: Path, number: int, value: Any) -> bytes:
    if isinstance(value, Array) and value.code == "u1" and len(value.shape) == 1:
        value = value.raw
    if not isinstance(value, bytes):
        raise error(
            "read_bin", str(path), "hold encoded images as bytes", f"a {type(value).__name__} as image {number}"
        )
    return value


def _boolean(path: Path, number: int, value: Any) -> bool:
    if isinstance(value, Array) and value.code in ("b1", "?") and value.shape == ():
        value = value.raw
    if value not in (True, False, b"\x00", b"\x01"):
        raise error("read_bin", str(path), "hold booleans", f"a {type(value).__name__} as boolean {number}")
    return value in (True, b"\x01")
