"""The compiled CPU sweep: right against float64, on inputs that bite, and a well-behaved torch operator."""

import math
import os
import subprocess
import sys

import pytest
import torch

from attfc_cuda import _backend, _ops, functional, reference, testing
from attfc_cuda.functional import negative_logsumexp

pytestmark = pytest.mark.skipif(
    not _backend.available("cpu"), reason=f"the CPU extension could not be built: {_backend.why_not('cpu')}"
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
CAPABILITIES = ["avx512_bf16", "avx512", "avx2", "generic"]


def check(case, **options):
    """The CPU sweep of the case is no worse than twice plain PyTorch; returns its results and the truth."""
    truth = testing.run(reference.negative_logsumexp, case.double())
    plain = testing.run(testing.plain_negative_logsumexp, case)
    actual = testing.run(negative_logsumexp, case, backend="cpu", **{"grad_tolerance": 0.0, **options})
    testing.assert_no_worse(actual, truth, plain, case=case)
    return actual, truth


def arguments(case):
    return case.embeddings, case.centers, case.labels, case.center_labels


def modulation(case):
    return {"threshold": case.threshold, "quad": case.quad, "lin": case.lin, "const": case.const}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", testing.SHAPES)
@pytest.mark.parametrize("kind", testing.KINDS)
@pytest.mark.parametrize("modulation", ["none", "adasin", "quadratic"])
def test_agrees_with_float64(dtype, shape, kind, modulation):
    check(testing.make_case(testing.SHAPES[shape], dtype, kind=kind, modulation=modulation, seed=1))


@pytest.mark.parametrize("modulation", ["filter", "mv", "curricular"])
def test_every_modulation_agrees_with_float64(modulation):
    check(testing.make_case(testing.SHAPES["odd"], torch.float32, kind="trained", modulation=modulation))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_real_size_agrees_with_float64(dtype):
    case = testing.make_case(testing.REAL_SHAPE, dtype, kind="trained", modulation="adasin")
    actual, truth = check(case)
    if dtype == torch.float32:
        testing.assert_gradient_close(actual["grad_embeddings"], truth["grad_embeddings"], 1e-5)
        assert (testing.relative_error(actual["lse"], truth["lse"]) <= 1e-5).all()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_agrees_with_float64(capability):
    """The grid again in a process of its own, since the instruction set is chosen once."""
    active = _backend.build_config()["cpu_capability"]
    if CAPABILITIES.index(capability) < CAPABILITIES.index(active):
        pytest.skip(f"this processor has {active}, not {capability}")
    code = """if True:
        import torch
        from attfc_cuda import _backend
        from tests import test_cpu_backend as this
        from attfc_cuda import testing
        for dtype in this.DTYPES:
            for shape in ("narrow", "tail", "odd"):
                for modulation in ("none", "quadratic"):
                    this.check(testing.make_case(testing.SHAPES[shape], dtype, kind="trained", modulation=modulation))
        print(_backend.build_config()["cpu_capability"])
    """
    done = run_with_capability(capability, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == capability


def test_an_unknown_capability_is_named():
    done = run_with_capability("avx", "from attfc_cuda import _backend; _backend.build_config()")
    assert "ATTFC_CPU_CAPABILITY must be generic, avx2, avx512 or avx512_bf16, got avx" in done.stderr


def run_with_capability(capability, code):
    environment = {**os.environ, "ATTFC_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("scale", [1.0, 64.0, 1000.0])
@pytest.mark.parametrize("target_cosine", [-1.0, 1.0])
def test_any_scale_and_target(dtype, scale, target_cosine):
    check(
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
    case.reference = torch.full_like(case.reference, 900.0 * sign)
    check(case)


@pytest.mark.parametrize("offset", [-1e4, -200.0, -20.0, 20.0, 60.0, None], ids=str)
def test_the_reference_changes_no_exact_row(offset):
    """Below the true lse by anything, above it by less than 80, or none: the same result to rounding."""
    case = testing.make_case(testing.SHAPES["odd"], torch.float32, kind="random", modulation="quadratic")
    truth = testing.run(reference.negative_logsumexp, case.double())
    lse = torch.where(truth["lse"].isfinite(), truth["lse"], 0).float()
    case.reference = None if offset is None else lse + offset
    actual = testing.run(negative_logsumexp, case, backend="cpu", grad_tolerance=0.0)
    plain = testing.run(testing.plain_negative_logsumexp, case)
    testing.assert_no_worse(actual["lse"], truth["lse"], floor=testing.FLOAT32_FLOOR, least=case.scale)
    floor, least = testing.floor_of("grad_embeddings", case)
    testing.assert_no_worse(
        actual["grad_embeddings"], truth["grad_embeddings"], plain["grad_embeddings"], floor=floor, least=least
    )


def test_a_reference_far_above_loses_the_row_and_nothing_else():
    case = testing.make_case(testing.SHAPES["tail"], torch.float32, modulation="none", ignored=0.0)
    case.reference = torch.full_like(case.reference, 1000.0)
    actual = testing.run(negative_logsumexp, case, backend="cpu")
    assert (actual["lse"] == -math.inf).all() and not actual["grad_embeddings"].any()
    truth = testing.run(reference.negative_logsumexp, case.double())
    testing.assert_no_worse(actual["max_cosine"], truth["max_cosine"], least=1.0)


def test_rising_logits_move_the_reference_tile_after_tile():
    """Each tile of centres beats the one before by more than the safe distance, and the largest comes last."""
    dim, slots = 64, 480
    embeddings = torch.zeros(3, dim)
    embeddings[:, 0] = 1
    centers = torch.zeros(slots, dim)
    centers[:, 0] = torch.linspace(-1, 1, slots)
    centers[:, 1] = (1 - centers[:, 0] ** 2).clamp(min=0).sqrt()
    for reference_logit in (None, torch.full((3,), -1000.0)):
        x = embeddings.clone().requires_grad_()
        y = embeddings.double().requires_grad_()
        labels, center_labels = torch.arange(3), torch.arange(100, 100 + slots)
        ours = negative_logsumexp(
            x, centers, labels, center_labels, reference=reference_logit, scale=1000.0, backend="cpu"
        )
        truth = reference.negative_logsumexp(y, centers.double(), labels, center_labels, scale=1000.0)
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
    share = torch.sigmoid(swept["lse"].double() - case.reference.double())
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
    views = {
        "rows apart": lambda t: torch.cat([t, torch.full_like(t, math.nan)], dim=1)[:, : t.shape[1]],
        "odd rows apart": lambda t: torch.cat([t, torch.full_like(t[:, :1], math.nan)], dim=1)[:, : t.shape[1]],
        "transposed": lambda t: t.T.contiguous().T,
        "every other": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
        "shifted": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    }
    for name, view in views.items():
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
    truth = reference.negative_logsumexp(x.double(), x.double(), low, low)
    testing.assert_no_worse(swept.lse, truth[0])
    many = torch.arange(3000) * 2**20
    y = testing.unit(torch.randn(3000, 8, generator=torch.Generator().manual_seed(2)))
    swept = negative_logsumexp(y, y[:400], many, many[:400], backend="cpu")
    truth = reference.negative_logsumexp(y.double(), y[:400].double(), many, many[:400])
    testing.assert_no_worse(swept.lse, truth[0])
    assert (swept.max_cosine[:400] < 0.99999).all()


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
    need_grad, need_moments = wanted
    inputs = [case.embeddings.clone().requires_grad_(need_grad), *arguments(case)[1:], case.reference, case.threshold]
    inputs += [t.clone().requires_grad_(need_moments) for t in (case.quad, case.lin, case.const)]
    inputs += [case.scale, 0.0, need_grad, need_moments]
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
        swept = negative_logsumexp(x, *arguments(case)[1:], reference=case.reference, **values, backend="cpu")
        (gradient,) = torch.autograd.grad(swept.lse, leaf, case.upstream)
        assert torch.equal(gradient, whole[f"grad_{name}"]), name


def test_compiles_without_a_graph_break():
    case = testing.make_case((5, 60, 16), torch.float32, modulation="adasin")

    def loss(x):
        swept = negative_logsumexp(x, *arguments(case)[1:], reference=case.reference, **modulation(case))
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

    case.reference = None
    expected = testing.run(negative_logsumexp, case, backend="cpu")["grad_embeddings"]
    assert torch.equal(torch.func.grad(loss)(case.embeddings), expected)


def test_a_second_derivative_is_refused():
    case = testing.make_case((5, 60, 16), torch.float32, modulation="adasin", ignored=0.0)
    x = case.embeddings.clone().requires_grad_()
    lse = negative_logsumexp(x, *arguments(case)[1:], backend="cpu").lse
    (gradient,) = torch.autograd.grad(lse.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="negative_logsumexp: the gradient must be used once, got a second"):
        gradient.square().sum().backward()


def test_autocast_of_the_bare_operator():
    case = testing.make_case((5, 131, 64), torch.float32, kind="trained", modulation="adasin")
    rest = (*arguments(case)[2:], case.reference, *modulation(case).values(), case.scale, 0.0, False, False)
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
    empty = (None,) * 5
    _backend.available("cpu")

    def call(x=x, w=w, labels=labels, slots=slots, rows=empty):
        return torch.ops.attfc.negative_logsumexp(x, w, labels, slots, *rows, 64.0, 0.0, False, False)

    for error, message, inputs in (
        (ValueError, r"negative_logsumexp: embeddings must have 2 dimensions, got \[4\]", {"x": x[0]}),
        (ValueError, r"negative_logsumexp: centers must have D = 4 columns, got 5", {"w": torch.zeros(3, 5)}),
        (TypeError, r"negative_logsumexp: centers must be Float as embeddings, got Double", {"w": w.double()}),
        (TypeError, r"negative_logsumexp: labels must be Long, got Int", {"labels": labels.int()}),
        (ValueError, r"negative_logsumexp: center_labels must have shape \[3\], got \[2\]", {"slots": slots[:2]}),
        (
            TypeError,
            r"negative_logsumexp: threshold must be Float, got Double",
            {"rows": (None, labels.double(), None, None, None)},
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
        rest = (*arguments(case)[2:], None, None, None, None, None, 64.0, 0.0, need_grad, need_grad)
        real = torch.ops.attfc.negative_logsumexp(case.embeddings, case.centers, *rest)
        fake = _ops._fake(case.embeddings, case.centers, *rest)
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]


def test_functional_prefers_the_compiled_sweep():
    assert functional._backend.resolve("auto", torch.device("cpu"), torch.float32) == "cpu"
