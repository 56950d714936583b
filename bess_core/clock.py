"""Site time: one monotonic number of seconds for everything that decides, and stamps for messages.

`now()` never jumps: it is the machine's monotonic clock (equal in all processes of a machine), or
simulated seconds. `wall()` is absolute time (epoch seconds) for labels and schedules. A wall-clock
step (NTP, an operator) must not make fresh data look old: `Clock.from_stamp` recognises a step and
reads stamps from before it correctly.
"""

from __future__ import annotations

import time
from math import inf

STEP_S = 0.2  # a change of (wall - monotonic) above this between two calls is a step, not drift
ROUNDING_S = 1e-3  # what stamps and sums of large numbers may be off
STEP_MEMORY_S = 5.0  # how long messages stamped before a step may still arrive


class Clock:
    """Real time."""

    simulated = False

    def __init__(self) -> None:
        self._offset = self.wall() - self.now()
        self._step = 0.0
        self._stepped_at = -inf

    def now(self) -> float:
        """Site time in s; monotonic."""
        return time.monotonic()

    def wall(self) -> float:
        """Absolute time in s since the epoch; may be stepped by the operator."""
        return time.time()

    def to_wall(self, at: float) -> float:
        """Absolute time of a site time."""
        return at + self._current_offset()

    def from_wall(self, wall: float) -> float:
        """Site time of an absolute time, for stamps of the recent past."""
        offset = self._current_offset()
        now = self.now()
        at = wall - offset
        if self._step and now - self._stepped_at < STEP_MEMORY_S:
            before_step = at + self._step
            made_before, made_after = before_step <= self._stepped_at + ROUNDING_S, at >= self._stepped_at - ROUNDING_S
            # After a step back both may fit; then the younger one, so that fresh data does not look old.
            if made_before is not made_after:
                at = before_step if made_before else at
            elif abs(now - before_step) < abs(now - at):
                at = before_step
        return min(at, now)

    def _current_offset(self) -> float:
        now = self.now()
        offset = self.wall() - now
        if abs(offset - self._offset) > STEP_S:
            self._step = offset - self._offset
            self._stepped_at = now
        self._offset = offset
        return offset


class SimClock(Clock):
    """Simulated time, set by whoever conducts the simulation. Wall time starts at `start_wall`."""

    simulated = True

    def __init__(self, start_wall: float = 0.0) -> None:
        self._now = 0.0
        self.start_wall = start_wall
        super().__init__()

    def now(self) -> float:
        """Simulated seconds since the start."""
        return self._now

    def wall(self) -> float:
        """Simulated absolute time."""
        return self.start_wall + self._now

    def to_wall(self, at: float) -> float:
        """Absolute time of a site time; simulated time knows no steps."""
        return self.start_wall + at

    def from_wall(self, wall: float) -> float:
        """Site time of an absolute time."""
        return min(wall - self.start_wall, self._now)

    def set(self, now: float) -> None:
        """Move on to `now` s. Raises ValueError when that would go back."""
        if now < self._now:
            raise ValueError(f'simulated time cannot go back from {self._now} s to {now} s')
        self._now = now


def split_stamp(wall: float) -> tuple[int, int]:
    """Seconds and nanoseconds of an absolute time, as builtin_interfaces/Time wants them."""
    if not wall > 0.0:
        return 0, 0
    whole = int(wall)
    nanos = round((wall - whole) * 1e9)
    return (whole + 1, 0) if nanos >= 1_000_000_000 else (whole, nanos)


def join_stamp(sec: int, nanosec: int) -> float:
    """Absolute time in s of a stamp."""
    return sec + nanosec * 1e-9
