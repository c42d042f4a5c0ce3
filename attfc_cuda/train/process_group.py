"""Several processes, one run: the group they form under torchrun, and each one's part of a batch.

    torchrun --nproc-per-node 8 -m -- attfc_cuda.cli train --run runs/large ...

The batch of the config is that of all processes together, cut into equal parts in its order: the same images meet in a
step whatever their number, and so does a run that goes on with fewer. Each process has the whole backbone
(DistributedDataParallel) and its part of the head's class centres (`attfc_cuda.distributed.shards.Shards`).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.parallel import DistributedDataParallel

from attfc_cuda._check import error
from attfc_cuda._deprecated import renamed_attributes
from attfc_cuda._version import __version__
from attfc_cuda.data import AttentionLoader, TooManyUnreadable
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.train.config import TrainConfig
from attfc_cuda.train.interrupt import LostWorker

# What the errors of a broken connection say: PyTorch raises a plain RuntimeError for most of them.
_BROKEN = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe", "socket")
_BEAT_S = 1.0
_Made = TypeVar("_Made")
__getattr__ = renamed_attributes(__name__, {"Silence": "train.log.NoLog"})


def in_thread(make: Callable[[], _Made], name: str) -> Future[_Made]:
    """What a thread of that name makes, which holds up neither messages nor the end of an interrupted process."""
    made: Future[_Made] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as failure:
            made.set_exception(failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return made


class LostProcess(ConnectionError):
    """Another process of the run is gone or does not answer. The message names the step and how to go on."""


class Group:
    """This process among those of a run: its rank, their count, its device. `join` makes one.

    Args:
        device: where this process computes.
        owned: whether the process group is ours to end.
    """

    def __init__(self, device: torch.device, owned: bool = True) -> None:
        self.device, self.owned = device, owned
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def shards(self, loader: AttentionLoader) -> Shards:
        """The shards for a head that gets this process's parts of the loader's batches."""
        sampler = loader.sampler
        negatives = sampler.num_negatives if sampler.negatives_per_batch is None else sampler.negatives_per_batch
        fixed = sampler.negatives_per_batch is not None or negatives == 0
        equal = sampler.batch_size % self.count == 0 and fixed and negatives % self.count == 0
        return Shards(equal_batches=equal)

    def wrap(self, backbone: nn.Module) -> nn.Module:
        """The backbone with its gradients averaged over the processes."""
        return DistributedDataParallel(backbone, [self.device] if self.device.type == "cuda" else None)

    def grad_scaler(self, enabled: bool) -> torch.amp.GradScaler:
        """A scaler for which a gradient that is infinite on one process is so on all."""
        return ShardedGradScaler(self.device.type, enabled=enabled, process_group=dist.group.WORLD)

    def latest_signal(self, number: int | None) -> Tensor:
        """The number of a signal that any process has got, 0 for none; the same on all, so that they stop together."""
        signal = torch.tensor(float(number or 0), device=self.device)
        dist.all_reduce(signal, dist.ReduceOp.MAX)
        return signal

    def first_cause(self, cause: Exception | None) -> Exception | None:
        """What keeps any process from its next batch, so that all stop after the same step; None where all have one.

        Args:
            cause: What keeps this one.
        """
        some = torch.tensor(float(cause is not None), device=self.device)
        dist.all_reduce(some, dist.ReduceOp.MAX)
        if not some.item():
            return None
        causes = self.from_all(None if cause is None else (type(cause).__name__, str(cause)))
        rank, (name, text) = next((rank, found) for rank, found in enumerate(causes) if found is not None)
        for kind in (LostWorker, TooManyUnreadable):
            if name == kind.__name__:
                return kind(f"{text}, at rank {rank} of {self.count}")
        return cause or LostProcess(
            f"train: all {self.count} processes must get a batch, got {name} at rank {rank} ({text})"
        )

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def wait(self) -> None:
        """Until every process is here."""
        dist.barrier()

    def until_all(self, work: Future[Any] | None) -> None:
        """Until the work of every process has ended, which may take longer than the group's timeout: a process that
        waits is told once a second that others are still at it.

        Args:
            work: This process's; None where it has none.
        """
        while self.any(work is not None and not wait([work], _BEAT_S).done):
            pass

    def in_turn(self, make: Callable[[], _Made]) -> _Made:
        """What `make` gives, called by the first process of all, then by the first of every other machine, then by the
        rest: so that those find what others have left on the disk.

        `make` may take longer than the group's timeout. What it raises is raised when every process has had its turn.
        """
        own = 0 if self.rank == 0 else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
        for turn in range(3):
            if turn == own:
                made = in_thread(make, "turn of this process")
            self.until_all(made if turn == own else None)
        return made.result()

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        dist.all_reduce(value)
        return value

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Give every process the first one's values of floating tensors, in one message."""
        if tensors:
            vector = nn.utils.parameters_to_vector(tensors)
            dist.broadcast(vector, group_src=0)
            nn.utils.vector_to_parameters(vector, tensors)

    def from_all(self, value: Any) -> list[Any]:
        """[rank]: a small object of each process."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], _Made]) -> _Made:
        """What `make` gives on the first process, a small object.

        Raises:
            OSError: On all processes, where it does there.
        """
        made: Any = None
        failure: OSError | None = None
        if self.rank == 0:
            try:
                made = make()
            except OSError as cause:
                failure = cause
        made, text = self.from_all((made, failure and str(failure)))[0]
        if text is not None:
            raise failure or OSError(text)
        return made

    def require_alike(self, what: str, values: dict[str, Any]) -> None:
        """Compare what every process must have alike.

        Args:
            what: A word for the message.
            values: Small objects by name, the same names on all processes.

        Raises:
            ValueError: On all processes, naming the first difference.
        """
        everyone = self.from_all(values)
        for name in everyone[0]:
            for rank, theirs in enumerate(everyone):
                if theirs.get(name) != everyone[0][name]:
                    got = f"{name} {everyone[0][name]!r} at rank 0 and {theirs.get(name)!r} at rank {rank}"
                    raise error("train", what, f"be the same on all {self.count} processes", got)

    @contextlib.contextmanager
    def naming_lost_processes(self, run: Path) -> Iterator[None]:
        """Turn the error of a broken connection into a `LostProcess` that says how to go on."""
        try:
            yield
        except RuntimeError as cause:
            text = " ".join(str(cause).split())
            if not isinstance(cause, dist.DistError) and not any(word in text.lower() for word in _BROKEN):
                raise
            # Without the place in gloo's sources, and what it suspects.
            reason = re.sub(r"^\[\S*\] *", "", text).split(". ")[0][:160]
            raise LostProcess(
                f"train: all {self.count} processes must go on, got no answer from another one at rank {self.rank} "
                f"({reason}); the run ends here and goes on from its last checkpoint, with as many processes as "
                f"there are: {self.command(run)}"
            ) from cause

    def command(self, run: Path) -> str:
        """How to resume with as many processes as there are here."""
        local = os.environ.get("LOCAL_WORLD_SIZE", self.count)
        return f"torchrun --nproc-per-node {local} -m -- attfc_cuda.cli train --run {run} --resume"


def join(config: TrainConfig) -> Group | None:
    """The group of the run where torchrun has started several processes; None for a process by itself.

    A group that exists already is used as it is. GPUs talk by NCCL, CPUs by gloo; each process of a machine takes the
    GPU of its local rank.

    Raises:
        ValueError: where there is no GPU for it, or `device` names one GPU for all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        return None
    name, local = config.run.device, int(os.environ.get("LOCAL_RANK", "0"))
    if name not in ("auto", "cpu", "cuda"):
        raise error("train", "device", "be auto, cpu or cuda with several processes", repr(name))
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        device = torch.device("cpu")
    elif local < torch.cuda.device_count():
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        rule = "have a GPU for every process of this machine"
        got = f"local rank {local} with {torch.cuda.device_count()} GPUs"
        raise error("train", "device", rule, got, "start fewer processes, or use --device cpu")
    owned = not dist.is_initialized()
    if owned:
        timeout = timedelta(seconds=config.run.group_timeout)
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=timeout, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=timeout)
    return Group(device, owned)


def leave(group: Group | None) -> None:
    """End the group that `join` has made, once every process is done."""
    if group is not None and group.owned:
        group.wait()
        dist.destroy_process_group()


# Settings that each process may have for itself: where it runs, how it reads, what it shows.
_OWN_SETTINGS = (
    "data", "identities", "cache", "workers", "verify_pairs", "verify_root", "verify_data", "device", "threads",
    "progress", "tensorboard", "loggers", "pictures",
)  # fmt: skip


def shared_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that all processes of a run must have alike, by name, and the release."""
    named = {name: value for group in config.to_dict().values() for name, value in group.items()}
    return {"release": __version__} | {name: value for name, value in named.items() if name not in _OWN_SETTINGS}
