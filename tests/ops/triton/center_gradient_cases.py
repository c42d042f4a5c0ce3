"""The Triton centre gradient in Triton's interpreter: the kernel's own source, on a CPU, against float64.

Run by test_interpreter.py, as sweep_cases.py is; center_gradient_problem.py has the truth and the error it allows.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from center_gradient_problem import Problem, make
from interpreter_setup import BFLOAT16, DTYPES, FLOAT16, FLOAT32, config_for
from torch import Tensor

from attfc_cuda import testing
from attfc_cuda.ops.triton.center_gradient import center_gradient_forward


def check(problem: Problem, **options) -> Tensor:
    actual, truth = problem.run(**options), problem.truth()[1]
    assert actual.dtype == problem.case.centers.dtype and actual.isfinite().all()
    assert (actual[problem.case.center_labels < 0] == 0).all()
    excess = (actual.double() - truth).abs() / problem.bound()
    worst = int(excess.argmax())
    assert excess.max() <= 1, (
        f"{float(excess.max()):.3g} times the bound at {divmod(worst, truth.shape[1])}: "
        f"got {float(actual.flatten()[worst]):.6g}, expected {float(truth.flatten()[worst]):.6g}"
    )
    return actual


@pytest.mark.parametrize("raw", [False, True], ids=["unit", "raw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 8), (3, 5, 7), (5, 131, 64), (19, 67, 48)], ids=["one", "narrow", "tail", "blocks"]
)
def test_agrees_with_float64(shape, dtype, raw):
    check(make(shape, dtype, raw=raw, modulation="quadratic"))


@pytest.mark.parametrize("modulation", testing.MODULATIONS)
@pytest.mark.parametrize("kind", testing.KINDS)
def test_every_modulation(kind, modulation):
    check(make((5, 70, 32), FLOAT32, kind=kind, modulation=modulation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_scale(scale, dtype):
    check(make((4, 40, 32), dtype, kind="trained", modulation="curricular", scale=scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("raw", [False, True], ids=["unit", "raw"])
def test_projection_by_product(raw, dtype):
    """The two forms of the projection; float32 loads whole centres for neither."""
    problem = make((19, 67, 32), dtype, raw=raw, kind="trained")
    config = dataclasses.replace(config_for(dtype, 32), block_k=32)
    for by_product in (False, True):
        check(problem, config=dataclasses.replace(config, project_by_product=by_product))


@pytest.mark.parametrize("by_product", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_centres_nearly_at_their_embeddings(dtype, by_product):
    """Raw centres at cosine 0.99 to their rows: nearly all of sum G x is projected away. The bound, measured by that
    sum, would not see a rounding of G that does not cancel; the result stays at right angles to the centre."""
    problem = make((4, 32, 32), dtype, empty=0, ignored=0, modulation="none")
    case, generator = problem.case, torch.Generator().manual_seed(3)
    case.labels, case.center_labels = torch.arange(4), torch.arange(32) % 4
    centers = testing.at_cosine(testing.unit(case.embeddings.double())[case.center_labels], 0.99, generator)
    case.centers = (4 * centers).to(dtype)
    problem.center_scale = 1 / case.centers.double().norm(dim=1).float()
    problem.grad_lse, problem.lse = torch.zeros(4), problem.truth()[0].float()
    config = dataclasses.replace(config_for(dtype, 32), block_k=32, project_by_product=by_product)
    actual, truth = check(problem, config=config).double(), problem.truth()[1]
    unit = case.centers.double() * problem.center_scale[:, None]
    along = (actual * unit).sum(1) / truth.norm(dim=1)
    # What is left is the rounding of the output (and in float32 that of the sum, seven times as long).
    assert along.abs().max() <= torch.finfo(dtype).eps + 2.0**-20
    testing.assert_gradient_close(actual, truth, 2 * torch.finfo(dtype).eps + 2.0**-18)


def test_without_target_gradients_they_are_zero():
    problem = make((5, 40, 32), FLOAT32, kind="trained", target=False)
    without = check(problem)
    problem.target_grad = torch.zeros(5)
    assert torch.equal(problem.run(), without)


def test_several_slots_of_one_class():
    """Own-class slots in several tiles, stale copies in a queue: each gets its row's target gradient, nothing else."""
    problem = make((3, 48, 16), FLOAT32, raw=False, empty=0, ignored=0, modulation="none")
    problem.case.labels, problem.case.center_labels = torch.tensor([7, 8, 7]), torch.tensor([7, 8, 9]).repeat(16)
    problem.lse, problem.grad_lse = problem.truth()[0].float(), torch.zeros(3)
    actual, x, t = check(problem), problem.case.embeddings, problem.target_grad
    assert torch.allclose(actual[0::3], (t[0] * x[0] + t[2] * x[2]).expand(16, 16), atol=1e-6)
    assert torch.allclose(actual[1::3], (t[1] * x[1]).expand(16, 16), atol=1e-6)
    assert (actual[2::3] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_negatives(dtype):
    """lse -inf, with whatever upstream gradient: only the target's counts."""
    problem = make((4, 40, 16), dtype, empty=0.5, ignored=0, kind="random", modulation="quadratic")
    case = problem.case
    case.center_labels[case.center_labels >= 0] = 5
    case.labels = torch.tensor([5, 6, 5, 6])
    problem.lse = problem.truth()[0].float()
    assert problem.lse.isinf().tolist() == [True, False, True, False]
    expected = check(problem)
    problem.grad_lse = torch.where(problem.lse.isinf(), math.nan, problem.grad_lse)
    assert torch.equal(problem.run(), expected)
    assert torch.equal(problem.run(2.0**-12), expected)


def test_everything_masked():
    """All rows ignored; no slot filled: zeros, with everything NaN."""
    for empty, ignored in ((0.1, 1.0), (1.0, 0.0)):
        problem = make((3, 20, 16), FLOAT32, modulation="quadratic", empty=empty, ignored=ignored)
        problem.lse[problem.case.labels < 0] = math.nan
        for tolerance in (0.0, 2.0**-12):
            assert (problem.run(tolerance) == 0).all()


@pytest.mark.parametrize(("rows", "slots"), [(0, 5), (3, 0), (0, 0)])
def test_empty(rows, slots):
    row = torch.zeros(rows)
    gradient = center_gradient_forward(
        row, row, row, torch.zeros(rows, 16), torch.full((slots, 16), math.nan), torch.zeros(rows).long(),
        torch.ones(slots).long(), torch.ones(slots), torch.zeros(5, rows), 64.0, 0.0,
    )  # fmt: skip
    assert gradient.shape == (slots, 16) and (gradient == 0).all()


def test_upstream_gradients_of_any_size_in_float16():
    """Loss scaling and means move the gradient by powers of ten; float16 weights must follow, not leave their range."""
    problem = make((5, 70, 32), FLOAT16, kind="trained", modulation="adasin", raw=False)
    problem.target_grad = problem.target_grad * problem.case.scale
    truth = problem.truth()[1].abs().max()
    for size in (1e4 / truth, 1.0, 1e-1):
        scaled = Problem(problem.case, problem.grad_lse * size, problem.target_grad * size, None)
        check(scaled)


def _tile_masses(problem: Problem, block_s: int) -> Tensor:
    """[B, tiles] in float64."""
    q = problem.weights()[0]
    padding = -q.shape[1] % block_s
    return torch.nn.functional.pad(q, (0, padding)).reshape(len(q), -1, block_s).sum(2)


def _cold_tiles(dtype: torch.dtype, *, raw: bool = True, target: bool = True) -> Problem:
    """Trained-like rows in two row blocks, with centres sorted so that most tiles hold nothing near any row."""
    problem = make((19, 131, 64), dtype, kind="trained", modulation="adasin", raw=raw)
    order = problem.weights()[2].amax(dim=0).argsort(descending=True)
    case = problem.case
    case.centers, case.center_labels = case.centers[order], case.center_labels[order]
    if raw:
        problem.center_scale = problem.center_scale[order]
    if not target:
        case.target_logit = None
    return problem


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_skipping_leaves_out_what_it_may(dtype, target):
    """Exactly the pairs of row block and tile of the rule are left out, at most the tolerance of any row in all."""
    problem, tolerance = _cold_tiles(dtype, raw=False, target=target), 2.0**-6
    case, mass = problem.case, _tile_masses(problem, 16)
    beside = 1.0
    if target:
        beside = 1 + (case.target_logit.double() - problem.lse.double()).exp().nan_to_num(nan=0.0)[:, None]
    owns = (case.labels[:, None] == case.center_labels) & problem.live[:, None]
    owns = torch.nn.functional.pad(owns, (0, -owns.shape[1] % 16)).reshape(19, -1, 16).any(2)
    needs = owns | (mass > tolerance / mass.shape[1] * beside)
    needed = torch.stack([needs[:16].any(0), needs[16:].any(0)])
    assert needed.any() and not needed.all()
    kept = needed.repeat_interleave(torch.tensor([16, 3]), 0)
    assert torch.where(kept, 0, mass / beside).sum(1).max() <= tolerance
    weight = problem.weights()[1] * kept.repeat_interleave(16, 1)[:, :131]
    expected = weight.T @ torch.where(problem.live[:, None], case.embeddings.double(), 0)
    actual = problem.run(tolerance)
    left_out = (weight == 0).all(0)
    assert left_out.any() and (actual[left_out] == 0).all()
    assert ((actual.double() - expected).abs() <= problem.bound()).all()
    assert not torch.equal(actual, problem.run())


def test_skipping_keeps_to_the_tolerance_with_raw_centres():
    """What is left out of a row's gradient is at most the tolerance times its softmax, times |G| / q."""
    problem, tolerance = _cold_tiles(FLOAT32), 2.0**-6
    exact, actual = problem.run().double(), problem.run(tolerance).double()
    assert not torch.equal(actual, exact)
    case = problem.case
    beside = 1 + (case.target_logit.double() - problem.lse.double()).exp()
    slope = (2 * case.quad.abs() + case.lin.abs()).clamp(min=1).double()
    most = (tolerance * beside * case.scale * problem.grad_lse.double().abs() * slope)[problem.live].sum()
    # Lengths in units of the centre's own: |x - c w| <= 1.
    lengths = problem.center_scale.double().nan_to_num(nan=1.0)
    assert ((actual - exact).norm(dim=1) / lengths).sum() <= most
    # By product, the sum along the centre leaves out the same pairs.
    config = dataclasses.replace(config_for(FLOAT32, 64), block_k=64, project_by_product=True)
    assert ((problem.run(tolerance, config=config) - actual).abs() <= problem.bound()).all()


def test_own_class_is_never_skipped():
    """With all mass under the tolerance only what is computed together with an own-class pair remains: the pairs of its
    block of 16 rows and its tile."""
    problem = _cold_tiles(FLOAT32, raw=False)
    case = problem.case
    own = (case.labels[:, None] == case.center_labels) & problem.live[:, None]
    near = torch.zeros_like(own)
    for b in range(0, 19, 16):
        for s in range(0, 131, 16):
            near[b : b + 16, s : s + 16] = own[b : b + 16, s : s + 16].any()
    assert near.any() and not near.all()
    expected = (problem.weights()[1] * near).T @ case.embeddings.double().nan_to_num()
    assert ((problem.run(1e9).double() - expected).abs() <= problem.bound()).all()
    case.target_logit = problem.lse + 1000  # exp(1000): the bound overflows, the own class must stay beyond it
    assert ((problem.run(2.0**-6).double() - expected).abs() <= problem.bound()).all()
    problem.target_grad = None
    expected = (problem.weights()[1] * near).T @ case.embeddings.double().nan_to_num()
    assert ((problem.run(1e9).double() - expected).abs() <= problem.bound()).all()


def test_target_far_above_all_mass():
    """exp(target_logit - lse) overflows: every negative may be left out with a tolerance, none without."""
    problem = make((3, 40, 16), FLOAT32, kind="random", target=False)
    problem.case.labels = torch.arange(3) + 1000  # no tile holds one of the own class
    problem.lse = problem.truth()[0].float()
    problem.case.target_logit = problem.lse + 1000
    check(problem)
    assert (problem.run(2.0**-12) == 0).all()


def test_nan_is_not_silent():
    problem = make((5, 40, 16), FLOAT32, ignored=0, empty=0)
    problem.lse[2] = math.nan
    negatives = problem.case.center_labels != problem.case.labels[2]
    for tolerance in (0.0, 2.0**-6):
        assert problem.run(tolerance)[negatives].isnan().all()


def test_two_runs_are_bitwise_equal():
    problem = make((19, 70, 32), BFLOAT16, modulation="quadratic")
    assert torch.equal(problem.run(2.0**-12), problem.run(2.0**-12))


def test_strided_inputs():
    problem = make((5, 40, 32), FLOAT32)
    expected, case = problem.run(), problem.case
    wide = torch.full((40, 50), math.nan)
    wide[:, 3:35] = case.centers
    case.centers = wide[:, 3:35]
    case.embeddings = case.embeddings.T.contiguous().T
    problem.grad_lse = torch.stack([problem.grad_lse, problem.grad_lse], 1)[:, 0]
    assert torch.equal(problem.run(), expected)


def test_labels_beyond_32_bits():
    problem = make((2, 20, 16), FLOAT32, empty=0, ignored=0, modulation="none")
    problem.case.labels, problem.case.center_labels = torch.tensor([3, 3 + 2**40]), torch.full((20,), 3 + 2**40)
    problem.lse = problem.truth()[0].float()
    check(problem)


def test_coefficients_left_out_are_zero():
    problem = make((4, 40, 32), FLOAT32, kind="random", modulation="filter")
    expected, case = check(problem), problem.case
    case.quad = case.lin = case.const = None
    assert torch.equal(problem.run(), expected)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"embeddings": torch.zeros(2, 16).double()}, TypeError, "center_gradient: embeddings must suit the Triton"),
        ({"grad_lse": torch.zeros(3)}, ValueError, r"grad_lse must be float32 \[2\], got torch.float32 \[3\]"),
        ({"lse": torch.zeros(2).double()}, ValueError, r"lse must be float32 \[2\], got torch.float64 \[2\]"),
        (
            {"target_grad": torch.zeros(2, 1)},
            ValueError,
            r"target_grad must be float32 \[2\], got torch.float32 \[2, 1\]",
        ),
        ({"center_scale": torch.zeros(2)}, ValueError, r"center_scale must be float32 \[3\], got torch.float32 \[2\]"),
        ({"precision": "bf16"}, ValueError, "precision must be one of ieee, tf32x3, tf32, got 'bf16'"),
    ],
)
def test_bad_arguments(change, kind, message):
    row = torch.zeros(2)
    arguments = {
        "grad_lse": row, "lse": row, "target_grad": None, "embeddings": torch.zeros(2, 16),
        "centers": torch.zeros(3, 16), "labels": torch.zeros(2).long(), "center_labels": torch.zeros(3).long(),
        "center_scale": None, "row_values": torch.zeros(0, 2), "scale": 64.0, "grad_tolerance": 0.0,
    }  # fmt: skip
    with pytest.raises(kind, match=message):
        center_gradient_forward(**{**arguments, **change})
