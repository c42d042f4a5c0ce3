"""IResNet: the "improved residual" networks that ArcFace made the standard of face recognition.

Source: Deng et al., ArcFace (arXiv 1801.07698, section 3.1: the IR unit BN-Conv-BN-PReLU-Conv-BN and the
BN-Dropout-FC-BN embedding), in the form InsightFace publishes. The names of parameters and buffers are InsightFace's,
so that a checkpoint of theirs loads with `load_state_dict`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attfc_cuda._check import error
from attfc_cuda.backbones.base import IMAGE_CHANNELS, Backbone, full_precision_linear, halved

STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}


class ImprovedResidualBlock(nn.Module):
    """x + BN(Conv(PReLU(BN(Conv(BN(x)))))): no activation after the sum; the stride sits in the second convolution.
    `middle_norm` and `pool_shortcut` are as for `IResNet`."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, middle_norm: bool = True, pool_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels) if middle_norm else nn.Identity()
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if pool_shortcut and stride != 1 and in_channels == channels:
            self.downsample = nn.MaxPool2d(1, stride)  # each second pixel
        elif stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


class IResNet(Backbone):
    """IResNet of depth 18, 34, 50, 100 or 200.

    images [B, 3, image_size, image_size] float in [-1, 1] -> embeddings [B, embedding_dim], not normalised.

    Parameters at 112 x 112 and D = 512: 24.0 M, 34.1 M, 43.6 M, 65.2 M, 118.0 M. The scale of the last BatchNorm is
    fixed at 1 and takes no gradient, as published: only its bias and statistics move. Under autocast the embedding
    layer runs in float32.

    Args:
        depth: 18, 34, 50, 100 or 200.
        embedding_dim: columns of the output.
        image_size: any from 16, in pixels: four strides of 2 leave a square of ceil(image_size / 16), flattened into
            the fully connected embedding, whose weight count follows (so a checkpoint belongs to one image size;
            97..112 share the shape of 112).
        dropout: the probability before the embedding.
        middle_norm: False leaves out the BatchNorm between a block's first convolution and its PReLU, as face.evoLVe's
            IR networks do.
        pool_shortcut: True passes each second pixel by the first block, without a convolution, as the IR networks of
            face.evoLVe, AdaFace and CVLface do.

    Raises:
        ValueError: for an unknown depth, an image_size below 16, embedding_dim below 1, or images of another size.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        depth: int,
        embedding_dim: int = 512,
        image_size: int = 112,
        dropout: float = 0.0,
        middle_norm: bool = True,
        pool_shortcut: bool = False,
    ) -> None:
        super().__init__(embedding_dim, image_size, min_image_size=16)
        if depth not in STAGE_BLOCKS:
            raise error("IResNet", "depth", f"be one of {', '.join(map(str, STAGE_BLOCKS))}", depth)
        self.conv1 = nn.Conv2d(IMAGE_CHANNELS, STAGE_CHANNELS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGE_CHANNELS[0])
        self.prelu = nn.PReLU(STAGE_CHANNELS[0])
        in_channels = STAGE_CHANNELS[0]
        for number, (channels, blocks) in enumerate(zip(STAGE_CHANNELS, STAGE_BLOCKS[depth], strict=True), start=1):
            stage = [
                ImprovedResidualBlock(in_channels, channels, 2, middle_norm, pool_shortcut)
                if i == 0
                else ImprovedResidualBlock(channels, channels, 1, middle_norm)
                for i in range(blocks)
            ]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            in_channels = channels
        self.bn2 = nn.BatchNorm2d(in_channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels * halved(image_size, times=len(STAGE_CHANNELS)) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)  # as InsightFace; BatchNorm after each takes the scale away

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        return self.features(full_precision_linear(self.fc, x))
