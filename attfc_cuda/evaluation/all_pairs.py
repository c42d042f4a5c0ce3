"""Every pair of images of a data set with identities, scored in tiles: numbers that no draw of pairs decides.

Genuine scores are all kept. Impostor scores are kept up to `EXACT_IMPOSTORS`; of more, of which there may be billions,
each is rounded down to a multiple of `RESOLUTION` and counted. Every number is then exact for the rounded scores, and a
threshold that is a multiple of the resolution accepts the same pairs of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.evaluation.intervals import (
    HIGHEST,
    REPLICATES,
    IdentityBootstrap,
    ImpostorSample,
    sample_impostors,
)
from attfc_cuda.evaluation.verification import FALSE_ACCEPT_RATES, VerificationResult, measured, require_rates

EXACT_IMPOSTORS = 5_000_000
RESOLUTION = 2.0**-16
FOLDS = 10
TILE = 2048  # images on each side of a tile: 16 MB of scores
_BINS = 2 * round(1 / RESOLUTION) + 1  # multiples of RESOLUTION from -1 to 1
_SLACK = 1e-3  # by which the product of rounded unit rows may lie beyond 1


class PairScores(NamedTuple):
    """The scores of all pairs, one entry a pair, or an entry a value where impostors were counted.

    Attributes:
        similarity: [S] float.
        same: bool [S].
        pair_count: int64 [S], the pairs that an entry stands for; None: one each.
        a: int64 [S], an image of the pair; None where there are counts.
        b: int64 [S], the other one; likewise.
        resolution: of the scores, 0 where they are exact.
    """

    similarity: np.ndarray
    same: np.ndarray
    pair_count: np.ndarray | None
    a: np.ndarray | None
    b: np.ndarray | None
    resolution: float


class AllPairs(NamedTuple):
    """What `verify_identities` found.

    Attributes:
        result: the numbers.
        scores: of the pairs.
        bootstrap: for intervals at further rates.
    """

    result: VerificationResult
    scores: PairScores
    bootstrap: IdentityBootstrap


def verify_identities(
    embeddings: Tensor,
    identity: np.ndarray,
    far: Sequence[float] = FALSE_ACCEPT_RATES,
    *,
    exact_impostors: int = EXACT_IMPOSTORS,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> AllPairs:
    """Judge every pair of N images whose identities are known, with intervals by a bootstrap over identities.

    TAR, threshold, EER and AUC are those of `verify` on the list of all N (N - 1) / 2 pairs. The accuracy is the mean
    of the share of genuine and that of impostor pairs judged right (impostors outnumber genuine pairs a hundredfold,
    and would be all that a plain share sees): identities are dealt out to ten folds, fewer where there are few, and
    the pairs within a fold are judged with the threshold that is best on the pairs within the others, to `RESOLUTION`.

    Args:
        embeddings: float [N, D], rows of unit length; on any device.
        identity: integers [N], in any numbering; images with a negative one are left out.
        far: the false accept rates.
        exact_impostors: keep up to this many impostor scores; count more of them in bins of `RESOLUTION`.
        replicates: of the bootstrap.
        seed: of folds and bootstrap.

    Raises:
        ValueError: for shapes that differ, rows that are not finite or longer than 1, fewer than 2 genuine or impostor
            pairs, a constant similarity, or a rate outside (0, 1).
    """
    require_rates("verify_identities", far)
    images, group, rows = _ordered(embeddings, identity)
    counts = np.bincount(group)
    num_genuine = int((counts * (counts - 1) // 2).sum())
    num_impostors = (len(group) ** 2 - int((counts**2).sum())) // 2
    if min(num_genuine, num_impostors) < 2:
        got = f"{num_genuine} genuine and {num_impostors} impostor pairs"
        remedy = "two identities with two images each make two of either kind"
        raise error("verify", "data", "give at least 2 genuine and 2 impostor pairs", got, remedy)
    folds = _Folds(counts, seed)
    genuine: list[_Block] = []
    impostors: list[_Block] = []
    bins = np.zeros(_BINS, np.int64)
    exact = num_impostors <= exact_impostors
    for block, same in _tiles(rows, group):
        folds.add(block, same, group)
        genuine.append(block.where(same))
        if exact:
            impostors.append(block.where(~same))
        else:
            bins += np.bincount(_bin(block.score[~same]), minlength=_BINS)
    own = _joined(genuine)
    if exact:
        others = _joined(impostors)
        scores = PairScores(
            np.concatenate([own.score, others.score]),
            np.repeat([True, False], [len(own.score), len(others.score)]),
            None,
            images[np.concatenate([own.a, others.a])],
            images[np.concatenate([own.b, others.b])],
            0.0,
        )
        sample = sample_impostors(others.score, group[others.a], group[others.b])
        genuine_score = own.score
    else:
        scores = _counted(own.score, bins)
        sample = _sample_of_tiles(rows, group, bins, seed)
        genuine_score = _bin(own.score) * RESOLUTION - 1.0
    if scores.similarity.min() == scores.similarity.max():
        got = f"the constant {scores.similarity[0]:.6g} for every pair"
        remedy = "the embedding has collapsed to one point"
        raise error("verify", "similarity", "take different values", got, remedy)
    bootstrap = IdentityBootstrap(
        genuine_score,
        group[own.a],
        sample,
        len(counts),
        resolution=scores.resolution,
        replicates=replicates,
        seed=seed,
    )
    result = measured(
        scores.similarity.astype(np.float64),
        scores.same,
        far,
        bootstrap,
        folds.accuracies(),
        dtype=scores.similarity.dtype,
        count=scores.pair_count,
        resolution=scores.resolution,
        all_pairs=True,
    )
    return AllPairs(result, scores, bootstrap)


class _Block(NamedTuple):
    """Scores of pairs of rows, all three [P]."""

    score: np.ndarray
    a: np.ndarray
    b: np.ndarray

    def where(self, kept: np.ndarray) -> _Block:
        return _Block(self.score[kept], self.a[kept], self.b[kept])


def _joined(blocks: list[_Block]) -> _Block:
    return _Block(*(np.concatenate(arrays) for arrays in zip(*blocks, strict=True)))


def _ordered(embeddings: Tensor, identity: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """The numbers of the images by identity, their identities numbered from 0, and their embeddings."""
    identity = np.asarray(identity)
    if identity.shape != (len(embeddings),) or embeddings.ndim != 2:
        got = f"{list(embeddings.shape)} and {list(identity.shape)}"
        raise error("verify_identities", "identity", "have one entry per embedding [N, D]", got)
    norms = embeddings.norm(dim=1)
    if not bool(norms.isfinite().all()) or bool((norms > 1 + _SLACK).any()):
        wrong = int((~(norms <= 1 + _SLACK)).nonzero()[0])
        got = f"length {float(norms[wrong]):.6g} in row {wrong}"
        raise error("verify_identities", "embeddings", "have rows of unit length", got, "torch.nn.functional.normalize")
    images = np.argsort(identity, kind="stable")
    images = images[identity[images] >= 0]
    group = np.unique(identity[images], return_inverse=True)[1].reshape(-1)
    return images, group, embeddings[torch.from_numpy(images).to(embeddings.device)]


def _tiles(rows: Tensor, group: np.ndarray) -> Iterator[tuple[_Block, np.ndarray]]:
    """The scores of all pairs, a tile at a time, and whether each is genuine; each pair once."""
    for top in range(0, len(rows), TILE):
        for left in range(top, len(rows), TILE):
            product = (rows[top : top + TILE] @ rows[left : left + TILE].T).cpu().numpy()
            if top == left:
                a, b = np.triu_indices(len(product), k=1)
                score = product[a, b]
            else:
                height, width = product.shape
                score = product.reshape(-1)
                a, b = np.repeat(np.arange(height), width), np.tile(np.arange(width), height)
            block = _Block(score, a + top, b + left)
            yield block, group[block.a] == group[block.b]


def _bin(score: np.ndarray) -> np.ndarray:
    """The number of the multiple of RESOLUTION at or below each score, from 0 for -1."""
    # The product with a power of two is exact in any format, so nothing is rounded up over a bin's edge.
    return np.clip(np.floor(score * (1 / RESOLUTION)).astype(np.int64) + _BINS // 2, 0, _BINS - 1)


def _counted(genuine: np.ndarray, impostor_bins: np.ndarray) -> PairScores:
    genuine_bins = np.bincount(_bin(genuine), minlength=_BINS)
    parts = [(np.flatnonzero(bins), bins, kind) for bins, kind in ((genuine_bins, True), (impostor_bins, False))]
    return PairScores(
        np.concatenate([filled for filled, _, _ in parts]) * RESOLUTION - 1.0,
        np.concatenate([np.full(len(filled), kind) for filled, _, kind in parts]),
        np.concatenate([bins[filled] for filled, bins, _ in parts]),
        None,
        None,
        RESOLUTION,
    )


def _sample_of_tiles(rows: Tensor, group: np.ndarray, bins: np.ndarray, seed: int) -> ImpostorSample:
    """A sample as `sample_impostors` takes it, in a second pass over the tiles: a pair is kept with the probability
    that its rank, known to its bin, calls for."""
    generator = np.random.default_rng(seed)
    at_least = np.cumsum(bins[::-1])[::-1]  # impostors of a bin and of those above
    share = np.minimum(1.0, HIGHEST / np.maximum(at_least, 1))
    kept = []
    for block, same in _tiles(rows, group):
        block = block.where(~same)
        kept.append(block.where(generator.random(len(block.score)) < share[_bin(block.score)]))
    score, a, b = _joined(kept)
    number = _bin(score)
    order = np.argsort(-number, kind="stable")
    number = number[order]
    # A bin's own pairs stand for it in equal parts, and the first bin with a pair in it for the empty ones above.
    filled, sizes = np.unique(-number, return_counts=True)
    mass = np.diff(at_least[-filled], prepend=0) / sizes
    return ImpostorSample(
        number * RESOLUTION - 1.0, group[a[order]], group[b[order]], np.repeat(mass, sizes).astype(np.float64)
    )


class _Folds:
    """Accuracy over folds of identities, from counts of scores in bins: genuine and impostor pairs within each fold."""

    def __init__(self, counts: np.ndarray, seed: int) -> None:
        self.num = min(FOLDS, int((counts > 1).sum()), len(counts) // 2)
        # Dealt out in the order of their sizes, as make_pairs does, so that each fold has its share of the large ones.
        order = np.random.default_rng(seed).permutation(len(counts))
        order = order[np.argsort(-counts[order], kind="stable")]
        self.fold = np.empty(len(counts), np.int64)
        self.fold[order] = np.arange(len(counts)) % max(self.num, 1)
        self._bins = np.zeros((max(self.num, 1), 2, _BINS), np.int64)

    def add(self, block: _Block, same: np.ndarray, group: np.ndarray) -> None:
        if self.num < 2:
            return
        fold = self.fold[group]
        within = fold[block.a] == fold[block.b]
        cell = (fold[block.a[within]] * 2 + same[within]) * _BINS + _bin(block.score[within])
        self._bins += np.bincount(cell, minlength=self._bins.size).reshape(self._bins.shape)

    def accuracies(self) -> list[float]:
        """Of each fold; none where there are too few identities for two folds."""
        if self.num < 2:
            return []
        accepted = np.cumsum(self._bins[..., ::-1], axis=-1)[..., ::-1]  # with each bin's lower end as the threshold
        found = []
        for number in range(self.num):
            right = _balanced(accepted.sum(axis=0) - accepted[number])
            # Of equally good thresholds the middle one, as halfway between two scores.
            best = np.flatnonzero(right >= right.max() - 1e-12)
            run = best[: int(np.argmax(np.append(np.diff(best) > 1, True))) + 1]
            found.append(float(_balanced(accepted[number])[run[len(run) // 2]]))
        return found


def _balanced(accepted: np.ndarray) -> np.ndarray:
    """The mean of both kinds' shares judged right at each threshold, of accepted impostor and genuine pairs [2, T]."""
    impostor, genuine = accepted
    return (genuine / genuine[0] + 1 - impostor / impostor[0]) / 2
