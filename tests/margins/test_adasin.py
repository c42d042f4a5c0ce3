"""AdaSin against its definition in Python numbers, for every option, and its step by step curriculum."""

import math

import pytest
import torch

from attfc_cuda import margins, testing
from attfc_cuda.functional import margin_softmax_loss
from attfc_cuda.ops import eager

COSINES = [0.95, 0.4, -0.2, -0.97, 1.0, -1.0]
HARD = [0, 2, 1, 3, 1, 1]
T = 0.375  # exact in float32, which the buffer is

OPTIONS = [
    {},
    dict(m=0.3, h=1.0),
    dict(difficulty="angle"),
    dict(positive_penalty=False),
    dict(negative_penalty=False),
    dict(positive_penalty=False, negative_penalty=False),
    dict(detach_difficulty=False),
    dict(curriculum=False),
]


def continued(angle):
    return math.cos(angle) if angle <= math.pi else -2 - math.cos(angle)


def by_hand(cosine, hard_count, m=0.5, h=1.5, difficulty="half_angle", positive_penalty=True, negative_penalty=True,
            t=T, **_):  # fmt: skip
    """(threshold, weight of hard negatives, target) of one row."""
    theta = math.acos(cosine)
    phi = t + h * math.sin(theta / 2 if difficulty == "half_angle" else theta)
    margin = phi * m if positive_penalty and hard_count else m
    return continued(theta + m), phi if negative_penalty else 1.0, continued(theta + margin)


@pytest.mark.parametrize("options", OPTIONS)
def test_definition(options):
    margin = margins.AdaSin(**options)
    margin.t.fill_(T)
    cosine = torch.tensor(COSINES, dtype=torch.float64)
    modulation = margin.modulation(cosine)
    target = margin.target(cosine, None, torch.tensor(HARD))
    easy = margin.target(cosine)
    assert not modulation.quad.any() and not modulation.const.any()
    for row, (value, count) in enumerate(zip(COSINES, HARD, strict=True)):
        threshold, weight, bent = by_hand(value, count, **options)
        assert float(modulation.threshold[row]) == pytest.approx(threshold, abs=1e-12)
        assert float(modulation.lin[row]) == pytest.approx(weight, abs=1e-12)
        assert float(target[row]) == pytest.approx(bent, abs=1e-12)
        assert float(easy[row]) == pytest.approx(threshold, abs=1e-12)


def test_hard_samples_are_penalised_more():
    margin = margins.AdaSin()
    margin.t.fill_(T)
    cosine = torch.tensor([0.3], dtype=torch.float64)
    assert margin.modulation(cosine).lin > 1 and margin.target(cosine, None, torch.tensor([1])) < margin.target(cosine)


@pytest.mark.parametrize("detach", [True, False])
def test_difficulty_gradient_follows_its_option(detach):
    margin = margins.AdaSin(detach_difficulty=detach)
    margin.t.fill_(T)
    cosine = torch.tensor([0.6, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    hard = torch.tensor([1, 2, 0])
    theta = cosine.detach().acos()
    phi = T + 1.5 * torch.sin(theta / 2)
    lin, target = margin.modulation(cosine).lin, margin.target(cosine, None, hard)
    slope_of_theta = -1 / torch.sin(theta)
    slope_of_phi = 1.5 * torch.cos(theta / 2) / 2 * slope_of_theta
    assert lin.requires_grad != detach
    if not detach:
        assert torch.allclose(torch.autograd.grad(lin.sum(), cosine)[0], slope_of_phi, rtol=1e-12)
    (slope,) = torch.autograd.grad(target.sum(), cosine)
    bent = theta + 0.5 * torch.where(hard > 0, phi, 1)
    inner = slope_of_theta + torch.where(hard > 0, 0 if detach else 0.5 * slope_of_phi, 0)
    assert (bent < math.pi).all() and torch.allclose(slope, -torch.sin(bent) * inner, rtol=1e-12)


def test_curriculum_follows_the_batch_mean():
    margin = margins.AdaSin(momentum=0.9)
    t = 0.0
    for batch in ([0.1, 0.2], [0.5, 0.9], [-0.4, 0.8]):
        margin.update(torch.tensor(batch), None, torch.ones(2, dtype=torch.bool))
        t = 0.9 * t + 0.1 * sum(batch) / 2
    assert float(margin.t) == pytest.approx(t, rel=1e-5)
    assert margins.AdaSin().momentum == 0.99 and float(margins.AdaSin().t) == 0.0


def test_without_curriculum_phi_is_the_difficulty_alone():
    margin = margins.AdaSin(curriculum=False)
    margin.update(torch.tensor([0.9, 0.8]), None, torch.ones(2, dtype=torch.bool))
    cosine = torch.tensor([0.5], dtype=torch.float64)
    assert float(margin.t) == 0.0
    assert float(margin.modulation(cosine).lin) == pytest.approx(1.5 * math.sin(math.acos(0.5) / 2), abs=1e-12)


def test_both_penalties_off_is_arcface():
    case = testing.make_case((9, 60, 16), torch.float64, kind="trained")
    rows = []
    for margin in (margins.AdaSin(positive_penalty=False, negative_penalty=False), margins.ArcFace()):
        arguments = (case.embeddings, case.centers, case.labels, case.center_labels, margin)
        output = margin_softmax_loss(*arguments, target_cosine=case.target_cosine, backend="eager")
        rows.append(output.rows)
    assert torch.allclose(*rows, rtol=1e-13)


def test_rows_by_hand():
    """The whole loss of each row from the definition, one Python number at a time, after one training step of t."""
    case = testing.make_case((9, 60, 16), torch.float64, kind="trained", empty=0.1, ignored=0.2)
    margin = margins.AdaSin()
    arguments = (case.embeddings, case.centers, case.labels, case.center_labels)
    own = torch.linspace(0.2, 0.9, 9, dtype=torch.float64)
    output = margin_softmax_loss(*arguments, margin, target_cosine=own, backend="eager")
    t = float(margin.t)
    assert t == pytest.approx(0.01 * float(own[case.labels >= 0].mean()), rel=1e-6)
    cosines = eager.cosines(*arguments)
    seen_hard = set()
    for row, label in enumerate(case.labels.tolist()):
        if label < 0:
            assert output.rows[row] == 0
            continue
        threshold, phi, _ = by_hand(float(own[row]), 1, t=t)
        negatives, hard_count = [], 0
        for slot, other in enumerate(case.center_labels.tolist()):
            if other not in (-1, label):
                cosine = float(cosines[row, slot])
                hard_count += cosine > threshold
                negatives.append(64 * (phi * cosine if cosine > threshold else cosine))
        target = 64 * by_hand(float(own[row]), hard_count, t=t)[2]
        top = max(*negatives, target)
        total = sum(math.exp(z - top) for z in [*negatives, target])
        assert float(output.rows[row]) == pytest.approx(top + math.log(total) - target, abs=1e-11)
        assert int(output.negatives.hard_count[row]) == hard_count
        seen_hard.add(hard_count > 0)
    assert seen_hard == {True, False}
