"""The full FC head: one trained class centre for each identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attfc_cuda import functional
from attfc_cuda._check import error, require_labels, require_mapping
from attfc_cuda.distributed.shards import Shards, take_rows
from attfc_cuda.heads.checks import (
    check_inputs,
    checked_margin,
    known_labels,
    require_count,
    require_finite,
    require_tensors,
)
from attfc_cuda.heads.fused_optimizer import FusedOptimizer
from attfc_cuda.heads.refusals import refuse_ddp, refuse_recomputation, refuse_transforms
from attfc_cuda.heads.statistics import step_statistics
from attfc_cuda.heads.unit_rows import unit_rows
from attfc_cuda.margins import Margin
from attfc_cuda.ops.trained_centers import GradientSink
from attfc_cuda.presets import MARGIN_OF_HEAD

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INITIAL_STD = 0.01
# Centres are drawn in blocks of their own seeds, so that a class starts the same however the classes are split.
_INITIAL_BLOCK = 4096


class Selection(NamedTuple):
    """The class centres that one step meets.

    Attributes:
        centers: [K, D], as they are stored, not normalised.
        center_labels: [K] int64, the class of each.
        target_slot: [B] int64, the place among them of each row's own class; -1 where it is not there.
        gradient_sink: takes the gradient of `centers` in place of autograd; None: autograd does.
    """

    centers: Tensor
    center_labels: Tensor
    target_slot: Tensor
    gradient_sink: GradientSink | None


class FullyConnected(nn.Module):
    """``loss = head(embeddings, labels)``: margin softmax over one trained centre for each class.

    PyTorch equivalent, up to the margin:

        F.cross_entropy(scale * F.normalize(embeddings) @ F.normalize(head.centers).T, labels, ignore_index=-1)

    without the B x N logits, without a normalised copy of the centres, and with one N x D gradient written once (none
    with `fuse_optimizer`). One process needs no process group; B may differ from call to call.

    Args:
        dim: length D of an embedding.
        num_classes: N.
        margin: a `margins.Margin`; ArcFace(m=0.2, scale=24) when None, as in `attfc train`.
        dtype: of the centres, float32 by default: the master weights. Under autocast the products take its dtype.
        shards: a `distributed.Shards`, to split the classes over the processes of a group: `centers` is then this
            process's part [n, D], `embeddings` and `labels` its own batch, and the loss the mean over all batches, the
            same on every process. Do not wrap the head in DistributedDataParallel; wrap the backbone.
        check_labels: report labels at or above num_classes: on the CPU by a ValueError naming the row, elsewhere by an
            assertion on the device, and not while a CUDA graph is captured (ATTFC_DEBUG=1: see
            `DynamicClassContainer`). If off, such rows are left out.
        check_finite: as in `AttFC`, as are grad_tolerance and backend.
        grad_tolerance: of the sweep.
        backend: of the sweep.
        device: of the centres and the margin's state; None: torch's default device.

    Attributes:
        centers: parameter [N, D], drawn from N(0, 0.01), of any length: a cosine is to the centre's direction. A centre
            shorter than 1e-6 has none: its cosines and its gradient are 0.

    Gradient:
        To embeddings and to centers; that to centers is orthogonal to each centre.

    Source:
        The last layer of ArcFace (arXiv 1801.07698); its execution in two sweeps is our own.

    Raises:
        ValueError: naming the argument.
        TypeError: naming the argument.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        margin: Margin | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        shards: Shards | None = None,
        check_labels: bool = True,
        check_finite: bool = False,
        grad_tolerance: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self._name = type(self).__name__
        for argument, value in {"dim": dim, "num_classes": num_classes}.items():
            require_count(self._name, argument, value)
        if dtype not in _DTYPES:
            raise error(self._name, "dtype", f"be one of {_DTYPES}", dtype, kind=TypeError)
        margin = checked_margin(self._name, margin, MARGIN_OF_HEAD["fc"])
        margin = margin if device is None else margin.to(device)
        functional.check_sweep_options(self._name, grad_tolerance, backend)
        self.dim, self.num_classes, self.margin, self.shards = dim, num_classes, margin, shards
        self.check_labels, self.check_finite = check_labels, check_finite
        self.grad_tolerance, self.backend = grad_tolerance, backend
        self.first, self.last = (0, num_classes) if shards is None else shards.bounds(num_classes)
        self.centers = nn.Parameter(torch.empty(self.last - self.first, dim, dtype=dtype, device=device))
        _draw_centers(self.centers, self.first)
        self.register_buffer("classes", torch.arange(self.first, self.last, device=device), persistent=False)
        self.register_load_state_dict_post_hook(_renumber_classes)
        self._fused: FusedOptimizer | None = None
        self._stats: dict[str, Tensor] = {}

    def reset_parameters(self) -> None:
        """Draw the centres anew, with torch's generator, and bring the margin's state back to its start."""
        _draw_centers(self.centers, self.first)
        self.margin.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FullyConnected:
        """nn.Module's. `classes`, which no checkpoint holds, is written anew where it has just got memory."""
        nothing_yet = self.classes.is_meta
        super()._apply(fn, recurse)
        if nothing_yet:
            _renumber_classes(self)
        return self

    def extra_repr(self) -> str:
        part = "" if self.shards is None else f", classes {self.first} to {self.last - 1} here"
        return f"dim={self.dim}, num_classes={self.num_classes}{part}, backend={self.backend!r}"

    @property
    def stats(self) -> dict[str, Tensor]:
        """What the last forward saw, as `AttFC.stats`; fill is the number of centres that took part."""
        return dict(self._stats)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over the rows whose label is not negative; 0, with gradient 0, when there is none.

        Args:
            embeddings: [B, D] of any length, float32, bfloat16, float16 or float64; a row shorter than 1e-6 counts as
                orthogonal to everything.
            labels: [B] int64; a negative one leaves its row out, whatever the row holds.

        Returns:
            0-dim loss, float32 (float64 with float64 centres).

        Raises:
            ValueError: for shapes, devices, labels out of range.
            TypeError: for dtypes, and for what is no tensor.
            RuntimeError: where activation checkpointing would move the margin's state twice, or inside a
                DistributedDataParallel that would let the processes' centres drift apart.
            NotImplementedError: under torch.func.vmap or jvp; in train mode with a margin that has running state under
                torch.func.grad too.
        """
        self._check(embeddings, labels)
        labels = known_labels(labels, self.num_classes)
        unit, norm = unit_rows(torch.where((labels >= 0)[:, None], embeddings, 0))
        if self.shards is not None:
            (sizes,) = self.shards.sizes(labels)
            labels = self.shards.gather(labels, sizes)
            unit = self.shards.gather_rows(unit, sizes)
            if self.margin.needs_norm:
                norm = self.shards.gather_rows(norm, sizes, partial=False)
        selected = self.select(labels)
        output = functional.margin_softmax_loss(
            unit,
            selected.centers,
            labels,
            selected.center_labels,
            self.margin,
            target_slot=selected.target_slot,
            one_slot_per_class=True,
            center_scale=functional.inverse_norms(selected.centers),
            gradient_sink=selected.gradient_sink,
            norm=norm if self.margin.needs_norm else None,
            shards=self.shards,
            grad_tolerance=self.grad_tolerance,
            backend=self.backend,
        )
        if selected.gradient_sink is not None and output.loss.requires_grad and not torch.compiler.is_compiling():
            fused, steps = self._fused, self._fused.steps
            output.loss.register_hook(lambda _: fused.require_latest(steps))
        # A class has one centre: no need to look for pairs among N labels.
        own_pairs = (selected.target_slot >= 0).sum()
        fill = own_pairs.new_full((), len(selected.centers))
        self._stats = step_statistics(output, labels, fill, own_pairs, self.margin, self.shards)
        return output.loss

    def select(self, labels: Tensor) -> Selection:
        """The centres that a batch of these labels [B] meets: here all of them."""
        here = (labels >= self.first) & (labels < self.last)
        target_slot = torch.where(here, labels - self.first, -1)
        if self._fused is None or not self.centers.requires_grad:
            return Selection(self.centers, self.classes, target_slot, None)
        # In eval mode nothing may move them, and they never get a gradient of their own.
        centers, sink = (self.centers, self._fused.apply) if self.training else (self.centers.detach(), None)
        return Selection(centers, self.classes, target_slot, sink)

    def fuse_optimizer(
        self,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        kind: str = "sgd",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        grad_scaler: torch.amp.GradScaler | None = None,
        max_row_norm: float | None = None,
    ) -> FusedOptimizer:
        """From here on the centres are updated inside `loss.backward()`, a block at a time: no gradient buffer.

        Leave the centres out of your own optimizer (they get no `.grad`) and out of gradient accumulation: each
        backward pass in train mode that reaches them is a step. In eval mode they have no gradient. A gradient of all
        centres never exists, so that its norm cannot be clipped; `max_row_norm` clips each centre's own.

        Args:
            lr: learning rate, at least 0.
            momentum: of "sgd", at least 0.
            weight_decay: at least 0.
            kind: "sgd" or "adamw"; each as torch.optim's, on the rows that took part.
            betas: of "adamw", in [0, 1).
            eps: of "adamw", at least 0.
            grad_scaler: the GradScaler that scales the loss, if there is one.
            max_row_norm: the largest norm of one centre's gradient, above 0; longer ones are scaled down to it.

        Returns:
            The optimizer: set its `param_groups[0]["lr"]` or give it to a schedule, and save its state_dict.

        Raises:
            ValueError: naming the argument.
        """
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        self._fused = FusedOptimizer(self.centers, kind, settings, grad_scaler, max_row_norm)
        return self._fused

    @property
    def split_rows(self) -> dict[str, int]:
        """The parameters of which this process holds a part, and their rows over all processes."""
        return {"centers": self.num_classes}

    @torch.no_grad()
    def resize_classes(self, mapping: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Change the classes between runs.

        Args:
            mapping: [new N] int64, each new class's old number, -1 for one that is new, which starts as after
                construction. With shards every process gives the whole of it, the same.
            optimizer: your own that holds the centres, if there is one; a fused one is known. Its state follows (zeros
                for new classes) and it holds the new parameter: `centers` is another tensor afterwards, without
                gradient.

        Raises:
            ValueError: for another shape, an entry that is no class, a class named twice. Nothing has moved then.
            TypeError: for another dtype.
        """
        require_mapping(f"{self._name}.resize_classes", mapping, self.num_classes)
        old, old_total, device = self.centers, self.num_classes, self.centers.device
        self.num_classes = len(mapping)
        self.first, self.last = (0, self.num_classes) if self.shards is None else self.shards.bounds(self.num_classes)
        rows = mapping[self.first : self.last].to(device)
        fresh = torch.empty(self.last - self.first, self.dim, dtype=old.dtype, device=device)
        _draw_centers(fresh, self.first)
        kept = take_rows(old.detach(), rows, old_total, self.shards)
        self.centers = nn.Parameter(torch.where((rows >= 0)[:, None], kept, fresh), old.requires_grad)
        self.classes = torch.arange(self.first, self.last, device=device)
        for holder in filter(None, (self._fused, optimizer)):
            for group in holder.param_groups:
                group["params"] = [self.centers if p is old else p for p in group["params"]]
            for name, value in holder.state.pop(old, {}).items():
                per_row = isinstance(value, Tensor) and value.shape == old.shape
                moved = take_rows(value, rows, old_total, self.shards) if per_row else value
                holder.state[self.centers][name] = moved

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        name, device = self._name, self.centers.device
        require_tensors(name, {"embeddings": embeddings, "labels": labels})
        has_state = next(self.margin.buffers(), None) is not None
        moves = "the margin's state" if has_state and self.training else None
        refuse_transforms(name, moves)
        refuse_recomputation(name, moves)
        if self.training:
            refuse_ddp(self, name, (), split=self.shards is not None, fused=self._fused is not None)
        if self._fused is not None and self._fused.weight is not self.centers:
            rule, remedy = "be the parameter that fuse_optimizer was called with", "call fuse_optimizer again"
            got = "another (load_state_dict with assign=True, or a parametrization?)"
            raise error(name, "centers", rule, got, remedy)
        if self._fused is not None:
            self._fused.require_state_beside_weight(name)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise error(name, "embeddings", f"have shape [B, {self.dim}]", list(embeddings.shape))
        check_inputs(name, {"embeddings": embeddings}, {"labels": (labels, len(embeddings))}, device)
        if self.check_labels:
            require_labels(name, labels, self.num_classes)
        if self.check_finite:
            require_finite(name, "embeddings", embeddings, labels)


@torch.no_grad()
def _draw_centers(centers: Tensor, first: int) -> None:
    """Fill the centres [n, D] of the classes from `first` on with their random start, the same on every device."""
    if centers.is_meta:
        return
    seed, last = int(torch.randint(2**62, (), device="cpu")), first + len(centers)
    for block in range(first // _INITIAL_BLOCK, -(-last // _INITIAL_BLOCK)):
        generator = torch.Generator().manual_seed((seed + block) % 2**63)
        drawn = torch.randn(_INITIAL_BLOCK, centers.shape[1], generator=generator, device="cpu") * _INITIAL_STD
        start, end = max(first, block * _INITIAL_BLOCK), min(last, (block + 1) * _INITIAL_BLOCK)
        centers[start - first : end - first] = drawn[start - block * _INITIAL_BLOCK : end - block * _INITIAL_BLOCK]


def _renumber_classes(head: FullyConnected, incompatible_keys: Any = None) -> None:
    """The numbers of the classes here, beside the centres: after a load with assign=True, or where memory is new."""
    if head.classes.is_meta or head.classes.device != head.centers.device or incompatible_keys is None:
        head.classes = torch.arange(head.first, head.last, device=head.centers.device)
