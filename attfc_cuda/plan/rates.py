"""Time of a step on this machine, from runs of head and backbone at sizes that take a moment.

A head's time is a straight line in the number of centres that a step meets (benchmarks/scaling.py), so two sizes give
it. A backbone's is taken to be proportional to its images: an assumption, closer on a CPU than on a GPU, which a small
batch may leave half idle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attfc_cuda import backbones
from attfc_cuda.heads import AttFC, FullyConnected, PartialFC
from attfc_cuda.heads.fused_optimizer import FusedOptimizer
from attfc_cuda.margins import ArcFace
from attfc_cuda.plan.heads import Head, centers_met
from attfc_cuda.plan.networks import NetworkNeeds
from attfc_cuda.train.config import HeadConfig
from attfc_cuda.train.objective import DTYPES

# Centres of the larger of the two sizes. Much fewer, and what a call costs by itself drowns the centres' own time.
_CENTERS = {"cpu": 20_000, "cuda": 100_000}
_IMAGES = {"cpu": 8, "cuda": 64}
_ROUNDS = 3
_ENQUEUED = 4096  # rows at a time, so that filling a container takes little more memory than it does


def head_seconds(
    head: Head,
    identities: int,
    dim: int,
    batch: int,
    precision: str,
    gallery_size: int = 2,
    probes_per_identity: int = 1,
) -> float:
    """Seconds that the head takes of a step, of which each has a gallery, its own or an earlier step's."""
    device, centers = measured_device(), centers_met(head, identities, batch)

    def measured(size: int) -> tuple[int, float]:
        step = head_step(head, size, dim, batch, device, DTYPES[precision], gallery_size, probes_per_identity)
        return centers_met(head, size, batch), _median(step, device)

    if head.share is None:  # as many centres for any number of identities
        return measured(identities)[1]
    # A quarter of 16 batches: a container is never smaller than four.
    some = math.ceil(max(_CENTERS[device], 16 * batch) / head.share)
    if identities <= some:
        return measured(identities)[1]
    return on_line(centers, measured(some // 4), measured(some))


def on_line(centers: int, small: tuple[int, float], large: tuple[int, float]) -> float:
    """Seconds at so many centres on the line through two measurements (centres, seconds)."""
    slope = (large[1] - small[1]) / (large[0] - small[0])
    # A disturbed measurement may turn the line over; more centres never take less time.
    return large[1] + max(slope, 0.0) * (centers - large[0])


def forward_seconds(network: NetworkNeeds, dim: int, image_size: int, precision: str) -> float:
    """Seconds of one image's forward, a third of its training step (a backward counts as two forwards)."""
    device = measured_device()
    count = min(network.batch, _IMAGES[device])
    step = _network_step(network.name, dim, image_size, count, device, DTYPES[precision])
    return _median(step, device) / (3 * count)


def measured_device() -> str:
    """The device that is measured."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def head_step(
    head: Head,
    identities: int,
    dim: int,
    batch: int,
    device: str,
    dtype: torch.dtype,
    gallery_size: int = 2,
    probes_per_identity: int = 1,
) -> Callable[[], None]:
    x = torch.randn(batch, dim, device=device, requires_grad=True)
    present = math.ceil(batch / probes_per_identity)
    whose = torch.arange(batch, device=device) // probes_per_identity  # neighbours share an identity and its gallery
    labels = torch.randint(identities, (present,), device=device)[whose]
    if head.kind == "attfc":
        slots = centers_met(head, identities, batch)
        code = HeadConfig.class_code
        attfc = AttFC(dim, slots, ArcFace(), "refresh", num_classes=identities, dtype=dtype, class_code=code).to(device)
        for classes in torch.randperm(identities, device=device)[:slots].split(min(slots, _ENQUEUED)):
            attfc.container.enqueue(F.normalize(torch.randn(len(classes), dim, device=device)), classes)
        gallery = torch.randn(present * gallery_size, dim, device=device)
        rows = whose[:, None] * gallery_size + torch.arange(gallery_size, device=device)
        return lambda: attfc(x, labels, gallery, gallery_rows=rows).backward()
    if head.kind == "explicit_fc":
        weight = nn.Parameter(torch.randn(identities, dim, device=device))
        sgd = torch.optim.SGD([weight], 0.1, momentum=0.9)
        return lambda: _explicit_step(x, labels, weight, sgd, dtype)
    trained = (
        FullyConnected(dim, identities, ArcFace())
        if head.kind == "fc"
        else PartialFC(dim, identities, head.share or 1.0, ArcFace())
    ).to(device)
    optimizer: FusedOptimizer | torch.optim.SGD = (
        trained.fuse_optimizer(0.1) if head.fused else torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9)
    )

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = trained(x, labels)
        loss.backward()
        optimizer.step()

    return run


def _explicit_step(
    x: Tensor, labels: Tensor, weight: Tensor, optimizer: torch.optim.Optimizer, dtype: torch.dtype
) -> None:
    """ArcFace over stored logits, as plain PyTorch code writes it."""
    optimizer.zero_grad()
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        cosine = F.normalize(x) @ F.normalize(weight).T
        rows = torch.arange(len(x), device=x.device)
        bent = torch.cos(torch.acos(cosine[rows, labels].float().clamp(-1 + 1e-6, 1 - 1e-6)) + 0.5)
        loss = F.cross_entropy(64 * cosine.index_put((rows, labels), bent.to(cosine.dtype)), labels)
    loss.backward()
    optimizer.step()


def _network_step(
    name: str, dim: int, image_size: int, count: int, device: str, dtype: torch.dtype
) -> Callable[[], None]:
    network = backbones.build(name, embedding_dim=dim, image_size=image_size).to(device).train()
    images = torch.randn(count, 3, image_size, image_size, device=device)

    def run() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            output = network(images)
        output.float().sum().backward()

    return run


def _median(run: Callable[[], None], device: str) -> float:
    times = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[_ROUNDS // 2]
