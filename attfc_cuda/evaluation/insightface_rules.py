"""The same scores as InsightFace's evaluation counts them: for comparing with published numbers, not for judging.

Its rules differ from `verify`'s in five places, each restated here from its mathematics:

    threshold     from a grid of squared distances, 0, 0.01, ... for the accuracy and 0, 0.001, ... for TAR; a pair is
                  accepted strictly below it
    folds         ten, by the place of a pair in its list, whatever folds the list names
    TAR           at the threshold that interpolates the other folds' false accept rates, so the fold's own rate may be
                  above or below the one that is named; it is reported beside
    deviation     of accuracies over the folds, as ours, but of folds of its own
    templates     TAR at the point of the ROC whose false accept rate is NEAREST to the one named, which may exceed it

`verify` never exceeds the named rate. docs/howto/verify.md says how far the two lie apart.
Source: InsightFace, recognition/arcface_torch: eval/verification.py and eval_ijbc.py (the rules, not their code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold

from attfc_cuda._check import error

FOLDS = 10
_ACCURACY_GRID = np.arange(0, 4, 0.01)
_TAR_GRID = np.arange(0, 4, 0.001)


@dataclass(frozen=True)
class InsightFaceCounts:
    """What InsightFace prints of a .bin set. All are fractions in [0, 1].

    Attributes:
        accuracy: mean over the ten folds.
        accuracy_std: population standard deviation over the folds.
        tar: mean over the folds of the true accept rate at the interpolated thresholds.
        tar_std: its population standard deviation over the folds.
        far: the false accept rate that those thresholds really have, mean over the folds.
        named_far: the rate that was asked for.
    """

    accuracy: float
    accuracy_std: float
    tar: float
    tar_std: float
    far: float
    named_far: float


def count_as_insightface(similarity: ArrayLike, same: ArrayLike, far: float = 1e-3) -> InsightFaceCounts:
    """Accuracy and TAR of P pairs by the rules for LFW, CFP-FP and AgeDB-30.

    Args:
        similarity: [P] cosines; a distance is 2 - 2 cosine, the squared distance of unit embeddings.
        same: [P] bool, in the order of the list: the folds depend on it.
        far: the false accept rate to interpolate to.

    Returns:
        `InsightFaceCounts`. Of thresholds with equal accuracy the smallest distance is taken. Where a fold's other
        folds never reach `far`, its threshold is 0, which accepts nothing. Of distances at which the rate repeats,
        the largest enters the interpolation (its own, by SciPy's `slinear`, refuses repeated rates: our choice).

    Raises:
        ValueError: fewer than ten pairs, another shape, or a rate outside (0, 1).
    """
    similarity, same = np.asarray(similarity, dtype=np.float64), np.asarray(same, dtype=bool)
    if similarity.ndim != 1 or same.shape != similarity.shape:
        got = f"{list(similarity.shape)} and {list(same.shape)}"
        raise error("count_as_insightface", "same", "have one entry per similarity", got)
    if len(similarity) < FOLDS:
        raise error("count_as_insightface", "similarity", f"hold at least {FOLDS} pairs, one a fold", len(similarity))
    if not 0 < far < 1:
        raise error("count_as_insightface", "far", "lie between 0 and 1, both excluded", far)
    distance = 2 - 2 * similarity
    accuracies, accept_rates, false_rates = [], [], []
    for others, inside in KFold(n_splits=FOLDS, shuffle=False).split(distance):
        right = _right(distance[others], same[others])
        best = _ACCURACY_GRID[int(np.argmax(right))]
        accuracies.append(np.mean((distance[inside] < best) == same[inside]))
        threshold = _interpolated(distance[others][~same[others]], far)
        accepted = distance[inside] < threshold
        accept_rates.append(_share(accepted, same[inside]))
        false_rates.append(_share(accepted, ~same[inside]))
    return InsightFaceCounts(
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        tar=float(np.mean(accept_rates)),
        tar_std=float(np.std(accept_rates)),
        far=float(np.mean(false_rates)),
        named_far=far,
    )


def nearest_tar_at_far(
    similarity: ArrayLike, same: ArrayLike, far: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """TAR of templates by the rule for IJB-B and IJB-C: at the point of the ROC nearest to each false accept rate.

    Args:
        similarity: [P].
        same: [P] bool.
        far: the rates.

    Returns:
        For each rate (true accept rate, the false accept rate that it really has). Of two points equally near the one
        with the higher rate.
    """
    false_accepts, true_accepts, _ = roc_curve(same, similarity)  # its corners only, as theirs
    false_accepts, true_accepts = false_accepts[::-1], true_accepts[::-1]
    nearest = {rate: int(np.argmin(np.abs(false_accepts - rate))) for rate in far}
    return {rate: (float(true_accepts[i]), float(false_accepts[i])) for rate, i in nearest.items()}


def _right(distance: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Pairs judged right at each distance of the grid."""
    genuine, impostors = np.sort(distance[same]), np.sort(distance[~same])
    accepted = np.searchsorted(genuine, _ACCURACY_GRID, side="left")
    return accepted + len(impostors) - np.searchsorted(impostors, _ACCURACY_GRID, side="left")


def _interpolated(impostors: np.ndarray, far: float) -> float:
    """The distance at which the false accept rate, a line between the grid's points, reaches `far`."""
    rates = np.searchsorted(np.sort(impostors), _TAR_GRID, side="left") / max(len(impostors), 1)
    if rates.max() < far:
        return 0.0
    last_of_each = np.append(rates[1:] != rates[:-1], True)
    return float(np.interp(far, rates[last_of_each], _TAR_GRID[last_of_each]))


def _share(accepted: np.ndarray, among: np.ndarray) -> float:
    return float(accepted[among].mean()) if among.any() else 0.0
