"""What a contender must equal before it is timed: the same steps in float64, written out.

Every B x N cosine is stored and autograd does the rest. Two steps are compared, not one: the second one's loss and
gradient see the momentum and the container that the first one left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from problem import (
    LEARNING_RATE,
    MOMENTUM,
    SOFTMAX,
    TRAINED_CENTERS,
    Inputs,
    Problem,
    Step,
    by_class,
    initial_centers,
    initial_slots,
    make_inputs,
)
from torch import Tensor

from attfc_cuda import testing
from attfc_cuda.margins import Margin
from attfc_cuda.plan.heads import container_slots

if TYPE_CHECKING:
    from contenders import Contender

STEPS = 2
# float32: sums in another order. 16 bit: the largest errors of right contenders are 0.008 (ours) and 0.017 (a peer that
# stores logits of long centres in bfloat16); a margin that is wrong by a tenth shows as 0.05 and more.
LIMITS = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
# More classes than the largest number of float16, 65 504, and so flat a softmax that the sum of exp(logit - largest
# logit) is above it as well.
MANY_CLASSES, FLAT_SCALE = 70_000, 2.0**-6
_LEAST_IDENTITIES = 1000


def check(contender: Contender, problem: Problem, identities: int | None = None) -> dict[str, float]:
    """The largest relative error of the loss and of the embeddings' gradient over two steps, and that of what the
    centres have moved by, or of their gradient; on as few of the problem's identities as make sense.

    Raises AssertionError, naming the contender, where one is above the dtype's limit.
    """
    problem = contender.applied(problem)
    problem = dataclasses.replace(problem, identities=identities or identities_of(contender, problem))
    step, truth = contender.build(problem), contender.truth(problem)
    start = None if step.state is None else (step.state(), truth.state())
    errors, losses = {"loss": 0.0, "embedding_grad": 0.0}, []

    def note(name: str, actual: Tensor, exact: Tensor) -> None:
        # In this order a NaN stays.
        errors[name] = max(testing.gradient_difference(actual, exact)["relative_l2"], errors.get(name, 0.0))

    for seed in range(STEPS):
        inputs = make_inputs(problem, seed)
        exact = inputs.double()
        torch.manual_seed(seed)  # Partial FC samples
        loss = step.run(inputs)
        torch.manual_seed(seed)
        losses.append(float(truth.run(exact)))
        note("loss", loss, torch.tensor(losses[-1]))
        note("embedding_grad", inputs.embeddings.grad, exact.embeddings.grad)
        if problem.task == TRAINED_CENTERS:
            note("centers", inputs.centers.grad, exact.centers.grad)
    if start is not None:
        note("centers", step.state() - start[0], truth.state() - start[1])
    # The probability that a gradient may leave out, over that which makes it: 1 - p of the target, twice over for rows
    # that have less of it than the mean.
    omitted = 2 * (problem.grad_tolerance or 0.0) / (1 - math.exp(-losses[0]))
    limit = LIMITS[problem.dtype] + omitted
    if not all(error <= limit for error in errors.values()):
        found = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        name = f"{contender.name} ({problem.margin}, {problem.dtype})"
        raise AssertionError(f"{name} must agree with float64 within {limit:.2g}, got {found}")
    return errors


def over_many_classes(contender: Contender, problem: Problem) -> str:
    """ "right", or what is wrong, of a contender whose step meets 70 000 centres in float16; "-" where none can."""
    if contender.truth is None:
        return "-"
    small = dataclasses.replace(problem, batch=2, dim=16, dtype="float16", scale=FLAT_SCALE)
    try:
        check(contender, small, math.ceil(MANY_CLASSES / contender.share))
    except AssertionError as wrong:
        return str(wrong).rpartition("got ")[2]
    except (RuntimeError, ValueError, TypeError) as cause:
        return f"does not run: {' '.join(str(cause).split())[:100]}"
    return "right"


def identities_of(contender: Contender, problem: Problem) -> int:
    """Enough that a share of them is more than the least container, of four batches: some rows find their class in it,
    some do not."""
    return min(problem.identities, max(_LEAST_IDENTITIES, math.ceil(4.5 * problem.batch / contender.share)))


def true_loss(
    unit: Tensor,
    centers: Tensor,
    labels: Tensor,
    center_labels: Tensor,
    own: Tensor,
    margin: Margin,
    norm: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of the bent own cosine [B] against all centres of other classes, hard ones re-weighted."""
    margin.update(own.detach(), None if norm is None else norm.detach(), torch.ones_like(labels, dtype=torch.bool))
    cosine = unit @ centers.T
    negative = center_labels[None, :] != labels[:, None]
    hard = torch.zeros_like(negative)
    modulation = margin.modulation(own, norm)
    if modulation is not None:
        threshold, quad, lin, const = (value[:, None] for value in modulation)
        hard = negative & (cosine > threshold)
        cosine = torch.where(hard, quad * cosine.square() + lin * cosine + const, cosine)
    target = margin.target(own, norm, hard.sum(dim=1))
    logits = margin.scale * torch.cat([target[:, None], cosine.masked_fill(~negative, -math.inf)], dim=1)
    rows = F.cross_entropy(logits, torch.zeros_like(labels), reduction="none")
    penalty = margin.regularizer(own, norm)
    return (rows if penalty is None else rows + penalty).mean()


def gradient(margin_gradient: str = "exact", normalize: bool = True) -> Callable[[Problem], Step]:
    """Loss and gradients over given centres; those that learn are normalised within it, or not."""

    def build(problem: Problem) -> Step:
        plain = problem.margin == SOFTMAX
        margin = None if plain else problem.make_margin(gradient=margin_gradient).double().to(problem.device).eval()

        def run(inputs: Inputs) -> Tensor:
            x, w, labels = inputs.embeddings, inputs.centers, inputs.labels
            directions = F.normalize(w) if normalize and problem.task == TRAINED_CENTERS else w
            if plain:
                return inputs.backward(F.cross_entropy(problem.scale * x @ directions.T, labels))
            own = (x * directions[labels]).sum(dim=1)
            return inputs.backward(true_loss(x, directions, labels, inputs.center_labels, own, margin))

        return Step(run, None, problem.identities)

    return build


def trained(share: float = 1.0, margin_gradient: str = "exact") -> Callable[[Problem], Step]:
    """A head's centres under SGD with momentum; for a share below 1 the sampled ones alone move.

    Margin "none (softmax)": plain cross entropy over centres that are not normalised.
    """

    def build(problem: Problem) -> Step:
        plain = problem.margin == SOFTMAX
        margin = None if plain else problem.make_margin(gradient=margin_gradient).double().to(problem.device)
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
                loss = F.cross_entropy(problem.scale * unit @ w.T, labels)
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
        slots = container_slots(share, problem.identities, problem.batch)
        margin = problem.make_margin().double().to(problem.device)
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
