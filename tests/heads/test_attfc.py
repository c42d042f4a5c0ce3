"""The AttFC head: the published step restated, what moves and what does not, that the host waits for nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attfc_cases import (
    BACKENDS,
    CAPACITY,
    CLASSES,
    DIM,
    ROWS,
    PublishedStep,
    batches,
    filled,
    run,
    same,
    same_state,
    state_of,
    step,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from attfc_cuda.heads import AttFC
from attfc_cuda.heads.attfc import ENQUEUE
from attfc_cuda.heads.container import POLICIES
from attfc_cuda.margins import AdaSin, ArcFace, MagFace, NormFace


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss_name, margin", [("arcface", ArcFace), ("adasin", AdaSin)])
def test_a_fifo_step_is_the_published_step(loss_name, margin, dtype, backend):
    # float32: a logit of size 64 carries some 64 * 2^-24 = 4e-6 of rounding, and so does a probability, relatively.
    # float64 shows that nothing else is in that 1e-5; AdaSin's t, at most 0.1 here, is float32 throughout:
    # 64 * 0.1 * 2^-24 = 4e-7 in a logit.
    tolerance = 1e-5 if dtype == torch.float32 else {"arcface": 1e-12, "adasin": 1e-6}[loss_name]
    head = AttFC(
        DIM, CAPACITY, margin=margin(), enqueue="after", dtype=dtype, backend=backend, policy="fifo", class_code=0.0
    )
    published = PublishedStep(CAPACITY, loss_name)
    for embeddings, labels, gallery in batches(dtype=dtype):
        expected_x = embeddings.double().clone().requires_grad_()
        expected = published(expected_x, labels, gallery.double())
        expected.backward()
        loss, gradient = step(head, embeddings, labels, gallery)
        assert abs(loss - expected.detach()) <= tolerance * expected.detach().clamp_min(1)
        assert (gradient - expected_x.grad).abs().max() <= tolerance * expected_x.grad.abs().max().clamp_min(1e-300)
    assert len(published.queue) == int(head.container.fill) == CAPACITY and sum(ROWS) > CAPACITY + max(ROWS)
    if loss_name == "adasin":
        assert published.hard > 20, "no hard negatives: the test would not see AdaSin"
        assert abs(float(head.margin.t) - published.t) < 1e-6 * abs(published.t) + 1e-8


@pytest.mark.parametrize("backend", BACKENDS)
def test_before_the_other_rows_fresh_centers_are_negatives(backend):
    embeddings, labels, gallery = next(batches(rows=[3]))
    labels = torch.tensor([4, 6, 4])
    head = AttFC(DIM, CAPACITY, margin=NormFace(scale=16), backend=backend, policy="fifo", class_code=0.0)
    loss, _ = step(head, embeddings, labels, gallery[:, 0])
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(gallery[:, 0], dim=1).T
    # Row 0 and row 2 are of one class: neither is the other's negative, and both are row 1's.
    expected = [
        F.cross_entropy(16 * cosines[row, columns][None], torch.tensor([0]))
        for row, columns in enumerate([[0, 1], [1, 0, 2], [2, 1]])
    ]
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=0)
    assert head.container.labels[:4].tolist() == [4, 6, 4, -1]

    after = AttFC(
        DIM, CAPACITY, margin=NormFace(scale=16), enqueue="after", backend=backend, policy="fifo", class_code=0.0
    )
    assert step(after, embeddings, labels, gallery)[0] == 0  # nothing to compare with yet
    assert after.container.labels[:4].tolist() == [4, 6, 4, -1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_extra_centers_are_negatives_and_nothing_else(backend):
    embeddings, gallery = torch.randn(1, DIM), torch.randn(1, 1, DIM)
    extra, extra_labels = 5 * torch.randn(4, DIM), torch.tensor([7, 3, -1, 8])
    head = AttFC(DIM, CAPACITY, margin=NormFace(scale=16), backend=backend, policy="fifo", class_code=0.0)
    loss, _ = step(head, embeddings, torch.tensor([3]), gallery, extra_centers=extra, extra_labels=extra_labels)
    x, g, n = (F.normalize(v, dim=1) for v in (embeddings, gallery[:, 0], extra))
    # The extra of class 3 is the row's own class, that of class -1 is nobody's.
    logits = 16 * torch.cat([x @ g.T, x @ n[[0, 3]].T], dim=1)
    # Logits up to 16, rounded by 2^-24 of that.
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([0])), rtol=1e-6, atol=1e-5)
    assert loss > 0.01 and head.container.labels[:5].tolist() == [7, 3, 8, 3, -1]
    torch.testing.assert_close(head.container.centers[:4], torch.cat([n[[0, 1, 3]], g]))


def test_extra_centers_are_the_older_part_of_the_batch():
    embeddings, _, gallery = next(batches(rows=[1], r=1))
    head = AttFC(
        DIM, CAPACITY, policy="refresh", num_classes=CLASSES, backend="eager", preset="published", enqueue="before"
    )
    extra = {"extra_centers": torch.randn(2, DIM), "extra_labels": torch.tensor([3, 5])}
    step(head, embeddings, torch.tensor([3]), gallery, **extra)
    slot = head.container.labels.tolist().index(3)
    torch.testing.assert_close(head.container.centers[slot], F.normalize(gallery[0, 0], dim=0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("enqueue", ENQUEUE)
def test_shared_gallery_rows_are_the_rows_repeated(enqueue, policy, backend):
    options = dict(policy=policy, enqueue=enqueue, backend=backend, class_code=0.5)
    options["center_memory"] = 0.3 if policy == "refresh" else 0.0
    given, repeated = filled(**options), filled(**options)
    for step_number in range(3):
        torch.manual_seed(step_number)
        labels = torch.tensor([4, 4, 9, 4, -1, 9])
        embeddings, shared = torch.randn(6, DIM), torch.randn(5, DIM)
        shared[4] = torch.nan  # that of a row which is left out
        rows = torch.tensor([[0, 1], [1, 2], [3, 3], [0, 1], [4, 0], [3, 3]])
        gallery = torch.stack([torch.stack([shared[number] for number in row]) for row in rows.tolist()])
        found = step(given, embeddings, labels, shared, gallery_rows=rows)
        assert same([found], [step(repeated, embeddings, labels, gallery)])
        assert same_state(given.state_dict(), repeated.state_dict())
        kept = given.container.labels.tolist()
        # A queue takes a row each, a container with a slot a class one of a class.
        assert (kept.count(4), kept.count(9)) == (1, 1) if policy == "refresh" else kept.count(4) >= 3
    assert found[0] > 0


@pytest.mark.parametrize("enqueue", ENQUEUE)
def test_eval_mode_moves_nothing_and_sees_the_container_as_it_stands(enqueue):
    head = filled(enqueue=enqueue, backend="eager").eval()
    before = state_of(head)
    batch = next(batches())
    losses = [step(head, *batch)[0] for _ in range(2)]
    assert losses[0] == losses[1] > 0
    assert same_state(before, head.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("enqueue", ENQUEUE)
def test_state_dict_round_trip(policy, enqueue, backend, tmp_path):
    options = dict(num_classes=CLASSES, policy=policy, enqueue=enqueue, backend=backend)
    head = filled(policy=policy, enqueue=enqueue, backend=backend)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    restored = AttFC(DIM, CAPACITY, preset="published", **{"enqueue": "before", **options})
    restored.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert same(run(head, batches(seed=2)), run(restored, batches(seed=2)))
    assert same_state(head.state_dict(), restored.state_dict()) and float(head.margin.t) != 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_repeated_runs_are_bitwise_equal(policy, dtype, backend):
    runs = [run(filled(policy=policy, dtype=dtype, backend=backend), batches()) for _ in range(2)]
    assert same(*runs) and all(gradient.isfinite().all() for _, gradient in runs[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_container_gives_the_float32_loss_up_to_its_rounding(dtype):
    exact, rounded = (filled(dtype=d, margin=ArcFace(), backend="eager") for d in (torch.float32, dtype))
    for (a, _), (b, _) in zip(run(exact, batches()), run(rounded, batches()), strict=True):
        # Two unit vectors, each off by half a unit in the last place of each number: cosines within eps, logits within
        # 64 eps, and so their logsumexp and the loss.
        assert abs(a - b) <= 64 * torch.finfo(dtype).eps
        assert b.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    plain, cast = (filled(backend=backend) for _ in range(2))
    expected = run(plain, batches())
    found = []
    for embeddings, labels, gallery in batches():
        embeddings.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cast(embeddings, labels, gallery)
        loss.backward()
        found.append((loss.detach(), embeddings.grad))
    assert same(expected, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_embeddings_may_come_in_any_floating_dtype(dtype):
    head, exact = filled(backend="eager"), filled(backend="eager")
    for embeddings, labels, gallery in batches(dtype=dtype):
        loss, gradient = step(head, embeddings, labels, gallery)
        expected, expected_gradient = step(exact, embeddings.float(), labels, gallery.float())
        assert loss.dtype == torch.float32 and gradient.dtype == dtype
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        eps = max(torch.finfo(dtype).eps, 1e-5)
        assert (gradient.float() - expected_gradient).abs().max() <= eps * expected_gradient.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("enqueue", ENQUEUE)
def test_a_backward_pass_may_come_after_the_next_forward(enqueue, backend):
    # The container is overwritten in place in between: the first step's gradient must not see it.
    early, late = (filled(enqueue=enqueue, backend=backend) for _ in range(2))
    data = list(batches())
    expected = [gradient for _, gradient in run(early, data)]
    leaves = [embeddings.clone().requires_grad_() for embeddings, _, _ in data]
    losses = [late(x, labels, gallery) for x, (_, labels, gallery) in zip(leaves, data, strict=True)]
    torch.stack(losses).sum().backward()
    assert all(torch.equal(x.grad, gradient) for x, gradient in zip(leaves, expected, strict=True))


def test_only_embeddings_get_a_gradient():
    head = filled(backend="eager")
    embeddings, labels, gallery = next(batches())
    gallery, extra = gallery.requires_grad_(), torch.randn(2, DIM, requires_grad=True)
    step(head, embeddings, labels, gallery, extra_centers=extra, extra_labels=torch.tensor([1, 2]))
    assert gallery.grad is None and extra.grad is None and not list(head.parameters())


def test_the_norm_reaches_the_margin():
    head = AttFC(DIM, CAPACITY, margin=MagFace(), backend="eager", policy="fifo", class_code=0.0)
    embeddings, labels, gallery = next(batches())
    embeddings = 20 * F.normalize(embeddings, dim=1)
    _, gradient = step(head, embeddings, labels, gallery)
    # Every other margin sees directions alone, and its gradient is orthogonal to the embedding.
    assert (gradient * embeddings).sum(1).abs().min() > 1e-3
    _, gradient = step(
        AttFC(DIM, CAPACITY, backend="eager", preset="published", enqueue="before"), embeddings, labels, gallery
    )
    assert (gradient * embeddings).sum(1).abs().max() < 1e-3 * gradient.abs().max() * 20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_stats_are_what_a_plain_count_finds(policy, backend):
    head = AttFC(
        DIM, CAPACITY, policy=policy, enqueue="after", num_classes=CLASSES, backend=backend, preset="published"
    )
    run(head, batches(rows=[5, 4], seed=1))  # some slots stay empty
    embeddings, labels, gallery = next(batches(seed=5, r=1))
    labels[1], labels[2] = -1, head.container.labels[3]  # an ignored row, and a row whose own class is there
    centers, slots, t = head.container.centers.clone(), head.container.labels.clone(), float(head.margin.t)
    loss, _ = step(head, embeddings, labels, gallery)
    x, g = F.normalize(embeddings, dim=1), F.normalize(gallery[:, 0], dim=1)
    cosine, positive = x @ centers.T, (x * g).sum(1)
    counts = labels >= 0
    valid = counts[:, None] & (slots >= 0) & (slots != labels[:, None])
    hard = valid & (cosine > torch.cos(positive.acos() + 0.5)[:, None])
    top1 = positive > cosine.masked_fill(~valid, -2).amax(1)
    expected = {
        "loss": float(loss),
        "positive_cosine": float(positive[counts].mean()),
        "hard_fraction": float(hard.sum() / valid.sum()),
        "container_top1": float(top1[counts].float().mean()),
        "fill": float((slots >= 0).sum()),
        "omitted_mass": 0.0,
        "t": 0.99 * t + 0.01 * float(positive[counts].mean()),
    }
    assert {name: float(value) for name, value in head.stats.items()} == pytest.approx(expected, rel=1e-5)
    assert 0 < expected["hard_fraction"] < 1 and 0 < expected["container_top1"] < 1 and expected["fill"] < CAPACITY
    assert all(value.ndim == 0 and not value.requires_grad for value in head.stats.values())
    kept = head.stats
    step(head, embeddings, labels, gallery)
    assert float(kept["t"]) == pytest.approx(expected["t"], rel=1e-5) and kept["t"] != head.stats["t"]


def test_stats_of_a_margin_without_state():
    head = AttFC(DIM, CAPACITY, margin=ArcFace(), backend="eager", policy="fifo", class_code=0.0)
    assert head.stats == {}
    step(head, *next(batches()))
    assert "t" not in head.stats and head.stats["hard_fraction"] == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("enqueue", ENQUEUE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_needs_no_value_on_the_host(policy, enqueue, backend):
    # A fake tensor has no values: anything that reads one, or whose shape depends on one, raises.
    with FakeTensorMode():
        head = AttFC(DIM, 64, policy=policy, enqueue=enqueue, num_classes=100, backend=backend, preset="published")
        embeddings = torch.randn(16, DIM, requires_grad=True)
        extra = {"extra_centers": torch.randn(3, DIM), "extra_labels": torch.randint(0, 100, (3,))}
        loss = head(embeddings, torch.randint(0, 100, (16,)), torch.randn(16, 2, DIM), **extra)
        loss.backward()
        assert loss.shape == () and embeddings.grad.shape == (16, DIM) and set(head.stats) >= {"t", "hard_fraction"}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("enqueue", ENQUEUE)
def test_a_step_compiles_in_one_piece(policy, enqueue, compiler="aot_eager"):
    options = dict(policy=policy, enqueue=enqueue, num_classes=CLASSES)
    eager, head = (
        AttFC(DIM, CAPACITY, preset="published", **{"enqueue": "before", **options}),
        AttFC(DIM, CAPACITY, preset="published", **{"enqueue": "before", **options}),
    )
    compiled = torch.compile(head, fullgraph=True, backend=compiler)
    torch._dynamo.reset()
    for embeddings, labels, gallery in batches(rows=[5] * 4):
        labels[2] = -1
        loss, gradient = step(compiled, embeddings, labels, gallery)
        expected, expected_gradient = step(eager, embeddings, labels, gallery)
        # Fused kernels round otherwise: 64 * 2^-24 per logit, over the steps that the container remembers.
        torch.testing.assert_close(loss, expected, rtol=2e-5, atol=2e-5)
        assert (gradient - expected_gradient).abs().max() <= 5e-5 * expected_gradient.abs().max()
        assert head.stats["hard_fraction"] == eager.stats["hard_fraction"]
    for (name, found), expected in zip(head.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_step_compiles_with_the_default_compiler():
    test_a_step_compiles_in_one_piece("refresh", "after", compiler="inductor")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: a GPU is needed to see it being waited for")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("enqueue", ENQUEUE)
def test_a_step_on_the_gpu_makes_the_host_wait_for_nothing(policy, enqueue):
    head = AttFC(DIM, CAPACITY, policy=policy, enqueue=enqueue, num_classes=CLASSES, preset="published").cuda()
    data = [[tensor.cuda() for tensor in batch] for batch in batches(rows=[5] * 3)]
    run(head, data[:1])  # what a backend sets up once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(head, data[1:])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS)
def test_center_memory_mixes_what_the_container_holds(backend):
    head = AttFC(
        DIM,
        CAPACITY,
        NormFace(scale=16),
        "refresh",
        num_classes=CLASSES,
        center_memory=0.75,
        backend=backend,
        class_code=0.0,
    )
    first, second = torch.randn(2, 3, 1, DIM)
    labels = torch.tensor([4, 6, 8])
    step(head, torch.randn(3, DIM), labels, first)
    old = F.normalize(first[:, 0], dim=1)
    torch.testing.assert_close(head.container.lookup(labels)[0], old)  # nothing to mix with yet

    labels, embeddings = torch.tensor([6, 5, -1]), torch.randn(3, DIM)
    loss, _ = step(head, embeddings, labels, second, extra_centers=3 * first[:1, 0], extra_labels=torch.tensor([8]))
    fresh, x = F.normalize(second[:, 0], dim=1), F.normalize(embeddings, dim=1)
    mixed = F.normalize(0.25 * fresh[0] + 0.75 * old[1], dim=0)
    extra = F.normalize(0.25 * old[0] + 0.75 * old[2], dim=0)
    expected = {4: old[0], 6: mixed, 8: extra, 5: fresh[1]}
    stored, held = head.container.lookup(torch.tensor([*expected]))
    assert held.all() and int(head.container.fill) == 4
    torch.testing.assert_close(stored, torch.stack([*expected.values()]))
    # Positives are the mixed centres, too.
    rows = [
        F.cross_entropy(16 * torch.stack([x[row] @ expected[k] for k in (own, *expected.keys() - {own})])[None], zero)
        for row, own, zero in ((0, 6, torch.tensor([0])), (1, 5, torch.tensor([0])))
    ]
    torch.testing.assert_close(loss, torch.stack(rows).mean(), rtol=1e-5, atol=0)


def test_sampled_cosines_are_those_of_the_step():
    head = AttFC(DIM, CAPACITY, NormFace(), "refresh", num_classes=CLASSES, class_code=0.0)
    assert head.sample_cosines() is None
    data = list(batches(rows=[3, 4, 4]))
    run(head, data)
    embeddings, _, gallery = data[-1]
    labels = torch.tensor([2, 9, -1, 2])
    head.container.centers[head.container.labels < 0] = torch.nan  # an empty slot is not looked at
    step(head, embeddings, labels, gallery)
    sample, container = head.sample_cosines(), head.container
    x = F.normalize(embeddings, dim=1)
    expected = [
        (float(x[row] @ container.centers[slot]), int(container.age[slot]) // 3)  # the step brought three rows
        for row in (0, 1, 3)
        for slot in range(CAPACITY)
        if container.labels[slot] >= 0 and container.labels[slot] != labels[row]
    ]
    assert sorted(zip(sample.negative.tolist(), sample.age.tolist(), strict=True)) == [
        (pytest.approx(cosine, abs=1e-6), age) for cosine, age in sorted(expected)
    ]
    assert 0 in sample.age and sample.age.max() > 1
    assert sample.positive.shape == (3,)
    torch.testing.assert_close(sample.positive.mean(), head.stats["positive_cosine"])
