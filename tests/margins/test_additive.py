"""Fixed margins against their formulas in Python numbers, one cosine at a time."""

import math

import pytest
import torch

from attfc_cuda import margins

COSINES = [-1.0, -0.99, -0.5, 0.0, 0.3, 0.8, 0.99, 1.0]


def folded_cosine(angle):
    """SphereFace's psi: (-1)^k cos(a) - 2 k on [k pi, (k + 1) pi]."""
    k = math.floor(angle / math.pi)
    return (-1) ** k * math.cos(angle) - 2 * k


@pytest.mark.parametrize("cosine", COSINES)
@pytest.mark.parametrize(
    ("margin", "formula"),
    [
        (margins.NormFace(), lambda c: c),
        (margins.CosFace(), lambda c: c - 0.35),
        (margins.CosFace(m=0.2), lambda c: c - 0.2),
        (margins.ArcFace(), lambda c: folded_cosine(math.acos(c) + 0.5)),
        (margins.ArcFace(m=0.3), lambda c: folded_cosine(math.acos(c) + 0.3)),
        (margins.SphereFace(), lambda c: folded_cosine(1.35 * math.acos(c))),
        (margins.SphereFace(m=4.0), lambda c: folded_cosine(4 * math.acos(c))),
        (margins.CombinedMargin(), lambda c: folded_cosine(math.acos(c) + 0.3) - 0.2),
        (margins.CombinedMargin(0.9, 0.4, 0.15), lambda c: folded_cosine(0.9 * math.acos(c) + 0.4) - 0.15),
    ],
)
def test_formula(margin, formula, cosine):
    target = margin.target(torch.tensor([cosine], dtype=torch.float64))
    assert float(target) == pytest.approx(formula(cosine), abs=1e-12)
    assert margin.regularizer(torch.tensor([cosine])) is None and not list(margin.buffers())


def test_arcface_slope_is_sine_over_sine():
    cosine = torch.tensor([-0.5, 0.0, 0.3, 0.8], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(margins.ArcFace().target(cosine).sum(), cosine)
    theta = cosine.detach().acos()
    assert torch.allclose(slope, torch.sin(theta + 0.5) / torch.sin(theta), rtol=1e-12)
