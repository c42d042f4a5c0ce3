"""One network on one verification set, whatever its kind: what `attfc verify`, the trainer and the demo call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from attfc_cuda.evaluation.all_pairs import PairScores, verify_identities
from attfc_cuda.evaluation.embed import embed_images, pair_similarity, raw_pixel_embeddings
from attfc_cuda.evaluation.intervals import IdentityBootstrap, identities_of_pairs, sample_impostors
from attfc_cuda.evaluation.pairs import PairIndices
from attfc_cuda.evaluation.sets import IdentitySet, TemplateSet, VerificationSet
from attfc_cuda.evaluation.templates import FALSE_ACCEPT_RATES as TEMPLATE_RATES
from attfc_cuda.evaluation.templates import template_similarity
from attfc_cuda.evaluation.verification import FALSE_ACCEPT_RATES, VerificationResult, verify

AnySet = VerificationSet | IdentitySet | TemplateSet


class Measured(NamedTuple):
    """What `measure_set` found.

    Attributes:
        result: the numbers.
        scores: of the pairs.
        bootstrap: for intervals at further rates.
        unreadable: how many images were left out.
    """

    result: VerificationResult
    scores: PairScores
    bootstrap: IdentityBootstrap | None
    unreadable: int = 0


def measure_set(
    backbone: nn.Module | None,
    data: AnySet,
    *,
    far: Sequence[float] | None = None,
    flip: bool = True,
    device: torch.device | None = None,
    progress: bool = False,
) -> Measured:
    """Embed each image of a set once and judge its pairs, with intervals by a bootstrap over identities.

    Args:
        backbone: the network; None: the raw pixels.
        data: pairs, images with identities, or templates.
        far: the false accept rates; None: 1e-2 to 1e-4, of templates 1e-1 to 1e-6.
        flip: embed the mirrored image too.
        device: where to compute; None: where the network is.
        progress: show a bar.

    Raises:
        ValueError: as `embed_images`, `verify` and `verify_identities` do.
        TypeError: likewise.
    """
    if isinstance(data, TemplateSet):
        similarity = template_similarity(backbone, data, flip=flip, progress=progress)
        return _judged(similarity, data.pairs, None, None, far or TEMPLATE_RATES)
    if backbone is None:
        embeddings = raw_pixel_embeddings(data.images, progress=progress)
    else:
        embeddings = embed_images(backbone, data.images, flip=flip, batch_size=256, device=device, progress=progress)
    rates = far or FALSE_ACCEPT_RATES
    if isinstance(data, VerificationSet):
        similarity = pair_similarity(embeddings, data.pairs.a, data.pairs.b)
        return _judged(similarity, data.pairs, data.pairs.fold, data.identity, rates)
    identity, unreadable = np.array(data.identity), data.images.unreadable
    identity[list(unreadable)] = -1
    return Measured(*verify_identities(embeddings, identity, rates), len(unreadable))


def pair_bootstrap(
    similarity: np.ndarray, pairs: PairIndices, identity: np.ndarray | None = None
) -> IdentityBootstrap | None:
    """The bootstrap over the identities of a pair list.

    Args:
        similarity: [P].
        pairs: into N images.
        identity: int [N]; None, or at odds with the genuine pairs: as the genuine pairs tell (`identities_of_pairs`).

    Returns:
        It; None where one kind of pair is missing.
    """
    same = pairs.same
    if same.all() or not same.any():
        return None
    if identity is None or not np.array_equal(identity[pairs.a[same]], identity[pairs.b[same]]):
        identity = identities_of_pairs(pairs.a, pairs.b, same, int(max(pairs.a.max(), pairs.b.max())) + 1)
    taking_part, both = np.unique(np.stack([identity[pairs.a], identity[pairs.b]]), return_inverse=True)
    first, second = both.reshape(2, -1)
    impostors = sample_impostors(similarity[~same], first[~same], second[~same])
    return IdentityBootstrap(similarity[same], first[same], impostors, len(taking_part))


def _judged(
    similarity: np.ndarray,
    pairs: PairIndices,
    fold: np.ndarray | None,
    identity: np.ndarray | None,
    far: Sequence[float],
) -> Measured:
    bootstrap = pair_bootstrap(similarity, pairs, identity)
    scores = PairScores(similarity, pairs.same, None, pairs.a, pairs.b, 0.0)
    return Measured(verify(similarity, pairs.same, fold, far, bootstrap), scores, bootstrap)
