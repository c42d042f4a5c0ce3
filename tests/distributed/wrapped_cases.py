"""A head beside a backbone that is wrapped: by DistributedDataParallel, with which it must not go, and by FSDP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from attfc_cuda import ArcFace, AttFC, FullyConnected, MomentumEncoder
from attfc_cuda.distributed import Shards

DIM, CLASSES = 8, 6


class Both(nn.Module):
    """A backbone and a head in one module, as it may be wrapped."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(DIM, DIM), head

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.head(self.backbone(x), *rest)


def fused() -> FullyConnected:
    head = FullyConnected(DIM, CLASSES, ArcFace())
    # The wrapper takes parameters for its own whose gradient it is to average: those of the fused optimizer too.
    head.fuse_optimizer(0.1)
    return head


HEADS = {
    "fused": fused,
    "shards": lambda: FullyConnected(DIM, CLASSES, ArcFace(), shards=Shards()),
    "attfc": lambda: AttFC(DIM, 16, ArcFace(), policy="fifo", class_code=0.0),
}


def outcome(module: nn.Module, *data: Tensor) -> str:
    try:
        module(*data).backward()
    except RuntimeError as refusal:
        return str(refusal)
    return "worked"


def wrapped_by_ddp() -> dict[str, str]:
    """What a step says of each head inside a wrapper; and of those that may stay there."""
    torch.manual_seed(0)
    x, labels, gallery = torch.randn(4, DIM), torch.arange(4), torch.randn(4, 2, DIM)
    found = {}
    for name, head in HEADS.items():
        data = (x, labels, gallery) if name == "attfc" else (x, labels)
        found[name] = outcome(DistributedDataParallel(Both(head())), *data)
    found["own optimizer"] = outcome(DistributedDataParallel(Both(FullyConnected(DIM, CLASSES, ArcFace()))), x, labels)
    kept = DistributedDataParallel(Both(HEADS["attfc"]()), broadcast_buffers=False)
    found["attfc without broadcast"] = outcome(kept, x, labels, gallery)
    backbone = DistributedDataParallel(nn.Linear(DIM, DIM))
    found["outside"] = outcome(lambda *data: fused()(backbone(data[0]), data[1]), x, labels)
    return found


def followed_through_fsdp() -> dict[str, Any]:
    """A momentum encoder beside a source that is sharded after it was copied, one parameter only."""
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(DIM, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    expected = [0.25 * p.detach() + 0.75 * (p.detach() + 1) for p in source.parameters()]
    encoder = MomentumEncoder(source, momentum=0.25, buffers="copy")
    fully_shard(source[0], mesh=init_device_mesh("cpu", (2,)))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    encoder.update(source)
    kinds = sorted({type(p.data).__name__ for p in source.parameters()})
    return {"kinds": kinds, "found": [p.detach() for p in encoder.parameters()], "expected": expected}
