"""Margins that lower the target by a fixed rule and leave negatives alone: NormFace, CosFace, ArcFace, SphereFace."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from attfc_cuda.margins.angles import angle, psi
from attfc_cuda.margins.base import Margin, MarginOptions, require

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of Python 3.11 and later; torch brings it


class NormFace(Margin):
    """T = cos theta: the normalised softmax without a margin (arXiv 1704.06369)."""

    def target_cosine(self, cosine: Tensor, norm: Tensor | None, hard_count: Tensor | None) -> Tensor:
        return cosine


class CosFace(Margin):
    """T = cos theta - m (arXiv 1801.09414, eq. 4).

    Args:
        m: margin in cosine, at least 0; published 0.35.
        **base: the arguments of `Margin`.
    """

    def __init__(self, m: float = 0.35, **base: Unpack[MarginOptions]) -> None:
        super().__init__(**base)
        require("CosFace", "m", "be a finite number of at least 0", m, lambda: 0 <= m < math.inf)
        self.m = m

    def target_cosine(self, cosine: Tensor, norm: Tensor | None, hard_count: Tensor | None) -> Tensor:
        return cosine - self.m

    def extra_repr(self) -> str:
        return f"m={self.m}, {super().extra_repr()}"


class CombinedMargin(Margin):
    """T = psi(m1 theta + m2) - m3 (arXiv 1801.07698, eq. 4).

    Past pi the cosine keeps falling (`margins.psi`), our choice; InsightFace continues with cos theta - m sin m or
    stops the margin there.

    Args:
        m1: factor of the angle, above 0.
        m2: radians added, at least 0.
        m3: cosine taken off, at least 0.
        **base: the arguments of `Margin`.
    """

    def __init__(self, m1: float = 1.0, m2: float = 0.3, m3: float = 0.2, **base: Unpack[MarginOptions]) -> None:
        super().__init__(**base)
        name = type(self).__name__
        require(name, "m1", "be a finite number above 0", m1, lambda: 0 < m1 < math.inf)
        require(name, "m2", "be a finite number of at least 0", m2, lambda: 0 <= m2 < math.inf)
        require(name, "m3", "be a finite number of at least 0", m3, lambda: 0 <= m3 < math.inf)
        self.m1, self.m2, self.m3 = m1, m2, m3

    def target_cosine(self, cosine: Tensor, norm: Tensor | None, hard_count: Tensor | None) -> Tensor:
        return psi(self.m1 * angle(cosine) + self.m2) - self.m3

    def extra_repr(self) -> str:
        return f"m1={self.m1}, m2={self.m2}, m3={self.m3}, {super().extra_repr()}"


class ArcFace(CombinedMargin):
    """T = psi(theta + m) (arXiv 1801.07698, eq. 3).

    Args:
        m: margin in radians, at least 0; published 0.5.
        **base: the arguments of `Margin`.
    """

    def __init__(self, m: float = 0.5, **base: Unpack[MarginOptions]) -> None:
        super().__init__(1.0, m, 0.0, **base)


class SphereFace(CombinedMargin):
    """T = psi(m theta) on normalised embeddings (arXiv 1704.08063, its psi, with the fixed scale of its successors).

    Args:
        m: factor of the angle, above 0. The default, 1.35, is our choice: it trains without the annealing that the
            published m = 4 needs.
        **base: the arguments of `Margin`.
    """

    def __init__(self, m: float = 1.35, **base: Unpack[MarginOptions]) -> None:
        super().__init__(m, 0.0, 0.0, **base)
