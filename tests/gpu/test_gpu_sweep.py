"""Every GPU backend of both operators against float64, at the edges of its tiles, and the same bits twice."""

import math

import pytest
import torch
from gpu_cases import (
    BACKENDS,
    DEVICE,
    HALF,
    SHAPES,
    center_gradient,
    check_center_gradient,
    check_sweep,
    make_center_case,
    need,
    only_gpu,
)

from attfc_cuda import functional, testing
from attfc_cuda.ops import autograd as _ops
from attfc_cuda.ops.row_values import RowValues

backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)


@backends
@dtypes
@pytest.mark.parametrize(("shape", "kind"), [*((shape, "trained") for shape in SHAPES), ("blocks", "random")])
def test_agrees_with_float64(shape, kind, dtype, backend):
    need(backend, dtype, SHAPES[shape][2])
    check_sweep(testing.make_case(SHAPES[shape], dtype, kind=kind, modulation="quadratic"), backend)


@backends
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("modulation", testing.MODULATIONS)
def test_every_modulation(modulation, dtype, backend):
    need(backend, dtype, 256)
    check_sweep(testing.make_case((66, 300, 256), dtype, kind="trained", modulation=modulation), backend)


@backends
@dtypes
@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("target_cosine", [-1.0, 1.0])
def test_any_scale_and_target(scale, target_cosine, dtype, backend):
    need(backend, dtype, 128)
    check_sweep(testing.make_case((9, 200, 128), dtype, scale=scale, target_cosine=target_cosine), backend)


@backends
@dtypes
@pytest.mark.parametrize("raw", [False, True], ids=["unit", "raw"])
@pytest.mark.parametrize(
    ("shape", "modulation"), [*((shape, "quadratic") for shape in SHAPES), ("blocks", "none"), ("blocks", "adasin")]
)
def test_center_gradient_agrees_with_float64(modulation, shape, raw, dtype, backend):
    need(backend, dtype, SHAPES[shape][2])
    check_center_gradient(
        make_center_case(SHAPES[shape], dtype, raw=raw, kind="trained", modulation=modulation), backend
    )


@backends
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_real_size_agrees_with_float64(dtype, backend):
    need(backend, dtype, 512)
    shape = testing.REAL_SHAPE if DEVICE.type == "cuda" else (40, 900, 512)
    check_sweep(testing.make_case(shape, dtype, kind="trained"), backend)
    check_center_gradient(make_center_case(shape, dtype, raw=True, kind="trained"), backend)


@backends
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_is_left_out_is_told_and_bounded(dtype, backend):
    need(backend, dtype, 512)
    case = testing.make_case((70, 4001, 512), dtype, kind="trained").to(DEVICE)
    tolerance = 2.0**-8
    exact, skipping = (
        testing.run(functional.negative_logsumexp, case, backend=backend, grad_tolerance=each)
        for each in (0.0, tolerance)
    )
    torch.testing.assert_close(skipping["lse"], exact["lse"], rtol=0, atol=64 * 2.0**-20)
    assert torch.equal(skipping["hard_count"], exact["hard_count"])
    assert (skipping["omitted_mass"] <= tolerance * (1 + 1e-3)).all()
    assert not exact["omitted_mass"].gt(2.0**-20).any()


@backends
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_two_runs_give_the_same_bits(dtype, backend):
    need(backend, dtype, 512)
    given = make_center_case((130, 3001, 512), dtype, raw=True, kind="trained")
    case = testing.make_case((130, 3001, 512), dtype, kind="trained").to(DEVICE)

    def once():
        found = testing.run(functional.negative_logsumexp, case, backend=backend, grad_tolerance=2.0**-12)
        return [*found.values(), center_gradient(given, backend, 2.0**-12)]

    for a, b in zip(once(), once(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())


@backends
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_nothing_to_sum(dtype, backend):
    """No rows; no slots; only empty slots."""
    need(backend, dtype, 128)
    x = testing.unit(torch.randn(5, 128)).to(DEVICE, dtype)
    labels = torch.arange(5, device=DEVICE)
    for rows, slots, filled in ((0, 5, True), (5, 0, True), (5, 5, False)):
        centers = x[:slots] if filled else x[:slots] * math.nan
        slot_labels = labels[:slots] + 10 if filled else labels[:slots] * 0 - 1
        embeddings = x[:rows].clone().requires_grad_()
        found = functional.negative_logsumexp(embeddings, centers, labels[:rows], slot_labels, backend=backend)
        assert found.lse.eq(-math.inf).all() and not found.hard_count.any()
        weight = torch.zeros(rows, device=DEVICE)
        (grad,) = torch.autograd.grad(torch.where(found.lse.isfinite(), found.lse, 0).sum(), embeddings)
        assert grad.shape == (rows, 128) and not grad.any()
        gradient = _ops.center_gradient_operator(backend)(
            weight, found.lse.detach(), weight, x[:rows], centers, labels[:rows], slot_labels, None,
            RowValues().stack(embeddings), 64.0, 0.0,
        )  # fmt: skip
        assert gradient.shape == (slots, 128) and not gradient.any()


@backends
def test_rows_that_are_not_aligned(backend):
    """The operator copies what the kernels cannot read in place, as it must in compiled code."""
    need(backend, torch.bfloat16, 128)
    wide = torch.randn(40, 136, device=DEVICE).bfloat16()
    odd, whole = wide[:, 1:129], wide[:, 1:129].contiguous()
    labels = torch.arange(40, device=DEVICE)
    rest = (None, RowValues().stack(odd[:7]), 8.0, 0.0, True, False)
    operator = _ops.negative_logsumexp_operator(backend)
    found, expected = (operator(x[:7], x, labels[:7], labels, *rest) for x in (odd, whole))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@only_gpu
def test_misaligned_rows_are_refused_by_name_and_taken_by_auto():
    need("cuda", torch.bfloat16, 128)
    odd = torch.randn(40, 136, device=DEVICE).bfloat16()[:, 1:129]
    labels = torch.arange(40, device=DEVICE)
    with pytest.raises(RuntimeError, match="must start at multiples of 16 bytes"):
        functional.negative_logsumexp(odd, odd, labels, labels, backend="cuda")
    assert functional.negative_logsumexp(odd, odd, labels, labels).lse.isfinite().all()


@only_gpu
@backends
def test_more_than_2_to_the_31_numbers(backend):
    """Offsets into the centres, and into their gradient, need 64 bits."""
    need(backend, torch.bfloat16, 512)
    slots = 2**22 + 3
    if torch.cuda.mem_get_info()[0] < 5 * slots * 512 * 2:
        pytest.skip(f"{5 * slots * 512 * 2 >> 30} GiB of free GPU memory are needed")
    x = testing.unit(torch.randn(3, 512, device=DEVICE)).bfloat16()
    centers = torch.zeros(slots, 512, device=DEVICE, dtype=torch.bfloat16)
    centers[-3:] = x
    center_labels = torch.full((slots,), 9, device=DEVICE)
    labels = torch.arange(3, device=DEVICE)
    found = functional.negative_logsumexp(x, centers, labels, center_labels, scale=64.0, backend=backend)
    torch.testing.assert_close(found.max_cosine, (x.double() ** 2).sum(1).float(), rtol=0, atol=1e-5)
    ones = torch.ones(3, device=DEVICE)
    gradient = _ops.center_gradient_operator(backend)(
        ones,
        found.lse,
        None,
        x,
        centers,
        labels,
        center_labels,
        None,
        RowValues().stack(x),
        64.0,
        0.0,
    )
    assert gradient[-3:].any(dim=1).all()


@only_gpu
@backends
def test_opcheck(backend):
    need(backend, torch.bfloat16, 128)
    case = testing.make_case((9, 70, 128), torch.bfloat16).to(DEVICE)
    x = case.embeddings.clone().requires_grad_()
    tensors = (x, case.centers, case.labels, case.center_labels)
    rows = (None, case.row_values())
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        _ops.negative_logsumexp_operator(backend).default,
        (*tensors, *rows, 64.0, 0.0, True, False),
        test_utils=checks,
    )
    ones = torch.ones(9, device=DEVICE)
    torch.library.opcheck(
        _ops.center_gradient_operator(backend).default,
        (ones, ones, None, case.embeddings, *tensors[1:], *rows, 64.0, 0.0),
        test_utils=checks,
    )
