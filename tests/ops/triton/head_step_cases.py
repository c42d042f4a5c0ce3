"""The Triton kernels of a head step in Triton's interpreter: each operator against float64 or the CPU's, whole steps
against those of the CPU.

Run by test_interpreter.py, as sweep_cases.py is.
"""

from __future__ import annotations

import pytest
import torch
from head_step_setup import UNIT, cosines, launches, order, run  # noqa: F401 (fixtures)
from interpreter_setup import BFLOAT16, FLOAT16, FLOAT32

from attfc_cuda.heads import fused_step
from attfc_cuda.heads.container import POLICIES, DynamicClassContainer
from attfc_cuda.margins.angles import angle, psi

from attfc_cases import CLASSES, DIM, batches, step  # isort: skip
from test_fused_step import CASES, LAUNCHES, assert_alike, number_of, pair  # isort: skip

MIXES = [(FLOAT32, FLOAT32), (FLOAT32, BFLOAT16), (BFLOAT16, BFLOAT16), (FLOAT16, FLOAT32), (BFLOAT16, FLOAT16)]
ROUNDING = {FLOAT32: UNIT, BFLOAT16: 2.0**-8, FLOAT16: 2.0**-11}
# Options of head_rows: temperature, class_code, center_memory, whether classes have codes of other numbers.
OPTIONS = [(1.0, 0.0, 0.0, False), (0.05, 0.0, 0.0, False), (1.0, 1.0, 0.0, False), (1.0, 0.5, 0.3, True)]


@pytest.fixture
def by_triton(monkeypatch):
    """Steps of heads by Triton from `by_triton()` on, by the CPU's operators before."""
    return lambda: monkeypatch.setattr(fused_step, "backend_for", lambda *_: "triton")


def rows_of(dtype, container_dtype, rows, dim, images=3, slots=6):
    torch.manual_seed(rows * dim)
    embeddings = torch.randn(rows, dim) * (0.5 + 4 * torch.rand(rows, 1))
    gallery = embeddings[:, None] + torch.randn(rows, images, dim)
    labels = torch.randint(0, CLASSES, (rows,))
    if rows > 3:
        labels[:2] = torch.tensor([-1, CLASSES + 1])
        embeddings[:2], gallery[:2] = float("nan"), float("inf")
        embeddings[2], gallery[3] = 0, 0  # no direction
    extra, extra_labels = torch.randn(3, dim), torch.tensor([4, -3, 7])
    extra[1] = float("nan")
    stored = torch.nn.functional.normalize(torch.randn(slots, dim)).to(container_dtype)
    slot_labels = torch.randperm(CLASSES)[:slots]
    slot_labels[0] = -1
    slot_of_class = torch.randint(-1, slots, (CLASSES + 1,), dtype=torch.int32)  # entries of evicted classes
    slot_of_class[slot_labels.clamp_min(0)] = torch.arange(slots, dtype=torch.int32)
    labels[-1] = slot_labels[-1]
    wide = torch.empty(rows, dim + 5).to(dtype)[:, :dim].copy_(embeddings)  # rows with a stride
    return (wide, labels, gallery.to(dtype), extra.to(dtype), extra_labels), (stored, slot_labels, slot_of_class)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "container_dtype"), MIXES, ids=str)
def test_head_rows(dtype, container_dtype, options, launches):  # noqa: F811
    rows, dim = 7, 19
    inputs, stored = rows_of(dtype, container_dtype, rows, dim)
    temperature, class_code, center_memory, has_codes = options
    codes = torch.randperm(CLASSES) + 2**40 if has_codes else None
    memory = stored if center_memory else (None, None, None)
    found = run("head_rows", "triton", *inputs, codes, *memory, container_dtype, CLASSES, *options[:3])
    assert launches == ["head_rows_kernel"]
    doubles = [x.double() if x is not None and x.is_floating_point() else x for x in (*inputs, codes, *memory)]
    exact = run("head_rows", "cpu", *doubles, torch.float64, CLASSES, *options[:3])
    assert [x.dtype for x in found] == [container_dtype, FLOAT32, FLOAT32, torch.int64, FLOAT32, torch.int64]
    assert torch.equal(found[3], exact[3]) and torch.equal(found[5], exact[5])
    # A unit row: half of its sum's rounding, and three more. A logit has two sums over D and two such lengths, and
    # attention weighs by its exponential; a mean of images that half cancel doubles that, as do code and memory.
    of_unit = (dim / 2 + 3) * UNIT
    of_center = 2 * (2 * dim + 8) * UNIT / temperature + 3 * (dim + 6) * UNIT
    tolerances = [of_unit + ROUNDING[container_dtype], 0, of_unit + of_center + dim * UNIT, 0, 4 * of_center, 0]
    for index in (0, 2, 4):
        assert (found[index].double() - exact[index]).abs().max() <= tolerances[index], index
    assert ((found[1] - exact[1]).abs() <= of_unit * exact[1]).all()
    assert (found[0][:2] == 0).all() and (found[4][3:5] == 0).all()


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_row_gradients(dtype, launches):  # noqa: F811
    rows, dim = 6, 21
    (embeddings, labels, *_), _ = rows_of(dtype, FLOAT32, rows, dim)
    labels[1] = 3
    embeddings[1] = 1
    inverse = 1 / embeddings.float().norm(dim=1)
    inverse[2] = 0  # too short
    unit_grad, centers = torch.randn(rows, dim), torch.randn(rows, dim)
    unit_grad[0] = float("nan")
    weights = torch.randn(2, rows)
    arguments = [torch.tensor(3.0), embeddings, unit_grad, inverse, centers, labels, *weights]
    (found,) = run("row_gradients", "triton", *arguments)
    assert launches == ["row_gradients_kernel"]
    (exact,) = run("row_gradients", "cpu", *(x.double() if x.is_floating_point() else x for x in arguments))
    assert found.dtype == dtype and found.isfinite().all() and (found[[0, 2]] == 0).all()
    parts = weights[0].abs() * unit_grad.norm(dim=1) + weights[1].abs() * centers.norm(dim=1)
    parts = (3 * parts * inverse).nan_to_num()[:, None]  # the ignored row holds NaN
    # The sum along the row, its factors and the difference; then the format's own rounding.
    assert ((found.double() - exact).abs() <= (dim + 8) * UNIT * parts + ROUNDING[dtype] * exact.abs()).all()


def psi_bound(value, shift):
    """(8 + |psi|) u + 3 u |a|: head_step_adasin_kernel.py."""
    return (8 + value.abs() + 3 * abs(shift)) * UNIT


@pytest.mark.parametrize("move_t", [False, True])
@pytest.mark.parametrize("half_angle", [False, True])
@pytest.mark.parametrize("margin", [0.5, 1.2, 4.0])  # the last beyond a fold for every angle
def test_adasin_row_values(margin, half_angle, move_t, launches):  # noqa: F811
    cosine, t, difficulty, scale = cosines(), torch.tensor(0.25), 1.5, 64.0
    labels = torch.arange(len(cosine))
    labels[7] = -1
    cosine[[7, 9]] = torch.tensor([0.5, float("nan")])
    expected_t = t.clone()
    settings = margin, difficulty, 0.4, scale, half_angle, move_t
    (values,) = run("adasin_row_values", "triton", labels, cosine, t, *settings)
    assert launches == ["adasin_row_values_kernel"]
    run("adasin_row_values", "cpu", labels, cosine, expected_t, *settings)
    assert abs(t - expected_t) <= len(cosine) * UNIT and (t != 0.25) == move_t
    theta = angle(torch.where(labels < 0, 0, cosine.double()))
    exact = psi(theta + margin)
    phi = t.double() + difficulty * torch.sin(theta / 2 if half_angle else theta)
    assert values[:, 9].isnan().tolist() == [True, True, False, True, False]
    rest = torch.arange(len(cosine)) != 9
    bound = psi_bound(exact, margin)
    target, threshold, quad, lin, const = values.double()
    assert ((threshold - exact).abs() <= bound)[rest].all()
    assert ((target - scale * exact).abs() <= scale * (bound + UNIT * exact.abs()))[rest].all()
    # D: half of the rounding of 1 - c (of each factor and the product), the root's, h and the product; then the sum.
    assert ((lin - phi).abs() <= (4.5 * difficulty + phi.abs()) * UNIT)[rest].all()
    assert (quad == 0).all() and (const == 0).all()


@pytest.mark.parametrize("straight_through", [False, True])
def test_adasin_loss(straight_through, launches):  # noqa: F811
    cosine, margin, scale = cosines(), 0.6, 64.0
    rows = len(cosine)
    torch.manual_seed(0)
    labels = torch.arange(rows)
    labels[5] = -1
    cosine[5] = float("nan")
    hard_count = torch.arange(rows) % 3
    values = torch.zeros(5, rows)
    values[3] = torch.linspace(-1, 5, rows)
    values[3, 1:4] = 12.0  # several folds beyond
    penalty = torch.where((hard_count > 0) & (labels >= 0), values[3].double(), 1)
    # Excesses from far below 0 to far above: a loss of 1e-30 keeps its digits.
    theta = angle(torch.where(labels < 0, 0, cosine.double())).requires_grad_()
    bent = psi(theta + margin * penalty)
    lse = (scale * bent.detach() + torch.linspace(-70, 40, rows)).float()
    lse[8] = float("-inf")  # no negatives
    empty = torch.empty(0)
    found = run("adasin_loss", "triton", *[empty] * 4, labels, cosine, values, lse, hard_count, margin, scale,
                straight_through)  # fmt: skip
    assert launches == ["adasin_loss_kernel"]
    loss, row_loss, target, lse_weight, cosine_weight = (x.double() for x in found)
    live = labels >= 0
    share = 1 / int(live.sum())
    # The cosine of an ignored row is NaN to angle(): its slope is asked for elsewhere alone.
    by_cosine = torch.where(live, cosine.double(), 0).requires_grad_()
    (of_angle,) = torch.autograd.grad(angle(by_cosine).sum(), by_cosine)
    (of_psi,) = torch.autograd.grad(bent.sum(), theta)
    slope = torch.ones(rows) if straight_through else of_psi * of_angle
    bent = bent.detach()
    of_target = scale * (psi_bound(bent, 0) + 3 * UNIT * (margin * penalty).abs() + UNIT * bent.abs())
    assert ((target - scale * bent).abs() <= of_target).all()
    # From what the kernel took for the target: softplus by itself, relatively.
    excess = torch.where(live, lse.double() - target, -torch.inf)
    of_excess = torch.where(excess.isinf(), 0, UNIT * excess.abs())
    exact, weight = torch.nn.functional.softplus(excess, threshold=200), excess.sigmoid()
    small = exact < 1e-36  # near the end of float32's range
    assert ((row_loss - exact).abs() <= (of_excess + 8 * UNIT) * exact + 1e-42).all() and small.any()
    assert ((lse_weight - share * weight).abs() <= share * (of_excess + 8 * UNIT) * weight + 1e-42).all()
    assert abs(loss - (exact * share).sum()) <= (rows + 50) * UNIT * (exact * share).sum()
    of_slope = 0 if straight_through else (psi_bound(bent, 0) + 3 * UNIT * (margin * penalty).abs()) * of_angle.abs()
    of_slope = of_slope + 8 * UNIT * slope.abs()
    expected = torch.where(live, -share * weight * scale * slope, 0)
    allowed = share * scale * weight * (of_slope + (of_excess + 8 * UNIT) * slope.abs()) + 1e-40
    assert ((cosine_weight - expected).abs() <= allowed).all()
    assert row_loss[5] == lse_weight[5] == cosine_weight[5] == 0


def test_a_loss_without_rows_is_0():
    none = torch.empty(0)
    whole = none.long()
    found = run("adasin_loss", "triton", *[none] * 4, whole, none, torch.empty(5, 0), none, whole, 0.5, 64.0, True)
    assert found[0] == 0


@pytest.mark.parametrize("has_t", [False, True])
@pytest.mark.parametrize(("rows", "slots"), [(5, 0), (0, 7), (19, 700), (300, 40)])
def test_step_statistics(rows, slots, has_t, launches, order):  # noqa: F811
    torch.manual_seed(rows + slots)
    labels, slot_labels = torch.randint(-1, 9, (rows,)), torch.randint(-1, 9, (slots,))
    cosine, largest, omitted = torch.rand(3, rows)
    for each in (cosine, largest, omitted):
        each[labels < 0] = float("nan")
    hard, extra = torch.randint(0, 2**33, (rows,)), torch.tensor([3, -1, 4])
    arguments = [torch.tensor(2.5), labels, cosine, hard, largest, omitted, slot_labels, extra]
    t = torch.tensor(0.3) if has_t else None
    means, counts = run("step_statistics", "triton", *arguments, t)
    assert launches == ["step_statistics_kernel"]
    exact, exact_counts = run("step_statistics", "cpu", *arguments, t)
    assert torch.equal(counts, exact_counts)
    assert ((means - exact).abs() <= (rows + 4) * UNIT * exact.abs()).all()
    again, _ = run("step_statistics", "triton", *arguments, t)
    assert torch.equal(means, again)


def enqueue_both(capacity, classes, policy, dtype, steps):
    torch.manual_seed(capacity)
    containers = [DynamicClassContainer(capacity, 5, classes, policy, dtype) for _ in range(2)]
    for each in containers:
        each.clock.fill_(1 << 41)  # a run of years: the stamps' distances are as skewed as can be
    for number in range(steps):
        rows = int(torch.randint(0, min(capacity, 70) + 1, ()))
        labels = torch.randint(-2, classes if number % 3 else 4, (rows,))
        centers = torch.randn(rows, 5)
        for container, backend in zip(containers, ("cpu", "triton"), strict=True):
            container.enqueue_rows(centers, labels, backend)
        for name, buffer in containers[0].named_buffers():
            assert torch.equal(buffer, dict(containers[1].named_buffers())[name]), (number, name)
    assert (containers[1].labels >= 0).any()


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("capacity", "classes"), [(7, 9), (40, 9), (300, 5000)])
def test_enqueue_leaves_the_same_bits(capacity, classes, policy, dtype):
    enqueue_both(capacity, classes, policy, dtype, 6)


def test_refresh_over_several_programs(monkeypatch, order):  # noqa: F811
    """More slots than one program scans, and more waiting rows than one ranks at a time."""
    from attfc_cuda.ops.triton import head_step

    monkeypatch.setitem(head_step.REFRESH_PLAN, "BLOCK_SLOTS", 16)
    monkeypatch.setitem(head_step.STAMP_HISTOGRAM, "BLOCK_SLOTS", 16)
    monkeypatch.setitem(head_step.COLLECT_OLDEST, "BLOCK_SLOTS", 16)
    monkeypatch.setitem(head_step.STAMP_HISTOGRAM, "BLOCK_ROWS", 16)
    monkeypatch.setitem(head_step.HAND_OUT, "BLOCK", 16)
    monkeypatch.setitem(head_step.HAND_OUT, "BLOCK_OTHERS", 16)
    enqueue_both(100, 200, "refresh", FLOAT32, 3)


@pytest.mark.parametrize("case", CASES)
def test_whole_steps(case, monkeypatch, by_triton):
    """Loss, gradient, state and statistics of steps, by Triton and by the CPU's operators."""
    options = {"policy": "refresh" if number_of(case) else "fifo"} | CASES[case]
    heads = pair("after" if number_of(case) == 2 else "before", FLOAT32, **options)
    for number, (embeddings, labels, gallery) in enumerate(batches((5, 4, 6), r=1 + number_of(case))):
        labels[0] = -1
        embeddings[0], gallery[0] = float("nan"), float("nan")
        if number == 2:
            labels[1] = labels[2]  # a class twice in a batch
            embeddings[3], gallery[4] = 0, 0  # no direction
        if case == "unchecked":
            labels[1] = CLASSES + 2
        extra = {}
        if number:
            extra = {"extra_centers": torch.randn(3, DIM), "extra_labels": torch.tensor([1, -3, 7])}
        expected = step(heads[1], embeddings, labels, gallery, **extra)
        with monkeypatch.context():
            by_triton()
            found = step(heads[0], embeddings, labels, gallery, **extra)
        monkeypatch.undo()
        assert_alike(heads, found, expected, FLOAT32, (number, case))


@pytest.mark.parametrize("policy", POLICIES)
def test_launches_of_a_step(policy, launches, by_triton):  # noqa: F811
    """Each operator has as many as on the CUDA side, where the sweep's two are added."""
    (head, _) = pair("before", FLOAT32, policy=policy)
    by_triton()
    step(head, *next(batches((5,))))
    sweep = LAUNCHES["attfc::negative_logsumexp"]
    assert len(launches) + sweep == {"fifo": 9, "refresh": 12}[policy], launches


@pytest.mark.parametrize("dtype", [pytest.param(FLOAT32, marks=pytest.mark.proof), BFLOAT16], ids=str)
def test_opcheck(dtype):
    """Schemas, fake kernels and autograd of the operators by Triton."""
    inputs, stored = rows_of(dtype, dtype, 5, DIM)
    check, ops = torch.library.opcheck, torch.ops.attfc
    check(ops.head_rows_triton.default, (*inputs, None, *stored, dtype, CLASSES, 1.0, 0.5, 0.5))
    _, inverse, cosine, labels, centers, new_labels = ops.head_rows_triton(
        *inputs, None, *stored, dtype, CLASSES, 1.0, 0.5, 0.5
    )
    container = DynamicClassContainer(9, DIM, CLASSES, "refresh", dtype)
    buffers = (container.centers, container.labels, container.clock)
    check(ops.enqueue_fifo_triton.default, (*buffers, centers, new_labels))
    tables = (container.stamps, container.slot_of_class)
    check(ops.enqueue_refresh_triton.default, (*buffers, *tables, centers, new_labels))
    settings = (0.5, 1.5, 0.99, 64.0, True, True)
    check(ops.adasin_row_values_triton.default, (labels, cosine, torch.tensor(0.1), *settings))
    values = ops.adasin_row_values_triton(labels, cosine, torch.tensor(0.1), *settings)
    x, unit_grad, weight = inputs[0].nan_to_num().requires_grad_(), torch.randn(5, DIM), torch.randn(5)
    given = (unit_grad, inverse, centers[3:], labels, cosine, values, weight, labels.clamp_min(0))
    check(ops.adasin_loss_triton.default, (x, *given, 0.5, 64.0, False))
    one = torch.tensor(2.0)
    check(
        ops.row_gradients_triton.default,
        (one, x.detach(), unit_grad, inverse, centers[3:], labels, weight, weight),
    )
    numbers = (labels, cosine, labels.clamp_min(0), cosine, cosine.abs(), container.labels, inputs[4])
    check(ops.step_statistics_triton.default, (one, *numbers, None))


def test_what_would_be_misread_is_refused():
    (x, labels, gallery, extra, extra_labels), stored = rows_of(FLOAT32, FLOAT32, 5, DIM)
    rest = (None, None, None, None, FLOAT32, CLASSES, 1.0, 0.0, 0.0)
    bad = {
        "labels must have shape": (x, labels[:3], gallery, extra, extra_labels),
        "labels must be torch.int64": (x, labels.int(), gallery, extra, extra_labels),
        "gallery must have shape": (x, labels, gallery[:, :, :5], extra, extra_labels),
        "embeddings must suit the Triton backend": (x.double(), labels, gallery, extra, extra_labels),
        "extra_centers must be float32, bfloat16 or float16": (x, labels, gallery, extra.double(), extra_labels),
    }
    for words, arguments in bad.items():
        with pytest.raises((ValueError, TypeError), match=words):
            run("head_rows", "triton", *arguments, *rest)
    with pytest.raises(ValueError, match="slot_of_class must be given with center_memory"):
        run("head_rows", "triton", x, labels, gallery, extra, extra_labels, *rest[:-1], 0.5)
    container = DynamicClassContainer(4, DIM, CLASSES)
    with pytest.raises(ValueError, match="at most 4 rows"):
        container.enqueue_rows(torch.zeros(5, DIM), labels, "triton")
    container.centers = torch.zeros(4, 2 * DIM)[:, :DIM]
    with pytest.raises(ValueError, match="centers must be contiguous"):
        container.enqueue_rows(torch.zeros(3, DIM), labels[:3], "triton")
