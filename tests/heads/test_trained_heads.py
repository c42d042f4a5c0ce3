"""Full FC and Partial FC heads: equal to the textbook, sampled fairly, safe under AMP and on bad input."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trained_cases import batch, make

from attfc_cuda import AdaSin, ArcFace, CurricularFace, FullyConnected, PartialFC, testing

HEADS = (FullyConnected, PartialFC)


def textbook(x: Tensor, centers: Tensor, labels: Tensor, m: float = 0.5, scale: float = 24.0) -> Tensor:
    cosine = F.normalize(x.double()) @ F.normalize(centers.double()).T
    own = torch.arange(len(x)), labels
    return F.cross_entropy(scale * cosine.index_put(own, torch.cos(torch.acos(cosine[own]) + m)), labels)


def test_full_fc_equals_the_textbook() -> None:
    head = make(FullyConnected)
    x, labels = batch()
    x.requires_grad_()
    loss = head(x, labels)
    loss.backward()
    y, w = x.detach().clone().requires_grad_(), head.centers.detach().clone().requires_grad_()
    expected = textbook(y, w, labels)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    testing.assert_gradient_close(x.grad, y.grad, 24 * 2.0**-21)
    testing.assert_gradient_close(head.centers.grad, w.grad, 24 * 2.0**-21)
    # Along a centre nothing changes: its gradient is orthogonal to it.
    along = (F.normalize(head.centers) * head.centers.grad).sum(1).abs()
    assert (along <= 1e-5 * head.centers.grad.norm(dim=1).clamp(min=1e-6)).all()


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_trimmed_rows_do_not_move_the_centers(backend: str) -> None:
    """Loss and gradients are the textbook's of the rows that are left, which are those nearer to their centres."""
    head = make(FullyConnected, margin=ArcFace(scale=24.0, trim=0.25), backend=backend)
    x, labels = batch()
    cosine = (F.normalize(x) * F.normalize(head.centers.detach())[labels]).sum(1)
    left = cosine.argsort()[3:].sort().values
    x.requires_grad_()
    loss = head(x, labels)
    loss.backward()
    y, w = x.detach()[left].requires_grad_(), head.centers.detach().clone().requires_grad_()
    expected = textbook(y, w, labels[left])
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    testing.assert_gradient_close(x.grad[left], y.grad, 24 * 2.0**-21)
    testing.assert_gradient_close(head.centers.grad, w.grad, 24 * 2.0**-21)
    assert not x.grad[cosine.argsort()[:3]].any()


def test_partial_fc_equals_the_textbook_over_its_sample() -> None:
    head = make(PartialFC, sample_rate=0.4)
    x, labels = batch(rows=9)
    state = torch.get_rng_state()
    selected = head.select(labels)
    torch.set_rng_state(state)
    loss = head(x, labels)
    loss.backward()
    sample = selected.center_labels
    assert len(sample) == 16 and (sample.diff() > 0).all() and torch.isin(labels, sample).all()
    assert torch.equal(sample[selected.target_slot], labels)
    w = head.centers.detach().clone().requires_grad_()
    expected = textbook(x, w[sample], torch.searchsorted(sample, labels))
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    testing.assert_gradient_close(head.centers.grad, w.grad, 24 * 2.0**-21)
    outside = torch.ones(40, dtype=torch.bool)
    outside[sample] = False
    assert outside.sum() == 24 and not head.centers.grad[outside].any()


def test_every_class_is_sampled_about_equally_often() -> None:
    head = make(PartialFC, classes=50, sample_rate=0.2)
    labels = torch.tensor([3, 7, 7, -1])
    counts = torch.zeros(50)
    rounds = 2000
    for _ in range(rounds):
        counts[head.select(labels).center_labels] += 1
    assert counts[3] == counts[7] == rounds
    others = torch.cat([counts[:3], counts[4:7], counts[8:]])
    # 8 of 48 others a round: binomial, five standard deviations.
    share, spread = 8 / 48, math.sqrt(8 / 48 * 40 / 48 / rounds)
    assert ((others / rounds - share).abs() < 5 * spread).all()


@pytest.mark.parametrize("sample_rate", [0.01, 0.5, 1.0])
def test_more_rows_than_the_sample_holds_still_meet_their_classes(sample_rate: float) -> None:
    head = make(PartialFC, sample_rate=sample_rate)
    x, _ = batch(rows=30)
    labels = torch.randperm(40)[:30]
    selected = head.select(labels)
    assert torch.equal(selected.center_labels[selected.target_slot], labels)
    assert head(x, labels).isfinite()


def test_partial_fc_meets_all_classes_in_eval_mode() -> None:
    head = make(PartialFC, sample_rate=0.2).eval()
    x, labels = batch()
    assert torch.equal(head(x, labels), make(FullyConnected).eval()(x, labels))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("margin", [AdaSin, CurricularFace])
def test_margins_that_bend_negatives_train(head: type, margin: type) -> None:
    made = make(head, margin=margin(scale=16.0, m=0.2))
    x, labels = batch()
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = made(x, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert set(made.stats) == {
        "loss", "positive_cosine", "hard_fraction", "container_top1", "fill", "omitted_mass", "t",
    }  # fmt: skip
    assert made.stats["fill"] == (40 if head is FullyConnected else 12)


@pytest.mark.parametrize("head", HEADS)
def test_ignored_rows_leave_no_trace(head: type) -> None:
    x, labels = batch()
    poisoned, with_ignored = torch.cat([x, torch.full((3, 16), math.nan)]), torch.cat([labels, torch.tensor([-1] * 3)])
    results = []
    for rows, classes in ((x, labels), (poisoned, with_ignored)):
        made = make(head, sample_rate=0.5) if head is PartialFC else make(head)
        rows = rows.clone().requires_grad_()
        torch.manual_seed(5)
        loss = made(rows, classes)
        loss.backward()
        results.append((loss.detach(), rows.grad[:12], made.centers.grad))
        assert not rows.grad[12:].any()
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("head", HEADS)
def test_no_rows_no_loss(head: type) -> None:
    made = make(head)
    for x, labels in (
        (torch.empty(0, 16, requires_grad=True), torch.empty(0, dtype=torch.int64)),
        (torch.randn(3, 16, requires_grad=True), torch.full((3,), -1)),
    ):
        made.zero_grad()
        loss = made(x, labels)
        loss.backward()
        assert loss == 0 and not x.grad.any() and not made.centers.grad.any()


def test_one_class_has_no_negatives() -> None:
    made = make(FullyConnected, classes=1)
    x = torch.randn(4, 16, requires_grad=True)
    loss = made(x, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and not x.grad.any() and not made.centers.grad.any()


@pytest.mark.parametrize("head", HEADS)
def test_float32_masters_under_autocast(head: type) -> None:
    made = make(head)
    x, labels = batch()
    torch.manual_seed(5)
    exact = made(x, labels)
    exact.backward()
    expected = made.centers.grad.clone()
    made.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = made(x.bfloat16(), labels)
    loss.backward()
    assert made.centers.dtype == made.centers.grad.dtype == loss.dtype == torch.float32
    assert loss.detach() == pytest.approx(float(exact.detach()), rel=24 * 2.0**-8)
    testing.assert_gradient_close(made.centers.grad, expected, 24 * 2.0**-7)


def test_a_class_starts_the_same_however_many_there_are() -> None:
    torch.manual_seed(3)
    few = FullyConnected(8, 5000).centers
    torch.manual_seed(3)
    many = FullyConnected(8, 9000).centers
    assert torch.equal(few, many[:5000]) and float(few.detach().std()) == pytest.approx(0.01, rel=0.02)
    torch.manual_seed(4)
    assert not torch.equal(few, FullyConnected(8, 5000).centers)


@pytest.mark.proof
def test_step_compiles() -> None:
    made = make(FullyConnected)
    x, labels = batch()
    results = []
    for run in (made, torch.compile(made, fullgraph=True)):
        made.zero_grad()
        rows = x.clone().requires_grad_()
        loss = run(rows, labels)
        loss.backward()
        results.append((loss.detach(), rows.grad, made.centers.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


BAD = {
    "dim": (lambda: FullyConnected(0, 5), ValueError, "FullyConnected: dim must be at least 1, got 0"),
    "classes": (lambda: PartialFC(4, 0), ValueError, "PartialFC: num_classes must be at least 1, got 0"),
    "rate": (lambda: PartialFC(4, 5, 0.0), ValueError, "PartialFC: sample_rate must lie in (0, 1], got 0.0"),
    "margin": (lambda: FullyConnected(4, 5, "arc"), TypeError, "FullyConnected: margin must be a margins.Margin, got"),
    "dtype": (lambda: FullyConnected(4, 5, dtype=torch.int8), TypeError, "FullyConnected: dtype must be one of"),
    "label": (
        lambda: make(FullyConnected)(torch.randn(2, 16), torch.tensor([0, 40])),
        ValueError,
        "FullyConnected: labels must be below num_classes = 40, got 40 in row 1; give the head the data set's number",
    ),
    "label dtype": (
        lambda: make(PartialFC)(torch.randn(2, 16), torch.tensor([0, 1], dtype=torch.int32)),
        TypeError,
        "PartialFC: labels must have dtype torch.int64, got torch.int32; labels.long()",
    ),
    "label shape": (
        lambda: make(FullyConnected)(torch.randn(2, 16), torch.tensor([0])),
        ValueError,
        "FullyConnected: labels must have shape [2], got [1]",
    ),
    "embedding shape": (
        lambda: make(FullyConnected)(torch.randn(2, 15), torch.tensor([0, 1])),
        ValueError,
        "FullyConnected: embeddings must have shape [B, 16], got [2, 15]",
    ),
    "embedding dtype": (
        lambda: make(FullyConnected)(torch.ones(2, 16, dtype=torch.int64), torch.tensor([0, 1])),
        TypeError,
        "FullyConnected: embeddings must have a floating dtype, got torch.int64",
    ),
    "nan": (
        lambda: make(FullyConnected, check_finite=True)(torch.tensor([[0.0] * 16, [math.nan] * 16]), torch.arange(2)),
        ValueError,
        "FullyConnected: embeddings must be finite (check_finite is on), got 16 values that are NaN or infinite in row",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    run, kind, message = BAD[name]
    with pytest.raises(kind, match="^" + re.escape(message)):
        run()
