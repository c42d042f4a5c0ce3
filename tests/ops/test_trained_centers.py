"""Class centres that are trained: one gradient for their part as positives and as negatives, on every path."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attfc_cuda import functional, inverse_norms, margin_softmax_loss, margins, negative_logsumexp, testing
from attfc_cuda.ops import trained_centers as _trained_centers

MARGINS = {
    "arcface": {},
    "cosface": {},
    "normface": {},
    "adasin": {},
    "adasin, differentiated": {"detach_difficulty": False},
    "curricularface": {},
    "mvsoftmax": {},
    "adaface": {},
    "magface": {},
    "arcface, filtered": {"interclass_filter": 0.1},
    "arcface, straight": {"gradient": "straight_through"},
}
BACKENDS = ("eager", "cpu")


def make(margin: str, scale: float = 24.0) -> margins.Margin:
    return margins.build(margin.split(",")[0], scale=scale, **MARGINS[margin]).eval()


def inputs(rows: int = 11, slots: int = 53, dim: int = 19, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict:
    """Raw centres of very different lengths, two rows of one class, one ignored row full of NaN, one class twice."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(slots, dim, generator=generator, dtype=torch.float64)
    centers = centers * torch.logspace(-3, 3, slots, dtype=torch.float64)[:, None]
    labels = torch.randint(slots, (rows,), generator=generator)
    labels[1] = labels[0]
    own = testing.unit(centers)[labels]
    embeddings = testing.at_cosine(own, torch.linspace(-0.2, 0.95, rows, dtype=torch.float64), generator)
    norm = 5 + 40 * torch.rand(rows, generator=generator, dtype=torch.float64)
    if rows > 4:
        labels[4], embeddings[4] = -1, math.nan
    return {
        "embeddings": embeddings.to(dtype),
        "centers": centers.to(dtype),
        "labels": labels,
        "norm": norm.to(dtype),
        "upstream": torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype),
    }


def gradients(case: dict, margin: margins.Margin, raw: bool = True, **options) -> tuple[Tensor, Tensor, Tensor]:
    """(rows of the loss, d embeddings, d centers) under a random upstream gradient of the rows."""
    centers = case["centers"] if raw else testing.unit(case["centers"])
    x, w = case["embeddings"].clone().requires_grad_(), centers.clone().requires_grad_()
    labels = case["labels"]
    options = {"one_slot_per_class": True, **options}
    output = margin_softmax_loss(
        x, w, labels, torch.arange(len(w)), margin, target_slot=labels, norm=case["norm"],
        center_scale=inverse_norms(w) if raw else None, reduction="none", **options,
    )  # fmt: skip
    output.loss.backward(case["upstream"].to(output.loss.dtype))
    return output.loss.detach(), x.grad, w.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "unit"])
def test_arcface_equals_the_textbook(backend: str, raw: bool) -> None:
    case = inputs()
    rows, grad_x, grad_w = gradients(case, make("arcface"), raw, backend=backend)
    kept = case["labels"] >= 0
    x = case["embeddings"][kept].clone().requires_grad_()
    w = (case["centers"] if raw else testing.unit(case["centers"])).clone().requires_grad_()
    cosine = x @ (F.normalize(w) if raw else w).T
    target = torch.arange(len(x)), case["labels"][kept]
    bent = torch.cos(torch.acos(cosine[target]) + 0.5)
    loss = F.cross_entropy(24 * cosine.index_put(target, bent), target[1], reduction="none")
    loss.backward(case["upstream"][kept])
    torch.testing.assert_close(rows[kept], loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad_x[kept], x.grad, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(grad_w, w.grad, rtol=1e-11, atol=1e-11 * float(w.grad.abs().max()))
    assert not rows[~kept].any() and not grad_x[~kept].any()


@pytest.mark.parametrize("margin", MARGINS)
def test_cpu_equals_eager_for_every_margin(margin: str) -> None:
    case = inputs(rows=37, slots=203, dim=40)
    truth = gradients(case, make(margin), backend="eager")
    actual = gradients(case, make(margin), backend="cpu")
    for name, got, expected in zip(("rows", "embeddings", "centers"), actual, truth, strict=True):
        testing.assert_no_worse(got, expected, floor=1e-10, least=1e-8, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("margin", ["arcface", "adasin"])
def test_reduced_precision_loses_no_more_than_twice_plain_pytorch(margin: str, dtype: torch.dtype) -> None:
    case = inputs(rows=37, slots=203, dim=40, dtype=dtype)
    case["centers"] = testing.unit(case["centers"].double()).to(dtype)
    case["norm"], case["upstream"] = case["norm"].float(), case["upstream"].float()
    exact = {key: value.double() if value.is_floating_point() else value for key, value in case.items()}
    truth = gradients(exact, make(margin), backend="eager")[2]
    # Plain PyTorch: the same loss over centres normalised and multiplied in their own dtype.
    w = case["centers"].clone().requires_grad_()
    kept = case["labels"] >= 0
    x = torch.where(kept[:, None], case["embeddings"], 0)
    cosine = (x @ F.normalize(w).T).float()
    layer, labels = make(margin), case["labels"]
    own = cosine.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    modulation = layer.modulation(own)
    mask = torch.arange(len(w))[None, :] == labels[:, None]
    hard = torch.zeros_like(mask)
    if modulation is not None:
        hard = (cosine > modulation.threshold[:, None]) & ~mask
        cosine = torch.where(hard, modulation.lin[:, None] * cosine, cosine)
    target = layer.target(own, None, hard.sum(1))
    logits = torch.where(mask, target[:, None], cosine) * 24
    rows = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    rows.backward(case["upstream"])
    actual = gradients(case, make(margin), backend="cpu", grad_tolerance=0.0)[2]
    assert actual.dtype == dtype
    floor = max(24 * 2.0**-22, torch.finfo(dtype).eps)
    testing.assert_no_worse(actual, truth, w.grad, floor=floor, least=24 * 2.0**-24, name="grad_centers")


@pytest.mark.parametrize("backend", BACKENDS)
def test_sweep_alone_gives_its_centers_a_gradient(backend: str) -> None:
    case = testing.make_case((34, 131, 40), torch.float64, kind="trained", modulation="quadratic")
    found = []
    for chosen in ("eager", backend):
        w = case.centers.clone().requires_grad_()
        lse = negative_logsumexp(
            case.embeddings, w, case.labels, case.center_labels, target_logit=case.target_logit,
            threshold=case.threshold, quad=case.quad, lin=case.lin, const=case.const, scale=case.scale, backend=chosen,
        ).lse  # fmt: skip
        finite = lse.isfinite()
        found.append(torch.autograd.grad(lse[finite], w, case.upstream[finite])[0])
    # The eager backend leaves NaN gradients nowhere: empty slots get 0.
    assert found[0].isfinite().all() and not found[0][case.center_labels < 0].any()
    testing.assert_no_worse(found[1], found[0], floor=1e-10, least=1e-8)


def test_a_row_without_a_center_here_has_cosine_zero() -> None:
    case = inputs()
    elsewhere = torch.full_like(case["labels"], -1)
    for backend in BACKENDS:
        output = margin_softmax_loss(
            case["embeddings"], case["centers"], case["labels"], torch.arange(53), make("arcface"),
            target_slot=elsewhere, center_scale=inverse_norms(case["centers"]), backend=backend,
        )  # fmt: skip
        assert not output.target_cosine.any()


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "unit"])
@pytest.mark.parametrize("name", ["arcface", "adasin"])
def test_only_the_slot_that_a_row_names_is_its_positive(name: str, raw: bool, with_sink: bool) -> None:
    """Classes with several slots, and rows that name none although their class has some, as the eager backend."""
    case = inputs()
    center_labels = torch.arange(53) % 20  # two or three slots a class
    labels = torch.where(case["labels"] < 0, -1, case["labels"] % 20)
    target_slot = torch.where(labels >= 0, labels + 20, -1)
    target_slot[2], target_slot[5] = -1, int(labels[5])
    target_slot[0] = target_slot[1]
    labels[0] = labels[1]
    found = {}
    for backend in BACKENDS:
        centers = case["centers"] if raw else testing.unit(case["centers"])
        x, w = case["embeddings"].clone().requires_grad_(), centers.clone().requires_grad_()
        taken: list[Tensor] = []
        sink = (lambda _, gradient, taken=taken: taken.append(gradient)) if with_sink else None
        output = margin_softmax_loss(
            x, w, labels, center_labels, make(name), target_slot=target_slot, gradient_sink=sink, backend=backend,
            center_scale=inverse_norms(w) if raw else None, reduction="none",
        )  # fmt: skip
        output.loss.backward(case["upstream"])
        found[backend] = (output.loss.detach(), x.grad.nan_to_num(), torch.cat(taken) if with_sink else w.grad)
    for ours, theirs in zip(found["cpu"], found["eager"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_slot_for_each_class_is_a_promise_that_changes_nothing_else(dtype: torch.dtype) -> None:
    case, truth = inputs(dtype=dtype), gradients(inputs(), make("arcface"), backend="eager")[2]
    promised, general = (
        gradients(case, make("arcface"), backend="cpu", one_slot_per_class=promise) for promise in (True, False)
    )
    assert torch.equal(promised[0], general[0]) and torch.equal(promised[1].nan_to_num(), general[1].nan_to_num())
    # A row of the general gradient is rounded once more, as a negative, before its part as a positive is added.
    testing.assert_gradient_close(general[2], truth, 24 * 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_center_without_a_direction_has_no_gradient(backend: str) -> None:
    """Divided by its length of 1e-12 it would be 1e12 times that of the others."""
    case = inputs()
    for length in (0.0, 1e-9):
        w = case["centers"].clone()
        w[[3, int(case["labels"][0])]] *= length
        _, grad_x, grad_w = gradients(case | {"centers": w}, make("arcface"), backend=backend)
        assert not grad_w[3].any() and not grad_w[case["labels"][0]].any()
        assert grad_w.isfinite().all() and grad_w.abs().max() < 1e3 and grad_x[case["labels"] >= 0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_passes_that_do_not_reach_the_centers_leave_the_sink_alone(backend: str) -> None:
    case, taken = inputs(), []
    x, w = case["embeddings"].clone().requires_grad_(), case["centers"].clone().requires_grad_()

    def loss() -> Tensor:
        return margin_softmax_loss(
            x, w, case["labels"], torch.arange(53), make("arcface"), target_slot=case["labels"], backend=backend,
            center_scale=inverse_norms(w), one_slot_per_class=True, gradient_sink=lambda *part: taken.append(part),
        ).loss  # fmt: skip

    (expected,) = torch.autograd.grad(loss(), x)
    loss().backward(inputs=[x])
    assert torch.equal(x.grad, expected) and expected[0].any() and not taken
    loss().backward(inputs=[w])
    assert len(taken) == 1 and w.grad is None
    loss().backward()
    assert len(taken) == 2 and torch.equal(taken[0][1], taken[1][1])


def test_func_grad_is_the_gradient() -> None:
    case = inputs()
    _, grad_x, grad_w = gradients(case, make("adasin").eval(), backend="cpu")

    def loss(x: Tensor, w: Tensor) -> Tensor:
        rows = margin_softmax_loss(
            x, w, case["labels"], torch.arange(53), make("adasin").eval(), target_slot=case["labels"], reduction="none",
            center_scale=inverse_norms(w), backend="cpu", one_slot_per_class=True,
        ).loss  # fmt: skip
        return (rows * case["upstream"]).sum()

    found = torch.func.grad(loss, argnums=(0, 1))(case["embeddings"], case["centers"])
    kept = case["labels"] >= 0
    assert torch.equal(found[0][kept], grad_x[kept]) and torch.equal(found[1], grad_w)


def test_vmap_and_jvp_of_a_compiled_sweep_are_refused_by_name() -> None:
    case = inputs()
    x = case["embeddings"].nan_to_num()

    def lse(x: Tensor) -> Tensor:
        return negative_logsumexp(x, case["centers"], case["labels"], torch.arange(53), backend="cpu").lse

    with pytest.raises(NotImplementedError, match="a transform must be torch.func.grad or vjp, got vmap; pass"):
        torch.func.vmap(lse)(x[None])
    with pytest.raises(NotImplementedError, match="a transform must be torch.func.grad or vjp, got jvp; pass"):
        torch.func.jvp(lse, (x,), (x,))


@pytest.mark.parametrize("name", ["quad", "lin", "const"])
def test_a_second_derivative_by_a_coefficient_alone_is_refused(name: str) -> None:
    case = testing.make_case((9, 40, 16), torch.float64, kind="trained", modulation="quadratic")
    values = {"threshold": case.threshold, "quad": case.quad, "lin": case.lin, "const": case.const}
    values[name] = values[name].clone().requires_grad_()
    lse = negative_logsumexp(
        case.embeddings, case.centers, case.labels, case.center_labels, scale=case.scale, backend="cpu", **values
    ).lse
    (gradient,) = torch.autograd.grad(lse[lse.isfinite()].sum(), values[name], create_graph=True)
    assert gradient.any()
    with pytest.raises(RuntimeError, match="must be used once, got a second differentiation"):
        torch.autograd.grad((gradient * values[name]).sum(), values[name])


def test_the_sink_gets_every_center_once_and_autograd_none(monkeypatch: pytest.MonkeyPatch) -> None:
    case = inputs()
    _, grad_x, expected = gradients(case, make("adasin"), backend="cpu")
    monkeypatch.setitem(_trained_centers.BLOCK_NUMBERS, "cpu", 7 * 19)
    for backend in BACKENDS:
        taken: list[tuple[int, Tensor]] = []
        _, got_x, got_w = gradients(
            case, make("adasin"), backend=backend, gradient_sink=lambda first, g, taken=taken: taken.append((first, g))
        )
        assert got_w is None
        assert [first for first, _ in taken] == (list(range(0, 53, 7)) if backend == "cpu" else [0])
        torch.testing.assert_close(torch.cat([g for _, g in taken]), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got_x, grad_x, rtol=1e-10, atol=1e-10)


def test_blocks_share_out_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = torch.ops.attfc.center_gradient
    monkeypatch.setattr(torch.ops.attfc, "center_gradient", lambda *a: seen.append(a[-1]) or real(*a))
    monkeypatch.setitem(_trained_centers.BLOCK_NUMBERS, "cpu", 7 * 19)
    gradients(inputs(), make("arcface"), backend="cpu", grad_tolerance=0.01, gradient_sink=lambda *_: None)
    assert len(seen) == 8 and sum(seen) == pytest.approx(0.01)


def test_float32_masters_under_autocast() -> None:
    case = inputs(rows=37, slots=203, dim=40, dtype=torch.float32)
    truth = gradients(inputs(rows=37, slots=203, dim=40), make("arcface"), backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        rows, grad_x, grad_w = gradients(case, make("arcface"), backend="cpu")
    assert rows.dtype == grad_x.dtype == grad_w.dtype == torch.float32
    # A bfloat16 cosine is off by up to 2^-9 for each of its operands, the logit 24 times that; so are probabilities.
    testing.assert_gradient_close(grad_w, truth[2], 24 * 2.0**-8)
    testing.assert_gradient_close(grad_x[case["labels"] >= 0], truth[1][case["labels"] >= 0], 24 * 2.0**-8)


def test_gradcheck() -> None:
    case = inputs(rows=5, slots=9, dim=4)
    labels = case["labels"]
    embeddings = torch.where((labels >= 0)[:, None], case["embeddings"], 0).requires_grad_()
    centers = testing.unit(case["centers"]).mul_(1.5).requires_grad_()

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return margin_softmax_loss(
            x, w, labels, torch.arange(9), make("curricularface", scale=4.0), target_slot=labels,
            center_scale=inverse_norms(w), reduction="none", backend="cpu",
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (embeddings, centers), atol=1e-6)


def test_second_derivatives_are_refused() -> None:
    case = inputs()
    w = case["centers"].requires_grad_()
    loss = margin_softmax_loss(
        case["embeddings"], w, case["labels"], torch.arange(53), make("arcface"), target_slot=case["labels"],
        center_scale=inverse_norms(w), backend="cpu",
    ).loss  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
    lse = negative_logsumexp(case["embeddings"].nan_to_num(), w, case["labels"], torch.arange(53), backend="cpu").lse
    (gradient,) = torch.autograd.grad(lse[lse.isfinite()].sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="must be used once"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_no_centers(backend: str) -> None:
    w = torch.randn(5, 4, requires_grad=True)
    x = torch.empty(0, 4, requires_grad=True)
    none = torch.empty(0, dtype=torch.int64)
    loss = margin_softmax_loss(
        x, w, none, torch.arange(5), make("adasin"), target_slot=none, center_scale=inverse_norms(w), backend=backend
    ).loss
    loss.backward()
    assert loss == 0 and w.grad.shape == w.shape and not w.grad.any() and x.grad.shape == (0, 4)
    nothing = torch.empty(0, 4, requires_grad=True)
    labels = torch.tensor([3, -1])
    x = F.normalize(torch.randn(2, 4)).requires_grad_()
    loss = margin_softmax_loss(
        x, nothing, labels, none, make("adasin"), target_slot=torch.full((2,), -1), center_scale=inverse_norms(nothing),
        backend=backend,
    ).loss  # fmt: skip
    loss.backward()
    assert loss == 0 and nothing.grad.shape == (0, 4) and not x.grad.any()


def test_inverse_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_NORM_BLOCK_NUMBERS", 15)  # three rows at a time, and one
    w = torch.randn(7, 5, dtype=torch.bfloat16)
    w[2] = 0
    found = inverse_norms(w)
    assert found.dtype == torch.float32 and found[2] == 0
    torch.testing.assert_close(found[3:], 1 / w[3:].float().norm(dim=1), rtol=2**-22, atol=0)
    assert inverse_norms(w.double()).dtype == torch.float64 and inverse_norms(w[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"inverse_norms: centers must be \[S, D\], got \[5\]"):
        inverse_norms(torch.ones(5))
    with pytest.raises(TypeError, match="inverse_norms: centers must be float32"):
        inverse_norms(torch.ones(5, 5, dtype=torch.int32))


def test_bad_input_is_named() -> None:
    case = inputs()
    good = dict(target_slot=case["labels"], backend="eager")
    for change, kind, message in (
        ({"target_slot": None}, ValueError, "target_cosine must be given, or else target_slot, got neither"),
        ({"target_cosine": torch.zeros(11)}, ValueError, "target_cosine must be given, or else target_slot, got both"),
        ({"target_slot": case["labels"].int()}, TypeError, "target_slot must be int64"),
        ({"target_slot": case["labels"][:3]}, ValueError, r"target_slot must be \[11\]"),
        ({"center_scale": torch.ones(53)}, TypeError, "center_scale must be torch.float64 beside torch.float64 cent"),
    ):
        with pytest.raises(kind, match=f"^margin_softmax_loss: {message}"):
            margin_softmax_loss(
                case["embeddings"], case["centers"], case["labels"], torch.arange(53), make("arcface"),
                **{**good, **change},
            )  # fmt: skip
