"""What others offer for the last layer, as steps of the same problems: plain PyTorch and packages.

Plain PyTorch is our own restatement of how public trainers are built: InsightFace's (all logits stored, the target's
replaced in place, a softmax in place; Partial FC by gathering centres and momentum and scattering them back) and that
of AttFC's authors (a queue, logits over all of it stored, the own class masked, then enqueued).
Packages without margins run a plain softmax; where their centres are not normalised, that is less work than others'.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from problem import (
    LEARNING_RATE,
    M_RAD,
    MOMENTUM,
    TRAINED_CENTERS,
    Inputs,
    Problem,
    Step,
    initial_centers,
    initial_slots,
    sgd,
)
from torch import Tensor

from attfc_cuda.plan.heads import container_slots, sampled_classes

# (unit embeddings, unit centres, labels) -> mean loss, under the problem's autocast; a softmax takes any centres.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
MakeLoss = Callable[[float], Loss]  # of the scale


class SoftmaxInPlace(torch.autograd.Function):
    """Mean cross entropy that turns the logits' own memory into probabilities, then into their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        logits.sub_(logits.amax(dim=1, keepdim=True))
        own = logits.gather(1, labels[:, None])
        mass = logits.exp_().sum(dim=1, keepdim=True)
        ctx.probabilities, ctx.labels = logits.div_(mass), labels
        return (mass.log() - own).mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.probabilities = ctx.probabilities, None
        gradient[torch.arange(len(gradient), device=gradient.device), ctx.labels] -= 1
        return gradient.mul_(grad_loss / len(gradient)), None


def arcface_logits(x: Tensor, centers: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Scaled float32 logits [B, K] with the target's angle moved by the margin, in place and without its derivative."""
    logits = (x @ centers.T).float().clamp(-1, 1)
    rows = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        logits[rows, labels] = torch.cos(torch.acos(logits[rows, labels]) + M_RAD)
    return logits * scale


def eager_arcface(scale: float) -> Loss:
    return lambda x, centers, labels: SoftmaxInPlace.apply(arcface_logits(x, centers, labels, scale), labels)


def stored_arcface(scale: float) -> Loss:
    """For torch.compile, which fuses what follows the product."""
    return lambda x, centers, labels: F.cross_entropy(arcface_logits(x, centers, labels, scale), labels)


def stored_adasin(scale: float) -> Loss:
    """AdaSin over all logits with its running state at 0, as a user of torch.compile would write it."""

    def loss(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
        logits = (x @ centers.T).float()
        rows = torch.arange(len(x), device=x.device)
        theta = torch.acos(logits[rows, labels].clamp(-1, 1))
        phi = (1.5 * torch.sin(theta / 2)).detach()
        threshold = torch.cos(theta + M_RAD).detach()
        own = torch.arange(logits.shape[1], device=x.device)[None, :] == labels[:, None]
        hard = (logits > threshold[:, None]) & ~own
        target = torch.where(hard.any(dim=1), torch.cos(theta + phi * M_RAD), torch.cos(theta + M_RAD))
        logits = torch.where(hard, phi[:, None] * logits, logits)
        return F.cross_entropy(torch.where(own, target[:, None], logits) * scale, labels)

    return loss


def build_full(make_loss: MakeLoss, normalize: bool = True, compiles: bool = False) -> Callable:
    """A head: a weight [N, D], normalised or not, under torch.optim.SGD.

    compiles: through torch.compile, which is then to make one graph for every number of identities.
    """

    def build(problem: Problem) -> Step:
        loss_of = make_loss(problem.scale)

        def loss_of_rows(x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
            return loss_of(F.normalize(x), F.normalize(w) if normalize else w, labels)

        whole = torch.compile(loss_of_rows) if compiles else loss_of_rows
        weight = initial_centers(problem.identities, problem.dim, problem.device).requires_grad_()
        if compiles:
            torch._dynamo.maybe_mark_dynamic(weight, 0)
        optimizer = sgd([weight])

        def run(inputs: Inputs) -> Tensor:
            inputs.embeddings.grad = None
            optimizer.zero_grad()
            with problem.autocast():
                loss = whole(inputs.embeddings, weight, inputs.labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Step(run, lambda: weight.detach().double(), problem.identities)

    return build


def build_gradient(make_loss: MakeLoss, normalize: bool = True, compiles: bool = False) -> Callable:
    """Loss and gradients over given centres; those that learn are normalised within the step, or not."""

    def build(problem: Problem) -> Step:
        loss_of, normalizes = make_loss(problem.scale), normalize and problem.task == TRAINED_CENTERS

        def loss_of_rows(x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
            return loss_of(x, F.normalize(w) if normalizes else w, labels)

        whole = torch.compile(loss_of_rows) if compiles else loss_of_rows

        def run(inputs: Inputs) -> Tensor:
            return inputs.backward(whole(inputs.embeddings, inputs.centers, inputs.labels))

        return Step(run, None, problem.identities)

    return build


def build_partial(share: float) -> Callable[[Problem], Step]:
    """Partial FC: own classes and random others are gathered with their momentum, trained, and scattered back."""

    def build(problem: Problem) -> Step:
        weight = initial_centers(problem.identities, problem.dim, problem.device)
        momentum, loss_of = torch.zeros_like(weight), eager_arcface(problem.scale)
        size = sampled_classes(share, len(weight), problem.batch)

        def run(inputs: Inputs) -> Tensor:
            inputs.embeddings.grad = None
            key = torch.rand(len(weight), device=weight.device)
            key[inputs.labels.unique()] = 2.0
            index = key.topk(size).indices.sort().values
            active = weight[index].requires_grad_()
            optimizer = torch.optim.SGD([active], LEARNING_RATE, momentum=MOMENTUM)
            optimizer.state[active]["momentum_buffer"] = momentum[index]
            with problem.autocast():
                x, w = F.normalize(inputs.embeddings), F.normalize(active)
                loss = loss_of(x, w, torch.searchsorted(index, inputs.labels))
            loss.backward()
            optimizer.step()
            weight[index] = active.detach()
            momentum[index] = optimizer.state[active]["momentum_buffer"]
            return loss.detach()

        return Step(run, lambda: weight.double(), size)

    return build


def build_queue(share: float) -> Callable[[Problem], Step]:
    """AttFC as published: centres by attention over the gallery, a queue in order of arrival, filled after the loss."""

    def build(problem: Problem) -> Step:
        slots = container_slots(share, problem.identities, problem.batch)
        queue = F.normalize(initial_centers(slots, problem.dim, problem.device)).to(problem.torch_dtype)
        queue_labels = initial_slots(slots, problem.identities, problem.device)
        pointer = 0

        def run(inputs: Inputs) -> Tensor:
            nonlocal pointer
            inputs.embeddings.grad = None
            x, labels = F.normalize(inputs.embeddings), inputs.labels
            with torch.no_grad():
                attention = torch.softmax((x[:, None] * F.normalize(inputs.gallery, dim=2)).sum(dim=2), dim=1)
                centers = F.normalize((attention[:, :, None] * inputs.gallery).sum(dim=1))
            cosine = (x * centers).sum(dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
            negatives = (x.to(queue.dtype) @ queue.T).float()
            negatives = negatives.masked_fill(labels[:, None] == queue_labels[None, :], -math.inf)
            target = torch.cos(torch.acos(cosine) + M_RAD)
            logits = problem.scale * torch.cat([target[:, None], negatives], dim=1)
            loss = F.cross_entropy(logits, torch.zeros_like(labels))
            loss.backward()
            place = torch.arange(pointer, pointer + len(labels), device=queue.device) % slots
            queue[place], queue_labels[place] = centers.to(queue.dtype), labels
            pointer = (pointer + len(labels)) % slots
            return loss.detach()

        return Step(run, lambda: queue.double(), slots)

    return build


def softmax_by(loss_of: Loss, scale: float) -> Loss:
    """A package's loss of scaled unit embeddings and centres, both in autocast's dtype where it is on."""

    def loss(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
        x = scale * x
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, centers = x.to(dtype), centers.to(dtype)
        return loss_of(x, centers, labels)

    return loss


def torch_fused(scale: float) -> Loss:
    return softmax_by(F.linear_cross_entropy, scale)


def cut_cross_entropy(scale: float) -> Loss:
    package = importlib.import_module("cut_cross_entropy")

    # Without a GPU the package offers torch.compile over stored logits, with one its own kernels.
    def loss(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
        return package.linear_cross_entropy(x, centers, labels, impl="cce" if x.is_cuda else "torch_compile")

    return softmax_by(loss, scale)


def liger(scale: float) -> Loss:
    function = importlib.import_module("liger_kernel.ops").LigerFusedLinearCrossEntropyFunction

    def loss(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
        result = function.apply(x, centers, labels)
        return result[0] if isinstance(result, tuple) else result

    return softmax_by(loss, scale)


def quack(scale: float) -> Loss:
    return softmax_by(importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy, scale)


def build_metric_learning(problem: Problem) -> Step:
    """pytorch-metric-learning's ArcFaceLoss; its weight is [D, N]."""
    losses = importlib.import_module("pytorch_metric_learning.losses")
    options = {"margin": math.degrees(M_RAD), "scale": problem.scale, "weight_init_func": lambda weight: weight}
    layer = losses.ArcFaceLoss(problem.identities, problem.dim, **options)
    layer.W.data = initial_centers(problem.identities, problem.dim, problem.device).T.contiguous()
    optimizer = sgd([layer.W])

    def run(inputs: Inputs) -> Tensor:
        inputs.embeddings.grad = None
        optimizer.zero_grad()
        with problem.autocast():
            loss = layer(inputs.embeddings, inputs.labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Step(run, lambda: layer.W.detach().T.double(), problem.identities)
