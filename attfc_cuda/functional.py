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

from attfc_cuda import _backend, _ops
from attfc_cuda import reference as _reference
from attfc_cuda._check import error
from attfc_cuda.margins.base import Margin

__all__ = [
    "MarginSoftmaxOutput",
    "NegativeLogSumExp",
    "generate_class_centers",
    "margin_softmax_loss",
    "negative_logsumexp",
]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Omitting this share of a row's probability from its gradient stays under the rounding of the 16-bit formats.
_TOLERANCE_16_BIT = 2.0**-12
# Above this, softplus(x) is x to the last bit of float64 (e^-40 < 2^-53 * 40). PyTorch's default of 20 is not.
_SOFTPLUS_LINEAR = 40.0


class NegativeLogSumExp(NamedTuple):
    """What one sweep yields for each row, all [B].

    lse: log sum of exp over the valid negatives, -inf without any; the only differentiable field.
    hard_count: valid negatives above the threshold, int64.
    max_cosine: largest cosine over the valid negatives, before modulation; -inf without any.
    omitted_mass: share of the row's softmax (target and negatives) whose gradient was left out; 0 when none was.
    lse, max_cosine, omitted_mass are float32 (float64 for float64 inputs).
    """

    lse: Tensor
    hard_count: Tensor
    max_cosine: Tensor
    omitted_mass: Tensor


class MarginSoftmaxOutput(NamedTuple):
    """loss: reduced; rows [B]: loss of each row, 0 where ignored; negatives: the sweep; target_logit [B]: scale * T."""

    loss: Tensor
    rows: Tensor
    negatives: NegativeLogSumExp
    target_logit: Tensor


def negative_logsumexp(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    *,
    reference: Tensor | None = None,
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
        c = embeddings @ centers.T
        valid = (center_labels >= 0) & (center_labels != labels[:, None]) & (labels >= 0)[:, None]
        n = where(valid & (c > threshold[:, None]), quad[:, None] * c**2 + lin[:, None] * c + const[:, None], c)
        lse = (scale * n).masked_fill(~valid, -inf).logsumexp(dim=1)

    embeddings: [B, D] unit rows, float32, bfloat16, float16 or float64. centers: [S, D] unit rows, same dtype.
    labels: [B] int64; a row with a negative label is ignored: lse -inf, gradient 0, whatever its content.
    center_labels: [S] int64; a negative label marks an empty slot, whose content is never read (it may be NaN).
    reference: [B] the target's logit scale * T, to which the caller compares lse. It sets the precision, not the value:
        rows whose lse lies within 80 of it or above are exact, others may come back as -inf with gradient 0. None:
        every row is exact.
    threshold, quad, lin, const: [B] float32 (float64 for float64 embeddings). No threshold: no modulation. With one,
        a coefficient left out is 0.
    scale: factor of every logit, above 0.
    grad_tolerance: share of a row's softmax, in [0, 1), that its gradient may leave out; None: 2^-12 for 16-bit
        embeddings, 0 (exact) otherwise. The value of lse is not affected; `omitted_mass` reports what was left out.
    backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one runs or raises.

    Under autocast embeddings and centers are cast to its dtype, as for a matrix product; cosines, logits and sums are
    float32 (float64 for float64) all the same.
    Gradient: of lse to embeddings, quad, lin and const. None to the threshold and the reference. A second derivative
        only with backend="reference".
    Raises: ValueError for shapes, devices, values, or centers that require a gradient; TypeError for dtypes.
    """
    name = "negative_logsumexp"
    _check_sweep(name, embeddings, centers, labels, center_labels)
    device = embeddings.device.type
    if embeddings.dtype != torch.float64 and _autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        embeddings, centers = embeddings.to(dtype), centers.to(dtype)
    if embeddings.dtype != centers.dtype:
        got = f"{centers.dtype} beside {embeddings.dtype}"
        raise error(name, "centers", "have the dtype of embeddings", got, "cast one of them", kind=TypeError)
    modulation = {"threshold": threshold, "quad": quad, "lin": lin, "const": const}
    for argument, value in {"reference": reference, **modulation}.items():
        if value is not None:
            _check_row_values(name, argument, value, embeddings)
            if argument != "reference" and threshold is None:
                raise error(name, argument, "be None without a threshold", "a tensor", "pass threshold as well")
    if not 0 < scale < math.inf:
        raise error(name, "scale", "be a finite number above 0", scale)
    if grad_tolerance is None:
        grad_tolerance = _TOLERANCE_16_BIT if embeddings.dtype in (torch.bfloat16, torch.float16) else 0.0
    if not 0 <= grad_tolerance < 1:
        raise error(name, "grad_tolerance", "lie in [0, 1)", grad_tolerance)
    reference = None if reference is None else reference.detach()
    modulation["threshold"] = None if threshold is None else threshold.detach()

    backend = _backend.resolve(backend, embeddings.device, embeddings.dtype)
    if backend == "reference":
        swept = _reference.negative_logsumexp(
            embeddings, centers, labels, center_labels, reference=reference, scale=float(scale), **modulation
        )
    else:
        rows = (None, reference, *modulation.values())
        swept = _ops.negative_logsumexp(
            embeddings, centers, labels, center_labels, *rows, float(scale), float(grad_tolerance), backend
        )
    return NegativeLogSumExp(*swept)


def margin_softmax_loss(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    margin: Margin,
    *,
    target_cosine: Tensor,
    norm: Tensor | None = None,
    reduction: str = "mean",
    grad_tolerance: float | None = None,
    backend: str = "auto",
) -> MarginSoftmaxOutput:
    """Cross entropy of each row's target against its negatives in `centers`, both bent by `margin`.

    Equals (`reference.margin_softmax_cross_entropy`):
        T = margin.target(target_cosine, norm, hard_count)
        rows = F.cross_entropy(scale * concat([T, negatives]), 0) = softplus(lse - scale * T)

    embeddings: [B, D] unit rows of any float dtype; cast to that of centers for the sweep. centers: [S, D] unit rows.
    labels: [B] int64; rows below 0 are ignored. center_labels: [S] int64; below 0: an empty slot.
    margin: a `margins.Margin`. In training mode its running state moves first, once per call.
    target_cosine: [B] cosine of each row to its own centre, differentiable; a target at exactly +-1 is fine.
    norm: [B] norms of the embeddings before normalisation; for margins that need them (AdaFace, MagFace).
    reduction: "mean" over the rows that are not ignored, "sum", or "none" (loss is rows).
    grad_tolerance, backend: as in `negative_logsumexp`.

    Returns `MarginSoftmaxOutput`; loss, rows and target_logit float32 (float64 where centers are float64).
    A row without negatives has loss 0 and gradient 0 (but for a margin's regulariser). An empty batch has loss 0 and a
    gradient of zeros.
    Gradient: to embeddings (negatives), target_cosine and, where the margin says so, norm.
    Raises: as `negative_logsumexp`; ValueError for a missing norm or another reduction; TypeError for another margin.
    """
    name = "margin_softmax_loss"
    _check_sweep(name, embeddings, centers, labels, center_labels)
    if reduction not in ("mean", "sum", "none"):
        raise error(name, "reduction", 'be "mean", "sum" or "none"', repr(reduction))
    if not isinstance(margin, Margin):
        raise error(name, "margin", "be a margins.Margin", repr(margin), "see margins.build", kind=TypeError)
    if norm is None and margin.needs_norm:
        remedy = "pass the embeddings' norms before normalisation"
        raise error(name, "norm", f"be given for {type(margin).__name__}", None, remedy)
    _check_rows(name, "target_cosine", target_cosine, embeddings)
    dtype = torch.float64 if centers.dtype == torch.float64 else torch.float32
    # Whatever stands in an ignored row, NaN included, is replaced before it can reach a sum or a gradient.
    valid = labels >= 0
    cosine = torch.where(valid, target_cosine.to(dtype), 0)
    if norm is not None:
        _check_rows(name, "norm", norm, embeddings)
        norm = torch.where(valid, norm.to(dtype), 1)

    margin.update(cosine.detach(), None if norm is None else norm.detach(), valid)
    modulation = margin.modulation(cosine, norm)
    negatives = negative_logsumexp(
        embeddings.to(centers.dtype),
        centers,
        labels,
        center_labels,
        reference=margin.scale * margin.target(cosine, norm).detach(),
        **({} if modulation is None else modulation._asdict()),
        scale=margin.scale,
        grad_tolerance=grad_tolerance,
        backend=backend,
    )
    target_logit = margin.scale * margin.target(cosine, norm, negatives.hard_count)
    # softplus(-inf) is 0 with derivative 0, so rows without negatives need no care here.
    rows = F.softplus(negatives.lse - target_logit, threshold=_SOFTPLUS_LINEAR)
    penalty = margin.regularizer(cosine, norm)
    if penalty is not None:
        rows = rows + penalty
    rows = torch.where(valid, rows, 0)
    loss = rows if reduction == "none" else rows.sum()
    if reduction == "mean":
        loss = loss / valid.sum().clamp(min=1)
    return MarginSoftmaxOutput(loss, rows, negatives, target_logit)


@torch.no_grad()
def generate_class_centers(probe: Tensor, gallery: Tensor, temperature: float = 1.0) -> Tensor:
    """One unit class centre per row from r gallery embeddings of its class, those nearer to the probe weighing more.

    Equals (AttFC, arXiv 2503.06839, and its official code):
        a = softmax(F.cosine_similarity(probe[:, None], gallery, dim=2) / temperature, dim=1)
        F.normalize((a[:, :, None] * gallery).sum(1))

    probe: [B, D], gallery: [B, r, D], r >= 1, any float dtype, of any length (a zero row is safe; a row whose whole
    gallery is zero gives a zero centre). The gallery's lengths count in the sum, as published.
    temperature: above 0; large values average the gallery evenly.
    Returns [B, D] float32 (float64 where the gallery is float64), also under autocast.
    Gradient: none, to anything (our choice; the official code has none either).
    Raises: ValueError for shapes, devices or temperature; TypeError for other than floating dtypes.
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


def _autocast_enabled(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _check_sweep(name: str, embeddings: Tensor, centers: Tensor, labels: Tensor, center_labels: Tensor) -> None:
    """What both public functions ask of the four tensors; dtypes of embeddings and centers may still differ."""
    for argument, tensor, count in (("embeddings", embeddings, "B"), ("centers", centers, "S")):
        _check_floating(name, argument, tensor)
        if tensor.dim() != 2 or tensor.shape[1] == 0:
            raise error(name, argument, f"be [{count}, D] with D >= 1", list(tensor.shape))
    if centers.shape[1] != embeddings.shape[1]:
        raise error(name, "centers", f"have D = {embeddings.shape[1]} columns as embeddings", list(centers.shape))
    _check_device(name, "centers", centers, embeddings)
    for argument, tensor, rows in (("labels", labels, embeddings), ("center_labels", center_labels, centers)):
        if tensor.dtype != torch.int64:
            raise error(name, argument, "be int64", tensor.dtype, "call .long()", kind=TypeError)
        _check_rows(name, argument, tensor, rows)
    if centers.requires_grad and torch.is_grad_enabled():
        raise error(name, "centers", "not require a gradient", "requires_grad=True", "pass centers.detach()")


def _check_row_values(name: str, argument: str, tensor: Tensor, embeddings: Tensor) -> None:
    _check_rows(name, argument, tensor, embeddings)
    expected = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    if tensor.dtype != expected:
        raise error(name, argument, f"be {expected} beside {embeddings.dtype} embeddings", tensor.dtype, kind=TypeError)


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
