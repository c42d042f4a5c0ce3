"""The fused step against one operator at a time: the same numbers, the same state, in a handful of launches."""

from __future__ import annotations

import copy

import pytest
import torch
from attfc_cases import CAPACITY, CLASSES, DIM, batches, filled, state_of, step
from torch.utils._python_dispatch import TorchDispatchMode

from attfc_cuda.heads import AttFC, fused_step
from attfc_cuda.heads.attfc import ENQUEUE
from attfc_cuda.heads.container import POLICIES
from attfc_cuda.margins import AdaSin, ArcFace

# Of each operator on a GPU (csrc/README.md); views launch nothing.
LAUNCHES = {
    "attfc::head_rows": 1, "attfc::enqueue_fifo": 2, "attfc::enqueue_refresh": 5, "attfc::adasin_row_values": 1,
    "attfc::negative_logsumexp": 2, "attfc::adasin_loss": 1, "attfc::row_gradients": 1, "attfc::step_statistics": 1,
}  # fmt: skip
CASES = {
    "defaults": {},
    "class_code": {"class_code": 1.0},
    "class_code_without_classes": {"class_code": 0.5, "policy": "fifo", "num_classes": None},
    "center_memory": {"center_memory": 0.3, "policy": "refresh"},
    "both": {"center_memory": 0.7, "policy": "refresh", "class_code": 2.0},
    "temperature": {"temperature": 0.05},
    "sine_of_the_angle": {"margin": lambda: AdaSin(difficulty="angle", m=0.3, h=1.1, momentum=0.4, scale=20)},
    "straight_through": {"margin": lambda: AdaSin(gradient="straight_through")},
    "unchecked": {"check_labels": False},
}


def pair(enqueue, dtype, **options):
    options = {"enqueue": enqueue, "num_classes": CLASSES, "dtype": dtype} | options
    margin = options.pop("margin", AdaSin)
    return [
        AttFC(DIM, CAPACITY, margin=margin(), preset="published", **{"enqueue": "before", **options}) for _ in range(2)
    ]


def one_operator_at_a_time(monkeypatch):
    patched = monkeypatch.context()
    context = patched.__enter__()
    context.setattr(fused_step, "why_not", lambda *_: "a test asks for it")
    return patched


def run_both(heads, data, monkeypatch, **extra):
    fused = step(heads[0], *data, **extra)
    patched = one_operator_at_a_time(monkeypatch)
    try:
        return fused, step(heads[1], *data, **extra)
    finally:
        patched.__exit__(None, None, None)


def assert_alike(heads, fused, plain, dtype, where):
    # t is float32 in both: 64 * 2^-24 of a cosine in a logit. Else only the order of sums of D = 8 numbers differs, in
    # the logits of both sides, of size 64, and so, relatively, in a probability. A 16-bit container rounds unit rows to
    # its own format, where a difference in the last bit of float32 can become one of 2^-8.
    tolerance = {torch.float64: 64 * 2**-24, torch.float32: 2 * 64 * 8 * 2**-24, torch.bfloat16: 64 * 2**-8}[dtype]
    loss, gradient = fused
    assert abs(loss - plain[0]) <= tolerance * plain[0].abs().clamp_min(1), where
    largest = plain[1].abs().max().clamp_min(1e-300)
    assert (gradient - plain[1]).abs().max() <= tolerance * largest, where
    a, b = heads[0].state_dict(), heads[1].state_dict()
    assert a.keys() == b.keys()
    for name in a:
        if a[name].is_floating_point():
            assert (a[name].double() - b[name].double()).abs().nan_to_num().max() <= tolerance, (where, name)
        else:
            assert torch.equal(a[name], b[name]), (where, name)
    for name, value in heads[0].stats.items():
        assert value.is_floating_point() == heads[1].stats[name].is_floating_point(), name
        assert abs(float(value) - float(heads[1].stats[name])) <= tolerance * max(1, abs(float(value))), (where, name)


@pytest.mark.parametrize(
    "policy, case",
    [(policy, case) for policy in POLICIES for case in CASES if CASES[case].get("policy", policy) == policy],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("enqueue", ENQUEUE)
def test_the_same_numbers(policy, enqueue, dtype, case, monkeypatch):
    options = CASES[case]
    heads = pair(enqueue, dtype, **(options | {"policy": policy}))
    assert "fused_step=True" in repr(heads[0])
    for number, (embeddings, labels, gallery) in enumerate(
        batches((5, 3, 4, 6, 1, 5, 4), dtype=dtype, r=1 + number_of(case))
    ):
        labels[0] = -1
        embeddings[0] = float("nan")
        gallery[0] = float("nan")
        if number == 3:
            labels[1] = labels[2]  # a class twice in a batch
            embeddings[3] = 0  # no direction
            gallery[4] = 0
        if case == "unchecked" and len(labels) > 1:
            labels[1] = CLASSES + 2
        extra = {}
        if number % 2:
            extra_labels = torch.tensor([1, -3, 7])
            extra_centers = torch.randn(3, DIM, dtype=dtype)
            extra_centers[1] = float("nan")
            extra = {"extra_centers": extra_centers, "extra_labels": extra_labels}
        assert_alike(
            heads, *run_both(heads, (embeddings, labels, gallery), monkeypatch, **extra), dtype, (number, case)
        )
    assert (heads[0].container.labels >= 0).any()


def number_of(case):
    return list(CASES).index(case) % 3


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16),
                                    (torch.float16, torch.float32), (torch.bfloat16, torch.float16)])  # fmt: skip
def test_every_mix_of_formats(dtypes, monkeypatch):
    """Values rounded to 16 bits on their way in and out; a container in bfloat16 is as exact as its format."""
    embedding_dtype, container_dtype = dtypes
    heads = pair("before", container_dtype, policy="refresh", grad_tolerance=0.0)
    for data in batches((5, 4, 5), dtype=torch.float64):
        embeddings, labels, gallery = (x.to(embedding_dtype) if x.is_floating_point() else x for x in data)
        fused, plain = run_both(heads, (embeddings, labels, gallery), monkeypatch)
        assert fused[1].dtype == embedding_dtype
        assert_alike(heads, fused, plain, torch.bfloat16, dtypes)


def test_a_row_that_is_not_finite_shows_in_the_loss_alone(monkeypatch):
    head = filled(policy="refresh")
    before = state_of(head)
    embeddings, labels, gallery = next(batches(rows=[4], seed=3))
    embeddings[2, 1] = float("nan")
    loss, _ = step(head, embeddings, labels, gallery)
    assert loss.isnan()
    assert all(x.isfinite().all() for x in head.container.state_dict().values() if x.is_floating_point())
    assert head.margin.t.isfinite() and head.margin.t != before["margin.t"]
    assert labels[2] not in head.container.labels or before["container.labels"].eq(labels[2]).any()


class Counting(TorchDispatchMode):
    """Launches of a GPU: those of our operators, and one for each of torch's that is not a view."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name().split(".")[0]
        output = function(*arguments, **(keywords or {}))
        if name in LAUNCHES or not (function.is_view or name.endswith("empty")):
            self.seen.append(name)
        return output

    @property
    def launches(self):
        return sum(LAUNCHES.get(name, 1) for name in self.seen)


@pytest.mark.parametrize("policy, most", [("fifo", 9), ("refresh", 12)])
@pytest.mark.parametrize("enqueue", ENQUEUE)
@pytest.mark.parametrize("options", [{}, {"class_code": 1.0}])
def test_launches_of_a_step(policy, most, enqueue, options):
    head = filled(policy=policy, enqueue=enqueue, check_labels=False, **options)
    embeddings, labels, gallery = next(batches(rows=[5], seed=2))
    embeddings.requires_grad_()
    upstream = torch.ones(())
    with Counting() as counting:
        head(embeddings, labels, gallery).backward(upstream)
    assert counting.launches <= most, counting.seen
    assert {"attfc::head_rows", "attfc::row_gradients", "attfc::step_statistics"} <= set(counting.seen)


def test_eval_mode_moves_nothing_and_needs_no_gradient():
    head = filled(policy="refresh", class_code=1.0).eval()
    before = state_of(head)
    embeddings, labels, gallery = next(batches(rows=[5], seed=2))
    with torch.no_grad():
        alone = head(embeddings, labels, gallery)
    loss, gradient = step(head, embeddings, labels, gallery)
    assert torch.equal(alone, loss) and gradient.abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_the_gradient_is_scaled_by_the_upstream_and_used_once():
    embeddings, labels, gallery = next(batches(rows=[5], seed=2))
    heads = [filled(policy="refresh") for _ in range(2)]
    x = embeddings.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(heads[0](x, labels, gallery) * 3, x, create_graph=True)
    expected = 3 * step(heads[1], embeddings, labels, gallery)[1]
    assert (gradient - expected).abs().max() <= 8 * 2**-24 * expected.abs().max()  # three products and a difference
    with pytest.raises(RuntimeError, match="used once"):
        gradient.square().sum().backward()


FALLBACKS = {
    "ArcFace": {"margin": ArcFace},
    "detach_difficulty": {"margin": lambda: AdaSin(detach_difficulty=False)},
    "positive_penalty": {"margin": lambda: AdaSin(positive_penalty=False)},
    "negative_penalty": {"margin": lambda: AdaSin(negative_penalty=False)},
    "curriculum": {"margin": lambda: AdaSin(curriculum=False)},
    "trim": {"margin": lambda: AdaSin(trim=0.3)},
}


class Counted(AdaSin):
    """A margin of a user's own, which may change anything."""


@pytest.mark.parametrize("name", [*FALLBACKS, "Counted"])
def test_what_falls_back_says_so(name):
    margin = FALLBACKS[name]["margin"] if name in FALLBACKS else Counted
    head = AttFC(DIM, CAPACITY, margin=margin(), num_classes=CLASSES, policy="fifo", class_code=0.0)
    assert "fused_step=False" in repr(head) and name in repr(head)
    with Counting() as counting:
        step(head, *next(batches(rows=[5])))
    assert "attfc::head_rows" not in counting.seen and "attfc::negative_logsumexp" in counting.seen


def test_the_eager_backend_and_mixed_precisions_fall_back():
    for options, dtype in (({"backend": "eager"}, torch.float32), ({"dtype": torch.float64}, torch.float32)):
        head = AttFC(DIM, CAPACITY, num_classes=CLASSES, preset="published", **{"enqueue": "before", **options})
        with Counting() as counting:
            step(head, *next(batches(rows=[5], dtype=dtype)))
        assert "attfc::head_rows" not in counting.seen


def operands(dtype, policy="refresh"):
    head = filled(policy=policy, class_code=1.0, dtype=dtype)
    embeddings, labels, gallery = next(batches(rows=[5], seed=2, dtype=dtype))
    container = head.container
    options = fused_step.Options(1.0, 1.0, 0.0, head.code_of_class, 0.0, "cpu")
    extra = gallery[:2, 0].contiguous(), torch.tensor([4, -1])
    return head, container, options, (embeddings, labels, gallery, *extra)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    head, container, options, inputs = operands(dtype)
    real = torch.promote_types(dtype, torch.float32)
    check, ops = torch.library.opcheck, torch.ops.attfc
    check(ops.head_rows.default, (*inputs, head.code_of_class, None, None, None, dtype, CLASSES, 1.0, 1.0, 0.0))
    stored = (container.centers, container.labels, container.slot_of_class)
    check(ops.head_rows.default, (*inputs, None, *stored, dtype, CLASSES, 1.0, 0.0, 0.5))
    rows = fused_step.head_rows(*inputs, container, options)
    buffers = (container.centers, container.labels, container.clock)
    check(ops.enqueue_fifo.default, (*buffers, rows.new_centers, rows.new_labels))
    tables = (container.stamps, container.slot_of_class)
    check(ops.enqueue_refresh.default, (*buffers, *tables, rows.new_centers, rows.new_labels))
    settings = (0.5, 1.5, 0.99, 64.0, True, True)
    check(ops.adasin_row_values.default, (rows.labels, rows.cosine, torch.tensor(0.1), *settings))
    values = ops.adasin_row_values(rows.labels, rows.cosine, torch.tensor(0.1), *settings)
    lse = torch.randn(5, dtype=real)
    hard = torch.tensor([0, 1, 2, 0, 3])
    embeddings = inputs[0].clone().requires_grad_()
    unit_grad = torch.randn(5, DIM, dtype=real)
    given = (unit_grad, rows.inverse_norm, rows.new_centers[2:], rows.labels, rows.cosine, values, lse, hard)
    check(ops.adasin_loss.default, (embeddings, *given, 0.5, 64.0, False))
    upstream, weight = torch.tensor(2.0, dtype=real), torch.randn(5, dtype=real)
    gradients = (upstream, inputs[0], unit_grad, rows.inverse_norm, rows.new_centers[2:], rows.labels, weight, weight)
    check(ops.row_gradients.default, gradients)
    numbers = (rows.labels, rows.cosine, hard, rows.cosine, rows.cosine.abs(), container.labels, inputs[4])
    check(ops.step_statistics.default, (upstream, *numbers, torch.tensor(0.1)))
    check(ops.step_statistics.default, (upstream, *numbers, None))


def test_the_operators_refuse_what_they_would_misread():
    head, container, options, inputs = operands(torch.float32)
    embeddings, labels, gallery, extra, extra_labels = inputs
    rest = (None, None, None, None, torch.float32, CLASSES, 1.0, 0.0, 0.0)
    bad = {
        "labels must have shape": (embeddings, labels[:3], gallery, extra, extra_labels),
        "labels must be Long": (embeddings, labels.int(), gallery, extra, extra_labels),
        "gallery must have shape": (embeddings, labels, gallery[:, :, :5], extra, extra_labels),
        "extra_centers must have shape": (embeddings, labels, gallery, extra[:1], extra_labels),
        "float64 beside": (embeddings, labels, gallery.double(), extra, extra_labels),
    }
    for words, arguments in bad.items():
        with pytest.raises((ValueError, TypeError), match=words):
            torch.ops.attfc.head_rows(*arguments, *rest)
    with pytest.raises(ValueError, match="stored_centers, slot_labels and slot_of_class must be given"):
        torch.ops.attfc.head_rows(*inputs, *rest[:-1], 0.5)
    rows = fused_step.head_rows(*inputs, container, options)
    narrow = torch.zeros(4, 2 * DIM)[:, :DIM]
    with pytest.raises(ValueError, match="centers must be contiguous"):
        torch.ops.attfc.enqueue_fifo(
            narrow, container.labels[:4], container.clock, rows.new_centers[:2], rows.new_labels[:2]
        )
    with pytest.raises(ValueError, match="at most 4 rows"):
        torch.ops.attfc.enqueue_fifo(
            narrow.contiguous(), container.labels[:4], container.clock, rows.new_centers, rows.new_labels
        )


def test_no_thread_count_changes_a_bit():
    """Rows are cut into tasks by their number alone."""
    results = []
    data = list(batches((9, 9, 9), seed=4))
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            head = AttFC(DIM, CAPACITY, num_classes=CLASSES, policy="refresh", preset="published", enqueue="before")
            results.append(([step(head, *batch) for batch in data], copy.deepcopy(head.state_dict())))
        finally:
            torch.set_num_threads(before)
    for steps, state in results[1:]:
        assert all(
            torch.equal(a, b) for x, y in zip(steps, results[0][0], strict=True) for a, b in zip(x, y, strict=True)
        )
        assert all(torch.equal(state[name], value) for name, value in results[0][1].items())
