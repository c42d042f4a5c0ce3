"""From stored pixels to the network's input: the one normalisation of the package, and the random mirror."""

from __future__ import annotations

import torch

from attfc_cuda._check import error


def normalize_images(images: torch.Tensor) -> torch.Tensor:
    """Network input from uint8 pixels: training, verification and export all use this one definition.

    Equals: (images.float() - 127.5) / 127.5
    images: uint8 [..., 3, H, W]. Returns: float32, same shape, on the same device, in [-1, 1]; a new tensor.
    Gradient: none (integers have none). Errors: TypeError for another dtype, ValueError for another shape.
    Source: InsightFace's convention.
    """
    if images.dtype != torch.uint8:
        raise error("normalize_images", "images", "be uint8", images.dtype, kind=TypeError)
    if images.dim() < 3 or images.shape[-3] != 3:
        raise error("normalize_images", "images", "have shape [..., 3, H, W]", list(images.shape))
    return images.to(torch.float32).sub_(127.5).div_(127.5)


def mirror_images(images: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Mirror left and right, in place, the images [N,3,H,W] whose entry in `mirrored`, bool [N], is true."""
    if mirrored.any():
        images[mirrored] = images[mirrored].flip(-1)
    return images
