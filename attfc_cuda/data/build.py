"""Data sets by name, for the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from attfc_cuda._check import error
from attfc_cuda.data.faces import FaceDataset
from attfc_cuda.data.folders import FolderFaces
from attfc_cuda.data.procedural import ProceduralFaces

_PROCEDURAL = re.compile(r"procedural(?::(\d+)x(\d+)(?:@(\d+))?)?")


def build_dataset(
    spec: str,
    image_size: int = 112,
    identities: str | Sequence[str | os.PathLike | None] | None = None,
    *,
    seed: int = 0,
    on_error: str = "skip",
    cache: bool = False,
    check: bool = False,
) -> FaceDataset:
    """The data set that `spec` names.

    spec: "procedural" (200 identities with 8 images), "procedural:200x8", "procedural:50x8@1000" (identities 1000 to
    1049, disjoint from the first 1000), or folders of identities separated by commas.
    identities: for folders, identity lists, one for each folder in the same order, a sequence or separated by commas;
    None or an empty item takes the whole folder. seed: procedural faces only. on_error, check: folders only.
    Errors: ValueError naming the argument, and those of `ProceduralFaces` and `FolderFaces`.
    """
    if spec.partition(":")[0] == "procedural":
        match = _PROCEDURAL.fullmatch(spec)
        if match is None:
            rule = 'be "procedural" or "procedural:<identities>x<images>[@<first identity>]"'
            raise error("build_dataset", "spec", rule, repr(spec))
        if identities:
            raise error("build_dataset", "identities", "be left out for procedural faces", repr(identities))
        count, images, first = (int(text or default) for text, default in zip(match.groups(), (200, 8, 0), strict=True))
        return ProceduralFaces(count, images, image_size, seed, first_identity=first, cache=cache)
    roots = [root.strip() for root in spec.split(",") if root.strip()]
    if not roots:
        raise error("build_dataset", "spec", "name procedural faces or folders", repr(spec))
    if isinstance(identities, str):
        identities = [item.strip() for item in identities.split(",")]
    lists = None if identities is None else [item or None for item in identities]
    return FolderFaces(roots, image_size, lists, on_error, cache, check)
