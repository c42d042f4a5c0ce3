"""The CPU gradient of class centres: right against float64, on inputs that bite, and what it may leave out."""

import dataclasses
import math

import pytest
import torch
from cpu_cases import (
    DTYPES,
    STRIDED_VIEWS,
    center_gradient,
    check_center_gradient,
    explicit_center_gradient,
    floor_of_centers,
    make_center_case,
    needs_extension,
    swept_lse,
)

from attfc_cuda import testing

pytestmark = needs_extension

# Tails and tiles are a matter of shape, precision and raw centres; which negatives are hard, and what they weigh, of
# kind and modulation, at one shape.
AGREES = [(shape, "trained", "quadratic") for shape in testing.SHAPES] + [
    ("odd", "random", "quadratic"),
    ("odd", "random", "adasin"),
    ("odd", "trained", "adasin"),
    ("odd", "trained", "none"),
]

RAW = pytest.mark.parametrize("raw", [False, True], ids=["unit", "raw"])


@RAW
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kind", "modulation"), AGREES)
def test_agrees_with_float64(dtype, shape, kind, modulation, raw):
    check_center_gradient(make_center_case(testing.SHAPES[shape], dtype, raw=raw, kind=kind, modulation=modulation))


@RAW
@pytest.mark.parametrize("modulation", ["filter", "mv", "curricular"])
def test_every_modulation_agrees_with_float64(modulation, raw):
    check_center_gradient(
        make_center_case(testing.SHAPES["odd"], torch.float32, raw=raw, kind="trained", modulation=modulation)
    )


@RAW
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_the_targets(dtype, raw):
    given = make_center_case(testing.SHAPES["odd"], dtype, raw=raw, target=False, kind="trained")
    actual, _ = check_center_gradient(given)
    zeros = dataclasses.replace(given, target_grad=torch.zeros_like(given.case.upstream))
    assert torch.equal(center_gradient(zeros), actual)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_real_batch_agrees_with_float64(dtype):
    given = make_center_case((384, 9001, 512), dtype, raw=True, kind="trained", empty=0.0)
    actual, truth = check_center_gradient(given)
    if dtype == torch.float32:
        testing.assert_gradient_close(actual, truth, 1e-5)


@RAW
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("scale", [1.0, 64.0, 1000.0])
@pytest.mark.parametrize("target_cosine", [-1.0, 1.0])
def test_any_scale_and_target(dtype, scale, target_cosine, raw):
    check_center_gradient(
        make_center_case(
            testing.SHAPES["tail"], dtype, raw=raw, kind="trained", scale=scale, target_cosine=target_cosine
        )
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_cosines_at_the_ends(sign, dtype):
    """Negatives that are an embedding itself, or its opposite, at the largest scale; unit centres, where that counts
    (the projection takes the whole gradient of a raw one)."""
    given = make_center_case((6, 100, 64), dtype, raw=False, modulation="none", scale=1000.0, empty=0.0, ignored=0.0)
    given.case.centers[::7] = sign * given.case.embeddings[0]
    given.case.center_labels[::7] = 10_000
    check_center_gradient(given)


@RAW
def test_every_slot_of_a_class_gets_its_targets(raw):
    """A class in several slots, two rows of one class, and a class that is in no slot."""
    given = make_center_case((9, 100, 16), torch.float32, raw=raw, modulation="none", empty=0.0, ignored=0.0)
    case = given.case
    case.labels[:] = torch.tensor([5, 5, 6, 1, 2, 3, 4, 0, 900])
    case.center_labels[:] = torch.arange(100, 200)
    case.center_labels[[3, 50, 99]], case.center_labels[[0, 48]] = 5, 6
    case.upstream.zero_()
    actual, _ = check_center_gradient(given)
    touched = actual.any(dim=1).nonzero().flatten().tolist()
    assert touched == [0, 3, 48, 50, 99]
    if not raw:
        expected = given.target_grad[:2] @ case.embeddings[:2]
        for slot in (3, 50, 99):
            torch.testing.assert_close(actual[slot], expected)


def test_a_row_without_negatives_still_pulls_its_own_centre():
    given = make_center_case((3, 60, 16), torch.float32, raw=False, modulation="none", empty=0.0, ignored=0.0)
    given.case.labels[0] = 5
    given.case.center_labels[:30] = 5
    lse = swept_lse(given)
    lse[0] = -math.inf
    given.case.upstream[0] = math.nan
    found = center_gradient(given, lse=lse)
    given.case.upstream[0] = 0
    assert torch.equal(found, center_gradient(given)) and found[:30].any()


@RAW
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_sum(dtype, raw):
    """No rows, no slots, only empty slots, only ignored rows: zeros of the right shape, whatever the rest holds."""
    given = make_center_case((4, 60, 16), dtype, raw=raw, empty=0.0, ignored=0.0)
    case = given.case

    def rows(count):
        keep = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
        per_row = {name: value[:count] for name, value in keep.items() if torch.is_tensor(value) and len(value) == 4}
        return dataclasses.replace(
            given, case=dataclasses.replace(case, **per_row), target_grad=given.target_grad[:count]
        )

    def slots(count):
        few = dataclasses.replace(case, centers=case.centers[:count], center_labels=case.center_labels[:count])
        return dataclasses.replace(given, case=few, center_scale=given.center_scale[:count] if raw else None)

    nan = torch.full_like(case.centers, math.nan)
    empty = dataclasses.replace(case, centers=nan, center_labels=torch.full_like(case.center_labels, -1))
    ignored = dataclasses.replace(case, embeddings=case.embeddings * math.nan, labels=torch.full_like(case.labels, -1))
    for name, changed in (
        ("no rows", rows(0)),
        ("no slots", slots(0)),
        (
            "empty slots",
            dataclasses.replace(given, case=empty, center_scale=nan[:, 0].to(case.target_logit) if raw else None),
        ),
        ("ignored rows", dataclasses.replace(given, case=ignored)),
    ):
        found = center_gradient(changed)
        assert found.shape == changed.case.centers.shape and found.dtype == dtype, name
        assert not found.any() and not found.isnan().any(), name


@pytest.mark.parametrize("rows", [1, 67])
def test_a_nan_embedding_shows_in_every_centre_but_no_empty_slot(rows):
    given = make_center_case((rows, 259, 100), torch.float32, raw=True, ignored=0.0)
    given.case.embeddings[rows // 2, 5] = math.nan
    found = center_gradient(given, grad_tolerance=2.0**-12)
    filled = given.case.center_labels >= 0
    assert found[filled].isnan().all() and not found[~filled].any()


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
def test_the_result_is_rounded_once_to_nearest_even(dtype):
    """Each centre has one term, exact in float32: from the smallest to beyond the largest number of the dtype."""
    given = make_center_case((60, 60, 40), dtype, raw=False, modulation="none", empty=0.0, ignored=0.0)
    case, exponents = given.case, 15 if dtype == torch.float16 else 100
    case.labels[:] = case.center_labels[:] = torch.arange(60)
    case.upstream.zero_()
    # Multipliers that both formats hold: the product with 8 or 11 bits is exact.
    multiplier = (1 + torch.arange(60) / 64 % 1) * 2.0 ** torch.linspace(-exponents - 6, exponents + 4, 60).round()
    given.target_grad = multiplier.bfloat16().float()
    expected = (given.target_grad[:, None] * case.embeddings.float()).to(dtype)
    found = center_gradient(given)
    assert torch.equal(found, expected)
    assert dtype != torch.float16 or (found.isinf().any() and ((found.abs() < 2.0**-14) & (found != 0)).any())


@pytest.mark.parametrize("power", [-70, 70])
def test_centres_of_extreme_length(power):
    """1 / |w|^2 leaves float32's range where 1 / |w| does not; a power of two changes no other bit."""
    given = make_center_case((9, 100, 32), torch.float32, raw=True, kind="trained")
    expected = center_gradient(given) * 2.0**-power
    case = dataclasses.replace(given.case, centers=given.case.centers * 2.0**power)
    found = center_gradient(dataclasses.replace(given, case=case, center_scale=given.center_scale * 2.0**-power))
    assert torch.equal(found, expected) and found.isfinite().all()


def identity_case(dtype, with_target):
    """One-hot embeddings, so that the gradient of unit centres is G itself, [S, B]; a hard negative for each."""
    dim = 70
    given = make_center_case((dim, 9000, dim), dtype, raw=False, modulation="none", empty=0.0, ignored=0.0)
    case = given.case
    case.embeddings[:] = torch.eye(dim)
    case.scale = 32.0
    case.labels[:] = torch.arange(dim) * 100
    case.center_labels[:] = torch.arange(9000)
    case.centers[110:180] = testing.at_cosine(torch.eye(dim), 0.7, torch.Generator().manual_seed(0))
    case.target_logit = torch.linspace(10, 32, dim).to(case.target_logit) if with_target else None
    return given


@pytest.mark.parametrize("with_target", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_left_out_keeps_the_bound(dtype, with_target):
    given = identity_case(dtype, with_target)
    case, tolerance = given.case, 2.0**-6
    lse = swept_lse(given)
    exact, skipped = (center_gradient(given, grad_tolerance=value).double().T for value in (0.0, tolerance))
    left_out = (skipped == 0) & (exact != 0)
    assert torch.equal(torch.where(left_out, exact, skipped), exact) and left_out.any()
    own = torch.arange(70), case.labels
    assert torch.equal(skipped[own], exact[own]) and exact[own].all()
    # From float64 cosines: how much of its softmax each row left out.
    share = (case.scale * case.centers.double().T - lse.double()[:, None]).exp()
    share[own] = 0
    target = 0 if case.target_logit is None else (case.target_logit.double() - lse.double()).exp()
    omitted = (share * left_out).sum(dim=1) / (1 + target)
    assert (omitted <= tolerance * (1 + 1e-4)).all() and omitted.max() > tolerance / 50


@pytest.mark.parametrize("slots", [480, 499])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bound_is_sharp(dtype, slots):
    """Where all slots are alike a row leaves out all of them or none: all when its softmax allows it by a tenth."""
    given = make_center_case((3, slots, 8), dtype, raw=False, target=False, modulation="none", empty=0.0, ignored=0.0)
    case, tolerance = given.case, 2.0**-6
    case.embeddings[:] = case.embeddings[0]
    case.centers[:] = case.embeddings[0]
    case.labels[:], case.center_labels[:] = torch.arange(3), torch.arange(3, 3 + slots)
    lse = swept_lse(given)
    for allowed in (0.9, 1.1):
        case.target_logit = lse + math.log(allowed / tolerance - 1)
        assert bool(center_gradient(given, tolerance, lse).all()) == (allowed < 1)


def test_tolerance_zero_leaves_out_nothing_but_zeros():
    """A negative whose probability is 2^-120 is in the gradient; one under float32's range is 0."""
    given = make_center_case(
        (1, 100, 4), torch.float32, raw=False, target=False, modulation="none", empty=0.0, ignored=0.0
    )
    case = given.case
    case.embeddings[:] = torch.tensor([1.0, 0, 0, 0])
    case.centers[:] = torch.tensor([-1.0, 0, 0, 0])
    case.labels[:], case.center_labels[:] = 0, 1
    case.target_logit, case.scale, case.upstream = None, 1.0, torch.ones(1)
    for distance, expected in ((83.0, math.exp(-1 - 83.0 + 1)), (200.0, 0.0)):
        found = center_gradient(given, lse=torch.tensor([distance - 1.0]))
        assert found[:, 0].tolist() == pytest.approx([expected] * 100, rel=1e-5)


def test_an_own_centre_far_above_does_not_hide_the_negatives():
    """Its logit lies so far above lse that float32's exponential of the difference would be negative."""
    given = make_center_case((1, 2, 4), torch.float32, raw=False, target=False, modulation="none", ignored=0.0)
    case = given.case
    case.embeddings[:] = torch.tensor([1.0, 0, 0, 0])
    case.centers[:] = torch.tensor([[1.0, 0, 0, 0], [0.5, 0, 0, 0]])
    case.labels[:], case.center_labels[:] = 0, torch.tensor([0, 1])
    case.target_logit, case.scale, case.upstream = None, 1166.0, torch.ones(1)
    found = center_gradient(given, grad_tolerance=2.0**-12, lse=torch.tensor([583.0]))
    testing.assert_no_worse(found, torch.tensor([[0.0, 0, 0, 0], [1166.0, 0, 0, 0]]), floor=1166 * 2.0**-22)


@RAW
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_skipping_late_in_training(dtype, raw):
    """With the usual tolerance the gradient as a whole is off by no more than what was left out may weigh."""
    given = make_center_case((34, 9000, 512), dtype, raw=raw, kind="trained", empty=0.0, ignored=0.0)
    exact, skipped = center_gradient(given), center_gradient(given, grad_tolerance=2.0**-12)
    zero = (skipped == 0).all(dim=1) & exact.any(dim=1)
    assert zero.sum() > 1000
    case = given.case
    softmax = 1 + (case.target_logit.double() - swept_lse(given).double()).exp()
    weight = case.upstream.double().abs() * case.scale * case.lin.double().abs().clamp(min=1) * softmax
    scale = 1.0 if given.center_scale is None else given.center_scale.double().max()
    rounding = torch.finfo(dtype).eps * exact.double().norm()
    assert (skipped.double() - exact.double()).norm() <= 2.0**-12 * weight.sum() * scale + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_inputs_are_read_right(dtype):
    options = {"raw": True, "modulation": "adasin", "empty": 0.0}
    given = make_center_case((9, 205, 48), dtype, **options)
    expected = center_gradient(given)
    for name, view in STRIDED_VIEWS.items():
        strided = make_center_case((9, 205, 48), dtype, **options)
        strided.case.embeddings, strided.case.centers = view(given.case.embeddings), view(given.case.centers)
        strided.center_scale = given.center_scale.repeat_interleave(2)[::2]
        strided.target_grad = given.target_grad.repeat_interleave(3)[::3]
        strided.case.upstream = given.case.upstream.repeat_interleave(2)[::2]
        assert torch.equal(center_gradient(strided), expected), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_the_same_in_every_run_and_with_any_number_of_threads(dtype):
    given = make_center_case((150, 5000, 96), dtype, raw=True, modulation="quadratic")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (threads, threads, 1, 3):
            torch.set_num_threads(count)
            results.append(center_gradient(given, grad_tolerance=2.0**-12))
    finally:
        torch.set_num_threads(threads)
    assert results[0].any() and all(torch.equal(other, results[0]) for other in results[1:])


def test_parts_of_the_centres_give_parts_of_the_gradient():
    """As when the gradient is made in stretches, or the centres lie on several processes."""
    given = make_center_case((67, 300, 40), torch.float32, raw=True, modulation="quadratic")
    truth, lse = explicit_center_gradient(given, torch.float64), swept_lse(given)
    floor, least = floor_of_centers(given)
    plain = explicit_center_gradient(given, torch.float32)
    for part in (slice(0, 1), slice(1, 50), slice(50, 300)):
        few = dataclasses.replace(
            given.case, centers=given.case.centers[part], center_labels=given.case.center_labels[part]
        )
        found = center_gradient(dataclasses.replace(given, case=few, center_scale=given.center_scale[part]), lse=lse)
        testing.assert_no_worse(found, truth[part], plain[part], floor=floor, least=least)
