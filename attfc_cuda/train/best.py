"""The network with the best verification of a run: `<run>/best.pt`, which `keep` does not count.

It holds the backbone, without what a run needs to go on: a small file that one process writes, and that a better one
replaces, all at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attfc_cuda._check import printable
from attfc_cuda._files import replacing
from attfc_cuda.evaluation import VerificationResult
from attfc_cuda.train import archive, checkpoint
from attfc_cuda.train.manifest import Manifest

BEST = "best.pt"
TAR_AT = 1e-3


def score_of(results: Mapping[str, VerificationResult], by: str) -> float | None:
    """What networks are compared by: the mean over the sets, of those that have it; None where none has.

    Args:
        results: By the name of the set.
        by: "accuracy", "auc", or "tar": at the false accept rate `TAR_AT`.
    """
    found = [result.tar_at_far.get(TAR_AT) if by == "tar" else getattr(result, by) for result in results.values()]
    values = [float(value) for value in found if value is not None]
    return sum(values) / len(values) if values else None


class Best:
    """Keeps the best network of a run.

    Args:
        own: The run's manifest.
        by: As for `score_of`.
        step: Steps done: what a later step was best with is measured anew.

    Attributes:
        score: The best so far; None: there is none.
        step: Of it.
        problem: What there is to say of the file that was there at the start, if it is of no use.
    """

    def __init__(self, own: Manifest, by: str, step: int) -> None:
        self.own, self.by, self.path = own, by, own.folder / BEST
        self.score: float | None = None
        self.step = 0
        self.problem: str | None = None
        self._sets: list[str] | None = None
        if step and self.path in own and self.path.exists():
            self._take_over(step)

    def _take_over(self, step: int) -> None:
        try:
            state = checkpoint.load(self.path, mapped=True)
            then = state["best"]
            if then["by"] == self.by and state["step"] <= step:
                self.score, self.step, self._sets = float(then["score"]), state["step"], list(then["sets"])
        except (checkpoint.CheckpointError, LookupError, TypeError, ValueError) as cause:
            reason = str(cause) if isinstance(cause, checkpoint.CheckpointError) else f"{type(cause).__name__}: {cause}"
            self.problem = printable(
                f"the best network so far is lost, the next verification begins anew: {self.path} is damaged ({reason})"
            )

    def offer(self, state: dict[str, Any], step: int, results: Mapping[str, VerificationResult]) -> str | None:
        """Keep the network where it is better than the best so far; the first of equal ones stays.

        Args:
            state: The backbone, and the settings that it can be built from.
            step: Steps done.
            results: Of the verification of it. Those of other sets than before are not compared with them.

        Returns:
            What there is to say, if it was kept, or could not be.
        """
        score = score_of(results, self.by)
        if score is None:
            return None
        sets = described(results)
        if self.score is not None and score <= self.score and sets == self._sets:
            return None
        if not self.own.may_write(self.path):
            return f"{self.path} is not the run's own: the best network is not kept there"
        best = {"by": self.by, "score": score, "sets": sets}
        try:
            self.own.add([self.path])
            with replacing(self.path) as part, open(part, "wb") as file:
                archive.write({"format": checkpoint.FORMAT, "step": step, "best": best, **state}, file)
        except OSError as cause:
            return f"{self.path} could not be written: {cause}"
        self.score, self.step, self._sets = score, step, sets
        return None


def described(results: Mapping[str, VerificationResult]) -> list[str]:
    """The sets, by what tells one from another of the same name."""
    return sorted(
        f"{name}: {result.num_genuine} genuine and {result.num_impostors} impostor pairs of {result.num_identities}"
        for name, result in results.items()
    )


def path_of_best(run: Path) -> Path:
    """`best.pt` of a run folder.

    Raises:
        CheckpointError: Where there is none.
    """
    path = run / BEST
    if not path.is_file():
        text = f"checkpoint: {run} must hold {BEST}, got no such file; a verification during training (--verify-data) "
        raise checkpoint.CheckpointError(f"{text}writes it; without --best the newest checkpoint is taken")
    return path
