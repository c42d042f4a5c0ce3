"""Class centres split over the processes of a group: what goes between them, with its gradient.

Every process holds a stretch of the classes and sees the rows of all processes. The B-sized mathematics of a loss is
replicated: each process computes the same loss from the same numbers. Only three things cross between processes:

    rows        each process's rows reach all; their gradients, partial on each process, come back summed
    own cosine  the process that holds a row's class knows it; the others add 0
    sweep       each process's lse is a partial sum; they merge exactly, as the splits of one sweep do

A gradient that each process holds whole passes a sum unchanged (`sum_of_shards`); one of which each holds a part is
summed where it leaves the shards (`to_shards`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shards: Shards, sizes: list[int], partial: bool) -> Tensor:
        ctx.shards, ctx.sizes, ctx.partial = shards, sizes, partial
        return shards.gather(rows, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        shards, sizes = ctx.shards, ctx.sizes
        if ctx.partial:
            grad = grad.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(grad, group=shards.group)
        first = sum(sizes[: shards.rank])
        return grad[first : first + sizes[shards.rank]] * shards.gradient_factor, None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad, None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _MergeLse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, shards: Shards) -> Tensor:
        parts = shards.stack(part)
        lse = torch.logsumexp(parts, dim=0)
        # exp(-inf - -inf) of rows without any negative is NaN: they have no gradient.
        ctx.save_for_backward(torch.where(lse.isinf(), 0, torch.exp(part - lse)))
        return lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (share,) = ctx.saved_tensors
        return grad * share, None


class Shards:
    """One process's place among those that share the classes.

    group: the process group; None: the default one.
    averaged_gradients: whether the backbone's gradients are averaged over the group afterwards, as
        DistributedDataParallel does. The loss is the mean over the rows of all processes; True makes the embeddings'
        gradients the number of processes times larger, so that the average is the gradient of that mean.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, averaged_gradients: bool = True) -> None:
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.count = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.gradient_factor = float(self.count) if averaged_gradients else 1.0

    def bounds(self, total: int, rank: int | None = None) -> tuple[int, int]:
        """[first, last) of the `total` rows that a process holds: equal stretches, the last ones shorter or empty, as
        torch.chunk and DTensor's Shard(0) cut them."""
        stretch = -(-total // self.count)
        rank = self.rank if rank is None else rank
        return min(rank * stretch, total), min((rank + 1) * stretch, total)

    def sizes(self, rows: Tensor) -> list[int]:
        """How many rows each process has. The host waits for it."""
        mine = torch.tensor([len(rows)], device=rows.device)
        return [int(size) for size in self.stack(mine)[:, 0].tolist()]

    def gather(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """The rows of all processes, in order of rank; without gradient."""
        most = max(sizes)
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        everyone = self.stack(padded)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    def gather_rows(self, rows: Tensor, sizes: list[int], partial: bool = True) -> Tensor:
        """The rows of all processes. Their gradients come back, summed where each process makes a part of them
        (`partial`: what meets the centres), as they are where each makes the whole (what the replicated loss reads)."""
        return _Gather.apply(rows, self, sizes, partial)

    def stack(self, value: Tensor) -> Tensor:
        """[count, ...]: the same-shaped value of every process."""
        everyone = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(everyone, value.contiguous(), group=self.group)
        return torch.stack(everyone)

    def sum_of_shards(self, part: Tensor) -> Tensor:
        """The sum of the parts. Each part's gradient is that of the sum, which every process holds whole."""
        return _Sum.apply(part, self.group)

    def to_shards(self, value: Tensor) -> Tensor:
        """A value that every process has, on its way into this shard's own work: the gradients are summed."""
        return _Copy.apply(value, self.group)

    def merge_lse(self, part: Tensor) -> Tensor:
        """log of the summed masses [B] of the parts' logs; -inf where no part has any."""
        return _MergeLse.apply(part, self)

    def merge_statistics(
        self, part: Tensor, lse: Tensor, hard_count: Tensor, max_cosine: Tensor, omitted_mass: Tensor, reference: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(hard_count, max_cosine, omitted_mass) [B] of all shards from this one's; `part` its lse, `lse` the merged.

        A shard's omitted mass is a share of its own negatives and the target: brought to those of all and the target.
        """
        share = torch.exp(torch.logaddexp(part.detach(), reference) - torch.logaddexp(lse.detach(), reference))
        sums = torch.stack([hard_count.double(), (omitted_mass * share).double()])
        dist.all_reduce(sums, group=self.group)
        largest = max_cosine.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return sums[0].to(hard_count.dtype), largest, sums[1].to(omitted_mass.dtype)
