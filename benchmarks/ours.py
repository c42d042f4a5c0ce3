"""Our contenders as steps of a problem: the heads with their updates, and loss and gradient over centres alone.

A head's step does all that a training loop asks of it: forward, backward down to the embeddings, and the update of what
it keeps (SGD with momentum on class centres; a container's enqueue).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from problem import (
    HEAD,
    LEARNING_RATE,
    MOMENTUM,
    TRAINED_CENTERS,
    Inputs,
    Problem,
    Step,
    by_class,
    fill_blocks,
    initial_centers,
    initial_slots,
    sgd,
)
from torch import Tensor

from attfc_cuda import AttFC, FullyConnected, PartialFC, inverse_norms, margin_softmax_loss
from attfc_cuda.heads import fully_connected
from attfc_cuda.plan.heads import container_slots, sampled_classes


def build_attfc(share: float) -> Callable[[Problem], Step]:
    """`AttFC` with a full container, policy "refresh" and enqueue "before": the trainer's defaults."""

    def build(problem: Problem) -> Step:
        slots = container_slots(share, problem.identities, problem.batch)
        with torch.device(problem.device):
            head = AttFC(
                problem.dim,
                slots,
                problem.make_margin(),
                policy="refresh",
                enqueue="before",
                class_code=0.0,
                num_classes=problem.identities,
                dtype=problem.torch_dtype,
                backend=problem.backend,
            )
        container = head.container
        fill_blocks(container.centers, normalize=True)
        container.labels.copy_(initial_slots(slots, problem.identities, problem.device))
        container.stamps.copy_(torch.arange(slots))
        container.clock.fill_(slots)
        container.slot_of_class[container.labels] = torch.arange(slots, dtype=torch.int32, device=problem.device)

        def run(inputs: Inputs) -> Tensor:
            inputs.embeddings.grad = None
            loss = head(inputs.embeddings, inputs.labels, inputs.gallery)
            loss.backward()
            return loss.detach()

        return Step(run, lambda: by_class(container.centers, container.labels, problem.identities), slots)

    return build


def build_trained(share: float, fused: bool) -> Callable[[Problem], Step]:
    """`FullyConnected` or, for a share below 1, `PartialFC`, with the optimizer in the backward pass or torch.optim."""

    def build(problem: Problem) -> Step:
        options = {"margin": problem.make_margin(), "backend": problem.backend, "device": problem.device}
        with cheap_centers():
            if share == 1:
                head = FullyConnected(problem.dim, problem.identities, **options)
            else:
                head = PartialFC(problem.dim, problem.identities, share, **options)
        head.to(problem.device)
        optimizer = head.fuse_optimizer(LEARNING_RATE, MOMENTUM) if fused else sgd([head.centers])

        def run(inputs: Inputs) -> Tensor:
            inputs.embeddings.grad = None
            optimizer.zero_grad()
            with problem.autocast():
                loss = head(inputs.embeddings, inputs.labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        sampled = sampled_classes(share, problem.identities, problem.batch)
        return Step(run, lambda: head.centers.detach().double(), sampled)

    return build


@contextlib.contextmanager
def cheap_centers() -> Iterator[None]:
    """Within it, heads start from `initial_centers` instead of a normal distribution's own draw."""
    original = fully_connected._draw_centers
    fully_connected._draw_centers = lambda centers, first: fill_blocks(centers.detach(), normalize=False)
    try:
        yield
    finally:
        fully_connected._draw_centers = original


def build_gradient(problem: Problem) -> Step:
    """`margin_softmax_loss` and its gradient. Over a container the own centre's cosine is a row-wise product, as in
    AttFC; centres that learn are raw, their inverse norms part of the step."""
    margin = problem.make_margin().eval()

    def run(inputs: Inputs) -> Tensor:
        x, w, labels = inputs.embeddings, inputs.centers, inputs.labels
        if problem.task == TRAINED_CENTERS:
            own = {"target_slot": labels, "center_scale": inverse_norms(w)}
        else:
            own = {"target_cosine": (x.float() * w[labels].float()).sum(dim=1)}
        options = {"grad_tolerance": problem.grad_tolerance, "backend": problem.backend}
        return inputs.backward(margin_softmax_loss(x, w, labels, inputs.center_labels, margin, **own, **options).loss)

    return Step(run, None, problem.identities)


def build_product(problem: Problem) -> Step:
    """X @ W.T and nothing else: over centres of its own in a head's place, over the inputs' otherwise."""
    shape = (problem.identities, problem.dim, problem.device, problem.torch_dtype)
    own = initial_centers(*shape) if problem.task == HEAD else None

    def run(inputs: Inputs) -> Tensor:
        centers = inputs.centers.detach() if own is None else own
        return inputs.embeddings.detach().to(problem.torch_dtype) @ centers.T

    return Step(run, None, problem.identities)
