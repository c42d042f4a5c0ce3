"""The oracle against restatements that share nothing with it: loops, textbook formulas, finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from attfc_cuda import testing
from attfc_cuda.margins import psi
from attfc_cuda.ops import eager

# (shape, kind, modulation, scale): every shape and kind, then every modulation at every scale.
LOOPED = [(shape, kind, "quadratic", 64.0) for shape in ("one", "narrow", "tail") for kind in testing.KINDS] + [
    ("tail", "trained", modulation, scale)
    for modulation in testing.MODULATIONS
    for scale in (1.0, 64.0, 1000.0)
    if (modulation, scale) != ("quadratic", 64.0)
]
# (modulation, scale, target cosine): every modulation at every scale, then the target at its ends.
EXPLICIT = [(modulation, scale, None) for modulation in testing.MODULATIONS for scale in (1.0, 64.0, 1000.0)] + [
    ("quadratic", scale, end) for scale in (1.0, 64.0, 1000.0) for end in (1.0, -1.0)
]


def looped_lse(case, row):
    """One row's log-sum-exp by Python numbers; None when it has no negatives."""
    total, hard_count, cosines = [], 0, []
    for slot, label in enumerate(case.center_labels.tolist()):
        if int(case.labels[row]) < 0 or label < 0 or label == int(case.labels[row]):
            continue
        cosine = float(case.embeddings[row] @ case.centers[slot])
        cosines.append(cosine)
        bent = cosine
        if case.threshold is not None and cosine > float(case.threshold[row]):
            hard_count += 1
            bent = float(case.quad[row]) * cosine**2 + float(case.lin[row]) * cosine + float(case.const[row])
        total.append(case.scale * bent)
    if not total:
        return -math.inf, 0, -math.inf
    top = max(total)
    return top + math.log(sum(math.exp(z - top) for z in total)), hard_count, max(cosines)


@pytest.mark.parametrize(("shape", "kind", "modulation", "scale"), LOOPED)
def test_equals_a_loop_over_rows_and_slots(shape, kind, modulation, scale):
    case = testing.make_case(testing.SHAPES[shape], torch.float64, kind=kind, modulation=modulation, scale=scale)
    result = testing.run(eager.negative_logsumexp, case)
    for row in range(len(case.labels)):
        lse, hard_count, max_cosine = looped_lse(case, row)
        assert float(result["lse"][row]) == pytest.approx(lse, rel=1e-13, abs=1e-13 * scale)
        assert int(result["hard_count"][row]) == hard_count
        assert float(result["max_cosine"][row]) == pytest.approx(max_cosine, abs=1e-14)
    assert not result["omitted_mass"].any()


@pytest.mark.parametrize(("modulation", "scale", "target_cosine"), EXPLICIT)
def test_softplus_of_lse_is_the_explicit_cross_entropy(modulation, scale, target_cosine):
    case = testing.make_case(
        (17, 131, 64), torch.float64, kind="trained", modulation=modulation, scale=scale, target_cosine=target_cosine
    )
    embeddings = case.embeddings.requires_grad_()
    target = psi(case.target_cosine.acos() + 0.5).requires_grad_()
    modulation = {"threshold": case.threshold, "quad": case.quad, "lin": case.lin, "const": case.const}
    arguments = (embeddings, case.centers, case.labels, case.center_labels)
    explicit = eager.margin_softmax_cross_entropy(*arguments, target, **modulation, scale=scale)
    lse = eager.negative_logsumexp(*arguments, **modulation, scale=scale)[0]
    short = torch.where(case.labels >= 0, F.softplus(lse - scale * target, threshold=40.0), 0)
    # Both forms round the logits, of size `scale`; everything after is good to 1e-14.
    allowed = 1e-14 + 8 * scale * 2.0**-53
    assert (case.labels >= 0).sum() > 10
    assert torch.allclose(short, explicit, rtol=0, atol=allowed)
    grads = [torch.autograd.grad(rows, (embeddings, target), case.upstream) for rows in (short, explicit)]
    for ours, textbook in zip(*grads, strict=True):
        # A probability carries the rounding of its logit; the gradient has one more factor scale.
        assert torch.allclose(ours, textbook, rtol=0, atol=2 * scale * allowed)


@pytest.mark.parametrize("modulation", testing.MODULATIONS)
def test_gradcheck(modulation):
    case = testing.make_case((4, 11, 5), torch.float64, modulation=modulation, scale=8.0)
    names = [name for name in ("embeddings", "quad", "lin", "const") if getattr(case, name) is not None]
    inputs = [getattr(case, name).requires_grad_() for name in names]

    def lse(*values):
        given = dict(zip(names, values, strict=True))
        value = eager.negative_logsumexp(
            given.pop("embeddings"),
            case.centers,
            case.labels,
            case.center_labels,
            threshold=case.threshold,
            scale=case.scale,
            **given,
        )[0]
        return torch.where(value.isfinite(), value, 0)

    assert torch.autograd.gradcheck(lse, inputs)
    assert torch.autograd.gradgradcheck(lse, inputs)


def test_gradients_are_the_written_ones():
    case = testing.make_case((6, 40, 16), torch.float64, modulation="quadratic", scale=20.0, empty=0.0, ignored=0.0)
    result = testing.run(eager.negative_logsumexp, case)
    cosine = case.embeddings @ case.centers.T
    valid = case.center_labels[None] != case.labels[:, None]
    hard = valid & (cosine > case.threshold[:, None])
    assert hard.any() and (valid & ~hard).any()
    quad, lin, const = (value[:, None] for value in (case.quad, case.lin, case.const))
    logits = case.scale * torch.where(hard, quad * cosine**2 + lin * cosine + const, cosine)
    q = torch.softmax(logits.masked_fill(~valid, -math.inf), dim=1)
    slope = torch.where(hard, 2 * quad * cosine + lin, 1.0)
    upstream = case.scale * case.upstream[:, None]
    expected = {
        "grad_embeddings": (upstream * q * slope) @ case.centers,
        "grad_quad": (upstream * q * hard * cosine**2).sum(1),
        "grad_lin": (upstream * q * hard * cosine).sum(1),
        "grad_const": (upstream * q * hard).sum(1),
    }
    for name, gradient in expected.items():
        assert torch.allclose(result[name], gradient, rtol=1e-12, atol=1e-12), name


def test_centers_receive_their_gradient():
    case = testing.make_case((5, 12, 6), torch.float64, modulation="none", scale=8.0, empty=0.2, ignored=0.2)
    centers = case.centers.requires_grad_()
    lse = eager.negative_logsumexp(case.embeddings, centers, case.labels, case.center_labels, scale=8.0)[0]
    (gradient,) = torch.autograd.grad(lse, centers, case.upstream)
    valid = (case.center_labels[None] != case.labels[:, None]) & (case.center_labels >= 0) & (case.labels >= 0)[:, None]
    kept = case.centers.detach().nan_to_num(0.0)
    q = torch.softmax((8.0 * case.embeddings @ kept.T).masked_fill(~valid, -math.inf), dim=1).nan_to_num(0.0)
    assert torch.allclose(gradient, 8.0 * (case.upstream[:, None] * q).T @ case.embeddings, rtol=1e-12, atol=1e-12)
    assert not gradient[case.center_labels < 0].any()


@pytest.mark.parametrize("modulation", testing.MODULATIONS)
def test_empty_slots_and_ignored_rows_leak_nothing(modulation):
    """NaN in whatever does not count: the same numbers, and zeros (not NaN) where nothing flows."""
    clean = testing.make_case((9, 30, 8), torch.float64, modulation=modulation, empty=0.3, ignored=0.3, seed=3)
    dirty = testing.make_case((9, 30, 8), torch.float64, modulation=modulation, empty=0.3, ignored=0.3, seed=3)
    ignored = dirty.labels < 0
    assert ignored.any() and dirty.centers[dirty.center_labels < 0].isnan().all()
    clean.centers[clean.center_labels < 0] = 0.0
    for value in (dirty.embeddings, dirty.threshold, dirty.quad, dirty.lin, dirty.const, dirty.target_logit):
        if value is not None:
            value[ignored] = math.nan
    expected = testing.run(eager.negative_logsumexp, clean)
    with torch.autograd.set_detect_anomaly(True):
        found = testing.run(eager.negative_logsumexp, dirty)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert (found["lse"][ignored] == -math.inf).all()
    assert not found["grad_embeddings"][ignored].any()
    # The same through the explicit form, whose target and centres may hold NaN as well, and to centres that train.
    target = torch.where(ignored, math.nan, dirty.target_cosine).requires_grad_()
    inputs = (dirty.embeddings.requires_grad_(), dirty.centers.requires_grad_(), target)
    modulation = {name: getattr(dirty, name) for name in ("threshold", "quad", "lin", "const")}
    with torch.autograd.set_detect_anomaly(True):
        rows = eager.margin_softmax_cross_entropy(
            inputs[0], inputs[1], dirty.labels, dirty.center_labels, target, **modulation
        )
        gradients = torch.autograd.grad(rows, inputs, dirty.upstream)
    assert rows.isfinite().all() and not rows[ignored].any()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert not gradients[0][ignored].any() and not gradients[1][dirty.center_labels < 0].any()


NOTHING = {
    "no rows": (0, 5, dict()),
    "no slots": (4, 0, dict()),
    "every slot empty": (4, 5, dict(empty=1.0)),
    "every row ignored": (4, 5, dict(ignored=1.0)),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("modulation", ["none", "adasin"])
def test_nothing_to_sum_is_minus_infinity_with_gradient_zero(name, modulation):
    rows, slots, options = NOTHING[name]
    case = testing.make_case((max(rows, 1), max(slots, 1), 3), torch.float64, modulation=modulation, **options)
    for field in ("embeddings", "labels", "target_logit", "threshold", "quad", "lin", "const", "upstream"):
        if rows == 0 and getattr(case, field) is not None:
            setattr(case, field, getattr(case, field)[:0])
    if slots == 0:
        case.centers, case.center_labels = case.centers[:0], case.center_labels[:0]
    result = testing.run(eager.negative_logsumexp, case)
    assert result["lse"].shape == (rows,) and (result["lse"] == -math.inf).all()
    assert (result["max_cosine"] == -math.inf).all() and not result["hard_count"].any()
    for key in result:
        assert not key.startswith("grad_") or (result[key] == 0).all(), key


def test_own_class_in_every_slot_leaves_nothing():
    centers = testing.unit(torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    same = torch.full((3,), 7)
    lse, count, top, _ = eager.negative_logsumexp(centers, centers, same, same, scale=64.0)
    assert (lse == -math.inf).all() and not count.any() and (top == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bit_inputs_are_float32(dtype):
    case = testing.make_case((5, 131, 64), dtype, kind="trained", scale=64.0)
    truth = testing.run(eager.negative_logsumexp, case.double())
    found = testing.run(eager.negative_logsumexp, case)
    assert found["lse"].dtype == torch.float32 and found["grad_embeddings"].dtype == dtype
    testing.assert_no_worse(found["lse"], truth["lse"], least=64.0, name="lse")


def test_autocast_does_not_round_the_cosines():
    case = testing.make_case((5, 131, 64), torch.float32, kind="trained", modulation="none")
    arguments = (case.embeddings.requires_grad_(), case.centers, case.labels, case.center_labels)
    outside = eager.negative_logsumexp(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = eager.negative_logsumexp(*arguments)
    for ours, theirs in zip(inside, outside, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    grads = [torch.autograd.grad(outputs[0], arguments[0], case.upstream) for outputs in (inside, outside)]
    assert torch.equal(grads[0][0], grads[1][0])
