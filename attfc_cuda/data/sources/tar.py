"""Faces from WebDataset shards: tar files in which the files of one sample share a name up to its first dot.

WebDataset itself streams shards; the attention loader needs any image at any time. So the headers are walked once, for
the place of each image, and images are read in place; where they are is kept beside each shard (`tar_index`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from attfc_cuda._check import error, printable
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import SlowNotice, UnreadableImage
from attfc_cuda.data.limits import TooLarge, require_bytes
from attfc_cuda.data.sources.checked_file import CheckedFile, DamagedFile
from attfc_cuda.data.sources.stored import StoredFaces
from attfc_cuda.data.sources.tar_index import ShardIndex, mixed, shard_indexes
from attfc_cuda.data.sources.tar_members import BLOCK, header_at
from attfc_cuda.data.sources.tar_samples import LABEL_FIELDS


class TarFaces(StoredFaces):
    """The images of one or several tar shards (not compressed: a place in a compressed file cannot be read by itself).

    A sample is what shares a folder and a name up to its first dot, and lies together, as WebDataset demands. Its image
    is `<key>.<jpg, png, ...>`; where it has none, every field that ends so is one (`<key>.left.jpg`, or names with dots
    such as `A.B_0001.jpg`). Its identity is the whole number in `<key>.cls`, or at "label" of the object in
    `<key>.json`; without either, the folder of the key (`<identity>/<image>.jpg`). All samples of all shards must use
    the same way. A field that comes again begins the next sample. Hard and symbolic links are read as the member of the
    shard that they lead to. Whatever else is not taken is counted in the report: a second image of a sample, links that
    lead nowhere, hidden files, sparse files. `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage` naming
    the shard, the offset and the member.

    Args:
        shards: The files, in order; brace lists (`train-{0000..0099}.tar`) are for `build_dataset`.
        image_size: As for `FolderFaces`.
        cache: As for `FolderFaces`.
        check: As for `FolderFaces`.
        on_bad_image: "skip" leaves out and counts what is damaged or has no identity; "raise" makes the first an error.
        label_field: Where a sample's identity stands: "cls", "json", "folder", or "auto" for the first of these that is
            there; then a sample whose .cls and .json name different labels is an error.

    Raises:
        ValueError: For a shard that cannot be read, for none with an image, for samples that contradict themselves or
            each other, or (on_bad_image "raise") for damage.

    Source:
        The WebDataset file format; "label" in the JSON, the folder as identity and several images a sample are our
        choice.
    """

    @renamed_keyword("on_error", "on_bad_image")
    def __init__(
        self,
        shards: str | os.PathLike | Sequence[str | os.PathLike],
        image_size: int = 112,
        on_bad_image: str = "skip",
        cache: bool = False,
        check: bool = False,
        label_field: str = "auto",
    ):
        super().__init__(image_size, on_bad_image)
        if label_field not in LABEL_FIELDS:
            raise error("TarFaces", "label_field", f"be one of {', '.join(LABEL_FIELDS)}", repr(label_field))
        paths = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
        self._shards = []
        for path in paths:
            try:
                self._shards.append(CheckedFile(path))
            except (OSError, DamagedFile) as cause:
                raise error("TarFaces", "shards", "be readable tar files", f"{path} ({cause})") from cause
        notice = SlowNotice("looking for images")

        def tell(shards: int, images: int) -> None:
            notice(f"{shards} of {len(paths)} shards, {images} images")

        indexes = shard_indexes(self._shards, label_field, on_bad_image == "raise", tell)
        for index in indexes:
            self.skipped.update(index.skipped)
        self._ends = np.cumsum([shard.size for shard in self._shards], dtype=np.int64)  # of the shards laid end to end
        bases = [0, *self._ends[:-1].tolist()]
        starts = [index.starts + base for index, base in zip(indexes, bases, strict=False)]
        self._places = np.concatenate([np.empty(0, np.int64), *starts])
        self._checks = np.concatenate([np.empty(0, np.uint8), *(index.checks for index in indexes)])
        labels, names = self._identities(indexes)
        self.start(labels, names, check=check, cache=cache)

    def _identities(self, indexes: list[ShardIndex]) -> tuple[np.ndarray, list[str] | None]:
        """The label of each image, and the names in order; None where identities are numbers."""
        filled = [k for k, index in enumerate(indexes) if len(index.starts)]
        for k in filled:
            if (indexes[k].names is None) != (indexes[filled[0]].names is None):
                first, here = (indexes[i].first(self._shards[i].path) for i in (filled[0], k))
                raise mixed(first, here)
        parts = [np.empty(0, np.int32)]
        if not filled or indexes[filled[0]].names is None:
            return np.concatenate([*parts, *(indexes[k].identities for k in filled)]), None
        names = sorted({name for k in filled for name in indexes[k].names or ()})
        rank = {name: place for place, name in enumerate(names)}
        for k in filled:
            own = np.array([rank[name] for name in indexes[k].names or ()], dtype=np.int32)
            parts.append(own[indexes[k].identities])
        return np.concatenate(parts), names

    def _place(self, item: int) -> tuple[CheckedFile, int]:
        place = int(self._places[item])
        number = int(np.searchsorted(self._ends, place, side="right"))
        return self._shards[number], place - (int(self._ends[number - 1]) if number else 0)

    def _content(self, item: int) -> bytes:
        shard, start = self._place(item)
        try:
            size, check = header_at(shard, start)
            if check != self._checks[item]:
                raise shard.damaged(start - BLOCK, "be the header that was indexed", "another: has the shard changed?")
            require_bytes(size)
            return shard.read(start, size)
        except (DamagedFile, TooLarge) as cause:
            text = str(cause) if str(shard.path) in str(cause) else f"{self._where(item)} ({cause})"
            raise UnreadableImage(printable(f"TarFaces: {text}")) from cause

    def _where(self, item: int) -> str:
        shard, start = self._place(item)
        return f"{shard.path}, the image at byte {start}"

    def _nothing(self) -> Exception:
        got = ", ".join(str(shard.path) for shard in self._shards) + self.skipped.text("; ")
        return error("TarFaces", "shards", "hold at least one image with an identity", got)
