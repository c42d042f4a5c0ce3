"""Verification of templates: several images of one person compared as one, the 1:1 protocol of IJB-B and IJB-C."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attfc_cuda._check import error
from attfc_cuda.evaluation.embed import embed_images, pair_similarity, raw_pixel_embeddings
from attfc_cuda.evaluation.sets import TemplateSet
from attfc_cuda.evaluation.verification import VerificationResult, verify

# What IJB papers report.
FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def template_embeddings(
    embeddings: Tensor, template: np.ndarray, media: np.ndarray, weights: np.ndarray | None = None
) -> Tensor:
    """One unit embedding for each template: first the mean over each medium, then the mean over a template's media.

    Equals, for template t: ``normalize(mean([(w * x)[(template == t) & (media == m)].mean(0) for m in its media]))``.
    So a video of a hundred frames counts as much as one photograph.

    Args:
        embeddings: [N, D], of any length: a longer one counts more.
        template: int64 [N], numbered from 0.
        media: int64 [N], numbered in any way; one medium may give images to several templates.
        weights: [N] or None.

    Returns:
        float32 [T, D], T = max(template) + 1; a template without an image is a zero row.

    Source:
        IJB-B (Whitelam et al., CVPRW 2017) for the pooling; InsightFace's IJB evaluation for its order and weights.

    Raises:
        ValueError: for shapes that do not fit or a negative template.
    """
    count = len(embeddings)
    for name, array in (("template", template), ("media", media), ("weights", weights)):
        if array is not None and np.shape(array) != (count,):
            raise error("template_embeddings", name, f"have one entry per embedding, [{count}]", list(np.shape(array)))
    if count and np.min(template) < 0:
        raise error("template_embeddings", "template", "be numbered from 0", int(np.min(template)))
    weighted = embeddings.float()
    if weights is not None:
        weighted = weighted * torch.from_numpy(np.asarray(weights, dtype=np.float32))[:, None]
    both, medium_of = np.unique(np.stack([template, media], axis=1), axis=0, return_inverse=True)
    per_medium = _means(weighted, torch.from_numpy(medium_of.reshape(-1)), len(both))
    templates = int(both[:, 0].max()) + 1 if count else 0
    return F.normalize(_means(per_medium, torch.from_numpy(both[:, 0].copy()), templates), dim=1)


def verify_templates(
    backbone: nn.Module | None, data: TemplateSet, *, flip: bool = True, progress: bool = False, batch_size: int = 256
) -> tuple[VerificationResult, np.ndarray]:
    """Embed every image, pool them to templates and judge the pairs of these.

    Embeddings keep their length and are multiplied by the set's weights before pooling, as InsightFace's defaults do.

    Args:
        backbone: the network; None: the raw pixels.
        data: the templates.
        flip: embed the mirrored image too.
        progress: show a bar.
        batch_size: images at a time.

    Returns:
        The result (TAR at FAR 1e-1 to 1e-6 where the impostors support it; no folds, no accuracy) and the similarity of
        each pair.

    Raises:
        ValueError: as `embed_images`, `template_embeddings` and `verify` do.
        TypeError: as `embed_images` and `verify` do.
    """
    similarity = template_similarity(backbone, data, flip=flip, progress=progress, batch_size=batch_size)
    return verify(similarity, data.pairs.same, None, FALSE_ACCEPT_RATES), similarity


def template_similarity(
    backbone: nn.Module | None, data: TemplateSet, *, flip: bool = True, progress: bool = False, batch_size: int = 256
) -> np.ndarray:
    """The similarity float32 [P] of each pair of templates, see `verify_templates`."""
    if backbone is None:
        embeddings = raw_pixel_embeddings(data.images, batch_size=batch_size, progress=progress)
    else:
        embeddings = embed_images(
            backbone, data.images, flip=flip, unit=False, batch_size=batch_size, progress=progress
        )
    pooled = template_embeddings(embeddings, data.template, data.media, data.weights)
    return pair_similarity(pooled, data.pairs.a, data.pairs.b)


def _means(rows: Tensor, group: Tensor, count: int) -> Tensor:
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, group, rows)
    return sums / torch.bincount(group, minlength=count).clamp(min=1)[:, None]
