"""MobileFaceNet: the one-million-parameter network for phones.

Source: Chen et al., MobileFaceNets (arXiv 1804.07573, table 1): inverted residual bottlenecks with PReLU and a global
*depthwise* convolution in place of average pooling, because the corner of a face is not worth its centre.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attfc_cuda.backbones.base import IMAGE_CHANNELS, Backbone, full_precision_linear, halved

STEM_CHANNELS = 64
LAST_CHANNELS = 512
# Table 1: (expansion t, channels c, repeats n, stride s of the first repeat).
BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
STRIDES_OF_TWO = 4  # the stem and three bottlenecks


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> list[nn.Module]:
    """Convolution and BatchNorm: the paper's "linear" unit."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]


class Bottleneck(nn.Module):
    """Expand (1x1), filter each channel (3x3 depthwise), project (1x1, no activation); with a shortcut where shapes
    allow."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            *conv_norm(in_channels, wide, 1),
            nn.PReLU(wide),
            *conv_norm(wide, wide, 3, stride, padding=1, groups=wide),
            nn.PReLU(wide),
            *conv_norm(wide, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileFaceNet(Backbone):
    """MobileFaceNet, about 1 M parameters at 112 x 112 (D = 128: 0.99 M, D = 512: 1.19 M).

    images [B, 3, image_size, image_size] float in [-1, 1] -> embeddings [B, embedding_dim], not normalised.

    Under autocast the embedding layer runs in float32.

    Args:
        embedding_dim: columns of the output.
        image_size: any from 16, in pixels; the global depthwise kernel is ceil(image_size / 16) (7 at 112).

    Raises:
        ValueError: for an image_size below 16, embedding_dim below 1, or images of another size.
    """

    def __init__(self, embedding_dim: int = 128, image_size: int = 112) -> None:
        super().__init__(embedding_dim, image_size, min_image_size=16)
        self.stem = nn.Sequential(
            *conv_norm(IMAGE_CHANNELS, STEM_CHANNELS, 3, stride=2, padding=1),
            nn.PReLU(STEM_CHANNELS),
            *conv_norm(STEM_CHANNELS, STEM_CHANNELS, 3, padding=1, groups=STEM_CHANNELS),
            nn.PReLU(STEM_CHANNELS),
        )
        channels, blocks = STEM_CHANNELS, []
        for expansion, out_channels, repeats, stride in BOTTLENECKS:
            for repeat in range(repeats):
                blocks.append(Bottleneck(channels, out_channels, expansion, stride if repeat == 0 else 1))
                channels = out_channels
        self.bottlenecks = nn.Sequential(*blocks)
        self.widen = nn.Sequential(*conv_norm(channels, LAST_CHANNELS, 1), nn.PReLU(LAST_CHANNELS))
        side = halved(image_size, times=STRIDES_OF_TWO)
        self.global_depthwise = nn.Sequential(*conv_norm(LAST_CHANNELS, LAST_CHANNELS, side, groups=LAST_CHANNELS))
        self.fc = nn.Linear(LAST_CHANNELS, embedding_dim, bias=False)
        self.features = nn.BatchNorm1d(embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        x = self.global_depthwise(self.widen(self.bottlenecks(self.stem(images))))
        return self.features(full_precision_linear(self.fc, torch.flatten(x, 1)))
