"""The oracle: the whole mathematics of the sweep and of the margin softmax in plain PyTorch, written to be read.

It stores every B x S matrix, runs on any device and in float64, knows no other file of the package, and is what every
backend is tested against. Notation: B rows (embeddings), S slots (class centres), D dimensions,

    c_bj     = x_b . w_j                                    cosine of row b and slot j (raw centres: w_j / |w_j|)
    valid_bj = l_b >= 0 and l_j >= 0 and l_j != l_b         never an ignored row, an empty slot, the row's own class
    hard_bj  = valid_bj and c_bj > threshold_b
    N_bj     = quad_b c_bj^2 + lin_b c_bj + const_b         where hard, else c_bj
    lse_b    = log sum_{j valid} exp(scale * N_bj)          -inf when nothing is valid

All angles are radians.
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attfc_cuda._deprecated import renamed_attributes

__getattr__ = renamed_attributes(__name__, {"psi": "margins.angles.psi"})


def modulated_cosine(cosine: Tensor, hard: Tensor, quad: Tensor, lin: Tensor, const: Tensor) -> Tensor:
    """The cosines after modulation, N_bj: quad c^2 + lin c + const where `hard`, else c.

    Args:
        cosine: [B, S].
        hard: [B, S], which of them are hard.
        quad: [B, 1].
        lin: [B, 1].
        const: [B, 1].
    """
    return torch.where(hard, (quad * cosine + lin) * cosine + const, cosine)


def unit_centers(centers: Tensor, center_scale: Tensor | None) -> Tensor:
    """Centres times their scale [S], which is 1 / |w|: its value as given, its derivative that of the normalisation."""
    if center_scale is None:
        return centers
    norm = torch.linalg.vector_norm(centers, dim=1)
    # norm.detach() / norm is 1 with the derivative of 1 / |w|; a zero centre has no direction to differentiate.
    ratio = torch.where(norm > 0, norm.detach() / torch.where(norm > 0, norm, 1), 1)
    return centers * (center_scale * ratio)[:, None]


def own_cosine(
    embeddings: Tensor, centers: Tensor, target_slot: Tensor, labels: Tensor, center_scale: Tensor | None = None
) -> Tensor:
    """Cosine [B] of each row to the centre in slot target_slot [B]; 0 where that or the label is negative.

    Gradient:
        To embeddings and centers, by autograd.
    """
    here = (target_slot >= 0) & (labels >= 0)
    slot = torch.where(here, target_slot, 0)
    if len(centers) == 0:
        return _working(embeddings).sum(dim=1) * 0
    scale = None if center_scale is None else center_scale[slot]
    own = torch.where(here[:, None], unit_centers(_working(centers[slot]), scale), 0)
    return (torch.where(here[:, None], _working(embeddings), 0) * own).sum(dim=1)


def cosines(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    center_scale: Tensor | None = None,
) -> Tensor:
    """c = x @ w.T [B, S] in float32 (float64 for float64 inputs), whatever autocast says.

    What must not count is replaced by zeros before the product: a NaN in an empty slot or an ignored row would
    otherwise reach the gradients of the others as 0 * NaN.
    """
    embeddings = torch.where((labels >= 0)[:, None], _working(embeddings), 0)
    filled = center_labels >= 0
    centers = torch.where(filled[:, None], _working(centers), 0)
    centers = unit_centers(centers, None if center_scale is None else torch.where(filled, center_scale, 0))
    with _without_autocast(embeddings.device.type):
        return embeddings @ centers.T


def negative_logits(
    cosine: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    threshold: Tensor | None,
    quad: Tensor | None,
    lin: Tensor | None,
    const: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of all negatives, which of them count, and which are hard.

    Returns:
        (scale * N with -inf where not valid, valid, hard), each [B, S]. No threshold: nothing is hard.
    """
    row = (labels >= 0)[:, None]
    valid = row & (center_labels >= 0)[None, :] & (center_labels[None, :] != labels[:, None])
    if threshold is None:
        hard = torch.zeros_like(valid)
        modulated = cosine
    else:
        hard = valid & (cosine > threshold[:, None])
        # Zeros in ignored rows for the same reason as in `cosines`; a coefficient left out is zero.
        quad, lin, const = (
            torch.zeros_like(cosine[:, :1]) if value is None else torch.where(row, value[:, None], 0)
            for value in (quad, lin, const)
        )
        modulated = modulated_cosine(cosine, hard, quad, lin, const)
    return (scale * modulated).masked_fill(~valid, -math.inf), valid, hard


def logsumexp_of_cosines(
    cosine: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    *,
    threshold: Tensor | None = None,
    quad: Tensor | None = None,
    lin: Tensor | None = None,
    const: Tensor | None = None,
    scale: float = 64.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sweep of `negative_logsumexp` from cosines [B, S].

    Returns:
        (lse, hard_count, max_cosine, omitted_mass), each [B]; see `negative_logsumexp`.
    """
    logits, valid, hard = negative_logits(cosine, labels, center_labels, threshold, quad, lin, const, scale)
    # One more column of -inf gives a container without slots something to reduce over.
    logits, ranked = (
        F.pad(values, (0, 1), value=-math.inf) for values in (logits, cosine.detach().masked_fill(~valid, -math.inf))
    )
    # The derivative of logsumexp over nothing but -inf is NaN. Masking would stop it, but neither a second derivative
    # nor PyTorch's anomaly detection would: such rows are summed over zeros and replaced after.
    anything = valid.any(dim=1)
    lse = torch.logsumexp(torch.where(anything[:, None], logits, 0), dim=1)
    lse = torch.where(anything, lse, -math.inf)
    return lse, hard.sum(dim=1), ranked.amax(dim=1), torch.zeros_like(lse.detach())


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition of `functional.negative_logsumexp`.

    Args:
        embeddings: [B, D] unit rows.
        centers: [S, D] unit rows.
        labels: [B] int64.
        center_labels: [S] int64.
        center_scale: [S], 1 / |w_j| where the centres are not normalised; the gradient to them runs through that.
        target_logit: changes nothing here: every row is exact at any scale, and no mass is ever omitted.
        threshold: [B].
        quad: [B].
        lin: [B].
        const: [B].
        scale: factor of every logit.

    Returns:
        (lse, hard_count, max_cosine, omitted_mass), each [B]. lse, max_cosine, omitted_mass: float32 (float64 for
        float64 inputs); hard_count int64.

    Gradient:
        Of lse, by autograd, to embeddings, centers, quad, lin and const; the threshold has none.
    """
    cosine = cosines(embeddings, centers, labels, center_labels, center_scale)
    return logsumexp_of_cosines(
        cosine, labels, center_labels, threshold=threshold, quad=quad, lin=lin, const=const, scale=scale
    )


def margin_softmax_cross_entropy(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    target: Tensor,
    *,
    threshold: Tensor | None = None,
    quad: Tensor | None = None,
    lin: Tensor | None = None,
    const: Tensor | None = None,
    scale: float = 64.0,
) -> Tensor:
    """The margin softmax loss of each row [B] as textbooks write it: cross entropy over {target} and {negatives}.

    Equals: ``F.cross_entropy(concat([scale * target, scale * N]), 0)`` per row, -inf logits where a negative is not
    valid; and ``softplus(lse - scale * T)``. Ignored rows (label < 0) give 0.

    Args:
        embeddings: [B, D], as for `negative_logsumexp`, like those not named here.
        centers: [S, D].
        labels: [B].
        center_labels: [S].
        target: [B], the margin's bent cosine T.
    """
    row = labels >= 0
    cosine = cosines(embeddings, centers, labels, center_labels)
    negatives, _, _ = negative_logits(cosine, labels, center_labels, threshold, quad, lin, const, scale)
    logits = torch.cat([scale * torch.where(row, target, 0)[:, None], negatives], dim=1)
    rows = F.cross_entropy(logits, torch.zeros_like(labels), reduction="none")
    return torch.where(row, rows, 0)


def _working(tensor: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32: a product of two 16-bit numbers is exact in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
