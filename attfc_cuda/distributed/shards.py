"""Class centres split over the processes of a group: what goes between them, with its gradient.

Every process holds a part of the classes (or of a container's slots) and sees the rows of all processes. Whatever has
size B is replicated: each process computes the same loss from the same numbers. Only three things cross between
processes:

    rows        each process's rows reach all; their gradients, partial on each process, come back summed
    own cosine  the process that holds a row's class knows it; the others add 0
    sweep       each process's lse is a partial sum; they merge exactly, as the splits of one sweep do

A gradient that each process holds whole passes a sum unchanged (`sum_of_shards`); one of which each holds a part is
summed where it leaves the shards (`to_shards`). The collectives of a backward pass run in the order of autograd's
nodes, which is the same on every process because the graph is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attfc_cuda._check import error


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shards: Shards, sizes: list[int], partial: bool) -> Tensor:
        ctx.shards, ctx.sizes, ctx.partial = shards, sizes, partial
        return shards.gather(rows, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        shards, sizes = ctx.shards, ctx.sizes
        grad = shards.scatter_sum(grad, sizes) if ctx.partial else grad.split(sizes)[shards.rank]
        return grad * shards.gradient_factor, None, None, None


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
    def forward(ctx: Any, part: Tensor, parts: Tensor) -> Tensor:  # parts: float64 [count, B]
        lse = torch.logsumexp(parts, dim=0)
        # exp(-inf - -inf) of rows without any negative is NaN: they have no gradient.
        ctx.save_for_backward(torch.where(lse.isinf(), 0, torch.exp(part - lse)).to(part.dtype))
        return lse.to(part.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (share,) = ctx.saved_tensors
        return grad * share, None


class Shards:
    """One process's place among those that share the classes: ``FullyConnected(512, 10_000_000, shards=Shards())``.

    Args:
        group: the process group; None: the default one. Every process of it calls the head, the same number of times.
        averaged_gradients: whether the backbone's gradients are averaged over the group afterwards, as
            DistributedDataParallel does. The loss is the mean over the rows of all processes; True multiplies the
            embeddings' gradients by the number of processes, so that the average is the gradient of that mean.
        equal_batches: a promise that every process brings equally many rows to each call. It saves the exchange of
            their numbers, the only thing for which the host waits.

    Gradient:
        First order.

    Raises:
        ValueError: where this process is not in the group.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        averaged_gradients: bool = True,
        equal_batches: bool = False,
    ) -> None:
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.count = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise error("Shards", "group", "contain this process", "one without it")
        self.gradient_factor = float(self.count) if averaged_gradients else 1.0
        self.equal_batches = equal_batches

    def __deepcopy__(self, memo: dict) -> Shards:
        return self  # a copied head stays in the group, which cannot be copied

    def __reduce__(self) -> str | tuple:
        remedy = "save head.state_dict(), or use attfc_cuda.distributed.checkpoint.save"
        raise error("Shards", "a head with shards", "not be pickled whole", "torch.save or pickle", remedy, TypeError)

    def bounds(self, total: int, rank: int | None = None) -> tuple[int, int]:
        """[first, last) of the `total` rows that a process holds: equal parts, the last ones shorter or empty, as
        torch.chunk and DTensor's Shard(0) cut them."""
        size = -(-total // self.count)
        rank = self.rank if rank is None else rank
        return min(rank * size, total), min((rank + 1) * size, total)

    def sizes(self, *rows: Tensor) -> list[list[int]]:
        """How many rows each process has, [process] for each argument. The host waits for it unless `equal_batches`
        promises the answer."""
        mine = [len(value) for value in rows]
        if self.equal_batches:
            return [[size] * self.count for size in mine]
        return self.stack(torch.tensor(mine, device=rows[0].device)).T.tolist()

    def gather(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """The rows of all processes, in order of rank; without gradient."""
        most, rows = max(sizes), rows.detach()
        if len(rows) < most:
            rows = torch.cat([rows, rows.new_zeros((most - len(rows), *rows.shape[1:]))])
        everyone = self.stack(rows)
        if min(sizes) == most:
            return everyone.flatten(0, 1)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    def scatter_sum(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """The counterpart of `gather`: this process's rows of the sum over all processes' `rows`."""
        most = max(sizes)
        parts = [part.contiguous() for part in rows.split(sizes)]
        if min(sizes) < most:
            parts = [torch.cat([part, part.new_zeros((most - len(part), *part.shape[1:]))]) for part in parts]
        total = torch.empty_like(parts[self.rank])
        dist.reduce_scatter(total, parts, group=self.group)
        return total[: sizes[self.rank]]

    def gather_rows(self, rows: Tensor, sizes: list[int], partial: bool = True) -> Tensor:
        """The rows of all processes. Their gradients come back, summed where each process makes a part of them
        (`partial`: what meets the centres), as they are where each makes the whole (what the replicated loss reads)."""
        return _Gather.apply(rows, self, sizes, partial)

    def stack(self, value: Tensor) -> Tensor:
        """[count, ...]: the same-shaped value of every process."""
        everyone = value.new_empty((self.count, *value.shape))
        dist.all_gather(list(everyone.unbind()), value.contiguous(), group=self.group)
        return everyone

    def sum_of_shards(self, part: Tensor) -> Tensor:
        """The sum of the parts. Each part's gradient is that of the sum, which every process holds whole."""
        return _Sum.apply(part, self.group)

    def to_shards(self, value: Tensor) -> Tensor:
        """A value that every process has, on its way into this shard's own work: the gradients are summed."""
        return _Copy.apply(value, self.group)

    def merge(
        self, lse: Tensor, hard_count: Tensor, max_cosine: Tensor, omitted_mass: Tensor, target_logit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same four [B] (see `functional.NegativeLogSumExp`) over the negatives of all shards, in one exchange.

        A shard's omitted mass is a share of its own negatives and the target; it is brought to a share of all negatives
        and the target.

        Args:
            lse: of this shard's sweep, as are the three that follow. The result is differentiable in it, and -inf where
                no shard has any negative.
            hard_count: int64.
            max_cosine: -inf without negatives.
            omitted_mass: see above.
            target_logit: the rows' target logits.
        """
        # float64 holds float32 and every count exactly.
        part = torch.stack([value.detach().double() for value in (lse, hard_count, max_cosine, omitted_mass)])
        parts, hard_counts, largest, omitted = self.stack(part).unbind(dim=1)
        target_logit = target_logit.detach().double()
        total = torch.logaddexp(torch.logsumexp(parts, dim=0), target_logit)
        omitted = (omitted * torch.exp(torch.logaddexp(parts, target_logit) - total)).sum(dim=0)
        return (
            _MergeLse.apply(lse, parts),
            hard_counts.sum(dim=0).to(hard_count.dtype),
            largest.amax(dim=0).to(max_cosine.dtype),
            omitted.to(omitted_mass.dtype),
        )


def take_rows(part: Tensor, rows: Tensor, total: int, shards: Shards | None) -> Tensor:
    """The rows of those numbers, [len(rows), ...], of a tensor of `total` rows that is split over the processes.

    The part of each process goes to all in turn, so that no process ever holds more than one beside its own.

    Args:
        part: this process's rows of the tensor; without shards, all of it.
        rows: int64, each process its own choice; a number below 0 gives a row of zeros.
        total: the rows of all processes together.
        shards: the processes.
    """
    taken = part.new_zeros((len(rows), *part.shape[1:]))
    for rank in range(1 if shards is None else shards.count):
        first, last = (0, total) if shards is None else shards.bounds(total, rank)
        theirs = part
        if shards is not None and first < last:
            theirs = part if rank == shards.rank else part.new_empty((last - first, *part.shape[1:]))
            dist.broadcast(theirs, group=shards.group, group_src=rank)
        here = ((rows >= first) & (rows < last)).nonzero().flatten()
        taken[here] = theirs[rows[here] - first]
    return taken
