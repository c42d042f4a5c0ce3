"""Faces from an MXNet RecordIO file, as InsightFace ships MS1MV3, Glint360K and WebFace."""

from __future__ import annotations

import os

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import UnreadableImage
from attfc_cuda.data.sources.checked_file import DamagedFile
from attfc_cuda.data.sources.recordio import RecordFile, whole_label
from attfc_cuda.data.sources.recordio_index import record_index
from attfc_cuda.data.sources.stored import StoredFaces


class RecordFaces(StoredFaces):
    """The images of a .rec file; mxnet is not needed, and the file is only read within its bounds.

    An .idx of the same name beside it gives the order of the images; without one the records are searched for. Both are
    indexed once, see `index_cache`. An identity's name is its number in the file; numbers with gaps are renumbered in
    ascending order. `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage` naming the file and the record's
    offset.

    Args:
        path: The .rec.
        image_size: As for `FolderFaces`.
        cache: As for `FolderFaces`.
        check: As for `FolderFaces`.
        on_bad_image: "skip" leaves out and counts a record that is damaged, holds no image or has no whole number as
            label; "raise" makes the first an error.

    Raises:
        ValueError: For a file that cannot be read, without an image, or (on_bad_image "raise") with anything damaged.

    Source:
        InsightFace's MXFaceDataset; that labels are taken from the images and not from the ranges in record 0 is our
        choice, and they are compared in the report.
    """

    @renamed_keyword("on_error", "on_bad_image")
    def __init__(
        self,
        path: str | os.PathLike,
        image_size: int = 112,
        on_bad_image: str = "skip",
        cache: bool = False,
        check: bool = False,
    ):
        super().__init__(image_size, on_bad_image)
        try:
            self._records = RecordFile(path)
        except (OSError, DamagedFile) as cause:
            raise error("RecordFaces", "path", "be a readable .rec file", f"{path} ({cause})") from cause
        index = record_index(self._records)
        if on_bad_image == "raise":
            for example in index.skipped.examples.values():
                raise error(
                    "RecordFaces", "path", "hold intact records", example, 'on_bad_image="skip" leaves them out'
                )
        self.skipped.update(index.skipped)
        self._facts += index.facts
        self._offsets = index.arrays["offsets"]
        self.start(index.arrays["labels"], None, check=check, cache=cache)
        if not (check or cache):
            self._facts.append("duplicated images: not looked for, check=True reads every image and counts them")

    def _content(self, item: int) -> bytes:
        try:
            offset = int(self._offsets[item])
            face, _ = self._records.face(offset)
            # An index of another file of the same size and time, or bytes that have changed since.
            if self._items is None and str(whole_label(face.labels[0])) != self.identities[self.labels[item]]:
                got = f"{face.labels[0]:g} instead of {self.identities[self.labels[item]]}: has the file changed?"
                raise self._records.file.damaged(offset, "have the label that the index has", got)
        except DamagedFile as cause:
            raise UnreadableImage(f"RecordFaces: {cause}") from cause
        return face.image

    def _where(self, item: int) -> str:
        return f"{self._records.file.path}, the record at byte {self._offsets[item]}"

    def _nothing(self) -> Exception:
        got = f"{self._records.file.path}{self.skipped.text('; ')}"
        return error("RecordFaces", "path", "hold at least one image", got)
