"""Data sets by name, for the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.data.faces import FaceDataset
from attfc_cuda.data.procedural.dataset import ProceduralFaces
from attfc_cuda.data.sources.concat import ConcatFaces
from attfc_cuda.data.sources.folders import FolderFaces
from attfc_cuda.data.sources.kinds import Source, find_sources, is_gzip, split_sources
from attfc_cuda.data.sources.lists import ListFaces
from attfc_cuda.data.sources.lmdb import LmdbFaces
from attfc_cuda.data.sources.parquet import ParquetFaces
from attfc_cuda.data.sources.recordio_faces import RecordFaces
from attfc_cuda.data.sources.tar import TarFaces
from attfc_cuda.data.sources.tar_gz import unpacked

_PROCEDURAL = re.compile(r"procedural(?::(\d+)x(\d+)(?:@(\d+))?)?(:hard)?(?::label-noise=(\d*\.?\d+))?")


@renamed_keyword("on_error", "on_bad_image")
def build_dataset(
    spec: str,
    image_size: int = 112,
    identities: str | Sequence[str | os.PathLike | None] | None = None,
    *,
    seed: int = 0,
    on_bad_image: str = "skip",
    cache: bool = False,
    check: bool = False,
    label_field: str = "auto",
) -> FaceDataset:
    """The data set that `spec` names.

    Args:
        spec: "procedural" (200 identities with 8 images), "procedural:200x8", "procedural:50x8@1000" (identities 1000
            to 1049, disjoint from the first 1000), each also with ":hard" and ":label-noise=0.1" behind it (see
            `ProceduralFaces`), or sources separated by commas, each known by what lies there. A
            source is a folder of identities (`FolderFaces`), a .rec file or a folder with a train.rec (`RecordFaces`),
            a list (`ListFaces`), an .lmdb file or a folder with a data.mdb (`LmdbFaces`), or shards: .tar and .tar.gz
            (`TarFaces`; a .tar.gz is unpacked once beside itself) or .parquet (`ParquetFaces`), as files, as a folder
            of them, by a wild card or by braces: "name-{0000..0099}.tar". Several sources are joined: labels go on
            counting.
        image_size: Height and width of the images in pixels.
        identities: For folders, identity lists, one for each folder in the same order, a sequence or separated by
            commas; None or an empty item takes the whole folder.
        seed: Of procedural faces only.
        on_bad_image: Of all but procedural faces, see `FolderFaces`.
        cache: Keep the decoded images in memory.
        check: Of all but procedural faces, see `FolderFaces`.
        label_field: Of tar shards only, see `TarFaces`.

    Returns:
        A `FaceDataset`.

    Raises:
        ValueError: Naming the argument, and those of the data sets.
    """
    if spec.partition(":")[0] == "procedural":
        match = _PROCEDURAL.fullmatch(spec)
        if match is None:
            rule = (
                'be "procedural", or with any of these in this order: '
                '":<identities>x<images>[@<first identity>]", ":hard", ":label-noise=<share>"'
            )
            raise error("build_dataset", "spec", rule, repr(spec))
        if identities:
            raise error("build_dataset", "identities", "be left out for procedural faces", repr(identities))
        *numbers, hard, noise = match.groups()
        count, images, first = (int(text or default) for text, default in zip(numbers, (200, 8, 0), strict=True))
        options: dict[str, Any] = {"hard": hard is not None, "label_noise": float(noise or 0)}
        return ProceduralFaces(count, images, image_size, seed, first_identity=first, cache=cache, **options)
    named = split_sources(spec)
    if not named:
        raise error("build_dataset", "spec", "name procedural faces, folders or files", repr(spec))
    if isinstance(identities, str):
        identities = [item.strip() for item in identities.split(",")]
    lists = None if identities is None else [item or None for item in identities]
    stored: dict[str, Any] = {"on_bad_image": on_bad_image, "cache": cache, "check": check}
    sources = [source for name in named for source in find_sources(name)]
    if {source.kind for source in sources} == {"folder"}:
        return FolderFaces([source.files[0] for source in sources], image_size, lists, **stored)
    if lists and any(lists):
        raise error("build_dataset", "identities", "be left out where a source is no folder", repr(identities))
    parts = [_part(source, image_size, stored, label_field) for source in sources]
    return parts[0] if len(parts) == 1 else ConcatFaces(parts)


def _part(source: Source, image_size: int, options: dict[str, Any], label_field: str) -> FaceDataset:
    first = source.files[0]
    if source.kind in ("tar", "gzip"):
        shards = [unpacked(file) if is_gzip(file) else file for file in source.files]
        return TarFaces(shards, image_size, label_field=label_field, **options)
    if source.kind == "parquet":
        return ParquetFaces(source.files, image_size, **options)
    readers = {"record": RecordFaces, "list": ListFaces, "lmdb": LmdbFaces, "folder": FolderFaces}
    return readers[source.kind](first, image_size, **options)
