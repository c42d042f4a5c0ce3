"""AdaFace and MagFace against their published formulas in Python numbers."""

import math
import statistics

import pytest
import torch

from attfc_cuda import margins


def test_adaface_formula_with_running_statistics():
    margin = margins.AdaFace()
    mean, std = 20.0, 100.0
    batches = [[22.0, 25.0, 31.0, 12.0], [40.0, 41.0, 39.5, 150.0], [0.0, 5.0, 6.0, 7.0]]
    for norms in batches:
        norm = torch.tensor(norms, dtype=torch.float64)
        margin.update(torch.zeros(4, dtype=torch.float64), norm, torch.ones(4, dtype=torch.bool))
        safe = [min(max(value, 1e-3), 100.0) for value in norms]
        mean = 0.99 * mean + 0.01 * statistics.mean(safe)
        std = 0.99 * std + 0.01 * statistics.stdev(safe)
    assert float(margin.norm_mean) == pytest.approx(mean, rel=1e-5)
    assert float(margin.norm_std) == pytest.approx(std, rel=1e-5)
    mean, std = float(margin.norm_mean), float(margin.norm_std)
    cosines = torch.tensor([0.9, 0.2, -0.4, 0.6], dtype=torch.float64)
    for norms in batches:
        target = margin.target(cosines, torch.tensor(norms, dtype=torch.float64))
        for row, (cosine, value) in enumerate(zip(cosines.tolist(), norms, strict=True)):
            z = min(max(0.333 * (min(max(value, 1e-3), 100.0) - mean) / (std + 1e-3), -1.0), 1.0)
            expected = math.cos(math.acos(cosine) - 0.4 * z) - (0.4 + 0.4 * z)
            # The statistics are float32: 2^-24 of a margin under 1.
            assert float(target[row]) == pytest.approx(expected, abs=1e-7)


def test_adaface_quality_is_clipped_and_the_angle_stays_positive():
    margin = margins.AdaFace(m=0.5)
    margin.norm_mean.fill_(50.0), margin.norm_std.fill_(1.0)
    cosine = torch.tensor([0.999, 0.999, -0.99], dtype=torch.float64, requires_grad=True)
    target = margin.target(cosine, torch.tensor([90.0, 10.0, 10.0], dtype=torch.float64))
    # z = 1: theta - 0.5 < 0 stays at angle 0. z = -1: theta + 0.5, the second margin vanishes; past pi it folds.
    theta = math.acos(-0.99) + 0.5
    expected = torch.tensor([1 - 1.0, math.cos(math.acos(0.999) + 0.5), -2 - math.cos(theta)], dtype=torch.float64)
    assert theta > math.pi and torch.allclose(target, expected, atol=1e-12)
    (slope,) = torch.autograd.grad(target.sum(), cosine)
    assert slope[0] == 0 and (slope[1:] > 0).all()


def test_adaface_gives_the_norm_no_gradient():
    norm = torch.tensor([20.0, 30.0], requires_grad=True)
    cosine = torch.tensor([0.5, 0.6], requires_grad=True)
    grads = torch.autograd.grad(margins.AdaFace().target(cosine, norm).sum(), (cosine, norm), allow_unused=True)
    assert grads[0].all() and grads[1] is None


def test_adaface_one_row_moves_the_mean_alone():
    margin = margins.AdaFace(momentum=0.5)
    margin.update(torch.zeros(3), torch.tensor([40.0, 7.0, 9.0]), torch.tensor([True, False, False]))
    assert float(margin.norm_mean) == pytest.approx(30.0) and float(margin.norm_std) == 100.0


@pytest.mark.parametrize("norm", [2.0, 10.5, 45.0, 109.0, 500.0])
@pytest.mark.parametrize("cosine", [-0.99, 0.0, 0.7])
def test_magface_formula(norm, cosine):
    margin = margins.MagFace()
    size = torch.tensor([norm], dtype=torch.float64, requires_grad=True)
    given = torch.tensor([cosine], dtype=torch.float64)
    target, penalty = margin.target(given, size), margin.regularizer(given, size)
    a = min(max(norm, 10.0), 110.0)
    theta = math.acos(cosine) + 0.45 + 0.35 * (a - 10) / 100
    expected = math.cos(theta) if theta <= math.pi else -2 - math.cos(theta)
    assert target.item() == pytest.approx(expected, abs=1e-12)
    assert penalty.item() == pytest.approx(35 * (1 / a + a / 110**2), abs=1e-12)
    grads = [torch.autograd.grad(value, size)[0].item() for value in (target, penalty)]
    if not 10 <= norm <= 110:
        assert grads == [0.0, 0.0]
    else:
        slope = -math.sin(theta) if theta <= math.pi else math.sin(theta)
        assert grads == pytest.approx([slope * 0.35 / 100, 35 * (-1 / a**2 + 1 / 110**2)], abs=1e-12)


def test_magface_penalty_is_least_at_the_upper_norm():
    norm = torch.linspace(10, 110, 101)
    assert (margins.MagFace().regularizer(norm, norm).diff() < 0).all()
