"""Images with names, from anything: one image, a folder of images, or a data set; and their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attfc_cuda._check import error
from attfc_cuda.data import FaceDataset, StoredFaces, build_dataset, read_image
from attfc_cuda.data.faces import load_all
from attfc_cuda.data.images import IMAGE_EXTENSIONS
from attfc_cuda.data.sources.folder_index import is_hidden
from attfc_cuda.evaluation.build import split_list
from attfc_cuda.evaluation.embed import embed_images
from attfc_cuda.evaluation.fingerprint import MadeBy

_READ_AT_ONCE = 512


class NamedImages(NamedTuple):
    """Images that are read when they are asked for.

    Attributes:
        load: image i, uint8 [3, image_size, image_size]; `UnreadableImage` where it cannot be read.
        names: of the images: files as one would open them, or what else an error would name them by.
        identities: whose each is; "" where the source does not say.
        report: what was found, for a person; "" for plain files.
    """

    load: Callable[[int], Tensor]
    names: list[str]
    identities: list[str]
    report: str


class NamedEmbeddings(NamedTuple):
    """Embeddings, float32 [N, D], with the N names and identities of their images, as in `NamedImages`.

    `unreadable`: what was left out, one message an image. `made_by`: the network, where it is known.
    """

    embeddings: Tensor
    names: list[str]
    identities: list[str]
    unreadable: list[str]
    made_by: MadeBy | None = None


def find_images(spec: str, image_size: int, on_bad_image: str = "skip") -> NamedImages:
    """The images that `spec` names.

    Args:
        spec: An image file, a folder that holds images (and no folders: their images have no identity), or whatever
            `build_dataset` takes; several separated by commas.
        image_size: Side in pixels that they are brought to.
        on_bad_image: As for `build_dataset`.

    Raises:
        ValueError: As `build_dataset` does.
    """
    sources = [spec] if spec.partition(":")[0] == "procedural" else split_list(spec)
    if not sources:
        raise error("find_images", "spec", "name images, folders or files of faces", repr(spec))
    parts = [_find(source, image_size, on_bad_image) for source in sources]
    if len(parts) == 1:
        return parts[0]
    first = np.cumsum([0, *(len(part.names) for part in parts)])

    def load(index: int) -> Tensor:
        part = int(np.searchsorted(first, index, side="right")) - 1
        return parts[part].load(index - int(first[part]))

    return NamedImages(
        load,
        [name for part in parts for name in part.names],
        [identity for part in parts for identity in part.identities],
        "\n".join(part.report for part in parts if part.report),
    )


def embed_named(
    backbone: nn.Module,
    images: NamedImages,
    *,
    on_bad_image: str = "skip",
    flip: bool = True,
    unit: bool = True,
    batch_size: int = 64,
) -> NamedEmbeddings:
    """Embed `images`, as `embed_images` does, reading some hundreds of them at a time.

    Args:
        backbone: The network.
        images: As `find_images` gives them, in the network's size.
        on_bad_image: skip: leave out what cannot be read; raise: stop and name it.
        flip: As for `embed_images`, as are unit and batch_size.
        unit: See there.
        batch_size: See there.

    Raises:
        UnreadableImage: With "raise".
        ValueError: Where no image can be read, and as `embed_images` does.
    """
    size, parts, kept, unreadable = int(backbone.image_size), [], [], []  # type: ignore[arg-type]
    for start in range(0, len(images.names), _READ_AT_ONCE):
        count = min(_READ_AT_ONCE, len(images.names) - start)

        def load(index: int, start: int = start) -> Tensor:
            return images.load(start + index)

        skip = on_bad_image == "skip"
        pixels, readable, failures = load_all(load, count, size, keep=True, task="reading images", skip=skip)
        unreadable += [str(failure) for failure in failures]
        if len(pixels):
            parts.append(embed_images(backbone, pixels, flip=flip, unit=unit, batch_size=batch_size))
            kept += (start + np.flatnonzero(readable)).tolist()
    if not parts:
        raise error("embed_named", "images", "hold one that can be read", unreadable[0] if unreadable else "none")
    names, identities = ([column[i] for i in kept] for column in (images.names, images.identities))
    return NamedEmbeddings(torch.cat(parts), names, identities, unreadable)


def gallery_of(embedded: NamedEmbeddings) -> tuple[Tensor, list[str]]:
    """One unit embedding for each identity, the mean direction of its images, and the identities in the order of their
    first image. Each image counts alike, whatever its embedding's length, so that a network whose exported graph makes
    unit embeddings gives the same answers (`template_embeddings` of IJB sums lengths too).

    Raises:
        ValueError: For images without an identity.
    """
    if "" in embedded.identities:
        name = embedded.names[embedded.identities.index("")]
        remedy = "a folder for each person: GALLERY/NAME/IMAGE"
        raise error("identify", "gallery", "say whose each image is", f"{name}, of nobody", remedy)
    identities = list(dict.fromkeys(embedded.identities))
    place = {identity: number for number, identity in enumerate(identities)}
    group = torch.tensor([place[identity] for identity in embedded.identities])
    sums = torch.zeros(len(identities), embedded.embeddings.shape[1], dtype=torch.float64)
    sums.index_add_(0, group, F.normalize(embedded.embeddings.double(), dim=1))
    return F.normalize(sums, dim=1).float(), identities


def _find(source: str, image_size: int, on_bad_image: str) -> NamedImages:
    path = Path(source)
    if path.is_file() and path.suffix.lower() in IMAGE_EXTENSIONS:
        return _files([path], image_size)
    if path.is_dir():
        inside = sorted(entry for entry in path.iterdir() if not is_hidden(entry.name))
        files = [entry for entry in inside if entry.suffix.lower() in IMAGE_EXTENSIONS and entry.is_file()]
        if files and not any(entry.is_dir() for entry in inside):
            return _files(files, image_size)
    dataset = build_dataset(source, image_size, on_bad_image=on_bad_image)
    labels = dataset.labels.tolist()
    return NamedImages(
        dataset.__getitem__,
        _names(dataset),
        [str(dataset.identities[label]) for label in labels],
        dataset.report(),
    )


def _files(paths: list[Path], image_size: int) -> NamedImages:
    return NamedImages(lambda index: read_image(paths[index], image_size), list(map(str, paths)), [""] * len(paths), "")


def _names(dataset: FaceDataset) -> list[str]:
    if isinstance(dataset, StoredFaces):
        return [dataset.where(index) for index in range(len(dataset))]
    return [f"image {index}" for index in range(len(dataset))]
