"""Checkpoints of several processes, written by a thread of each while training goes on.

    threads of all      each its part of what is split, from its snapshot
    thread of the first the rest, and then the file whose name says that the checkpoint is whole

A thread talks to no other process: what the threads have come to is exchanged between two steps, by the main threads,
which all know that a write is under way. So the steps' own messages and those of a write cannot cross, and a process
that dies or cannot write leaves the checkpoint before as the newest.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attfc_cuda._check import error
from attfc_cuda.distributed.shards import Shards
from attfc_cuda.distributed.split_state import Part, SplitOptimizer, parts_of
from attfc_cuda.heads.container import DynamicClassContainer
from attfc_cuda.train import checkpoint, checkpoint_writer, part_files
from attfc_cuda.train.process_group import Group, in_thread
from attfc_cuda.train.snapshot import RowGuard, copied, copied_bytes


class GroupCheckpointWriter:
    """Writes the checkpoints of a run of several processes. All of them call each method, at the same place.

    Args:
        group: The processes.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._work: Future[dict[str, int]] | None = None
        self._then: Callable[[dict[str, int]], None] | None = None
        self._shards = Path()
        self._containers: list[DynamicClassContainer] = []
        self._guards: list[RowGuard] = []

    def save(
        self,
        state: dict[str, Any],
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        folder: Path,
        step: int,
        keep: int,
        background: bool = False,
    ) -> None:
        """Write the state as it is now, once the write before has ended.

        Args:
            state: What the first process writes, as for `checkpoint.save`, as are folder, step and keep.
            module: Whose split tensors are written in parts.
            optimizer: That moves them; None where nothing does.
            background: Return as soon as the state is safe from the steps to come, unless a process has more to copy
                than `checkpoint_writer.COPY_BYTES`.

        Raises:
            OSError: On all processes, where this write, if it is not in the background, or the one before has failed on
                any.
        """
        self.finish()
        if isinstance(optimizer, SplitOptimizer):
            optimizer.make_state()  # type: ignore[attr-defined]
        group, parts = self._group, parts_of(module, optimizer)
        tensors, first = {name: part.tensor.detach() for name, part in parts.items()}, group.rank == 0
        containers = checkpoint_writer.containers_of(module)
        if background:
            own = copied_bytes(tensors, containers) + (copied_bytes(state, containers) if first else 0)
            background = not group.any(own > checkpoint_writer.COPY_BYTES)
        path = checkpoint.path_of(folder, step)
        suffix = group.from_first(lambda: _prepared(folder, step))
        shards = self._shards = path.with_suffix(suffix)
        streamed, guards = {}, list[RowGuard]()
        if background:
            tensors, state = copied(tensors, containers), copied(state, containers) if first else {}
            for address, container in containers.items():
                guard = RowGuard(container.centers)
                container.overwriting, streamed[address] = guard.overwriting, guard.blocks
                guards.append(guard)
            self._containers, self._guards = list(containers.values()), guards
        split_by = _shards_of(parts)

        def write() -> dict[str, int]:
            if group.device.type == "cuda":
                torch.cuda.set_device(group.device)  # a thread begins with the first one
            try:
                return {} if split_by is None else part_files.write_parts(tensors, split_by, shards, streamed)
            except OSError as cause:
                raise _not_written(path, f"{cause}, at rank {group.rank} of {group.count}") from cause
            finally:
                for guard in guards:
                    guard.end()

        def complete(checksums: dict[str, int]) -> None:
            try:
                checksums = checksums | part_files.write_metadata(parts, split_by, shards)
            except OSError as cause:
                raise _not_written(path, str(cause)) from cause
            whole = {**state, "shards": suffix, "shards_crc32": checksums}
            checkpoint.save(whole, folder, step, keep)

        self._work, self._then = in_thread(write, f"parts of the checkpoint of step {step}"), complete
        if not background:
            self.finish()

    def report(self) -> None:
        """Go on with the write under way where all processes are ready for it, without waiting for any.

        Raises:
            OSError: On all processes, once, where the write has failed on any.
        """
        if self._work is not None and not self._group.any(not self._work.done()):
            self._go_on()

    def finish(self) -> None:
        """Wait for the write under way.

        Raises:
            OSError: As in `report`.
        """
        while self._work is not None:
            self._group.until_all(self._work)
            self._go_on()

    @contextlib.contextmanager
    def reporting(self, note: Callable[[str], None]) -> Iterator[None]:
        """Around a run. At its end the write under way is waited for, and its failure is raised. Where an error ends
        the run, perhaps on this process alone, parts that are still written are given up, and what the first process
        writes after them is waited for; a failure is given to `note`."""
        try:
            yield
        except BaseException:
            for guard in self._guards:
                guard.given_up = True
            if self._work is not None:
                failure = self._work.exception()
                if failure is not None and not isinstance(failure.__cause__, InterruptedError):
                    note(str(failure))
            self._release()
            raise
        self.finish()

    def _go_on(self) -> None:
        """From the end of all threads to the next thing to do."""
        work, then = self._work, self._then
        assert work is not None
        self._work = self._then = None
        self._release()
        failure = work.exception()
        own = None if failure is None else (isinstance(failure, OSError), str(failure))
        everyones = self._group.from_all((own, None if failure is not None else work.result()))
        failures = [failed for failed, _ in everyones if failed is not None]
        if failures:
            if self._group.rank == 0 and then is not None:  # no file names them yet
                shutil.rmtree(self._shards, ignore_errors=True)
            of_system, text = failures[0]
            if failure is not None and own == failures[0]:
                raise failure
            raise (OSError if of_system else RuntimeError)(text) from failure  # all raise alike, and go on alike
        if then is None:
            return
        checksums = {name: crc for _, files in everyones for name, crc in files.items()}

        def complete() -> dict[str, int]:
            if self._group.rank == 0:
                then(checksums)
            return {}

        self._work = in_thread(complete, "the checkpoint's file")

    def _release(self) -> None:
        for container in self._containers:
            container.overwriting = None
        self._containers, self._guards = [], []


def _prepared(folder: Path, step: int) -> str:
    """Which of `checkpoint.SHARDS` is an empty folder for the parts of a checkpoint of `step`, beside those of a whole
    one of that step where there is one."""
    try:
        path = checkpoint.announce(folder, step)
        checkpoint.sweep(folder, path)
        suffix = checkpoint.free_shards(path)
        shards = path.with_suffix(suffix)
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir(parents=True)
    except OSError as cause:
        raise _not_written(checkpoint.path_of(folder, step), str(cause)) from cause
    return suffix


def _not_written(path: Path, got: str) -> Exception:
    remedy = "the checkpoints before it are whole: make room, then --resume"
    return error("checkpoint", str(path), "be written", got, remedy, OSError)


def _shards_of(parts: dict[str, Part]) -> Shards | None:
    return next((part.shards for part in parts.values()), None)
