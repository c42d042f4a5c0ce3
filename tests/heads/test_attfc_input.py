"""The AttFC head under bad input: ignored, empty, zero, not finite, or refused with a message."""

from __future__ import annotations

import math

import pytest
import torch
from attfc_cases import BACKENDS, CAPACITY, CLASSES, DIM, batches, filled, run, same, same_state, state_of, step

from attfc_cuda.heads import AttFC
from attfc_cuda.heads.attfc import ENQUEUE
from attfc_cuda.heads.container import POLICIES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_negative_label_leaves_its_row_out_whatever_it_holds(policy, backend):
    heads = [filled(policy=policy, backend=backend, check_finite=True) for _ in range(2)]
    embeddings, labels, gallery = next(batches())
    labels[1], labels[3] = -1, -5
    poisoned, poisoned_gallery = embeddings.clone(), gallery.clone()
    poisoned[1], poisoned[3], poisoned_gallery[1] = math.nan, math.inf, math.nan
    expected = step(heads[0], embeddings, labels, gallery)
    found = step(heads[1], poisoned, labels, poisoned_gallery)
    assert same([expected], [found]) and (found[1][[1, 3]] == 0).all() and (found[1][0] != 0).any()
    assert same_state(heads[0].state_dict(), heads[1].state_dict())
    # A mean over the rest: the same as a batch of the rest alone.
    kept = labels >= 0
    alone, _ = step(filled(policy=policy, backend=backend), embeddings[kept], labels[kept], gallery[kept])
    torch.testing.assert_close(found[0], alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("enqueue", ENQUEUE)
@pytest.mark.parametrize("case", ["no rows", "all ignored", "empty container"])
def test_nothing_to_learn_from_gives_zero(case, enqueue, backend):
    embeddings, labels, gallery = next(batches())
    if case == "empty container":
        head = AttFC(DIM, CAPACITY, enqueue=enqueue, backend=backend, preset="published")
        labels = torch.full_like(labels, 3)  # before: only own-class centres in the container
    else:
        head = filled(enqueue=enqueue, backend=backend)
        labels = torch.full_like(labels, -1)
    if case == "no rows":
        embeddings, labels, gallery = embeddings[:0], labels[:0], gallery[:0]
    before = state_of(head)
    loss, gradient = step(head, embeddings, labels, gallery)
    assert loss == 0 and gradient.shape == embeddings.shape and not gradient.any()
    assert all(value.isfinite() for value in head.stats.values())
    if case != "empty container":
        assert same_state(before, head.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zero_embeddings_are_finite_and_get_no_gradient(dtype, backend):
    head = filled(backend=backend)
    embeddings, labels, gallery = next(batches(dtype=dtype))
    embeddings[0], embeddings[1], gallery[2] = 0, 1e-8, 0
    loss, gradient = step(head, embeddings, labels, gallery)
    assert loss.isfinite() and gradient.isfinite().all()
    assert not gradient[:2].any() and gradient[2:].any(dim=1).all()
    held = head.container.labels >= 0
    assert head.container.centers[held].isfinite().all() and head.margin.t.isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_slots_are_never_read(backend):
    clean, poisoned = (AttFC(DIM, 40, enqueue="after", backend=backend, preset="published") for _ in range(2))
    poisoned.container.centers.fill_(math.nan)
    assert same(run(clean, batches()), run(poisoned, batches()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("enqueue", ENQUEUE)
def test_what_is_not_finite_never_enters_the_state(bad, enqueue):
    head = filled(enqueue=enqueue, backend="eager")
    embeddings, labels, gallery = next(batches())
    embeddings[1, 2], gallery[3, 1, 0] = bad, bad
    written = int(head.container.clock)
    loss, _ = step(head, embeddings, labels, gallery)
    assert not loss.isfinite()
    assert int(head.container.clock) == written + 3
    assert head.container.centers.isfinite().all() and head.margin.t.isfinite()
    loss, gradient = step(head, *next(batches(seed=5)))
    assert loss.isfinite() and gradient.isfinite().all()


FINITE = {"embeddings": (0, "3"), "gallery_embeddings": (2, "3"), "extra_centers": (3, "1")}


@pytest.mark.parametrize("argument", FINITE)
def test_check_finite_names_the_row_and_nothing_moves(argument):
    index, row = FINITE[argument]
    head = filled(check_finite=True, backend="eager")
    before = state_of(head)
    tensors = [*next(batches()), torch.randn(2, DIM)]
    tensors[index][int(row)].view(-1)[2] = math.nan
    tensors[index][int(row)].view(-1)[5] = math.inf
    message = rf"AttFC: {argument} must be finite \(check_finite is on\), got 2 values .* in row {row}"
    with pytest.raises(ValueError, match=message):
        head(*tensors[:3], extra_centers=tensors[3], extra_labels=torch.tensor([1, 2]))
    assert same_state(before, head.state_dict())


def test_check_finite_asserts_on_the_device_when_compiled():
    head = AttFC(DIM, CAPACITY, check_finite=True, backend="eager", preset="published", enqueue="before")
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    embeddings, labels, gallery = next(batches())
    assert compiled(embeddings, labels, gallery).isfinite()
    embeddings[3, 2] = math.nan
    with pytest.raises(RuntimeError, match=r"AttFC: embeddings must be finite .* got a row that does not"):
        compiled(embeddings, labels, gallery)


@pytest.mark.parametrize("enqueue", ENQUEUE)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "case, message",
    [
        ("label", r"labels must be below num_classes = 23, got 23 in row 2; give the head"),
        ("batch", r"centers must have at most capacity = 14 rows, got 15; use a larger capacity"),
        ("extra", r"centers must have at most capacity = 14 rows, got 16; .*extra centres count"),
    ],
)
def test_a_batch_the_container_refuses_moves_nothing(case, message, policy, enqueue):
    head = filled(policy=policy, enqueue=enqueue, backend="eager")
    before = state_of(head)
    embeddings, labels, gallery = next(batches(rows=[15 if case == "batch" else 5]))
    extra = {}
    if case == "label":
        labels[2] = CLASSES
    elif case == "extra":
        extra = {"extra_centers": torch.randn(11, DIM), "extra_labels": torch.arange(11) % CLASSES}
    with pytest.raises(ValueError, match=message):
        head(embeddings, labels, gallery, **extra)
    assert same_state(before, head.state_dict())


CONSTRUCTION = {
    "capacity": (dict(capacity=0), ValueError, r"DynamicClassContainer: capacity must be at least 1, got 0"),
    "refresh": (dict(policy="refresh"), ValueError, r'num_classes must be given with policy="refresh", got None; pass'),
    "enqueue": (
        dict(enqueue="during"),
        ValueError,
        r"AttFC: enqueue must be one of \('before', 'after'\), got 'during'",
    ),
    "temperature": (dict(temperature=0.0), ValueError, r"AttFC: temperature must be above 0, got 0.0"),
    "margin": (dict(margin="adasin"), TypeError, r"AttFC: margin must be a margins.Margin, got 'adasin'; pass an inst"),
}


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_construction_errors(case):
    options, kind, message = CONSTRUCTION[case]
    with pytest.raises(kind, match=message):
        AttFC(preset="published", **{"enqueue": "before", **dict(dict(dim=DIM, capacity=CAPACITY), **options)})


X, Y, G = torch.randn(3, DIM), torch.tensor([0, 1, 2]), torch.randn(3, 2, DIM)
FORWARD = {
    "embeddings shape": ((X[:, :5], Y, G), {}, ValueError, r"embeddings must have shape \[B, 8\], got \[3, 5\]"),
    "embeddings rank": ((X[0], Y, G), {}, ValueError, r"embeddings must have shape \[B, 8\], got \[8\]"),
    "embeddings dtype": ((X.long(), Y, G), {}, TypeError, r"embeddings must have a floating dtype, got torch.int64"),
    "labels shape": ((X, Y[:2], G), {}, ValueError, r"labels must have shape \[3\], got \[2\]"),
    "labels dtype": (
        (X, Y.int(), G),
        {},
        TypeError,
        r"labels must have dtype torch.int64, got torch.int32; labels.long",
    ),
    "gallery rows": (
        (X, Y, G[:2]),
        {},
        ValueError,
        r"gallery_embeddings must have shape \[3, r, 8\] .* got \[2, 2, 8\]",
    ),
    "gallery empty": ((X, Y, G[:, :0]), {}, ValueError, r"gallery_embeddings must have .* r >= 1.* got \[3, 0, 8\]"),
    "gallery flat": ((X, Y, G[0, 0]), {}, ValueError, r"gallery_embeddings must have shape .* got \[8\]"),
    "gallery dtype": (
        (X, Y, G.int()),
        {},
        TypeError,
        r"gallery_embeddings must have a floating dtype, got torch.int32",
    ),
    "shared gallery shape": (
        (X, Y, G),
        dict(gallery_rows=Y[:, None]),
        ValueError,
        r"gallery_embeddings must have shape \[U, 8\] with gallery_rows, got \[3, 2, 8\]",
    ),
    "shared rows shape": (
        (X, Y, G[0]),
        dict(gallery_rows=Y % 2),
        ValueError,
        r"gallery_rows must have shape \[B, r\] with r >= 1, got \[3\]",
    ),
    "shared rows none": (
        (X, Y, G[0]),
        dict(gallery_rows=Y[:, None][:, :0]),
        ValueError,
        r"gallery_rows must have shape \[B, r\] with r >= 1, got \[3, 0\]",
    ),
    "shared rows count": (
        (X, Y, X),
        dict(gallery_rows=Y[:2, None]),
        ValueError,
        r"gallery_embeddings must have shape \[3, r, 8\] .* got \[2, 1, 8\]",
    ),
    "shared rows dtype": (
        (X, Y, X),
        dict(gallery_rows=Y[:, None].int()),
        TypeError,
        r"gallery_rows must have dtype torch.int64, got torch.int32; gallery_rows.long",
    ),
    "shared rows device": (
        (X, Y, X),
        dict(gallery_rows=Y[:, None].to("meta")),
        ValueError,
        r"gallery_rows must be on the gallery's device cpu, got meta",
    ),
    "shared rows too large": (
        (X, Y, X),
        dict(gallery_rows=torch.tensor([[0, 1], [1, 3], [2, 2]])),
        ValueError,
        r"gallery_rows must name rows of the 3 gallery_embeddings, got \[1, 3\] in row 1",
    ),
    "shared rows negative": (
        (X, Y, X),
        dict(gallery_rows=torch.tensor([[0], [1], [-1]])),
        ValueError,
        r"gallery_rows must name rows of the 3 gallery_embeddings, got \[-1\] in row 2",
    ),
    "shared rows no tensor": (
        (X, Y, X),
        dict(gallery_rows=[[0], [1], [2]]),
        TypeError,
        r"gallery_rows must be a tensor, got list",
    ),
    "device": ((X, Y.to("meta"), G), {}, ValueError, r"labels must be on the head's device cpu, got meta; head.to"),
    "extra alone": ((X, Y, G), dict(extra_centers=X), ValueError, r"extra_labels must be given together .* got None"),
    "extra labels alone": (
        (X, Y, G),
        dict(extra_labels=Y),
        ValueError,
        r"extra_centers must be given together .* None",
    ),
    "extra shape": (
        (X, Y, G),
        dict(extra_centers=X[:, :4], extra_labels=Y),
        ValueError,
        r"extra_centers must have shape \[M, 8\], got \[3, 4\]",
    ),
    "extra count": (
        (X, Y, G),
        dict(extra_centers=X, extra_labels=Y[:2]),
        ValueError,
        r"extra_labels must have shape \[3\], got \[2\]",
    ),
}


@pytest.mark.parametrize("case", FORWARD)
def test_forward_errors_move_nothing(case):
    arguments, extra, kind, message = FORWARD[case]
    head = filled(backend="eager")
    before = state_of(head)
    with pytest.raises(kind, match="AttFC: " + message):
        head(*arguments, **extra)
    assert same_state(before, head.state_dict())
