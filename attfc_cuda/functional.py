"""The stateless contract: the sweep over class centres, the margin softmax loss around it, generative class centres.

This is where the arguments of the sweep are checked, so that every backend says the same about bad ones.
All angles are radians; a row is one embedding, a slot one class centre.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda._deprecated import BACKENDS as RENAMED_BACKENDS
from attfc_cuda._deprecated import renamed_keyword
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.margins.base import Margin
from attfc_cuda.ops import autograd, eager, trained_centers
from attfc_cuda.ops import backend as backends
from attfc_cuda.ops.row_values import RowValues
from attfc_cuda.ops.trained_centers import GradientSink

__all__ = [
    "MarginSoftmaxOutput",
    "NegativeLogSumExp",
    "generate_class_centers",
    "inverse_norms",
    "margin_softmax_loss",
    "negative_logsumexp",
]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Omitting this share of a row's probability from its gradient stays under the rounding of the 16-bit formats.
_TOLERANCE_16_BIT = 2.0**-12
# Above this, softplus(x) is x to the last bit of float64 (e^-40 < 2^-53 * 40). PyTorch's default of 20 is not.
_SOFTPLUS_LINEAR = 40.0
# A row shorter than this has no meaningful direction; dividing by its length would end a training run.
SHORTEST_ROW = 1e-6
_NORM_BLOCK_NUMBERS = 1 << 18


class NegativeLogSumExp(NamedTuple):
    """What one sweep yields for each row, all [B].

    Attributes:
        lse: log sum of exp over the valid negatives, -inf without any; the only differentiable field. Float32 (float64
            for float64 inputs), as are max_cosine and omitted_mass.
        hard_count: valid negatives above the threshold, int64.
        max_cosine: largest cosine over the valid negatives, before modulation; -inf without any.
        omitted_mass: share of the row's softmax (target and negatives) whose gradient was left out; 0 when none was.
    """

    lse: Tensor
    hard_count: Tensor
    max_cosine: Tensor
    omitted_mass: Tensor


class MarginSoftmaxOutput(NamedTuple):
    """What `margin_softmax_loss` returns.

    Attributes:
        loss: the rows, reduced.
        rows: [B], loss of each row, 0 where ignored or left out by the margin's trim.
        negatives: what the sweep yields.
        target_logit: [B], scale * T.
        target_cosine: [B], to the own centre, 0 where ignored.
    """

    loss: Tensor
    rows: Tensor
    negatives: NegativeLogSumExp
    target_logit: Tensor
    target_cosine: Tensor


@renamed_keyword("reference", "target_logit")
def negative_logsumexp(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    *,
    center_scale: Tensor | None = None,
    target_logit: Tensor | None = None,
    threshold: Tensor | None = None,
    quad: Tensor | None = None,
    lin: Tensor | None = None,
    const: Tensor | None = None,
    scale: float = 64.0,
    grad_tolerance: float | None = None,
    backend: str = "auto",
) -> NegativeLogSumExp:
    """Log-sum-exp of each row's logits over its negatives, hard ones re-weighted, without storing the B x S logits.

    Equals:

        c = embeddings @ (center_scale[:, None] * centers).T
        valid = (center_labels >= 0) & (center_labels != labels[:, None]) & (labels >= 0)[:, None]
        n = where(valid & (c > threshold[:, None]), quad[:, None] * c**2 + lin[:, None] * c + const[:, None], c)
        lse = (scale * n).masked_fill(~valid, -inf).logsumexp(dim=1)

    Under autocast embeddings and centers are cast to its dtype, as for a matrix product; cosines, logits and sums are
    float32 (float64 for float64) all the same.

    Args:
        embeddings: [B, D] unit rows, float32, bfloat16, float16 or float64.
        centers: [S, D] unit rows, same dtype.
        labels: [B] int64; a row with a negative label is ignored: lse -inf, gradient 0, whatever its content.
        center_labels: [S] int64; a negative label marks an empty slot, whose content is never read (it may be NaN).
        center_scale: [S] float32 (float64 for float64 centers), the inverse norms of centers that are not normalised,
            as `inverse_norms` makes them: cosines then are those of the unit centers, of which no copy is made. Not
            differentiated itself: the gradient to centers already runs through the normalisation. None: 1.
        target_logit: [B] the target's logit scale * T, to which the caller compares lse. It sets the precision, not the
            value: rows whose lse lies within 80 of it or above are exact, others may come back as -inf with gradient 0.
            None: every row is exact.
        threshold: [B] float32 (float64 for float64 embeddings), as are quad, lin and const. None: no modulation.
        quad: [B]. With a threshold, a coefficient left out is 0.
        lin: [B].
        const: [B].
        scale: factor of every logit, above 0.
        grad_tolerance: share of a row's softmax, in [0, 1), that its gradient may leave out; None: 2^-12 for 16-bit
            embeddings, 0 (exact) otherwise. The value of lse is not affected; `omitted_mass` reports what was left out.
        backend: "auto", "eager", "cpu", "triton" or "cuda"; a named one runs or raises.

    Returns:
        `NegativeLogSumExp`, each field [B].

    Gradient:
        Of lse to embeddings, centers, quad, lin and const. None to threshold and target_logit. That to centers, where
        they require one, is made in the backward pass, [S, D] written once. A second derivative only with
        backend="eager".

    Raises:
        ValueError: for shapes, devices, values.
        TypeError: for dtypes.
    """
    name = "negative_logsumexp"
    _check_sweep(name, embeddings, centers, labels, center_labels, center_scale)
    embeddings, centers = _as_autocast_asks(embeddings, centers)
    if embeddings.dtype != centers.dtype:
        got = f"{centers.dtype} beside {embeddings.dtype}"
        raise error(name, "centers", "have the dtype of embeddings", got, "cast one of them", kind=TypeError)
    if not 0 < scale < math.inf:
        raise error(name, "scale", "be a finite number above 0", scale)
    grad_tolerance = tolerance_of(name, grad_tolerance, embeddings.dtype)
    row_values = _row_values(name, embeddings, RowValues(target_logit, threshold, quad, lin, const))
    return _sweep(
        embeddings, centers, labels, center_labels, center_scale, row_values, float(scale), grad_tolerance, backend
    )


def margin_softmax_loss(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    margin: Margin,
    *,
    target_cosine: Tensor | None = None,
    target_slot: Tensor | None = None,
    center_scale: Tensor | None = None,
    one_slot_per_class: bool = False,
    gradient_sink: GradientSink | None = None,
    norm: Tensor | None = None,
    shards: Shards | None = None,
    reduction: str = "mean",
    grad_tolerance: float | None = None,
    backend: str = "auto",
) -> MarginSoftmaxOutput:
    """Cross entropy of each row's target against its negatives in `centers`, both as `margin` says.

    Equals (`eager.margin_softmax_cross_entropy`):

        target_cosine = (embeddings * (center_scale[:, None] * centers)[target_slot]).sum(1)    # with target_slot
        T = margin.target(target_cosine, norm, hard_count)
        rows = F.cross_entropy(scale * concat([T, negatives]), 0) = softplus(lse - scale * T)

    A row without negatives has loss 0 and gradient 0 (but for a margin's regulariser). An empty batch has loss 0 and a
    gradient of zeros.

    Args:
        embeddings: [B, D] unit rows of any float dtype; cast for the sweep to that of centers, or autocast's.
        centers: [S, D] unit rows.
        labels: [B] int64; rows below 0 are ignored.
        center_labels: [S] int64; below 0: an empty slot.
        margin: a `margins.Margin`. In training mode its running state moves first, once per call.
        target_cosine: [B] cosine of each row to its own centre, differentiable; a target at exactly +-1 is fine.
        target_slot: [B] int64, instead of target_cosine: the slot of each row's own centre in `centers`; below 0: the
            row has none here, its cosine is 0. For centers that learn: their gradient, as positives and as negatives,
            is one [S, D] buffer, written once.
        center_scale: [S] as in `negative_logsumexp`, for centers that are not normalised.
        one_slot_per_class: a promise that goes with target_slot: a row's class is in the slot that it names and in no
            other, and in none where it names none. The compiled backends then make the gradient of centers in one go.
        gradient_sink: with target_slot, a function of (first slot, gradient of a block of slots [n, D]) that takes the
            gradient of centers in the backward pass in place of autograd: an optimizer, so that no buffer for all of it
            is needed.
        norm: [B] norms of the embeddings before normalisation; for margins that need them (AdaFace, MagFace).
        shards: a `distributed.Shards` where `centers` is this process's part of them: rows (the same on every process)
            meet the negatives of all parts, and a row's own centre is in one part (target_slot below 0 in the others).
            The loss is the same on every process; gradients to embeddings are this part's share (`Shards.gather_rows`
            sums them).
        reduction: "mean" over the rows that are not ignored (nor trimmed), "sum", or "none" (loss is rows).
        grad_tolerance: as in `negative_logsumexp`.
        backend: as in `negative_logsumexp`.

    Returns:
        `MarginSoftmaxOutput`; loss, rows and target_logit float32 (float64 where centers are float64).

    Gradient:
        To embeddings, centers, target_cosine and, where the margin says so, norm.

    Raises:
        ValueError: as `negative_logsumexp`; for a missing norm, another reduction, or unless one of target_cosine and
            target_slot is given.
        TypeError: as `negative_logsumexp`; for another margin.
    """
    name = "margin_softmax_loss"
    _check_sweep(name, embeddings, centers, labels, center_labels, center_scale)
    if reduction not in ("mean", "sum", "none"):
        raise error(name, "reduction", 'be "mean", "sum" or "none"', repr(reduction))
    if not isinstance(margin, Margin):
        raise error(name, "margin", "be a margins.Margin", repr(margin), "see margins.build", kind=TypeError)
    if norm is None and margin.needs_norm:
        remedy = "pass the embeddings' norms before normalisation"
        raise error(name, "norm", f"be given for {type(margin).__name__}", None, remedy)
    if (target_cosine is None) == (target_slot is None):
        got = "neither" if target_slot is None else "both"
        raise error(name, "target_cosine", "be given, or else target_slot", got)
    dtype = torch.float64 if centers.dtype == torch.float64 else torch.float32
    product_dtype = centers.dtype if dtype == torch.float64 else _autocast_dtype(centers.device.type) or centers.dtype
    grad_tolerance = tolerance_of(name, grad_tolerance, product_dtype)
    if shards is not None:
        grad_tolerance /= shards.count  # what all parts together leave out keeps the bound
    swept_centers, link = centers, None
    if target_slot is None:
        _check_rows(name, "target_cosine", target_cosine, embeddings)
        backends.choose(backend, centers, centers, product_dtype)  # what it raises comes before the state moves
    else:
        _check_labels(name, "target_slot", target_slot, embeddings)
        backend = backends.choose(backend, embeddings, centers, product_dtype)
        if backend == "eager":
            if gradient_sink is not None:
                centers = swept_centers = trained_centers.into_sink(gradient_sink, centers)
            target_cosine = eager.own_cosine(embeddings, centers, target_slot, labels, center_scale)
        else:
            scale = None if center_scale is None else center_scale.detach()
            row_value_count = len(RowValues._fields) if margin.modulates else 1
            sweep = trained_centers.Sweep(
                labels,
                center_labels,
                scale,
                product_dtype,
                margin.scale,
                grad_tolerance,
                row_value_count,
                one_slot_per_class,
                backend,
            )
            target_cosine, link = trained_centers.own_cosine(embeddings, centers, target_slot, sweep, gradient_sink)
            swept_centers = centers.detach()
        if shards is not None:
            target_cosine = shards.sum_of_shards(target_cosine)
    # Whatever stands in an ignored row, NaN included, is replaced before it can reach a sum or a gradient.
    valid = labels >= 0
    cosine = torch.where(valid, target_cosine.to(dtype), 0)
    if norm is not None:
        _check_rows(name, "norm", norm, embeddings)
        norm = torch.where(valid, norm.to(dtype), 1)

    counted = margin.counted(cosine, valid)
    margin.update(cosine.detach(), None if norm is None else norm.detach(), counted)
    sweep_embeddings, swept_centers = _as_autocast_asks(embeddings.to(centers.dtype), swept_centers)
    sweep_target_logit = margin.scale * margin.target(cosine, norm).detach()
    rows = RowValues(sweep_target_logit, *(margin.modulation(cosine, norm) or ()))
    row_values = _row_values(name, sweep_embeddings, rows)
    if shards is not None:
        row_values = shards.to_shards(row_values)
    negatives = _sweep(
        sweep_embeddings,
        swept_centers,
        labels,
        center_labels,
        center_scale,
        row_values,
        margin.scale,
        grad_tolerance,
        backend,
    )
    if link is not None:
        negatives = negatives._replace(lse=trained_centers.after_sweep(negatives.lse, link, row_values))
    if shards is not None:
        negatives = NegativeLogSumExp(*shards.merge(*negatives, sweep_target_logit))
    target_logit = margin.scale * margin.target(cosine, norm, negatives.hard_count)
    # softplus(-inf) is 0 with derivative 0, so rows without negatives need no care here.
    losses = F.softplus(negatives.lse - target_logit, threshold=_SOFTPLUS_LINEAR)
    penalty = margin.regularizer(cosine, norm)
    if penalty is not None:
        losses = losses + penalty
    losses = torch.where(counted, losses, 0)
    loss = losses if reduction == "none" else losses.sum()
    if reduction == "mean":
        loss = loss / counted.sum().clamp(min=1)
    return MarginSoftmaxOutput(loss, losses, negatives, target_logit, cosine)


def check_sweep_options(name: str, grad_tolerance: float | None, backend: str, centers: Tensor | None = None) -> None:
    """Raise what the functions above would raise for these options, before a caller moves any state.

    Args:
        name: the caller, for the message.
        grad_tolerance: as in `negative_logsumexp`.
        backend: as in `negative_logsumexp`.
        centers: with them, raise also where the backend cannot run on them.
    """
    tolerance_of(name, grad_tolerance, torch.float32)
    if backend not in ("auto", *backends.BACKENDS, *RENAMED_BACKENDS):
        raise error(name, "backend", f"be one of {', '.join(('auto', *backends.BACKENDS))}", repr(backend))
    if centers is not None:
        backends.choose(backend, centers, centers)


@torch.no_grad()
def generate_class_centers(probe: Tensor, gallery: Tensor, temperature: float = 1.0) -> Tensor:
    """One unit class centre per row from r gallery embeddings of its class, those nearer to the probe weighing more.

    Equals (AttFC, arXiv 2503.06839, and its official code):

        a = softmax(F.cosine_similarity(probe[:, None], gallery, dim=2) / temperature, dim=1)
        F.normalize((a[:, :, None] * gallery).sum(1))

    Args:
        probe: [B, D], any float dtype, of any length (a zero row is safe).
        gallery: [B, r, D], r >= 1, any float dtype, of any length (a row whose whole gallery is zero gives a zero
            centre). The gallery's lengths count in the sum, as published.
        temperature: above 0; large values average the gallery evenly.

    Returns:
        [B, D] float32 (float64 where the gallery is float64), also under autocast.

    Gradient:
        None, to anything (our choice; the official code has none either).

    Raises:
        ValueError: for shapes, devices or temperature.
        TypeError: for other than floating dtypes.
    """
    name = "generate_class_centers"
    _check_floating(name, "probe", probe)
    _check_floating(name, "gallery", gallery)
    if probe.dim() != 2:
        raise error(name, "probe", "be [B, D]", list(probe.shape))
    rule = f"be [B, r, D] with B = {probe.shape[0]}, r >= 1, D = {probe.shape[1]}"
    if gallery.dim() != 3 or gallery.shape[::2] != probe.shape or gallery.shape[1] == 0:
        raise error(name, "gallery", rule, list(gallery.shape))
    _check_device(name, "gallery", gallery, probe)
    if not 0 < temperature < math.inf:
        raise error(name, "temperature", "be a finite number above 0", temperature)
    dtype = torch.float64 if gallery.dtype == torch.float64 else torch.float32
    probe, gallery = probe.to(dtype), gallery.to(dtype)
    # Elementwise products and sums: autocast leaves them alone, and B x r x D is small.
    cosine = (F.normalize(probe, dim=1)[:, None] * F.normalize(gallery, dim=2)).sum(dim=2)
    attention = torch.softmax(cosine / temperature, dim=1)
    return F.normalize((attention[:, :, None] * gallery).sum(dim=1), dim=1)


@torch.no_grad()
def inverse_norms(centers: Tensor) -> Tensor:
    """1 / |w_j| of raw class centres, the `center_scale` of the functions above; one read of the centres.

    Equals: ``where(norm < 1e-6, 0, 1 / norm) with norm = centers.float().norm(dim=1)``

    Args:
        centers: [S, D], any float dtype.

    Returns:
        [S] float32 (float64 for float64 centers), without gradient. A centre shorter than 1e-6 gets 0: its cosines and
        its gradient are 0.

    Raises:
        ValueError: for a shape.
        TypeError: for other than floating dtypes.
    """
    _check_floating("inverse_norms", "centers", centers)
    if centers.dim() != 2:
        raise error("inverse_norms", "centers", "be [S, D]", list(centers.shape))
    dtype = torch.float64 if centers.dtype == torch.float64 else torch.float32
    # On a CPU the norm of 16-bit numbers makes a float32 copy of them first: a block at a time it stays in the cache.
    copies = centers.device.type == "cpu" and centers.dtype != dtype and not torch.compiler.is_compiling()
    blocks = centers.split(max(1, _NORM_BLOCK_NUMBERS // max(1, centers.shape[1]))) if copies else (centers,)
    norms = torch.cat([torch.linalg.vector_norm(block, dim=1, dtype=dtype) for block in blocks])
    return torch.where(norms < SHORTEST_ROW, 0, norms.clamp(min=SHORTEST_ROW).reciprocal_())


def _sweep(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    center_scale: Tensor | None,
    row_values: Tensor,
    scale: float,
    grad_tolerance: float,
    backend: str,
) -> NegativeLogSumExp:
    """`negative_logsumexp` of checked operands, row_values stacked (`RowValues.stack`)."""
    center_scale = None if center_scale is None else center_scale.detach()
    backend = backends.choose(backend, embeddings, centers, embeddings.dtype)
    if backend == "eager":
        rows = RowValues.unstack(row_values)._asdict()
        swept = eager.negative_logsumexp(
            embeddings, centers, labels, center_labels, center_scale=center_scale, **rows, scale=scale
        )
    else:
        swept = autograd.negative_logsumexp(
            embeddings, centers, labels, center_labels, center_scale, row_values, scale, grad_tolerance, backend
        )
    return NegativeLogSumExp(*swept)


def _row_values(name: str, embeddings: Tensor, rows: RowValues) -> Tensor:
    """The operand that the rows' numbers make, once they are what they must be."""
    for argument, value in rows._asdict().items():
        if value is not None:
            _check_row_values(name, argument, value, embeddings)
            if argument != "target_logit" and rows.threshold is None:
                raise error(name, argument, "be None without a threshold", "a tensor", "pass threshold as well")
    return rows.stack(embeddings)


def _as_autocast_asks(embeddings: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Both operands of the products, cast where autocast is on; float64 embeddings leave both alone."""
    dtype = None if embeddings.dtype == torch.float64 else _autocast_dtype(embeddings.device.type)
    return (embeddings, centers) if dtype is None else (embeddings.to(dtype), centers.to(dtype))


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast asks for; None where it is off."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def tolerance_of(name: str, given: float | None, dtype: torch.dtype) -> float:
    """What a `grad_tolerance` stands for beside products of a dtype; `name` is the caller's, for the error."""
    if given is None:
        return _TOLERANCE_16_BIT if dtype in (torch.bfloat16, torch.float16) else 0.0
    if not 0 <= given < 1:
        raise error(name, "grad_tolerance", "lie in [0, 1)", given)
    return float(given)


def _check_sweep(
    name: str, embeddings: Tensor, centers: Tensor, labels: Tensor, center_labels: Tensor, center_scale: Tensor | None
) -> None:
    """What both public functions ask of the four tensors; dtypes of embeddings and centers may still differ."""
    for argument, tensor, count in (("embeddings", embeddings, "B"), ("centers", centers, "S")):
        _check_floating(name, argument, tensor)
        if tensor.dim() != 2 or tensor.shape[1] == 0:
            raise error(name, argument, f"be [{count}, D] with D >= 1", list(tensor.shape))
    if centers.shape[1] != embeddings.shape[1]:
        raise error(name, "centers", f"have D = {embeddings.shape[1]} columns as embeddings", list(centers.shape))
    _check_device(name, "centers", centers, embeddings)
    for argument, tensor, rows in (("labels", labels, embeddings), ("center_labels", center_labels, centers)):
        _check_labels(name, argument, tensor, rows)
    if center_scale is not None:
        _check_row_values(name, "center_scale", center_scale, centers)


def _check_labels(name: str, argument: str, tensor: Tensor, rows: Tensor) -> None:
    if tensor.dtype != torch.int64:
        raise error(name, argument, "be int64", tensor.dtype, "call .long()", kind=TypeError)
    _check_rows(name, argument, tensor, rows)


def _check_row_values(name: str, argument: str, tensor: Tensor, rows: Tensor) -> None:
    _check_rows(name, argument, tensor, rows)
    expected = torch.float64 if rows.dtype == torch.float64 else torch.float32
    if tensor.dtype != expected:
        beside = "centers" if argument == "center_scale" else "embeddings"
        raise error(name, argument, f"be {expected} beside {rows.dtype} {beside}", tensor.dtype, kind=TypeError)


def _check_rows(name: str, argument: str, tensor: Tensor, rows: Tensor) -> None:
    if tensor.shape != rows.shape[:1]:
        raise error(name, argument, f"be [{rows.shape[0]}], one value for each row", list(tensor.shape))
    _check_device(name, argument, tensor, rows)


def _check_floating(name: str, argument: str, tensor: Tensor) -> None:
    if tensor.dtype not in _FLOATS:
        raise error(name, argument, "be float32, bfloat16, float16 or float64", tensor.dtype, kind=TypeError)


def _check_device(name: str, argument: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.device != other.device:
        raise error(name, argument, f"be on {other.device}", tensor.device, f"move it with .to({str(other.device)!r})")
