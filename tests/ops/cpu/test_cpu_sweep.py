"""The compiled CPU sweep: right against float64, on inputs that bite."""

import dataclasses
import math

import pytest
import torch
from cpu_cases import DTYPES, STRIDED_VIEWS, check_sweep, needs_extension, raw_centers
from proofs import rest_in_proof

from attfc_cuda import testing
from attfc_cuda.functional import negative_logsumexp
from attfc_cuda.ops import eager

pytestmark = needs_extension

# Tails and tiles are a matter of shape and precision; which negatives are hard, and what they weigh, of
# kind and modulation, at one shape.
AGREES = [(shape, "trained", "quadratic") for shape in testing.SHAPES] + [
    ("odd", "random", "quadratic"),
    ("odd", "random", "adasin"),
    ("odd", "trained", "adasin"),
    ("odd", "trained", "none"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kind", "modulation"), AGREES)
def test_agrees_with_float64(dtype, shape, kind, modulation):
    check_sweep(testing.make_case(testing.SHAPES[shape], dtype, kind=kind, modulation=modulation, seed=1))


@pytest.mark.parametrize("modulation", ["filter", "mv", "curricular"])
def test_every_modulation_agrees_with_float64(modulation):
    check_sweep(testing.make_case(testing.SHAPES["odd"], torch.float32, kind="trained", modulation=modulation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "modulation"), [*((shape, "quadratic") for shape in testing.SHAPES), ("odd", "none")]
)
def test_center_scale_makes_raw_centres_unit(dtype, shape, modulation):
    case = testing.make_case(testing.SHAPES[shape], dtype, kind="trained", modulation=modulation)
    case, center_scale = raw_centers(case)
    exact = case.double()
    exact.centers = exact.centers * center_scale.double()[:, None]
    truth = testing.run(eager.negative_logsumexp, exact)
    unit = dataclasses.replace(case, centers=exact.centers.to(dtype))
    plain = testing.run(testing.plain_negative_logsumexp, unit)
    actual = testing.run(negative_logsumexp, case, backend="cpu", grad_tolerance=0.0, center_scale=center_scale)
    testing.assert_no_worse(actual, truth, plain, case=case)


def test_a_center_scale_of_ones_changes_no_bit():
    case = testing.make_case(testing.SHAPES["odd"], torch.bfloat16, kind="trained", modulation="adasin")
    plain = testing.run(negative_logsumexp, case, backend="cpu")
    ones = torch.where(case.center_labels < 0, math.nan, torch.ones(len(case.centers)))
    scaled = testing.run(negative_logsumexp, case, backend="cpu", center_scale=ones)
    assert all(torch.equal(scaled[key], value) for key, value in plain.items())


@pytest.mark.parametrize("dtype", rest_in_proof([torch.float32, torch.bfloat16]), ids=str)
def test_real_size_agrees_with_float64(dtype):
    case = testing.make_case(testing.REAL_SHAPE, dtype, kind="trained", modulation="adasin")
    actual, truth = check_sweep(case)
    if dtype == torch.float32:
        testing.assert_gradient_close(actual["grad_embeddings"], truth["grad_embeddings"], 1e-5)
        assert (testing.relative_error(actual["lse"], truth["lse"]) <= 1e-5).all()


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("scale", [1.0, 64.0, 1000.0])
@pytest.mark.parametrize("target_cosine", [-1.0, 1.0])
def test_any_scale_and_target(dtype, scale, target_cosine):
    check_sweep(
        testing.make_case(
            testing.SHAPES["tail"], dtype, kind="trained", modulation="adasin", scale=scale, target_cosine=target_cosine
        )
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_cosines_at_the_ends(sign, dtype):
    """Negatives that are the embedding itself, or its opposite, at the largest scale."""
    case = testing.make_case((6, 100, 64), dtype, modulation="none", scale=1000.0, empty=0.0, ignored=0.0)
    case.centers[::7] = sign * case.embeddings[0]
    case.center_labels[::7] = 10_000
    case.target_logit = torch.full_like(case.target_logit, 900.0 * sign)
    check_sweep(case)


@pytest.mark.parametrize("offset", [-1e4, -200.0, -20.0, 20.0, 60.0, None], ids=str)
def test_the_target_logit_changes_no_exact_row(offset):
    """Below the true lse by anything, above it by less than 80, or none: the same result to rounding."""
    case = testing.make_case(testing.SHAPES["odd"], torch.float32, kind="random", modulation="quadratic")
    truth = testing.run(eager.negative_logsumexp, case.double())
    lse = torch.where(truth["lse"].isfinite(), truth["lse"], 0).float()
    case.target_logit = None if offset is None else lse + offset
    actual = testing.run(negative_logsumexp, case, backend="cpu", grad_tolerance=0.0)
    plain = testing.run(testing.plain_negative_logsumexp, case)
    testing.assert_no_worse(actual["lse"], truth["lse"], floor=testing.FLOAT32_FLOOR, least=case.scale)
    floor, least = testing.floor_of("grad_embeddings", case)
    testing.assert_no_worse(
        actual["grad_embeddings"], truth["grad_embeddings"], plain["grad_embeddings"], floor=floor, least=least
    )


def test_a_target_logit_far_above_loses_the_row_and_nothing_else():
    case = testing.make_case(testing.SHAPES["tail"], torch.float32, modulation="none", ignored=0.0)
    case.target_logit = torch.full_like(case.target_logit, 1000.0)
    actual = testing.run(negative_logsumexp, case, backend="cpu")
    assert (actual["lse"] == -math.inf).all() and not actual["grad_embeddings"].any()
    truth = testing.run(eager.negative_logsumexp, case.double())
    testing.assert_no_worse(actual["max_cosine"], truth["max_cosine"], least=1.0)


def test_rising_logits_move_the_reference_tile_after_tile():
    """Each tile of centres beats the one before by more than the safe distance, and the largest comes last."""
    dim, slots = 64, 480
    embeddings = torch.zeros(3, dim)
    embeddings[:, 0] = 1
    centers = torch.zeros(slots, dim)
    centers[:, 0] = torch.linspace(-1, 1, slots)
    centers[:, 1] = (1 - centers[:, 0] ** 2).clamp(min=0).sqrt()
    for target_logit in (None, torch.full((3,), -1000.0)):
        x = embeddings.clone().requires_grad_()
        y = embeddings.double().requires_grad_()
        labels, center_labels = torch.arange(3), torch.arange(100, 100 + slots)
        ours = negative_logsumexp(
            x, centers, labels, center_labels, target_logit=target_logit, scale=1000.0, backend="cpu"
        )
        truth = eager.negative_logsumexp(y, centers.double(), labels, center_labels, scale=1000.0)
        testing.assert_no_worse(ours.lse, truth[0])
        grads = torch.autograd.grad(ours.lse.sum(), x)[0], torch.autograd.grad(truth[0].sum(), y)[0]
        testing.assert_no_worse(*grads, floor=1000 * 2.0**-22)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_skipping_keeps_the_loss_and_reports_what_it_left_out(dtype):
    case = testing.make_case((70, 9000, 128), dtype, kind="trained", modulation="adasin", empty=0.0, ignored=0.0)
    tolerance = 2.0**-12
    exact = testing.run(negative_logsumexp, case, backend="cpu", grad_tolerance=0.0)
    swept = testing.run(negative_logsumexp, case, backend="cpu", grad_tolerance=tolerance)
    assert torch.equal(swept["lse"], exact["lse"]) and not exact["omitted_mass"].any()
    assert 0 < swept["omitted_mass"].max() <= tolerance
    # The softmax over target and negatives weighs d lse by lse's own share; each omitted negative has |N' w| <= slope.
    share = torch.sigmoid(swept["lse"].double() - case.target_logit.double())
    slope = case.lin.double().abs().clamp(min=1).max()
    error = (swept["grad_embeddings"].double() - exact["grad_embeddings"].double()).norm(dim=1)
    bound = case.upstream.abs().double() * case.scale * slope * swept["omitted_mass"].double() / share
    rounding = torch.finfo(dtype).eps * exact["grad_embeddings"].double().norm(dim=1)
    assert (error <= bound * (1 + 1e-3) + rounding).all()
    assert (error > 0).any()


def test_nothing_to_sum():
    """No rows, no slots, only empty slots, only ignored rows, only the own class: lse -inf, gradient 0, no NaN."""
    generator = torch.Generator().manual_seed(0)
    x, w = (testing.unit(torch.randn(n, 16, generator=generator)) for n in (4, 60))
    labels, slots = torch.arange(4), torch.arange(4, 64)
    nan = torch.full_like(w, math.nan)
    for name, batch, centers, row_labels, center_labels in (
        ("no rows", x[:0], w, labels[:0], slots),
        ("no slots", x, w[:0], labels, slots[:0]),
        ("empty slots", x, nan, labels, torch.full_like(slots, -1)),
        ("ignored rows", torch.full_like(x, math.nan), w, torch.full_like(labels, -1), slots),
        ("own class", x, w, torch.full_like(labels, 7), torch.full_like(slots, 7)),
    ):
        batch = batch.clone().requires_grad_()
        swept = negative_logsumexp(batch, centers, row_labels, center_labels, backend="cpu")
        assert (swept.lse == -math.inf).all() and swept.lse.shape == row_labels.shape, name
        assert (swept.max_cosine == -math.inf).all() and not swept.hard_count.any(), name
        assert not swept.omitted_mass.any(), name
        (gradient,) = torch.autograd.grad(swept.lse, batch, torch.ones_like(swept.lse))
        assert gradient.shape == batch.shape and not gradient.any() and not gradient.isnan().any(), name


def test_a_nan_embedding_stays_in_its_row():
    case = testing.make_case(testing.SHAPES["odd"], torch.float32, modulation="adasin", ignored=0.0)
    clean = testing.run(negative_logsumexp, case, backend="cpu")
    case.embeddings[3, 5] = math.nan
    dirty = testing.run(negative_logsumexp, case, backend="cpu")
    others = torch.arange(len(case.labels)) != 3
    assert dirty["lse"][3].isnan() and dirty["grad_embeddings"][3].isnan().all()
    assert torch.equal(dirty["lse"][others], clean["lse"][others])
    assert torch.equal(dirty["grad_embeddings"][others], clean["grad_embeddings"][others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_inputs_are_read_right(dtype):
    case = testing.make_case((9, 205, 48), dtype, modulation="adasin", empty=0.0)
    expected = testing.run(negative_logsumexp, case, backend="cpu", grad_tolerance=0.0)
    for name, view in STRIDED_VIEWS.items():
        strided = testing.make_case((9, 205, 48), dtype, modulation="adasin", empty=0.0)
        strided.embeddings, strided.centers = view(case.embeddings), view(case.centers)
        strided.labels = case.labels.repeat_interleave(2)[::2]
        strided.threshold = case.threshold.repeat_interleave(3)[::3]
        actual = testing.run(negative_logsumexp, strided, backend="cpu", grad_tolerance=0.0)
        for key, value in expected.items():
            assert torch.equal(actual[key], value), f"{name}: {key}"
    one = negative_logsumexp(
        case.embeddings[:1].expand(9, -1), case.centers, case.labels, case.center_labels, backend="cpu"
    )
    assert torch.equal(
        one.lse,
        negative_logsumexp(
            case.embeddings[:1].repeat(9, 1), case.centers, case.labels, case.center_labels, backend="cpu"
        ).lse,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_the_same_in_every_run_and_with_any_number_of_threads(dtype):
    case = testing.make_case((150, 5000, 96), dtype, modulation="quadratic")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (threads, threads, 1, 3):
            torch.set_num_threads(count)
            results.append(testing.run(negative_logsumexp, case, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for key, value in results[0].items():
            assert torch.equal(other[key].nan_to_num(), value.nan_to_num()), key


def test_huge_labels_are_told_apart():
    """Labels that agree in their low or high 32 bits, and many that share a slot of the table."""
    low = torch.tensor([5, 5 + 2**32, 5 + 2**62, 2**63 - 1])
    x = testing.unit(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))
    swept = negative_logsumexp(x, x, low, low, backend="cpu")
    truth = eager.negative_logsumexp(x.double(), x.double(), low, low)
    testing.assert_no_worse(swept.lse, truth[0])
    many = torch.arange(3000) * 2**20
    y = testing.unit(torch.randn(3000, 8, generator=torch.Generator().manual_seed(2)))
    swept = negative_logsumexp(y, y[:400], many, many[:400], backend="cpu")
    truth = eager.negative_logsumexp(y.double(), y[:400].double(), many, many[:400])
    testing.assert_no_worse(swept.lse, truth[0])
    assert (swept.max_cosine[:400] < 0.99999).all()
