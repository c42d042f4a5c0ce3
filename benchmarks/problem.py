"""What is measured: a problem's sizes and settings, the inputs that every contender gets, and what a contender makes.

Three tasks. "head": a training step of a head, which keeps its centres itself. "container": loss and gradient of the
embeddings over unit centres that stay as they are. "trained-centers": loss and both gradients over raw centres.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from attfc_cuda import margins, testing

HEAD, CONTAINER, TRAINED_CENTERS = "head", "container", "trained-centers"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SOFTMAX, NO_LOSS = "none (softmax)", "none"  # the margins of contenders that have none
SCALE, M_RAD = 64.0, 0.5  # as published; peers have no other margin
LEARNING_RATE, MOMENTUM = 0.1, 0.9
GALLERY = 2  # gallery embeddings of each row, for AttFC
_BLOCK = 1024  # different rows in a head's first centres
_CHUNK = 50_000  # centres made at a time, so that making them takes little more memory than they do


@dataclasses.dataclass(frozen=True)
class Problem:
    """One measurement's task; a head's has at least four identities for each row of the batch.

    identities: or, without a head, centres. dtype: of the products (a container is kept in it; a head's trained centres
    are float32). inputs: "random", every tile of centres carries probability and none can be skipped, our slowest case;
    or "trained", as late in training. m_rad: None is the margin's own.
    """

    identities: int
    batch: int
    dim: int
    dtype: str
    device: str
    margin: str
    backend: str = "auto"
    task: str = HEAD
    inputs: str = "random"
    scale: float = SCALE
    m_rad: float | None = None
    grad_tolerance: float | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device, self.torch_dtype, enabled=self.dtype != "float32")

    def make_margin(self, **options: object) -> margins.Margin:
        options |= {} if self.m_rad is None else {"m": self.m_rad}
        return margins.build(self.margin, scale=self.scale, **options)


@dataclasses.dataclass
class Inputs:
    """embeddings [B, D], requiring a gradient; labels [B].

    For a head: float32 embeddings, not normalised, and gallery [B, GALLERY, D]. Otherwise unit embeddings and centers
    [S, D] in the problem's dtype, center_labels [S] counting up: row b's own centre is centers[labels[b]].
    """

    embeddings: Tensor
    labels: Tensor
    gallery: Tensor | None = None
    centers: Tensor | None = None
    center_labels: Tensor | None = None

    def double(self) -> Inputs:
        """The same numbers in float64: what the truth is computed from."""

        def widened(value: Tensor | None) -> Tensor | None:
            if value is None or not value.is_floating_point():
                return value
            return value.detach().double().requires_grad_(value.requires_grad)

        return Inputs(**{name: widened(value) for name, value in vars(self).items()})

    def backward(self, loss: Tensor) -> Tensor:
        """Put the gradients of the embeddings and of centres that learn into `.grad`; returns the loss, detached."""
        leaves = [leaf for leaf in (self.embeddings, self.centers) if leaf is not None and leaf.requires_grad]
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = gradient
        return loss.detach()


@dataclasses.dataclass
class Step:
    """run(inputs) is one step and returns its loss; the embeddings' gradient is in `inputs.embeddings.grad`.

    state(): what a head remembers, float64: centres [N, D] by class (0 where a container has none), or [S, D] by slot
    for a queue; None without a head. centers: how many of them the step's product meets.
    """

    run: Callable[[Inputs], Tensor]
    state: Callable[[], Tensor] | None
    centers: int


def make_inputs(problem: Problem, seed: int = 0) -> Inputs:
    """The same for every contender of a problem."""
    generator = torch.Generator().manual_seed(seed)
    if problem.task != HEAD:
        return _with_centers(problem, generator)
    shape = (problem.batch, 1 + GALLERY, problem.dim)
    rows = (torch.randn(shape, generator=generator) * problem.dim**-0.5).to(problem.device)
    labels = torch.randint(problem.identities, (problem.batch,), generator=generator).to(problem.device)
    return Inputs(rows[:, 0].clone().requires_grad_(), labels, rows[:, 1:].clone())


def _with_centers(problem: Problem, generator: torch.Generator) -> Inputs:
    """Unit rows; centres that learn have lengths from 1/2 to 2.

    "trained": cosine 0.8 to the own centre, and four hard negatives at 0.3 to 0.45 for each row; the rest near 0.
    """
    batch, dim, slots, dtype = problem.batch, problem.dim, problem.identities, problem.torch_dtype
    centers = torch.empty(slots, dim, dtype=dtype)
    for chunk in centers.split(_CHUNK):
        chunk.copy_(testing.unit(torch.randn(len(chunk), dim, generator=generator)))
    order = torch.randperm(slots, generator=generator)
    labels = order[torch.arange(batch) % slots]
    embeddings = testing.unit(torch.randn(batch, dim, generator=generator))
    if problem.inputs == "trained":
        embeddings = testing.at_cosine(centers[labels].float(), 0.8, generator)
        hard = order[batch : 5 * batch]
        near = 0.3 + 0.15 * torch.rand(len(hard), generator=generator)
        centers[hard] = testing.at_cosine(embeddings.repeat(4, 1)[: len(hard)], near, generator).to(dtype)
    trained = problem.task == TRAINED_CENTERS
    if trained:
        for chunk in centers.split(_CHUNK):
            chunk.mul_(4 ** (torch.rand(len(chunk), 1, generator=generator) - 0.5))
    return Inputs(
        embeddings.to(problem.device, dtype).requires_grad_(),
        labels.to(problem.device),
        centers=centers.to(problem.device).requires_grad_(trained),
        center_labels=torch.arange(slots, device=problem.device),
    )


def initial_centers(count: int, dim: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """[count, dim] of lengths around 1: one block of random rows over and over, so that ten million take a moment."""
    centers = torch.empty(count, dim, device=device, dtype=dtype)
    fill_blocks(centers, normalize=False)
    return centers


def fill_blocks(centers: Tensor, normalize: bool) -> None:
    """`initial_centers`, or their unit vectors, into memory that is there."""
    generator = torch.Generator().manual_seed(7)
    block = torch.randn(_BLOCK, centers.shape[1], generator=generator) * centers.shape[1] ** -0.5
    block = (testing.unit(block) if normalize else block).to(centers.device, centers.dtype)
    for chunk in centers.split(_BLOCK):
        chunk.copy_(block[: len(chunk)])


def initial_slots(slots: int, identities: int, device: str) -> Tensor:
    """[slots] int64: a class for each slot, no two the same, spread over all classes."""
    return torch.arange(slots, device=device) * identities // slots


def by_class(centers: Tensor, labels: Tensor, identities: int) -> Tensor:
    """[identities, D] float64: each class's row of `centers` [S, D], 0 for those not among `labels` [S]."""
    dense = torch.zeros(identities, centers.shape[1], dtype=torch.float64, device=centers.device)
    held = labels >= 0
    dense[labels[held]] = centers[held].double()
    return dense


def sgd(parameters: list[Tensor]) -> torch.optim.SGD:
    """torch.optim.SGD whose momentum is there from the first step on, as in all later steps."""
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=MOMENTUM)
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
