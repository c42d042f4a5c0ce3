"""The signals by which a user or a scheduler asks a run to stop."""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)


def ignore_stop_signals(worker: int = 0) -> None:
    """Leave a signal that was sent to the whole process group to the process that can save; for worker processes.

    A second SIGTERM ends the worker: the process that it works for may have to end it by that.

    Args:
        worker: Its number, which a `DataLoader` gives.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _obey_the_next if number == signal.SIGTERM else signal.SIG_IGN)


def _obey_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
