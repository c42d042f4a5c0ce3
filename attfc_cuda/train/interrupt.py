"""Ctrl-C and SIGTERM as a request: the step in hand is finished and saved before the run stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupt:
    """A context manager inside which SIGINT and SIGTERM set `signal_name` instead of ending the process.

    A second SIGINT raises KeyboardInterrupt at once, for a run that hangs. Outside the main thread, where Python
    delivers no signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def signal_name(self) -> str | None:
        return None if self.signal_number is None else signal.Signals(self.signal_number).name

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
