"""The test tools themselves: inputs are what they promise, and the tolerance rule passes and fails where it should."""

import math

import pytest
import torch

from attfc_cuda import testing
from attfc_cuda.ops import eager


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", testing.KINDS)
def test_cases_are_what_they_promise(kind, dtype):
    case = testing.make_case((34, 400, 64), dtype, kind=kind, seed=5)
    again = testing.make_case((34, 400, 64), dtype, kind=kind, seed=5)
    assert case.embeddings.dtype == case.centers.dtype == dtype
    assert torch.equal(case.embeddings, again.embeddings) and torch.equal(case.threshold, again.threshold)
    rounding = max(torch.finfo(dtype).eps, 1e-6)
    assert torch.allclose(case.embeddings.double().norm(dim=1), torch.ones(34).double(), atol=2 * rounding)
    filled = case.center_labels >= 0
    assert case.centers[~filled].isnan().all() and case.centers[filled].isfinite().all()
    assert (~filled).sum() == 40 and (case.labels < 0).sum() == 3
    assert len(case.labels.unique()) < 34, "some labels repeat"
    assert (case.center_labels[None] == case.labels[:, None]).any(), "the container holds own classes"
    result = testing.run(eager.negative_logsumexp, case)
    assert (result["hard_count"] > 0).any()


def test_trained_cases_look_trained():
    case = testing.make_case((32, 1000, 256), torch.float64, kind="trained", empty=0.0, ignored=0.0)
    cosine = case.embeddings @ case.centers.T
    own = case.center_labels[None] == case.labels[:, None]
    best = cosine.masked_fill(~own, -1).amax(1)
    assert ((best - 0.8).abs() < 0.02).sum() > 25
    hard = ((cosine > 0.299) & (cosine < 0.451) & ~own).sum(1)
    assert (hard >= 1).all() and hard.float().mean() < 10
    assert (cosine.masked_fill(own, -1).amax(1) < 0.6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thresholds_keep_their_distance(dtype):
    case = testing.make_case((16, 400, 64), dtype, kind="trained", ignored=0.0)
    cosine = eager.cosines(case.embeddings.double(), case.centers.double(), case.labels, case.center_labels)
    distance = (cosine - case.threshold.double()[:, None]).abs().amin(dim=1)
    assert (distance >= max(1e-5, torch.finfo(dtype).eps / 2) / 2 * 0.99).all()


@pytest.mark.parametrize("shape", list(testing.SHAPES) + ["flat"])
def test_every_shape_has_something_to_sum(shape):
    size = testing.SHAPES.get(shape, (2, 4, 1))
    for kind in testing.KINDS:
        for modulation in testing.MODULATIONS:
            case = testing.make_case(size, torch.float32, kind=kind, modulation=modulation)
            lse = testing.run(eager.negative_logsumexp, case)["lse"]
            assert lse.shape == (size[0],) and lse.isfinite().any() and not lse.isnan().any()


def test_target_cosine_can_be_pinned():
    case = testing.make_case((4, 9, 8), torch.float32, target_cosine=-1.0, scale=2.0)
    assert torch.equal(case.target_cosine, torch.full((4,), -1.0))
    assert torch.allclose(case.target_logit, torch.tensor(2.0) * (-2 - math.cos(math.pi + 0.5)))


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="make_case: kind must be one of random, trained, got 'real'"):
        testing.make_case((1, 1, 1), kind="real")
    with pytest.raises(ValueError, match="make_case: modulation must be one of none, "):
        testing.make_case((1, 1, 1), modulation="cosface")


def test_plain_pytorch_is_worse_than_float32_in_16_bit():
    case = testing.make_case((5, 131, 64), torch.bfloat16, kind="trained")
    truth = testing.run(eager.negative_logsumexp, case.double())
    plain = testing.run(testing.plain_negative_logsumexp, case)
    wide = testing.run(eager.negative_logsumexp, case)
    errors = [testing.relative_error(result["lse"], truth["lse"]).max() for result in (plain, wide)]
    assert errors[0] > 100 * errors[1]
    with pytest.raises(AssertionError, match="^lse: max relative error"):
        testing.assert_no_worse(plain, truth, plain, case=case)


def test_relative_error_is_relative_to_the_row():
    truth = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    actual = torch.tensor([[3.3, 4.0], [0.0, 0.0], [0.1, 1.0]])
    typical = [math.sqrt(12.5), 1.0, math.sqrt(0.5)]
    expected = torch.tensor([[0.3 / typical[0], 0.0], [0.0, 0.0], [0.1 / typical[2], 0.0]], dtype=torch.float64)
    assert torch.allclose(testing.relative_error(actual, truth), expected, rtol=1e-5)
    assert testing.relative_error(torch.tensor([1e-20]), torch.zeros(1)).item() == math.inf
    assert testing.relative_error(torch.tensor([1e-20]), torch.zeros(1), least=1.0).item() == pytest.approx(1e-20)


def test_what_is_not_finite_must_be_the_same():
    truth = torch.tensor([-math.inf, 1.0, math.nan])
    assert not testing.relative_error(truth.clone(), truth).any()
    for actual in ([0.0, 1.0, math.nan], [-math.inf, math.nan, math.nan], [math.inf, 1.0, math.nan]):
        assert testing.relative_error(torch.tensor(actual), truth).max() == math.inf
    with pytest.raises(AssertionError, match=r"at \[1\]: got nan, expected 1"):
        testing.assert_no_worse(torch.tensor([-math.inf, math.nan, math.nan]), truth)


def test_no_worse_passes_and_fails_by_factor():
    truth = torch.ones(4, 4, dtype=torch.float64)
    plain = truth + 1e-3 * torch.eye(4, dtype=torch.float64)
    testing.assert_no_worse(truth + 1.9e-3 * torch.eye(4, dtype=torch.float64), truth, plain)
    with pytest.raises(AssertionError, match=r"grad: max relative error 0.0021 exceeds 0.002 \(plain PyTorch: 0.001"):
        testing.assert_no_worse(truth + 2.1e-3 * torch.eye(4, dtype=torch.float64), truth, plain, name="grad")
    # Everywhere as bad as plain's worst element: the maximum passes, the rms does not.
    with pytest.raises(AssertionError, match="rms relative error"):
        testing.assert_no_worse(truth + 1.5e-3, truth, plain)
    testing.assert_no_worse(truth + 1e-7, truth, truth)
    with pytest.raises(AssertionError, match=r"first over it at \[2, 1\].*worst at \[3, 3\]: got 2, expected 1"):
        actual = truth.clone()
        actual[2, 1], actual[3, 3] = 1.5, 2.0
        testing.assert_no_worse(actual, truth, plain)


def test_integers_must_be_equal_and_shapes_too():
    truth = torch.tensor([3, 4])
    testing.assert_no_worse(truth.clone(), truth)
    with pytest.raises(AssertionError, match=r"worst at \[1\]: got 5, expected 4"):
        testing.assert_no_worse(torch.tensor([3, 5]), truth, floor=1.0)
    with pytest.raises(AssertionError, match=r"shape \[1\] differs from the truth's \[2\]"):
        testing.assert_no_worse(torch.tensor([3]), truth)


def test_mappings_are_compared_by_key():
    case = testing.make_case((5, 20, 8), torch.float32)
    truth = testing.run(eager.negative_logsumexp, case.double())
    found = testing.run(eager.negative_logsumexp, case)
    testing.assert_no_worse(found, truth, found, case=case)
    found["grad_lin"] = found["grad_lin"] * (1 + 1e-4)
    with pytest.raises(AssertionError, match="^grad_lin: "):
        testing.assert_no_worse(found, truth, testing.run(eager.negative_logsumexp, case), case=case)
    del found["hard_count"]
    with pytest.raises(KeyError):
        testing.assert_no_worse(found, truth, case=case)


def test_rows_far_below_their_reference_may_be_lost_and_no_others():
    case = testing.make_case((6, 20, 8), torch.float32, modulation="adasin", ignored=0.0)
    truth = testing.run(eager.negative_logsumexp, case.double())
    case.target_logit = truth["lse"].float() + torch.tensor([0.0, 79.0, 81.0, -30.0, 200.0, 81.0])
    for row, lost in ((1, False), (2, True), (3, False), (4, True)):
        found = testing.run(eager.negative_logsumexp, case)
        for key in found:
            if key == "lse" or key.startswith("grad_"):
                found[key][row] = -math.inf if key == "lse" else 0.0
        if lost:
            testing.assert_no_worse(found, truth, case=case)
        else:
            with pytest.raises(AssertionError, match="^lse: max relative error inf"):
                testing.assert_no_worse(found, truth, case=case)
    found = testing.run(eager.negative_logsumexp, case)
    found["grad_embeddings"][2, 3] = math.nan
    with pytest.raises(AssertionError, match=r"^grad_embeddings: .*worst at \[2, 3\]: got nan"):
        testing.assert_no_worse(found, truth, case=case)


def test_gradients_are_compared_as_vectors():
    truth = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    shrunk = testing.gradient_difference(0.9 * truth, truth)
    assert shrunk == pytest.approx({"relative_l2": 0.1, "cosine": 1.0, "bias": -0.1})
    turned = testing.gradient_difference(truth + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), truth)
    assert turned["bias"] == pytest.approx(0.0, abs=1e-12) and turned["cosine"] < 1
    testing.assert_gradient_close(0.99 * truth, truth, relative_l2=0.0101)
    with pytest.raises(AssertionError, match="grad: relative L2 error above 0.0099: .*'bias': -0.00999"):
        testing.assert_gradient_close(0.99 * truth, truth, relative_l2=0.0099, name="grad")
    with pytest.raises(AssertionError, match="relative L2"):
        testing.assert_gradient_close(torch.full((2, 2), math.nan), truth, relative_l2=0.5)
    testing.assert_gradient_close(torch.zeros(2), torch.zeros(2), relative_l2=0.0)
