"""A small residual network for demos, tests and CPUs: half a million parameters, and 2.5 ms of one core for the forward
and backward pass of a 64 x 64 image.

Our choice throughout. What keeps it fast without an accelerator: a stem of stride 2, so that nothing runs at full
resolution; few channels where the maps are large; ReLU, which needs no parameter gradient summed over the maps; and
channels-last memory, in which a CPU computes it about a fifth faster.
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


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose filters are shifted to mean 0 and scaled to length 1 before use.

    Filters of mean 0 pass nothing of what all images share. BatchNorm subtracts that share and GroupNorm cannot:
    without this the embeddings of all faces start within a narrow cone (mean cosine 0.9) and hardly leave it.

    Source:
        Qiao et al., Weight Standardization (arXiv 1903.10520), up to a constant factor, which the norm after it takes
        away.
    """

    def forward(self, x: Tensor) -> Tensor:
        centered = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        # The small addend keeps a filter that weight decay has brought near zero from being blown up.
        length = (centered.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-4).sqrt()
        return self._conv_forward(x, centered / length, self.bias)


def conv_norm(norm: str, in_channels: int, channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution and its normalisation: over the batch, or over groups of channels within each image."""
    padding = kernel // 2
    if norm == "batch":
        convolution = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
    else:
        convolution = StandardizedConv2d(in_channels, channels, kernel, stride, padding, bias=False)
    return [convolution, map_norm(norm, channels)]


def map_norm(norm: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class ResidualBlock(nn.Module):
    """shortcut(x) + Norm(Conv(ReLU(Norm(Conv(x))))), then ReLU unless it is the last block: the embedding reads signed
    maps. A strided shortcut averages before its 1x1 convolution, so that it looks at every pixel."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str, last: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_norm(norm, in_channels, channels, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(norm, channels, channels, 3),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), *conv_norm(norm, in_channels, channels, 1)
            )
        self.activation: nn.Module = nn.Identity() if last else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layers(x) + self.shortcut(x))


class SmallResNet(Backbone):
    """Residual network of about 0.5 M parameters for images of 64 x 64 (112 x 112 costs three times as much).

    images [B, 3, image_size, image_size] float in [-1, 1] -> embeddings [B, embedding_dim], not normalised.

    The maps are held channels-last whatever the images' memory format; results do not depend on it. Under autocast the
    embedding layer runs in float32.

    Args:
        embedding_dim: columns of the output.
        image_size: any from 16, in pixels; four strides of 2 leave a square of ceil(image_size / 16).
        norm: "batch" (BatchNorm, also after the embedding), or "group": GroupNorm and standardised convolutions in the
            maps, LayerNorm after the embedding. With "group" an image's embedding depends on that image alone, in
            training as in evaluation, so a momentum copy of the network needs no batch statistics. LayerNorm fixes the
            embedding's
            norm: for margins that read the norm (AdaFace, MagFace) take "batch". It wants smaller steps: under a fully
            connected head with SGD it learned real faces as fast as "batch" at a learning rate of 0.02, and at 0.1,
            where
            "batch" still learns, all its embeddings fell into one direction. Under AttFC, whose centres take no
            gradient, it did so at every setting tried with the exact gradient of the margin: take "batch" there.
        embedding: what turns the last maps into a vector: "depthwise", a global depthwise convolution as in
            MobileFaceNet (its size follows the maps: 16 weights per channel at 64 x 64), or "flatten", a linear layer
            over all of them (16 times 128 x embedding_dim weights at 64 x 64).

    Raises:
        ValueError: for an unknown norm or embedding, an image_size below 16, embedding_dim below 1, or images of
            another size.
    """

    def __init__(
        self,
        embedding_dim: int = 128,
        image_size: int = 64,
        norm: str = "batch",
        embedding: str = "depthwise",
    ) -> None:
        super().__init__(embedding_dim, image_size, min_image_size=16)
        if norm not in ("batch", "group"):
            raise error("SmallResNet", "norm", "be 'batch' or 'group'", repr(norm))
        if embedding not in ("depthwise", "flatten"):
            raise error("SmallResNet", "embedding", "be 'depthwise' or 'flatten'", repr(embedding))
        self.stem = nn.Sequential(*conv_norm(norm, IMAGE_CHANNELS, STEM_CHANNELS, 3, stride=2), nn.ReLU(inplace=True))
        plan = [(channels, 2 if k == 0 else 1) for channels, repeats in STAGES for k in range(repeats)]
        channels, blocks = STEM_CHANNELS, []
        for number, (out_channels, stride) in enumerate(plan, start=1):
            blocks.append(ResidualBlock(channels, out_channels, stride, norm, last=number == len(plan)))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        side = halved(image_size, times=STRIDES_OF_TWO)
        if embedding == "depthwise":
            depthwise = nn.Conv2d(channels, channels, side, groups=channels, bias=False)
            self.pool: nn.Module = nn.Sequential(depthwise, map_norm(norm, channels))
            features = channels
        else:
            self.pool = map_norm(norm, channels)
            features = channels * side * side
        self.fc = nn.Linear(features, embedding_dim, bias=False)
        # Without weights of its own LayerNorm cannot pull all embeddings towards one direction.
        self.features: nn.Module = (
            nn.BatchNorm1d(embedding_dim) if norm == "batch" else nn.LayerNorm(embedding_dim, elementwise_affine=False)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        x = self.blocks(self.stem(images.contiguous(memory_format=torch.channels_last)))
        return self.features(full_precision_linear(self.fc, torch.flatten(self.pool(x), 1)))
