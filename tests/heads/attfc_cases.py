"""Batches, heads and the published step restated: what the tests of the AttFC head share."""

from __future__ import annotations

import copy
import math
from collections import deque

import torch
import torch.nn.functional as F

from attfc_cuda.heads import AttFC

BACKENDS = ("eager", "auto")
DIM, CLASSES, CAPACITY = 8, 23, 14  # fewer slots than classes: `refresh` evicts
ROWS = (5, 5, 3, 5, 4, 5)  # ragged, and enough to wrap around more than once


def batches(rows=ROWS, r=2, dtype=torch.float32, seed=0):
    """(embeddings of uneven length, labels, gallery) per step. Few classes: they come again in batch and queue."""
    torch.manual_seed(seed)
    for count in rows:
        embeddings = torch.randn(count, DIM, dtype=torch.float64) * (0.5 + 4 * torch.rand(count, 1))
        gallery = embeddings[:, None] + 1.5 * torch.randn(count, r, DIM, dtype=torch.float64)
        yield embeddings.to(dtype), torch.randint(0, CLASSES, (count,)), gallery.to(dtype)


def step(head, embeddings, labels, gallery, **extra):
    """(loss, gradient of the embeddings) of one forward and backward."""
    embeddings = embeddings.clone().requires_grad_()
    loss = head(embeddings, labels, gallery, **extra)
    loss.backward()
    return loss.detach(), embeddings.grad


def run(head, data):
    return [step(head, *batch) for batch in data]


def filled(**options):
    """A head with some history."""
    head = AttFC(DIM, CAPACITY, num_classes=CLASSES, preset="published", **{"enqueue": "before", **options})
    run(head, batches(seed=1))
    return head


def same(a, b):
    """Bitwise equality of lists of (loss, gradient)."""
    return len(a) == len(b) and all(
        torch.equal(x, y) for pair in zip(a, b, strict=True) for x, y in zip(*pair, strict=True)
    )


def state_of(head):
    return copy.deepcopy(head.state_dict())


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class PublishedStep:
    """AttFC with a queue as published, sample by sample, in float64: own fresh centre as the positive, the queue as
    negatives with the own class left out, the new centres appended after the loss. Shares nothing with the package."""

    def __init__(self, capacity, loss_name, scale=64.0, m=0.5, h=1.5, momentum=0.99):
        self.queue = deque(maxlen=capacity)
        self.loss_name, self.scale, self.m, self.h, self.momentum, self.t = loss_name, scale, m, h, momentum, 0.0
        self.hard = 0

    @staticmethod
    def bent(angle):
        return angle.cos() if angle <= math.pi else -2 - angle.cos()

    def __call__(self, embeddings, labels, gallery):
        probes = [x / x.norm() for x in embeddings]
        centers = []
        for x, images in zip(probes, gallery, strict=True):
            cosines = torch.stack([x.detach() @ (g / g.norm()) for g in images])
            weights = cosines.exp() / cosines.exp().sum()
            center = sum(a * g for a, g in zip(weights, images, strict=True))
            centers.append(center / center.norm())
        positives = [x @ g for x, g in zip(probes, centers, strict=True)]
        self.t = self.momentum * self.t + (1 - self.momentum) * float(sum(positives).detach()) / len(positives)

        losses = []
        for x, label, positive in zip(probes, labels.tolist(), positives, strict=True):
            negatives = [x @ center for other, center in self.queue if other != label]
            theta = positive.acos()
            target = self.bent(theta + self.m)
            if self.loss_name == "adasin":
                phi = (self.t + self.h * (theta / 2).sin()).detach()
                hard = [bool(c > target) for c in negatives]
                self.hard += sum(hard)
                negatives = [phi * c if is_hard else c for c, is_hard in zip(negatives, hard, strict=True)]
                if any(hard):
                    target = self.bent(theta + phi * self.m)
            logits = self.scale * torch.stack([target, *negatives])
            losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
        self.queue.extend(zip(labels.tolist(), centers, strict=True))
        return torch.stack(losses).mean()
