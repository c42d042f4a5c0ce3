"""The training loop, on one page: embed, compare, step, follow, record.

    embeddings = backbone(probe)                          # trained
    gallery    = momentum_encoder(gallery + negatives)    # its slow copy, no gradient
    loss       = head(embeddings, labels, gallery, extra_centers=negatives)

The middle three lines are an `Objective` (here AttFC's); everything around them is here.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attfc_cuda._check import error
from attfc_cuda.data import TooManyUnreadable
from attfc_cuda.evaluation import VerificationResult
from attfc_cuda.train.callbacks import Callback
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.interrupt import Interrupt, LostWorker
from attfc_cuda.train.log import NoLog, RunLog
from attfc_cuda.train.loggers import LOGGERS, Logger, TensorBoard, check_names, start_all
from attfc_cuda.train.manifest import Manifest
from attfc_cuda.train.objective import OBJECTIVES, Objective
from attfc_cuda.train.process_group import Group, LostProcess, join, leave, shared_settings
from attfc_cuda.train.run_folder import CONFIG, LOG, RunRemoved, check_folder, claim_folder, locked
from attfc_cuda.train.training import Training
from attfc_cuda.train.validation import Validation


class NonFiniteLoss(ArithmeticError):
    """The loss or the gradient became NaN or infinite. The message names the step, and the checkpoint before it."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: the run's folder.
        step: steps done.
        signal: by which it was stopped; None: it was done.
        results: its last verification results.
    """

    run: Path
    step: int
    signal: int | None
    results: dict[str, VerificationResult]


def train(
    config: TrainConfig,
    objective_type: type[Objective] | None = None,
    *,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Run (or resume) the training that `config` describes; everything it leaves is in `config.run.run`.

    Under torchrun each process calls it, and they make one run (see `process_group`): the first one logs and verifies.
    Whatever ends a run between two steps, the steps before it are saved; where one of several processes gets no batch,
    all of them stop after the same step. What ends one of them within a step ends the run with its last checkpoint.

    Args:
        config: All settings.
        objective_type: An objective of your own instead of the one that `config.head.head` names.
        loggers: That take the numbers too, beside those that the config names, see `Logger`.
        callbacks: Your own code between steps, see `Callback`.

    Returns:
        How it ended.

    Raises:
        ValueError: Naming a setting that cannot be used, before any step; OSError naming a file or folder.
        CheckpointError: Where there is no checkpoint to resume from.
        NonFiniteLoss: See there.
        TooManyUnreadable: Where so few images can be read that the run learns nothing.
        LostWorker: Where a process that prepares batches has ended.
        LostProcess: Where another process of the run has ended.
        RunRemoved: Where the run folder was removed; the state is saved there anew.
    """
    config.check()
    check_folder(config)
    group = join(config)
    with contextlib.nullcontext() if group is None else group.naming_lost_processes(config.run.run):
        if group is not None:
            group.require_alike("the settings", shared_settings(config))
        outcome = _train(config, objective_type or OBJECTIVES[config.head.head], group, loggers, callbacks)
        leave(group)
    return outcome


def _train(
    config: TrainConfig,
    objective_type: type[Objective],
    group: Group | None,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback],
) -> Outcome:
    training = Training(config, objective_type, group)
    notes: list[str] = []
    with locked(config.run.run) if training.first else contextlib.nullcontext():
        if config.run.resume:
            training.resume(notes.append)
        own = claim_folder(config, training.step) if training.first else None
        log = NoLog() if own is None else open_log(training, own, loggers)
        return _run_steps(training, own, log, notes, callbacks)


def open_log(training: Training, own: Manifest, loggers: Sequence[Logger]) -> RunLog:
    """The log of a run, with the loggers that its settings name and those given."""
    run, step = training.config.run, training.step
    named = [LOGGERS[name]() for name in check_names(run.loggers)]
    loggers = [*([TensorBoard()] if run.tensorboard else []), *named, *loggers]
    start_all(loggers, run.run, step, training.config.to_dict())
    own.add(path for logger in loggers for path in logger.files)
    return RunLog(run.run / LOG, training.total_steps, step, loggers, "bar" if run.progress else "none")


def _run_steps(
    training: Training, own: Manifest | None, log: Any, notes: list[str], callbacks: Sequence[Callback]
) -> Outcome:
    """The steps that are left. own: the manifest, for the process that writes; notes: what the log is to begin with."""
    config, group, run = training.config, training.group, training.config.run
    objective, optimizer, scaler = training.objective, training.optimizer, training.scaler
    total, per_epoch = training.total_steps, training.steps_per_epoch
    clip = math.inf if config.optim.clip_norm is None else config.optim.clip_norm
    verify_every, checkpoint_every = config.verify.verify_every, run.checkpoint_every
    verify_every = max(per_epoch, math.ceil(total / 10)) if verify_every is None else verify_every
    checkpoint_every = per_epoch if checkpoint_every is None else checkpoint_every

    def tell(method: str, *arguments: Any) -> None:
        try:
            for callback in callbacks:
                getattr(callback, method)(training, *arguments)
        except Exception as cause:
            if group is None and method == "on_step":  # `verified` saves, the others have nothing new to save
                stopped(log, training, save(training, own), cause)
            raise

    validation = Validation(training, own, log, tell)
    if validation.best is not None and validation.best.problem is not None:
        notes.append(validation.best.problem)
    # The loader closes first: while torch's handler of a child's death, which the interrupt holds, is out of the way.
    with log, Interrupt() as interrupt, training.writer.reporting(log.note), contextlib.closing(training.loader):
        report = training.report()
        log.record("resume" if run.resume else "start", step=training.step, config=config.to_dict(), report=report)
        log.show(report)
        for text in notes:
            log.note(text, step=training.step)
        tell("on_start")
        batches, images, since = training.batches(), 0, time.perf_counter()
        while training.step < total:
            report_failed_write(training, own)
            cause: Exception | None = None
            try:
                batch = interrupt.next_batch(batches)
            except Exception as own_cause:
                cause = own_cause
            if group is not None and (everyones := group.first_cause(cause)) is not None:
                if cause is None:
                    training.loader.put_back()
                cause = everyones
                interrupt.signal_number = int(group.latest_signal(interrupt.signal_number)) or None
            if cause is not None:
                path = save(training, own)
                if group is not None:
                    group.wait()  # torchrun ends all processes as soon as one has failed
                if isinstance(cause, LostWorker) and interrupt.signal_number:  # the signal has ended the worker too
                    break
                raise stopped(log, training, path, cause) from cause
            lr, momentum = training.learning_rate(training.step), training.momentum(training.step)
            training.set_learning_rate(lr)

            training.remember_statistics()
            with torch.autocast(training.device.type, training.dtype, enabled=training.dtype != torch.float32):
                loss = objective(training.network, batch)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = training.clip_gradients(clip)
            signals = [] if group is None else [group.latest_signal(interrupt.signal_number)]
            # The step's one wait for the device.
            loss_value, norm_value, *signals = torch.stack([loss.detach(), norm, *signals]).tolist()

            # With loss scaling an infinite gradient is routine: the scaler leaves that step out and lowers its scale.
            if math.isfinite(loss_value) and (math.isfinite(norm_value) or scaler.is_enabled()):
                scaler.step(optimizer)
                training.after_step(momentum)
            else:
                training.forget_statistics()
                _non_finite(training, own, log, loss_value, norm_value, lr)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            training.step += 1
            images += training.loader.sampler.batch_size

            step = training.step
            if step % run.log_every == 0 or step == total:
                seconds = time.perf_counter() - since
                training.seconds += seconds
                numbers = {"loss": loss_value, "lr": lr, "grad_norm": norm_value, "momentum": momentum}
                numbers |= {name: float(value) for name, value in objective.stats().items() if name != "loss"}
                numbers |= {"epochs": step / per_epoch, "seconds": training.seconds, "images_per_s": images / seconds}
                numbers["eta_s"] = training.seconds / step * (total - step)
                log.step(step, numbers)
                validation.remember(numbers)
                images, since = 0, time.perf_counter()
                if group is None and was_removed(own):
                    save(training, own)
            else:
                log.advance(step)

            pause = time.perf_counter()
            tell("on_step", loss_value)
            stopping = interrupt.signal_number if group is None else int(signals[0]) or None
            if training.sets and ((verify_every and step % verify_every == 0) or step == total):
                verified(validation, training, own, log)
            if (checkpoint_every and step % checkpoint_every == 0) or step == total or stopping:
                path = save(training, own, background=step < total and not stopping)
                tell("on_checkpoint", path)
            if stopping:
                interrupt.signal_number = stopping
                break
            since += time.perf_counter() - pause  # neither counts as training time

        validation.draw()
        tell("on_end")
        if training.step < total:
            log.note(
                f"stopped by {interrupt.signal_name} after step {training.step} of {total}, checkpoint {path}; "
                f"go on with: {training.resume_command}",
                step=training.step,
            )
        else:
            if training.loader.ignored_rows:
                log.note(
                    f"rows left out because an image could not be read: {training.loader.ignored_rows}", step=total
                )
            log.record("end", step=total, seconds=training.seconds)
            log.show(f"done: {total} steps in {training.seconds:.0f} s of training, in {run.run}")
    return Outcome(
        run.run, training.step, interrupt.signal_number if training.step < total else None, validation.results
    )


def save(training: Training, own: Manifest | None, background: bool = False) -> Path:
    """Write a checkpoint; its path. background: see `Training.save`.

    Raises:
        RunRemoved: once it is written where the run folder had been removed; on all processes.
    """
    removed = training.on_any_process(was_removed(own))
    if removed:
        with contextlib.suppress(OSError):  # of a write into the folder that is gone
            training.writer.finish()
        if own is not None:
            own.add(())
            training.config.save(own.folder / CONFIG)
    path = training.save(background and not removed)
    if removed:
        rule, remedy = "stay where it is while a run works there", f"go on with: {training.resume_command}"
        got = f"{training.config.run.run}, which was removed; saved anew: {path}"
        raise error("train", "run", rule, got, remedy, RunRemoved)
    return path


def verified(validation: Validation, training: Training, own: Manifest | None, log: RunLog | NoLog) -> None:
    """Verify; where that fails, the step before it is saved (several processes keep their last checkpoint)."""
    try:
        validation.run()
    except Exception as cause:
        if training.group is None:
            stopped(log, training, save(training, own), cause)
        raise


def report_failed_write(training: Training, own: Manifest | None) -> None:
    """Raise OSError where the checkpoint that was written in the background has failed, RunRemoved where that is
    because the run folder was removed."""
    try:
        training.writer.report()
    except OSError:
        if training.on_any_process(was_removed(own)):
            save(training, own)
        raise


def was_removed(own: Manifest | None) -> bool:
    """Whether the run folder, or the manifest in it, is gone."""
    return own is not None and own.is_gone


def stopped(log: RunLog | NoLog, training: Training, path: Path, cause: Exception) -> Exception:
    """The error that ends a run whose state is saved in `path`: `cause`, with how to go on where it is one of ours."""
    log.record("note", text=f"stopped: {cause}", step=training.step)
    if not isinstance(cause, (LostWorker, TooManyUnreadable, LostProcess)):
        return cause
    return type(cause)(f"{cause}; the state after step {training.step} is in {path}: {training.resume_command}")


def _non_finite(
    training: Training, own: Manifest | None, log: RunLog | NoLog, loss: float, norm: float, lr: float
) -> None:
    """Stop with the state before the step on the disk, or note that its batch is left out."""
    step = training.step
    what = f"loss {loss:g}, gradient norm {norm:g}, at step {step + 1} (learning rate {lr:g})"
    if training.config.optim.non_finite == "skip":
        log.note(f"batch left out: {what}", step=step + 1)
        return
    path = save(training, own)
    log.record("note", text=f"stopped: {what}", step=step)
    raise NonFiniteLoss(
        f"train: loss and gradient must be finite, got {what}; the state before that step is in {path}: "
        f"lower --lr or --clip-norm and --resume, or leave such batches out with --non-finite skip"
    )
