"""The margins, and `build`, which makes one from its name."""

from __future__ import annotations

from typing import Any

from attfc_cuda._check import error
from attfc_cuda._error import close_match
from attfc_cuda.margins.adasin import AdaSin
from attfc_cuda.margins.additive import ArcFace, CombinedMargin, CosFace, NormFace, SphereFace
from attfc_cuda.margins.angles import angle, psi
from attfc_cuda.margins.base import Margin, Modulation
from attfc_cuda.margins.hard_negative import CurricularFace, MVSoftmax
from attfc_cuda.margins.norm_adaptive import AdaFace, MagFace

__all__ = [
    "NAMES",
    "AdaFace",
    "AdaSin",
    "ArcFace",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "MVSoftmax",
    "MagFace",
    "Margin",
    "Modulation",
    "NormFace",
    "SphereFace",
    "angle",
    "build",
    "psi",
]

_CLASSES: dict[str, type[Margin]] = {
    "adasin": AdaSin,
    "arcface": ArcFace,
    "cosface": CosFace,
    "sphereface": SphereFace,
    "combined": CombinedMargin,
    "mvsoftmax": MVSoftmax,
    "curricularface": CurricularFace,
    "adaface": AdaFace,
    "magface": MagFace,
    "normface": NormFace,
}

NAMES: tuple[str, ...] = tuple(_CLASSES)


def build(name: str, **kwargs: Any) -> Margin:
    """Make the margin called `name`.

    Args:
        name: one of `NAMES`.
        **kwargs: the arguments of that margin's constructor.

    Raises:
        ValueError: for another name, or an argument out of range.
        TypeError: for an argument that the margin does not take.
    """
    if name not in _CLASSES:
        raise error("margins.build", "name", f"be one of {', '.join(NAMES)}", repr(name), close_match(name, NAMES))
    return _CLASSES[name](**kwargs)
