"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 as a request: the step in hand is finished and saved before the run stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TypeVar

from torch.utils.data._utils import signal_handling

from attfc_cuda._signals import STOP_SIGNALS

_Batch = TypeVar("_Batch")


class LostWorker(ChildProcessError):
    """A process that prepares batches has ended by itself. The message names it and how to go on."""


class Interrupt:
    """A context manager inside which a stop signal sets `signal_number` instead of ending the process.

    A second SIGINT raises KeyboardInterrupt at once, for a run that hangs. A SIGHUP that is ignored when we begin
    (`nohup`) stays ignored. Outside the main thread, where Python delivers no signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}
        self._child_handler: object = None

    @property
    def signal_name(self) -> str | None:
        return None if self.signal_number is None else signal.Signals(self.signal_number).name

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._handle)
            if hasattr(signal, "SIGCHLD"):
                handler = signal.getsignal(signal.SIGCHLD)
                if handler is not None:  # None: installed outside Python, which cannot put it back
                    self._previous[signal.SIGCHLD] = handler
                    self._child_handler = signal.SIG_DFL if _is_torchs(handler) else handler
                    self._hold_child_handler()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def next_batch(self, batches: Iterator[_Batch]) -> _Batch:
        """The next of the batches.

        Raises:
            LostWorker: Where a worker process is gone. The state of the run is that after the last whole step.
        """
        try:
            try:
                return next(batches)
            finally:  # a loader's first batch installs torch's handler anew
                self._hold_child_handler()
        except RuntimeError as cause:
            if "DataLoader worker" not in str(cause):
                raise
            raise _lost(str(cause).split("\n", 1)[0].rstrip(". ")) from cause
        except (ConnectionError, EOFError) as cause:  # it ended while it was handing over a batch
            raise _lost(f"a worker that ended half-way through a batch ({type(cause).__name__})") from cause

    def _hold_child_handler(self) -> None:
        """Puts the caller's handler of a child's death in the place of torch's, until the exit.

        torch's raises wherever the main thread happens to be, which may be half a step, and stays installed when its
        loader is gone. The loader sees a lost worker without it, when it waits for a batch.
        """
        if self._child_handler is not None:
            signal.signal(signal.SIGCHLD, self._child_handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number


def _is_torchs(handler: object) -> bool:
    return getattr(handler, "__module__", None) == signal_handling.__name__


def _lost(reason: str) -> LostWorker:
    return LostWorker(f"train: the processes that prepare batches must go on, got: {reason}")
