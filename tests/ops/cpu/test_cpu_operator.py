"""The CPU sweep as a torch operator: autograd, compilation, transforms, memory, checks."""

import re

import pytest
import torch
from cpu_cases import arguments, modulation, needs_extension, raw_centers

from attfc_cuda import functional, testing
from attfc_cuda.functional import negative_logsumexp
from attfc_cuda.ops import autograd as _ops
from attfc_cuda.ops import backend as _backend

pytestmark = needs_extension


def test_gradcheck():
    case = testing.make_case((4, 30, 6), torch.float64, kind="trained", modulation="quadratic", scale=8.0)
    inputs = [t.clone().requires_grad_() for t in (case.embeddings, case.quad, case.lin, case.const)]

    def lse(x, quad, lin, const):
        out = negative_logsumexp(
            x, *arguments(case)[1:], threshold=case.threshold, quad=quad, lin=lin, const=const, scale=8.0, backend="cpu"
        ).lse
        return torch.where(out.isfinite(), out, 0)

    assert torch.autograd.gradcheck(lse, inputs)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_opcheck(wanted):
    case = testing.make_case((5, 60, 8), torch.float32, modulation="quadratic")
    case, center_scale = raw_centers(case)
    need_grad, need_moments = wanted
    inputs = [case.embeddings.clone().requires_grad_(need_grad), *arguments(case)[1:]]
    inputs += [center_scale, case.row_values().requires_grad_(need_moments), case.scale, 0.0, need_grad, need_moments]
    torch.library.opcheck(torch.ops.attfc.negative_logsumexp.default, tuple(inputs))


def test_only_the_wanted_gradients_are_made():
    case = testing.make_case((5, 60, 8), torch.float32, modulation="quadratic")
    whole = testing.run(negative_logsumexp, case, backend="cpu")
    with torch.no_grad():
        x = case.embeddings.clone().requires_grad_()
        assert not negative_logsumexp(x, *arguments(case)[1:], **modulation(case), backend="cpu").lse.requires_grad
    for name in ("embeddings", "quad", "lin", "const"):
        leaf = getattr(case, name).clone().requires_grad_()
        values = {**modulation(case), **({name: leaf} if name != "embeddings" else {})}
        x = leaf if name == "embeddings" else case.embeddings
        swept = negative_logsumexp(x, *arguments(case)[1:], target_logit=case.target_logit, **values, backend="cpu")
        (gradient,) = torch.autograd.grad(swept.lse, leaf, case.upstream)
        assert torch.equal(gradient, whole[f"grad_{name}"]), name


def test_compiles_without_a_graph_break():
    case = testing.make_case((5, 60, 16), torch.float32, modulation="adasin")

    def loss(x):
        swept = negative_logsumexp(x, *arguments(case)[1:], target_logit=case.target_logit, **modulation(case))
        return torch.where(swept.lse.isfinite(), swept.lse, 0).sum()

    x, y = (case.embeddings.clone().requires_grad_() for _ in range(2))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled(x).backward(), loss(y).backward()
    assert torch.equal(x.grad, y.grad) and x.grad.any()


def test_function_transforms():
    case = testing.make_case((5, 60, 16), torch.float32, modulation="adasin", ignored=0.0)

    def loss(x):
        swept = negative_logsumexp(x, *arguments(case)[1:], **modulation(case), backend="cpu")
        return (swept.lse * case.upstream).sum()

    case.target_logit = None
    expected = testing.run(negative_logsumexp, case, backend="cpu")["grad_embeddings"]
    assert torch.equal(torch.func.grad(loss)(case.embeddings), expected)


def test_a_second_derivative_is_refused():
    case = testing.make_case((5, 60, 16), torch.float32, modulation="adasin", ignored=0.0)
    x = case.embeddings.clone().requires_grad_()
    lse = negative_logsumexp(x, *arguments(case)[1:], backend="cpu").lse
    (gradient,) = torch.autograd.grad(lse.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="gradient must be used once, got a second"):
        gradient.square().sum().backward()


def test_autocast_of_the_bare_operator():
    case = testing.make_case((5, 131, 64), torch.float32, kind="trained", modulation="adasin")
    rest = (*arguments(case)[2:], None, case.row_values(), case.scale, 0.0, False, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.ops.attfc.negative_logsumexp(case.embeddings, case.centers, *rest)
    outside = torch.ops.attfc.negative_logsumexp(case.embeddings.bfloat16(), case.centers.bfloat16(), *rest)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(inside, outside, strict=True))
    assert inside[0].dtype == torch.float32


def test_no_allocation_grows_with_the_number_of_centres():
    """Above its inputs the sweep allocates the same at 4 times the slots, and under 64 MiB at B 384, D 512."""

    def allocated(slots):
        x = torch.ones(384, 512).requires_grad_()
        w, labels, center_labels = torch.ones(slots, 512), torch.arange(384), torch.arange(slots)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            negative_logsumexp(x, w, labels, center_labels, backend="cpu").lse.sum().backward()
        return sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())

    small, large = allocated(12_500), allocated(50_000)
    assert 0 < small < 2**26 and large < 2**26
    assert large == small


def test_operator_checks_what_it_would_misread():
    x, w = torch.zeros(2, 4), torch.zeros(3, 4)
    labels, slots = torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    given = torch.zeros(5, 2)
    _backend.available("cpu")

    def call(x=x, w=w, labels=labels, slots=slots, center_scale=None, rows=given):
        return torch.ops.attfc.negative_logsumexp(x, w, labels, slots, center_scale, rows, 64.0, 0.0, False, False)

    for error, message, inputs in (
        (ValueError, r"negative_logsumexp: embeddings must have 2 dimensions, got \[4\]", {"x": x[0]}),
        (ValueError, r"negative_logsumexp: centers must have D = 4 columns, got 5", {"w": torch.zeros(3, 5)}),
        (TypeError, r"negative_logsumexp: centers must be Float as embeddings, got Double", {"w": w.double()}),
        (TypeError, r"negative_logsumexp: labels must be Long, got Int", {"labels": labels.int()}),
        (ValueError, r"negative_logsumexp: center_labels must have shape \[3\], got \[2\]", {"slots": slots[:2]}),
        (
            TypeError,
            r"negative_logsumexp: row_values must be Float, got Double",
            {"rows": torch.zeros(5, 2).double()},
        ),
        *(
            (
                ValueError,
                r"negative_logsumexp: row_values must have shape \[0, 1 or 5, 2\], got "
                + re.escape(str(list(rows.shape))),
                {"rows": rows},
            )
            for rows in (torch.zeros(2, 2), torch.zeros(5, 3), torch.zeros(2), torch.zeros(0))
        ),
        (
            ValueError,
            r"negative_logsumexp: center_scale must have shape \[3\], got \[2\]",
            {"center_scale": torch.ones(2)},
        ),
        (
            TypeError,
            "negative_logsumexp: center_scale must be Float, got Double",
            {"center_scale": torch.ones(3).double()},
        ),
        (
            TypeError,
            "negative_logsumexp: embeddings must be float32, float64, bfloat16 or float16, got Int",
            {"x": x.int(), "w": w.int()},
        ),
    ):
        with pytest.raises(error, match=message):
            call(**inputs)


def test_fake_kernel_promises_what_the_kernel_gives():
    case = testing.make_case((3, 5, 7), torch.bfloat16, modulation="none")
    for need_grad in (False, True):
        rest = (*arguments(case)[2:], None, case.row_values(), 64.0, 0.0, need_grad, need_grad)
        real = torch.ops.attfc.negative_logsumexp(case.embeddings, case.centers, *rest)
        fake = _ops._fake(case.embeddings, case.centers, *rest)
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]


def test_functional_prefers_the_compiled_sweep():
    assert functional.backends.resolve("auto", torch.device("cpu"), torch.float32, 512) == "cpu"
