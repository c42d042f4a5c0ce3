"""Bytes of each head, item by item: what it keeps between steps and the most that a step adds.

Items follow the code that allocates them; tests/plan measures them on the CPU in fresh processes. Peers are in the
table because the question is which head to take: "explicit" heads store the B x N logits, as plain PyTorch does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from attfc_cuda._check import error
from attfc_cuda.ops.trained_centers import BLOCK_NUMBERS
from attfc_cuda.train.objective import DTYPES, container_slots

KINDS = ("attfc", "fc", "partial_fc", "explicit_fc")
# Accumulators and packed rows of a sweep: its workspace is bounded by this on the CPU (csrc/cpu), and of this order on
# a GPU (one float32 row block a multiprocessor).
_WORKSPACE_BYTES = 12 << 20
_INDEX_BYTES = 8


@dataclass(frozen=True)
class Head:
    """A head by name.

    Attributes:
        label: what the plan calls it.
        kind: one of `KINDS`.
        share: of the identities in its container, or sampled in a step; None: the trainer's default container.
        fused: optimizer in the backward pass.
    """

    label: str
    kind: str
    share: float | None = 1.0
    fused: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise error("plan", "kind", f"be one of {', '.join(KINDS)}", repr(self.kind))
        if self.share is None:
            if self.kind != "attfc":
                raise error("plan", "share", f"be a number for {self.kind}", None)
        elif not 0 < self.share <= 1:
            raise error("plan", "share", "lie in (0, 1]", self.share)


HEADS = (
    Head("AttFC, the default", "attfc", None),
    Head("AttFC 10 %", "attfc", 0.1),
    Head("AttFC 50 %", "attfc", 0.5),
    Head("Partial FC 10 %, fused", "partial_fc", 0.1),
    Head("full FC, fused", "fc"),
    Head("full FC, torch.optim", "fc", fused=False),
    Head("full FC, plain PyTorch", "explicit_fc", fused=False),
)


def check_precision(precision: str) -> None:
    """Raise ValueError for what is no format of the products."""
    if precision not in DTYPES:
        raise error("plan", "precision", f"be one of {', '.join(DTYPES)}", repr(precision))


def sampled_classes(share: float, identities: int, batch: int) -> int:
    """Classes that a step of Partial FC meets: those of the batch always."""
    return min(identities, max(batch, math.ceil(share * identities)))


def centers_met(head: Head, identities: int, batch: int) -> int:
    """Centres in the products of a step of `head`."""
    if head.kind == "attfc":
        return container_slots(head.share, identities, batch)
    return sampled_classes(head.share or 1.0, identities, batch) if head.kind == "partial_fc" else identities


@dataclass
class HeadNeeds:
    """What a head needs.

    Attributes:
        kept: bytes kept between steps, by item.
        step: bytes of a step's peak, by item.
        product_flop: floating-point operations of one product.
        products: how many of that size a step has.
    """

    kept: dict[str, int] = field(default_factory=dict)
    step: dict[str, int] = field(default_factory=dict)
    product_flop: float = 0.0
    products: int = 0

    @property
    def total(self) -> int:
        return sum(self.kept.values()) + sum(self.step.values())


def head_needs(
    head: Head,
    identities: int,
    dim: int,
    batch: int,
    precision: str = "fp32",
    device: str = "cpu",
    policy: str = "refresh",
    momentum: bool = True,
) -> HeadNeeds:
    """What `head` needs for `identities` classes and `batch` rows of `dim` numbers.

    Args:
        head: the head.
        identities: classes.
        dim: numbers of a row.
        batch: rows.
        precision: of the products (autocast); trained centres are float32 masters, a container is kept in it.
        device: "cpu" or "cuda".
        policy: of the container.
        momentum: whether the optimizer keeps one, as SGD with momentum does.

    Raises:
        ValueError: naming the argument.
    """
    check_precision(precision)
    element = DTYPES[precision].itemsize
    rows = batch * dim * 4
    active = centers_met(head, identities, batch)
    needs = HeadNeeds(product_flop=2.0 * batch * dim * active)
    if head.kind == "attfc":
        needs.kept["container"] = active * dim * element
        needs.kept["container labels"] = active * _INDEX_BYTES * (2 if policy == "refresh" else 1)
        if policy == "refresh":
            needs.kept["slot of each class"] = (identities + 1) * 4
        needs.step["sweep"] = _WORKSPACE_BYTES + 6 * rows
        needs.products = 2
        return needs

    weights = identities * dim * 4
    needs.kept["class centres"] = weights
    if momentum:
        needs.kept["momentum"] = weights
    if head.kind == "explicit_fc":
        needs.step["gradient of the centres"] = weights
        # In the backward of the normalisation: its result, that one's gradient, and the quotient on its way back.
        needs.step["normalised centres and their gradient"] = 3 * identities * dim * element
        needs.step["logits, probabilities and gradients"] = batch * identities * (2 * element + 4 + 4)
        needs.products = 3
        return needs

    needs.kept["classes"] = identities * _INDEX_BYTES
    needs.step["inverse norms"] = active * 4
    needs.step["sweep"] = _WORKSPACE_BYTES + 6 * rows
    if head.kind == "partial_fc" and active < identities:
        # Keys, the top of them with their places, sorted places, labels; then the sampled centres themselves.
        needs.step["sampling"] = identities * 4 + active * 4 * _INDEX_BYTES
        needs.step["sampled centres"] = active * dim * 4
    if element < 4:
        needs.step["centres in the products' format"] = active * dim * element
    if head.fused:
        block = min(BLOCK_NUMBERS[device], active * dim)
        parts = 1 if head.kind == "fc" else 3
        needs.step["gradient, a block at a time"] = block * (4 if element == 4 else 4 + 2 * element) * parts
    else:
        needs.step["gradient of the centres"] = weights
        if active < identities:
            needs.step["gradient of the sampled centres"] = active * dim * 4
    needs.products = 4
    return needs
