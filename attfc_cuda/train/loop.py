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
from dataclasses import dataclass
from pathlib import Path

import torch

from attfc_cuda.evaluation import VerificationResult
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.diagnostics import SaturationCheck, record_cosines
from attfc_cuda.train.interrupt import Interrupt
from attfc_cuda.train.log import NoLog, RunLog
from attfc_cuda.train.objective import OBJECTIVES, Objective
from attfc_cuda.train.process_group import Group, join, leave
from attfc_cuda.train.training import Training, check_folder, claim_folder
from attfc_cuda.train.validation import verify_sets


class NonFiniteLoss(ArithmeticError):
    """The loss or the gradient became NaN or infinite. The message names the step, and the checkpoint before it."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after `step` steps, by which signal (None: it was done), and its last verification results."""

    run: Path
    step: int
    signal: int | None
    results: dict[str, VerificationResult]


def train(config: TrainConfig, objective_type: type[Objective] | None = None) -> Outcome:
    """Run (or resume) the training that `config` describes; everything it leaves is in `config.run.run`.

    objective_type: an objective of your own instead of the one that `config.head.head` names.
    Under torchrun each process calls it, and they make one run see `process_group`: the first one logs and verifies.
    Raises ValueError (or OSError) naming a setting or a file that cannot be used, before any step; NonFiniteLoss;
    LostProcess.
    """
    config.check()
    check_folder(config)
    group = join(config)
    with contextlib.nullcontext() if group is None else group.naming_lost_processes(config.run.run):
        outcome = _train(config, objective_type or OBJECTIVES[config.head.head], group)
        leave(group)
    return outcome


def _train(config: TrainConfig, objective_type: type[Objective], group: Group | None) -> Outcome:
    run = config.run
    training = Training(config, objective_type, group)
    if run.resume:
        training.resume()
    if training.first:
        claim_folder(config)
    objective, optimizer, scaler, save = training.objective, training.optimizer, training.scaler, training.save
    total, per_epoch = training.total_steps, training.steps_per_epoch
    clip = math.inf if config.optim.clip_norm is None else config.optim.clip_norm
    verify_every, checkpoint_every = config.verify.verify_every, run.checkpoint_every
    verify_every = max(per_epoch, math.ceil(total / 10)) if verify_every is None else verify_every
    checkpoint_every = per_epoch if checkpoint_every is None else checkpoint_every

    events = run.run / "tensorboard" if run.tensorboard else None
    log = NoLog()
    if training.first:
        log = RunLog(run.run / "log.jsonl", total, training.step, events, "bar" if run.progress else "none")
    results: dict[str, VerificationResult] = {}
    saturation, positives = SaturationCheck(), []
    with log, Interrupt() as interrupt:
        report = training.report()
        log.record("resume" if run.resume else "start", step=training.step, config=config.to_dict(), report=report)
        log.show(report)
        batches, images, since = training.batches(), 0, time.perf_counter()
        while training.step < total:
            batch = next(batches)
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
                _non_finite(config, log, training.step, loss_value, norm_value, lr, save)
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
                positives.append(numbers.get("positive_cosine", math.nan))
                images, since = 0, time.perf_counter()
            else:
                log.advance(step)

            pause = time.perf_counter()
            stopping = interrupt.signal_number if group is None else int(signals[0]) or None
            if training.sets and ((verify_every and step % verify_every == 0) or step == total):
                results = verify_sets(training.backbone, training.sets, step, log, training.device)
                if (sample := objective.cosines()) is not None:
                    record_cosines(sample, step, log, run.run / "cosines")
                if positives and (warning := saturation.warning(sum(positives) / len(positives), results)):
                    log.note(warning, step=step)
                positives.clear()
            if (checkpoint_every and step % checkpoint_every == 0) or step == total or stopping:
                path = save()
            if stopping:
                interrupt.signal_number = stopping
                break
            since += time.perf_counter() - pause  # neither counts as training time

        if training.step < total:
            command = f"{objective.command} --run {run.run} --resume" if group is None else group.command(run.run)
            log.note(
                f"stopped by {interrupt.signal_name} after step {training.step} of {total}, checkpoint {path}; "
                f"go on with: {command}",
                step=training.step,
            )
        else:
            if training.loader.ignored_rows:
                log.note(
                    f"rows left out because an image could not be read: {training.loader.ignored_rows}", step=total
                )
            log.record("end", step=total, seconds=training.seconds)
            log.show(f"done: {total} steps in {training.seconds:.0f} s of training, in {run.run}")
    return Outcome(run.run, training.step, interrupt.signal_number if training.step < total else None, results)


def _non_finite(config, log, step, loss, norm, lr, save) -> None:
    """Stop with the state before the step on the disk, or note that its batch is left out."""
    what = f"loss {loss:g}, gradient norm {norm:g}, at step {step + 1} (learning rate {lr:g})"
    if config.optim.non_finite == "skip":
        log.note(f"batch left out: {what}", step=step + 1)
        return
    path = save()
    log.record("note", text=f"stopped: {what}", step=step)
    raise NonFiniteLoss(
        f"train: loss and gradient must be finite, got {what}; the state before that step is in {path}: "
        f"lower --lr or --clip-norm and --resume, or leave such batches out with --non-finite skip"
    )
