"""What is measured: named shapes, inputs, and the contenders, each a function of the same inputs.

Two cases. "container": unit centres that stay as they are; a contender returns the loss and the gradient of the unit
embeddings. "trained-centers": raw centres that learn; a contender normalises them and returns the loss and both
gradients. The peers are written as users of plain PyTorch write them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attfc_cuda import AdaSin, ArcFace, inverse_norms, margin_softmax_loss, testing

M_RAD = 0.5
SCALE = 64.0


@dataclasses.dataclass(frozen=True)
class Shape:
    rows: int
    slots: int
    dim: int

    @property
    def product_flop(self) -> int:
        return 2 * self.rows * self.slots * self.dim


SHAPES = {
    "small": Shape(128, 10_000, 512),
    "ms1m-container": Shape(384, 27_648, 512),
    "100k": Shape(384, 100_000, 512),
    "1m": Shape(384, 1_000_000, 512),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass
class Inputs:
    """embeddings [B, D], centers [S, D] of one dtype; labels [B] are slots of the centers: row b's own is labels[b]."""

    embeddings: Tensor
    centers: Tensor
    labels: Tensor
    center_labels: Tensor


def make_inputs(shape: Shape, dtype: torch.dtype, kind: str, raw: bool = False, seed: int = 0) -> Inputs:
    """Unit rows; raw: centres of lengths from 1/2 to 2.

    kind "random": every tile of centres carries probability. "trained": cosine 0.8 to the own centre and four hard
    negatives at 0.3 to 0.45 for each row, the rest near 0, as late in training."""
    generator = torch.Generator().manual_seed(seed)
    centers = testing.unit(torch.randn(shape.slots, shape.dim, generator=generator))
    order = torch.randperm(shape.slots, generator=generator)
    labels = order[: shape.rows]
    embeddings = testing.unit(torch.randn(shape.rows, shape.dim, generator=generator))
    if kind == "trained":
        embeddings = testing.at_cosine(centers[labels], 0.8, generator)
        hard = order[shape.rows : 5 * shape.rows]
        near = 0.3 + 0.15 * torch.rand(len(hard), generator=generator)
        centers[hard] = testing.at_cosine(embeddings.repeat(4, 1)[: len(hard)], near, generator)
    if raw:
        centers *= 4 ** (torch.rand(shape.slots, 1, generator=generator) - 0.5)
    return Inputs(embeddings.to(dtype), centers.to(dtype), labels, torch.arange(shape.slots))


def bare_product(inputs: Inputs) -> Tensor:
    return inputs.embeddings @ inputs.centers.T


# Loss, gradient of the embeddings and, where they are trained, that of the centres.
Step = Callable[[Inputs], tuple[Tensor, ...]]


def ours(margin: type, **options) -> Step:
    """The loss and its gradient by the sweep. The own centre's cosine is a row-wise product, as in the heads."""
    layer = margin(scale=SCALE, m=M_RAD).eval()

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        x = inputs.embeddings.detach().requires_grad_()
        cosine = (_wide(x) * _wide(inputs.centers[inputs.labels])).sum(dim=1)
        loss = margin_softmax_loss(
            x, inputs.centers, inputs.labels, inputs.center_labels, layer, target_cosine=cosine, **options
        ).loss
        return loss.detach(), *torch.autograd.grad(loss, x)

    return run


def ours_trained(margin: type, **options) -> Step:
    """The same with centres that learn, raw: their inverse norms are part of the step."""
    layer = margin(scale=SCALE, m=M_RAD).eval()

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        x, w = inputs.embeddings.detach().requires_grad_(), inputs.centers.detach().requires_grad_()
        labels = inputs.labels
        loss = margin_softmax_loss(
            x, w, labels, inputs.center_labels, layer, target_slot=labels, center_scale=inverse_norms(w), **options
        ).loss
        return loss.detach(), *torch.autograd.grad(loss, (x, w))

    return run


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _arcface_loss(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """As the common open-source trainers write ArcFace: all logits, the target's replaced in place, then the scale."""
    logits = x @ centers.T
    rows = torch.arange(len(x), device=x.device)
    cosine = _wide(logits[rows, labels]).clamp(-1, 1)
    bent = torch.cos(torch.acos(cosine) + M_RAD).to(logits.dtype)
    return F.cross_entropy(_wide(logits.index_put((rows, labels), bent) * SCALE), labels)


def _adasin_loss(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """AdaSin over all logits with the state t at 0, as a user of torch.compile would write it."""
    logits = _wide(x @ centers.T)
    rows = torch.arange(len(x), device=x.device)
    theta = torch.acos(logits[rows, labels].clamp(-1, 1))
    phi = (1.5 * torch.sin(theta / 2)).detach()
    threshold = torch.cos(theta + M_RAD).detach()
    own = torch.arange(logits.shape[1], device=x.device)[None, :] == labels[:, None]
    hard = (logits > threshold[:, None]) & ~own
    any_hard = hard.any(dim=1)
    target = torch.where(any_hard, torch.cos(theta + phi * M_RAD), torch.cos(theta + M_RAD))
    logits = torch.where(hard, phi[:, None] * logits, logits)
    return F.cross_entropy(_wide(torch.where(own, target[:, None], logits) * SCALE), labels)


def _softmax_loss(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(_wide(x @ centers.T * SCALE), labels)


def _fused_softmax_loss(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """torch's own fused loss: plain softmax, no margin."""
    return F.linear_cross_entropy(x * SCALE, centers, labels)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def of_loss(loss_of: Loss, compiled: bool = False) -> Step:
    step = torch.compile(loss_of) if compiled else loss_of

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        x = inputs.embeddings.detach().requires_grad_()
        loss = step(x, inputs.centers, inputs.labels)
        return loss.detach(), *torch.autograd.grad(loss, x)

    return run


def of_trained_loss(loss_of: Loss, compiled: bool = False, normalize: bool = True) -> Step:
    def whole(x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
        return loss_of(x, F.normalize(w) if normalize else w, labels)

    step = torch.compile(whole) if compiled else whole

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        x, w = inputs.embeddings.detach().requires_grad_(), inputs.centers.detach().requires_grad_()
        loss = step(x, w, inputs.labels)
        return loss.detach(), *torch.autograd.grad(loss, (x, w))

    return run


@dataclasses.dataclass(frozen=True)
class Contender:
    run: Callable
    kind: str  # of inputs
    truth: Step | None  # in float64, for the check before timing
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    raw: bool  # whether the centres are
    products: int  # of the size of the bare one, that the task needs
    contenders: dict[str, Contender]


PRODUCT = Contender(bare_product, "random", None, "X @ W.T, nothing else")
_COLD, _WARM = {"grad_tolerance": 0.0}, {"grad_tolerance": 2.0**-12}
_EVERY, _TRAINED, _STORES = "every tile matters", "trained-like, grad_tolerance 2^-12", "stores all logits"
_HAS_FUSED = hasattr(F, "linear_cross_entropy")


def _container() -> Case:
    arcface, adasin, softmax = of_loss(_arcface_loss), of_loss(_adasin_loss), of_loss(_softmax_loss)
    contenders = {
        "bare product": PRODUCT,
        "attfc AdaSin, cold": Contender(ours(AdaSin, **_COLD), "random", adasin, _EVERY),
        "attfc AdaSin, warm": Contender(ours(AdaSin, **_WARM), "trained", adasin, _TRAINED),
        "attfc ArcFace, cold": Contender(ours(ArcFace, **_COLD), "random", arcface, ""),
        "eager ArcFace": Contender(arcface, "random", arcface, _STORES),
        "torch.compile AdaSin": Contender(of_loss(_adasin_loss, compiled=True), "random", adasin, _STORES),
    }
    if _HAS_FUSED:
        contenders["torch linear_cross_entropy"] = Contender(
            of_loss(_fused_softmax_loss), "random", softmax, "plain softmax, no margin"
        )
    return Case(False, 2, contenders)


def _trained_centers() -> Case:
    arcface, adasin = of_trained_loss(_arcface_loss), of_trained_loss(_adasin_loss)
    contenders = {
        "bare product": PRODUCT,
        "attfc AdaSin, cold": Contender(ours_trained(AdaSin, **_COLD), "random", adasin, _EVERY),
        "attfc AdaSin, warm": Contender(ours_trained(AdaSin, **_WARM), "trained", adasin, _TRAINED),
        "attfc ArcFace, cold": Contender(ours_trained(ArcFace, **_COLD), "random", arcface, ""),
        "attfc ArcFace, warm": Contender(ours_trained(ArcFace, **_WARM), "trained", arcface, _TRAINED),
        "eager ArcFace": Contender(arcface, "random", arcface, _STORES),
        "torch.compile AdaSin": Contender(of_trained_loss(_adasin_loss, compiled=True), "random", adasin, _STORES),
    }
    if _HAS_FUSED:
        for name, normalize in (("torch linear_cross_entropy", True), ("the same, no normalisation", False)):
            fused, softmax = (
                of_trained_loss(loss, normalize=normalize) for loss in (_fused_softmax_loss, _softmax_loss)
            )
            contenders[name] = Contender(fused, "random", softmax, "plain softmax, no margin")
    return Case(True, 3, contenders)


CASES = {"container": _container(), "trained-centers": _trained_centers()}


def check(contender: Contender, inputs: Inputs, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the loss and the gradients against float64; raises where they are off by more than the dtype
    and the contender's own tolerance explain (a peer that stores 16-bit logits is off by scale * eps)."""
    exact = Inputs(inputs.embeddings.double(), inputs.centers.double(), inputs.labels, inputs.center_labels)
    loss, *grads = contender.truth(exact)
    found_loss, *found_grads = contender.run(inputs)
    errors = {"loss_error": float((found_loss.double() - loss).abs() / loss.abs())}
    for name, found, grad in zip(("grad_error", "center_grad_error"), found_grads, grads, strict=False):
        errors[name] = testing.gradient_difference(found, grad)["relative_l2"]
    limit = max(1e-4, SCALE * torch.finfo(dtype).eps)
    if not max(errors.values()) <= limit:
        raise AssertionError(f"a contender must agree with float64 within {limit:.2g}, got {errors}")
    return errors
