"""The yardstick: the same backbone, faces, budget and schedule as `attfc train`, under a full-FC ArcFace head.

    python examples/full_fc_arcface.py --data faces/lfw,faces/celeba --identities lfw.txt,celeba.txt --run runs/full_fc

All flags of `attfc train` work, and so does everything around the loss: schedule, verification, log, checkpoints,
resume, `attfc verify`. Only the loss differs, and it is plain eager PyTorch: one weight row a class, the margin on the
target, cross entropy over all classes. The classes are the identities that are probes (see --min-images), so the images
seen with a gradient, and their order, are those of AttFC; single-image identities, AttFC's negatives, are left out.
--margin-options m=0.4 sets the margin. Flags of AttFC's head (--margin, --policy, ...) have no effect.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attfc_cuda import cli
from attfc_cuda.data import AttentionLoader, Batch
from attfc_cuda.train import Objective, TrainConfig
from attfc_cuda.train.config import parse_options
from attfc_cuda.train.schedule import EncoderMomentum


class FullFC(Objective):
    """ArcFace (arXiv 1801.07698, equation 3) over a full layer of class weights, written as the textbook does."""

    command = "python examples/full_fc_arcface.py"

    @staticmethod
    def gallery_size(config: TrainConfig) -> int:
        return 0

    @staticmethod
    def negatives_per_batch(config: TrainConfig) -> int:
        return 0

    def __init__(self, backbone: nn.Module, loader: AttentionLoader, config: TrainConfig) -> None:
        super().__init__()
        counts = np.bincount(loader.dataset.labels, minlength=loader.num_classes)
        classes = np.flatnonzero(counts >= config.dataset.min_images)
        row_of = torch.full((loader.num_classes,), -1)
        row_of[torch.from_numpy(classes)] = torch.arange(len(classes))
        self.register_buffer("row_of", row_of, persistent=False)
        self.weight = nn.Parameter(torch.randn(len(classes), config.model.embedding_dim) * 0.01)
        self.scale = config.head.scale
        self.margin = parse_options(config.head.margin_options, "margin_options").get("m", config.head.m)
        self.margin = 0.5 if self.margin is None else self.margin  # as published
        self.last: dict[str, Tensor] = {}

    def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
        embeddings = backbone(batch.probe).float()
        rows = torch.where(batch.labels >= 0, self.row_of[batch.labels], -1)
        valid = rows >= 0
        cosine = (F.normalize(embeddings) @ F.normalize(self.weight).T).clamp(-1 + 1e-6, 1 - 1e-6)
        target = cosine.gather(1, rows.clamp_min(0)[:, None])[:, 0]
        angle = target.acos() + self.margin
        bent = torch.where(angle <= math.pi, angle.cos(), -2 - angle.cos())  # monotone past pi, as in `attfc train`
        logits = self.scale * cosine.scatter(1, rows.clamp_min(0)[:, None], bent[:, None])
        self.last = {
            "positive_cosine": target.detach()[valid].mean(),
            "top1": (cosine.detach().argmax(1) == rows)[valid].float().mean(),
        }
        return F.cross_entropy(logits, rows, ignore_index=-1)

    def stats(self) -> dict[str, Tensor]:
        return self.last

    def describe(self, momentum: EncoderMomentum) -> str:
        return f"head          full FC, ArcFace margin {self.margin}, {len(self.weight)} class weights"


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]], FullFC))
