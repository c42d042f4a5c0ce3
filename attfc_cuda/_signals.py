"""The signals by which a user or a scheduler asks a run to stop."""

from __future__ import annotations

import signal

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)


def ignore_stop_signals(worker: int = 0) -> None:
    """Leave a signal that was sent to the whole process group to the process that can save; for worker processes.

    Args:
        worker: Its number, which a `DataLoader` gives.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
