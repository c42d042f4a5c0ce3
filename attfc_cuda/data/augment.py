"""From stored pixels to the network's input: the one normalisation of the package, and the augmentations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from attfc_cuda._check import error

_ITEM = re.compile(r"(crop|photometric|gray|lowres)(?::([0-9.]{1,20}))?")
_PROBABILITY = 0.2
_LOWEST_SHARE = 0.2


def normalize_images(images: torch.Tensor) -> torch.Tensor:
    """Network input from uint8 pixels: training, verification and export all use this one definition.

    Equals: ``(images.float() - 127.5) / 127.5``

    Args:
        images: uint8 [..., 3, H, W].

    Returns:
        float32, same shape, on the same device, in [-1, 1]; a new tensor.

    Gradient:
        None (integers have none).

    Raises:
        TypeError: For another dtype.
        ValueError: For another shape.

    Source:
        InsightFace's convention.
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


class Augmentation:
    """Random changes of single images, each a function of its seed alone, by torchvision's transforms v2.

    The items of `spec`, all but flip with probability 0.2 each or as given ("crop:0.5"), in this order:

    - flip: mirrored, with probability 1/2 (the loader does it, by a bit of its own);
    - crop: a part of 20 to 100 % of the area, 3:4 to 4:3, enlarged to the whole (`RandomResizedCrop`);
    - photometric: brightness, contrast and saturation times 0.5 to 1.5 (`ColorJitter`);
    - gray: the three colours become their luma (`RandomGrayscale`);
    - lowres: shrunk to 20 to 100 % of the side and enlarged again, by nearest, bilinear or bicubic interpolation.

    Args:
        spec: "none", or a list of items separated by commas.
        image_size: Height and width of the images in pixels.

    Attributes:
        flip: Whether images are mirrored.
        random: Whether anything but flip is asked for.

    Raises:
        ValueError: For another spec.
        ImportError: Without torchvision where it is needed.

    Source:
        The kinds, their ranges and 0.2 are AdaFace's (Kim et al., CVPR 2022), gray is our choice; that a crop is
        enlarged rather than left in place on black is torchvision's.
    """

    def __init__(self, spec: str, image_size: int) -> None:
        items = [item.strip() for item in spec.split(",")] if isinstance(spec, str) else []
        matches = [_ITEM.fullmatch(item) for item in items if item not in ("flip", "none")]
        names = [item.partition(":")[0] for item in items]
        if not names or len(set(names)) < len(names) or None in matches or ("none" in names and len(names) > 1):
            rule = 'be "none" or a list of flip, crop, photometric, gray and lowres, each with its share as in crop:0.2'
            raise error("AttentionLoader", "augment", rule, repr(spec))
        self.flip = "flip" in names
        self._chances = {match[1]: _probability(match[2], spec) for match in matches if match}
        self.random, self._image_size = bool(self._chances), image_size
        if self.random:
            _transforms()

    def apply(self, images: torch.Tensor, seeds: Sequence[int]) -> None:
        """Change the images, uint8 [N, 3, H, W], in place, each by its seed. The random state is left as it was."""
        steps = self._steps()
        # Only the CPU's generator: torch.manual_seed would also reset those of the GPUs.
        generator = torch.default_generator
        state = generator.get_state()
        try:
            for image, seed in zip(images, seeds, strict=True):
                generator.manual_seed(seed & (2**63 - 1))
                for chance, step in steps:
                    # Drawn whether needed or not, so that one step's probability does not move the next one's draws.
                    if float(torch.rand(())) < chance:
                        image.copy_(step(image))
        finally:
            generator.set_state(state)

    def _steps(self) -> list[tuple[float, Callable[[torch.Tensor], torch.Tensor]]]:
        v2, size = _transforms(), (self._image_size, self._image_size)
        kinds = {
            "crop": v2.RandomResizedCrop(size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
            "photometric": v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5),
            "gray": v2.Grayscale(num_output_channels=3),
            "lowres": _lower_resolution,
        }
        return [(self._chances[name], step) for name, step in kinds.items() if name in self._chances]


def _lower_resolution(image: torch.Tensor) -> torch.Tensor:
    v2 = _transforms()
    modes = (v2.InterpolationMode.NEAREST, v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC)
    side = image.shape[-1]
    small = max(1, round(side * (_LOWEST_SHARE + (1 - _LOWEST_SHARE) * float(torch.rand(())))))
    down, up = (modes[int(k)] for k in torch.randint(len(modes), (2,)))
    shrunk = v2.functional.resize(image, [small, small], interpolation=down, antialias=True)
    return v2.functional.resize(shrunk, [side, side], interpolation=up, antialias=True)


def _probability(text: str | None, spec: str) -> float:
    if text is None:
        return _PROBABILITY
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise error("AttentionLoader", "augment", "give probabilities from 0 to 1", repr(spec))
    return value


def _transforms():  # noqa: ANN202 (a module that may be absent)
    try:
        from torchvision.transforms import v2
    except ImportError as cause:
        text = "AttentionLoader: augment needs torchvision for more than flip; pip install torchvision"
        raise ImportError(text) from cause
    return v2
