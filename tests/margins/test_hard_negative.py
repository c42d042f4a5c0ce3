"""MV-Arc-Softmax and CurricularFace against the published logits, built entry by entry from a cosine matrix."""

import math

import pytest
import torch
import torch.nn.functional as F

from attfc_cuda import margins, testing
from attfc_cuda.functional import margin_softmax_loss


def published_rows(cosines, labels, hard):
    """Cross entropy of 64 * logits with the target's cosine bent to cos(theta + 0.5) and `hard` applied above it."""
    logits = cosines.clone()
    for row, label in enumerate(labels.tolist()):
        target = math.cos(math.acos(float(cosines[row, label])) + 0.5)
        for column in range(cosines.shape[1]):
            if column == label:
                logits[row, column] = target
            elif float(cosines[row, column]) > target:
                logits[row, column] = hard(float(cosines[row, column]))
    return F.cross_entropy(64 * logits, labels, reduction="none")


@pytest.mark.parametrize("name", ["mvsoftmax", "curricularface"])
def test_rows_are_the_published_ones(name):
    case = testing.make_case((8, 30, 12), torch.float64, kind="trained", empty=0.0, ignored=0.0)
    # A plain classifier: 30 classes, one centre each, the batch's own classes among them.
    labels, classes = torch.arange(8), torch.arange(30)
    centers = case.centers.clone()
    centers[:8] = testing.at_cosine(case.embeddings, 0.75, torch.Generator().manual_seed(1))
    cosines = case.embeddings @ centers.T
    own = cosines[labels, labels]
    margin = margins.build(name, **({"momentum": 0.5} if name == "curricularface" else {}))
    output = margin_softmax_loss(case.embeddings, centers, labels, classes, margin, target_cosine=own, backend="eager")
    t = 1.12 if name == "mvsoftmax" else 0.5 * float(own.mean())
    hard = (lambda c: t * c + t - 1) if name == "mvsoftmax" else (lambda c: c * (t + c))
    assert output.negatives.hard_count.any()
    # CurricularFace's t is a float32 buffer: 2^-24 of a logit near 64.
    assert torch.allclose(output.rows, published_rows(cosines, labels, hard), rtol=1e-6, atol=1e-5)


def test_mv_coefficients():
    cosine = torch.tensor([0.8, -0.99], dtype=torch.float64)
    modulation = margins.MVSoftmax(m=0.4, t=1.3).modulation(cosine)
    # The second row lies past pi: the threshold follows the target's continuation.
    past = math.acos(-0.99) + 0.4
    threshold = torch.tensor([math.cos(math.acos(0.8) + 0.4), -2 - math.cos(past)], dtype=torch.float64)
    assert past > math.pi and torch.allclose(modulation.threshold, threshold)
    assert torch.allclose(torch.stack(modulation[1:]), torch.tensor([[0.0], [1.3], [0.3]], dtype=torch.float64))


def test_curricular_t_is_a_running_mean_of_cosines():
    margin = margins.CurricularFace()
    t = 0.0
    for step in range(3):
        cosine = torch.tensor([0.1, 0.5, -0.2 + step])
        margin.update(cosine, None, torch.ones(3, dtype=torch.bool))
        t = 0.99 * t + 0.01 * float(cosine.mean())
    assert float(margin.t) == pytest.approx(t, rel=1e-5)
    modulation = margin.modulation(cosine)
    assert torch.equal(modulation.quad, torch.ones(3)) and not modulation.const.any()
    assert torch.equal(modulation.lin, margin.t.expand(3)) and not modulation.lin.requires_grad


def test_curricular_modulation_does_not_share_memory_with_t():
    margin = margins.CurricularFace(momentum=0.0)
    lin = margin.modulation(torch.zeros(2)).lin
    margin.update(torch.ones(2), None, torch.ones(2, dtype=torch.bool))
    assert margin.t == 1 and not lin.any()
