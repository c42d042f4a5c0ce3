"""Verification during a run: on which sets, what it logs, and what is kept and drawn of it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attfc_cuda._deprecated import renamed_attributes
from attfc_cuda.data import FaceDataset, ProceduralFaces, build_dataset
from attfc_cuda.data.held_out import hold_out
from attfc_cuda.evaluation import VerificationResult
from attfc_cuda.evaluation.build import from_dataset, from_lists, split_list
from attfc_cuda.evaluation.measure import AnySet, measure_set
from attfc_cuda.train.best import Best
from attfc_cuda.train.card import write_card
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.diagnostics import FallCheck, SaturationCheck, draw_training, record_cosines
from attfc_cuda.train.log import NoLog, RunLog, read_log
from attfc_cuda.train.manifest import Manifest
from attfc_cuda.train.run_folder import LOG

if TYPE_CHECKING:
    from attfc_cuda.train.training import Training

__getattr__ = renamed_attributes(
    __name__,
    {
        "from_list": "evaluation.build.from_list",
        "lists_in": "evaluation.build.from_lists",
        "FOLDS": "evaluation.build.FOLDS",
    },
)


def holds_out(config: TrainConfig) -> bool:
    """Whether a run keeps identities of a folder from training, as it is given nothing else to verify on."""
    options = config.verify
    return options.hold_out > 0 and not (options.verify_pairs or options.verify_data)


def parted(config: TrainConfig, dataset: FaceDataset) -> tuple[FaceDataset, FaceDataset | None]:
    """What a run trains on, and the identities that it holds out, if any.

    Args:
        config: Of the run.
        dataset: All of its faces.
    """
    if not holds_out(config) or isinstance(dataset, ProceduralFaces):
        return dataset, None
    return hold_out(dataset, config.verify.hold_out)


def verification_sets(config: TrainConfig, dataset: FaceDataset, held_out: FaceDataset | None = None) -> list[AnySet]:
    """What a run verifies on: its pair lists, its other faces, or else the identities that it holds out, and for drawn
    faces identities that are drawn for it.

    Args:
        config: Of the run.
        dataset: The faces it trains on.
        held_out: As from `parted`.

    Raises:
        ValueError: Naming a list or a data set that cannot be used; OSError for one that is not there.
    """
    options, size = config.verify, config.dataset.image_size
    sets: list[AnySet] = []
    if options.verify_pairs:
        root = options.verify_root or Path(split_list(config.dataset.data)[0]).parent
        sets += from_lists(options.verify_pairs, root, size)
    if options.verify_data:
        held_out = build_dataset(options.verify_data, size)
    elif not sets and isinstance(dataset, ProceduralFaces):
        held_out = dataset.others(max(80, len(dataset.identities) // 10), images_per_identity=8)
    if held_out is not None:
        sets.append(from_dataset("held-out", held_out, options.verify_num_pairs))
    return sets


def verify_sets(
    backbone: nn.Module, sets: list[AnySet], step: int, log: RunLog, device: torch.device
) -> dict[str, VerificationResult]:
    """Verify on every set and log the results.

    Args:
        backbone: The network, on `device`; its mode is left as it was.
        sets: As `verification_sets` makes them.
        step: Steps done, for the log.
        log: Takes the results. A set that gives none (all embeddings are one) is only noted.
        device: Where the network is.

    Returns:
        The results by the name of the set.
    """
    results = {}
    for data in sets:
        try:
            found = measure_set(backbone, data, device=device)
        except ValueError as cause:
            log.note(f"verification on {data.name} left out: {cause}", step=step)
            continue
        if found.unreadable:
            log.note(f"verification on {data.name}: {found.unreadable} images cannot be read", step=step)
        results[data.name] = found.result
        log.verification(step, data.name, json.loads(found.result.to_json()))
    return results


class Validation:
    """The verifications of a run, on its first process: the others have no sets.

    Args:
        training: The run.
        own: Its manifest, on the process that writes.
        log: Takes what they find.
        tell: Calls the run's callbacks: `tell("on_verification", results)`.

    Attributes:
        results: Of the last one, by the name of the set; of a run that goes on, as its log has it.
    """

    def __init__(
        self, training: Training, own: Manifest | None, log: RunLog | NoLog, tell: Callable[..., None]
    ) -> None:
        self.training, self.own, self.log, self.tell = training, own, log, tell
        self.results: dict[str, VerificationResult] = {}
        self.best = None if own is None else Best(own, training.config.verify.best_by, training.step)
        self._saturation, self._fall, self._positives = SaturationCheck(), FallCheck(), list[float]()
        self._verified_at: int | None = None
        if own is not None and training.step:
            self._recall(own)

    def _recall(self, own: Manifest) -> None:
        """Take the verifications before this start out of the run's log: the last one for the card, all of them for
        what later ones are compared with."""
        records = [record for record in read_log(own.folder / LOG) if record["kind"] == "verify"]
        by_step: dict[int, list[dict[str, Any]]] = {}
        for record in records:
            if type(record.get("step")) is int and record["step"] <= self.training.step:
                by_step.setdefault(record["step"], []).append(record)
        for step, found in sorted(by_step.items()):
            # A record may be of another release, or damaged.
            with contextlib.suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                self.results = {str(record["name"]): VerificationResult.from_dict(record) for record in found}
                self._verified_at = step
                self._fall.warning(self.results)  # what it has to say was said then
                self._saturation.warning(math.nan, self.results)

    def remember(self, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step that is logged."""
        self._positives.append(numbers.get("positive_cosine", math.nan))

    def run(self) -> None:
        """Verify the network as it is."""
        training, log, step = self.training, self.log, self.training.step
        self.results = verify_sets(training.backbone, training.sets, step, log, training.device)  # type: ignore[arg-type]
        self._verified_at = step
        if (sample := training.objective.cosines()) is not None:
            record_cosines(sample, step, log, self.own if training.config.run.pictures else None)  # type: ignore[arg-type]
        positives = self._positives
        if positives and (warning := self._saturation.warning(sum(positives) / len(positives), self.results)):
            log.note(warning, step=step)
        if warning := self._fall.warning(self.results):
            log.note(warning, step=step)
        positives.clear()
        self._keep_best()
        self.tell("on_verification", self.results)
        if step < training.total_steps:  # the end draws anyway
            self.draw()

    def _keep_best(self) -> None:
        if self.best is None or self.best.own.is_gone:
            return
        state = {"config": self.training.config.to_dict(), "backbone": self.training.backbone.state_dict()}
        step = self.training.step
        if problem := self.best.offer(state, step, self.results):
            self.log.note(problem, step=step)
        elif self.best.step == step and self.best.score is not None:
            self.log.record("best", step=step, by=self.best.by, score=self.best.score)
            self.log.show(
                f"step {step}  best so far by {self.best.by}: {self.best.score:.4f}, kept in {self.best.path}"
            )

    def draw(self) -> None:
        """Write training.png and card.md anew."""
        training, own = self.training, self.own
        if own is None or own.is_gone or not training.config.run.pictures:
            return
        verified: dict[str, Any] = {"step": self._verified_at, "results": self.results}
        for write in (lambda: draw_training(own), lambda: write_card(own, training, self.best, **verified)):
            try:
                problem = write()
            except OSError as cause:
                problem = f"not written: {cause}"
            if problem:
                self.log.note(problem, step=training.step)
