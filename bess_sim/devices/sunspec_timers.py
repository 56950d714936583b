"""The dead-man inside simulated SunSpec devices: reversion timers that run without requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import ceil, inf


class ReversionTimer:
    """Counts down; `expired` is what happens at the end. Guarded by its owner's lock."""

    def __init__(self, expired: Callable[[], None]) -> None:
        self.expired = expired
        self.until = inf

    def start(self, now: float, seconds: float) -> None:
        """(Re)start; 0 seconds switch the timer off."""
        self.until = now + seconds if seconds > 0 else inf

    def stop(self) -> None:
        """Off."""
        self.until = inf

    def remaining(self, now: float) -> int:
        """Whole seconds left, rounded up; 0 when off."""
        return 0 if self.until == inf else max(0, ceil(self.until - now))


class Watchdog:
    """One daemon thread that fires reversion timers on time, also when nobody asks the device."""

    def __init__(self, tick: Callable[[], float]) -> None:
        self._tick = tick  # does what is due; returns seconds until the next (inf = nothing runs)
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def notify(self) -> None:
        """A timer was started."""
        if self._closed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name='sunspec-reversion', daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            wait = self._tick()
            self._wake.wait(None if wait == inf else max(wait, 0.001))
            self._wake.clear()
