"""The CPU gradient of class centres as a torch operator: autograd through it, fake kernel, memory, checks."""

import pytest
import torch
from cpu_cases import arguments, center_gradient, make_center_case, modulation, needs_extension, swept_lse

from attfc_cuda import testing
from attfc_cuda.functional import negative_logsumexp
from attfc_cuda.ops import backend as _backend

pytestmark = needs_extension


def inputs_of(given, grad_tolerance=0.0):
    return (
        given.case.upstream, swept_lse(given), given.target_grad, *arguments(given.case), *given.rest(grad_tolerance)
    )  # fmt: skip


def test_gradcheck():
    given = make_center_case(
        (4, 30, 6), torch.float64, raw=False, kind="trained", modulation="quadratic", scale=8.0, empty=0.0, ignored=0.0
    )
    case = given.case
    x, w = case.embeddings.clone().requires_grad_(), case.centers.clone().requires_grad_()

    def lse(x, w):
        rest = {**modulation(case), "scale": 8.0, "backend": "cpu"}
        return negative_logsumexp(x, w, case.labels, case.center_labels, **rest).lse

    assert torch.autograd.gradcheck(lse, (x, w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("raw", [False, True], ids=["unit", "raw"])
def test_opcheck(dtype, raw):
    given = make_center_case((5, 60, 8), dtype, raw=raw, modulation="quadratic", ignored=0.0, empty=0.0)
    torch.library.opcheck(torch.ops.attfc.center_gradient.default, inputs_of(given))


def test_a_derivative_of_the_gradient_is_refused():
    given = make_center_case((5, 60, 8), torch.float32, raw=False, ignored=0.0, empty=0.0)
    w = given.case.centers.clone().requires_grad_()
    lse = negative_logsumexp(given.case.embeddings, w, *arguments(given.case)[2:], backend="cpu").lse
    (gradient,) = torch.autograd.grad(lse.sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="must be used once, got a second"):
        gradient.square().sum().backward()


def test_no_allocation_grows_with_the_number_of_centres():
    """Above the gradient itself, once there are tiles for every task; under 64 MiB at B 384, D 512."""

    def allocated(slots):
        given = make_center_case((8, 8, 8), torch.float32, raw=True, empty=0.0, ignored=0.0)
        case = given.case
        case.embeddings, case.centers = torch.ones(384, 512), torch.ones(slots, 512)
        case.labels, case.center_labels = torch.arange(384), torch.arange(slots)
        case.target_logit = case.upstream = given.target_grad = torch.ones(384)
        case.threshold = case.quad = case.lin = case.const = None
        given.center_scale = torch.ones(slots)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            center_gradient(given, lse=case.upstream)
        return sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()) - case.centers.nbytes

    small, large = allocated(12_288), allocated(49_152)
    assert 0 < small < 2**26 and large == small


def test_operator_checks_what_it_would_misread():
    x, w = torch.zeros(2, 4), torch.zeros(3, 4)
    labels, slots, rows = torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.zeros(2)
    _backend.available("cpu")

    def call(x=x, w=w, labels=labels, slots=slots, grad_lse=rows, lse=rows, target_grad=rows, center_scale=None):
        rest = (center_scale, torch.zeros(0, 2), 64.0, 0.0)
        return torch.ops.attfc.center_gradient(grad_lse, lse, target_grad, x, w, labels, slots, *rest)

    assert call().shape == w.shape
    for error, message, inputs in (
        (ValueError, r"center_gradient: embeddings must have 2 dimensions, got \[4\]", {"x": x[0]}),
        (ValueError, r"center_gradient: centers must have D = 4 columns, got 5", {"w": torch.zeros(3, 5)}),
        (TypeError, r"center_gradient: centers must be Float as embeddings, got Double", {"w": w.double()}),
        (TypeError, r"center_gradient: labels must be Long, got Int", {"labels": labels.int()}),
        (ValueError, r"center_gradient: center_labels must have shape \[3\], got \[2\]", {"slots": slots[:2]}),
        (ValueError, r"center_gradient: grad_lse must have shape \[2\], got \[1\]", {"grad_lse": rows[:1]}),
        (TypeError, r"center_gradient: lse must be Float, got Double", {"lse": rows.double()}),
        (ValueError, r"center_gradient: target_grad must have shape \[2\], got \[3\]", {"target_grad": torch.zeros(3)}),
        (ValueError, r"center_gradient: center_scale must have shape \[3\], got \[2\]", {"center_scale": rows}),
        (
            TypeError,
            "center_gradient: embeddings must be float32, float64, bfloat16 or float16, got Int",
            {"x": x.int(), "w": w.int()},
        ),
    ):
        with pytest.raises(error, match=message):
            call(**inputs)


def test_operands_share_one_dtype_with_the_gradient():
    for dtype, real in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        given = make_center_case((5, 60, 8), dtype, raw=True)
        assert given.case.upstream.dtype == real and center_gradient(given).dtype == dtype
        testing.assert_no_worse(center_gradient(given), center_gradient(given))
