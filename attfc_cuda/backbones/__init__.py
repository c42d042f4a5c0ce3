"""Embedding networks by name: images [B, 3, image_size, image_size] -> embeddings [B, embedding_dim].

A new network is a `Backbone` subclass and one line in `_BUILDERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from attfc_cuda._check import error
from attfc_cuda._error import close_match
from attfc_cuda.backbones.base import Backbone
from attfc_cuda.backbones.iresnet import IResNet
from attfc_cuda.backbones.mobilefacenet import MobileFaceNet
from attfc_cuda.backbones.small import SmallResNet
from attfc_cuda.backbones.timm_models import TimmBackbone

_BUILDERS: dict[str, Callable[..., Backbone]] = {
    "iresnet18": partial(IResNet, 18),
    "iresnet34": partial(IResNet, 34),
    "iresnet50": partial(IResNet, 50),
    "iresnet100": partial(IResNet, 100),
    "iresnet200": partial(IResNet, 200),
    "mobilefacenet": MobileFaceNet,
    "small": SmallResNet,
}
NAMES = tuple(_BUILDERS)
TIMM_PREFIX = "timm:"

__all__ = ["NAMES", "Backbone", "IResNet", "MobileFaceNet", "SmallResNet", "TimmBackbone", "build"]


def build(name: str, embedding_dim: int = 512, image_size: int = 112, **options: Any) -> Backbone:
    """The embedding network called `name`, freshly initialised from torch's global generator.

    ``build("iresnet50")(images).shape == (B, 512)`` for images [B, 3, 112, 112].

    Args:
        name: one of `NAMES`, or "timm:MODEL" for any image model of the timm library (which has to be installed).
        embedding_dim: columns of the output.
        image_size: height and width of the square input images, in pixels.
        **options: of the class: `dropout`, `middle_norm`, `pool_shortcut` (IResNet); `norm`, `embedding`
            (SmallResNet); timm's own (TimmBackbone).

    Raises:
        ValueError: for an unknown name, or sizes the network cannot take.
        ImportError: for a timm model without timm.
    """
    if name.startswith(TIMM_PREFIX):
        return TimmBackbone(name.removeprefix(TIMM_PREFIX), embedding_dim, image_size, **options)
    if name not in _BUILDERS:
        rule = f"be one of {', '.join(NAMES)}, or {TIMM_PREFIX}MODEL"
        raise error("build", "name", rule, repr(name), close_match(name, NAMES))
    return _BUILDERS[name](embedding_dim=embedding_dim, image_size=image_size, **options)
