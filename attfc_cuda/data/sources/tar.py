"""Faces from WebDataset shards: tar files in which the files of one sample share a name up to its first dot.

WebDataset itself streams shards; the attention loader needs any image at any time. So the shards are walked once with
Python's tarfile, for the place of each image, and then read in place.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import SlowNotice, UnreadableImage
from attfc_cuda.data.images import IMAGE_EXTENSIONS, MAX_BYTES
from attfc_cuda.data.sources.mapped import DamagedFile, MappedFile
from attfc_cuda.data.sources.stored import StoredFaces

# A label's file holds a number or a small JSON object; a larger one is not read.
_MAX_LABEL_BYTES = 2**16


class TarFaces(StoredFaces):
    """The images of one or several tar shards (not compressed: a place in a compressed file cannot be read by itself).

    shards: the files, in order; brace lists (`train-{0000..0099}.tar`) are for `build_dataset`.
    A sample is an image, `<key>.<jpg, png, ...>`, and its identity: the whole number in `<key>.cls` or at "label" of
    the object in `<key>.json`; without either, the folder of the key (`<identity>/<image>.jpg`). All samples of all
    shards must use the same way.
    image_size, check, cache: as `FolderFaces`. on_bad_image: "skip" leaves out and counts what is damaged or has no
    identity; "raise" makes the first an error.

    `dataset[i]`: uint8 [3, image_size, image_size]; `UnreadableImage` naming the shard, the offset and the member.
    Errors: ValueError for a shard that cannot be read, for none with an image, or (on_bad_image "raise") for damage.
    Source: the WebDataset file format; "label" in the JSON and the folder as identity are our choice.
    """

    @renamed_keyword("on_error", "on_bad_image")
    def __init__(
        self,
        shards: str | os.PathLike | Sequence[str | os.PathLike],
        image_size: int = 112,
        on_bad_image: str = "skip",
        cache: bool = False,
        check: bool = False,
    ):
        super().__init__(image_size, on_bad_image)
        paths = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
        self._shards, self._notice = [], SlowNotice("looking for images")
        places, identities = [], []
        for path in paths:
            try:
                self._shards.append(MappedFile(path))
            except (OSError, DamagedFile) as cause:
                raise error("TarFaces", "shards", "be readable tar files", f"{path} ({cause})") from cause
            for place, identity in self._samples(len(self._shards) - 1):
                places.append(place)
                identities.append(identity)
            self._notice(f"{len(self._shards)} of {len(paths)} shards, {len(places)} images")
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)  # shard, start, length
        if any(isinstance(identity, str) for identity in identities):
            numbered = next((k for k, identity in enumerate(identities) if not isinstance(identity, str)), None)
            if numbered is not None:
                got = f"folders and numbers, e.g. {identities[numbered]} of {self._where(numbered)}"
                raise error("TarFaces", "shards", "give every image its identity in the same way", got)
            names, labels = np.unique(np.array(identities, dtype=object), return_inverse=True)
            self.start(labels, names.tolist(), check=check, cache=cache)
        else:
            self.start(np.array(identities, dtype=np.int64), None, check=check, cache=cache)

    def _samples(self, shard: int) -> Iterator[tuple[tuple[int, int, int], int | str]]:
        """Place and identity of every image of a shard, in its order. Samples lie together, as WebDataset demands."""
        key, image, identity = None, None, None
        for name, start, length in self._members(shard):
            folder, _, file = name.rpartition("/")
            stem, _, extension = file.partition(".")
            if (folder, stem) != key:
                yield from self._sample(shard, key, image, identity)
                key, image, identity = (folder, stem), None, None
            if f".{extension.lower()}" in IMAGE_EXTENSIONS:
                image = (shard, start, length)
            elif extension in ("cls", "json"):
                try:
                    identity = _identity(
                        extension, bytes(self._shards[shard].view(start, min(length, _MAX_LABEL_BYTES)))
                    )
                except (ValueError, RecursionError) as cause:
                    self._damage("samples whose label cannot be read", shard, start, f"hold the label of {name}", cause)
                    key = None
        yield from self._sample(shard, key, image, identity)

    def _sample(
        self, shard: int, key: tuple[str, str] | None, image: tuple[int, int, int] | None, identity: int | None
    ) -> Iterator[tuple[tuple[int, int, int], int | str]]:
        if key is None or image is None:
            return
        folder = PurePosixPath(key[0]).name
        if identity is None and not folder:
            rule = f"give an identity to {key[1]}"
            self._damage("images without an identity", shard, image[1], rule, "no .cls, no .json, no folder")
        else:
            yield image, folder if identity is None else identity

    def _members(self, shard: int) -> Iterator[tuple[str, int, int]]:
        """Name, start and length of each regular file that lies within the shard, until the first damage."""
        file, behind = self._shards[shard], -1
        try:
            with tarfile.open(file.path, "r:") as archive:
                while (member := archive.next()) is not None:
                    if member.offset <= behind:  # a header that points back would be walked for ever
                        raise tarfile.ReadError(f"member {member.name!r} lies before the one it follows")
                    behind = member.offset
                    archive.members = []  # it would keep every member it has seen
                    if not member.isreg() or member.issparse():
                        continue
                    file.view(member.offset_data, member.size)
                    yield member.name.removeprefix("./"), member.offset_data, member.size
                # After the first member a broken header ends the walk in silence; a real end is a block of zeros.
                end = archive.offset
                if any(file.view(end, min(tarfile.BLOCKSIZE, max(file.size - end, 0)))):
                    raise tarfile.ReadError(f"what stands at byte {end} is no header")
        except Exception as cause:  # a hostile header makes tarfile raise nearly any type
            self._damage("damaged ends of shards", shard, max(behind, 0), "be followed by tar members", cause)

    def _damage(self, what: str, shard: int, offset: int, rule: str, got: Any) -> None:
        text = " ".join(str(got).split())[:200]
        damage = self._shards[shard].damaged(offset, rule, f"{type(got).__name__}: {text}")
        if self.on_bad_image == "raise":
            raise error("TarFaces", "shards", "be intact", damage, 'on_bad_image="skip" leaves it out')
        self.skipped.add(what, str(damage))

    def _content(self, item: int) -> bytes:
        shard, start, length = self._places[item].tolist()
        try:
            if length > MAX_BYTES:
                raise self._shards[shard].damaged(start, f"hold an image of at most {MAX_BYTES} bytes", length)
            return bytes(self._shards[shard].view(start, length))
        except DamagedFile as cause:
            raise UnreadableImage(f"TarFaces: {cause}") from cause

    def _where(self, item: int) -> str:
        shard, start, _ = self._places[item].tolist()
        return f"{self._shards[shard].path}, the image at byte {start}"

    def _nothing(self) -> Exception:
        got = ", ".join(str(shard.path) for shard in self._shards) + self.skipped.text("; ")
        return error("TarFaces", "shards", "hold at least one image with an identity", got)


def expand_braces(text: str) -> list[Path]:
    """`a-{08..11}.tar` -> the four paths, numbers as wide as they are written; without braces, the path itself."""
    head, brace, rest = text.partition("{")
    numbers, close, tail = rest.partition("}")
    first, dots, last = numbers.partition("..")
    if not brace:
        return [Path(text)]
    if not (close and dots and first.isdecimal() and last.isdecimal() and int(last) - int(first) < 10**6):
        raise error("build_dataset", "spec", "hold braces as {000..123}", repr(text))
    shards = range(int(first), int(last) + 1)
    return [path for number in shards for path in expand_braces(f"{head}{number:0{len(first)}d}{tail}")]


def _identity(extension: str, content: bytes) -> int:
    label = json.loads(content)
    if extension == "json":
        label = label["label"] if isinstance(label, dict) and "label" in label else None
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 2**62:
        raise ValueError(f"no whole number: {str(label)[:40]}")
    return label
