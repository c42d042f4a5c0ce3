"""Faces from WebDataset shards: tar files in which the files of one sample share a name up to its first dot.

WebDataset itself streams shards; the attention loader needs any image at any time. So the headers are walked once, for
the place of each image, and images are read in place.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from attfc_cuda._check import error, printable
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import SlowNotice, UnreadableImage
from attfc_cuda.data.limits import TooLarge, require_bytes
from attfc_cuda.data.sources.checked_file import CheckedFile, DamagedFile
from attfc_cuda.data.sources.stored import StoredFaces
from attfc_cuda.data.sources.tar_members import size_at
from attfc_cuda.data.sources.tar_samples import LABEL_FIELDS, samples


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
        self._shards, notice = [], SlowNotice("looking for images")
        self._ends = np.zeros(len(paths), dtype=np.int64)  # of the shards laid end to end
        places, identities = array("q"), array("q")
        names: dict = {}
        numbered = None  # the first image's way to its identity, and where it stands
        for number, path in enumerate(paths):
            try:
                shard = CheckedFile(path)
            except (OSError, DamagedFile) as cause:
                raise error("TarFaces", "shards", "be readable tar files", f"{path} ({cause})") from cause
            self._shards.append(shard)
            base = int(self._ends[number - 1]) if number else 0
            self._ends[number] = base + shard.size
            for start, identity in samples(shard, label_field, self.skipped.add, self._damage):
                by_number = isinstance(identity, int)
                if numbered is None:
                    numbered = by_number, identity, f"{shard.path}, the image at byte {start}"
                elif numbered[0] != by_number:
                    here = f"{identity} of {shard.path}, the image at byte {start}"
                    got = f"folders and numbers: {numbered[1]} of {numbered[2]}, {here}"
                    rule, remedy = "give every image its identity in the same way", 'label_field="folder" or "cls"'
                    raise error("TarFaces", "shards", rule, got, remedy)
                places.append(base + start)
                identities.append(identity if isinstance(identity, int) else names.setdefault(identity, len(names)))
            notice(f"{len(self._shards)} of {len(paths)} shards, {len(places)} images")
        self._places = np.frombuffer(places, dtype=np.int64) if places else np.empty(0, np.int64)
        labels = np.frombuffer(identities, dtype=np.int64) if identities else np.empty(0, np.int64)
        if names:
            sorted_names = sorted(names)
            rank = np.empty(len(names), dtype=np.int64)
            rank[[names[name] for name in sorted_names]] = np.arange(len(names))
            self.start(rank[labels], sorted_names, check=check, cache=cache)
        else:
            self.start(labels, None, check=check, cache=cache)

    def _damage(self, what: str, shard: CheckedFile, offset: int, rule: str, got: Any) -> None:
        damage = shard.damaged(offset, rule, got)
        if self.on_bad_image == "raise":
            raise error("TarFaces", "shards", "be intact", damage, 'on_bad_image="skip" leaves it out')
        self.skipped.add(what, str(damage))

    def _place(self, item: int) -> tuple[CheckedFile, int]:
        place = int(self._places[item])
        number = int(np.searchsorted(self._ends, place, side="right"))
        return self._shards[number], place - (int(self._ends[number - 1]) if number else 0)

    def _content(self, item: int) -> bytes:
        shard, start = self._place(item)
        try:
            size = size_at(shard, start)
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
