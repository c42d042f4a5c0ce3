"""Going on from a run's newest whole checkpoint: with settings and data that fit it, or classes carried by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attfc_cuda._check import error
from attfc_cuda._error import is_worded
from attfc_cuda.distributed import checkpoint as head_checkpoint
from attfc_cuda.distributed import split_state
from attfc_cuda.train import checkpoint
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.data_identity import DataIdentity
from attfc_cuda.train.run_folder import CHECKPOINTS
from attfc_cuda.train.validation import holds_out

if TYPE_CHECKING:
    from attfc_cuda.train.training import Training

# What a checkpoint's tensors and position depend on. Everything else may change when a run resumes; the data may lie
# elsewhere, and are known by their identities (`data_identity`).
FIXED = {
    "dataset": (
        "image_size", "batch_size", "gallery_size", "min_images", "probes_per_identity", "gallery_steps",
        "negatives_per_batch", "augment",
    ),
    "model": ("backbone", "backbone_options", "embedding_dim", "freeze"),
    "head": (
        "head", "margin", "m", "margin_options", "capacity", "capacity_share", "policy", "container_dtype",
        "sample_rate", "fuse_optimizer", "class_code",
    ),
    "optim": ("optimizer", "backbone_lr_factor", "layer_lr_decay"),
    "verify": ("hold_out",),
    "run": ("seed",),
}  # fmt: skip


def resume(training: Training, show: Callable[[str], None] = print) -> None:
    """Continue from the run's newest checkpoint that is whole, whatever the number of processes that wrote it.

    Args:
        training: Freshly made.
        show: Takes what there is to say about it; used on the first process.

    Raises:
        CheckpointError: Where there is none, or what it holds is not the state of a run.
        ValueError: Naming a setting, or the first identity, that is not the checkpoint's.
    """
    folder, group = training.config.run.run / CHECKPOINTS, training.group
    show = show if training.first else lambda text: None
    state = checkpoint.load_newest(folder, show, mapped=True)
    if group is not None and len(set(steps := group.from_all(state["step"]))) > 1:
        rule = "be a folder that every process sees alike"
        raise error("resume", "run", rule, f"{training.config.run.run} with newest steps {steps}")
    path = checkpoint.path_of(folder, state["step"])
    try:
        _load(training, state, path, show)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as cause:
        if isinstance(cause, ValueError) and is_worded(cause):  # it names a setting or an identity
            raise
        if group is not None and isinstance(cause, RuntimeError):  # perhaps of a broken connection
            raise
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
        text = f"checkpoint: {path} must hold the state of such a run, got {reason}"
        raise checkpoint.CheckpointError(text) from cause


def with_checkpoints_capacity(config: TrainConfig) -> TrainConfig:
    """The config, with the container's size as the newest checkpoint has it, whatever share of the identities that is
    now."""
    config = copy.deepcopy(config)
    state = checkpoint.load_newest(config.run.run / CHECKPOINTS, lambda text: None, mapped=True)
    objective = state.get("objective")
    labels = objective.get("head.container.labels") if isinstance(objective, dict) else None
    if isinstance(labels, torch.Tensor) and labels.dim() == 1:  # another is named when the state is loaded
        config.head.capacity = len(labels)
    return config


def refuse_other_settings(now: dict[str, Any], then: dict[str, Any], other_data: bool = True) -> None:
    """Raise ValueError naming the first setting a checkpoint depends on that differs from the checkpoint's.

    Args:
        now: A config as a dict.
        then: That of the checkpoint.
        other_data: Whether the data are known by their identities; else by the setting.
    """
    fixed = FIXED if other_data else {**FIXED, "dataset": ("data", "identities", *FIXED["dataset"])}
    for group, names in fixed.items():
        for name in names:
            if now[group][name] != then[group][name]:
                rule = f"equal the checkpoint's {then[group][name]!r}"
                remedy = "give the same setting, or start a new run with another --run"
                raise error("resume", name, rule, repr(now[group][name]), remedy)


def _load(training: Training, state: dict[str, Any], path: Path, show: Callable[[str], None]) -> None:
    then = DataIdentity.from_checkpoint(state)
    difference = None if then is None else training.data_identity.difference(then)
    carry = difference is not None and training.config.run.carry_classes
    if difference is not None and not carry:
        _refuse_other_parting(training.config, TrainConfig.from_dict(state["config"]))
        remedy = "give the same data, or --carry-classes to keep what was learned of those that are still there"
        raise error("resume", "data", "hold the checkpoint's identities and images", difference, remedy)
    objective = training.objective
    if carry:  # a head of the classes of then, into which the state fits
        training.resize_classes(torch.full((len(objective.classes_of(then.counts)),), -1))
    training.load_state_dict(state, other_data=carry)
    if state.get("processes", 1) > 1:
        optimizer = split_state.holder(training.optimizers, objective)
        head_checkpoint.load(objective, checkpoint.shards_of(path, state), optimizer, parts_only=True)
    if carry:
        _carry_classes(training, then)
        kept = int((training.data_identity.mapping(then) >= 0).sum())
        show(
            f"resume: the data have changed, first: {difference}; kept {kept} of {len(then.names)} identities, "
            f"{len(training.data_identity.names) - kept} are new"
        )
    threads, here = state.get("threads", torch.get_num_threads()), torch.get_num_threads()
    if training.device.type == "cpu" and threads != here:
        show(
            f"resume: the run was on {threads} CPU threads and is on {here} now, which add in another order: losses "
            f"will differ in the last digits (--threads {threads} for the same ones)"
        )


def _refuse_other_parting(now: TrainConfig, then: TrainConfig) -> None:
    """Raise ValueError where other identities are trained on since something else is verified on."""
    if holds_out(now) == holds_out(then):
        return
    name = "verify_pairs" if (now if holds_out(then) else then).verify.verify_pairs else "verify_data"
    rule = "be left out" if holds_out(then) else "be given"
    rule += ", as it was in the checkpoint's run: it decides whether identities are held out from training"
    remedy = "`attfc verify` takes any other faces at any time"
    raise error("resume", name, rule, repr(getattr(now.verify, name)), remedy)


def _carry_classes(training: Training, then: DataIdentity) -> None:
    """Number the head's classes as the identities are now; a class is an identity that the head has a place for."""
    now, objective = training.data_identity, training.objective
    classes = torch.from_numpy(objective.classes_of(then.counts))
    class_then = torch.full((len(then.names) + 1,), -1)  # the last for -1: an identity that is new
    class_then[classes] = torch.arange(len(classes))
    labels = torch.from_numpy(objective.classes_of(now.counts))
    training.resize_classes(class_then[now.mapping(then)[labels]])
