"""From a config to everything the loop needs, fresh or as a checkpoint left it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attfc_cuda._check import error
from attfc_cuda.data import AttentionLoader, Batch, FaceDataset, build_dataset
from attfc_cuda.data.held_out import FEWEST_IDENTITIES
from attfc_cuda.distributed import split_state
from attfc_cuda.heads.momentum_encoder import DEFAULT_MOMENTUM
from attfc_cuda.ops.precision import slow_precision
from attfc_cuda.train import checkpoint
from attfc_cuda.train.backbone import build_backbone
from attfc_cuda.train.checkpoint_writer import CheckpointWriter
from attfc_cuda.train.checks import check_dataset, check_settings
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.data_identity import DataIdentity
from attfc_cuda.train.group_writer import GroupCheckpointWriter
from attfc_cuda.train.initial import freeze, rate_factors, read_initial
from attfc_cuda.train.mapped import filled
from attfc_cuda.train.objective import DTYPES, Objective
from attfc_cuda.train.optimizer import build_optimizer, peak_rate, set_rate
from attfc_cuda.train.parts import InParts
from attfc_cuda.train.process_group import Group
from attfc_cuda.train.resume import refuse_other_settings, resume, with_checkpoints_capacity
from attfc_cuda.train.run_folder import CHECKPOINTS
from attfc_cuda.train.schedule import EncoderMomentum, LearningRate
from attfc_cuda.train.snapshot import copied
from attfc_cuda.train.validation import AnySet, parted, verification_sets

CACHE_LIMIT_BYTES = 2 * 2**30
NOT_VERIFIED = f"none: no --verify-pairs, no --verify-data, and no {FEWEST_IDENTITIES} identities to hold some out of"


class Training:
    """The parts of one run and its position: `step` steps are done, of `total_steps`.

    A checkpoint's `state_dict` holds all of it.

    Args:
        config: of the run.
        objective_type: builds the loss from (backbone, loader, config).
        group: this process among several, see `distributed.join`.

    Attributes:
        network: what the objective calls: the backbone, with `accumulate` in parts, with a group with its gradients
            averaged.
        writer: of checkpoints, while training goes on.
    """

    def __init__(self, config: TrainConfig, objective_type: type[Objective], group: Group | None = None) -> None:
        self.config, self.group = config, group
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.device = pick_device(config.run.device) if group is None else group.device
        check_settings(config, self.device, 1 if group is None else group.count)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = DTYPES[config.optim.precision]
        # A run that goes on has its weights in its checkpoint.
        self.initial = None if config.run.resume else read_initial(config)

        self.dataset, held_out = parted(config, load_dataset(config, group))
        check_dataset(config, self.dataset)
        self.data_identity = DataIdentity.of(self.dataset)
        self._data_state = self.data_identity.state_dict()
        if group is not None:
            group.require_alike("data", {"identities and images": self.data_identity.digest()})
        self.loader = build_loader(config, self.dataset, objective_type, group)
        shards = {} if group is None else {"shards": group.shards(self.loader)}
        self.sets: list[AnySet] = verification_sets(config, self.dataset, held_out) if self.first else []
        self.steps_per_epoch = len(self.loader)
        self.total_steps = config.optim.steps or max(1, round(config.optim.epochs * self.steps_per_epoch))

        seed_everything(config.run.seed)
        self.backbone = build_backbone(config)
        if self.initial is not None:
            self.initial.apply(self.backbone)
        if group is not None and config.model.sync_batch_norm:
            if self.device.type != "cuda":
                raise error("train", "sync_batch_norm", "be used on GPUs", self.device)
            self.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(self.backbone)
        self.frozen = freeze(self.backbone, config.model.freeze)
        # channels_last is the layout convolution libraries compute in; weights in it save a conversion a layer.
        self.backbone.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        head_config = with_checkpoints_capacity(config) if config.run.carry_classes else config
        self.objective = objective_type(self.backbone, self.loader, head_config, **shards).to(self.device)
        # Inside of what averages gradients over processes, which counts its forward passes.
        whole = self.backbone
        parts = whole if config.optim.accumulate == 1 else InParts(whole, config.optim.accumulate)
        self.network = parts if group is None else group.wrap(parts)

        lr = peak_rate(config.optim, config.dataset.batch_size)
        fp16 = config.optim.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16) if group is None else group.grad_scaler(fp16)
        self.fused = self.objective.fuse_optimizer(config.optim, lr, self.scaler)
        factors = rate_factors(self.backbone, config.optim.backbone_lr_factor, config.optim.layer_lr_decay)
        self.optimizer = build_optimizer(config.optim, [self.backbone, self.objective], lr, self.fused, factors)
        self.learning_rate = LearningRate(
            lr, self.total_steps, round(config.optim.warmup * self.total_steps),
            config.optim.final_lr, config.optim.schedule, config.optim.power,
        )  # fmt: skip
        final = config.head.encoder_momentum
        final = DEFAULT_MOMENTUM if final is None else final
        self.momentum = EncoderMomentum(final, round(config.head.encoder_warmup * self.total_steps))

        self.step, self.seconds = 0, 0.0
        self.writer = CheckpointWriter() if group is None else GroupCheckpointWriter(group)
        self._guarded = [b for m in (self.backbone, self.objective) for b in _batch_norm_buffers(m)]
        self._guard = [b.clone() for b in self._guarded]
        if group is not None:
            self._split = {id(part.tensor) for part in split_state.parts_of(self.objective).values()}
            refuse_loose_parameters(self.objective, self._split)
            # Every process has begun alike; from here on each draws its own random numbers.
            seed_everything(config.run.seed + group.rank * 1_000_003)

    @property
    def first(self) -> bool:
        """Whether this process is the one that logs, verifies and writes what all have alike."""
        return self.group is None or self.group.rank == 0

    def on_any_process(self, flag: bool) -> bool:
        """Whether it is so on any process of the run."""
        return flag if self.group is None else self.group.any(flag)

    def batches(self) -> Iterator[Batch]:
        """Batches on the device, epoch after epoch, from the loader's present position."""
        while True:
            for batch in self.loader:
                yield Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))

    @property
    def resume_command(self) -> str:
        """How a user goes on with the run."""
        run = self.config.run.run
        return f"{self.objective.command} --run {run} --resume" if self.group is None else self.group.command(run)

    def set_learning_rate(self, lr: float) -> None:
        """The rate of the coming step, for every parameter."""
        for optimizer in filter(None, (self.optimizer, self.fused)):
            set_rate(optimizer, lr)

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def clip_gradients(self, largest: float) -> Tensor:
        """The norm of all gradients together, those of other processes' class centres included; scales them down where
        it is larger than `largest`."""
        parameters = self.parameters
        split = [p for p in parameters if self.group is not None and id(p) in self._split]
        if not split:
            return nn.utils.clip_grad_norm_(parameters, largest)
        alike = [p for p in parameters if id(p) not in self._split]
        one, parts = (nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in (alike, split))
        norm = (one.square() + self.group.sum(parts.square())).sqrt()
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return norm

    def after_step(self, momentum: float) -> None:
        """The objective's own part of a step, once the optimizer has moved the backbone."""
        self.objective.after_step(self.backbone, momentum)
        if self.group is not None:
            # Running averages that are used, not only collected, must be the same on all processes.
            used = [b for m in self.objective.modules() if not m.training for b in _batch_norm_buffers(m, False)]
            self.group.broadcast([b for b in used if b.is_floating_point()])

    def remember_statistics(self) -> None:
        """Keep BatchNorm's running statistics as they are before a step, see `forget_statistics`."""
        if self._guarded:
            torch._foreach_copy_(self._guard, self._guarded)

    def forget_statistics(self) -> None:
        """Undo what a forward pass with a non-finite result left behind. Nothing else needs it: parameters have not
        moved, and container and margin refuse non-finite values by themselves."""
        if self._guarded:
            torch._foreach_copy_(self._guarded, self._guard)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the following steps depend on; with a group, but for what is split over it."""
        objective, rng = self.objective.state_dict(), checkpoint.rng_state()
        gallery = self.objective.kept_gallery if self.loader.between_steps_of_a_gallery else None
        gallery = None if gallery is None else gallery.cpu()
        optimizers = [None if optimizer is None else optimizer.state_dict() for optimizer in self.optimizers]
        if self.group is not None:
            objective = split_state.without_parts(objective, self.objective)
            optimizers = [
                s and split_state.optimizer_without_parts(s, optimizer, self.objective)
                for s, optimizer in zip(optimizers, self.optimizers, strict=True)
            ]
        return {
            "config": self.config.to_dict(),
            "data": self._data_state,
            "threads": torch.get_num_threads(),
            "seconds": self.seconds,
            "backbone": self.backbone.state_dict(),
            "objective_type": type(self.objective).__name__,
            "objective": objective,
            "optimizer": optimizers[0],
            "fused_optimizer": optimizers[1],
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": rng,
            "rng_of_rank": [] if self.group is None else self.group.from_all(rng),
            "gallery_of_rank": [gallery] if self.group is None else self.group.from_all(gallery),
            "processes": 1 if self.group is None else self.group.count,
        }

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
        """That of the backbone and the loss, and that inside the head's backward pass, where there is one."""
        return self.optimizer, self.fused

    def save(self, background: bool = False) -> Path:
        """Write a checkpoint of the present step, together with the other processes; the file's path.

        Args:
            background: Return once the state is safe from the steps to come, and report a failure later, by `writer`.
                With more to copy in a process than `checkpoint_writer.COPY_BYTES`, it is written first.

        Raises:
            OSError: Naming the file where it, or the one before it, could not be written; on all processes.
        """
        self.writer.finish()
        folder, state = self.config.run.run / CHECKPOINTS, self.state_dict()
        optimizer = split_state.holder(self.optimizers, self.objective)
        self.writer.save(state, self.objective, optimizer, folder, self.step, self.config.run.keep, background)
        return checkpoint.path_of(folder, self.step)

    def resume(self, show: Callable[[str], None] = print) -> None:
        """Continue from the run's newest whole checkpoint, see `attfc_cuda.train.resume`."""
        resume(self, show)

    def resize_classes(self, mapping: Tensor) -> None:
        """Change the head's classes, see `Objective.resize_classes`."""
        self.objective.resize_classes(mapping, self.optimizer)
        if self.group is not None:
            self._split = {id(part.tensor) for part in split_state.parts_of(self.objective).values()}

    def load_state_dict(self, state: dict[str, Any], other_data: bool = False) -> None:
        """Continue where `state` was taken; what it has not, because it was split, keeps its value. Nothing of `state`
        itself is kept: it may lie in a file.

        Args:
            state: As `state_dict` gave it, here or in an older release.
            other_data: The data have changed by design; the run goes on at the start of an epoch.

        Raises:
            ValueError: Naming a setting that does not fit it.
        """
        if state["objective_type"] != type(self.objective).__name__:
            rule = f"be trained as the checkpoint was, by {state['objective_type']}"
            raise error("resume", "the run", rule, type(self.objective).__name__)
        then = TrainConfig.from_dict(state["config"]).to_dict()
        refuse_other_settings(self.config.to_dict(), then, other_data="data" in state)
        self.step, self.seconds = state["step"], state["seconds"]
        self.backbone.load_state_dict(state["backbone"])
        objective = self.objective
        taken = filled(split_state.with_parts(state["objective"], objective), objective.state_dict())
        objective.load_state_dict(taken)
        for optimizer, name in zip(self.optimizers, ("optimizer", "fused_optimizer"), strict=True):
            if optimizer is not None:
                wanted = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
                loaded = split_state.optimizer_with_parts(state[name], optimizer, objective)
                optimizer.load_state_dict(copied(loaded))  # torch's keep what they are given
                # The state is the checkpoint's; rates and decays are settings, which may have changed.
                for group, settings in zip(optimizer.param_groups, wanted, strict=True):
                    group.update(settings)
        if state["scaler"]:  # nothing, where the run was not in fp16 until now
            self.scaler.load_state_dict(state["scaler"])
        loader = state["loader"]
        if other_data:
            epoch = loader["pass"] + (loader["batch"] > 0)
            loader = {**self.loader.state_dict(), "pass": epoch, "batch": 0}
        self.loader.load_state_dict(copied(loader))
        galleries = state.get("gallery_of_rank", [])
        if not other_data and len(galleries) == (1 if self.group is None else self.group.count):
            gallery = galleries[0 if self.group is None else self.group.rank]
            self.objective.restore_gallery(None if gallery is None else copied(gallery).to(self.device))
        rank, states = (0 if self.group is None else self.group.rank), state.get("rng_of_rank", [])
        if rank == 0 or rank < len(states):
            checkpoint.set_rng_state(states[rank] if rank else state["rng"])

    def report(self) -> str:
        """What is about to run, in a few lines."""
        config, steps = self.config, self.total_steps
        count = sum(p.numel() for p in self.backbone.parameters())
        sets = ", ".join(f"{s.name} ({s.num_pairs} pairs)" for s in self.sets) or NOT_VERIFIED
        peak = f"{self.learning_rate.peak:g}"
        lines = [
            self.loader.report(),
            f"backbone      {config.model.backbone}, {count / 1e6:.2f} M parameters, embeddings of "
            f"{config.model.embedding_dim} numbers, {config.optim.precision} on {self.device}",
            self.objective.describe(self.momentum),
            f"optimizer     {config.optim.optimizer}, learning rate {peak} after {self.learning_rate.warmup_steps} "
            f"steps, then {config.optim.schedule}",
            f"length        {steps} steps = {steps / self.steps_per_epoch:.1f} epochs of {self.steps_per_epoch} steps",
            f"verification  {sets}",
        ]
        if self.fused is not None and config.optim.clip_norm is not None:
            lines.append(
                f"clip_norm     {config.optim.clip_norm:g} over the backbone's gradient alone: class centres move in "
                "the backward pass, unclipped (--no-fuse-optimizer clips all together)"
            )
        if self.initial is not None and config.model.init is not None:
            lines.insert(2, self.initial.describe(config.model.init))
        if self.frozen:
            lines.insert(2, f"frozen        {self.frozen} of {len(list(self.backbone.parameters()))} parameter tensors")
        if note := self.objective.about_the_loss():
            lines.append(f"loss          {note}")
        if warning := slow_precision(config.optim.precision, self.device):
            lines.append(warning)
        if self.group is not None:
            lines.insert(1, f"processes     {self.group.count}, each with a part of a batch and of the head's centres")
        return "\n".join(lines)


def load_dataset(config: TrainConfig, group: Group | None = None) -> FaceDataset:
    """The training faces, kept decoded in memory where `cache` says so. Of a group one process looks for them first;
    the others read its index, or look for them too where it could not be kept."""
    options = config.dataset
    build = functools.partial(
        build_dataset, options.data, image_size=options.image_size, on_bad_image=options.on_bad_image,
        identities=options.identities,
    )  # fmt: skip
    dataset = build(cache=options.cache == "on") if group is None else group.in_turn(build)
    # Only the scan tells how many images there are, and reading them all drops the unreadable ones: a second build.
    fits = len(dataset) * 3 * options.image_size**2 <= CACHE_LIMIT_BYTES
    if (options.cache == "on" and group is not None) or (options.cache == "auto" and fits):
        dataset = build(cache=True)
    return dataset


def build_loader(
    config: TrainConfig, dataset: FaceDataset, objective_type: type[Objective], group: Group | None = None
) -> AttentionLoader:
    """The attention loader with what the objective needs of it, for this process of a group."""
    options = config.dataset
    return AttentionLoader(
        dataset,
        options.batch_size,
        objective_type.gallery_size(config),
        seed=config.run.seed,
        min_images=options.min_images,
        negatives_per_batch=objective_type.negatives_per_batch(config),
        augment=options.augment,
        rank=0 if group is None else group.rank,
        world_size=1 if group is None else group.count,
        num_workers=options.workers,
        max_unreadable=options.max_unreadable,
        probes_per_identity=options.probes_per_identity,
        gallery_steps=options.gallery_steps,
    )


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto`: the GPU if there is one.

    Raises:
        ValueError: for a device that is not a device, or is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as cause:
        raise error("train", "device", "be auto, cpu, cuda or cuda:N", repr(name)) from cause
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        got = f"{name} with {torch.cuda.device_count()} GPUs"
        raise error("train", "device", "be present", got, "use --device cpu")
    return device


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for the next allocation, rather than return them to the system.

    Activations of tens of MB otherwise come back as fresh pages each step, zeroed by the kernel: a sixth of a step's
    time on a CPU. The peak stays as it is. Elsewhere than on glibc nothing happens.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 2**30  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, most)
        libc.mallopt(trim_threshold, most)


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def refuse_loose_parameters(objective: Objective, split: set[int]) -> None:
    """Raise ValueError for a trained parameter that every process would move by itself."""
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and id(parameter) not in split:
            rule = "have no trained parameters but split class centres, with several processes"
            raise error("train", "the objective", rule, name)


def _batch_norm_buffers(module: nn.Module, recurse: bool = True) -> list[Tensor]:
    modules = module.modules() if recurse else [module]
    return [b for m in modules if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False)]
