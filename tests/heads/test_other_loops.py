"""A head inside other people's loops: what would go wrong silently works, or is refused before anything moves."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
from attfc_cases import CAPACITY, CLASSES, DIM, batches
from torch import nn
from torch.utils.checkpoint import checkpoint
from trained_cases import batch, make

from attfc_cuda import AdaFace, AdaSin, ArcFace, AttFC, DynamicClassContainer, FullyConnected, Margin, PartialFC

BACKENDS = ("eager", "cpu")


def attfc(**options) -> AttFC:
    options = {"num_classes": CLASSES, "policy": "refresh", "class_code": 1.0, **options}
    torch.manual_seed(0)
    head = AttFC(DIM, CAPACITY, preset="published", **{"enqueue": "before", **options})
    for data in batches(seed=1):
        head(*data)
    return head


def state(head: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in head.state_dict().items()}


def unmoved(head: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], value) for name, value in head.state_dict().items())


# Activation checkpointing


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_head_with_state_refuses_to_be_recomputed(reentrant: bool) -> None:
    trained = make(FullyConnected, margin=AdaSin(scale=24.0))
    for head, data in ((trained, batch()), (attfc(), next(batches(seed=2)))):
        embeddings = data[0].requires_grad_()
        loss = checkpoint(head, embeddings, *data[1:], use_reentrant=reentrant)
        before = state(head)
        with pytest.raises(RuntimeError, match="forward must run once a step in train mode, since it moves "):
            loss.backward()
        assert unmoved(head, before)
        if isinstance(head, AttFC):
            checkpoint(head.eval(), embeddings, *data[1:], use_reentrant=reentrant).backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", [FullyConnected, PartialFC])
@pytest.mark.parametrize("fused", [False, True])
def test_a_head_without_state_may_be_recomputed(kind: type, reentrant: bool, backend: str, fused: bool) -> None:
    results = []
    for recomputed in (False, True):
        head = make(kind, backend=backend, **({"sample_rate": 0.5} if kind is PartialFC else {}))
        if fused:
            head.fuse_optimizer(0.1)
        x, labels = batch()
        x.requires_grad_()
        torch.manual_seed(5)  # of the sample
        loss = checkpoint(head, x, labels, use_reentrant=reentrant) if recomputed else head(x, labels)
        loss.backward()
        results.append([loss.detach(), x.grad, head.centers.detach() if fused else head.centers.grad])
    assert all(map(torch.equal, *results))


# Backward passes that do not ask for the centres


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [FullyConnected, PartialFC])
def test_only_a_backward_in_train_mode_that_reaches_the_centers_moves_them(kind: type, backend: str) -> None:
    head = make(kind, backend=backend)
    head.fuse_optimizer(0.1)
    before = head.centers.detach().clone()
    x, labels = batch(rows=3)
    x.requires_grad_()
    torch.manual_seed(0)
    (expected,) = torch.autograd.grad(head(x, labels), x)
    torch.manual_seed(0)
    head(x, labels).backward(inputs=[x])
    assert torch.equal(x.grad, expected) and expected.any()
    head.eval()
    head(x, labels).backward()
    assert torch.equal(head.centers, before) and head.centers.grad is None
    head.train()
    head(x, labels).backward(inputs=[head.centers])
    assert not torch.equal(head.centers, before) and head.centers.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_func_grad_of_a_head_without_state(backend: str) -> None:
    head = make(FullyConnected, backend=backend)
    x, labels = batch()
    parameters = dict(head.named_parameters())

    def loss(parameters: dict, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(head, parameters, (x, labels))

    found = torch.func.grad(loss, argnums=(0, 1))({name: p.detach() for name, p in parameters.items()}, x)
    x = x.clone().requires_grad_()
    head(x, labels).backward()
    assert torch.equal(found[1], x.grad) and torch.equal(found[0]["centers"], head.centers.grad)


def test_two_backward_passes_between_two_steps_are_refused() -> None:
    head = make(FullyConnected)
    optimizer = head.fuse_optimizer(0.1)
    head(*batch()).backward()
    head(*batch()).backward()  # nobody has called step yet, so each pass is one
    optimizer.step()
    head(*batch()).backward()
    before = head.centers.detach().clone()
    with pytest.raises(RuntimeError, match=r"^FusedOptimizer: backward must run once between two calls of step, got a"):
        head(*batch()).backward()
    assert torch.equal(head.centers, before)
    optimizer.step()
    head(*batch()).backward()
    assert not torch.equal(head.centers, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scaled", [False, True])
def test_the_gradient_of_each_center_is_clipped(backend: str, scaled: bool) -> None:
    plain, clipped = make(FullyConnected, backend=backend), make(FullyConnected, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9) if scaled else None
    clipped.fuse_optimizer(0.5, momentum=0.0, grad_scaler=scaler, max_row_norm=0.02)
    before = plain.centers.detach().clone()
    plain(*batch()).backward()
    norm = plain.centers.grad.norm(dim=1, keepdim=True)
    assert (norm > 0.02).any() and (norm < 0.02).any()
    expected = before - 0.5 * plain.centers.grad * (0.02 / norm).clamp(max=1)
    loss = clipped(*batch())
    (scaler.scale(loss) if scaled else loss).backward()
    torch.testing.assert_close(clipped.centers.detach(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"^fuse_optimizer: max_row_norm must be above 0, got 0.0$"):
        plain.fuse_optimizer(0.1, max_row_norm=0.0)


def test_a_one_cycle_schedule_leaves_the_momentum_of_sgd_to_itself() -> None:
    head = make(FullyConnected)
    optimizer = head.fuse_optimizer(0.1, momentum=0.9)
    assert optimizer.defaults.keys() == {"lr", "momentum", "weight_decay"}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10, base_momentum=0.5, max_momentum=0.8)
    assert optimizer.param_groups[0]["momentum"] == 0.8  # it cycles what the update uses, and says so
    fixed = make(FullyConnected)
    optimizer = fixed.fuse_optimizer(0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10, cycle_momentum=False)
    fixed(*batch()).backward()
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["momentum"] == 0.9 and "betas" not in optimizer.param_groups[0]


# Casts, devices, memory without content


def test_a_cast_after_the_first_fused_step_is_refused() -> None:
    head = make(FullyConnected)
    head.fuse_optimizer(0.1)
    head(*batch()).backward()
    head.bfloat16()
    before = head.centers.detach().clone()
    with pytest.raises(ValueError, match="centers must stay torch.float32 on cpu after the first fused step"):
        head(*batch())
    assert torch.equal(head.centers, before)
    head.fuse_optimizer(0.1)
    head(*batch()).backward()


HEADS = {
    "fc": lambda **options: FullyConnected(DIM, CLASSES, AdaSin(), **options),
    "partial": lambda **options: PartialFC(DIM, CLASSES, 0.5, AdaFace(), **options),
    "attfc": lambda **options: AttFC(
        DIM,
        CAPACITY,
        AdaSin(),
        num_classes=CLASSES,
        policy="refresh",
        class_code=1.0,
        preset="published",
        **{"enqueue": "before", **options},
    ),
}


def losses(head: nn.Module, seed: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    head.eval()
    found = []
    for embeddings, labels, gallery in batches(seed=seed):
        found.append(head(embeddings, labels, *((gallery,) if isinstance(head, AttFC) else ())).detach())
    return found


def used(name: str) -> nn.Module:
    torch.manual_seed(1)
    head = HEADS[name]()
    for embeddings, labels, gallery in batches(seed=1):
        head(embeddings, labels, *((gallery,) if isinstance(head, AttFC) else ()))
    return head


@pytest.mark.parametrize("name", HEADS)
def test_a_head_on_the_meta_device_takes_over_a_checkpoint(name: str) -> None:
    source = used(name)
    saved = state(source)
    with torch.device("meta"):
        first = HEADS[name]()
    for head in (first, HEADS[name](device="meta"), HEADS[name]().to("meta")):
        assert all(value.is_meta for value in (*head.parameters(), *head.buffers()))
        head.load_state_dict({key: value.clone() for key, value in saved.items()}, assign=True)
        assert not any(value.is_meta for value in (*head.parameters(), *head.buffers()))
        assert all(map(torch.equal, losses(head), losses(copy.deepcopy(source))))


@pytest.mark.parametrize("name", HEADS)
def test_memory_without_content_counts_as_a_fresh_head(name: str) -> None:
    head = HEADS[name](device="meta").to_empty(device="cpu")
    fresh = HEADS[name]()
    for key, value in state(fresh).items():
        if key not in ("centers", "container.centers"):
            assert torch.equal(head.state_dict()[key], value), key
    if isinstance(head, AttFC):
        assert head.container.fill == 0 and (head.container.slot_of_class == -1).all()
    else:
        assert torch.equal(head.classes, torch.arange(CLASSES))


@pytest.mark.parametrize("name", HEADS)
def test_reset_parameters_starts_anew(name: str) -> None:
    head = used(name)
    torch.manual_seed(7)
    head.reset_parameters()
    torch.manual_seed(7)
    fresh = HEADS[name]()
    for key, value in state(fresh).items():
        if key != "container.centers":  # of empty slots, never read
            assert torch.equal(head.state_dict()[key], value), key
    assert all(map(torch.equal, losses(head), losses(fresh)))


def test_the_start_of_the_centers_does_not_depend_on_the_default_device() -> None:
    torch.manual_seed(0)
    here = FullyConnected(DIM, CLASSES)
    torch.manual_seed(0)
    with torch.device("cpu"):
        assert torch.equal(FullyConnected(DIM, CLASSES).centers, here.centers)
    assert FullyConnected(DIM, CLASSES, device="meta").centers.is_meta


# Transforms


@pytest.mark.parametrize("name", HEADS)
def test_vmap_and_jvp_are_refused_by_name(name: str) -> None:
    head = HEADS[name]()
    before = state(head)
    embeddings, labels, gallery = next(batches())
    rest = (gallery,) if isinstance(head, AttFC) else ()
    with pytest.raises(NotImplementedError, match="forward must not run under vmap or jvp, got vmap; use torch.func"):
        torch.func.vmap(lambda x: head(x, labels, *rest))(embeddings[None])
    with pytest.raises(NotImplementedError, match="forward must not run under vmap or jvp, got jvp; use torch.func"):
        torch.func.jvp(lambda x: head(x, labels, *rest), (embeddings,), (embeddings,))
    assert unmoved(head, before)


@pytest.mark.parametrize("name", HEADS)
def test_func_grad_in_train_mode_of_a_head_with_state_is_refused_by_name(name: str) -> None:
    head = HEADS[name]()
    before = state(head)
    embeddings, labels, gallery = next(batches())
    rest = (gallery,) if isinstance(head, AttFC) else ()
    with pytest.raises(NotImplementedError, match="forward must not move state in train mode under torch.func"):
        torch.func.grad(lambda x: head(x, labels, *rest))(embeddings)
    assert unmoved(head, before)


# Options and labels are looked at before anything moves


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"grad_tolerance": 1.5}, ValueError, "grad_tolerance must lie in [0, 1), got 1.5"),
        ({"backend": "cuda"}, RuntimeError, "backend cuda must be available, got"),
        ({"backend": "fast"}, ValueError, "backend must be one of auto, eager, cpu, triton, cuda, got 'fast'"),
    ],
)
def test_options_of_the_sweep_are_refused_before_the_enqueue(change: dict, kind: type, message: str) -> None:
    head = attfc()
    before = state(head)
    for name, value in change.items():
        setattr(head, name, value)
    with pytest.raises(kind, match=re.escape(message)):
        head(*next(batches(seed=5)))
    assert unmoved(head, before)
    if kind is ValueError:
        with pytest.raises(ValueError, match="^AttFC: " + re.escape(message)):
            AttFC(DIM, CAPACITY, preset="published", **{"enqueue": "before", **change})
        with pytest.raises(ValueError, match="^FullyConnected: " + re.escape(message)):
            FullyConnected(DIM, CLASSES, **change)


@pytest.mark.parametrize("training", [True, False])
def test_labels_beyond_the_classes_come_to_nothing_where_they_are_not_checked(training: bool) -> None:
    """As if they were -1: no loss, no gradient, nothing enqueued, on every backend."""
    for backend in BACKENDS:
        for build in (
            lambda backend=backend: attfc(check_labels=False, backend=backend),
            lambda backend=backend: make(FullyConnected, CLASSES, DIM, check_labels=False, backend=backend),
        ):
            results = []
            for wrong in (CLASSES, CLASSES + 1000, -1):
                head = build().train(training)
                embeddings, labels, gallery = next(batches(seed=4))
                labels[1] = wrong
                embeddings.requires_grad_()
                loss = head(embeddings, labels, *((gallery,) if isinstance(head, AttFC) else ()))
                loss.backward()
                grads = [embeddings.grad, *(p.grad for p in head.parameters())]
                assert not embeddings.grad[1].any() and embeddings.grad[0].any()
                results.append([loss.detach(), *grads, *state(head).values()])
            for other in results[:2]:
                assert all(map(torch.equal, other, results[2]))


def test_labels_are_checked_in_eval_mode_too() -> None:
    for head in (attfc().eval(), make(FullyConnected, CLASSES, DIM).eval()):
        embeddings, labels, gallery = next(batches(seed=4))
        labels[1] = CLASSES
        with pytest.raises(ValueError, match=f"labels must be below num_classes = {CLASSES}, got {CLASSES} in row 1"):
            head(embeddings, labels, *((gallery,) if isinstance(head, AttFC) else ()))


# Words


class Labels(torch.Tensor):
    pass


def test_a_label_of_a_tensor_subclass_is_named_on_the_cpu() -> None:
    labels = torch.tensor([1, 99, 2]).as_subclass(Labels)
    with pytest.raises(ValueError, match="labels must be below num_classes = 40, got 99 in row 1"):
        make(FullyConnected)(torch.randn(3, 16), labels)


WORDS = {
    "capacity": (
        lambda: AttFC(8, 32.0, preset="published", enqueue="before"),
        TypeError,
        "capacity must be a whole number of at least 1, got 32.0",
    ),
    "container": (
        lambda: DynamicClassContainer(8, 4.5),
        TypeError,
        "dim must be a whole number of",
    ),
    "classes": (lambda: FullyConnected(8, "9"), TypeError, "num_classes must be a whole number of at least 1, got '9'"),
    "list": (
        lambda: make(FullyConnected)(torch.randn(2, 16), [1, 2]),
        TypeError,
        "FullyConnected: labels must be a tensor, got list; torch.as_tensor(labels)",
    ),
    "list of attfc": (
        lambda: attfc()(torch.randn(2, DIM), [1, 2], torch.randn(2, DIM)),
        TypeError,
        "AttFC: labels must be a tensor, got list; torch.as_tensor(labels)",
    ),
    "margin for the rate": (
        lambda: PartialFC(16, 10, ArcFace()),
        TypeError,
        "PartialFC: sample_rate must be a number in (0, 1], got ArcFace(",
    ),
    "s": (
        lambda: ArcFace(s=64),
        TypeError,
        "ArcFace: a keyword must be one of m, scale, gradient, interclass_filter, trim, got s; the factor of the",
    ),
    "unknown": (
        lambda: Margin(sclae=2.0),
        TypeError,
        "Margin: a keyword must be one of scale, gradient, interclass_filter, trim, got sclae",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_mistake_is_named(name: str) -> None:
    call, kind, message = WORDS[name]
    with pytest.raises(kind, match=re.escape(message)):
        call()


class Doubled(nn.Module):
    def forward(self, centers: torch.Tensor) -> torch.Tensor:
        return 2 * centers


def test_parametrised_centers_are_refused_by_a_fused_optimizer() -> None:
    head = make(FullyConnected)
    nn.utils.parametrize.register_parametrization(head, "centers", Doubled())
    with pytest.raises(ValueError, match="centers must be the head's parameter, got a tensor that is co"):
        head.fuse_optimizer(0.1)
    head = make(FullyConnected)
    head.fuse_optimizer(0.1)
    nn.utils.parametrize.register_parametrization(head, "centers", Doubled())
    with pytest.raises(ValueError, match="fuse_optimizer was called with, got another .*or a parametrization"):
        head(*batch())


def test_a_head_with_shards_says_how_to_save_it() -> None:
    from attfc_cuda.distributed import Shards

    shards = Shards.__new__(Shards)
    head = nn.Module()
    head.shards = shards
    with pytest.raises(TypeError, match=r"^Shards: a head with shards must not be pickled whole, "):
        torch.save(head, io.BytesIO())
