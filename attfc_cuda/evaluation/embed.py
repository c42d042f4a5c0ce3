"""From images to unit embeddings, and from those to the similarity of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset

from attfc_cuda._check import error
from attfc_cuda.data import normalize_images
from attfc_cuda.data.images import read_image
from attfc_cuda.evaluation.pairs import PairIndices, PairList
from attfc_cuda.evaluation.verification import VerificationResult, verify

# Pairs whose products are formed at once: bounds the memory of raw pixels (2 x 37 632 values a pair) to about 80 MB.
PAIRS_AT_ONCE = 256


class ImageSource(Protocol):
    """A data set as this module reads it: uint8 [3, H, W] tensors by number, or an uint8 tensor [N, 3, H, W] itself."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def embed_images(
    backbone: nn.Module,
    images: ImageSource | Sequence[str | Path],
    *,
    flip: bool = True,
    unit: bool = True,
    batch_size: int = 64,
    image_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tensor:
    """Embed every image with `backbone`, in evaluation mode and without gradient.

    Equals, per batch: ``normalize(backbone(x) + backbone(x.flip(-1)))`` with flip=True, ``normalize(backbone(x))``
    without, where ``x = normalize_images(batch)``. The two views are added before normalisation, as InsightFace does,
    so a view the network is unsure of (a short embedding) counts less.

    The backbone is left in the mode it came in. Wrap the call in torch.autocast for half precision.

    Args:
        backbone: the network.
        images: uint8 [N, 3, H, W] tensor, a data set of uint8 [3, H, W], or a list of image files.
        flip: embed the mirrored image too.
        unit: bring each row to unit length; without, an image's embedding keeps its length, as templates weigh it.
        batch_size: images at a time.
        image_size: side that files are resized to, in pixels; default `backbone.image_size`. Tensors and data sets are
            taken as they are.
        device: where to compute; default the backbone's own (it is not moved).
        progress: show a bar.

    Returns:
        float32 [N, D] on the CPU, rows of unit length (a zero embedding stays zero).

    Raises:
        ValueError: for no images, a batch_size below 1, files without an image_size, images of unequal size, a corrupt
            file (naming it), or an embedding that is not finite (naming the image).
        TypeError: for images that are not uint8.
    """
    if batch_size < 1:
        raise error("embed_images", "batch_size", "be at least 1", batch_size)
    if device is None:
        first = next(backbone.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
    if image_size is None:
        image_size = getattr(backbone, "image_size", None)
    was_training = backbone.training
    backbone.eval()
    parts = []
    try:
        with torch.inference_mode():
            for start, batch in _batches("embed_images", images, image_size, batch_size, progress):
                pixels = normalize_images(batch.to(device))
                embeddings = backbone(pixels)
                if flip:
                    embeddings = embeddings + backbone(pixels.flip(-1))
                embeddings = embeddings.float().cpu()
                _check_finite(embeddings, images, start)
                parts.append(F.normalize(embeddings, dim=1) if unit else embeddings)
    finally:
        backbone.train(was_training)
    return torch.cat(parts)  # outside of inference mode, so an ordinary tensor


def raw_pixel_embeddings(
    images: ImageSource | Sequence[str | Path], *, image_size: int = 112, batch_size: int = 64, progress: bool = False
) -> Tensor:
    """The floor every network must clear: the pixels themselves as an embedding.

    Equals: ``normalize(p - p.mean(1))`` with ``p = normalize_images(x).flatten(1)``: all three colours, the image's own
    mean brightness taken off (so that the cosine is the correlation of the pixels, whatever value stands for black), no
    flip averaging. Our choice: without the subtraction the floor is 0.01 to 0.04 lower in accuracy on real faces.

    Args:
        images: as for `embed_images`.
        image_size: side that files are resized to, in pixels.
        batch_size: images at a time.
        progress: show a bar.

    Returns:
        float32 [N, 3 * H * W], rows of unit length (an image of one colour has no direction: a zero row).

    Raises:
        ValueError: as `embed_images` does.
        TypeError: as `embed_images` does.
    """
    if batch_size < 1:
        raise error("raw_pixel_embeddings", "batch_size", "be at least 1", batch_size)
    parts = []
    for _, batch in _batches("raw_pixel_embeddings", images, image_size, batch_size, progress):
        pixels = normalize_images(batch).flatten(1)
        mean = pixels.mean(dim=1, keepdim=True, dtype=torch.float64).float()  # exact where all pixels are equal
        parts.append(F.normalize(pixels - mean, dim=1))
    return torch.cat(parts)


def pair_similarity(embeddings: Tensor, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair.

    Equals: ``(embeddings[a] * embeddings[b]).sum(1)`` for unit rows.

    Args:
        embeddings: [N, D].
        a: int64 [P].
        b: int64 [P].

    Returns:
        float32 [P].
    """
    first, second = torch.from_numpy(np.asarray(a)), torch.from_numpy(np.asarray(b))
    parts = [
        (embeddings[i] * embeddings[j]).sum(1)
        for i, j in zip(first.split(PAIRS_AT_ONCE), second.split(PAIRS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts).numpy()


def verify_backbone(
    backbone: nn.Module, pairs: PairList | PairIndices, dataset: ImageSource | None = None, **options: Any
) -> tuple[VerificationResult, np.ndarray]:
    """Embed the images of `pairs` with `backbone` and judge them: what `attfc verify` and the trainer call.

    Args:
        backbone: the network.
        pairs: a PairList (files), or PairIndices into `dataset`. Each image is embedded once.
        dataset: the images of PairIndices.
        **options: of `embed_images`.

    Returns:
        The result and the similarities [P], from which the plots are made.

    Raises:
        ValueError: as `embed_images` and `verify` do; for PairIndices without a data set, or a data set with a
            PairList.
        TypeError: as `embed_images` and `verify` do.
    """
    if isinstance(pairs, PairList) != (dataset is None):
        raise error(
            "verify_backbone",
            "dataset",
            "come with PairIndices, and only with them",
            f"{type(pairs).__name__} {'without' if dataset is None else 'with'} a data set",
        )
    if isinstance(pairs, PairList):
        images, numbered = pairs.indices()
    else:
        used, position = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
        images = Subset(dataset, used.tolist())  # type: ignore[assignment, arg-type]
        numbered = pairs._replace(a=position[: len(pairs.a)], b=position[len(pairs.a) :])
    similarity = pair_similarity(embed_images(backbone, images, **options), numbered.a, numbered.b)
    return verify(similarity, numbered.same, numbered.fold), similarity


def _batches(
    function: str, images: ImageSource | Sequence[str | Path], image_size: int | None, batch_size: int, progress: bool
) -> Iterator[tuple[int, Tensor]]:
    """Yield (number of the first image, uint8 [<= batch_size, 3, H, W]); files are read as they are needed."""
    if len(images) == 0:
        raise error(function, "images", "hold at least one image", "none")
    starts: Any = range(0, len(images), batch_size)
    if progress:
        from rich.progress import track  # only a terminal needs it

        starts = track(starts, description="embedding")
    for start in starts:
        end = min(start + batch_size, len(images))
        batch = [_as_tensor(function, images[i], image_size) for i in range(start, end)]
        if len({image.shape for image in batch}) > 1:
            raise error(function, "images", "all have one size", sorted({tuple(image.shape) for image in batch}))
        yield start, torch.stack(batch)


def _as_tensor(function: str, image: Any, image_size: int | None) -> Tensor:
    if isinstance(image, (str, Path)):
        if image_size is None:
            raise error(
                function,
                "image_size",
                "be given for image files",
                None,
                "the backbone has no image_size attribute to take it from",
            )
        return read_image(image, image_size)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        raise error(
            function,
            "images",
            "be uint8 tensors or files",
            getattr(image, "dtype", type(image).__name__),
            kind=TypeError,
        )
    if image.dim() != 3 or image.shape[0] != 3:
        raise error(function, "images", "be [3, H, W] each", list(image.shape))
    return image


def _check_finite(embeddings: Tensor, images: ImageSource | Sequence[str | Path], start: int) -> None:
    finite = embeddings.isfinite().all(dim=1)
    if not finite.all():
        number = start + int((~finite).nonzero()[0, 0])
        name = f" ({images[number]})" if isinstance(images[number], (str, Path)) else ""
        raise error("embed_images", "backbone", "give finite embeddings", f"NaN or infinity for image {number}{name}")
