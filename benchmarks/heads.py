"""The contenders of run.py: a training step of each head as a function of the same inputs, and what each must equal.

A contender builds a `Step` for a `Problem`. Its `run` does all that a training loop asks of the head: forward, backward
down to the embeddings, and the update of whatever the head keeps (SGD with momentum 0.9 on class centres; a container's
enqueue). Peers are in peers.py, what every contender is checked against in oracle.py.

Inputs are random: every tile of centres carries probability and the sweep can skip none, our heads' slowest case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attfc_cuda import AttFC, FullyConnected, PartialFC, margins
from attfc_cuda.heads import fully_connected
from attfc_cuda.ops import backend as _backend
from attfc_cuda.plan.heads import container_slots, sampled_classes

SCALE = 64.0  # of every loss; margins keep their own default, m = 0.5 for AdaSin and ArcFace
LEARNING_RATE, MOMENTUM = 0.1, 0.9
GALLERY = 2  # gallery embeddings of each row, for AttFC
SOFTMAX, NO_LOSS = "none (softmax)", "none"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CASES = {"ms1mv3": 93_431, "glint360k": 360_232, "1m": 1_000_000, "webface42m": 2_059_906, "10m": 10_000_000}
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Problem:
    """One measurement's task, of at least as many identities as the batch has rows.

    dtype: of the products (a container is kept in it; trained centres are float32).
    """

    identities: int
    batch: int
    dim: int
    dtype: str
    device: str
    margin: str
    backend: str = "auto"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device, self.torch_dtype, enabled=self.dtype != "float32")


@dataclasses.dataclass
class Inputs:
    """embeddings [B, D] float32, requiring a gradient; labels [B]; gallery [B, GALLERY, D]."""

    embeddings: Tensor
    labels: Tensor
    gallery: Tensor


@dataclasses.dataclass
class Step:
    """run(inputs) is one training step and returns its loss; the embeddings' gradient is in `inputs.embeddings.grad`.

    state(): what the head remembers, float64: centres [N, D] by class (0 where a container has none), or [S, D] by
    slot for a queue. centers: how many of them a step's product meets.
    """

    run: Callable[[Inputs], Tensor]
    state: Callable[[], Tensor]
    centers: int


@dataclasses.dataclass(frozen=True)
class Contender:
    """build(problem) makes its step; truth(problem) the same in float64 (oracle.py), None for the bare product.

    margins: those it can run; None: any of attfc_cuda.margins. products: of size 2 B D centers that its task needs.
    package: what must be installed. only_gpu: needs a CUDA device.
    """

    name: str
    group: str
    build: Callable[[Problem], Step]
    truth: Callable[[Problem], Step] | None
    products: int
    ours: bool = False
    share: float = 1.0
    margins: tuple[str, ...] | None = ("arcface",)
    package: str | None = None
    only_gpu: bool = False
    note: str = ""

    def unavailable(self, problem: Problem) -> str | None:
        """Why it cannot run here; None where it can."""
        if self.only_gpu and problem.device != "cuda":
            return "needs a CUDA device"
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.ours:
            try:
                self.resolved(problem)
            except RuntimeError as reason:
                return str(reason)
        return None

    def resolved(self, problem: Problem) -> str | None:
        """The backend that the problem's stands for; None for a peer."""
        device = torch.device(problem.device)
        return _backend.resolve(problem.backend, device, problem.torch_dtype, problem.dim) if self.ours else None

    def centers(self, identities: int, batch: int) -> int:
        """How many centres a step of it meets."""
        if self.group.startswith("attfc"):
            return container_slots(self.share, identities, batch)
        return sampled_classes(self.share, identities, batch)

    def least_bytes(self, problem: Problem, centers: int) -> int:
        """The least that a step has to move to and from memory, whatever its code.

        A product: centres and embeddings read, results written. AttFC: the container read once, a batch of centres
        written, gallery and embeddings read, their gradient written. Trained centres: float32 centres and momentum read
        and written once, embeddings read, their gradient written.
        """
        element, rows = problem.torch_dtype.itemsize, problem.batch * problem.dim * 4
        if self.group == "product":
            return centers * (problem.dim + problem.batch) * element + rows
        if self.group.startswith("attfc"):
            return centers * problem.dim * element + problem.batch * problem.dim * element + (2 + GALLERY) * rows
        return 4 * centers * problem.dim * 4 + 2 * rows


def make_inputs(problem: Problem, seed: int = 0) -> Inputs:
    """Random embeddings of lengths around 1, random labels; the same for every contender."""
    generator = torch.Generator().manual_seed(seed)
    shape = (problem.batch, 1 + GALLERY, problem.dim)
    rows = (torch.randn(shape, generator=generator) * problem.dim**-0.5).to(problem.device)
    labels = torch.randint(problem.identities, (problem.batch,), generator=generator).to(problem.device)
    return Inputs(rows[:, 0].clone().requires_grad_(), labels, rows[:, 1:].clone())


def initial_centers(count: int, dim: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """[count, dim] of lengths around 1: one block of random rows over and over, so that ten million take a moment."""
    generator = torch.Generator().manual_seed(7)
    block = (torch.randn(_BLOCK, dim, generator=generator) * dim**-0.5).to(device, dtype)
    centers = torch.empty(count, dim, device=device, dtype=dtype)
    for stretch in centers.split(_BLOCK):
        stretch.copy_(block[: len(stretch)])
    return centers


def initial_slots(slots: int, identities: int, device: str) -> Tensor:
    """[slots] int64: a class for each slot, no two the same, spread over all classes."""
    return torch.arange(slots, device=device) * identities // slots


def make_margin(problem: Problem, **options: object) -> margins.Margin:
    return margins.build(problem.margin, scale=SCALE, **options)


def by_class(centers: Tensor, labels: Tensor, identities: int) -> Tensor:
    """[identities, D] float64: each class's row of `centers` [S, D], 0 for those not among `labels` [S]."""
    dense = torch.zeros(identities, centers.shape[1], dtype=torch.float64, device=centers.device)
    held = labels >= 0
    dense[labels[held]] = centers[held].double()
    return dense


def build_attfc(share: float) -> Callable[[Problem], Step]:
    """`AttFC` with a full container, policy "refresh" and enqueue "before": the trainer's defaults."""

    def build(problem: Problem) -> Step:
        slots = container_slots(share, problem.identities, problem.batch)
        with torch.device(problem.device):
            head = AttFC(
                problem.dim,
                slots,
                make_margin(problem),
                policy="refresh",
                num_classes=problem.identities,
                dtype=problem.torch_dtype,
                backend=problem.backend,
            )
        container = head.container
        fill_rows(container.centers)
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


def fill_rows(centers: Tensor) -> None:
    """`initial_centers`, normalised, into a container's own buffer."""
    block = initial_centers(min(len(centers), _BLOCK), centers.shape[1], str(centers.device.type))
    block = torch.nn.functional.normalize(block).to(centers.dtype)
    for stretch in centers.split(_BLOCK):
        stretch.copy_(block[: len(stretch)])


def build_trained(share: float, fused: bool) -> Callable[[Problem], Step]:
    """`FullyConnected` or, for a share below 1, `PartialFC`, with the optimizer in the backward pass or torch.optim."""

    def build(problem: Problem) -> Step:
        options = {"margin": make_margin(problem), "backend": problem.backend}
        with cheap_centers(problem.device):
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
def cheap_centers(device: str) -> Iterator[None]:
    """Within it, heads start from `initial_centers` on the device instead of a normal distribution's own draw."""
    original = fully_connected._initial_centers
    fully_connected._initial_centers = lambda first, last, dim, dtype: initial_centers(last - first, dim, device, dtype)
    try:
        yield
    finally:
        fully_connected._initial_centers = original


def sgd(parameters: list[Tensor]) -> torch.optim.SGD:
    """torch.optim.SGD whose momentum is there from the first step on, as in all later steps."""
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=MOMENTUM)
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_product(problem: Problem) -> Step:
    """X @ W.T and nothing else."""
    centers = initial_centers(problem.identities, problem.dim, problem.device, problem.torch_dtype)

    def run(inputs: Inputs) -> Tensor:
        return inputs.embeddings.detach().to(problem.torch_dtype) @ centers.T

    return Step(run, lambda: centers.double(), problem.identities)
