"""InsightFace's `PartialFC_V2`: its constructor, call and checkpoints around our Partial FC head."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attfc_cuda.compat.insightface.margins import as_margin
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.heads import PartialFC


class PartialFC_V2(PartialFC):
    """``loss = module_partial_fc(local_embeddings, local_labels)``, as in InsightFace's `train_v2.py`.

    With a torch.distributed group of several processes the classes are split over it, each process brings its own
    batch, and the embeddings' gradients are made for a backbone in DistributedDataParallel. Without a group, or with
    one process, nothing is split: no group has to be made first. Give `parameters()` to your optimizer, as in
    `train_v2.py`, or call `fuse_optimizer`, which saves their gradient. Gradient, precision and errors are those of
    `FullyConnected`.

    It differs from InsightFace's: no B x N logits and no limit of equal batch sizes; labels are not changed in place; a
    negative label leaves its row out of the mean, and a label of num_classes or more is an error, where InsightFace
    counts either as a loss of 69.08 (-log 1e-30), the largest that it reports for any row; the classes are cut as
    torch.chunk cuts them, so that a checkpoint of one process goes to that process only where num_classes is a multiple
    of the processes (otherwise `load_centers` reads the files of all).

    Args:
        margin_loss: InsightFace's `CombinedMarginLoss` (or `ArcFace`, `CosFace`), or a margin of ours: see `as_margin`.
        embedding_size: D.
        num_classes: N, over all processes.
        sample_rate: share of the classes that a step meets, in (0, 1].
        fp16: compute the products over the classes in float16; else in float32, whatever autocast says outside. The
            loss is float32 either way.

    Attributes:
        weight: parameter [n, D], this process's classes, also under the name `centers`. In a state_dict it is "weight",
            so that checkpoints pass both ways between InsightFace and this module.

    Source:
        Partial FC (arXiv 2203.15565); the interface is InsightFace's.
    """

    def __init__(
        self, margin_loss: Any, embedding_size: int, num_classes: int, sample_rate: float = 1.0, fp16: bool = False
    ) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        shards = Shards() if several else None
        super().__init__(embedding_size, num_classes, sample_rate, margin=as_margin(margin_loss), shards=shards)
        self.embedding_size, self.fp16 = embedding_size, fp16
        self.register_state_dict_post_hook(_to_their_name)
        self.register_load_state_dict_pre_hook(_to_our_name)

    @property
    def weight(self) -> nn.Parameter:
        return self.centers

    def forward(self, local_embeddings: Tensor, local_labels: Tensor) -> Tensor:
        """The mean loss over the batches of all processes, 0-dim float32.

        Args:
            local_embeddings: [B, D] of any length.
            local_labels: [B] or [B, 1], any integer dtype.
        """
        with torch.autocast(local_embeddings.device.type, torch.float16, enabled=self.fp16):
            return super().forward(local_embeddings, local_labels.reshape(-1).long())


def _to_their_name(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    state[f"{prefix}weight"] = state.pop(f"{prefix}centers")


def _to_our_name(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}centers"] = state.pop(f"{prefix}weight")
