"""What a validation shows beside verification: the run so far and cosines to centres as pictures, and warnings that
the latter mislead or that the run loses what it had learned."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attfc_cuda._deprecated import renamed_attributes
from attfc_cuda._files import replacing
from attfc_cuda.evaluation import VerificationResult, plot_cosines, plot_training
from attfc_cuda.heads.attfc import CosineSample
from attfc_cuda.train.best import described
from attfc_cuda.train.log import RunLog, read_log
from attfc_cuda.train.manifest import Manifest
from attfc_cuda.train.run_folder import LOG

SATURATED = 0.8  # mean cosine to the own centre
GOOD = 0.95  # accuracy from which there is nothing to warn of
RISE = 0.002  # accuracy: less than this is no rise
FALL = 0.03  # accuracy; of a short list three standard errors of a difference, where that is more
PICTURE, COSINES = "training.png", "cosines"
__getattr__ = renamed_attributes(__name__, {"SaturationWatch": "train.diagnostics.SaturationCheck"})


def draw_training(own: Manifest) -> str | None:
    """Draw the run's log as `<run>/training.png`; a sentence where that cannot be."""
    path = own.folder / PICTURE
    if not any(record["kind"] == "step" for record in read_log(own.folder / LOG)):
        return None
    if not own.may_write(path):
        return f"{path} is not the run's own: it stays as it is"
    own.add([path])
    with replacing(path) as part:
        plot_training(own.folder / LOG, part, title=own.folder.name)
    return None


def record_cosines(sample: CosineSample, step: int, log: RunLog, own: Manifest | None) -> None:
    """Log the distributions of own, fresh and older centres' cosines and, with a run's manifest, draw them there as
    `cosines/step_00001234.png`."""
    fresh = sample.age == 0
    kinds = {"positive": sample.positive, "fresh_negative": sample.negative[fresh]}
    log.distributions(step, {**kinds, "older_negative": sample.negative[~fresh]})
    if own is None or own.is_gone or not _drawable(sample):
        return
    path = own.folder / COSINES / f"step_{step:08d}.png"
    if not own.may_write(path):
        log.note(f"{path} is not the run's own: it stays as it is", step=step)
        return
    try:
        own.add([path])
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_cosines(*(values.numpy() for values in sample), path, f"Cosines to class centres, step {step}")  # type: ignore[call-arg, arg-type]
    except OSError as cause:
        log.note(f"{path} could not be written: {cause}", step=step)


def _drawable(sample: CosineSample) -> bool:
    finite = bool(sample.positive.isfinite().all()) and bool(sample.negative.isfinite().all())
    return len(sample.positive) > 0 and finite


class _BestAccuracy:
    """The best mean accuracy so far. It is kept for each choice of pair lists, as others may be easier."""

    def __init__(self) -> None:
        self._of_lists: dict[tuple[str, ...], float] = {}

    def compared(self, results: Mapping[str, VerificationResult]) -> tuple[float, float] | None:
        """The mean accuracy of a validation, and the best of earlier ones on the same lists, 0 where there is none;
        None where no list has an accuracy."""
        if (accuracy := mean_accuracy(results)) is None:
            return None
        lists = tuple(described({name: result for name, result in results.items() if result.accuracy is not None}))
        best = self._of_lists.get(lists, 0.0)
        self._of_lists[lists] = max(best, accuracy)
        return accuracy, best


class SaturationCheck:
    """Warns once when positives look learned and faces are not: the mean positive cosine is high at two validations in
    a row while the mean accuracy of the pair lists has not risen above its best before them, on the same lists. The
    thresholds are our choice."""

    def __init__(self) -> None:
        self._best, self._stuck, self._warned = _BestAccuracy(), 0, False

    def warning(self, positive_cosine: float, results: Mapping[str, VerificationResult]) -> str | None:
        """The warning that the validation at hand calls for, or None.

        Args:
            positive_cosine: Mean since the validation before; NaN where it is not known.
            results: Of the validation, by pair list.
        """
        if (compared := self._best.compared(results)) is None:
            return None
        accuracy, best = compared
        stuck = positive_cosine > SATURATED and accuracy < min(best + RISE, GOOD)
        self._stuck = self._stuck + 1 if stuck else 0
        if self._stuck < 2 or self._warned:
            return None
        self._warned = True
        return (
            f"warning: rows have a mean cosine of {positive_cosine:.2f} to their own centres, yet verification does "
            f"not rise (mean accuracy {accuracy:.3f}, best {max(best, accuracy):.3f}): the network may tell this "
            f"step's images from older centres instead of faces; look at cosines/*.png and try --enqueue before, "
            f"a --capacity of fewer batches, a gallery encoder that lags less (a lower --encoder-momentum), a lower "
            f"--lr or --scale"
        )


class FallCheck:
    """Warns once when the mean accuracy of the pair lists has fallen far below the best that the run had on
    the same lists. The threshold is our choice; what it looks for is measured in docs/learning.md."""

    def __init__(self) -> None:
        self._best, self._warned = _BestAccuracy(), False

    def warning(self, results: Mapping[str, VerificationResult]) -> str | None:
        """The warning that the validation at hand calls for, or None.

        Args:
            results: Of the validation, by pair list.
        """
        if (compared := self._best.compared(results)) is None:
            return None
        accuracy, best = compared
        pairs = sum(result.num_pairs for result in results.values() if result.accuracy is not None)
        fallen = best - accuracy > max(FALL, 3 * math.sqrt(2 * accuracy * (1 - accuracy) / pairs))
        if not fallen or self._warned:
            return None
        self._warned = True
        return (
            f"warning: verification has fallen (mean accuracy {accuracy:.3f}, best {best:.3f}): the network "
            f"loses what it had learned; under AttFC a gallery encoder that lags too far behind does this: try a lower "
            f"--encoder-momentum, else a lower --lr"
        )


def mean_accuracy(results: Mapping[str, VerificationResult]) -> float | None:
    """Of the pair lists that have one; None where none has."""
    accuracies = [result.accuracy for result in results.values() if result.accuracy is not None]
    return sum(accuracies) / len(accuracies) if accuracies else None
