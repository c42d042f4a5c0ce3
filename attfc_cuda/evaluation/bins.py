"""InsightFace's .bin verification sets: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW as its repository ships them."""

from __future__ import annotations

import math
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
# Bytes of a truth value or whole number, by numpy's code; written in little-endian order, as on every usual machine.
_ITEM = {"b1": 1, "?": 1, "u1": 1, "i1": 1, "i2": 2, "u2": 2, "i4": 4, "u4": 4, "i8": 8, "u8": 8}


def read_bin(path: str | os.PathLike, image_size: int = 112) -> VerificationSet:
    """The pairs of a .bin file: a pickle of (2 P encoded images, P booleans), images 2k and 2k + 1 being pair k.

    The images are bytes or uint8 arrays of any shape that has one axis longer than 1; the booleans may be 0 and 1, or
    an array.

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
    if isinstance(value, Array) and what == "booleans" and value.code in _ITEM and _is_row(value.shape):
        size = _ITEM[value.code]
        return [Array((), value.code, value.raw[k : k + size]) for k in range(0, len(value.raw), size)]
    if not isinstance(value, list | tuple):
        raise error("read_bin", str(path), f"hold a list of {what}", type(value).__name__)
    return list(value)


def _image(path: Path, number: int, value: Any) -> bytes:
    if isinstance(value, Array) and value.code == "u1" and _is_row(value.shape):
        value = value.raw
    if not isinstance(value, bytes):
        raise error(
            "read_bin", str(path), "hold encoded images as bytes", f"a {type(value).__name__} as image {number}"
        )
    return value


def _boolean(path: Path, number: int, value: Any) -> bool:
    if isinstance(value, Array) and value.code in _ITEM and math.prod(value.shape) == 1:
        value = int.from_bytes(value.raw, "little")
    if isinstance(value, float) or value not in (0, 1):
        raise error("read_bin", str(path), "hold booleans", f"a {type(value).__name__} as boolean {number}")
    return value == 1


def _is_row(shape: tuple[int, ...]) -> bool:
    """Whether an array is a row of numbers, of whatever number of axes: [N], [N, 1], [1, N]."""
    return len(shape) >= 1 and math.prod(shape) == max(shape)
