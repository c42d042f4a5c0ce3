"""What every backbone of ours shares: the contract images in, embeddings out, and the check of the images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attfc_cuda._check import error

IMAGE_CHANNELS = 3


class Backbone(nn.Module):
    """Base of the embedding networks: images [B, 3, image_size, image_size] -> embeddings [B, embedding_dim].

    Images are float, normalised to [-1, 1] (`attfc_cuda.data.normalize_images`). Embeddings are NOT of unit length: the
    heads normalise, and AdaFace and MagFace read the norm.

    Attributes:
        embedding_dim: columns of the output, a number a caller needs to read the network.
        image_size: height and width of the images in pixels, a number a caller needs to feed it.

    Raises:
        ValueError: at construction for a size the network cannot take.
    """

    def __init__(self, embedding_dim: int, image_size: int, min_image_size: int) -> None:
        super().__init__()
        name = type(self).__name__
        if embedding_dim < 1:
            raise error(name, "embedding_dim", "be at least 1", embedding_dim)
        if image_size < min_image_size:
            raise error(name, "image_size", f"be at least {min_image_size} pixels", image_size)
        self.embedding_dim = embedding_dim
        self.image_size = image_size

    def check_images(self, images: Tensor) -> None:
        """Raise unless `images` is a floating [B, 3, image_size, image_size] tensor.

        A wrong size would otherwise surface as a matrix shape error deep inside the network.

        Raises:
            ValueError: for another shape.
            TypeError: for other than a floating dtype.
        """
        name, size = type(self).__name__, self.image_size
        if images.dim() != 4 or images.shape[1:] != (IMAGE_CHANNELS, size, size):
            raise error(name, "images", f"be [B, 3, {size}, {size}]", list(images.shape), "resize, or set image_size")
        if not images.is_floating_point():
            raise error(name, "images", "be floating point", images.dtype, "use normalize_images first", kind=TypeError)


def halved(size: int, times: int) -> int:
    """Side length after `times` 3x3 convolutions of stride 2 and padding 1: each halves it, rounding up."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


def full_precision_linear(layer: nn.Linear, features: Tensor) -> Tensor:
    """`layer(features)` in the dtype of the layer's own weights, whatever autocast says.

    The embedding is a sum over thousands of features and everything after it is angles; in float16 the sum may
    overflow.
    InsightFace leaves autocast at the same place."""
    device = features.device.type
    if not torch.amp.is_autocast_available(device):  # the meta device, on which sizes are planned
        return layer(features)
    with torch.autocast(device, enabled=False):
        return layer(features.to(layer.weight.dtype))
