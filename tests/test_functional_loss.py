"""The margin softmax loss of every margin: against the explicit cross entropy, bad input, fake tensors, one graph."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from proofs import rest_in_proof
from torch._subclasses.fake_tensor import FakeTensorMode

from attfc_cuda import margins, testing
from attfc_cuda.functional import margin_softmax_loss
from attfc_cuda.ops import eager


def loss_inputs(rows=12, slots=40, dim=16, dtype=torch.float64, seed=0, ignored=0.2):
    """Raw embeddings (norms about 30, around AdaFace's and MagFace's range) and their own centres, beside a case."""
    case = testing.make_case((rows, slots, dim), dtype, kind="trained", seed=seed, ignored=ignored)
    generator = torch.Generator().manual_seed(seed)
    raw = case.embeddings.double() * (20 + 20 * torch.rand(rows, 1, generator=generator, dtype=torch.float64))
    own = testing.at_cosine(case.embeddings.double(), 0.7, generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return case, raw.to(wide), own.to(wide)


def loss_of(raw, own, case, margin, **options):
    norm = raw.norm(dim=1)
    unit = F.normalize(raw, dim=1)
    target_cosine = (unit * own).sum(dim=1)
    options = {"backend": "eager", "target_cosine": target_cosine, "norm": norm, **options}
    return margin_softmax_loss(unit, case.centers, case.labels, case.center_labels, margin, **options)


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("name", margins.NAMES)
def test_loss_is_the_explicit_cross_entropy(name, gradient):
    case, raw, own = loss_inputs()
    margin = margins.build(name, gradient=gradient)
    raw.requires_grad_()
    output = loss_of(raw, own, case, margin)
    # By hand, from the same (already moved) margin.
    norm = raw.norm(dim=1)
    unit = raw / norm[:, None]
    valid = case.labels >= 0
    cosine = (unit * own).sum(dim=1)
    modulation = margin.modulation(cosine, norm)
    sweep = {} if modulation is None else modulation._asdict()
    arguments = (unit, case.centers, case.labels, case.center_labels)
    hard_count = eager.negative_logsumexp(*arguments, **sweep)[1]
    target = margin.target(cosine, norm, hard_count)
    rows = eager.margin_softmax_cross_entropy(*arguments, target, **sweep)
    if margin.regularizer(cosine, norm) is not None:
        rows = rows + torch.where(valid, margin.regularizer(cosine, norm), 0)
    assert 0 < valid.sum() < len(valid)
    assert torch.allclose(output.rows, rows, rtol=1e-13, atol=1e-12)
    assert torch.allclose(output.loss, rows.sum() / valid.sum(), rtol=1e-13)
    assert torch.equal(output.negatives.hard_count, hard_count)
    assert torch.allclose(output.target_logit[valid], 64 * target[valid], rtol=1e-14)
    ours, textbook = (torch.autograd.grad(loss, raw)[0] for loss in (output.loss, rows.sum() / valid.sum()))
    assert textbook.any() and torch.allclose(ours, textbook, rtol=1e-10, atol=1e-12)
    assert not ours[~valid].any()


@pytest.mark.parametrize("name", ["adasin", "curricularface", "magface"])
def test_loss_gradcheck(name):
    case, raw, own = loss_inputs(rows=5, slots=12, dim=6)
    margin = margins.build(name, scale=8.0).eval()
    if name != "magface":
        margin.t.fill_(0.3)

    def loss(raw):
        # AdaSin's Phi is constant by choice, so the difference quotient must hold it constant too.
        return loss_of(raw, own, case, margin, reduction="none").loss

    if name == "adasin":
        margin.detach_difficulty = False
    assert torch.autograd.gradcheck(loss, raw.requires_grad_())


def test_reductions():
    case, raw, own = loss_inputs(ignored=0.5)
    margin = margins.ArcFace()
    rows = loss_of(raw, own, case, margin, reduction="none").loss
    count = (case.labels >= 0).sum()
    assert 0 < count < len(rows) and not rows[case.labels < 0].any() and (rows[case.labels >= 0] > 0).all()
    assert torch.allclose(loss_of(raw, own, case, margin, reduction="sum").loss, rows.sum())
    assert torch.allclose(loss_of(raw, own, case, margin).loss, rows.sum() / count)


@pytest.mark.parametrize("name", margins.NAMES)
def test_ignored_rows_may_hold_anything(name):
    case, raw, own = loss_inputs(dtype=torch.float32)
    dirty = raw.clone()
    dirty[case.labels < 0] = math.nan
    results = []
    for embeddings in (raw, dirty):
        margin = margins.build(name)
        results.append((loss_of(embeddings, own, case, margin).loss, margin.state_dict()))
    assert results[0][0].isfinite() and torch.equal(results[0][0], results[1][0])
    for key, value in results[0][1].items():
        assert torch.equal(value, results[1][1][key]), key


class LogNorm(margins.Margin):
    """A margin whose derivative at NaN is NaN, in every argument."""

    needs_norm = True

    def target_cosine(self, cosine, norm, hard_count):
        return cosine - 0.1 * norm.log() * cosine.exp()

    def regularizer(self, cosine, norm=None):
        return norm.log() * cosine.exp()


@pytest.mark.parametrize("name", [*margins.NAMES, "own"])
def test_ignored_rows_give_no_gradient_whatever_they_hold(name):
    case, raw, _ = loss_inputs(dtype=torch.float32)
    ignored = case.labels < 0
    target_cosine, norm = torch.linspace(-0.5, 0.9, 12), torch.linspace(20, 40, 12)
    for values in (raw, target_cosine, norm):
        values[ignored] = math.nan
    inputs = [F.normalize(raw, dim=1).requires_grad_(), target_cosine.requires_grad_(), norm.requires_grad_()]
    loss = margin_softmax_loss(
        inputs[0],
        case.centers,
        case.labels,
        case.center_labels,
        LogNorm() if name == "own" else margins.build(name),
        target_cosine=inputs[1],
        norm=inputs[2],
        backend="eager",
    ).loss
    for gradient in torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True):
        assert gradient.isfinite().all() and not gradient[ignored].any()


@pytest.mark.parametrize("name", margins.NAMES)
@pytest.mark.parametrize("nothing", ["empty batch", "empty container", "all ignored"])
def test_nothing_to_compare_costs_nothing(name, nothing):
    rows = 0 if nothing == "empty batch" else 4
    embeddings = testing.unit(torch.randn(rows, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    cosine = torch.full((rows,), 0.5, requires_grad=True)
    centers, center_labels = torch.full((6, 8), math.nan), torch.full((6,), -1)
    if nothing == "all ignored":
        centers, center_labels = testing.unit(torch.ones(6, 8)), torch.arange(6)
    labels = torch.full((rows,), -1) if nothing == "all ignored" else torch.arange(rows)
    margin = margins.build(name)
    before = {key: value.clone() for key, value in margin.state_dict().items()}
    output = margin_softmax_loss(
        embeddings,
        centers,
        labels,
        center_labels,
        margin,
        target_cosine=cosine,
        norm=torch.full((rows,), 30.0),
        backend="eager",
    )
    if not (name == "magface" and nothing == "empty container"):
        assert output.loss == 0 and output.rows.shape == (rows,)
    for gradient in torch.autograd.grad(output.loss, (embeddings, cosine)):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    if nothing != "empty container":
        for key, value in margin.state_dict().items():
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 64.0, 1000.0])
@pytest.mark.parametrize("name", margins.NAMES)
def test_targets_at_plus_and_minus_one(name, scale, dtype):
    case, _, _ = loss_inputs(rows=6, dtype=dtype, ignored=0.0)
    cosine = torch.tensor([1.0, -1.0, 1 - 2.0**-24, -1 + 2.0**-24, 1 + 1e-6, -1 - 1e-6], dtype=dtype)
    norm = torch.full((6,), 30.0, dtype=dtype, requires_grad=True)
    embeddings = case.embeddings.requires_grad_()
    output = margin_softmax_loss(
        embeddings,
        case.centers,
        case.labels,
        case.center_labels,
        margins.build(name, scale=scale),
        target_cosine=cosine.requires_grad_(),
        norm=norm,
        backend="eager",
    )
    assert output.rows.isfinite().all() and (output.rows[1] > output.rows[0])
    grads = torch.autograd.grad(output.loss, (embeddings, cosine, norm), allow_unused=True, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in grads)


def test_state_moves_once_in_training_and_not_in_eval():
    case, raw, own = loss_inputs()
    margin = margins.CurricularFace(momentum=0.9)
    loss_of(raw, own, case, margin)
    cosine = (F.normalize(raw, dim=1) * own).sum(dim=1)[case.labels >= 0]
    assert torch.allclose(margin.t.double(), 0.1 * cosine.mean(), rtol=1e-6)
    margin.eval()
    before = margin.t.clone()
    loss_of(raw, own, case, margin)
    assert torch.equal(margin.t, before)


def test_two_forwards_before_one_backward():
    """Gradient accumulation: the second forward moves t in place, and must not touch what the first one saved."""
    case, raw, own = loss_inputs()
    for name in ("adasin", "curricularface", "adaface"):
        margin = margins.build(name, momentum=0.5)
        raw.requires_grad_()
        alone = torch.autograd.grad(loss_of(raw, own, case, margins.build(name, momentum=0.5)).loss, raw)[0]
        first = loss_of(raw, own, case, margin).loss
        loss_of(raw, own, case, margin)
        assert torch.equal(torch.autograd.grad(first, raw)[0], alone)


def test_interclass_filter_sets_near_copies_to_zero():
    case, raw, own = loss_inputs()
    filtered = loss_of(raw, own, case, margins.ArcFace(interclass_filter=0.35), reduction="none")
    unit = F.normalize(raw, dim=1)
    cosine = eager.cosines(unit, case.centers, case.labels, case.center_labels)
    valid = (case.center_labels >= 0) & (case.center_labels != case.labels[:, None]) & (case.labels >= 0)[:, None]
    logits = torch.where(cosine > 0.35, 0.0, 64 * cosine).masked_fill(~valid, -math.inf)
    target = 64 * torch.cos((unit * own).sum(dim=1).acos() + 0.5)
    logits = torch.cat([target[:, None], logits], dim=1)
    rows = torch.where(case.labels >= 0, F.cross_entropy(logits, torch.zeros_like(case.labels), reduction="none"), 0)
    assert filtered.negatives.hard_count.any()
    assert torch.allclose(filtered.rows, rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("name", margins.NAMES)
def test_trimmed_rows_are_left_out_of_loss_gradient_and_state(name, backend):
    """As if their labels were negative; in eval mode all count."""
    case, raw, own = loss_inputs()
    own = F.normalize(own + 0.3 * torch.randn(own.shape, dtype=own.dtype, generator=torch.Generator().manual_seed(1)))
    cosine = (F.normalize(raw, dim=1) * own).sum(dim=1).masked_fill(case.labels < 0, math.inf)
    count = int((case.labels >= 0).sum() * 0.4)
    assert count >= 2
    left = dataclasses.replace(case, labels=case.labels.index_fill(0, cosine.argsort()[:count], -1))
    results = []
    for given, trim in ((case, 0.4), (left, 0.0)):
        margin, row = margins.build(name, trim=trim), raw.clone().requires_grad_()
        output = loss_of(row, own, given, margin, backend=backend)
        results.append((output.loss, output.rows, torch.autograd.grad(output.loss, row)[0], margin.state_dict()))
    (loss, rows, gradient, state), expected = results
    for found, wanted in zip((loss, rows, gradient), expected, strict=False):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-14)
    assert state.keys() == expected[3].keys() and all(torch.equal(state[key], expected[3][key]) for key in state)
    assert (rows != 0).sum() == (case.labels >= 0).sum() - count
    whole = [loss_of(raw, own, case, margins.build(name, trim=trim).eval()).loss for trim in (0.4, 0.0)]
    assert whole[0] == whole[1] and whole[0] > loss


def test_embeddings_are_cast_to_the_centers_dtype():
    case, raw, own = loss_inputs(dtype=torch.bfloat16)
    output = loss_of(raw.requires_grad_(), own, case, margins.AdaSin())
    assert raw.dtype == torch.float32 and output.loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(output.loss, raw)
    assert gradient.dtype == torch.float32 and gradient.any()


def test_autocast_rounds_the_sweep_and_nothing_else():
    case, raw, own = loss_inputs(dtype=torch.float32)
    raw.requires_grad_()
    wide = loss_of(raw, own, case, margins.AdaSin(), reduction="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss_of(raw, own, case, margins.AdaSin(), reduction="none")
    assert cast.rows.dtype == cast.target_logit.dtype == torch.float32
    easy = (wide.negatives.hard_count > 0) == (cast.negatives.hard_count > 0)
    assert easy.any() and torch.allclose(cast.target_logit[easy], wide.target_logit[easy], rtol=1e-6)
    # Unit rows of 16 dimensions in bfloat16: both factors off by 2^-9 of themselves at most.
    kept = wide.negatives.lse.isfinite()
    cosines = [output.negatives.max_cosine[kept] for output in (cast, wide)]
    assert not torch.equal(*cosines) and torch.allclose(*cosines, rtol=0, atol=2 * 2.0**-9)
    (gradient,) = torch.autograd.grad(cast.loss, raw, torch.ones_like(cast.loss))
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()


def test_bad_loss_arguments_are_named():
    case, raw, own = loss_inputs()
    for options, kind, message in [
        (dict(reduction="avg"), ValueError, r'reduction must be "mean", "sum" or "none", got \'avg\''),
        (dict(target_cosine=torch.zeros(12, 1)), ValueError, r"target_cosine must be \[12\].*got \[12, 1\]"),
        (dict(norm=torch.zeros(3)), ValueError, r"norm must be \[12\].*got \[3\]"),
        (dict(norm=None), ValueError, r"norm must be given for AdaFace, got None; pass the embeddings' norms"),
    ]:
        with pytest.raises(kind, match="^margin_softmax_loss: " + message):
            loss_of(raw, own, case, margins.AdaFace(), **options)
    with pytest.raises(TypeError, match="^margin_softmax_loss: margin must be a margins.Margin, got 'arcface'; see"):
        loss_of(raw, own, case, "arcface")
    case.labels = case.labels.int()
    with pytest.raises(TypeError, match="^margin_softmax_loss: labels must be int64"):
        loss_of(raw, own, case, margins.ArcFace())


@pytest.mark.parametrize("name", margins.NAMES)
def test_fake_tensors_need_no_value(name):
    with FakeTensorMode():
        margin = margins.build(name)
        embeddings = torch.randn(6, 16, requires_grad=True)
        cosine = torch.rand(6, requires_grad=True)
        output = margin_softmax_loss(
            embeddings,
            torch.randn(20, 16),
            torch.arange(6),
            torch.arange(20),
            margin,
            target_cosine=cosine,
            norm=torch.rand(6),
            backend="eager",
        )
        output.loss.backward()
    assert output.loss.shape == () and embeddings.grad.shape == (6, 16) and cosine.grad.shape == (6,)


@pytest.mark.parametrize("name", rest_in_proof(["adasin", "curricularface", "adaface", "magface", "arcface"]))
def test_compiles_into_one_graph(name):
    case, raw, own = loss_inputs(dtype=torch.float32)
    results = []
    for wrap in (
        lambda function: function,
        lambda function: torch.compile(function, backend="aot_eager", fullgraph=True),
    ):
        margin = margins.build(name)
        embeddings = raw.clone().requires_grad_()

        def step(embeddings, margin=margin):
            return loss_of(embeddings, own, case, margin).loss

        loss = wrap(step)(embeddings)
        loss.backward()
        results.append((loss.detach(), embeddings.grad, margin.state_dict()))
    torch._dynamo.reset()
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-7)
    for key, value in results[0][2].items():
        assert torch.allclose(value, results[1][2][key], rtol=1e-6), key


@pytest.mark.parametrize("name", margins.NAMES)
def test_torch_func_grad(name):
    case, raw, own = loss_inputs()
    margin = margins.build(name).eval()
    found = torch.func.grad(lambda embeddings: loss_of(embeddings, own, case, margin).loss)(raw)
    (expected,) = torch.autograd.grad(loss_of(raw.requires_grad_(), own, case, margin).loss, raw)
    assert torch.allclose(found, expected, rtol=1e-12)
