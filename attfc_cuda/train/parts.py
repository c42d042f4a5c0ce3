"""Gradient accumulation: a batch goes through a network in parts; loss, head and optimizer meet it whole.

    embeddings = torch.cat([network(part) for part in parts])    # of all parts but the last only the embeddings stay
    head(embeddings, labels).backward()                          # one part after the other runs again, then backward

So a step is that of the whole batch for any head: for a container, which would move between losses of parts, and for an
optimizer inside the backward pass, which makes a step of each. Gradients summed over losses of parts would be neither.
What it costs is a second forward pass through the network, of all parts but one. Source: our choice; for a contrastive
loss the same was done in "Scaling deep contrastive learning batch size under memory limited setup" (arXiv 2101.06983).
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from attfc_cuda._check import error

_LEAST_ROWS = 2  # of a part


class InParts(nn.Module):
    """The network, with the activations of one part of a batch at a time.

    Equals `network(images)` for a network whose rows do not depend on each other. BatchNorm normalises each part by
    itself, and its running statistics move once a part.

    Args:
        network: images [B, ...] to embeddings [B, D].
        parts: most parts of a batch, as equal as they can be; a part has two rows at least.
    """

    def __init__(self, network: nn.Module, parts: int) -> None:
        super().__init__()
        self.network, self.parts = network, parts

    def forward(self, images: Tensor) -> Tensor:
        return through(self.network, images, self.parts)


def through(network: nn.Module, images: Tensor, parts: int) -> Tensor:
    """As `InParts` does it."""
    count = _count(len(images), parts)
    if count == 1:
        return network(images)
    *first, last = images.tensor_split(count)
    if not torch.is_grad_enabled():
        return torch.cat([*map(network, first), network(last)])
    # The last part is the first that the backward pass comes to: its activations stay.
    again = [_recomputed(network, part) for part in first]
    return torch.cat([*again, network(last)])


def check_parts(function: str, parts: int, rows: int, share: str = "", batch: str = "--batch-size") -> None:
    """Raise ValueError, in the name of `function`, for more parts than a batch of `rows` probes has.

    Args:
        function: For the message, as are the rest.
        parts: Of a batch.
        rows: That a process has of it.
        share: Why those are not the whole batch.
        batch: The option that gives their number.
    """
    if parts > 1 and rows // parts < _LEAST_ROWS:
        rule = f"leave two probes at least to each part of the {rows} of a batch{share}"
        raise error(function, "accumulate", rule, parts, f"raise {batch}, or lower --accumulate")


def sizes(rows: int, parts: int) -> tuple[int, int]:
    """Images of the largest part of `rows`, and of the last, which alone goes forward once."""
    count = _count(rows, parts)
    return -(-rows // count), rows // count


def _count(rows: int, parts: int) -> int:
    return max(1, min(parts, rows // _LEAST_ROWS))


def _recomputed(network: nn.Module, images: Tensor) -> Tensor:
    def contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        return contextlib.nullcontext(), _StatisticsKept(network)

    return checkpoint(network, images, use_reentrant=False, context_fn=contexts)


class _StatisticsKept(contextlib.AbstractContextManager):
    """Inside, BatchNorm's running statistics move in copies: the first forward pass has moved the real ones.

    The buffers are exchanged, not written back: autograd takes what was written for a change of what it has saved.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = [m for m in network.modules() if isinstance(m, _BatchNorm)]
        self._held: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        self._held = [(m, name, buffer) for m in self._modules for name, buffer in m.named_buffers(recurse=False)]
        for module, name, buffer in self._held:
            setattr(module, name, buffer.clone())

    def __exit__(self, *exception: object) -> None:
        for module, name, buffer in self._held:
            setattr(module, name, buffer)
        self._held = []
