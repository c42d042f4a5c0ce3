"""Your own code in a run, between its steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attfc_cuda.evaluation import VerificationResult

if TYPE_CHECKING:
    from attfc_cuda.train.training import Training


class Callback:
    """`train(config, callbacks=[Mine()])`. Every method does nothing here: override those that you need.

    `training` has what the run is made of: `backbone`, `objective`, `optimizer`, `step`, `config`. What a method
    changes there, the coming steps use. Every process of a run calls them, but for `on_verification`, which is the
    first one's; `training.first` says which that is.

    `signal.raise_signal(signal.SIGTERM)` in `on_step` stops the run as the signal does: after this step (of several
    processes all, after the next), with a checkpoint. An exception ends it, with a checkpoint where there is one
    process. A checkpoint holds nothing of a callback.
    """

    def on_start(self, training: Training) -> None:
        """Before the first step, and before the first of a run that goes on."""

    def on_step(self, training: Training, loss: float) -> None:
        """After each step, which `training.step` counts.

        Args:
            training: the run.
            loss: of the step's batch.
        """

    def on_verification(self, training: Training, results: Mapping[str, VerificationResult]) -> None:
        """After each verification.

        Args:
            training: the run.
            results: by the name of the set.
        """

    def on_checkpoint(self, training: Training, path: Path) -> None:
        """Once the state of a step is safe from the coming ones.

        Args:
            training: the run.
            path: where it is, or is being written.
        """

    def on_end(self, training: Training) -> None:
        """After the last step, or the one that a signal has stopped the run after."""
