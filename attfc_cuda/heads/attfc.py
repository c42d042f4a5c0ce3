"""The AttFC head: a margin softmax with positives made on the fly and negatives from a bounded container."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attfc_cuda import functional, presets
from attfc_cuda._check import error
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.heads import fused_step
from attfc_cuda.heads.checks import (
    check_inputs,
    checked_margin,
    known_labels,
    require_finite,
    require_tensors,
    shared_gallery,
)
from attfc_cuda.heads.class_codes import class_codes
from attfc_cuda.heads.container import DynamicClassContainer
from attfc_cuda.heads.refusals import refuse_ddp, refuse_recomputation, refuse_transforms
from attfc_cuda.heads.statistics import own_class_pairs, step_statistics
from attfc_cuda.heads.unit_rows import unit_rows, without_autocast
from attfc_cuda.margins import AdaSin, Margin

ENQUEUE = ("before", "after")

# What `sample_cosines` looks at, at most: a product of 64 x 16384 is nothing beside a step.
_SAMPLE_ROWS, _SAMPLE_SLOTS = 64, 16384


class CosineSample(NamedTuple):
    """Cosines of some rows of the last step, float32 on the CPU.

    Attributes:
        positive: [P], to the row's own class centre.
        negative: [N], to centres of other classes in the container.
        age: [N], for each negative the number of steps since its centre came in, about: rows since then over rows a
            step; 0 if it came in with the row itself.
    """

    positive: Tensor
    negative: Tensor
    age: Tensor


class AttFC(nn.Module):
    """``loss = head(embeddings, labels, gallery_embeddings)``: the attention fully connected layer, in memory S x D.

    PyTorch equivalent, up to normalisation and the margin (class y's own slots masked out of the negatives):

        g = F.normalize((softmax(cos(x, G) / temperature) * G).sum(1))
        loss = F.cross_entropy(scale * cat([margin(cos(x, g)), cos(x, container.centers)], 1), zeros(B))
        container.enqueue(g, labels)

    without the B x S logits.

    In eval mode neither the container nor the margin's state moves, so that the loss of held-out data is against the
    container as it stands (with enqueue="before" too).

    Normalisation, margin and loss are computed in float32 (float64 with a float64 container) whatever autocast says.
    The host never waits for the device (except for check_finite, and for the sizes that `Shards` exchanges) and no
    shape depends on values: without shards a step compiles with fullgraph=True and can be captured in a CUDA graph.
    The head is deterministic where the backend is.

    With AdaSin (without its ablations and `trim`), without shards, and on a backend that has kernels for it
    (`attfc info`), the whole step is a handful of fused operators, nine launches on a GPU (twelve with
    policy="refresh"); what falls back to one operator at a time, and why, stands in the head's repr. The numbers are
    the same up to rounding.

    Args:
        dim: length D of an embedding.
        capacity: slots S of the container, at least the rows enqueued per step; `attfc train` takes four times as many.
        margin: a `margins.Margin`, whose scale is the head's; None: AdaSin with the preset's m and scale, m 0.2 and
            scale 24 by default. A margin that you construct yourself starts with its paper's numbers.
        policy: the container's, see `DynamicClassContainer`, as are num_classes, dtype and check_labels; None: the
            preset's, `"refresh"` by default, which needs num_classes.
        enqueue: `"before"`: the step's own centres enter the container before the loss and are fresh negatives for the
            other rows (our choice, the default: without them every negative is staler than every positive, and a
            network can learn that difference instead of faces). `"after"`: as published. None: the preset's.
        num_classes: number of classes of the data set.
        temperature: of the attention over the gallery, above 0. See `functional.generate_class_centers`.
        dtype: of the stored centres, and the one in which the sweep over the container multiplies.
        grad_tolerance: of the sweep, see `functional.negative_logsumexp`, as is backend.
        backend: of the sweep.
        check_finite: report a NaN or an infinity among the inputs by a ValueError that names the row. It reads one
            value back, so the host waits; compiled or captured, the device asserts instead and no row is named. Rows
            with a negative label are not looked at. If off, a NaN in a row makes the loss NaN; it enters neither the
            container nor the margin's state.
        check_labels: report labels at or above num_classes, in eval mode too; if off, such rows are left out.
        shards: a `distributed.Shards`, to split the container over the processes of a group: each process brings its
            own batch, every batch's fresh centres enter the one container in order of rank, and the loss is the mean
            over all batches, the same on every process: that of one process given all batches in one. Do not wrap the
            head in DistributedDataParallel; wrap the backbone.
        class_code: length c >= 0 of a fixed random direction of its class that is added to every unit class centre,
            positive and negative, before it is normalised again: g <- F.normalize(g + c class_codes(y, dim)). Centres
            that follow the embeddings alone leave them in the few directions of the untrained network, one of which can
            be whatever sets apart a part of the data; codes give each class a target of its own from the first step, as
            the random start of a full FC layer does. They cost no memory, until classes are resized: from then on one
            number a class, by which it keeps its code. 0: as published. None: the preset's, 1 by default.
        center_memory: share b in [0, 1) of the container's own centre of a class in its new one, so that a centre
            averages over more images than a step shows: g <- F.normalize((1 - b) g + b stored). Needs policy="refresh"
            and no shards.
        device: of the container and the margin's state; None: torch's default device.
        preset: what margin, policy, enqueue and class_code are where they are None: `"default"`, as `attfc train`, or
            `"published"`: AdaSin with m 0.5 and scale 64, a fifo of stale copies, enqueued after the loss, no codes,
            which stays near chance for most of a short run. See `attfc_cuda.presets`.

    Gradient:
        To `embeddings` only, through the normalisation; class centres have none, on either side.

    Source:
        AttFC, arXiv 2503.06839; masked empty slots, `"before"`, `"refresh"`, class_code, center_memory and the
        attention's form are our choice.

    Raises:
        ValueError: naming the argument.
        TypeError: naming the argument.
    """

    def __init__(
        self,
        dim: int,
        capacity: int,
        margin: Margin | None = None,
        policy: str | None = None,
        enqueue: str | None = None,
        num_classes: int | None = None,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
        grad_tolerance: float | None = None,
        backend: str = "auto",
        check_finite: bool = False,
        check_labels: bool = True,
        shards: Shards | None = None,
        class_code: float | None = None,
        center_memory: float = 0.0,
        device: torch.device | str | None = None,
        preset: str = "default",
    ) -> None:
        super().__init__()
        start = presets.named(preset, "AttFC")
        policy = start.policy if policy is None else policy
        enqueue = start.enqueue if enqueue is None else enqueue
        class_code = start.class_code if class_code is None else class_code
        if enqueue not in ENQUEUE:
            raise error("AttFC", "enqueue", f"be one of {ENQUEUE}", repr(enqueue))
        if not temperature > 0:
            raise error("AttFC", "temperature", "be above 0", temperature)
        if not 0 <= class_code < math.inf:
            raise error("AttFC", "class_code", "be a finite number of at least 0", class_code)
        if not 0 <= center_memory < 1:
            raise error("AttFC", "center_memory", "lie in [0, 1)", center_memory)
        if center_memory and policy != "refresh":
            remedy = 'use policy="refresh", in which a class has one slot'
            raise error("AttFC", "center_memory", 'be 0 with policy="fifo"', center_memory, remedy)
        if center_memory and shards is not None:
            raise error("AttFC", "center_memory", "be 0 with shards", center_memory)
        margin = checked_margin("AttFC", margin, presets.MARGIN_OF_HEAD["attfc"], start)
        functional.check_sweep_options("AttFC", grad_tolerance, backend)
        self.container = DynamicClassContainer(
            capacity, dim, num_classes, policy, dtype, check_labels, shards, device=device
        )
        margin = margin if device is None else margin.to(device)
        self.margin, self.shards = margin, shards
        self.enqueue, self.temperature, self.check_finite = enqueue, temperature, check_finite
        self.class_code, self.center_memory = class_code, center_memory
        # Which code each class has; None: its own number's, as long as classes have not been resized.
        self.code_of_class: Tensor | None
        self.register_buffer("code_of_class", None)
        self.grad_tolerance, self.backend = grad_tolerance, backend
        self._stats: dict[str, Tensor] = {}
        self._last_rows: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def reset_parameters(self) -> None:
        """Empty the container and bring the margin's state and the class codes back to their start."""
        self.container.reset()
        self.margin.reset_parameters()
        self.code_of_class = None

    @property
    def optional_state(self) -> dict[str, Tensor]:
        """Places for what a state may have and this head need not: which codes its classes have, once resized."""
        if self.class_code == 0 or self.container.num_classes is None:
            return {}
        return {"code_of_class": torch.arange(self.container.num_classes, device=self.container.labels.device)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AttFC:
        """nn.Module's. What has just got memory, but no content yet, starts as after construction."""
        if self.code_of_class is not None and self.code_of_class.is_meta:
            self.code_of_class = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """nn.Module's. A state without codes is one whose classes have their own; earlier releases wrote those down."""
        name = f"{prefix}code_of_class"
        part_of_it = name not in state_dict and f"{prefix}container.labels" not in state_dict
        for place in () if part_of_it else self.optional_state.values():
            kept = name in state_dict and not _are_numbers(state_dict[name], len(place))
            self.code_of_class = place if kept else None
            if not kept:
                state_dict = {key: value for key, value in state_dict.items() if key != name}
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        own = f"class_code={self.class_code}, center_memory={self.center_memory}"
        reason = fused_step.why_not(self.margin, self.shards is not None)
        fused = "True" if reason is None else f"False ({reason})"
        options = f"enqueue={self.enqueue!r}, temperature={self.temperature}, {own}, backend={self.backend!r}"
        return f"{options}, fused_step={fused}"

    @property
    def stats(self) -> dict[str, Tensor]:
        """What the last forward saw: detached 0-dim tensors on the head's device; empty before the first forward.

        Rows with a negative label count nowhere, and a mean over nothing is 0.

            loss             what forward returned
            positive_cosine  mean cosine of the rows to their own class centre
            hard_fraction    hard negatives over valid negatives, all rows together; 0 for a margin without any
            container_top1   share of rows that are nearer to their own centre than to every valid negative
            fill             slots in use during the sweep (int64)
            omitted_mass     mean share of a row's softmax whose gradient the sweep left out
            t                the margin's curriculum state, for margins that have one
        """
        return dict(self._stats)

    @torch.no_grad()
    def sample_cosines(self) -> CosineSample | None:
        """Cosines of up to 64 rows of the last forward to their own centres and to up to 16384 of the container's, as
        the container stands; None before the first forward. The host waits: call it now and then, not at every step."""
        if self._last_rows is None:
            return None
        unit, labels, positive, step_rows = self._last_rows
        container = self.container
        slot_labels, ages = container.labels_here, container.age[container.first : container.last]
        slots = torch.arange(0, len(slot_labels), -(-len(slot_labels) // _SAMPLE_SLOTS) or 1, device=unit.device)
        slots = slots[slot_labels[slots] >= 0]
        real = torch.promote_types(unit.dtype, torch.float32)
        cosine = unit.to(real) @ container.centers[slots].to(real).T
        counts = labels >= 0
        valid = counts[:, None] & (slot_labels[slots] != labels[:, None])
        age = torch.div(ages[slots], step_rows.clamp_min(1), rounding_mode="floor").expand_as(cosine)
        return CosineSample(positive[counts].float().cpu(), cosine[valid].float().cpu(), age[valid].cpu())

    def resize_classes(self, mapping: Tensor) -> None:
        """Change the data set's classes between runs, see `DynamicClassContainer.resize_classes`. Classes keep their
        codes; new ones get codes that none had."""
        codes = self.optional_state.get("code_of_class") if self.code_of_class is None else self.code_of_class
        self.container.resize_classes(mapping)
        if codes is not None:
            mapping = mapping.to(codes.device)
            fresh = codes.max() + (mapping < 0).cumsum(0)
            codes = torch.where(mapping < 0, fresh, codes[mapping.clamp_min(0)])
            self.code_of_class = None if _are_numbers(codes, len(mapping)) else codes

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        gallery_embeddings: Tensor,
        *,
        gallery_rows: Tensor | None = None,
        extra_centers: Tensor | None = None,
        extra_labels: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of the batch; in train mode also one step of the container and of the margin's state.

        Args:
            embeddings: [B, D], the probes', of any length, float32, bfloat16, float16 or float64. B may differ from
                call to call; 0 gives loss 0. A row shorter than 1e-6 counts as orthogonal to everything: finite loss,
                gradient 0.
            labels: [B] int64; a negative label leaves its row out of everything: no loss, no gradient, not enqueued,
                whatever the row holds.
            gallery_embeddings: [B, r, D], or [B, D] for r = 1: r >= 1 other images of each row's class, by the momentum
                encoder. Taken without gradient. With `gallery_rows` [U, D], each image's once.
            gallery_rows: [B, r] int64, for embeddings that rows share: which of the U are each row's. Equals
                `gallery_embeddings[gallery_rows]` in their place. A row's centre is still its own, since the attention
                looks at its probe; rows of a class enqueue one each, see `DynamicClassContainer.enqueue`.
            extra_centers: [M, D], centres of classes that are negatives only, such as identities with a single image,
                which have no second one to be a positive. Normalised and enqueued with the batch, as its older part.
            extra_labels: [M] int64, the classes of `extra_centers`.

        Returns:
            0-dim loss, float32 (float64 with a float64 container); 0, with gradient 0, when no row counts.

        Raises:
            ValueError: for shapes, devices, B + M > capacity, labels out of range, values that are not finite
                (`check_finite`). Nothing has moved then, nor in the other cases.
            TypeError: for dtypes, and for what is no tensor.
            RuntimeError: where activation checkpointing would run it twice, inside a DistributedDataParallel that would
                overwrite the container, or where the backend cannot run.
            NotImplementedError: under torch.func.vmap or jvp; in train mode under torch.func.grad too.
        """
        given = {"embeddings": embeddings, "labels": labels, "gallery_embeddings": gallery_embeddings}
        extra = {"gallery_rows": gallery_rows, "extra_centers": extra_centers, "extra_labels": extra_labels}
        require_tensors("AttFC", given | {name: value for name, value in extra.items() if value is not None})
        if gallery_rows is not None:
            gallery_embeddings = shared_gallery("AttFC", gallery_embeddings, gallery_rows, self.container.dim)
        elif gallery_embeddings.ndim == 2:
            gallery_embeddings = gallery_embeddings[:, None]
        if extra_centers is None and extra_labels is None:
            extra_centers, extra_labels = gallery_embeddings.new_empty(0, self.container.dim), labels.new_empty(0)
        self._check(embeddings, labels, gallery_embeddings, extra_centers, extra_labels)
        inputs = (embeddings, gallery_embeddings.detach(), extra_centers.detach())
        with without_autocast(embeddings.device.type):
            backend = None
            if fused_step.why_not(self.margin, self.shards is not None) is None:
                backend = fused_step.backend_for(self.container, self.backend, inputs)
            step = self._step if backend is None else functools.partial(self._fused_step, backend)
            return step(embeddings, labels, *inputs[1:], extra_labels)

    def _fused_step(
        self,
        backend: str,
        embeddings: Tensor,
        labels: Tensor,
        gallery: Tensor,
        extra_centers: Tensor,
        extra_labels: Tensor,
    ) -> Tensor:
        """`_step` in the operators of fused_step.py."""
        container = self.container
        options = fused_step.Options(
            self.temperature,
            self.class_code,
            self.center_memory,
            self.code_of_class if self.class_code else None,
            functional.tolerance_of("AttFC", self.grad_tolerance, container.centers.dtype),
            backend,
        )
        rows = fused_step.head_rows(embeddings, labels, gallery, extra_centers, extra_labels, container, options)
        if self.training:
            given = torch.cat([extra_labels, labels]) if len(extra_labels) else labels
            container.check(rows.new_centers, given)
            if self.enqueue == "before":
                container.enqueue_rows(rows.new_centers, rows.new_labels, backend)
        else:
            container.require_labels("AttFC", labels)
        assert isinstance(self.margin, AdaSin)
        loss, statistics = fused_step.loss_and_statistics(
            embeddings, rows, extra_labels, container, self.margin, options
        )
        sample = (x[:_SAMPLE_ROWS] for x in (rows.units, rows.labels, rows.cosine))
        self._last_rows = (*sample, statistics.pop("step_rows"))  # type: ignore[assignment]
        self._stats = statistics
        if self.training and self.enqueue == "after":
            container.enqueue_rows(rows.new_centers, rows.new_labels, backend)
        return loss

    def _step(
        self, embeddings: Tensor, labels: Tensor, gallery: Tensor, extra_centers: Tensor, extra_labels: Tensor
    ) -> Tensor:
        container = self.container
        counts = known_labels(labels, container.num_classes) >= 0
        # Rows that do not count are zeroed at the door: a NaN in one would come back as 0 * NaN in the gradient.
        unit, norm = unit_rows(torch.where(counts[:, None], embeddings, 0))
        centers = functional.generate_class_centers(unit.detach(), gallery, self.temperature)
        extra, shards = unit_rows(extra_centers)[0].to(centers.dtype), self.shards
        if self.class_code:
            centers, extra = self._coded(centers, labels), self._coded(extra, extra_labels)
        if self.center_memory:
            both = self._remembered(torch.cat([centers, extra]), torch.cat([labels, extra_labels]))
            centers, extra = both[: len(labels)], both[len(labels) :]
        target_cosine = (unit * centers).sum(dim=1)
        if shards is not None:
            sizes, extra_sizes = shards.sizes(labels, extra_labels)
            labels = shards.gather(labels, sizes)
            unit = shards.gather_rows(unit, sizes)
            target_cosine = shards.gather_rows(target_cosine, sizes, partial=False)
            if self.margin.needs_norm:
                norm = shards.gather_rows(norm, sizes, partial=False)
            if self.training:
                centers = shards.gather(centers.to(container.centers.dtype), sizes)
                extra = shards.gather(extra.to(container.centers.dtype), extra_sizes)
                extra_labels = shards.gather(extra_labels, extra_sizes)
        if self.training:
            new, new_labels = torch.cat([extra, centers]), torch.cat([extra_labels, labels])
            # Before anything moves, so that a refused batch leaves the state as it was.
            container.check(new, new_labels)
            functional.check_sweep_options("AttFC", self.grad_tolerance, self.backend, container.centers)
            if self.enqueue == "before":
                container.enqueue(new, new_labels)
        else:
            container.require_labels("AttFC", labels)
        labels = known_labels(labels, container.num_classes)
        output = functional.margin_softmax_loss(
            unit,
            container.centers,
            labels,
            container.labels_here,
            self.margin,
            target_cosine=target_cosine,
            norm=norm if self.margin.needs_norm else None,
            shards=shards,
            grad_tolerance=self.grad_tolerance,
            backend=self.backend,
        )
        slot_labels = container.labels_here
        own_pairs = own_class_pairs(labels, slot_labels)
        self._stats = step_statistics(output, labels, (slot_labels >= 0).sum(), own_pairs, self.margin, shards)
        sample, step_rows = (unit, labels, target_cosine), (labels >= 0).sum() + (extra_labels >= 0).sum()
        self._last_rows = (*(x[:_SAMPLE_ROWS].detach().clone() for x in sample), step_rows)  # type: ignore[assignment]
        if self.training and self.enqueue == "after":
            container.enqueue(new, new_labels)
        return output.loss

    def _coded(self, centers: Tensor, labels: Tensor) -> Tensor:
        """Unit centres [B, D] with their classes' codes added."""
        if self.code_of_class is not None:
            # Labels that are none come to nothing: their rows are not looked at.
            labels = self.code_of_class[labels.clamp(0, len(self.code_of_class) - 1)]
        codes = class_codes(labels, self.container.dim).to(centers.dtype)
        return unit_rows(centers + self.class_code * codes)[0]

    @torch.no_grad()
    def _remembered(self, centers: Tensor, labels: Tensor) -> Tensor:
        """Unit centres [B, D], each mixed with the one that the container holds of its class."""
        stored, held = self.container.lookup(labels)
        mixed = torch.lerp(centers, stored.to(centers.dtype), self.center_memory)
        return torch.where(held[:, None], unit_rows(mixed)[0], centers)

    def _check(
        self, embeddings: Tensor, labels: Tensor, gallery: Tensor, extra_centers: Tensor, extra_labels: Tensor
    ) -> None:
        dim, device = self.container.dim, self.container.centers.device
        if (extra_centers is None) != (extra_labels is None):
            missing = "extra_centers" if extra_centers is None else "extra_labels"
            raise error("AttFC", missing, "be given together with the other of the two", None)
        moves = "its container and the margin's state" if self.training else None
        refuse_transforms("AttFC", moves)
        refuse_recomputation("AttFC", moves)
        if self.training:
            refuse_ddp(self, "AttFC", (self.container.centers,), split=self.shards is not None, fused=False)
        rows = embeddings.shape[0] if embeddings.ndim else 0
        if embeddings.shape != (rows, dim):
            raise error("AttFC", "embeddings", f"have shape [B, {dim}]", list(embeddings.shape))
        if gallery.ndim != 3 or gallery.shape[0] != rows or gallery.shape[1] < 1 or gallery.shape[2] != dim:
            rule = f"have shape [{rows}, r, {dim}] with r >= 1, or [{rows}, {dim}]"
            raise error("AttFC", "gallery_embeddings", rule, list(gallery.shape))
        if extra_centers.ndim != 2 or extra_centers.shape[1] != dim:
            raise error("AttFC", "extra_centers", f"have shape [M, {dim}]", list(extra_centers.shape))
        floats = {"embeddings": embeddings, "gallery_embeddings": gallery, "extra_centers": extra_centers}
        integers = {"labels": (labels, rows), "extra_labels": (extra_labels, extra_centers.shape[0])}
        check_inputs("AttFC", floats, integers, device)
        if self.check_finite:
            for argument, value in floats.items():
                require_finite("AttFC", argument, value, extra_labels if argument == "extra_centers" else labels)


def _are_numbers(codes: Tensor, count: int) -> bool:
    """Whether codes are 0, 1, ..., count - 1."""
    return len(codes) == count and torch.equal(codes, torch.arange(len(codes), device=codes.device))
