"""Checkpoints written by a thread while training goes on: one at a time, and no failure is lost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attfc_cuda.heads.container import DynamicClassContainer
from attfc_cuda.train import checkpoint
from attfc_cuda.train.snapshot import RowGuard, copied, copied_bytes

COPY_BYTES = 1 << 30
"""The most that is copied for a writer in the background. Above it lie full layers of trained centres, every row of
which changes at each step: a copy of them, momentum included, would need their memory again."""


def containers_of(module: nn.Module) -> dict[int, DynamicClassContainer]:
    """The containers in a module, by the address of their centres."""
    found = (m for m in module.modules() if isinstance(m, DynamicClassContainer))
    return {m.centers.data_ptr(): m for m in found if m.centers.numel()}


class CheckpointWriter:
    """Writes the checkpoints of one process's run.

    What ends a run leaves `reporting`, which waits for the write under way. Only a second Ctrl-C does not: the file is
    given up, which leaves the checkpoints before it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._guards: dict[DynamicClassContainer, RowGuard] = {}

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
        """Write the state as it is now: in the background, where that is asked for and `start` begins it, or at once.

        Args:
            state: As for `start`, as are module, folder, step and keep.
            optimizer: Of no use here: one process has everything in `state`.
            background: See there.

        Raises:
            OSError: Where it, or the write before, has failed.
        """
        self.finish()
        if not (background and self.start(state, module, folder, step, keep)):
            checkpoint.save(state, folder, step, keep)

    def start(self, state: dict[str, Any], module: nn.Module, folder: Path, step: int, keep: int) -> bool:
        """Take the state as it is now and begin to write it, once the write before has ended.

        Args:
            state: As for `checkpoint.save`, as are folder, step and keep.
            module: Its containers go on changing; the rest of `state` is copied.

        Returns:
            False, and nothing is begun, where there is more to copy than `COPY_BYTES`.

        Raises:
            OSError: Where the write before has failed.
        """
        self.finish()
        containers = containers_of(module)
        if copied_bytes(state, containers) > COPY_BYTES:
            return False
        state = copied(state, containers)
        self._guards = {container: RowGuard(container.centers) for container in containers.values()}
        for container, guard in self._guards.items():
            container.overwriting = guard.overwriting
        streamed = {address: self._guards[container].blocks for address, container in containers.items()}

        def write() -> None:
            try:
                checkpoint.save(state, folder, step, keep, streamed)
            except BaseException as failure:
                self._failure = failure
            finally:
                for guard in self._guards.values():
                    guard.end()

        self._thread = threading.Thread(target=write, name=f"checkpoint of step {step}", daemon=True)
        self._thread.start()
        return True

    def report(self) -> None:
        """Raise what the write has failed with, if it has; without waiting for it."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait for the write under way.

        Raises:
            OSError: Where it has failed; once.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        for container in self._guards:
            container.overwriting = None
        self._guards = {}
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def reporting(self, note: Callable[[str], None]) -> Iterator[None]:
        """Around a run. At its end the write under way is waited for, and its failure is raised, or given to `note`
        where another error ends the run."""
        try:
            yield
        except KeyboardInterrupt:
            for guard in self._guards.values():
                guard.given_up = True
            with contextlib.suppress(Exception):
                self.finish()
            raise
        except BaseException:
            try:
                self.finish()
            except Exception as failure:
                note(str(failure))
            raise
        self.finish()
