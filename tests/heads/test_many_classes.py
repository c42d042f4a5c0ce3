"""Heads over more classes than float16 can count: a sum of 70 000 probabilities is above its largest number, 65 504."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attfc_cuda import AttFC, FullyConnected, PartialFC, testing
from attfc_cuda.compat.insightface import PartialFC_V2
from attfc_cuda.margins import ArcFace

CLASSES, DIM, BATCH, M_RAD = 70_000, 16, 8, 0.3
# So flat a softmax that the sum of exp(logit - largest logit) is above 65 504 as well.
FLAT = 2.0**-6


def full_fc(margin: ArcFace) -> nn.Module:
    return FullyConnected(DIM, CLASSES, margin)


def partial_fc(margin: ArcFace) -> nn.Module:
    return PartialFC(DIM, CLASSES, 1.0, margin=margin)


def partial_fc_v2(margin: ArcFace) -> nn.Module:
    return PartialFC_V2(margin, DIM, CLASSES, fp16=True)


@pytest.mark.parametrize("scale", [FLAT, 64.0])
@pytest.mark.parametrize("make", [full_fc, partial_fc, partial_fc_v2])
def test_trained_centers_in_float16(make: Callable[[ArcFace], nn.Module], scale: float) -> None:
    torch.manual_seed(0)
    head = make(ArcFace(scale=scale, m=M_RAD))
    x, labels = torch.randn(BATCH, DIM), torch.randint(CLASSES, (BATCH,))
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        loss = head(leaf, labels)
    loss.backward()
    w = head.centers.detach()
    assert_right(loss, leaf.grad, head.centers.grad, x, w, labels, labels, scale)


@pytest.mark.parametrize("scale", [FLAT, 64.0])
def test_a_container_in_float16(scale: float) -> None:
    torch.manual_seed(0)
    head = AttFC(
        DIM, CLASSES, ArcFace(scale=scale, m=M_RAD), "refresh", num_classes=CLASSES, dtype=torch.float16, class_code=0.0
    )
    for labels in torch.arange(CLASSES).split(10_000):
        head.container.enqueue(F.normalize(torch.randn(len(labels), DIM)), labels)
    x, labels = torch.randn(BATCH, DIM), torch.randperm(CLASSES)[:BATCH]
    leaf = x.clone().requires_grad_()
    # One gallery image: it is the row's class centre.
    gallery = torch.randn(BATCH, DIM)
    loss = head(leaf, labels, gallery)
    loss.backward()
    slots = torch.tensor([(head.container.labels == label).nonzero().item() for label in labels])
    w = head.container.centers.float().index_put((slots,), gallery)
    assert_right(loss, leaf.grad, None, x, w, labels, head.container.labels, scale, slots)


def assert_right(
    loss: Tensor,
    grad: Tensor,
    grad_w: Tensor | None,
    x: Tensor,
    w: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    scale: float,
    slots: Tensor | None = None,
) -> None:
    """Against float64. Rounding a unit row and a unit centre to float16 moves a logit by up to scale * 2 * 2^-11."""
    slots = labels if slots is None else slots
    x, w = x.double().requires_grad_(), w.double().requires_grad_()
    cosine = F.normalize(x) @ F.normalize(w).T
    rows = torch.arange(BATCH)
    own = torch.cos(torch.acos(cosine[rows, slots]) + M_RAD)
    truth = F.cross_entropy(scale * cosine.index_put((rows, slots), own), slots)
    truth.backward()
    rounding = scale * 2.0**-10
    assert loss.isfinite() and abs(loss.item() - truth.item()) <= rounding
    # The probabilities' own error, and two roundings of 2^-11 of the rows.
    relative = math.expm1(rounding) + 2.0**-10
    testing.assert_gradient_close(grad, x.grad, relative_l2=relative)
    if grad_w is not None:
        testing.assert_gradient_close(grad_w, w.grad, relative_l2=relative)
