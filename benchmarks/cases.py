"""What is measured: named shapes, inputs, and the contenders, each a function of the same inputs.

A contender takes unit embeddings that require a gradient, unit centres and labels, and returns the loss after making
the gradient of the embeddings. The peers are written as users of plain PyTorch write them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attfc_cuda import AdaSin, ArcFace, margin_softmax_loss, testing

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


def make_inputs(shape: Shape, dtype: torch.dtype, kind: str, seed: int = 0) -> Inputs:
    """kind "random": every tile of centres carries probability. "trained": cosine 0.8 to the own centre and four hard
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
    return Inputs(embeddings.to(dtype), centers.to(dtype), labels, torch.arange(shape.slots))


def bare_product(inputs: Inputs) -> Tensor:
    return inputs.embeddings @ inputs.centers.T


def ours(margin: type, **options) -> Callable[[Inputs], tuple[Tensor, Tensor]]:
    """The loss and its gradient by the sweep. The own centre's cosine is a row-wise product, as in the heads."""
    layer = margin(scale=SCALE, m=M_RAD).eval()

    def run(inputs: Inputs) -> tuple[Tensor, Tensor]:
        x = inputs.embeddings.detach().requires_grad_()
        cosine = (_wide(x) * _wide(inputs.centers[inputs.labels])).sum(dim=1)
        loss = margin_softmax_loss(
            x, inputs.centers, inputs.labels, inputs.center_labels, layer, target_cosine=cosine, **options
        ).loss
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    return run


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _arcface_logits(x: Tensor, inputs: Inputs) -> Tensor:
    """As the common open-source trainers write ArcFace: all logits, the target's replaced in place, then the scale."""
    logits = x @ inputs.centers.T
    rows = torch.arange(len(x))
    cosine = _wide(logits[rows, inputs.labels]).clamp(-1, 1)
    bent = torch.cos(torch.acos(cosine) + M_RAD).to(logits.dtype)
    return logits.index_put((rows, inputs.labels), bent) * SCALE


def _adasin_logits(x: Tensor, inputs: Inputs) -> Tensor:
    """AdaSin over all logits with the state t at 0, as a user of torch.compile would write it."""
    logits = _wide(x @ inputs.centers.T)
    rows = torch.arange(len(x))
    theta = torch.acos(logits[rows, inputs.labels].clamp(-1, 1))
    phi = (1.5 * torch.sin(theta / 2)).detach()
    threshold = torch.cos(theta + M_RAD).detach()
    own = torch.arange(logits.shape[1])[None, :] == inputs.labels[:, None]
    hard = (logits > threshold[:, None]) & ~own
    any_hard = hard.any(dim=1)
    target = torch.where(any_hard, torch.cos(theta + phi * M_RAD), torch.cos(theta + M_RAD))
    logits = torch.where(hard, phi[:, None] * logits, logits)
    return torch.where(own, target[:, None], logits) * SCALE


def explicit(
    logits_of: Callable[[Tensor, Inputs], Tensor], compiled: bool
) -> Callable[[Inputs], tuple[Tensor, Tensor]]:
    def loss_of(x: Tensor, inputs: Inputs) -> Tensor:
        return F.cross_entropy(_wide(logits_of(x, inputs)), inputs.labels)

    step = torch.compile(loss_of) if compiled else loss_of

    def run(inputs: Inputs) -> tuple[Tensor, Tensor]:
        x = inputs.embeddings.detach().requires_grad_()
        loss = step(x, inputs)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    return run


def linear_cross_entropy(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """torch's own fused loss: plain softmax, no margin."""
    x = inputs.embeddings.detach().requires_grad_()
    loss = F.linear_cross_entropy(x * SCALE, inputs.centers, inputs.labels)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@dataclasses.dataclass(frozen=True)
class Contender:
    run: Callable
    kind: str  # of inputs
    products: int  # of the size of the bare one
    truth: Callable[[Tensor, Inputs], Tensor] | None  # its logits in float64, for the check before timing
    note: str = ""


def _softmax_logits(x: Tensor, inputs: Inputs) -> Tensor:
    return x @ inputs.centers.T * SCALE


CONTENDERS = {
    "bare product": Contender(bare_product, "random", 1, None, "X @ W.T, nothing else"),
    "attfc AdaSin, cold": Contender(
        ours(AdaSin, grad_tolerance=0.0), "random", 2, _adasin_logits, "every tile matters"
    ),
    "attfc AdaSin, warm": Contender(
        ours(AdaSin, grad_tolerance=2.0**-12), "trained", 2, _adasin_logits, "trained-like, grad_tolerance 2^-12"
    ),
    "attfc ArcFace, cold": Contender(ours(ArcFace, grad_tolerance=0.0), "random", 2, _arcface_logits, ""),
    "eager ArcFace": Contender(explicit(_arcface_logits, False), "random", 2, _arcface_logits, "stores all logits"),
    "torch.compile AdaSin": Contender(explicit(_adasin_logits, True), "random", 2, _adasin_logits, "stores all logits"),
}
if hasattr(F, "linear_cross_entropy"):
    CONTENDERS["torch linear_cross_entropy"] = Contender(
        linear_cross_entropy, "random", 2, _softmax_logits, "plain softmax, no margin"
    )


def check(contender: Contender, inputs: Inputs, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the loss and the gradient against float64; raises where they are off by more than the dtype
    and the contender's own tolerance explain (a peer that stores 16-bit logits is off by scale * eps)."""
    exact = Inputs(inputs.embeddings.double(), inputs.centers.double(), inputs.labels, inputs.center_labels)
    loss, grad = explicit(contender.truth, False)(exact)
    found_loss, found_grad = contender.run(inputs)
    errors = {
        "loss_error": float((found_loss.double() - loss).abs() / loss.abs()),
        "grad_error": testing.gradient_difference(found_grad, grad)["relative_l2"],
    }
    limit = max(1e-4, SCALE * torch.finfo(dtype).eps)
    if not max(errors.values()) <= limit:
        raise AssertionError(f"a contender must agree with float64 within {limit:.2g}, got {errors}")
    return errors
