"""What is measured against what: every contender of each task by name, in the order of the tables."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import oracle
import ours
import peers
import torch
from problem import CONTAINER, GALLERY, HEAD, NO_LOSS, SOFTMAX, TRAINED_CENTERS, Problem, Step

from attfc_cuda.ops import backend as _backend
from attfc_cuda.plan.heads import container_slots, sampled_classes
from attfc_cuda.train import TrainConfig

Build = Callable[[Problem], Step]


@dataclasses.dataclass(frozen=True)
class Contender:
    """build(problem) makes its step; truth(problem) the same in float64 (oracle.py), None for the bare product.

    products: of size 2 B D centers that its task needs. share: of the identities, that a head's step meets. margins:
    those it can run; None: any of attfc_cuda.margins. setting: what it changes of a problem. package: what must be
    installed; function: what torch.nn.functional must have. only_gpu: needs a CUDA device.
    """

    name: str
    group: str
    build: Build
    truth: Build | None
    products: int
    ours: bool = False
    share: float = 1.0
    margins: tuple[str, ...] | None = ("arcface",)
    setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    package: str | None = None
    function: str | None = None
    only_gpu: bool = False
    note: str = ""

    def applied(self, problem: Problem) -> Problem:
        """The problem as this contender runs it."""
        return dataclasses.replace(problem, **self.setting)

    def unavailable(self, problem: Problem) -> str | None:
        """Why it cannot run here; None where it can."""
        if self.only_gpu and problem.device != "cuda":
            return "needs a CUDA device"
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.function is not None and not hasattr(torch.nn.functional, self.function):
            return f"torch {torch.__version__} has no {self.function}"
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
        written, gallery and embeddings read, their gradient written. A head's trained centres: float32 centres and
        momentum read and written once, embeddings read, their gradient written. Without a head: centres read (and their
        gradient written), embeddings read, their gradient written.
        """
        element, rows = problem.torch_dtype.itemsize, problem.batch * problem.dim * 4
        if self.group == "product":
            return centers * (problem.dim + problem.batch) * element + rows
        if problem.task != HEAD:
            passes = 1 if problem.task == CONTAINER else 2
            return passes * centers * problem.dim * element + 2 * problem.batch * problem.dim * element
        if self.group.startswith("attfc"):
            return centers * problem.dim * element + problem.batch * problem.dim * element + (2 + GALLERY) * rows
        return 4 * centers * problem.dim * 4 + 2 * rows


_STORES = "stores all logits"
_SOFTMAX_ONLY = "plain softmax: no margin, centres not normalised"
_STRAIGHT = "straight_through"  # InsightFace does not differentiate its margin
_PRODUCT = Contender(
    "bare product", "product", ours.build_product, None, 1, margins=(NO_LOSS,), note="X @ W.T, nothing else"
)


def _heads() -> list[Contender]:
    fc = partial(Contender, group="fc", products=3)
    softmax = partial(fc, truth=oracle.trained(), margins=(SOFTMAX,))
    shares = {share: f"attfc {100 * share:.0f} %" for share in (0.1, 0.3)}
    attfc = [
        Contender(
            name, name, ours.build_attfc(share), oracle.attfc(share, "refresh", "before"), 2,
            ours=True, share=share, margins=None,
        )
        for share, name in shares.items()
    ]  # fmt: skip
    queues = [
        Contender(
            f"{name}, eager", name, peers.build_queue(share), oracle.attfc(share, "fifo", "after"), 2,
            share=share, note=f"as its authors publish it, {_STORES}",
        )
        for share, name in shares.items()
    ]  # fmt: skip
    partial_fc = partial(Contender, group="partial_fc 10 %", products=3, share=0.1)
    return [
        _PRODUCT,
        *attfc,
        *queues,
        partial_fc(
            "partial fc 10 %, fused", build=ours.build_trained(0.1, fused=True), truth=oracle.trained(0.1),
            ours=True, margins=None,
        ),
        partial_fc(
            "partial fc 10 %, eager", build=peers.build_partial(0.1), truth=oracle.trained(0.1, _STRAIGHT),
            note=f"as InsightFace, {_STORES}",
        ),
        fc("full fc, fused", build=ours.build_trained(1, True), truth=oracle.trained(), ours=True, margins=None),
        fc("full fc, torch.optim", build=ours.build_trained(1, False), truth=oracle.trained(), ours=True, margins=None),
        fc(
            "full fc, eager", build=peers.build_full(peers.eager_arcface), truth=oracle.trained(1, _STRAIGHT),
            note=f"as InsightFace, {_STORES}",
        ),
        fc(
            "full fc, torch.compile", build=peers.build_full(peers.stored_arcface, compiles=True),
            truth=oracle.trained(1, _STRAIGHT), note=_STORES,
        ),
        fc(
            "pytorch-metric-learning", build=peers.build_metric_learning, truth=oracle.trained(),
            package="pytorch_metric_learning", note=_STORES,
        ),
        softmax(
            "torch linear_cross_entropy", build=peers.build_full(peers.torch_fused, normalize=False),
            function="linear_cross_entropy", note=_SOFTMAX_ONLY,
        ),
        softmax(
            "cut-cross-entropy", build=peers.build_full(peers.cut_cross_entropy, normalize=False),
            package="cut_cross_entropy", note=f"{_SOFTMAX_ONLY}; on a CPU its torch.compile path",
        ),
        softmax(
            "liger-kernel", build=peers.build_full(peers.liger, normalize=False),
            package="liger_kernel", only_gpu=True, note=_SOFTMAX_ONLY,
        ),
        softmax(
            "quack-kernels", build=peers.build_full(peers.quack, normalize=False),
            package="quack", only_gpu=True, note=_SOFTMAX_ONLY,
        ),
    ]  # fmt: skip


# The share of a row's softmax whose gradient may be left out: 16-bit embeddings' default, in every dtype.
_COLD = {"inputs": "random", "grad_tolerance": 0.0}
_WARM = {"inputs": "trained", "grad_tolerance": 2.0**-12}
_TRAINERS = {"scale": TrainConfig().head.scale, "m_rad": TrainConfig().head.m}


def _gradients(products: int) -> list[Contender]:
    """Without a head: products 2 over a container, 3 where the centres learn."""
    trained = products == 3
    contender = partial(Contender, group="gradient", products=products)
    adasin = partial(contender, build=ours.build_gradient, truth=oracle.gradient(), ours=True, margins=("adasin",))
    arcface = partial(contender, build=ours.build_gradient, truth=oracle.gradient(), ours=True)
    softmax = partial(contender, truth=oracle.gradient(), margins=(SOFTMAX,), note="plain softmax, no margin")
    raw = partial(contender, truth=oracle.gradient(normalize=False), margins=(SOFTMAX,), note=_SOFTMAX_ONLY)
    gpu_softmax = raw if trained else softmax
    trainers = ", ".join(f"{name.removesuffix('_rad')} {value:g}" for name, value in _TRAINERS.items())
    found = [
        _PRODUCT,
        adasin("attfc AdaSin, cold", setting=_COLD, note="every tile matters"),
        adasin("attfc AdaSin, warm", setting=_WARM, note="trained-like, grad_tolerance 2^-12"),
        adasin(
            "attfc AdaSin, warm, trainer's defaults", setting=_WARM | _TRAINERS, note=f"{trainers}: a flatter softmax"
        ),
        arcface("attfc ArcFace, cold", setting=_COLD),
    ]
    if trained:
        found.append(arcface("attfc ArcFace, warm", setting=_WARM))
    else:
        # On Hopper the tolerance also decides between one pass and two: the other pairs of inputs and passes.
        found += [
            adasin(
                "attfc AdaSin, cold, grad_tolerance 2^-12", setting=_COLD | {"grad_tolerance": 2.0**-12}, only_gpu=True
            ),
            adasin("attfc AdaSin, warm, grad_tolerance 0", setting=_WARM | {"grad_tolerance": 0.0}, only_gpu=True),
        ]
    found += [
        contender(
            "eager ArcFace, as InsightFace", build=peers.build_gradient(peers.eager_arcface),
            truth=oracle.gradient(margin_gradient=_STRAIGHT), note=_STORES,
        ),
        contender(
            "torch.compile AdaSin", build=peers.build_gradient(peers.stored_adasin, compiles=True),
            truth=oracle.gradient(), margins=("adasin",), note=_STORES,
        ),
        softmax(
            "torch linear_cross_entropy", build=peers.build_gradient(peers.torch_fused), function="linear_cross_entropy"
        ),
    ]  # fmt: skip
    if trained:
        build = peers.build_gradient(peers.torch_fused, normalize=False)
        found.append(raw("the same, no normalisation", build=build, function="linear_cross_entropy"))
    for name, package, make_loss in (
        ("cut-cross-entropy", "cut_cross_entropy", peers.cut_cross_entropy),
        ("liger-kernel", "liger_kernel", peers.liger),
    ):
        build = peers.build_gradient(make_loss, normalize=False)
        found.append(gpu_softmax(name, build=build, package=package, only_gpu=True))
    return found


def _named(found: list[Contender]) -> dict[str, Contender]:
    return {contender.name: contender for contender in found}


CONTENDERS = {HEAD: _named(_heads()), CONTAINER: _named(_gradients(2)), TRAINED_CENTERS: _named(_gradients(3))}
