"""A small residual network for demos, tests and CPUs: half a million parameters, about 2 ms of one core per image.

Our choice throughout. What keeps it fast without an accelerator: a stem of stride 2, so that nothing runs at full
resolution; few channels where the maps are large; ReLU, which needs no parameter gradient summed over the maps; and
channels-last memory, in which the convolutions of a CPU are a quarter faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attfc_cuda._check import error
from attfc_cuda.backbones.base import IMAGE_CHANNELS, Backbone, full_precision_linear, halved

STEM_CHANNELS = 32
STAGES = ((48, 1), (80, 2), (128, 1))  # (channels, blocks); each starts with a stride of 2
STRIDES_OF_TWO = 1 + len(STAGES)
CHANNELS_PER_GROUP = 16  # of a GroupNorm; divides every width above


def map_norm(norm: str, channels: int) -> nn.Module:
    """Normalisation of feature maps: over the batch, or over groups of channels within each image."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class ResidualBlock(nn.Module):
    """ReLU(shortcut(x) + Norm(Conv(ReLU(Norm(Conv(x)))))); a strided shortcut averages before its 1x1 convolution, so
    that it looks at every pixel."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
            map_norm(norm, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            map_norm(norm, channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(in_channels, channels, 1, bias=False),
                map_norm(norm, channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class SmallResNet(Backbone):
    """Residual network of about 0.5 M parameters for images of 64 x 64 (112 x 112 costs three times as much).

    images [B, 3, image_size, image_size] float in [-1, 1] -> embeddings [B, embedding_dim], not normalised.

    image_size: any from 16; four strides of 2 leave a square of ceil(image_size / 16).
    norm: "batch" (BatchNorm, also after the embedding), or "group": GroupNorm in the maps and LayerNorm after the
        embedding. With "group" an image's embedding depends on that image alone, in training as in evaluation, so
        a momentum copy of the network needs no batch statistics. LayerNorm fixes the embedding's norm: for margins
        that read the norm (AdaFace, MagFace) take "batch".
    embedding: what turns the last maps into a vector: "depthwise", a global depthwise convolution as in MobileFaceNet
        (its size follows the maps: 16 weights per channel at 64 x 64), or "flatten", a linear layer over all of them
        (16 times 128 x embedding_dim weights at 64 x 64).

    The maps are held channels-last whatever the images' memory format; results do not depend on it. Under autocast the
    embedding layer runs in float32.
    Errors: ValueError for an unknown norm or embedding, an image_size below 16, embedding_dim below 1, or images of
    another size.
    """

    def __init__(
        self, embedding_dim: int = 128, image_size: int = 64, norm: str = "batch", embedding: str = "depthwise"
    ) -> None:
        super().__init__(embedding_dim, image_size, min_image_size=16)
        if norm not in ("batch", "group"):
            raise error("SmallResNet", "norm", "be 'batch' or 'group'", repr(norm))
        if embedding not in ("depthwise", "flatten"):
            raise error("SmallResNet", "embedding", "be 'depthwise' or 'flatten'", repr(embedding))
        self.stem = nn.Sequential(
            nn.Conv2d(IMAGE_CHANNELS, STEM_CHANNELS, 3, stride=2, padding=1, bias=False),
            map_norm(norm, STEM_CHANNELS),
            nn.ReLU(inplace=True),
        )
        channels, blocks = STEM_CHANNELS, []
        for out_channels, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(ResidualBlock(channels, out_channels, 2 if repeat == 0 else 1, norm))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        side = halved(image_size, times=STRIDES_OF_TWO)
        self.pool: nn.Module = map_norm(norm, channels)
        features = channels * side * side
        if embedding == "depthwise":
            self.pool = nn.Sequential(
                nn.Conv2d(channels, channels, side, groups=channels, bias=False), map_norm(norm, channels)
            )
            features = channels
        self.fc = nn.Linear(features, embedding_dim, bias=False)
        # Without weights of its own LayerNorm cannot pull all embeddings towards one direction.
        self.features: nn.Module = (
            nn.BatchNorm1d(embedding_dim) if norm == "batch" else nn.LayerNorm(embedding_dim, elementwise_affine=False)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        x = self.blocks(self.stem(images.contiguous(memory_format=torch.channels_last)))
        return self.features(full_precision_linear(self.fc, torch.flatten(self.pool(x), 1)))
