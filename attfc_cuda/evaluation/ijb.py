"""IJB-B and IJB-C as InsightFace distributes them: `meta/` lists and the images of `loose_crop/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.data.images import decode_picture, read_image
from attfc_cuda.evaluation.align import align_face
from attfc_cuda.evaluation.pairs import PairIndices
from attfc_cuda.evaluation.sets import TemplateSet

MEDIA, PAIRS, LANDMARKS = "_face_tid_mid.txt", "_template_pair_label.txt", "_name_5pts_score.txt"


class AlignedFaces:
    """Images cut out by their five landmarks when they are asked for; without landmarks, by their central square.

    Raises:
        UnreadableImage: naming an image that cannot be decoded, when it is asked for.
    """

    def __init__(self, paths: list[Path], landmarks: np.ndarray | None, image_size: int) -> None:
        self.paths, self.landmarks, self.image_size = paths, landmarks, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if self.landmarks is None:
            return read_image(self.paths[index], self.image_size)
        picture: Image.Image = decode_picture(self.paths[index])
        return align_face(picture, self.landmarks[index], self.image_size)


def find_ijb(folder: Path) -> str | None:
    """`ijbc` for a folder that holds `meta/ijbc_face_tid_mid.txt`; None where there is no such file."""
    found = sorted((folder / "meta").glob(f"*{MEDIA}"))
    return found[0].name.removesuffix(MEDIA) if found else None


def read_ijb(folder: str | Path, image_size: int = 112) -> TemplateSet:
    """The 1:1 protocol of IJB-B or IJB-C.

    The folder holds, for a name such as `ijbc`,

    - `meta/<name>_face_tid_mid.txt`: on each line `image template medium`,
    - `meta/<name>_template_pair_label.txt`: on each line `template template same`,
    - `meta/<name>_name_5pts_score.txt`: on each line `image x1 y1 .. x5 y5 score`, in the order of the first file,
    - `loose_crop/<image>`.

    Without the third file images are taken as aligned already and all weigh the same; with it they are aligned by
    their landmarks, and the detector's score is the weight of an image. Images are read when they are asked for.

    Args:
        folder: where these lie.
        image_size: side that images are brought to, in pixels.

    Raises:
        ValueError: naming the file and the line for anything else, for a template in a pair that has no image.
        FileNotFoundError: for a list that is not there.
    """
    folder = Path(folder)
    name = find_ijb(folder)
    if name is None:
        rule = f"hold meta/<name>{MEDIA}"
        raise error("read_ijb", "folder", rule, folder, kind=FileNotFoundError)
    files = [folder / "meta" / (name + ending) for ending in (MEDIA, PAIRS, LANDMARKS)]
    media_rows, pair_rows = _rows(files[0], 3), _rows(files[1], 3)
    images = [row[0] for row in media_rows]
    template, media = (_whole(files[0], [row[column] for row in media_rows], column) for column in (1, 2))
    first, second, same = (_whole(files[1], [row[column] for row in pair_rows], column) for column in (0, 1, 2))
    if not np.isin(same, (0, 1)).all():
        line = int(np.flatnonzero(~np.isin(same, (0, 1)))[0])
        raise error("read_ijb", f"row {line + 1} of {files[1]}", "hold 0 or 1 in column 3", int(same[line]))
    # Template numbers have gaps; here they count from 0.
    known, compact = np.unique(template, return_inverse=True)
    for column in (first, second):
        strangers = ~np.isin(column, known)
        if strangers.any():
            line = int(np.flatnonzero(strangers)[0])
            got = f"template {column[line]}, which {files[0].name} lacks"
            raise error("read_ijb", f"row {line + 1} of {files[1]}", "pair templates that have images", got)
    landmarks = weights = None
    if files[2].is_file():
        landmarks, weights = _landmarks(files[2], images)
    pairs = PairIndices(
        np.searchsorted(known, first), np.searchsorted(known, second), same == 1, np.zeros(len(same), np.int64)
    )
    paths = [folder / "loose_crop" / image for image in images]
    return TemplateSet(name, AlignedFaces(paths, landmarks, image_size), compact.reshape(-1), media, weights, pairs)


def _landmarks(path: Path, images: list[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = _rows(path, 12)
    if [row[0] for row in rows] != images:
        both = enumerate(zip(rows, images, strict=False))
        line = next((k for k, (row, image) in both if row[0] != image), min(len(rows), len(images)))
        raise error(
            "read_ijb", f"row {line + 1} of {path}", "name the images in the order of the media list", len(rows)
        )
    try:
        numbers = np.array([row[1:] for row in rows], dtype=np.float64)
    except ValueError as cause:
        raise error("read_ijb", str(path), "hold numbers behind each image", str(cause)) from cause
    if not np.isfinite(numbers).all():
        line = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0])
        raise error("read_ijb", f"row {line + 1} of {path}", "hold finite numbers", numbers[line].tolist())
    with np.errstate(over="ignore"):
        scores = numbers[:, 10].astype(np.float32)
    wrong = (scores < 0) | ~np.isfinite(scores)
    if wrong.any():  # a weight: a negative one would turn an image into its opposite
        line = int(np.flatnonzero(wrong)[0])
        raise error("read_ijb", f"row {line + 1} of {path}", "end in a score of at least 0", f"{numbers[line, 10]:g}")
    return numbers[:, :10].reshape(-1, 5, 2), scores


def _rows(path: Path, columns: int) -> list[list[str]]:
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as cause:
        raise error("read_ijb", "folder", "hold its lists", f"no file {path}", kind=FileNotFoundError) from cause
    except UnicodeDecodeError as cause:
        raise error("read_ijb", str(path), "be UTF-8 text", f"{cause.reason} at byte {cause.start}") from cause
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise error("read_ijb", f"row {number} of {path}", f"hold {columns} columns", len(row))
    if not rows:
        raise error("read_ijb", str(path), "hold at least one row", "none")
    return rows


def _whole(path: Path, column: list[str], number: int) -> np.ndarray:
    for line, text in enumerate(column, start=1):
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            rule = f"hold a whole number in column {number + 1}"
            raise error("read_ijb", f"row {line} of {path}", rule, repr(text[:40]))
    return np.array(column, dtype=np.int64)
