"""Any image model of the timm library (PyTorch Image Models) as a backbone; timm is imported when one is built."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from attfc_cuda._check import error
from attfc_cuda.backbones.base import Backbone


class TimmBackbone(Backbone):
    """A timm model whose classifier is replaced by the linear embedding.

    images [B, 3, image_size, image_size] float in [-1, 1] -> embeddings [B, embedding_dim], not normalised.

    Equals: ``timm.create_model(model, num_classes=embedding_dim, **options)``. Models that are tied to one input size
    (vision transformers) are also told `img_size=image_size`.

    Args:
        model: timm's name.
        embedding_dim: columns of the output.
        image_size: height and width of the images, in pixels.
        **options: of `timm.create_model`. `pretrained=True` fetches weights as timm does; those were trained on other
            normalisations than [-1, 1], which fine-tuning has to bridge.

    Raises:
        ImportError: without timm.
        ValueError: for a model timm does not know.
    """

    def __init__(self, model: str, embedding_dim: int = 512, image_size: int = 112, **options: Any) -> None:
        super().__init__(embedding_dim, image_size, min_image_size=1)
        try:
            timm = importlib.import_module("timm")
        except ImportError as cause:
            raise error(
                "TimmBackbone",
                "model",
                "be backed by an installed timm library",
                f"timm:{model} without it ({cause})",
                "pip install timm",
                kind=ImportError,
            ) from cause
        if not timm.is_model(model):
            raise error("TimmBackbone", "model", "be a model timm knows", repr(model), "see timm.list_models()")
        config = timm.get_pretrained_cfg(model)
        if config is not None and config.fixed_input_size:
            options.setdefault("img_size", image_size)
        self.model = timm.create_model(model, num_classes=embedding_dim, **options)

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.model(images)
