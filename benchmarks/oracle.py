"""What a contender of run.py must equal before it is timed: the same training steps in float64, written out.

Every B x N cosine is stored and autograd does the rest. Two steps are compared, not one: the second one's loss and
gradient see the momentum and the container that the first one left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from heads import (
    LEARNING_RATE,
    MOMENTUM,
    SCALE,
    SOFTMAX,
    Contender,
    Inputs,
    Problem,
    Step,
    by_class,
    initial_centers,
    initial_slots,
    make_inputs,
    make_margin,
)
from torch import Tensor

from attfc_cuda import testing
from attfc_cuda.margins import Margin

STEPS = 2
_LEAST_IDENTITIES = 1000


def check(contender: Contender, problem: Problem) -> dict[str, float]:
    """The largest relative error of the loss and of the embeddings' gradient over two steps, and that of what the
    centres have moved by; on as few of the problem's identities as make sense.

    Raises AssertionError, naming the contender, where one is above max(1e-4, scale eps) of the dtype: float32 sums, or
    what rounding a cosine to a 16-bit format does to its logit.
    """
    problem = dataclasses.replace(problem, identities=identities_of(contender, problem))
    step, truth = contender.build(problem), contender.truth(problem)
    start, true_start = step.state(), truth.state()
    errors = {"loss": 0.0, "embedding_grad": 0.0}
    for seed in range(STEPS):
        inputs = make_inputs(problem, seed)
        exact = Inputs(inputs.embeddings.detach().double().requires_grad_(), inputs.labels, inputs.gallery.double())
        torch.manual_seed(seed)  # Partial FC samples
        loss = step.run(inputs).double()
        torch.manual_seed(seed)
        true_loss = truth.run(exact)
        gradient = testing.gradient_difference(inputs.embeddings.grad, exact.embeddings.grad)["relative_l2"]
        # In this order a NaN stays.
        errors["loss"] = max(float((loss - true_loss).abs() / true_loss.abs()), errors["loss"])
        errors["embedding_grad"] = max(gradient, errors["embedding_grad"])
    moved, true_moved = step.state() - start, truth.state() - true_start
    errors["centers"] = testing.gradient_difference(moved, true_moved)["relative_l2"]
    limit = max(1e-4, SCALE * torch.finfo(problem.torch_dtype).eps)
    if not all(error <= limit for error in errors.values()):
        found = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        name = f"{contender.name} ({problem.margin}, {problem.dtype})"
        raise AssertionError(f"{name} must agree with float64 within {limit:.2g}, got {found}")
    return errors


def identities_of(contender: Contender, problem: Problem) -> int:
    """Enough that its share of them is half again a batch: some rows find their own class in a container, some not."""
    return min(problem.identities, max(_LEAST_IDENTITIES, math.ceil(1.5 * problem.batch / contender.share)))


def true_loss(
    unit: Tensor, centers: Tensor, labels: Tensor, center_labels: Tensor, own: Tensor, margin: Margin, norm: Tensor
) -> Tensor:
    """Mean cross entropy of the bent own cosine [B] against all centres of other classes, hard ones re-weighted."""
    margin.update(own.detach(), norm.detach(), torch.ones_like(labels, dtype=torch.bool))
    cosine = unit @ centers.T
    negative = center_labels[None, :] != labels[:, None]
    hard = torch.zeros_like(negative)
    modulation = margin.modulation(own, norm)
    if modulation is not None:
        threshold, quad, lin, const = (value[:, None] for value in modulation)
        hard = negative & (cosine > threshold)
        cosine = torch.where(hard, quad * cosine.square() + lin * cosine + const, cosine)
    target = margin.target(own, norm, hard.sum(dim=1))
    logits = SCALE * torch.cat([target[:, None], cosine.masked_fill(~negative, -math.inf)], dim=1)
    rows = F.cross_entropy(logits, torch.zeros_like(labels), reduction="none")
    penalty = margin.regularizer(own, norm)
    return (rows if penalty is None else rows + penalty).mean()


def trained(share: float = 1.0, gradient: str = "exact") -> Callable[[Problem], Step]:
    """Centres under SGD with momentum; for a share below 1 the sampled ones alone move. gradient: the margin's.

    Margin "none (softmax)": plain cross entropy over centres that are not normalised.
    """

    def build(problem: Problem) -> Step:
        plain = problem.margin == SOFTMAX
        margin = None if plain else make_margin(problem, gradient=gradient).double().to(problem.device)
        centers = initial_centers(problem.identities, problem.dim, problem.device).double()
        momentum = torch.zeros_like(centers)
        size = min(len(centers), max(problem.batch, math.ceil(share * len(centers))))

        def run(inputs: Inputs) -> Tensor:
            index = torch.arange(len(centers), device=centers.device)
            if size < len(centers):
                key = torch.rand(len(centers), device=centers.device)
                key[inputs.labels] = 2.0
                index = key.argsort(descending=True)[:size]
            x, w = inputs.embeddings, centers[index].requires_grad_()
            unit, norm, labels = F.normalize(x), x.norm(dim=1), inputs.labels
            if plain:
                loss = F.cross_entropy(SCALE * unit @ w.T, labels)
            else:
                directions = F.normalize(w)
                slot = (index[None, :] == labels[:, None]).int().argmax(dim=1)
                own = (unit * directions[slot]).sum(dim=1)
                loss = true_loss(unit, directions, labels, index, own, margin, norm)
            inputs.embeddings.grad, w_grad = torch.autograd.grad(loss, (x, w))
            momentum[index] = MOMENTUM * momentum[index] + w_grad
            centers[index] -= LEARNING_RATE * momentum[index]
            return loss.detach()

        return Step(run, lambda: centers.clone(), size)

    return build


def attfc(share: float, policy: str, enqueue: str) -> Callable[[Problem], Step]:
    """A container as a list in order of age, oldest first ("refresh": one entry a class; state by class), or as a ring
    ("fifo": state by slot)."""

    def build(problem: Problem) -> Step:
        slots = max(problem.batch, round(share * problem.identities))
        margin = make_margin(problem).double().to(problem.device)
        # A list of rows by age; where the queue's oldest row stands is all that a ring adds.
        rows = list(F.normalize(initial_centers(slots, problem.dim, problem.device).double()))
        classes = initial_slots(slots, problem.identities, problem.device).tolist()
        written = 0

        def add(centers: Tensor, labels: Tensor) -> None:
            nonlocal written
            for center, label in zip(centers, labels.tolist(), strict=True):
                oldest = classes.index(label) if policy == "refresh" and label in classes else 0
                del rows[oldest], classes[oldest]
                rows.append(center)
                classes.append(label)
                written += 1

        def run(inputs: Inputs) -> Tensor:
            x, labels = inputs.embeddings, inputs.labels
            unit = F.normalize(x)
            with torch.no_grad():
                attention = torch.softmax(F.cosine_similarity(x[:, None], inputs.gallery, dim=2), dim=1)
                fresh = F.normalize((attention[:, :, None] * inputs.gallery).sum(dim=1))
            if enqueue == "before":
                add(fresh, labels)
            own = (unit * fresh).sum(dim=1)
            held = torch.tensor(classes, device=x.device)
            loss = true_loss(unit, torch.stack(rows), labels, held, own, margin, x.norm(dim=1))
            (inputs.embeddings.grad,) = torch.autograd.grad(loss, x)
            if enqueue == "after":
                add(fresh, labels)
            return loss.detach()

        def state() -> Tensor:
            if policy == "refresh":
                held = torch.tensor(classes, device=problem.device)
                return by_class(torch.stack(rows), held, problem.identities)
            return torch.stack(rows).roll(written, dims=0)

        return Step(run, state, slots)

    return build
