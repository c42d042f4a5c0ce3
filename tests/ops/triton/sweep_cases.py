"""The Triton sweep in Triton's interpreter: the kernels' own source, on a CPU, against float64.

Run by test_interpreter.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported and
would turn every other kernel of the session into an interpreted one.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from interpreter_setup import BFLOAT16, DTYPES, FLOAT16, FLOAT32, config_for
from torch import Tensor

from attfc_cuda import testing
from attfc_cuda.ops import eager as oracle
from attfc_cuda.ops.row_values import RowValues
from attfc_cuda.ops.triton import launch
from attfc_cuda.ops.triton.sweep import negative_logsumexp_forward


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, row_values, arguments, options):
        centers, labels, center_labels, center_scale, scale, tolerance = arguments
        outputs = negative_logsumexp_forward(
            embeddings, centers, labels, center_labels, center_scale, row_values, scale, tolerance, True, **options
        )
        ctx.save_for_backward(*outputs[4:])
        ctx.embeddings_dtype = embeddings.dtype
        ctx.mark_non_differentiable(*outputs[1:4])
        return outputs[:4]

    @staticmethod
    def backward(ctx, grad_lse, *_):
        unit_grad, moments = ctx.saved_tensors
        coefficients = None
        if ctx.needs_input_grad[1]:
            coefficients = torch.cat([moments.new_zeros(2, len(moments)), (grad_lse[:, None] * moments).T])
        return (grad_lse[:, None] * unit_grad).to(ctx.embeddings_dtype), coefficients, None, None


def sweep(
    embeddings: Tensor, centers: Tensor, labels: Tensor, center_labels: Tensor, *, center_scale=None,
    target_logit=None, threshold=None, quad=None, lin=None, const=None, scale=64.0, grad_tolerance=0.0, **options,
) -> tuple[Tensor, ...]:  # fmt: skip
    options.setdefault("config", config_for(embeddings.dtype, embeddings.shape[1]))
    options.setdefault("splits", 2)
    arguments = (centers, labels, center_labels, center_scale, scale, grad_tolerance)
    row_values = RowValues(target_logit, threshold, quad, lin, const).stack(embeddings)
    return _Sweep.apply(embeddings, row_values, arguments, options)


def check(case: testing.Case, **options) -> dict[str, Tensor]:
    """Runs the case; every result must be no worse than twice plain PyTorch's, or float32's unavoidable error."""
    truth = testing.run(oracle.negative_logsumexp, case.double())
    plain = testing.run(testing.plain_negative_logsumexp, case)
    actual = testing.run(sweep, case, **options)
    if case.target_logit is None:
        # The tolerance rule forgives rows far below their target_logit; here none is.
        case = dataclasses.replace(case, target_logit=torch.full(case.labels.shape, -math.inf))
    testing.assert_no_worse(actual, truth, plain, case=case)
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 8), (3, 5, 7), (5, 131, 64), (19, 67, 48)], ids=["one", "narrow", "tail", "blocks"]
)
def test_agrees_with_float64(shape, dtype):
    check(testing.make_case(shape, dtype, kind="random", modulation="quadratic"))


@pytest.mark.parametrize("modulation", testing.MODULATIONS)
@pytest.mark.parametrize("kind", testing.KINDS)
def test_every_modulation(kind, modulation):
    check(testing.make_case((5, 70, 32), FLOAT32, kind=kind, modulation=modulation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_scale(scale, dtype):
    check(testing.make_case((4, 40, 32), dtype, kind="random", modulation="curricular", scale=scale), splits=3)


@pytest.mark.parametrize("target", [-1.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_target_at_the_ends(target, dtype):
    """The target logit is 64 at most above or below: never a lost row."""
    check(testing.make_case((4, 40, 32), dtype, kind="random", target_cosine=target, scale=30.0))


@pytest.mark.parametrize("offset", [None, -1000.0, -100.0, -30.0, 60.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_target_logit_far_away(offset, dtype):
    """Far below: R must move (also at -30 > 27.7 in base e). Above: every row within 80 of it is exact. None: too."""
    case = testing.make_case((5, 50, 32), dtype, kind="random", modulation="quadratic")
    lse = testing.run(oracle.negative_logsumexp, case.double())["lse"].float()
    case.target_logit = None if offset is None else torch.where(lse.isfinite(), lse + offset, 0)
    check(case, splits=3)


def test_rows_far_below_the_target_are_lost_quietly():
    case = testing.make_case((3, 20, 16), BFLOAT16, kind="random", modulation="none", ignored=0)
    case.target_logit = torch.full((3,), 1000.0)
    actual = testing.run(sweep, case)
    assert (actual["lse"] == -math.inf).all()
    assert (actual["grad_embeddings"] == 0).all()


def test_logits_that_rise_from_tile_to_tile():
    """R moves at every tile: the accumulator, the moments and the omitted mass must follow."""
    generator = torch.Generator().manual_seed(0)
    direction = testing.unit(torch.randn(1, 16, generator=generator, dtype=torch.float64))
    embeddings = direction.expand(2, 16)
    cosine = torch.linspace(-1, 1, 64, dtype=torch.float64)
    centers = testing.at_cosine(direction.expand(64, 16), cosine, generator)
    case = testing.make_case((2, 64, 16), FLOAT32, modulation="quadratic", empty=0, ignored=0, scale=400.0)
    case.embeddings, case.centers = embeddings.float(), centers.float()
    case.labels, case.center_labels = torch.tensor([0, 1]), torch.arange(64) + 2
    case.threshold, case.target_logit = torch.tensor([0.0154, -0.0163]), None
    case.quad, case.lin, case.const = torch.zeros(2), torch.full((2,), 1.5), torch.zeros(2)
    check(case, splits=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_duplicate_centres_and_cosines_at_one(dtype):
    case = testing.make_case((4, 36, 32), dtype, modulation="adasin", empty=0, ignored=0)
    case.centers[:] = case.embeddings[torch.arange(36) % 4]
    case.centers[::2] *= -1
    case.center_labels = torch.arange(36) % 6
    case.threshold = torch.full((4,), 0.93)
    check(case)


def test_everything_masked():
    """All rows ignored; no slot filled; only the own class: -inf, counts 0, gradients 0, no NaN."""
    for empty, ignored, own in ((0.1, 1.0, False), (1.0, 0.0, False), (0.0, 0.0, True)):
        case = testing.make_case((3, 20, 16), FLOAT32, modulation="quadratic", empty=empty, ignored=ignored)
        if own:
            # Without a target logit R stays -inf, and -inf - -inf must not become NaN.
            case.labels[:], case.center_labels[:], case.target_logit = 7, 7, None
        actual = testing.run(sweep, case)
        assert (actual["lse"] == -math.inf).all() and (actual["max_cosine"] == -math.inf).all()
        for name in ("hard_count", "omitted_mass", "grad_embeddings", "grad_quad", "grad_lin", "grad_const"):
            assert (actual[name] == 0).all(), name


@pytest.mark.parametrize(("rows", "slots"), [(0, 5), (3, 0), (0, 0)])
def test_empty(rows, slots):
    outputs = negative_logsumexp_forward(
        torch.zeros(rows, 16), torch.zeros(slots, 16), torch.zeros(rows).long(), torch.ones(slots).long(),
        torch.ones(slots), torch.zeros(5, rows), 64.0, 0.0, True,
    )  # fmt: skip
    lse, hard_count, max_cosine, omitted_mass, unit_grad, moments = outputs
    assert lse.shape == max_cosine.shape == omitted_mass.shape == hard_count.shape == (rows,)
    assert (lse == -math.inf).all() and (max_cosine == -math.inf).all()
    assert (hard_count == 0).all() and (omitted_mass == 0).all()
    assert unit_grad.shape == (rows, 16) and moments.shape == (rows, 3)
    assert (unit_grad == 0).all() and (moments == 0).all()


def test_ignored_rows_may_hold_anything():
    case = testing.make_case((6, 40, 32), FLOAT32, modulation="quadratic", ignored=0.5)
    expected = testing.run(sweep, case)
    ignored = case.labels < 0
    assert ignored.any() and not ignored.all()
    for values in (case.embeddings, case.target_logit, case.threshold, case.quad, case.lin, case.const):
        values[ignored] = math.nan
    actual = testing.run(sweep, case)
    for name, values in expected.items():
        assert torch.equal(actual[name], values), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("power", [0, 12, -12])
def test_center_scale(power, dtype):
    """Centres of length 2^k, k in -3 .. 3 around `power`, and 2^-k: powers of two are exact, so the results are those
    of unit centres. In empty slots the scale is NaN. 2^9 would overflow float16 where a weight meets its scale."""
    case = testing.make_case((5, 70, 32), dtype, kind="random", modulation="quadratic")
    expected = testing.run(sweep, case)
    exponent = torch.arange(70) % 7 - 3 + power
    if dtype == FLOAT16:
        exponent = exponent.clamp(min=-9)
    unit, case.centers = case.centers, (case.centers.double() * 2.0 ** exponent[:, None]).to(dtype)
    scale = torch.where(case.center_labels < 0, math.nan, 2.0**-exponent)
    assert scale.isnan().any()
    actual = testing.run(sweep, case, center_scale=scale)
    if (case.centers.double() * 2.0 ** -exponent[:, None])[case.center_labels >= 0].equal(
        unit.double()[case.center_labels >= 0]
    ):
        assert all(torch.equal(actual[name], expected[name]) for name in ("lse", "hard_count", "max_cosine"))
    else:
        assert dtype == FLOAT16 and power <= 0  # some columns are subnormal there
    truth = testing.run(oracle.negative_logsumexp, case.double(), center_scale=scale.double())
    case.centers = unit
    plain = testing.run(testing.plain_negative_logsumexp, case)
    testing.assert_no_worse(actual, truth, plain, case=case)


def test_precision_follows_torch():
    before = torch.get_float32_matmul_precision()
    try:
        for setting, expected in (("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(setting)
            assert launch.float32_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_power_of_two_unit():
    for largest in (1.0, 0.75, 0.5, 3e-20, 65504.0, 1e30):
        unit = float(launch.power_of_two_unit(torch.tensor(largest)))
        assert 0.5 <= unit * largest < 1 and math.frexp(unit)[0] == 0.5
    for largest in (0.0, math.inf, math.nan):
        assert launch.power_of_two_unit(torch.tensor(largest)).tolist() == [1.0]


def _cold_tiles_last(dtype: torch.dtype, rows: int = 5) -> testing.Case:
    """Trained-like rows; the centres that come near any of them in the first slots, so that later tiles can be skipped.
    D = 192 is padded to 256."""
    case = testing.make_case((rows, 131, 192), dtype, kind="trained", modulation="adasin")
    cosine = oracle.cosines(case.embeddings, case.centers, case.labels, case.center_labels)
    order = cosine.amax(dim=0).argsort(descending=True)
    case.centers, case.center_labels = case.centers[order], case.center_labels[order]
    return case


def _by_hand(case: testing.Case, block_s: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """The accounting of csrc/partial_lse.h restated in float64 for one split and one row block: which tiles are left
    out, the omitted share of each row, and the gradient without them."""
    case = case.double()
    cosine = oracle.cosines(case.embeddings, case.centers, case.labels, case.center_labels)
    modulation = {name: getattr(case, name) for name in ("threshold", "quad", "lin", "const")}
    logits, _, hard = oracle.negative_logits(cosine, case.labels, case.center_labels, **modulation, scale=case.scale)
    shift = case.target_logit[:, None] if case.target_logit is not None else logits.amax(1, keepdim=True)
    mass = (logits - shift).exp()
    target = 0.0 if case.target_logit is None else 1.0
    slope = torch.where(hard, 2 * case.quad[:, None] * cosine + case.lin[:, None], 1)
    weight = torch.where(mass > 0, mass * slope, 0)
    total = torch.zeros(len(mass), dtype=torch.float64)
    omitted, gradient = torch.zeros_like(total), torch.zeros_like(case.embeddings)
    left_out = []
    for start in range(0, mass.shape[1], block_s):
        tile = slice(start, start + block_s)
        tile_mass = mass[:, tile].sum(1)
        total = total + tile_mass
        left_out.append(bool(((tile_mass == 0) | (omitted + tile_mass <= tolerance * (target + total))).all()))
        if left_out[-1]:
            omitted = omitted + tile_mass
        else:
            gradient = gradient + weight[:, tile] @ torch.nan_to_num(case.centers[tile])
    share = torch.where(total > 0, omitted / (target + total), 0)
    return torch.tensor(left_out), share, case.scale * gradient / total.clamp(min=1e-300)[:, None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_skipping_omits_what_it_reports(dtype):
    """Trained-like rows: exactly the tiles of the restatement are skipped, omitted_mass is exact, lse unchanged."""
    case = _cold_tiles_last(dtype)
    tolerance = 2.0**-12
    left_out, share, gradient = _by_hand(case, 16, tolerance)
    assert left_out.any() and not left_out.all() and share.max() > 0
    outputs = negative_logsumexp_forward(
        case.embeddings, case.centers, case.labels, case.center_labels, None, case.row_values(),
        case.scale, tolerance, True, config=config_for(dtype, 192), splits=1,
    )  # fmt: skip
    live = case.labels >= 0
    # The mass of a tile carries the rounding of its logits: scale * 2^-22, as in testing.floor_of.
    assert torch.allclose(outputs[3].double(), share, rtol=case.scale * 2.0**-22, atol=0)
    assert (outputs[3] <= tolerance).all()
    assert (outputs[0] == testing.run(sweep, case, splits=1)["lse"]).all()
    rounding = {FLOAT32: case.scale * 2.0**-22, BFLOAT16: 2.0**-8, FLOAT16: 2.0**-11}[dtype]
    testing.assert_gradient_close(outputs[4][live], gradient[live], 2 * rounding)


def test_skipping_over_splits_keeps_the_tolerance():
    case = _cold_tiles_last(FLOAT32)
    for tolerance in (2.0**-6, 2.0**-12):
        actual = testing.run(sweep, case, grad_tolerance=tolerance, splits=4)
        assert 0 < actual["omitted_mass"].max() <= tolerance
        assert actual["grad_embeddings"].isfinite().all()


def test_splits_share_the_targets_tolerance():
    """Four tiles, a split each, of 0.6 of the tolerance beside the target: one alone could go, four could not."""
    tolerance = 2.0**-10
    case = testing.make_case((2, 64, 16), FLOAT32, modulation="none", empty=0, ignored=0)
    case.embeddings, case.centers = torch.eye(16)[:2], torch.eye(16)[2:3].repeat(64, 1)
    case.labels, case.center_labels = torch.tensor([0, 1]), torch.arange(64) + 2
    case.target_logit = torch.full((2,), math.log(16 / (0.6 * tolerance)))
    assert (testing.run(sweep, case, grad_tolerance=tolerance, splits=4)["omitted_mass"] == 0).all()
    # In one sweep the first tile goes, the second would be too much.
    alone = testing.run(sweep, case, grad_tolerance=tolerance, splits=1)["omitted_mass"]
    assert torch.allclose(alone, torch.full((2,), 0.6 * tolerance / (1 + 2.4 * tolerance)), rtol=1e-4)


def test_without_a_target_logit_the_target_has_no_mass():
    case = _cold_tiles_last(FLOAT32)
    case.target_logit = None
    left_out, share, _ = _by_hand(case, 16, 2.0**-6)
    actual = testing.run(sweep, case, grad_tolerance=2.0**-6, splits=1)
    assert left_out.any() and share.max() > 0
    assert torch.allclose(actual["omitted_mass"].double(), share, rtol=case.scale * 2.0**-22, atol=0)


def test_what_was_omitted_moves_with_the_reference():
    """Tiles at cosine -0.5, -0.6 (left out beside the first) and 0.5: R moves by 2^92 after the omission."""
    generator = torch.Generator().manual_seed(0)
    case = testing.make_case((2, 48, 16), FLOAT32, modulation="adasin", empty=0, ignored=0)
    direction = testing.unit(torch.randn(1, 16, generator=generator, dtype=torch.float64))
    cosine = torch.tensor([-0.5, -0.6, 0.5], dtype=torch.float64).repeat_interleave(16)
    case.embeddings = direction.expand(2, 16).float()
    case.centers = testing.at_cosine(direction.expand(48, 16), cosine, generator).float()
    case.labels, case.center_labels, case.target_logit = torch.tensor([0, 1]), torch.arange(48) + 2, None
    case.threshold = torch.full((2,), 0.9)
    left_out, share, _ = _by_hand(case, 16, 2.0**-6)
    assert left_out.tolist() == [False, True, False] and (share > 0).all()
    actual = testing.run(sweep, case, grad_tolerance=2.0**-6, splits=1)
    assert torch.allclose(actual["omitted_mass"].double(), share, rtol=case.scale * 2.0**-20, atol=0)


def test_without_gradient_the_statistics_are_the_same():
    case = testing.make_case((5, 70, 32), BFLOAT16, kind="trained", modulation="quadratic")
    tensors = (case.embeddings, case.centers, case.labels, case.center_labels, None, case.row_values())
    arguments = (*tensors, case.scale, 0.0)
    options = {"config": config_for(BFLOAT16, 32), "splits": 2}
    full = negative_logsumexp_forward(*arguments, True, **options)
    bare = negative_logsumexp_forward(*arguments, False, False, **options)
    assert all(torch.equal(a, b) for a, b in zip(full[:4], bare[:4], strict=True))
    assert bare[4].shape == (0, 32) and bare[5].shape == (0, 3)


def test_two_runs_are_bitwise_equal():
    case = testing.make_case((5, 70, 32), BFLOAT16, kind="random", modulation="quadratic")
    first, second = (testing.run(sweep, case, splits=3, grad_tolerance=2.0**-12) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strided_inputs():
    case = testing.make_case((5, 40, 32), FLOAT32, modulation="adasin")
    expected = testing.run(sweep, case)
    wide = torch.full((40, 50), math.nan)
    wide[:, 3:35] = case.centers
    case.centers = wide[:, 3:35]
    case.embeddings = case.embeddings.T.contiguous().T
    case.labels = torch.stack([case.labels, case.labels], 1)[:, 0]
    actual = testing.run(sweep, case)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_labels_beyond_32_bits():
    """Two classes whose labels agree in their low 32 bits are two classes."""
    case = testing.make_case((2, 20, 16), FLOAT32, modulation="none", empty=0, ignored=0)
    case.labels, case.center_labels = torch.tensor([3, 3 + 2**40]), torch.full((20,), 3 + 2**40)
    actual = testing.run(sweep, case)
    assert actual["lse"][0] > -math.inf and actual["lse"][1] == -math.inf


def test_coefficients_left_out_are_zero():
    """quad, lin and const that are left out are 0: the inter-class filter."""
    case = testing.make_case((4, 40, 32), FLOAT32, kind="random", modulation="filter")
    expected = testing.run(sweep, case)
    case.quad = case.lin = case.const = None
    actual = testing.run(sweep, case)
    assert expected["hard_count"].max() > 0
    assert all(torch.equal(actual[name], expected[name]) for name in actual)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"embeddings": torch.zeros(2, 16, dtype=torch.float64)},
            TypeError,
            "must suit the Triton backend, got torch.float64",
        ),
        ({"embeddings": torch.zeros(2, 2000)}, ValueError, r"at most D = 1024 columns, got 2000"),
        ({"centers": torch.zeros(3, 16, dtype=BFLOAT16)}, TypeError, "centers must be torch.float32 as embeddings"),
        ({"centers": torch.zeros(3, 8)}, ValueError, r"centers must be \[S, 16\], got \[3, 8\]"),
        ({"labels": torch.zeros(2)}, TypeError, "labels must be int64, got torch.float32"),
        ({"center_labels": torch.zeros(4).long()}, ValueError, r"center_labels must be \[3\], got \[4\]"),
        (
            {"row_values": torch.zeros(5, 3)},
            ValueError,
            r"row_values must be float32 .*5, 2\], got .* \[5, 3\]",
        ),
        (
            {"row_values": torch.zeros(2, 2)},
            ValueError,
            r"row_values must be float32 .*5, 2\], got .* \[2, 2\]",
        ),
        ({"row_values": torch.zeros(1, 2).double()}, ValueError, r"row_values must be float32 .*got torch.float64"),
        ({"center_scale": torch.zeros(2)}, ValueError, r"center_scale must be float32 \[3\], got torch.float32 \[2\]"),
        ({"precision": "bf16"}, ValueError, "precision must be one of ieee, tf32x3, tf32, got 'bf16'"),
    ],
)
def test_bad_arguments(change, kind, message):
    arguments = {
        "embeddings": torch.zeros(2, 16), "centers": torch.zeros(3, 16), "labels": torch.zeros(2).long(),
        "center_labels": torch.zeros(3).long(), "center_scale": None, "row_values": torch.zeros(0, 2),
        "scale": 64.0, "grad_tolerance": 0.0, "need_grad": True,
    }  # fmt: skip
    with pytest.raises(kind, match=message):
        negative_logsumexp_forward(**{**arguments, **change})
