"""The signals by which a user or a scheduler asks a run to stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)


def start_worker(worker: int = 0) -> None:
    """Ready a worker process: stop signals are its parent's business, and it ends when its parent has gone.

    A signal that was sent to the whole process group is left to the process that can save; a second SIGTERM ends the
    worker, as the process that it works for may have to end it by that. Of a parent that was killed torch tells a
    worker only once what it had prepared is taken, and nobody takes it.

    Args:
        worker: Its number, which a `DataLoader` gives.
    """
    signal.signal(signal.SIGTERM, _obey_the_next)
    start_helper()


def start_helper(worker: int = 0) -> None:
    """As `start_worker`, for a process without which nothing is lost: the first SIGTERM ends it."""
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _obey_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)  # nobody is left to tell why, and an orderly end would wait for the reader of our queue
