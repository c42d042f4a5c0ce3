"""Verification metrics: from the similarity of P pairs to accuracy, TAR at FAR, EER and AUC.

The ROC and its area are scikit-learn's. What stands here is the protocol around them: the folds, which rates a list of
pairs can support, and the errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import auc, roc_curve

from attfc_cuda._check import error
from attfc_cuda._files import write_text
from attfc_cuda.evaluation.intervals import IdentityBootstrap, Interval

FALSE_ACCEPT_RATES = (1e-2, 1e-3, 1e-4)
FEW_FALSE_ACCEPTS = 10


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold to use, and what it costs.

    Attributes:
        tar: share of the genuine pairs that the threshold accepts.
        threshold: similarity from which two images count as one person; the lowest that keeps the false accept rate,
            halfway to the score below, so that rounding of either decides nothing.
        false_accepts: impostor pairs that it accepts.
        few_impostors: whether fewer than 10 / FAR impostor pairs are there, so that the threshold rests on fewer than
            ten of them: read the interval, not the number.
        tar_interval: that holds 95 % of the bootstrap replicates over identities, in each of which the threshold and
            the rate at it are measured anew; None where no identities are known, or too few.
        threshold_interval: of the threshold, likewise.
    """

    tar: float
    threshold: float
    false_accepts: int
    few_impostors: bool
    tar_interval: Interval | None = None
    threshold_interval: Interval | None = None


@dataclass(frozen=True)
class VerificationResult:
    """What `verify` measured. All rates are fractions in [0, 1].

    Attributes:
        accuracy: mean over the folds of the share of pairs judged right with the threshold chosen on the other folds;
            of all pairs of a data set the mean of both kinds' shares (see `verify_identities`); None where the protocol
            has no folds.
        accuracy_std: its (population) standard deviation over the folds; None likewise.
        threshold: the similarity from which two images count as one person, chosen on ALL pairs: for use, not for
            judging.
        auc: area under the ROC.
        eer: equal error rate, where false accepts and false rejects are equally frequent.
        tar_at_far: true accept rate at each false accept rate the impostor pairs can support.
        num_pairs: pairs of both kinds.
        num_genuine: pairs of one person.
        num_impostors: pairs of two.
        num_folds: of the protocol.
        fold_accuracies: accuracy of each fold, in ascending order of the fold's number.
        at_far: TAR, threshold and their intervals at each rate of tar_at_far.
        num_identities: that the intervals draw from; None where they are not known.
        resolution: of the scores, where they were counted in bins; 0: each score was kept.
        all_pairs: whether the pairs are all that there are among the images.
    """

    accuracy: float | None
    accuracy_std: float | None
    threshold: float
    auc: float
    eer: float
    tar_at_far: dict[float, float]
    num_pairs: int
    num_genuine: int
    num_impostors: int
    num_folds: int
    fold_accuracies: tuple[float, ...]
    at_far: dict[float, OperatingPoint] = field(default_factory=dict)
    num_identities: int | None = None
    resolution: float = 0.0
    all_pairs: bool = False

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON text, rates of tar_at_far and at_far as strings ("0.01").

        Args:
            path: also write it there, at once or not at all, so that an interrupted run leaves the old file or the new
                one, never half of one.
        """
        fields = asdict(self)
        for name in ("tar_at_far", "at_far"):
            fields[name] = {f"{far:g}": value for far, value in fields[name].items()}
        text = json.dumps(fields, indent=2) + "\n"
        if path is not None:
            write_text(Path(path), text)
        return text

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> VerificationResult:
        """The inverse of `to_json`, of its parsed text; null is NaN where there has to be a number.

        Args:
            plain: The fields by name; others are passed over.

        Raises:
            ValueError: For what is no such result, as do LookupError, TypeError and AttributeError.
        """
        given = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
        given |= {name: _number(plain[name]) for name in ("threshold", "auc", "eer")}
        given["tar_at_far"] = {float(far): _number(tar) for far, tar in plain["tar_at_far"].items()}
        given["fold_accuracies"] = tuple(map(_number, plain["fold_accuracies"]))
        given["at_far"] = {float(far): _point(point) for far, point in plain.get("at_far", {}).items()}
        for name in ("num_pairs", "num_genuine", "num_impostors", "num_folds"):
            given[name] = int(plain[name])
        for name in ("accuracy", "accuracy_std"):
            given[name] = None if plain[name] is None else float(plain[name])
        if given.get("num_identities") is not None:
            given["num_identities"] = int(given["num_identities"])
        return cls(**given)

    def summary(self) -> str:
        """One line for a terminal."""
        rates = ", ".join(f"TAR {tar:.3f} at FAR {far:g}" for far, tar in self.tar_at_far.items())
        accuracy = "" if self.accuracy is None else f"accuracy {self.accuracy:.4f} +- {self.accuracy_std:.4f}, "
        folds = f", {self.num_folds} folds" if self.num_folds else ""
        return (
            f"{accuracy}{rates}{', ' if rates else ''}"
            f"EER {self.eer:.4f}, AUC {self.auc:.4f} ({self.num_pairs} pairs{folds})"
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _point(plain: Mapping[str, Any]) -> OperatingPoint:
    return OperatingPoint(
        _number(plain["tar"]),
        _number(plain["threshold"]),
        int(plain["false_accepts"]),
        bool(plain["few_impostors"]),
        _interval(plain["tar_interval"]),
        _interval(plain["threshold_interval"]),
    )


def _interval(ends: Sequence[float | None] | None) -> Interval | None:
    return None if ends is None else Interval(_number(ends[0]), _number(ends[1]))


def verify(
    similarity: ArrayLike,
    same: ArrayLike,
    fold: ArrayLike | None,
    far: Sequence[float] = FALSE_ACCEPT_RATES,
    bootstrap: IdentityBootstrap | None = None,
) -> VerificationResult:
    """Judge the similarities of P pairs of images.

    - Accuracy: for each fold the threshold with the most right answers on the OTHER folds is applied to it (a pair is
      accepted from the threshold on). The threshold lies halfway between the two neighbouring scores; of several
      equally good ones the highest is taken.
    - TAR at FAR f: the highest share of genuine pairs accepted by a threshold that accepts at most the share f of the
      impostor pairs, over all folds. It is reported only if there are at least 1 / f impostor pairs: with fewer, not
      one false accept is allowed and the number belongs to a lower rate. Between 1 / f and 10 / f the threshold rests
      on fewer than ten false accepts: such a number is marked (`OperatingPoint.few_impostors`).
    - EER: where the ROC, joined by straight lines, meets false accepts = false rejects.

    Args:
        similarity: [P] float; higher means more alike (cosine of two embeddings).
        same: [P] bool, genuine pairs.
        fold: [P] integers; None for a protocol without folds (IJB's), which has no accuracy then.
        far: the false accept rates to report the true accept rate at.
        bootstrap: over the identities of these pairs, for the intervals; None: no intervals.

    Source:
        LFW View 2 protocol (Huang et al., UMass TR 07-49, 2007) for the folds; the ROC and AUC are scikit-learn's.

    Raises:
        TypeError: for `same` or `fold` of another kind.
        ValueError: for shapes that differ, no pairs, NaN or infinite similarities, one constant similarity (a collapsed
            embedding: any threshold is as good as any other), pairs of one kind only, fewer than 2 folds, folds without
            which one kind is missing, or a rate outside (0, 1).
    """
    judged, dtype = fold is not None, np.asarray(similarity).dtype
    similarity, same, fold = _checked(similarity, same, np.zeros(np.shape(same), np.int64) if fold is None else fold)
    require_rates("verify", far)
    accuracies = _fold_accuracies(similarity, same, fold) if judged else []
    return measured(similarity, same, far, bootstrap, accuracies, dtype=dtype)


def measured(
    similarity: np.ndarray,
    same: np.ndarray,
    far: Sequence[float],
    bootstrap: IdentityBootstrap | None,
    accuracies: Sequence[float],
    *,
    dtype: np.dtype | None = None,
    count: np.ndarray | None = None,
    resolution: float = 0.0,
    all_pairs: bool = False,
) -> VerificationResult:
    """Everything but the accuracy, of checked scores (see `verify`).

    Args:
        similarity: [P] float64.
        same: [P] bool.
        far: rates.
        bootstrap: as for `verify`.
        accuracies: of the folds.
        dtype: of the scores as they came, which thresholds are numbers of.
        count: [P], how many pairs each entry stands for; None: one.
        resolution: that the scores were rounded down to, 0 for exact ones: thresholds are its multiples then.
        all_pairs: see `VerificationResult`.
    """
    curve = _Curve(similarity, same, count, dtype or similarity.dtype, resolution)
    points = {float(rate): curve.at(rate) for rate in far if supports_rate(curve.num_impostors, rate)}
    intervals = [None] * len(points) if bootstrap is None else bootstrap.intervals(list(points))
    at_far = {
        rate: point if both is None else replace(point, tar_interval=both[0], threshold_interval=both[1])
        for (rate, point), both in zip(points.items(), intervals, strict=True)
    }
    return VerificationResult(
        accuracy=float(np.mean(accuracies)) if len(accuracies) else None,
        accuracy_std=float(np.std(accuracies)) if len(accuracies) else None,
        threshold=curve.best_threshold(),
        auc=float(auc(curve.false_accepts, curve.true_accepts)),
        eer=_equal_error_rate(curve.false_accepts, curve.true_accepts),
        tar_at_far={rate: point.tar for rate, point in at_far.items()},
        num_pairs=curve.num_genuine + curve.num_impostors,
        num_genuine=curve.num_genuine,
        num_impostors=curve.num_impostors,
        num_folds=len(accuracies),
        fold_accuracies=tuple(accuracies),
        at_far=at_far,
        num_identities=None if bootstrap is None else bootstrap.num_identities,
        resolution=resolution,
        all_pairs=all_pairs,
    )


def require_rates(function: str, far: Sequence[float]) -> None:
    """Demand that each rate lies between 0 and 1."""
    for rate in far:
        if not 0.0 < rate < 1.0:
            raise error(function, "far", "lie between 0 and 1, both excluded", rate)


def _fold_accuracies(similarity: np.ndarray, same: np.ndarray, fold: np.ndarray) -> list[float]:
    """The accuracy of each fold with the threshold chosen on the others."""
    folds = np.unique(fold)
    if len(folds) < 2:
        raise error(
            "verify",
            "fold",
            "hold at least 2 different folds",
            f"{len(folds)} ({folds[0]})",
            "the threshold of a fold is chosen on the others; make_pairs deals folds out",
        )
    accuracies = []
    for number in folds:
        inside = fold == number
        if not 0 < same[~inside].sum() < (~inside).sum():
            raise error(
                "verify",
                "same",
                f"hold genuine and impostor pairs outside fold {number}",
                f"{int(same[~inside].sum())} genuine of {int((~inside).sum())} pairs",
                "spread both kinds over the folds",
            )
        threshold = _best_threshold(similarity[~inside], same[~inside])
        accuracies.append(float(np.mean((similarity[inside] >= threshold) == same[inside])))
    return accuracies


def supports_rate(num_impostors: int, rate: float) -> bool:
    """Whether `num_impostors` impostor pairs can support the false accept rate `rate`: at least 1 / rate of them.

    The slack keeps the rounding of the product from deciding."""
    return num_impostors * rate >= 1.0 - 1e-9


def _checked(similarity: ArrayLike, same: ArrayLike, fold: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as arrays [P] of float64, bool and integers, after every check that concerns them as a whole."""
    similarity, same, fold = np.asarray(similarity, dtype=np.float64), np.asarray(same), np.asarray(fold)
    if same.dtype != bool:
        raise error("verify", "same", "be bool", same.dtype, kind=TypeError)
    if not np.issubdtype(fold.dtype, np.integer):
        raise error("verify", "fold", "be integers", fold.dtype, kind=TypeError)
    if similarity.ndim != 1 or len(similarity) == 0:
        raise error("verify", "similarity", "be [P] with at least one pair", f"shape {list(similarity.shape)}")
    for argument, array in (("same", same), ("fold", fold)):
        if array.shape != similarity.shape:
            raise error(
                "verify", argument, f"have one entry per similarity, {list(similarity.shape)}", list(array.shape)
            )
    bad = np.flatnonzero(~np.isfinite(similarity))
    if len(bad):
        raise error(
            "verify",
            "similarity",
            "be finite",
            f"{len(bad)} values that are not, the first {similarity[bad[0]]} at pair {bad[0]}",
            "look for NaN in the embeddings",
        )
    if same.all() or not same.any():
        present, missing = ("genuine", "impostor") if same.all() else ("impostor", "genuine")
        raise error(
            "verify", "same", "hold genuine and impostor pairs", f"{len(same)} {present} and no {missing} pairs"
        )
    if similarity.min() == similarity.max():
        raise error(
            "verify",
            "similarity",
            "take different values",
            f"the constant {similarity[0]:.6g} for every pair",
            "the embedding has collapsed to one point",
        )
    return similarity, same, fold


class _Curve:
    """The ROC of some pairs, and the thresholds along it.

    A threshold is a number of `dtype`, that of the scores as they came, so that written to text, read back and compared
    in that dtype or a wider one it accepts the same pairs. (scikit-learn 1.8 and later give float64 thresholds for any
    scores.)
    """

    def __init__(
        self, similarity: np.ndarray, same: np.ndarray, count: np.ndarray | None, dtype: np.dtype, resolution: float
    ) -> None:
        ones = np.ones(len(same), np.int64) if count is None else count
        self.num_genuine, self.num_impostors = int(ones[same].sum()), int(ones[~same].sum())
        self.false_accepts, self.true_accepts, self.scores = roc_curve(
            same, similarity, sample_weight=count, drop_intermediate=False
        )
        self._number = dtype.type if np.issubdtype(dtype, np.floating) else np.float64
        self._resolution = resolution

    def at(self, rate: float) -> OperatingPoint:
        """The point with the highest true accept rate whose false accepts number at most `rate` of the impostors."""
        accepted = np.rint(self.false_accepts * self.num_impostors)
        point = int(np.flatnonzero(accepted <= np.floor(rate * self.num_impostors + 1e-9))[-1])
        return OperatingPoint(
            tar=float(self.true_accepts[point]),
            threshold=self.threshold(point),
            false_accepts=int(accepted[point]),
            few_impostors=not supports_rate(self.num_impostors, rate / FEW_FALSE_ACCEPTS),
        )

    def best_threshold(self) -> float:
        """The threshold with the most right answers; of several the highest."""
        right = self.true_accepts * self.num_genuine + (1.0 - self.false_accepts) * self.num_impostors
        # Counts are whole numbers but the rates are rounded: without this, rounding would choose among equal ones.
        return self.threshold(int(np.argmax(np.rint(right))))

    def threshold(self, point: int) -> float:
        """A threshold that accepts the scores down to that of `point` of the curve: halfway to the next one below."""
        # Below the lowest score there is no neighbour: accept everything.
        if point + 1 == len(self.scores):
            return float(self.scores[point])
        if self._resolution:  # a score that was rounded down to the next one below may lie above halfway
            return float(self.scores[point + 1] + self._resolution)
        # scores[0] is +inf, accept nothing: just above the highest score will do, and JSON has no infinity.
        if point == 0:
            return float(np.nextafter(self._number(self.scores[1]), self._number(np.inf)))
        # Between neighbouring numbers of the dtype halfway rounds to one of the two, which may be the lower.
        halfway = float(self._number((self.scores[point] + self.scores[point + 1]) / 2))
        return halfway if halfway > self.scores[point + 1] else float(self.scores[point])


def _best_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
    """The threshold with the most right answers, halfway to the next score below it (see verify)."""
    return _Curve(similarity, same, None, similarity.dtype, 0.0).best_threshold()


def _equal_error_rate(false_accepts: np.ndarray, true_accepts: np.ndarray) -> float:
    """False accept rate where the line-joined ROC crosses false accepts = 1 - true accepts.

    Along the curve `gap` falls from 1 to -1 and never rises, so it has one crossing, between `after - 1` and
    `after`."""
    gap = (1.0 - true_accepts) - false_accepts
    after = int(np.argmax(gap <= 0.0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    return float(false_accepts[before] + share * (false_accepts[after] - false_accepts[before]))
