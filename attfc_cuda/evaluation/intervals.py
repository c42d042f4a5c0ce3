"""How far the numbers of a verification would move with other people: a bootstrap over identities.

Pairs are not independent: an image takes part in many, an identity in more. So identities are drawn anew, with
replacement, and a pair counts as often as both of its identities were drawn: a genuine pair of identity i weighs w_i,
an impostor pair of i and j weighs w_i w_j (none between two copies of one identity). Nothing is scored again: a
replicate is one pass over the scores with other weights.

Source: Snijders and Borgatti, "Non-parametric standard errors and tests for network statistics", Connections 22 (1999)
for the resampling of nodes; Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007) for its bias: the
variance is right where identities differ, and up to three times too large where it comes from single impostor pairs
(few false accepts). So an interval errs to the wide side there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from attfc_cuda._check import error

REPLICATES = 1000
CONFIDENCE = 0.95
# Impostor pairs kept one by one, from the highest score down; below them one stands for ever more, so that each tenfold
# of the false accept rate holds about 2.3 times as many. The draw adds sqrt(1 / HIGHEST), 1.1 %, to the false accept
# rate of a replicate where identities themselves move it by several per cent.
HIGHEST = 8_000
GENUINE_LIMIT = 200_000
_VALUES_AT_ONCE = 500_000  # weights held at a time: 4 MB, which a cache holds
_ENOUGH_REPLICATES = 0.5  # of them must have pairs of both kinds


class ImpostorSample(NamedTuple):
    """Impostor pairs that stand for all, by descending score.

    Attributes:
        score: [K].
        first: int [K], an identity.
        second: int [K], the other one.
        mass: float64 [K], how many pairs each stands for; summed from the first on, as many as have this score or more
            (within a mass, where pairs were left out).
    """

    score: np.ndarray
    first: np.ndarray
    second: np.ndarray
    mass: np.ndarray


class Interval(NamedTuple):
    """The range from `low` to `high` that holds 95 % of the replicates."""

    low: float
    high: float


def kept_ranks(count: int, highest: int = HIGHEST) -> np.ndarray:
    """Ranks, of `count` by descending score and from 0, to keep: the first `highest` all, then ever fewer, at
    ``highest * exp(k / highest)``; the last one always."""
    if count <= highest:
        return np.arange(count)
    steps = np.arange(1, int(np.log(count / highest) * highest) + 1)
    below = np.floor(highest * np.exp(steps / highest)).astype(np.int64)
    return np.unique(np.concatenate([np.arange(highest), np.minimum(below, count - 1), [count - 1]]))


def sample_impostors(score: np.ndarray, first: np.ndarray, second: np.ndarray) -> ImpostorSample:
    """Those of P impostor pairs that `kept_ranks` names; each stands for itself and for those left out before it.

    Args:
        score: [P].
        first: int [P], identities.
        second: int [P].
    """
    order = np.argsort(-score, kind="stable")
    ranks = kept_ranks(len(order))
    kept = order[ranks]
    return ImpostorSample(score[kept], first[kept], second[kept], np.diff(ranks, prepend=-1).astype(np.float64))


def identities_of_pairs(a: np.ndarray, b: np.ndarray, same: np.ndarray, count: int) -> np.ndarray:
    """Identities [count] of images (or templates) that only pairs tell of: genuine pairs join them, and what no genuine
    pair joins is a person of its own. A person who appears in two unconnected places counts as two."""
    graph = coo_matrix((np.ones(int(same.sum()), dtype=np.int8), (a[same], b[same])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


class IdentityBootstrap:
    """Replicates of TAR and threshold at given false accept rates.

    Args:
        genuine_score: [G].
        genuine_identity: int [G], whose pair each is.
        impostors: all or a sample of the impostor pairs.
        num_identities: how many are drawn a replicate; identities are numbered below it.
        resolution: of the scores, where they were rounded down to multiples of it; 0: they are exact.
        replicates: how many.
        seed: of the draws; the same arguments give the same intervals.

    Raises:
        ValueError: for no pairs of one kind, or identities out of range.
    """

    def __init__(
        self,
        genuine_score: np.ndarray,
        genuine_identity: np.ndarray,
        impostors: ImpostorSample,
        num_identities: int,
        *,
        resolution: float = 0.0,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> None:
        for name, array in (("genuine_score", genuine_score), ("impostors", impostors.score)):
            if len(array) == 0:
                raise error("IdentityBootstrap", name, "hold at least one pair", "none")
        for array in (genuine_identity, impostors.first, impostors.second):
            if array.min() < 0 or array.max() >= num_identities:
                got = f"{array.min()} to {array.max()}"
                raise error("IdentityBootstrap", "identities", f"lie in 0 to {num_identities - 1}", got)
        # Every n-th by rank where there are too many: their distribution stays, to one part in GENUINE_LIMIT.
        order = np.argsort(-genuine_score, kind="stable")
        if len(order) > GENUINE_LIMIT:
            order = order[((np.arange(GENUINE_LIMIT) + 0.5) * len(order) / GENUINE_LIMIT).astype(np.int64)]
        self._genuine, self._owner = genuine_score[order], genuine_identity[order]
        self._impostors, self.num_identities = impostors, num_identities
        self._replicates, self._seed = replicates, seed
        score = impostors.score
        self._end = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # the last pair of each run of ties
        rejected = score[self._end]
        # Genuine pairs that pass where all impostors of this score and below are rejected, and a threshold that does
        # it: halfway to the lowest score above, or a rounded score's upper end.
        self._accepted = np.searchsorted(-self._genuine, -rejected, side="left")
        if resolution:
            self._threshold = rejected.astype(np.float64) + resolution
        else:
            above = np.append(np.inf, rejected[:-1].astype(np.float64))
            genuine_above = np.append(np.inf, self._genuine.astype(np.float64))[self._accepted]
            above = np.minimum(above, genuine_above)
            self._threshold = np.where(np.isinf(above), rejected, (above + rejected) / 2)

    def replicates(self, far: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """TAR and threshold of each replicate at each rate: [R, F] float64 both, R at most the number asked for.
        Replicates without pairs of both kinds are left out."""
        rates = np.asarray(far, dtype=np.float64)
        generator = np.random.default_rng(self._seed)
        values = len(self._impostors.score) + len(self._genuine) + self.num_identities
        at_once = max(1, min(self._replicates, _VALUES_AT_ONCE // values))
        tars, thresholds = [], []
        for start in range(0, self._replicates, at_once):
            weight = _draws(generator, min(at_once, self._replicates - start), self.num_identities)
            impostor_sums = np.cumsum(self._impostor_weights(weight), axis=1)[:, self._end]
            genuine_sums = np.cumsum(weight[:, self._owner], axis=1, dtype=np.float64)
            for impostors, genuine in zip(impostor_sums, genuine_sums, strict=True):
                if impostors[-1] <= 0 or genuine[-1] <= 0:
                    continue
                # As for the list itself: a rate allows a whole number of false accepts.
                allowed = np.floor(rates * impostors[-1] + 1e-9)
                first_rejected = np.searchsorted(impostors, allowed, side="right")
                accepted = self._accepted[first_rejected]
                tars.append(np.where(accepted > 0, genuine[accepted - 1], 0.0) / genuine[-1])
                thresholds.append(self._threshold[first_rejected])
        shape = (-1, len(rates))
        return np.reshape(tars, shape).astype(np.float64), np.reshape(thresholds, shape).astype(np.float64)

    def intervals(self, far: Sequence[float]) -> list[tuple[Interval, Interval] | None]:
        """The intervals of TAR and of the threshold at each rate; None where too few replicates have both kinds of
        pairs, as with two or three identities."""
        if not len(far):
            return []
        tars, thresholds = self.replicates(far)
        if len(tars) < max(2, _ENOUGH_REPLICATES * self._replicates):
            return [None] * len(far)
        ends = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
        tar, threshold = np.quantile(tars, ends, axis=0), np.quantile(thresholds, ends, axis=0)
        return [(Interval(*map(float, t)), Interval(*map(float, s))) for t, s in zip(tar.T, threshold.T, strict=True)]

    def _impostor_weights(self, weight: np.ndarray) -> np.ndarray:
        first, second = self._impostors.first, self._impostors.second
        # A list may contradict itself and call two images of one identity impostors: that pair is drawn with it.
        both = weight[:, first] * np.where(first == second, 1, weight[:, second])
        return both * self._impostors.mass


def _draws(generator: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """How often each of `count` identities is drawn, int32 [rows, count], `count` draws a row."""
    drawn = generator.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.int32)
