"""What simulated SunSpec devices share: register access, lock, clock and reversion timers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from math import inf

from bess_sim.devices.modbus_pdu import IllegalAddress
from bess_sim.devices.sunspec_image import SunSpecImage
from bess_sim.devices.sunspec_timers import ReversionTimer, Watchdog

COMMON: dict[str, float | str] = {'Mn': 'bess', 'Opt': '', 'Vr': '1.0', 'DA': 1.0}


def scale_for(largest: float, limit: int = 32767) -> int:
    """The scale factor (>= 0) with which twice `largest` fits into a 16-bit register."""
    scale = 0
    while 2 * largest / 10**scale > limit:
        scale += 1
    return scale


class SunSpecDevice:
    """A `RegisterMap` over an image; subclasses fill live points and act on writes.

    `background`: fire reversion timers from a thread, so that they run without requests; without it
    they fire in `read`, `write` and `tick` (tests, simulated time).
    """

    def __init__(self, image: SunSpecImage, clock: Callable[[], float], background: bool) -> None:
        self.image = image
        self.clock = clock
        self.started_at = clock()
        self._lock = threading.RLock()
        self._live: dict[int, Callable[[], None]] = {}  # model -> patches its live points
        self._timers: list[ReversionTimer] = []
        self._watchdog = Watchdog(self.tick) if background else None

    def read(self, function: int, address: int, count: int) -> list[int]:
        """See `RegisterMap`."""
        if function != 3:
            raise IllegalAddress  # SunSpec maps live in the holding registers
        with self._lock:
            self.tick()
            for model in self.image.touched(address, count):
                if (refresh := self._live.get(model)) is not None:
                    refresh()
            return self.image.read(address, count)

    def write(self, address: int, values: list[int]) -> None:
        """See `RegisterMap`."""
        with self._lock:
            self.tick()
            changes = self.image.check_write(address, values)
            self._check(changes)
            self.image.store(address, values)
            self._written(changes)
        if self._watchdog is not None and any(t.until < inf for t in self._timers):
            self._watchdog.notify()

    def tick(self) -> float:
        """Fire the timers that are due; returns the seconds until the next (inf = none runs)."""
        with self._lock:
            now = self.clock()
            for timer in self._timers:
                if timer.until <= now:
                    timer.stop()
                    timer.expired()
            return min((t.until - now for t in self._timers), default=inf)

    def close(self) -> None:
        """End the timer thread."""
        if self._watchdog is not None:
            self._watchdog.close()

    def uptime(self) -> int:
        """Whole seconds since the start: the device's heartbeat."""
        return int(self.clock() - self.started_at)

    def _timer(self, expired: Callable[[], None]) -> ReversionTimer:
        timer = ReversionTimer(expired)
        self._timers.append(timer)
        return timer

    def _setters(self, model: int, *names: str) -> Mapping[str, Callable[[float], None]]:
        return {name: self.image.setter(model, name) for name in names}

    def _check(self, changes: Mapping[str, int]) -> None:
        """Refuse a write (`IllegalValue`) before anything changes."""

    def _written(self, changes: Mapping[str, int]) -> None:
        """Act on a write: 'model.Point' -> raw value."""
        raise NotImplementedError


monotonic = time.monotonic
