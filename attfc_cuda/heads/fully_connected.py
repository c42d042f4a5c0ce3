"""The full FC head: one trained class centre for each identity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attfc_cuda import functional
from attfc_cuda._check import error, require_labels, require_mapping
from attfc_cuda.distributed.shards import Shards, take_rows
from attfc_cuda.heads.checks import check_inputs, checked_margin, require_finite
from attfc_cuda.heads.fused_optimizer import FusedOptimizer
from attfc_cuda.heads.statistics import step_statistics
from attfc_cuda.heads.unit_rows import unit_rows
from attfc_cuda.margins import Margin
from attfc_cuda.ops.trained_centers import GradientSink

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INITIAL_STD = 0.01
# Centres are drawn in blocks of their own seeds, so that a class starts the same however the classes are split.
_INITIAL_BLOCK = 4096


class Selection(NamedTuple):
    """The centres of one step: `centers` [K, D] raw, the classes in their slots, the slot of each row's own class."""

    centers: Tensor
    center_labels: Tensor
    target_slot: Tensor
    gradient_sink: GradientSink | None


class FullyConnected(nn.Module):
    """``loss = head(embeddings, labels)``: margin softmax over one trained centre for each class.

    PyTorch equivalent, up to the margin:
        F.cross_entropy(scale * F.normalize(embeddings) @ F.normalize(head.centers).T, labels, ignore_index=-1)
    without the B x N logits, without a normalised copy of the centres, and with one N x D gradient written once (none
    with `fuse_optimizer`).

    dim: length D of an embedding. num_classes: N. margin: a `margins.Margin`; AdaSin() when None.
    dtype: of the centres, float32 by default: the master weights. Under autocast the products take its dtype.
    shards: a `distributed.Shards` to split the classes over the processes of a group: `centers` is then this process's
        part [n, D], `embeddings` and `labels` its own batch, and the loss the mean over all batches, the same on every
        process. Do not wrap the head in DistributedDataParallel; the backbone, do.
    check_labels: report labels at or above num_classes: on the CPU by a ValueError naming the row, elsewhere by an
        assertion on the device, and not while a CUDA graph is captured (ATTFC_DEBUG=1: see `DynamicClassContainer`).
        check_finite, grad_tolerance, backend: as in `AttFC`.

    Parameter: centers [N, D], drawn from N(0, 0.01), of any length: a cosine is to the centre's direction.
    Gradient: to embeddings and to centers, which is orthogonal to each centre.
    One process needs no process group; B may differ from call to call.
    Source: the last layer of ArcFace (arXiv 1801.07698); its execution in two sweeps is our own.
    Raises: ValueError or TypeError naming the argument.
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
    ) -> None:
        super().__init__()
        self._name = type(self).__name__
        for argument, value in {"dim": dim, "num_classes": num_classes}.items():
            if value < 1:
                raise error(self._name, argument, "be at least 1", value)
        if dtype not in _DTYPES:
            raise error(self._name, "dtype", f"be one of {_DTYPES}", dtype, kind=TypeError)
        margin = checked_margin(self._name, margin)
        self.dim, self.num_classes, self.margin, self.shards = dim, num_classes, margin, shards
        self.check_labels, self.check_finite = check_labels, check_finite
        self.grad_tolerance, self.backend = grad_tolerance, backend
        self.first, self.last = (0, num_classes) if shards is None else shards.bounds(num_classes)
        self.centers = nn.Parameter(_initial_centers(self.first, self.last, dim, dtype))
        self.register_buffer("classes", torch.arange(self.first, self.last), persistent=False)
        self._fused: FusedOptimizer | None = None
        self._stats: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        part = "" if self.shards is None else f", classes {self.first} to {self.last - 1} here"
        return f"dim={self.dim}, num_classes={self.num_classes}{part}, backend={self.backend!r}"

    @property
    def stats(self) -> dict[str, Tensor]:
        """What the last forward saw, as `AttFC.stats`; fill is the number of centres that took part."""
        return dict(self._stats)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over the rows whose label is not negative; 0, with gradient 0, when there is none.

        embeddings [B, D] of any length, float32, bfloat16, float16 or float64; a row shorter than 1e-6 counts as
            orthogonal to everything. labels [B] int64; a negative one leaves its row out, whatever it holds.
        Returns: 0-dim loss, float32 (float64 with float64 centres).
        Raises: ValueError for shapes, devices, labels out of range; TypeError for dtypes.
        """
        self._check(embeddings, labels)
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
            center_scale=functional.inverse_norms(selected.centers),
            gradient_sink=selected.gradient_sink,
            norm=norm if self.margin.needs_norm else None,
            shards=self.shards,
            grad_tolerance=self.grad_tolerance,
            backend=self.backend,
        )
        # A class has one centre: no need to look for pairs among N labels.
        own_pairs = (selected.target_slot >= 0).sum()
        fill = own_pairs.new_full((), len(selected.centers))
        self._stats = step_statistics(output, labels, fill, own_pairs, self.margin, self.shards)
        return output.loss

    def select(self, labels: Tensor) -> Selection:
        """The centres that a batch of these labels [B] meets: here all of them."""
        here = (labels >= self.first) & (labels < self.last)
        sink = self._fused.apply if self._fused is not None and self.centers.requires_grad else None
        return Selection(self.centers, self.classes, torch.where(here, labels - self.first, -1), sink)

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
    ) -> FusedOptimizer:
        """From here on the centres are updated inside `loss.backward()`, a block at a time: no gradient buffer.

        kind: "sgd" (with momentum) or "adamw" (betas, eps); each as torch.optim's, on the rows that took part.
        grad_scaler: the GradScaler that scales the loss, if one does.
        Returns the optimizer: set its `param_groups[0]["lr"]` or give it to a schedule, save its state_dict. Leave the
        centres out of your own optimizer (they get no `.grad`), and out of gradient clipping and accumulation: each
        backward is a step.
        Raises: ValueError naming the argument.
        """
        self._fused = FusedOptimizer(self.centers, lr, momentum, weight_decay, kind, betas, eps, grad_scaler)
        return self._fused

    @property
    def split_rows(self) -> dict[str, int]:
        """The parameters of which `shards` leave a part here, and their rows over all processes."""
        return {"centers": self.num_classes}

    @torch.no_grad()
    def resize_classes(self, mapping: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Change the classes between runs: `mapping` [new N] int64 is each new class's old number, -1 for one that is
        new, which starts as after construction. With shards every process gives the whole of it, the same.

        optimizer: your own that holds the centres, if one does; a fused one is known. Its state follows (zeros for new
            classes) and it holds the new parameter: `centers` is another tensor afterwards, without gradient.
        Raises: ValueError for another shape, an entry that is no class, a class named twice; TypeError for a dtype.
            Nothing has moved then.
        """
        require_mapping(f"{self._name}.resize_classes", mapping, self.num_classes)
        old, old_total, device = self.centers, self.num_classes, self.centers.device
        self.num_classes = len(mapping)
        self.first, self.last = (0, self.num_classes) if self.shards is None else self.shards.bounds(self.num_classes)
        rows = mapping[self.first : self.last].to(device)
        fresh = _initial_centers(self.first, self.last, self.dim, old.dtype).to(device)
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
        if self._fused is not None and self._fused.weight is not self.centers:
            rule, remedy = "be the parameter that fuse_optimizer was called with", "call fuse_optimizer again"
            raise error(name, "centers", rule, "another (load_state_dict with assign=True?)", remedy)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise error(name, "embeddings", f"have shape [B, {self.dim}]", list(embeddings.shape))
        check_inputs(name, {"embeddings": embeddings}, {"labels": (labels, len(embeddings))}, device)
        if self.check_labels:
            require_labels(name, labels, self.num_classes)
        if self.check_finite:
            require_finite(name, "embeddings", embeddings, labels)


def _initial_centers(first: int, last: int, dim: int, dtype: torch.dtype) -> Tensor:
    seed = int(torch.randint(2**62, ()))
    centers = torch.empty(last - first, dim, dtype=dtype)
    for block in range(first // _INITIAL_BLOCK, -(-last // _INITIAL_BLOCK)):
        generator = torch.Generator().manual_seed((seed + block) % 2**63)
        drawn = torch.randn(_INITIAL_BLOCK, dim, generator=generator) * _INITIAL_STD
        start, end = max(first, block * _INITIAL_BLOCK), min(last, (block + 1) * _INITIAL_BLOCK)
        centers[start - first : end - first] = drawn[start - block * _INITIAL_BLOCK : end - block * _INITIAL_BLOCK]
    return centers
