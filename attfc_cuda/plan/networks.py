"""Bytes and arithmetic of a backbone's training step, found by running it on fake tensors: shapes without storage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from attfc_cuda import backbones
from attfc_cuda.train.objective import DTYPES


@dataclass(frozen=True)
class NetworkNeeds:
    """What a backbone needs.

    Attributes:
        name: of the backbone.
        parameters: numbers.
        buffers: numbers.
        batch: images of a forward.
        saved_bytes: activations that a forward of `batch` images keeps for the backward.
        largest_bytes: the largest of them.
        forward_flop: of one image.
    """

    name: str
    parameters: int
    buffers: int
    batch: int
    saved_bytes: int
    largest_bytes: int
    forward_flop: float


def network_needs(name: str, dim: int, image_size: int, batch: int, precision: str = "fp32") -> NetworkNeeds:
    """The needs of the backbone of that name (`backbones.build`) in training mode.

    saved_bytes counts each storage that autograd saves once, parameters left out. Nothing is computed or allocated, and
    torch's random state stays as it is.

    Raises:
        ValueError: naming an unknown backbone.
    """
    with torch.device("meta"):
        network = backbones.build(name, embedding_dim=dim, image_size=image_size).train()
    with FakeTensorMode():
        state = {key: _on_cpu(value) for key, value in chain(network.named_parameters(), network.named_buffers())}
        images = torch.empty(batch, 3, image_size, image_size)

        def forward() -> Tensor:
            return functional_call(network, state, (images,))

        sizes = _saved_bytes(forward, state.values(), DTYPES[precision])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        flop = counter.get_total_flops()
    return NetworkNeeds(
        name,
        sum(p.numel() for p in network.parameters()),
        sum(b.numel() for b in network.buffers()),
        batch,
        sum(sizes),
        max(sizes),
        flop / batch,
    )


def _on_cpu(value: Tensor) -> Tensor:
    """Like the meta tensor `value`; the CPU's autocast acts on tensors of the CPU alone."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, requires_grad=value.requires_grad)


def _saved_bytes(forward: Callable[[], Tensor], state: Iterable[Tensor], dtype: torch.dtype) -> list[int]:
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # kept alive, or its number would be given out again
        return tensor

    autocast = torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        forward()
    own = {tensor.untyped_storage()._cdata for tensor in state}
    return [storage.nbytes() for key, storage in storages.items() if key not in own]
