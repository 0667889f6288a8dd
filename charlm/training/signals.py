"""Requests to stop: SIGTERM, SIGUSR1 (slurm's warning), Ctrl-C, or the limit of hours."""

from __future__ import annotations

import signal
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Within it a signal only sets `reason`, so that the loop finishes its step.

    Ctrl-C exits immediately when it comes a second time, and outside the loop (`in_loop` False), where there
    is nothing to save. Signals that were blocked while the process started (slurm/train.sh blocks them) are
    delivered when it is entered.
    """

    def __init__(self):
        self.started = time.monotonic()
        self.max_hours: float | None = None  # counted from the creation of this object
        self.in_loop = False
        self._reason: str | None = None
        self._before: dict = {}

    @property
    def reason(self) -> str | None:
        """Why to stop, or None to continue."""
        hours = (time.monotonic() - self.started) / 3600
        if self._reason is None and self.max_hours is not None and hours >= self.max_hours:
            self._reason = "train.max_hours is over"
        return self._reason

    def _handle(self, number: int, frame) -> None:
        if number == signal.SIGINT and (self._reason is not None or not self.in_loop):
            raise KeyboardInterrupt
        self._reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
