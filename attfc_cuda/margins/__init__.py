"""The margins, and `build` to make one from its name."""

from __future__ import annotations

from typing import Any

from attfc_cuda._check import error
from attfc_cuda.margins.adasin import AdaSin
from attfc_cuda.margins.additive import ArcFace, CombinedMargin, CosFace, NormFace, SphereFace
from attfc_cuda.margins.base import Margin, Modulation, angle, psi
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
    """The margin called `name` (one of `NAMES`), with its constructor's arguments; ValueError for another name."""
    if name not in _CLASSES:
        raise error("margins.build", "name", f"be one of {', '.join(NAMES)}", repr(name))
    return _CLASSES[name](**kwargs)
