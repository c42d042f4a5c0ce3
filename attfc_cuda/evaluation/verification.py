"""Verification metrics: from the similarity of P pairs to accuracy, TAR at FAR, EER and AUC.

The ROC and its area are scikit-learn's. What stands here is the protocol around them: the folds, which rates a list of
pairs can support, and the errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score, roc_curve

from attfc_cuda._check import error
from attfc_cuda._files import write_text

FALSE_ACCEPT_RATES = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class VerificationResult:
    """What `verify` measured. All rates are fractions in [0, 1].

    Attributes:
        accuracy: mean over the folds of the share of pairs judged right with the threshold chosen on the other folds;
            None where the protocol has no folds.
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

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON text, rates of tar_at_far as strings ("0.01").

        Args:
            path: also write it there, at once or not at all, so that an interrupted run leaves the old file or the new
                one, never half of one.
        """
        fields = asdict(self)
        fields["tar_at_far"] = {f"{far:g}": tar for far, tar in self.tar_at_far.items()}
        text = json.dumps(fields, indent=2) + "\n"
        if path is not None:
            write_text(Path(path), text)
        return text

    def summary(self) -> str:
        """One line for a terminal."""
        rates = ", ".join(f"TAR {tar:.3f} at FAR {far:g}" for far, tar in self.tar_at_far.items())
        accuracy = "" if self.accuracy is None else f"accuracy {self.accuracy:.4f} +- {self.accuracy_std:.4f}, "
        folds = f", {self.num_folds} folds" if self.num_folds else ""
        return (
            f"{accuracy}{rates}{', ' if rates else ''}"
            f"EER {self.eer:.4f}, AUC {self.auc:.4f} ({self.num_pairs} pairs{folds})"
        )


def verify(
    similarity: ArrayLike, same: ArrayLike, fold: ArrayLike | None, far: Sequence[float] = FALSE_ACCEPT_RATES
) -> VerificationResult:
    """Judge the similarities of P pairs of images.

    - Accuracy: for each fold the threshold with the most right answers on the OTHER folds is applied to it (a pair is
      accepted from the threshold on). The threshold lies halfway between the two neighbouring scores; of several
      equally good ones the highest is taken.
    - TAR at FAR f: the highest share of genuine pairs accepted by a threshold that accepts at most the share f of the
      impostor pairs, over all folds. It is reported only if there are at least 1 / f impostor pairs: with fewer, not
      one false accept is allowed and the number belongs to a lower rate. Between 1 / f and 10 / f the threshold rests
      on fewer than ten false accepts: read such a number as coarse.
    - EER: where the ROC, joined by straight lines, meets false accepts = false rejects.

    Args:
        similarity: [P] float; higher means more alike (cosine of two embeddings).
        same: [P] bool, genuine pairs.
        fold: [P] integers; None for a protocol without folds (IJB's), which has no accuracy then.
        far: the false accept rates to report the true accept rate at.

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
    for rate in far:
        if not 0.0 < rate < 1.0:
            raise error("verify", "far", "lie between 0 and 1, both excluded", rate)
    num_genuine, num_impostors = int(same.sum()), int((~same).sum())

    accuracies = _fold_accuracies(similarity, same, fold) if judged else []
    false_accepts, true_accepts, _ = roc_curve(same, similarity, drop_intermediate=False)
    return VerificationResult(
        accuracy=float(np.mean(accuracies)) if judged else None,
        accuracy_std=float(np.std(accuracies)) if judged else None,
        threshold=_best_threshold(similarity, same, dtype),
        auc=float(roc_auc_score(same, similarity)),
        eer=_equal_error_rate(false_accepts, true_accepts),
        tar_at_far={
            float(rate): _true_accept_rate(false_accepts, true_accepts, rate, num_impostors)
            for rate in far
            if supports_rate(num_impostors, rate)
        },
        num_pairs=len(same),
        num_genuine=num_genuine,
        num_impostors=num_impostors,
        num_folds=len(accuracies),
        fold_accuracies=tuple(accuracies),
    )


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


def _best_threshold(similarity: np.ndarray, same: np.ndarray, dtype: np.dtype | None = None) -> float:
    """The threshold with the most right answers, halfway to the next score below it (see verify).

    It is a number of `dtype`, that of the scores as they came (None: of `similarity`), so that written to text, read
    back and compared in that dtype or a wider one it accepts the same pairs. (scikit-learn 1.8 and later give float64
    thresholds for any scores.)
    """
    false_accepts, true_accepts, scores = roc_curve(same, similarity, drop_intermediate=False)
    right = true_accepts * same.sum() + (1.0 - false_accepts) * (~same).sum()
    # Counts are whole numbers but the rates are rounded: without this, rounding would choose among equal thresholds.
    best = int(np.argmax(np.rint(right)))
    dtype = similarity.dtype if dtype is None else dtype
    number = dtype.type if np.issubdtype(dtype, np.floating) else np.float64
    # scores[0] is +inf, accept nothing: just above the highest score will do, and JSON has no infinity. Below the
    # lowest score there is no neighbour: accept everything.
    if best == 0:
        return float(np.nextafter(number(scores[1]), number(np.inf)))
    if best + 1 == len(scores):
        return float(scores[best])
    # Between neighbouring numbers of the dtype halfway rounds to one of the two, which may be the lower.
    halfway = float(number((scores[best] + scores[best + 1]) / 2))
    return halfway if halfway > scores[best + 1] else float(scores[best])


def _true_accept_rate(false_accepts: np.ndarray, true_accepts: np.ndarray, rate: float, num_impostors: int) -> float:
    """The highest true accept rate whose false accepts number at most `rate` of the impostor pairs."""
    allowed = np.floor(rate * num_impostors + 1e-9)
    return float(true_accepts[np.rint(false_accepts * num_impostors) <= allowed].max())


def _equal_error_rate(false_accepts: np.ndarray, true_accepts: np.ndarray) -> float:
    """False accept rate where the line-joined ROC crosses false accepts = 1 - true accepts.

    Along the curve `gap` falls from 1 to -1 and never rises, so it has one crossing, between `after - 1` and
    `after`."""
    gap = (1.0 - true_accepts) - false_accepts
    after = int(np.argmax(gap <= 0.0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    return float(false_accepts[before] + share * (false_accepts[after] - false_accepts[before]))
