"""Learning rate and encoder momentum as functions of the step alone: nothing to save, nothing to drift on resuming."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

FIRST_MOMENTUM = 0.9


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to `peak`, then cosine or polynomial decay to `final * peak`, over `total` steps.

    Step k (0-based) of the warm-up has peak * (k + 1) / warmup_steps, so no step is wasted on a rate of 0; the decay
    reaches its end value at the last step, total - 1.
    """

    peak: float
    total: int
    warmup_steps: int
    final: float = 0.0
    shape: Literal["cosine", "polynomial"] = "cosine"
    power: float = 2.0

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        span = max(1, self.total - 1 - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else (1 - done) ** self.power
        return self.peak * (self.final + (1 - self.final) * left)


@dataclass(frozen=True)
class EncoderMomentum:
    """1 - momentum falls geometrically from 0.1 to 1 - `final` over `warmup_steps`, then stays. Our choice.

    Early weights change fast and are not worth remembering; a constant high momentum would keep the initial network in
    the average for its whole memory. A `final` of 0.9 or less is used from the start.
    """

    final: float
    warmup_steps: int

    def __call__(self, step: int) -> float:
        if self.final <= FIRST_MOMENTUM or step >= self.warmup_steps:
            return self.final
        first = 1 - FIRST_MOMENTUM
        return 1 - first * ((1 - self.final) / first) ** (step / self.warmup_steps)
