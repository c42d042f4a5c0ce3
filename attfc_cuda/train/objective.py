"""What turns a batch into a loss: a head together with the encoder it needs.

The loop knows only the small protocol of `Objective`. `AttFCObjective` is the gallery encoder plus the AttFC head,
`TrainedCentersObjective` a head whose class centres are learned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attfc_cuda import margins
from attfc_cuda._check import error
from attfc_cuda.data import AttentionLoader, Batch
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.heads import AttFC, FullyConnected, PartialFC
from attfc_cuda.heads.attfc import CosineSample
from attfc_cuda.heads.momentum_encoder import MomentumEncoder
from attfc_cuda.ops import backend as _backend
from attfc_cuda.presets import ADDITIVE_MARGINS
from attfc_cuda.train import parts
from attfc_cuda.train.config import OptimizerConfig, TrainConfig, parse_options
from attfc_cuda.train.schedule import EncoderMomentum

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BATCHES_KEPT = 4  # in a container, unless it is said otherwise; docs/learning.md has what more and fewer of them learn


class Objective(nn.Module):
    """A loss over batches, with whatever state and parameters it needs; saved and restored by its state_dict.

    `gallery_size` and `negatives_per_batch` say what `AttentionLoader` has to deliver for it.

    Where a run has several processes, the constructor gets the head's `shards` as a keyword, and each process passes
    its own part of the batch; the loss is that of the whole, and all trained parameters are parts of split centres.

    Attributes:
        command: how a user starts a run with it, for the message after an interruption.
    """

    command = "attfc train"

    @staticmethod
    def gallery_size(config: TrainConfig) -> int:
        return config.dataset.gallery_size

    @staticmethod
    def negatives_per_batch(config: TrainConfig) -> int | str:
        return config.dataset.negatives_per_batch

    def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """The scalar loss of a batch, differentiable in the backbone's parameters and its own."""
        raise NotImplementedError

    def after_step(self, backbone: nn.Module, momentum: float) -> None:
        """Called once the optimizer has moved the backbone."""

    @property
    def kept_gallery(self) -> Tensor | None:
        """Embeddings of gallery images that coming steps share with the last one; None: it needs none."""
        return None

    def restore_gallery(self, embeddings: Tensor | None) -> None:
        """Go on with a `kept_gallery`: take it in place of that of the next batch's images."""

    def fuse_optimizer(
        self, config: OptimizerConfig, lr: float, scaler: torch.amp.GradScaler
    ) -> torch.optim.Optimizer | None:
        """Called once before the optimizer is built; an optimizer of its own that works inside the backward pass."""
        return None

    def classes_of(self, counts: np.ndarray) -> np.ndarray:
        """Labels of the identities that its head has classes for, in the order of these.

        Args:
            counts: Number of images of each identity.
        """
        return np.arange(len(counts))

    def resize_classes(self, mapping: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Change the head's classes.

        Args:
            mapping: [new classes] int64, the old class of each, -1 for one that is new.
            optimizer: That of the run.

        Raises:
            ValueError: Where its head cannot do that.
        """
        raise error("resume", "carry_classes", "be left out with this objective", type(self).__name__)

    def stats(self) -> dict[str, Tensor]:
        """0-dim tensors that describe the last batch, for the log."""
        return {}

    def cosines(self) -> CosineSample | None:
        """Cosines of the last batch to own and other centres, for the run's plots; None where there are none."""
        return None

    def describe(self, momentum: EncoderMomentum) -> str:
        """A line or two for the start-up report."""
        raise NotImplementedError

    def about_the_loss(self) -> str | None:
        """Why its loss does not compare from step to step, and what does; None where it compares."""
        margin = getattr(getattr(self, "head", None), "margin", None)
        if not isinstance(getattr(margin, "t", None), Tensor) or not getattr(margin, "curriculum", True):
            return None
        return (
            f"rises while faces are learned: {type(margin).__name__}'s t grows with the cosines, and hard negatives "
            "weigh more; what compares from step to step is cos, and top-1, the rows nearest to their own centre"
        )


class AttFCObjective(Objective):
    """AttFC (arXiv 2503.06839): probes through the backbone, gallery images through its slow copy, the head in between.

    Images of identities that are only negatives go through the slow copy together with the gallery (`split_gallery`
    separates them): one forward is faster, and both get the same BatchNorm statistics.
    """

    def __init__(
        self, backbone: nn.Module, loader: AttentionLoader, config: TrainConfig, shards: Shards | None = None
    ) -> None:
        super().__init__()
        options = config.head
        self.split, self.parts = options.split_gallery, config.optim.accumulate
        self._gallery: Tensor | None = None
        self._restored = False
        self.encoder = MomentumEncoder(backbone, buffers=options.encoder_buffers)
        self.encoder.train(options.encoder_mode == "train")
        if loader.sampler.gallery_steps > 1 and options.encoder_mode == "train":
            _refuse_single_negatives(self.encoder, loader)
        self.head = AttFC(
            dim=config.model.embedding_dim,
            capacity=container_capacity(loader, config),
            margin=build_margin(config),
            policy=options.policy,
            enqueue=options.enqueue,
            num_classes=loader.num_classes,
            temperature=options.temperature,
            center_memory=options.center_memory,
            class_code=options.class_code,
            dtype=container_dtype(config),
            grad_tolerance=options.grad_tolerance,
            backend=options.backend,
            shards=shards,
        )

    def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
        embeddings = backbone(batch.probe)
        images, negatives = batch.gallery.flatten(0, -4), batch.negatives if len(batch.negatives) else None
        if self._restored or len(images) == 0:  # the embeddings are there, see `AttentionLoader`
            negatives = None if negatives is None else self._encoded(negatives)
        elif negatives is None:
            self._gallery = self._encoded(images)
        elif self.split:
            self._gallery, negatives = self._encoded(images), self._encoded(negatives)
        else:
            both = self._encoded(torch.cat([images, negatives]))
            self._gallery, negatives = both[: len(images)], both[len(images) :]
        self._restored = False
        return self.head(
            embeddings,
            batch.labels,
            self._gallery,
            gallery_rows=batch.gallery_rows,
            extra_centers=negatives,
            extra_labels=None if negatives is None else batch.negative_labels,
        )

    def _encoded(self, images: Tensor) -> Tensor:
        return parts.through(self.encoder, images, self.parts)

    @property
    def kept_gallery(self) -> Tensor | None:
        return self._gallery

    def restore_gallery(self, embeddings: Tensor | None) -> None:
        self._gallery, self._restored = embeddings, embeddings is not None

    def resize_classes(self, mapping: Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.head.resize_classes(mapping)

    def after_step(self, backbone: nn.Module, momentum: float) -> None:
        self.encoder.momentum = momentum
        self.encoder.update(backbone)

    def stats(self) -> dict[str, Tensor]:
        return self.head.stats

    def cosines(self) -> CosineSample | None:
        return self.head.sample_cosines()

    def describe(self, momentum: EncoderMomentum) -> str:
        container, margin = self.head.container, type(self.head.margin).__name__
        backend = _backend.choose(self.head.backend, container.centers, container.centers)
        dtype = str(container.centers.dtype).removeprefix("torch.")
        first = momentum(0)
        rises = f", from {first:.4g} over {momentum.warmup_steps} steps" if first < momentum.final else ""
        return (
            f"head          AttFC with {margin}, container of {container.capacity} centres "
            f"({container.policy}, {dtype}), backend {backend}\n"
            f"encoder       momentum {momentum.final:.4g}{rises}"
        )


class TrainedCentersObjective(Objective):
    """A full or Partial FC head: probes through the backbone, one trained centre for each identity that has probes.

    Identities with fewer than `min_images` images, which AttFC meets as negatives, are left out: the images seen with a
    gradient, and their order, are those of AttFC.
    """

    @staticmethod
    def gallery_size(config: TrainConfig) -> int:
        return 0

    @staticmethod
    def negatives_per_batch(config: TrainConfig) -> int:
        return 0

    def __init__(
        self, backbone: nn.Module, loader: AttentionLoader, config: TrainConfig, shards: Shards | None = None
    ) -> None:
        super().__init__()
        self.options = config.head
        self.min_images = config.dataset.min_images
        classes = self.classes_of(np.bincount(loader.dataset.labels, minlength=loader.num_classes))
        class_of = torch.full((loader.num_classes,), -1)
        class_of[torch.from_numpy(classes)] = torch.arange(len(classes))
        self.class_of: Tensor
        self.register_buffer("class_of", class_of, persistent=False)
        head: Any
        head, rate = (
            (PartialFC, {"sample_rate": config.head.sample_rate})
            if config.head.head == "partial_fc"
            else (FullyConnected, {})
        )
        self.head = head(
            config.model.embedding_dim,
            len(classes),
            margin=build_margin(config),
            grad_tolerance=config.head.grad_tolerance,
            backend=config.head.backend,
            shards=shards,
            **rate,
        )

    def classes_of(self, counts: np.ndarray) -> np.ndarray:
        return np.flatnonzero(counts >= self.min_images)

    def resize_classes(self, mapping: Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.head.resize_classes(mapping, optimizer)

    def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
        labels = torch.where(batch.labels >= 0, self.class_of[batch.labels], -1)
        return self.head(backbone(batch.probe), labels)

    def fuse_optimizer(
        self, config: OptimizerConfig, lr: float, scaler: torch.amp.GradScaler
    ) -> torch.optim.Optimizer | None:
        if not self.options.fuse_optimizer:
            return None
        return self.head.fuse_optimizer(
            lr,
            config.sgd_momentum,
            config.weight_decay,
            kind=config.optimizer,
            grad_scaler=scaler if scaler.is_enabled() else None,
        )

    def stats(self) -> dict[str, Tensor]:
        return self.head.stats

    def describe(self, momentum: EncoderMomentum) -> str:
        head, margin = type(self.head).__name__, type(self.head.margin).__name__
        backend = _backend.choose(self.head.backend, self.head.centers, self.head.centers)
        sampled = f", {self.options.sample_rate:.3g} of them a step" if head == "PartialFC" else ""
        return f"head          {head} with {margin}, {self.head.num_classes} centres{sampled}, backend {backend}"


def _refuse_single_negatives(encoder: nn.Module, loader: AttentionLoader) -> None:
    """Raise ValueError where a step that goes on with the gallery of another would normalise one negative by itself."""
    sampler, steps = loader.sampler, len(loader)
    each = sampler.negatives_per_batch
    counts = {sampler.num_negatives // steps, -(-sampler.num_negatives // steps)} if each is None else {each}
    shares = {count + more for count in counts for more in (0, sampler.world_size - 1)}
    if 1 in {share // sampler.world_size for share in shares} and any(
        isinstance(module, _BatchNorm) for module in encoder.modules()
    ):
        rule = "give each process none or at least 2 in a step, where BatchNorm meets them without a gallery"
        remedy = "set --negatives-per-batch, or --gallery-steps 1"
        raise error("train", "negatives_per_batch", rule, "auto" if each is None else each, remedy)


OBJECTIVES: dict[str, type[Objective]] = {
    "attfc": AttFCObjective,
    "partial_fc": TrainedCentersObjective,
    "fc": TrainedCentersObjective,
}
"""The objective of each `--head`."""


def build_margin(config: TrainConfig) -> margins.Margin:
    """The margin of the config, with its scale and options.

    Raises:
        ValueError: for an unknown name or option.
    """
    name = config.head.margin_name.lower()
    options = {"m": config.head.m} if name in ADDITIVE_MARGINS and config.head.m is not None else {}
    options |= {"scale": config.head.scale, **parse_options(config.head.margin_options, "margin_options")}
    try:
        return margins.build(name, **options)
    except TypeError as cause:
        rule = f"hold arguments of {config.head.margin_name}"
        raise error("train", "margin_options", rule, f"{config.head.margin_options!r} ({cause})") from cause


def container_slots(share: float | None, identities: int, probes: int, negatives: int = 0) -> int:
    """Slots of a container that holds a share of the identities, and at least four batches. Our choice.

    A batch fills a slot a probe and one an extra negative. Fewer than four batches of centres leave too few negatives,
    most of them of the last step; many batches are centres of a network of many steps ago.

    Args:
        share: Of the identities, 0.1 for 10 %; None: four batches, whatever the number of identities.
        identities: Number of them.
        probes: Of a batch.
        negatives: Of a batch.
    """
    return max(_BATCHES_KEPT * (probes + negatives), round((share or 0) * identities))


def container_capacity(loader: AttentionLoader, config: TrainConfig) -> int:
    """Slots of a run's container: `capacity`, or by `container_slots`.

    Raises:
        ValueError: When a given capacity cannot hold one batch.
    """
    sampler = loader.sampler
    probes, negatives = sampler.batch_size, sampler.negatives_per_batch
    if negatives is None:  # "auto": spread over the epoch, so that batches differ by one
        negatives = -(-sampler.num_negatives // len(loader))
    rows = probes + negatives
    if config.head.capacity is None:
        return container_slots(config.head.capacity_share, loader.num_classes, probes, negatives)
    if config.head.capacity < rows:
        rule = f"hold a whole batch, {rows} centres ({probes} probes and {negatives} negatives)"
        remedy = "raise --capacity, or lower --batch-size or --negatives-per-batch"
        raise error("train", "capacity", rule, config.head.capacity, remedy)
    return config.head.capacity


def container_dtype(config: TrainConfig) -> torch.dtype:
    """The number format of a run's container."""
    name = config.head.container_dtype
    return DTYPES[config.optim.precision] if name == "auto" else getattr(torch, name)
