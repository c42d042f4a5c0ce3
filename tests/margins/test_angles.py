"""The safe angle and the continued cosine, against the textbook's and against finite differences."""

import math

import pytest
import torch

from attfc_cuda.margins import angle, psi


def test_angle_is_acos_outside_the_last_step():
    cosine = torch.cat([torch.linspace(-1, 1, 1001, dtype=torch.float64), torch.tensor([1 - 2.0**-23, -1 + 2.0**-23])])
    assert torch.allclose(angle(cosine), cosine.acos(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angle_at_the_ends_is_exact_with_a_finite_slope(dtype):
    step = 2.0**-24
    cosine = torch.tensor([1.0, 1 - step, -1.0, -1 + step], dtype=dtype, requires_grad=True)
    theta = angle(cosine)
    (slope,) = torch.autograd.grad(theta.sum(), cosine)
    assert theta[0].abs() < 1e-10 and (theta[2] - math.pi).abs() < 3e-7
    assert torch.allclose(slope, torch.full_like(slope, -4096.0), rtol=1e-5)
    # The chord never strays further from the arc than its docstring says.
    inside = 1 - torch.linspace(0, 2.0**-23, 101, dtype=torch.float64)
    assert (angle(inside) - inside.acos()).abs().max() < 1.3e-4
    assert (angle(inside).diff() > 0).all()


def test_angle_clamps_what_rounding_leaves_outside():
    cosine = torch.tensor([1 + 1e-6, -1 - 1e-6], dtype=torch.float64, requires_grad=True)
    theta = angle(cosine)
    (slope,) = torch.autograd.grad(theta.sum(), cosine)
    assert torch.allclose(theta, torch.tensor([0.0, math.pi], dtype=torch.float64)) and not slope.any()


def test_angle_does_not_hide_a_nan():
    assert angle(torch.tensor([math.nan])).isnan().all() and psi(torch.tensor([math.nan])).isnan().all()


def test_gradient_of_an_embedding_near_its_center_is_the_exact_one():
    """After the normalisation's chain rule, which brings sin theta, the safe angle changes only the last 5e-4."""
    for theta in (1e-3, 1e-2, math.pi - 1e-3):
        own = torch.tensor([1.0, 0.0], dtype=torch.float64)
        raw = torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float64, requires_grad=True)
        cosine = (raw / raw.norm()) @ own
        (gradient,) = torch.autograd.grad(psi(angle(cosine) + 0.5), raw)
        slope = -math.sin(theta + 0.5) if theta + 0.5 < math.pi else math.sin(theta + 0.5)
        expected = slope * torch.tensor([-math.sin(theta), math.cos(theta)], dtype=torch.float64)
        assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_psi_continues_the_cosine():
    angle = torch.linspace(-1.0, 4 * math.pi, 4001, dtype=torch.float64)
    value = psi(angle)
    below, fold = angle <= math.pi, (angle > math.pi) & (angle <= 2 * math.pi)
    assert torch.allclose(value[below], angle[below].cos(), atol=1e-15, rtol=0)
    assert torch.allclose(value[fold], -2 - angle[fold].cos(), atol=1e-15, rtol=0)
    k = torch.floor(angle / math.pi)
    sphereface = torch.where(k.remainder(2) == 0, 1.0, -1.0) * angle.cos() - 2 * k
    assert torch.allclose(value[angle >= 0], sphereface[angle >= 0], atol=1e-14, rtol=0)
    falling = value[angle >= 0].diff()
    assert (falling < 0).all()


def test_psi_is_c1_where_it_folds():
    for fold in (math.pi, 2 * math.pi, 3 * math.pi):
        angle = torch.tensor([fold - 1e-6, fold, fold + 1e-6], dtype=torch.float64, requires_grad=True)
        value = psi(angle)
        (slope,) = torch.autograd.grad(value.sum(), angle)
        assert torch.allclose(value, value[1].expand(3), atol=1e-11)
        assert slope.abs().max() < 2e-6
    angle = torch.linspace(0.1, 6.0, 25, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(psi, angle)
